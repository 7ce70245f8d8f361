"""One score from the folds' scores, and the threshold that it is compared with."""

from __future__ import annotations

from typing import Any

from analyticup.engine.graph import Stage
from analyticup.settings.schema import Settings, decisive


def threshold_scale(method: str) -> str:
    """What a threshold is compared with under a method: "probability", or "rank" (see `combine_ranks`)."""
    return "rank" if method == "rank" else "probability"


def ensemble_settings(own: Settings) -> dict[str, Any]:
    return {"method": own.ensemble.method, **stack_settings(own)}


def threshold_settings(own: Settings) -> dict[str, Any]:
    return {**decisive(own.threshold), "scores": threshold_scale(own.ensemble.method), **stack_settings(own)}


def stack_settings(own: Settings) -> dict[str, Any]:
    """Nothing under another method, so that artifacts made before there was a stack are found again."""
    return {"stack_features": own.ensemble.stack_features} if own.ensemble.method == "stack" else {}


ENSEMBLE = Stage(
    "ensemble", version=2, run="analyticup.ensembling.stage:ensemble", settings=ensemble_settings, model=False
)
THRESHOLD = Stage(
    "threshold", version=2, run="analyticup.ensembling.stage:threshold", settings=threshold_settings, model=False
)
