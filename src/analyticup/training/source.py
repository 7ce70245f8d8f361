"""Where the models of a run come from: the backbone, its tokenizer, and the device they run on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from analyticup.errors import UserError
from analyticup.model.backbone import choose_precision, load_backbone, load_tokenizer, local_folder
from analyticup.model.frozen import KEPT_BYTES, FrozenStates
from analyticup.model.packing import enable_packing
from analyticup.model.pins import source_kind
from analyticup.model.prompt import PromptEncoder, TextTokens
from analyticup.model.tokens import KeptTokens
from analyticup.settings.paths import resolve
from analyticup.settings.schema import ModelSettings, PromptSettings, Settings


@dataclass(frozen=True)
class Machine:
    """What the models run on. `threads` None leaves it to torch; `workers` processes share the machine."""

    accelerator: str
    threads: int | None
    workers: int = 1

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
    each distinct text is tokenised once, and a converted copy of the weights is hashed once."""

    def __init__(self, settings: Settings, cache: Path, machine: Machine) -> None:
        self.settings = settings.model
        self.cache = cache
        self.machine = machine
        self._encoders: dict[PromptSettings, PromptEncoder] = {}
        self.frozen = FrozenStates(self.settings.packing, KEPT_BYTES // machine.workers)

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
        model = load_backbone(self._located, self.cache, getattr(torch, self.dtype))
        if self.settings.packing:
            enable_packing(model)
        return model

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0


def model_source(settings: Settings) -> ModelSource:
    """The models of these settings, loaded when they are needed."""
    machine = Machine(settings.machine.accelerator, settings.machine.threads, settings.machine.workers)
    return ModelSource(settings, resolve(settings.paths.cache), machine)
