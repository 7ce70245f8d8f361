"""Where the models of a run come from: the backbone, its tokenizer, and the device they run on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from analyticup.engine.artifacts import fingerprint
from analyticup.engine.files import scratch_path
from analyticup.errors import UserError
from analyticup.model.backbone import choose_precision, load_backbone, load_tokenizer, local_folder
from analyticup.model.frozen import FrozenStates
from analyticup.model.packing import enable_packing
from analyticup.model.pins import identity, source_kind
from analyticup.model.prompt import PromptEncoder, TextTokens
from analyticup.model.tokens import KeptTokens
from analyticup.model.weights import check_vocabulary
from analyticup.settings.paths import resolve
from analyticup.settings.schema import ModelSettings, PromptSettings, Settings


@dataclass(frozen=True)
class Machine:
    """What the models run on. `threads` None leaves it to torch."""

    accelerator: str
    threads: int | None

    @cached_property
    def device(self) -> str:
        """cpu, cuda or mps."""
        if self.accelerator == "cpu":
            return "cpu"
        if torch.cuda.is_available():
            return "cuda"
        if self.accelerator == "gpu" and not torch.backends.mps.is_available():
            raise UserError("machine.accelerator = gpu: torch sees no GPU here; use auto or cpu, or fix the driver")
        return "mps" if torch.backends.mps.is_available() else "cpu"


class ModelSource:
    """Loads the backbone of a run's settings. The tokenizer, which takes seconds, is loaded only once, or not at all;
    each distinct text is tokenised once, and a converted copy of the weights is hashed once. `scratch` is a folder for
    what the workers of one run share; without it, that is in memory."""

    def __init__(self, settings: Settings, cache: Path, machine: Machine, scratch: Path | None = None) -> None:
        self.settings = settings.model
        self.cache = cache
        self.machine = machine
        self.scratch = scratch
        self._encoders: dict[PromptSettings, PromptEncoder] = {}

    @cached_property
    def frozen(self) -> FrozenStates:
        """What the layers below the adapters make of the prompts, shared by the workers of a run."""
        decides = {"model": identity(self.settings), "dtype": self.dtype, "device": self.machine.device}
        name = f"states-{fingerprint({**decides, 'packing': self.settings.packing})[:16]}.sqlite"
        return FrozenStates(self.settings.packing, self.scratch and self.scratch / name)

    @cached_property
    def tokenizer(self) -> TextTokens:
        if source_kind(self.settings) == "gguf":
            return KeptTokens(Path(self._located.backbone), self.cache)
        return load_tokenizer(self._located, self.cache)

    @cached_property
    def _located(self) -> ModelSettings:
        if source_kind(self.settings) != "gguf":
            return self.settings
        return self.settings.replace(backbone=local_folder(self.settings, self.cache, self.dtype))

    @cached_property
    def dtype(self) -> str:
        """That of the backbone's weights."""
        return choose_precision(self.settings.dtype, self.machine.device).dtype

    def encoder(self, settings: Settings) -> PromptEncoder:
        if settings.prompt not in self._encoders:
            self._encoders[settings.prompt] = PromptEncoder(self.tokenizer, settings.prompt)
        return self._encoders[settings.prompt]

    def backbone(self) -> Any:
        if self.machine.threads:
            torch.set_num_threads(self.machine.threads)
        converted = source_kind(self.settings) == "gguf"
        model = load_backbone(self._located, self.cache, getattr(torch, self.dtype), converted)
        if isinstance(self.tokenizer, PreTrainedTokenizerBase):
            check_vocabulary(model, self.tokenizer, f"model.backbone = {self.settings.backbone}")
        if self.settings.packing:
            enable_packing(model)
        return model

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0


def model_source(settings: Settings) -> ModelSource:
    """The models of these settings, loaded when they are needed."""
    machine = Machine(settings.machine.accelerator, settings.machine.threads)
    scratch = scratch_path(resolve(settings.paths.artifacts) / "states")
    return ModelSource(settings, resolve(settings.paths.cache), machine, scratch)
