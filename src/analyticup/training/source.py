"""Where the models of a run come from: the backbone, its tokenizer, and the device they run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from analyticup.engine.artifacts import fingerprint
from analyticup.engine.files import scratch_path
from analyticup.engine.memory import let_go
from analyticup.errors import UserError
from analyticup.model.backbone import bare, choose_precision, load_backbone, load_tokenizer, local_folder
from analyticup.model.frozen import FrozenStates
from analyticup.model.heads import CLASSES, is_encoder_at
from analyticup.model.packing import enable_packing
from analyticup.model.passes import MemoryLimit
from analyticup.model.pins import identity, source_kind
from analyticup.model.prompt import LabelWords, PairEncoder, PromptEncoder, TextTokens
from analyticup.model.tokens import KeptTokens
from analyticup.model.vllm_engine import VllmEngine, for_scores
from analyticup.model.weights import check_vocabulary
from analyticup.settings.paths import resolve
from analyticup.settings.schema import ModelSettings, PromptSettings, Settings
from analyticup.training.vllm_scoring import scoring_fault


@dataclass(frozen=True)
class Machine:
    """What the models run on. `threads` None leaves it to torch; `devices` is the number of GPUs that one model may
    take; `tenants` are asked to go when a large model comes."""

    accelerator: str
    threads: int | None
    devices: int = 1
    tenants: list[Callable[[], None]] = field(default_factory=list, compare=False, repr=False)

    @cached_property
    def device(self) -> str:
        """cpu, cuda or mps."""
        if self.accelerator == "cpu":
            return "cpu"
        if torch.cuda.is_available():
            # cuDNN makes a plan for every shape, and nearly every pack has a new one. It does not repeat either, and
            # with a mask its gradients may not be finite (pytorch issue 196678, torch 2.11 to 2.13).
            torch.backends.cuda.enable_cudnn_sdp(False)
            return "cuda"
        if self.accelerator == "gpu" and not torch.backends.mps.is_available():
            raise UserError("machine.accelerator = gpu: torch sees no GPU here; use auto or cpu, or fix the driver")
        return "mps" if torch.backends.mps.is_available() else "cpu"

    def make_room(self) -> None:
        """Before another large model than the backbone is loaded."""
        for release in self.tenants:
            release()


class ModelSource:
    """The models of a run's settings. The backbone and the tokenizer are loaded only once, or not at all; each distinct
    text is tokenised once, and a converted copy of the weights is hashed once. `scratch` is a folder for what the
    workers of one run share; without it, that is in memory. `memory_limits` is what trainings and scorings have
    found to fit."""

    def __init__(self, settings: Settings, cache: Path, machine: Machine, scratch: Path | None = None) -> None:
        self.settings = settings.model
        self.cache = cache
        self.machine = machine
        self.scratch = scratch
        self.memory_limits = {"training": MemoryLimit(), "scoring": MemoryLimit()}
        self._encoders: dict[PromptSettings, PromptEncoder] = {}
        self._backbone: Any = None
        self._vllm: VllmEngine | None = None
        self._vllm_rank = 0
        machine.tenants.append(self.release)

    @cached_property
    def frozen(self) -> FrozenStates:
        """What the layers below the adapters make of the prompts, shared by the workers of a run."""
        decides = {"model": identity(self.settings), "dtype": self.dtype, "device": self.machine.device}
        if self.settings.quantisation != "none":
            decides["quantisation"] = self.settings.quantisation
        name = f"states-{fingerprint({**decides, 'packing': self.packing})[:16]}.sqlite"
        return FrozenStates(self.packing, self.scratch and self.scratch / name)

    @cached_property
    def tokenizer(self) -> TextTokens:
        if source_kind(self.settings) == "gguf":
            return KeptTokens(Path(self._located.backbone), self.cache)
        return load_tokenizer(self._located, self.cache)

    @cached_property
    def whole_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer as Transformers loads it, which can read ids back."""
        whole = isinstance(self.tokenizer, PreTrainedTokenizerBase)
        return self.tokenizer if whole else load_tokenizer(self._located, self.cache)

    @cached_property
    def _located(self) -> ModelSettings:
        if source_kind(self.settings) not in ("gguf", "hub"):
            return self.settings
        return self.settings.replace(backbone=local_folder(self.settings, self.cache, self.dtype))

    @cached_property
    def dtype(self) -> str:
        """That of the backbone's weights."""
        return choose_precision(self.settings.dtype, self.machine.device).dtype

    @cached_property
    def reads_pairs(self) -> bool:
        """Whether the backbone is an encoder with a head."""
        return self.settings.head == "classifier" and is_encoder_at(self._located.backbone)

    @property
    def packing(self) -> bool:
        """Whether prompts of a batch are packed, which only decoders can."""
        return self.settings.packing and not self.reads_pairs

    def encoder(self, settings: Settings) -> PromptEncoder:
        if settings.prompt not in self._encoders:
            kind = PairEncoder if self.reads_pairs else PromptEncoder
            self._encoders[settings.prompt] = kind(self.tokenizer, settings.prompt)
        return self._encoders[settings.prompt]

    def words(self, settings: Settings) -> LabelWords:
        """The label words, or the two classes of a head; raises UserError as `label_words` does."""
        return CLASSES if self.settings.head == "classifier" else self.encoder(settings).label_words()

    def backbone(self) -> Any:
        """The backbone without adapters, on the machine's device. It is loaded once and stays until `release`; the
        adapters of the training or scoring before are taken off."""
        if self.machine.threads:
            torch.set_num_threads(self.machine.threads)
        if self._backbone is not None:
            return bare(self._backbone)
        self.release()
        converted = source_kind(self.settings) == "gguf"
        dtype, device = getattr(torch, self.dtype), self.machine.device
        model = load_backbone(self._located, self.cache, dtype, converted, device)
        if isinstance(self.tokenizer, PreTrainedTokenizerBase):
            check_vocabulary(model, self.tokenizer, f"model.backbone = {self.settings.backbone}")
        if self.packing:
            enable_packing(model)
        if self.reads_pairs:
            # What token types are told by.
            model.config.sep_token_id = self.tokenizer.sep_token_id
        self._backbone = model
        return model

    def vllm(self, settings: Settings, rank: int) -> VllmEngine:
        """The backbone held by vLLM, for adapters up to that rank, in the place of the one that `backbone` gives. It is
        loaded once and stays until `release` or a higher rank. Raises UserError as `scoring_fault` says."""
        if fault := scoring_fault(settings, self.dtype, self.machine.device):
            raise UserError(fault)
        if self._vllm is not None and rank > self._vllm_rank:
            self.release()
        if self._vllm is None:
            self.machine.make_room()
            folder, on = local_folder(self._located, self.cache), {"dtype": self.dtype, "gpus": self.machine.devices}
            memory = settings.predict.memory_share
            self._vllm_rank = rank
            self._vllm = VllmEngine("predict", folder, **on, memory=memory, **for_scores(rank))
        return self._vllm

    def release(self) -> None:
        """Lets go of the backbone, whatever holds it."""
        if self._backbone is None and self._vllm is None:
            return
        if self._vllm is not None:
            self._vllm.close()
        self._backbone = self._vllm = None
        let_go()

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0


def model_source(settings: Settings) -> ModelSource:
    """The models of these settings, loaded when they are needed."""
    machine = Machine(settings.machine.accelerator, settings.machine.threads, settings.machine.devices)
    scratch = scratch_path(resolve(settings.paths.artifacts) / "states")
    return ModelSource(settings, resolve(settings.paths.cache), machine, scratch)
