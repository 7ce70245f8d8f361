"""The points of a report's pictures, from the labels and scores of one set of rows: curves, bins and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import precision_recall_curve

from analyticup.metrics import interval, query_weights, weighted_figures

# Points of a curve that are kept: more than a picture shows.
CURVE_POINTS = 100
BINS = 10
HISTOGRAM_BINS = 20


class CurvePoint(TypedDict):
    """Precision and recall of the rows at or above a threshold."""

    threshold: float
    precision: float
    recall: float


class CalibrationBin(TypedDict):
    """The rows whose score lies in low..high: their mean score, and the share of positives among them."""

    low: float
    high: float
    rows: int
    score: float
    positives: float


class Confusion(TypedDict):
    """Rows by label and answer, e.g. `yes_no` are labelled yes and answered no."""

    yes_yes: int
    yes_no: int
    no_yes: int
    no_no: int


# Of one language or group of languages: central 95 % over resampled queries; None where it has one class only.
Intervals = dict[str, tuple[float, float] | None]


class Series(TypedDict):
    """How the scores of one kind of rows spread over equal bins of 0..1; `origin` is that of the rows table."""

    origin: str
    label: int
    rows: int
    counts: list[int]


def precision_recall(labels: np.ndarray, scores: np.ndarray) -> list[CurvePoint]:
    """At most CURVE_POINTS thresholds, ascending, the ends among them; [] where one class is missing."""
    if len(np.unique(labels)) < 2:
        return []
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    kept = np.unique(np.linspace(0, len(thresholds) - 1, CURVE_POINTS).round().astype(int))
    return [
        {"threshold": float(thresholds[i]), "precision": float(precision[i]), "recall": float(recall[i])} for i in kept
    ]


def calibration(labels: np.ndarray, scores: np.ndarray) -> list[CalibrationBin]:
    """BINS equal bins of scores in 0..1, those without rows left out. Scores must be probabilities to be read so."""
    places = np.minimum((scores * BINS).astype(int), BINS - 1)
    return [
        {
            "low": place / BINS,
            "high": (place + 1) / BINS,
            "rows": int((places == place).sum()),
            "score": float(scores[places == place].mean()),
            "positives": float(labels[places == place].mean()),
        }
        for place in np.unique(places).tolist()
    ]


def confusion(labels: np.ndarray, predictions: np.ndarray) -> Confusion:
    no_no, no_yes, yes_no, yes_yes = np.bincount(2 * labels + predictions, minlength=4).tolist()
    return {"yes_yes": yes_yes, "yes_no": yes_no, "no_yes": no_yes, "no_no": no_no}


def series(origins: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[Series]:
    """How the scores of each origin and label present spread; all arrays are [rows], scores in 0..1."""
    found: list[Series] = []
    for origin in dict.fromkeys(origins.tolist()):
        for label in (1, 0):
            own = (origins == origin) & (labels == label)
            counts = np.histogram(scores[own], bins=HISTOGRAM_BINS, range=(0, 1))[0].tolist()
            if own.any():
                found.append({"origin": origin, "label": label, "rows": int(own.sum()), "counts": counts})
    return found


def intervals(labels: np.ndarray, scores: np.ndarray, predictions: np.ndarray, queries: Sequence[str]) -> Intervals:
    """95 % intervals of F1, AUC and AP by drawing whole queries."""
    drawn = weighted_figures(labels, scores, predictions, query_weights(queries, seed=0))
    return {name: interval(values) if np.isfinite(values).any() else None for name, values in drawn.items()}


def rank_correlations(scores: np.ndarray) -> list[list[float | None]]:
    """Spearman's correlation of each two columns, [columns, columns], from scores [rows, columns]; None where a column
    has one value only."""
    columns = range(scores.shape[1])
    found = [[_spearman(scores[:, one], scores[:, other]) for other in columns] for one in columns]
    return found


def _spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    if len(np.unique(one)) < 2 or len(np.unique(other)) < 2:
        return None
    return float(spearmanr(one, other).statistic)
