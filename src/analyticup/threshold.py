"""The decision threshold of Eq. 3, chosen on out-of-fold scores or fixed as in the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyticup.config import ThresholdSettings

if TYPE_CHECKING:
    import numpy as np


def threshold_grid(settings: ThresholdSettings) -> np.ndarray:
    """The thresholds that are swept, ascending, both ends included where the step reaches them."""
    import numpy as np

    steps = int(np.floor((settings.high - settings.low) / settings.step + 1e-9))
    return np.round(settings.low + settings.step * np.arange(steps + 1), 6)


def choose_threshold(labels: np.ndarray, scores: np.ndarray, settings: ThresholdSettings) -> dict[str, Any]:
    """The threshold and how it came about: `value`, `mode`, and the sweep (threshold and F1 of the positive class).

    labels [rows] of 0/1 and scores [rows] in 0..1 are out-of-fold. `sweep` takes the best F1; among equals the one
    nearest to 0.5. The stage switched off means 0.5.
    """
    import numpy as np

    from analyticup.metrics import f1_at_thresholds

    grid = threshold_grid(settings)
    f1 = f1_at_thresholds(labels, scores, grid)
    if not settings.enabled:
        value, mode = 0.5, "off"
    elif settings.mode == "fixed":
        value, mode = settings.value, "fixed"
    else:
        best = np.flatnonzero(f1 >= f1.max() - 1e-12)
        value, mode = float(grid[best[np.argmin(np.abs(grid[best] - 0.5))]]), "sweep"
    sweep = [{"threshold": float(t), "f1": float(score)} for t, score in zip(grid, f1, strict=True)]
    return {"value": value, "mode": mode, "sweep": sweep}
