"""Translators of queries: `lexicon` (phrase tables), `mined` (real queries as translations), `seedx` (a
language model), `marian` (a sequence-to-sequence model).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analyticup.augment.translators.base import CachedTranslator, Translation, Translator
from analyticup.errors import UserError
from analyticup.settings.schema import TranslateSettings

if TYPE_CHECKING:
    from analyticup.embed import Embedder

__all__ = ["TRANSLATORS", "CachedTranslator", "Translation", "Translator", "build_translator"]

TRANSLATORS = ("lexicon", "mined", "seedx", "marian")


def build_translator(
    settings: TranslateSettings,
    *,
    cache_dir: Path,
    embedder_factory: Callable[[], Embedder],
    pool: Mapping[str, Sequence[str]],
) -> Translator:
    """The translator that `settings.translator` names.

    `pool` holds unlabelled queries by language and is read by `mined` alone, as is the embedder, which is
    made only then. The mined and lexicon ones are not cached: the former depends on all texts asked for
    together, the latter is faster than a cache. Raises UserError for an unknown name.
    """
    if settings.translator == "lexicon":
        from analyticup.augment.translators.lexicon import LexiconTranslator

        return LexiconTranslator()
    if settings.translator == "mined":
        from analyticup.augment.translators.mined import MinedTranslator

        return MinedTranslator(pool, embedder_factory(), settings.mined)
    if settings.translator == "seedx":
        from analyticup.augment.translators.seedx import SeedXTranslator

        return CachedTranslator(SeedXTranslator(settings.seedx), cache_dir, settings.seedx.batch_size)
    if settings.translator == "marian":
        from analyticup.augment.translators.machine import MachineTranslator

        return CachedTranslator(MachineTranslator(settings.machine), cache_dir, settings.machine.batch_size)
    raise UserError(f"translate.translator is {settings.translator!r}; use one of {', '.join(TRANSLATORS)}")
