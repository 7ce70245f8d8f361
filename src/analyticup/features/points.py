"""Rows as the neighbour vote sees them: places in a space where the inner product of two is the kernel's exponent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from analyticup.features.vectors import Table
from analyticup.settings.schema import NeighbourSettings


@dataclass(frozen=True)
class Points:
    """A row's vector is that of its query followed by that of its target, times the roots of their `weights`. Many rows
    have a query or a path in common, so both are kept once. Rows of the same query have the same number in `groups`
    [rows]."""

    queries: Table
    targets: Table
    groups: np.ndarray
    weights: tuple[float, float]

    @classmethod
    def of(cls, queries: Table, targets: Table, groups: np.ndarray, settings: NeighbourSettings) -> Self:
        """From the centred vectors of query and target, of length 1."""
        return cls(queries, targets, groups, (settings.query_concentration, settings.target_concentration))

    def take(self, rows: slice | np.ndarray) -> Points:
        """Some of the rows, by place or by a mask."""
        queries, targets = (Table(table.vectors, table.places[rows]) for table in (self.queries, self.targets))
        return Points(queries, targets, self.groups[rows], self.weights)

    def vectors(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """float32 [rows, 2d]"""
        sides = zip((self.queries, self.targets), self.weights, strict=True)
        return np.concatenate([table.of(rows) * np.float32(np.sqrt(weight)) for table, weight in sides], axis=1)
