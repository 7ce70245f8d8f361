"""What translators with a model of Transformers share: its identity, its loading, batches of texts of like length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from analyticup.augmentation.translators.base import CachedTranslator, Tools
from analyticup.augmentation.translators.outputs import RULES
from analyticup.engine.memory import halved
from analyticup.errors import out_of_memory
from analyticup.model.pins import loadable
from analyticup.settings.schema import EmbedderSettings

if TYPE_CHECKING:
    import torch

    from analyticup.training.source import Machine


class GenerationSettings(Protocol):
    """What the settings of every such translator hold."""

    model: Any  # str, or None where it must be set
    revision: str | None
    beams: Any  # int, or None where the translator decides
    batch_size: int
    max_new_tokens: int


S = TypeVar("S", bound=GenerationSettings)
Asked = TypeVar("Asked", bound=Sequence[Any])
Answer = TypeVar("Answer")


@dataclass
class Halving:
    """Batches of at most `size`, and of fewer once memory has run out; `what` and `setting` name it there."""

    size: int
    what: str
    setting: str

    def answers(self, asked: Sequence[Asked], complete: Callable[[list[Asked]], list[Answer]]) -> list[Answer]:
        """What `complete` makes of each, in order; it is given batches of like length."""
        found: dict[int, Answer] = {}
        # Which keeps padding small.
        order = sorted(range(len(asked)), key=lambda index: (len(asked[index]), asked[index]))
        while order:
            batch = order[: self.size]
            try:
                outputs = complete([asked[place] for place in batch])
            except Exception as error:
                if len(batch) < 2 or not out_of_memory(error):
                    raise
            else:
                found |= zip(batch, outputs, strict=True)
                order = order[len(batch) :]
                continue
            self.size = halved(len(batch), self.what, self.setting)
        return [found[index] for index in range(len(asked))]


class GeneratingTranslator(Generic[S]):
    """Keeps one model loaded, the last one used, on the machine's device. Subclasses add what is theirs: `_weights`,
    `_how` and `translate`."""

    name: ClassVar[str]
    key: ClassVar[str]
    """Prefix of its settings, for errors."""
    auto_class: ClassVar[str]
    """The class of Transformers that loads its model."""
    selective: ClassVar[bool] = False
    uses_embedder: ClassVar[bool] = False
    uses_source: bool

    def __init__(self, settings: S, machine: Machine) -> None:
        """Raises UserError for what `identity_of` refuses."""
        self.identity = self.identity_of(settings)
        self._settings = settings
        self._batches = Halving(settings.batch_size, f"translator {self.name}", f"{self.key}.batch_size")
        self._machine = machine
        self._loaded: str | None = None
        self._model: Any = None
        self._tokenizer: Any = None

    @classmethod
    def build(cls, settings: S, tools: Tools) -> CachedTranslator:
        made = cls(settings, tools.machine)
        return CachedTranslator(made, tools.cache_dir, made._batches.size)

    @classmethod
    def decides(cls, settings: S, embedder: EmbedderSettings) -> dict[str, Any]:
        return {"model": cls.identity_of(settings)}

    @classmethod
    def identity_of(cls, settings: S) -> str:
        """Weights, settings and output rules; `batch_size` and device are left out."""
        how = f"beams={cls._beams(settings)},max={settings.max_new_tokens},{cls._how(settings)},rules={RULES}"
        return f"{cls.name}:{cls._weights(settings)}:{how}"

    @classmethod
    def models(cls, settings: S) -> list[str]:
        """Folders or hub ids of what may be loaded."""
        return [settings.model or ""]

    @classmethod
    def _weights(cls, settings: S) -> str:
        """The weights' part of the identity."""
        raise NotImplementedError

    @classmethod
    def _how(cls, settings: S) -> str:
        """What else of its settings changes a translation, as `name=value`."""
        raise NotImplementedError

    @classmethod
    def _beams(cls, settings: S) -> int:
        return settings.beams

    def _generate(self, inputs: Any, **options: Any) -> torch.Tensor:
        """Token ids [texts, tokens] by beam search without sampling."""
        import torch

        with torch.inference_mode():
            return self._model.generate(
                **inputs.to(self._model.device),
                **options,
                do_sample=False,
                num_beams=self._beams(self._settings),
                max_new_tokens=self._settings.max_new_tokens,
            )

    def _decode(self, tokens: torch.Tensor | Sequence[list[int]]) -> list[str]:
        return self._tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _load(self, model: str) -> None:
        """Makes `model` (folder or hub id) the loaded one; raises UserError where the machine lacks the wanted GPU."""
        if self._loaded == model:
            return
        import transformers

        # The old model goes before the new one comes, so that never two need memory.
        self._loaded = self._model = self._tokenizer = None
        self._machine.make_room()
        place = loadable(model, self._settings.revision)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        self._prepare(tokenizer)
        self._model, self._tokenizer = self._weights_of(place, tokenizer, f"{self.key}.model = {model}"), tokenizer
        self._loaded = model

    def _weights_of(self, place: str, tokenizer: Any, what: str) -> Any:
        """The model of a folder, on the device; `what` names it in errors."""
        import torch
        import transformers

        from analyticup.model.weights import check_vocabulary, load_whole

        device = self._machine.device
        how = {"dtype": getattr(torch, dtype_on(device)), "use_safetensors": True}
        loaded = load_whole(getattr(transformers, self.auto_class), place, what, **how)
        check_vocabulary(loaded, tokenizer, what)
        return loaded.to(device)

    def _prepare(self, tokenizer: Any) -> None:
        """Changes a tokenizer that was just loaded, where need be."""


def dtype_on(device: str) -> str:
    """The dtype that translators are loaded in; `device` is cpu, cuda or mps."""
    return "bfloat16" if device == "cuda" else "float32"
