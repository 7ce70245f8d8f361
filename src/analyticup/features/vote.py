"""The neighbour vote: labelled rows with a like query and a like target say what the label of a row may be.

Kernel regression (Nadaraya 1964, Watson 1964) over the nearest rows. The kernel exp(k cos), that of the von
Mises-Fisher distribution, stands once for the query and once for the target (assumed).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import logit, logsumexp
from sklearn.linear_model import LogisticRegression

from analyticup.augmentation.neighbours import ManyNeighbours
from analyticup.engine.cache import batches
from analyticup.engine.progress import track
from analyticup.errors import UserError
from analyticup.settings.schema import NeighbourSettings

# Rows that are scored together, to bound the memory.
_BLOCK = 2048
# A row's own query is left out of what was found; with more voters than this it is left out of the search.
MANY_VOTERS = 256
# Up to so many pairs of a row and a voter the nearest are found exactly: some ten seconds of one core. The official
# files have five hundred times as many.
EXACT_PAIRS = 300_000_000


@dataclass(frozen=True)
class Points:
    """Rows as the vote sees them: the inner product of two `vectors` [rows, 2d] is the exponent of the kernel; rows of
    the same query have the same number in `groups` [rows]."""

    vectors: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, queries: np.ndarray, targets: np.ndarray, groups: np.ndarray, settings: NeighbourSettings) -> Self:
        """From the centred vectors of query and target, [rows, d] each, of length 1."""
        scaled = (
            np.sqrt(settings.query_concentration).astype("float32") * queries,
            np.sqrt(settings.target_concentration).astype("float32") * targets,
        )
        return cls(np.concatenate(scaled, axis=1), groups)


def neighbour_vote(
    rows: Points, voters: Points, labels: np.ndarray, k: int, description: str
) -> tuple[np.ndarray, np.ndarray]:
    """(share of the voters' weight that says yes, in 0..1; natural log of their weight), float64 [rows] each; `labels`
    [voters] are 0 or 1.

    The k nearest voters count, each with the weight exp(query_concentration cos(q, q') + target_concentration
    cos(t, t')); ties by place. No voter of a row's own group is among them, for dev and test rows as for training
    rows, so that all are scored alike. Where nobody votes, the share is that of all voters and the log of the weight 0.
    Memory grows with the rows and with the voters, never with their product. Above EXACT_PAIRS near voters may be
    missed for the next ones (see augmentation/neighbours.py).
    """
    votes, density = np.full(len(rows.groups), labels.mean() if len(labels) else 0.5), np.zeros(len(rows.groups))
    few = len(votes) * len(voters.groups) <= EXACT_PAIRS
    with track(len(votes), description) as progress:
        for asking, asked, largest_group in _searches(rows.groups, voters.groups):
            among = ManyNeighbours(voters.vectors[asked], exact_pairs=EXACT_PAIRS if few else 0)
            groups, said = voters.groups[asked], labels[asked]
            for block in batches(asking, _BLOCK):
                # So many of the nearest voters may be of the row's own group.
                exponents, found = among.of(rows.vectors[block], k + largest_group)
                others = groups[found] != rows.groups[block][:, None]
                counted = others & (np.cumsum(others, axis=1) <= k)
                exponents = np.where(counted, exponents.astype(np.float64), -np.inf)
                some = counted.any(axis=1)
                total = logsumexp(exponents[some], axis=1)
                density[block[some]] = total
                votes[block[some]] = (np.exp(exponents[some] - total[:, None]) * said[found[some]]).sum(axis=1)
                progress.advance(len(block))
    return votes, density


def _searches(rows: np.ndarray, voters: np.ndarray) -> Iterator[tuple[np.ndarray, slice | np.ndarray, int]]:
    """(rows, voters that they look among, the most voters of one row's own group), by place, from the groups of all."""
    groups, counts = np.unique(voters, return_counts=True)
    many = counts > MANY_VOTERS
    # A slice, as places would copy the vectors of all.
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
