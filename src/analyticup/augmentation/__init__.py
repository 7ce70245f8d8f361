"""New training rows: translations for languages that have none, and semantic negatives."""

from __future__ import annotations

from typing import Any

from analyticup.augmentation.embedder_pin import embedder_identity
from analyticup.augmentation.translators import translation_models, translator_identity, translator_of
from analyticup.engine.graph import UNCUT, Cut, Stage
from analyticup.model.pins import identity
from analyticup.settings.schema import Settings, decisive
from analyticup.training import scoring_settings


def embedder_settings(settings: Settings) -> dict[str, Any]:
    return {"identity": embedder_identity(settings.embedder)}


def translate_settings(settings: Settings) -> dict[str, Any]:
    own = settings.translate
    # Since a costly translator is asked anew for rows that gave none, it makes more of them.
    redraws = {} if translator_of(own)[0].selective else {"redraws": True}
    return {
        "translator": own.translator,
        "languages": own.languages,
        "rows_per_language": own.rows_per_language,
        "volumes": sorted(own.volumes),
        "source_languages": None if own.source_languages is None else sorted(own.source_languages),
        "positive_share": own.positive_share,
        "seed": settings.seed,
        **translator_identity(own, settings.embedder),
        **redraws,
    }


def translate_cut(own: Settings) -> Cut:
    """Translators without a model take seconds."""
    return Cut(own.translate.shards) if translation_models(own.translate) else UNCUT


def pivot_settings(own: Settings) -> dict[str, Any]:
    translator = translator_identity(own.translate, own.embedder)
    return {"pivot": own.prompt.pivot, "translator": own.translate.translator, **translator}


def reasoning_settings(own: Settings) -> dict[str, Any]:
    """The model as it is before training, and what it goes on from."""
    prompt = decisive(own.prompt)
    read = {name: prompt[name] for name in ("reasoning", "max_query_tokens", "max_target_tokens", "level_marker")}
    how = {"dtype": own.model.dtype, "quantisation": own.model.quantisation}
    return {"weights": identity(own.model), **how, **read}


def reasoning_cut(own: Settings) -> Cut:
    return Cut(own.prompt.reasoning.shards, {"batch_size": own.prompt.reasoning.batch_size})


def translates(own: Settings) -> bool:
    """Whether a task asks its translator for anything."""
    return own.translate.enabled or own.prompt.pivot != "none"


def negatives_settings(own: Settings) -> dict[str, Any]:
    guard = scoring_settings(own, "compile_min_rows") if own.negatives.guard_above is not None else {}
    negatives = decisive(own.negatives)
    if negatives["band"] == "cosine":
        # As when there was no other.
        del negatives["band"]
    return {**negatives, **guard, "seed": own.seed, "embedder": embedder_settings(own)}


TRANSLATE = Stage("translate", 2, "analyticup.augmentation.stage:translate", translate_settings, translate_cut)
PIVOT = Stage("pivot", version=1, run="analyticup.augmentation.stage:pivot", settings=pivot_settings)
REASON = Stage("reason", 1, "analyticup.augmentation.stage:reason", reasoning_settings, reasoning_cut)
NEGATIVES = Stage("negatives", version=3, run="analyticup.augmentation.stage:negatives", settings=negatives_settings)
