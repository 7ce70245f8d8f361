"""A row for a reviewer, and the order in which rows are worth a look."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A row counts this much for every row of its language, and again of its category, that stands before it (assumed).
SPREAD = 0.99


@dataclass(frozen=True)
class Candidate:
    """A training row with what speaks for and against its label: p(yes) of the final models out of fold, of the filter
    (None without one) and of labelled neighbours, why it is here, and the neighbours and translations as text."""

    row_id: str
    language: str
    query: str
    target: str
    label: int
    model: float
    judge: float | None
    neighbours: float
    reason: str
    nearest: str
    translation: str


def spread_order(
    doubt: np.ndarray, languages: Sequence[str], categories: Sequence[str], places: Sequence[int]
) -> list[int]:
    """The places by falling value: a row's doubt, times SPREAD for each row of its language, and again of its category,
    that stands before it; ties by place."""
    cells: dict[tuple[str, str], list[int]] = {}
    for place in sorted(places, key=lambda at: (-doubt[at], at)):
        cells.setdefault((languages[place], categories[place]), []).append(place)
    taken: dict[str, Counter[str]] = {"language": Counter(), "category": Counter()}

    def value(cell: tuple[str, str], at: int) -> float:
        before = taken["language"][cell[0]] + taken["category"][cell[1]]
        return float(doubt[cells[cell][at]]) * SPREAD**before

    # Values only fall, so that the best cell is the first whose value is still what the heap has it at.
    heap = [(-value(cell, 0), own[0], cell, 0) for cell, own in cells.items()]
    heapq.heapify(heap)
    found: list[int] = []
    while heap:
        known, place, cell, at = heapq.heappop(heap)
        now = -value(cell, at)
        if now > known:
            heapq.heappush(heap, (now, place, cell, at))
            continue
        found.append(place)
        taken["language"][cell[0]] += 1
        taken["category"][cell[1]] += 1
        if at + 1 < len(cells[cell]):
            heapq.heappush(heap, (-value(cell, at + 1), cells[cell][at + 1], cell, at + 1))
    return found
