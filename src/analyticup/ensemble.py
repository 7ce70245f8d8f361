"""One score from the scores of several folds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def sigmoid(margins: np.ndarray) -> np.ndarray:
    """p(yes) from the logit margin: the two-word softmax of Eq. 2, float64."""
    from scipy.special import expit

    return expit(margins.astype("float64"))


def combine(margins: np.ndarray, method: str) -> np.ndarray:
    """Scores in 0..1, [rows], from logit margins [rows, folds]; the paper shows no ensemble (assumed)."""
    if method == "mean_logit":
        return sigmoid(margins.astype("float64").mean(axis=1))
    return sigmoid(margins).mean(axis=1)
