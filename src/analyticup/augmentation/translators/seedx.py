"""Seed-X-PPO-7B (or another Seed-X model) through Transformers or vLLM: raw completion, one line out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from analyticup.augmentation.translators.base import Translation
from analyticup.augmentation.translators.generation import GeneratingTranslator, dtype_on
from analyticup.augmentation.translators.outputs import first_line, judged
from analyticup.corpus.languages import ISO, LANGUAGES
from analyticup.errors import UserError
from analyticup.model.pins import check_pinned, model_identity
from analyticup.model.vllm_engine import VllmEngine, for_answers, vllm_fault
from analyticup.settings.schema import SeedXSettings

if TYPE_CHECKING:
    from analyticup.training.source import Machine

# Assumed to part a translation from an explanation that was not asked for.
_REASONING = "[COT]"
# vLLM makes its own batches; after so many texts what was found is kept.
_VLLM_TEXTS: Final = 2048


class SeedXTranslator(GeneratingTranslator[SeedXSettings]):
    """Loads its model at the first call, bf16 on CUDA and float32 elsewhere."""

    name: ClassVar[str] = "seedx"
    key: ClassVar[str] = "translate.seedx"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    any_language: ClassVar[bool] = False

    def __init__(self, settings: SeedXSettings, machine: Machine) -> None:
        """Raises UserError for a model not pinned (see `check_pinned`)."""
        super().__init__(settings, machine)
        # Here and not in the identity, so that configs/paper.yaml, which leaves the commit open, can be planned.
        check_pinned(settings.model, settings.revision, key=self.key)
        self.uses_source = settings.source_tag
        if settings.engine == "vllm":
            self._batches.size = _VLLM_TEXTS

    @classmethod
    def _weights(cls, settings: SeedXSettings) -> str:
        return model_identity(settings.model, settings.revision)

    @classmethod
    def _how(cls, settings: SeedXSettings) -> str:
        # Another engine rounds in another way, which may turn a word.
        engine = ",engine=vllm" if settings.engine == "vllm" else ""
        return f"source={settings.source_tag}{engine}"

    @classmethod
    def _beams(cls, settings: SeedXSettings) -> int:
        return settings.beams or (1 if settings.engine == "vllm" else 4)

    def translate(
        self, texts: list[str], target_language: str, sources: Sequence[str] | None = None
    ) -> list[Translation]:
        """See `Translator.translate`; raises UserError for a language Seed-X does not know by our codes."""
        if self.uses_source and sources is None:
            raise UserError("translate.seedx.source_tag is on, but no source languages were given")
        named = list(sources) if self.uses_source and sources is not None else [None] * len(texts)
        prompts = [build_prompt(text, target_language, source) for text, source in zip(texts, named, strict=True)]
        outputs = self._batches.answers(prompts, self._complete)
        return [
            judged(text, clean(output, target_language), target_language)
            for text, output in zip(texts, outputs, strict=True)
        ]

    def _complete(self, prompts: list[str]) -> list[str]:
        self._load(self._settings.model)
        if isinstance(self._model, VllmEngine):
            ids = self._tokenizer(prompts, return_token_type_ids=False)["input_ids"]
            return self._decode(self._model.complete(ids, self._settings.max_new_tokens, self._beams(self._settings)))
        inputs = self._tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        ends = {"eos_token_id": self._tokenizer.eos_token_id, "pad_token_id": self._tokenizer.pad_token_id}
        return self._decode(self._generate(inputs, **ends)[:, inputs["input_ids"].shape[1] :])

    def _weights_of(self, place: str, tokenizer: Any, what: str) -> Any:
        if self._settings.engine != "vllm":
            return super()._weights_of(place, tokenizer, what)
        device = self._machine.device
        if fault := vllm_fault(f"{self.key}.engine", device):
            raise UserError(fault)
        on = {"dtype": dtype_on(device), "gpus": self._machine.devices, "memory": self._settings.memory_share}
        return VllmEngine(self.key, place, **on, **for_answers(self._beams(self._settings)))

    def _prepare(self, tokenizer: Any) -> None:
        # Left padding: what the model continues must stand at the end of every row.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token


def build_prompt(text: str, target_language: str, source_language: str | None = None) -> str:
    """The completion prompt of Seed-X's model card; without a source language its name is left out.

    Languages are competition codes; the tag is ISO 639-1 (`<vi>` for `vn`). Raises UserError for other codes.
    """
    for language in (target_language, *([source_language] if source_language is not None else [])):
        if language not in LANGUAGES:
            raise UserError(f"seedx cannot translate {language!r}; it knows {', '.join(LANGUAGES)}")
    source = f"{LANGUAGES[source_language]} " if source_language is not None else ""
    # A line break within the text would end it early in the eyes of the model.
    line = " ".join(text.split())
    target = LANGUAGES[target_language]
    return f"Translate the following {source}sentence into {target}:\n{line} {_tag(target_language)}"


def clean(output: str, language: str) -> str:
    """The first line with text, without an echo of the tag around it, quotes, and the reasoning that may follow."""
    tag = _tag(language)
    text = output.strip()
    while text.startswith(tag):
        text = text.removeprefix(tag).strip()
    text = first_line(text.partition(_REASONING)[0])
    while text.endswith(tag):
        text = text.removesuffix(tag).strip()
    return first_line(text)


def _tag(language: str) -> str:
    return f"<{ISO[language]}>"
