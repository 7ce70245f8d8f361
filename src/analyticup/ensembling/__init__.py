"""One score from the folds' scores, and the threshold that it is compared with."""

from __future__ import annotations

from typing import Any

from analyticup.engine.graph import Stage
from analyticup.settings.schema import Settings, decisive


def threshold_scale(method: str) -> str:
    """What a threshold is compared with under a method: "probability", or "rank" (see `combine_ranks`)."""
    return "rank" if method == "rank" else "probability"


def ensemble_settings(own: Settings) -> dict[str, Any]:
    return decisive(own.ensemble)


def threshold_settings(own: Settings) -> dict[str, Any]:
    return {**decisive(own.threshold), "scores": threshold_scale(own.ensemble.method)}


ENSEMBLE = Stage("ensemble", version=1, run="analyticup.ensembling.stage:ensemble", settings=ensemble_settings)
THRESHOLD = Stage("threshold", version=2, run="analyticup.ensembling.stage:threshold", settings=threshold_settings)
