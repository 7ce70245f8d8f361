"""Scores of binary predictions: the competition's F1, the floor it must beat, and threshold-free figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyticup.corpus.languages import LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import ArrayLike

_RESAMPLES = 200  # assumed: the standard error of a standard error is then about 5 %


def _binary(name: str, values: ArrayLike) -> np.ndarray:
    import numpy as np

    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not np.isin(array, (0.0, 1.0)).all():
        raise ValueError(f"{name} must be one-dimensional and hold 0 and 1 only")
    return array.astype(np.int8)


def _scores(values: ArrayLike, rows: int) -> np.ndarray:
    import numpy as np

    array = np.asarray(values, dtype=float)
    if array.shape != (rows,) or not np.isfinite(array).all():
        raise ValueError(f"scores must be {rows} finite numbers")
    return array


def _f1_standard_error(labels: np.ndarray, predictions: np.ndarray, seed: int) -> float:
    """Bootstrap over rows: F1 depends on a resample through four confusion counts, which are multinomial."""
    import numpy as np

    counts = np.bincount(2 * labels + predictions, minlength=4)
    drawn = np.random.default_rng(seed).multinomial(len(labels), counts / len(labels), size=_RESAMPLES)
    wrong, hit = drawn[:, 1] + drawn[:, 2], drawn[:, 3]
    return float(np.std(2 * hit / np.maximum(2 * hit + wrong, 1), ddof=1))


def binary_metrics(
    labels: ArrayLike, predictions: ArrayLike, scores: ArrayLike | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """Figures of the positive class for n labels and predictions (0 or 1) and scores (higher = positive).

    Keys: rows, positives; f1 (the competition's metric), precision, recall, 0.0 where undefined; floor_f1,
    the F1 of predicting 1 everywhere; auc (area under the ROC curve) and ap (average precision), None without
    scores or where only one class is present; f1_se, the standard error of f1 by a bootstrap of 200 resamples
    that takes rows as independent, so that it is a little too small where a query has several rows. All but
    rows and positives lie in 0..1. ValueError for no rows, unequal lengths, values other than 0 and 1, or
    scores that are not finite.
    """
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

    truth, guess = _binary("labels", labels), _binary("predictions", predictions)
    if len(truth) != len(guess) or not len(truth):
        raise ValueError(f"{len(truth)} labels for {len(guess)} predictions; as many are needed, and one or more")
    positives = int(truth.sum())
    figures = precision_recall_fscore_support(truth, guess, average="binary", zero_division=0.0)
    precision, recall, f1, _ = figures
    auc = ap = None
    if scores is not None:
        ranking = _scores(scores, len(truth))
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


def per_language(
    labels: ArrayLike,
    predictions: ArrayLike,
    languages: Sequence[str],
    scores: ArrayLike | None = None,
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """`binary_metrics` for each language present, with its code first under "language".

    The competition's languages come in its order, others after them by code. Errors as in `binary_metrics`.
    """
    import numpy as np

    codes = np.asarray(languages, dtype=object)
    truth, guess = np.asarray(labels), np.asarray(predictions)
    if not len(codes) == len(truth) == len(guess):
        raise ValueError(f"{len(truth)} labels, {len(guess)} predictions, {len(codes)} languages")
    ranking = None if scores is None else _scores(scores, len(truth))
    present = set(languages)
    ordered = [code for code in LANGUAGES if code in present] + sorted(present - set(LANGUAGES))
    table = []
    for code in ordered:
        own = codes == code
        figures = binary_metrics(truth[own], guess[own], None if ranking is None else ranking[own], seed=seed)
        table.append({"language": code, **figures})
    return table


def f1_at_thresholds(labels: ArrayLike, scores: ArrayLike, grid: ArrayLike) -> np.ndarray:
    """F1 of the positive class, shape (len(grid),), under the rule "1 where score >= threshold" (Eq. 3).

    0.0 where nothing is predicted 1 or nothing is positive. ValueError as for `binary_metrics`.
    """
    import numpy as np

    truth = _binary("labels", labels)
    ranking = _scores(scores, len(truth))
    order = np.argsort(ranking, kind="stable")
    below = np.searchsorted(ranking[order], np.asarray(grid, dtype=float), side="left")
    hits_below = np.concatenate(([0], np.cumsum(truth[order], dtype=np.int64)))
    positives = hits_below[-1]
    hit = positives - hits_below[below]
    predicted = len(truth) - below
    return 2 * hit / np.maximum(predicted + positives, 1)
