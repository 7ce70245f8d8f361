"""Self-validation filtering: models judge the training rows, rules find suspect labels."""

from __future__ import annotations

from typing import Any

from analyticup.engine.graph import Stage
from analyticup.settings.schema import Settings, decisive
from analyticup.training import training_settings


def filter_settings(own: Settings) -> dict[str, Any]:
    """Without the number of rounds: each round is its own stage."""
    return {name: value for name, value in decisive(own.filter).items() if name != "rounds"}


JUDGE = Stage("filter_model", version=3, run="analyticup.filtering.stage:judge", settings=training_settings)
FILTER = Stage("filter", version=2, run="analyticup.filtering.stage:filter_rows", settings=filter_settings)
