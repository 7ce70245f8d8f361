"""Scores of binary predictions: the competition's F1, the floor it must beat, and threshold-free figures; and how sure
they are, by bootstrap.

Rows of one query are not independent, so intervals draw whole queries. A model's resamples use the same draws as
another's over the same queries, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypedDict

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

# The groups of languages that figures are also given for; "seen" is in the training rows as they were given.
ALL, SEEN, UNSEEN = "all", "with training rows", "without training rows"
FIGURES = ("f1", "ap", "auc")
# Of up to so many queries; of more, fewer resamples, but 200 at least: an interval is narrow then, and its ends move by
# about a tenth of its width from one seed to the next (assumed).
RESAMPLES, _RESAMPLED_QUERIES, _LEAST_RESAMPLES = 1000, 10_000, 200
_SE_RESAMPLES = 200  # assumed: the standard error of a standard error is then about 5 %
# Rows of resamples worked on at once: what a core's own cache holds.
_ROWS_AT_ONCE = 65_536


class Figures(TypedDict):
    """What `binary_metrics` gives."""

    rows: int
    positives: int
    f1: float
    precision: float
    recall: float
    floor_f1: float
    auc: float | None
    ap: float | None
    f1_se: float


class LanguageFigures(Figures):
    """Those of one language or group of languages; `language` is the first key."""

    language: str


def sigmoid(margins: np.ndarray) -> np.ndarray:
    """p(yes) from the logit margin: the two-word softmax of Eq. 2, float64."""
    return expit(margins.astype("float64"))


def finite_scores(values: ArrayLike, rows: int) -> np.ndarray:
    """The scores as float64 [rows]; ValueError for another number of them and for one that is not finite."""
    array = np.asarray(values, dtype=float)
    if array.shape != (rows,) or not np.isfinite(array).all():
        raise ValueError(f"scores must be {rows} finite numbers")
    return array


def _binary(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not np.isin(array, (0.0, 1.0)).all():
        raise ValueError(f"{name} must be one-dimensional and hold 0 and 1 only")
    return array.astype(np.int8)


def _f1_standard_error(labels: np.ndarray, predictions: np.ndarray, seed: int) -> float:
    """Bootstrap over rows: F1 depends on a resample through four confusion counts, so only they are drawn."""
    counts = np.bincount(2 * labels + predictions, minlength=4)
    drawn = np.random.default_rng(seed).multinomial(len(labels), counts / len(labels), size=_SE_RESAMPLES)
    wrong, hit = drawn[:, 1] + drawn[:, 2], drawn[:, 3]
    return float(np.std(2 * hit / np.maximum(2 * hit + wrong, 1), ddof=1))


def binary_metrics(
    labels: ArrayLike, predictions: ArrayLike, scores: ArrayLike | None = None, *, seed: int = 0
) -> Figures:
    """Figures of the positive class for n labels and predictions (0 or 1) and scores (higher = positive).

    Keys: rows, positives; f1 (the competition's metric), precision, recall, 0.0 where undefined; floor_f1,
    the F1 of predicting 1 everywhere; auc (area under the ROC curve) and ap (average precision), None without
    scores or where only one class is present; f1_se, the standard error of f1 by a bootstrap of 200 resamples
    that takes rows as independent, so that it is a little too small where a query has several rows. All but
    rows and positives lie in 0..1. ValueError for no rows, unequal lengths, values other than 0 and 1, or
    scores that are not finite.
    """
    truth, guess = _binary("labels", labels), _binary("predictions", predictions)
    if len(truth) != len(guess) or not len(truth):
        raise ValueError(f"{len(truth)} labels for {len(guess)} predictions; as many are needed, and one or more")
    positives = int(truth.sum())
    figures = precision_recall_fscore_support(truth, guess, average="binary", zero_division=0.0)
    precision, recall, f1, _ = figures
    auc = ap = None
    if scores is not None:
        ranking = finite_scores(scores, len(truth))
        if 0 < positives < len(truth):
            auc, ap = float(roc_auc_score(truth, ranking)), float(average_precision_score(truth, ranking))
    return {
        "rows": len(truth),
        "positives": positives,
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "floor_f1": 2 * positives / (positives + len(truth)),
        "auc": auc,
        "ap": ap,
        "f1_se": _f1_standard_error(truth, guess, seed),
    }


def known_figures(labels: np.ndarray, margins: np.ndarray) -> dict[str, float]:
    """f1 at p = 0.5, auc and ap of logit margins [rows], where they are defined: as of `binary_metrics`."""
    figures = binary_metrics(labels, (margins >= 0).astype(int), sigmoid(margins))
    named = {"f1": figures["f1"], "auc": figures["auc"], "ap": figures["ap"]}
    return {name: value for name, value in named.items() if value is not None}


def f1_at_thresholds(labels: ArrayLike, scores: ArrayLike, grid: ArrayLike) -> np.ndarray:
    """F1 of the positive class, shape (len(grid),), under the rule "1 where score >= threshold" (Eq. 3).

    0.0 where nothing is predicted 1 or nothing is positive. ValueError as for `binary_metrics`.
    """
    truth = _binary("labels", labels)
    ranking = finite_scores(scores, len(truth))
    order = np.argsort(ranking, kind="stable")
    below = np.searchsorted(ranking[order], np.asarray(grid, dtype=float), side="left")
    hits_below = np.concatenate(([0], np.cumsum(truth[order], dtype=np.int64)))
    positives = hits_below[-1]
    hit = positives - hits_below[below]
    predicted = len(truth) - below
    return 2 * hit / np.maximum(predicted + positives, 1)


def query_weights(queries: Sequence[str], seed: int) -> Iterator[np.ndarray]:
    """How often each row counts in each resample, int [resamples, rows] in turn, when whole queries are drawn with
    replacement.

    The same set of queries and the same seed give the same draws, whatever the rows' order.
    """
    which, distinct = pd.factorize(np.asarray(queries, dtype=object), sort=True, use_na_sentinel=False)
    n = len(distinct)
    generator = np.random.default_rng([seed, n])
    resamples = min(RESAMPLES, max(_LEAST_RESAMPLES, RESAMPLES * _RESAMPLED_QUERIES // n))
    at_once = max(_ROWS_AT_ONCE // len(which), 1)
    for start in range(0, resamples, at_once):
        some = range(min(at_once, resamples - start))
        yield np.stack([np.bincount(generator.integers(0, n, n), minlength=n) for _ in some]).take(which, axis=1)


def weighted_figures(
    labels: np.ndarray, scores: np.ndarray, predictions: np.ndarray, weights: Iterable[np.ndarray]
) -> dict[str, np.ndarray]:
    """F1, average precision and ROC-AUC under each row of the `weights`, whole numbers, each [some resamples, rows];
    [resamples] each, 0..1.

    Equal to scikit-learn's with `sample_weight`, for all resamples after one sort. nan where a class is missing.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    truth, said = labels[order].astype(np.float64), predictions[order].astype(np.float64)
    parts = [_figures(truth, said, last_of_tie, some.take(order, axis=1)) for some in weights]
    return {name: np.concatenate([part[name] for part in parts]) for name in FIGURES}


def _figures(
    labels: np.ndarray, predictions: np.ndarray, last_of_tie: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Rows sorted by falling score; `last_of_tie` [distinct scores] is the last row of each score."""
    positive = weights * labels
    found, said = (positive * predictions).sum(axis=1), (weights * predictions).sum(axis=1)
    hits = np.cumsum(positive, axis=1).take(last_of_tie, axis=1)
    misses = np.cumsum(weights - positive, axis=1).take(last_of_tie, axis=1)
    new_hits, new_misses = np.diff(hits, axis=1, prepend=0), np.diff(misses, axis=1, prepend=0)
    positives, negatives = hits[:, -1], misses[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        # Where a score has been drawn for no row so far, nothing is hit either.
        precision = hits / np.maximum(hits + misses, 1)
        ap = (precision * new_hits).sum(axis=1) / positives
        auc = (new_misses * (hits - new_hits / 2)).sum(axis=1) / (positives * negatives)
        f1 = 2 * found / (said + positives)
    return {"f1": f1, "ap": ap, "auc": auc}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The central 95 % of resampled values (percentile bootstrap), nan left out."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
