"""The neighbour vote: labelled rows with a like query and a like target say what the label of a row may be.

Kernel regression (Nadaraya 1964, Watson 1964) over the nearest rows. The kernel exp(k cos), that of the von
Mises-Fisher distribution, stands once for the query and once for the target (assumed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import logit, logsumexp
from sklearn.linear_model import LogisticRegression

from analyticup.augmentation.neighbours import nearest
from analyticup.engine.cache import batches
from analyticup.engine.progress import track
from analyticup.errors import UserError
from analyticup.features.inverted_file import InvertedFile
from analyticup.features.points import Points

# Rows that are scored together, to bound the memory.
_BLOCK = 2048
# A row's own query is left out of what was found; with more voters than this it is left out of the search.
MANY_VOTERS = 256
# Up to so many pairs of a row and a voter the nearest are found exactly: some seconds of one core. The official
# files have five hundred times as many.
EXACT_PAIRS = 300_000_000
# An inverted file of so few would hold as many lists as rows, nearly.
_FEW_VOTERS = 1000


def neighbour_vote(
    rows: Points, voters: Points, labels: np.ndarray, k: int, description: str
) -> tuple[np.ndarray, np.ndarray]:
    """(share of the voters' weight that says yes, in 0..1; natural log of their weight), float64 [rows] each; `labels`
    [voters] are 0 or 1.

    The k nearest voters count, each with the weight exp(query_concentration cos(q, q') + target_concentration
    cos(t, t')); ties by place. No voter of a row's own group is among them, for dev and test rows as for training
    rows, so that all are scored alike. Where nobody votes, the share is that of all voters and the log of the weight 0.
    Memory grows with the rows and with the voters, never with their product. Above EXACT_PAIRS near voters may be
    missed for the next ones (see features/inverted_file.py).
    """
    votes, density = np.full(len(rows.groups), labels.mean() if len(labels) else 0.5), np.zeros(len(rows.groups))
    few = len(votes) * len(voters.groups) <= EXACT_PAIRS
    with track(len(votes), description) as progress:
        for asking, asked, largest_group in _searches(rows.groups, voters.groups):
            if not len(asking):
                continue
            among, said = voters.take(asked), labels[asked]
            near = _every(among) if few or len(among.groups) <= _FEW_VOTERS else InvertedFile(among).nearest
            for block in batches(asking, _BLOCK):
                # So many of the nearest voters may be of the row's own group.
                exponents, found = near(rows.take(block), k + largest_group)
                others = (among.groups[found] != rows.groups[block][:, None]) & np.isfinite(exponents)
                counted = others & (np.cumsum(others, axis=1) <= k)
                exponents = np.where(counted, exponents.astype(np.float64), -np.inf)
                some = counted.any(axis=1)
                total = logsumexp(exponents[some], axis=1)
                density[block[some]] = total
                votes[block[some]] = (np.exp(exponents[some] - total[:, None]) * said[found[some]]).sum(axis=1)
                progress.advance(len(block))
    return votes, density


def _every(voters: Points) -> Callable[[Points, int], tuple[np.ndarray, np.ndarray]]:
    """As `InvertedFile.nearest`, looking at each voter."""
    vectors = voters.vectors()
    return lambda rows, k: nearest(vectors, rows.vectors(), k)


def _searches(rows: np.ndarray, voters: np.ndarray) -> Iterator[tuple[np.ndarray, slice | np.ndarray, int]]:
    """(rows, voters that they look among, the most voters of one row's own group), by place, from the groups of all."""
    groups, counts = np.unique(voters, return_counts=True)
    many = counts > MANY_VOTERS
    yield np.flatnonzero(~np.isin(rows, groups[many])), slice(None), int(counts[~many].max(initial=0))
    for group in groups[many]:
        yield np.flatnonzero(rows == group), np.flatnonzero(voters != group), 0


@dataclass(frozen=True)
class Scale:
    """From a vote to a logit margin (Platt 1999). A vote is a mean over many rows and hardly leaves their share of
    positives: its order says more than its value."""

    slope: float
    intercept: float

    @classmethod
    def fit(cls, votes: np.ndarray, labels: np.ndarray) -> Self:
        """From votes [rows] that each row's own query had no part in, and the rows' labels.

        The slope is 0 or more. Without its own label a row sees a few less of its kind than others do, so that votes of
        few rows that know nothing run against the labels. Raises UserError where the labels are all the same.
        """
        if len(np.unique(labels)) < 2:
            raise UserError("the neighbour vote needs training rows of both labels; bring more rows")
        model = LogisticRegression(C=np.inf).fit(votes[:, None], labels)
        if model.coef_[0, 0] < 0:
            return cls(0.0, float(logit(labels.mean())))
        return cls(float(model.coef_[0, 0]), float(model.intercept_[0]))

    def apply(self, votes: np.ndarray) -> np.ndarray:
        """Logit margins [rows], whose sigmoid is p(yes)."""
        return self.slope * votes + self.intercept
