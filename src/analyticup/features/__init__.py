"""What is known of a row before any model of the run has read it: how its neighbours are labelled, and how alike its
query and target are."""

from __future__ import annotations

from typing import Any

from analyticup.augmentation import embedder_settings
from analyticup.engine.graph import Stage
from analyticup.settings.schema import Settings, decisive


def neighbour_settings(own: Settings) -> dict[str, Any]:
    return {**decisive(own.neighbours), "embedder": embedder_settings(own)}


def feature_settings(own: Settings) -> dict[str, Any]:
    return {"embedder": embedder_settings(own)}


def bi_encoder_settings(own: Settings) -> dict[str, Any]:
    return {**decisive(own.bi_encoder), "embedder": embedder_settings(own), "seed": own.seed}


NEIGHBOURS = Stage("neighbours", version=5, run="analyticup.features.stage:neighbours", settings=neighbour_settings)
FEATURES = Stage("features", version=3, run="analyticup.features.stage:features", settings=feature_settings)
BI_ENCODER = Stage("bi_encoder", version=2, run="analyticup.features.stage:bi_encoder", settings=bi_encoder_settings)
