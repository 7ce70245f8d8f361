"""Bootstrap intervals over queries for F1, ROC-AUC and average precision, paired between models.

Rows of one query are not independent, so whole queries are drawn. A model's resamples use the same draws as another's
over the same queries, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

FIGURES = ("f1", "ap", "auc")
RESAMPLES = 1000
# Resamples worked on at once, to bound the memory.
_CHUNK = 50


def query_weights(queries: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """How often each row counts in each resample, int [resamples, rows], when whole queries are drawn with replacement.

    The same set of queries and the same seed give the same draws, whatever the rows' order.
    """
    import numpy as np

    distinct, which = np.unique(np.asarray(queries, dtype=object).astype(str), return_inverse=True)
    n = len(distinct)
    drawn = np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=resamples)
    return drawn[:, which].astype(np.int16)


def weighted_figures(
    labels: np.ndarray, scores: np.ndarray, predictions: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """F1, average precision and ROC-AUC under each row of `weights` [resamples, rows]; [resamples] each, 0..1.

    Equal to scikit-learn's with `sample_weight`, for all resamples after one sort. nan where a class is missing.
    """
    import numpy as np

    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    parts = [
        _figures(labels[order], predictions[order], last_of_tie, weights[start : start + _CHUNK, order])
        for start in range(0, len(weights), _CHUNK)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in FIGURES}


def _figures(
    labels: np.ndarray, predictions: np.ndarray, last_of_tie: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Rows sorted by falling score; `last_of_tie` [distinct scores] is the last row of each score."""
    import numpy as np

    weights = weights.astype(np.float64)
    hits = np.cumsum(weights * labels, axis=1)[:, last_of_tie]
    misses = np.cumsum(weights * (1 - labels), axis=1)[:, last_of_tie]
    new_hits, new_misses = np.diff(hits, axis=1, prepend=0), np.diff(misses, axis=1, prepend=0)
    positives, negatives = hits[:, -1], misses[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(hits / (hits + misses))
        ap = (precision * new_hits).sum(axis=1) / positives
        auc = (new_misses * (hits - new_hits / 2)).sum(axis=1) / (positives * negatives)
        found = (weights * labels * predictions).sum(axis=1)
        f1 = 2 * found / ((weights * predictions).sum(axis=1) + positives)
    return {"f1": f1, "ap": ap, "auc": auc}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The central 95 % of resampled values (percentile bootstrap), nan left out."""
    import numpy as np

    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
