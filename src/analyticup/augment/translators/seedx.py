"""Seed-X-PPO-7B (or another Seed-X model) through Transformers: raw completion, one line out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analyticup.augment.translators.base import Translation
from analyticup.augment.translators.outputs import RULES, first_line, judged
from analyticup.cache import batches
from analyticup.corpus.languages import ISO, LANGUAGES
from analyticup.embed import model_identity
from analyticup.errors import UserError
from analyticup.settings.schema import SeedXSettings

# Assumed to part a translation from an explanation that was not asked for.
_REASONING = "[COT]"


class SeedXTranslator:
    """Loads its model at the first call, bf16 on a GPU and float32 on the CPU."""

    selective = False

    def __init__(self, settings: SeedXSettings) -> None:
        """Raises UserError for numbers out of range or a model not pinned (see `model_identity`)."""
        for name in ("beams", "batch_size", "max_new_tokens"):
            if getattr(settings, name) < 1:
                raise UserError(f"translate.seedx.{name} is {getattr(settings, name)}; it must be at least 1")
        self._settings = settings
        weights = model_identity(settings.model, settings.revision, key="translate.seedx")
        how = f"beams={settings.beams},max={settings.max_new_tokens},source={settings.source_tag},rules={RULES}"
        self.identity = f"seedx:{weights}:{how}"
        self.uses_source = settings.source_tag
        self._model: Any = None
        self._tokenizer: Any = None

    def translate(
        self, texts: list[str], target_language: str, sources: Sequence[str] | None = None
    ) -> list[Translation]:
        """See `Translator.translate`; raises UserError for a language Seed-X does not know by our codes."""
        if self.uses_source and sources is None:
            raise UserError("translate.seedx.source_tag is on, but no source languages were given")
        named = list(sources) if self.uses_source and sources is not None else [None] * len(texts)
        prompts = [build_prompt(text, target_language, source) for text, source in zip(texts, named, strict=True)]
        results = [Translation(None)] * len(texts)
        # Texts of like length share a batch, which keeps padding small.
        order = sorted(range(len(texts)), key=lambda index: (len(prompts[index]), prompts[index]))
        for batch in batches(order, self._settings.batch_size):
            for index, output in zip(batch, self._complete([prompts[i] for i in batch]), strict=True):
                results[index] = judged(texts[index], clean(output, target_language), target_language)
        return results

    def _complete(self, prompts: list[str]) -> list[str]:
        import torch

        self._load()
        inputs = self._tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        inputs = inputs.to(self._model.device)
        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs,
                do_sample=False,
                num_beams=self._settings.beams,
                max_new_tokens=self._settings.max_new_tokens,
                eos_token_id=self._tokenizer.eos_token_id,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        return self._tokenizer.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )

    def _load(self) -> None:
        if self._model is not None:
            return
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        on_gpu = torch.cuda.is_available()
        where = {"revision": self._settings.revision, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(self._settings.model, **where)
        # Left padding: what the model continues must stand at the end of every row.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        dtype = torch.bfloat16 if on_gpu else torch.float32
        model = AutoModelForCausalLM.from_pretrained(self._settings.model, dtype=dtype, use_safetensors=True, **where)
        self._tokenizer, self._model = tokenizer, model.to("cuda" if on_gpu else "cpu").eval()


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
