"""One score from the scores of several folds. The paper shows no ensemble, so every method here is assumed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from analyticup.ensembling import threshold_scale
from analyticup.ensembling.threshold import Choice
from analyticup.metrics import sigmoid


def combine(margins: np.ndarray, method: str) -> np.ndarray:
    """Mean of the logits (mean_logit) or of the probabilities (mean_probability): scores in 0..1, [rows], from margins
    [rows, folds]. ValueError for another method, which needs more than margins or is unknown."""
    if method == "mean_logit":
        return sigmoid(margins.astype("float64").mean(axis=1))
    if method == "mean_probability":
        return sigmoid(margins).mean(axis=1)
    raise ValueError(f"ensemble.method {method!r} is not a mean of the folds' scores")


def combine_weighted(margins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of the logits as scores in 0..1, [rows], from margins [rows, folds] and weights [folds]."""
    return sigmoid((margins.astype("float64") * weights).sum(axis=1))


def fold_weights(labels: Sequence[np.ndarray], margins: Sequence[np.ndarray]) -> np.ndarray:
    """Weight of each fold's model, [folds], none negative, sum 1: its share of the area above chance, AUC - 0.5.

    labels (0/1) and margins hold each fold's own out-of-fold rows. Stacking is not possible here: cross-validation
    scores a row with only one fold's model, so no regression can compare the models. A model is judged instead by
    its own rows (assumed). Folds are judged on different rows, so a weight also holds how hard a fold's rows are, and
    with folds of equal size and make-up the weights hardly differ.

    A model at or below chance gets 0. One whose rows hold one class cannot be judged and counts as the average of
    the others. Where no model is above chance, all weigh the same.
    """
    above = np.full(len(labels), np.nan)
    for fold, (truth, scores) in enumerate(zip(labels, margins, strict=True)):
        if len(np.unique(truth)) == 2:
            above[fold] = max(0.0, roc_auc_score(truth, scores) - 0.5)
    judged = above[~np.isnan(above)]
    above = np.where(np.isnan(above), judged.mean() if len(judged) else 0.0, above)
    if not above.any():
        return np.full(len(above), 1 / len(above))
    return above / above.sum()


def rank_among(margins: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The place of each margin among the reference's, in 0..1, [rows]: the share below it plus half the share equal.

    For the reference itself this is its rank, ties averaged, as (rank - 0.5) / rows. ValueError for no reference.
    """
    if not len(reference):
        raise ValueError("ranks need one reference row or more")
    ordered = np.sort(reference)
    below = np.searchsorted(ordered, margins, side="left")
    up_to = np.searchsorted(ordered, margins, side="right")
    return (below + up_to) / (2 * len(ordered))


def combine_ranks(margins: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over the folds of each margin's rank among that fold's out-of-fold margins: [rows], in 0..1, no probability.

    The reference is the fold's out-of-fold rows, not the rows that are scored. So a row's score does not depend on
    what else is scored, dev and test agree, and a threshold chosen on `out_of_fold_scores` means the same margin of
    each fold; ranks within dev would assume that dev has the positives and languages of the training rows.
    """
    columns = [rank_among(margins[:, fold], reference) for fold, reference in enumerate(references)]
    return np.column_stack(columns).mean(axis=1)


def combine_votes(margins: np.ndarray, languages: ArrayLike, choice: Choice) -> np.ndarray:
    """Share of the folds that say yes, [rows], from margins [rows, folds] and the rows' languages [rows].

    All folds vote by the choice that out-of-fold rows are decided by: each of them is a vote of one. The answer is yes
    from `threshold.VOTE_CUT` on.
    """
    votes = [choice.decide(scores, languages) for scores in sigmoid(margins).T]
    return np.column_stack(votes).mean(axis=1)


def out_of_fold_scores(margins: np.ndarray, folds: np.ndarray, method: str) -> np.ndarray:
    """Scores in 0..1, [rows], on the scale that the method's threshold is compared with, from out-of-fold margins
    [rows] and the fold that scored each: p, or the rank within that fold."""
    if threshold_scale(method) == "probability":
        return sigmoid(margins)
    scores = np.empty(len(margins))
    for fold in np.unique(folds):
        own = folds == fold
        scores[own] = rank_among(margins[own], margins[own])
    return scores
