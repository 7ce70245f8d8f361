"""Translators of queries: `lexicon` (phrase tables), `mined` (real queries as translations), `seedx` (a
language model), `seq2seq` (a sequence-to-sequence model).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from analyticup.augmentation.translators.base import OfferedTranslator, Tools, Translator
from analyticup.augmentation.translators.lexicon import LexiconTranslator
from analyticup.augmentation.translators.mined import MinedTranslator
from analyticup.augmentation.translators.seedx import SeedXTranslator
from analyticup.augmentation.translators.seq2seq import Seq2SeqTranslator
from analyticup.corpus.languages import LANGUAGES
from analyticup.model.vllm_engine import vllm_fault
from analyticup.settings.schema import EmbedderSettings, TranslateSettings

__all__ = [
    "TRANSLATORS",
    "Tools",
    "Translator",
    "build_translator",
    "engine_fault",
    "translation_models",
    "translator_identity",
    "translator_of",
    "unknown_languages",
]
# Value of translate.translator -> its class and the section of `translate` with its settings ("" = none). Only what a
# plan may import: models, numpy and pandas are imported where they are used.
TRANSLATORS: dict[str, tuple[type[OfferedTranslator], str]] = {
    "lexicon": (LexiconTranslator, ""),
    "mined": (MinedTranslator, "mined"),
    "seedx": (SeedXTranslator, "seedx"),
    "seq2seq": (Seq2SeqTranslator, "seq2seq"),
}


def translator_of(settings: TranslateSettings) -> tuple[type[OfferedTranslator], Any]:
    """The class that `settings.translator` names and its section of the settings (None = it has none)."""
    translator, section = TRANSLATORS[settings.translator]
    return translator, getattr(settings, section) if section else None


def build_translator(settings: TranslateSettings, tools: Tools) -> Translator:
    """The translator of `settings`; those with a model are cached, and load it when a text is not in the cache.

    Raises UserError for models that are not there or not pinned.
    """
    translator, section = translator_of(settings)
    return translator.build(section, tools)


def translator_identity(settings: TranslateSettings, embedder: EmbedderSettings) -> dict[str, Any]:
    """What of the translator decides its translations, for the stage's identity; creates and loads nothing."""
    translator, section = translator_of(settings)
    return translator.decides(section, embedder)


def translation_models(settings: TranslateSettings) -> list[tuple[str, str, str | None]]:
    """(prefix of its settings, folder or hub id, revision) of each model that the translator may load."""
    translator, section = translator_of(settings)
    key = f"translate.{TRANSLATORS[settings.translator][1]}"
    return [(key, name, section.revision) for name in translator.models(section)]


def engine_fault(settings: TranslateSettings, device: str) -> str:
    """Why the translator's engine cannot be used on cpu, cuda or mps, as a text; "" where it may be."""
    if settings.translator == "seedx" and settings.seedx.engine == "vllm":
        return vllm_fault("translate.seedx.engine", device)
    return ""


def unknown_languages(settings: TranslateSettings, languages: Iterable[str]) -> str:
    """Which of the languages the translator does not know, as a text; "" where it may know all."""
    unknown = [code for code in languages if code not in LANGUAGES]
    if not unknown or translator_of(settings)[0].any_language:
        return ""
    return f"{settings.translator} does not know {', '.join(unknown)}"
