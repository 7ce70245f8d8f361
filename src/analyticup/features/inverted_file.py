"""Hundreds of neighbours for each of many rows, most of which will do."""

from __future__ import annotations

from math import ceil

import faiss
import numpy as np

from analyticup.augmentation.neighbours import best_first, one_thread
from analyticup.engine.cache import batches
from analyticup.features.points import Points

# Principal components, lists for each square root of the rows, least share of the lists that is looked at, rows in
# them for each that is asked for (assumed; what a vote loses by it stands in configs/README.md).
_COMPONENTS, _LISTS, _LEAST_SHARE, _ROWS_TO_A_CANDIDATE = 64, 2, 1 / 64, 8
# Faiss warns of fewer rows to a list; so many of them place the lists.
_ROWS_TO_A_LIST, _PLACING_ROWS = 39, 40
_BLOCK = 16_384


class InvertedFile:
    """An inverted file (Jegou et al. 2011) of the points' principal components finds half as many again as are asked
    for, and the whole vectors say which are near. Building and searching it take a fraction of what a graph takes."""

    def __init__(self, points: Points) -> None:
        self._points = points
        rows, width = len(points.groups), points.vectors(slice(0, 1)).shape[1]
        lists = max(min(ceil(_LISTS * rows**0.5), rows // _ROWS_TO_A_LIST), 1)
        recipe = f"PCA{min(_COMPONENTS, width)},IVF{lists},SQfp16"
        self._file = faiss.index_factory(width, recipe, faiss.METRIC_L2)
        placing = np.linspace(0, rows - 1, min(rows, lists * _PLACING_ROWS)).astype(int)
        with one_thread():
            self._file.train(points.vectors(placing))
            for block in batches(np.arange(rows), _BLOCK):
                self._file.add(points.vectors(block))

    def nearest(self, rows: Points, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(inner products, places) of the k nearest points to each row, [rows, min(k, points)], the nearest first, ties
        by place; where fewer were found, the rest have -inf and any place.

        Equal for any number of threads.
        """
        lists, known = faiss.extract_index_ivf(self._file), len(self._points.groups)
        # So many lists that the rows in them are several times what is asked for (assumed).
        lists.nprobe = min(lists.nlist, ceil(max(_LEAST_SHARE, _ROWS_TO_A_CANDIDATE * k / known) * lists.nlist))
        with one_thread():
            found = self._file.search(rows.vectors(), min(k + max(k // 2, 4), known))[1]
            exponents = np.where(found < 0, -np.inf, self._products(rows, np.maximum(found, 0)))
        return best_first(exponents, found, min(k, known))

    def _products(self, rows: Points, places: np.ndarray) -> np.ndarray:
        """Inner products of each row with the points at its `places` [rows, n], float32 [rows, n]."""
        known = self._points
        sides = zip((rows.queries, rows.targets), (known.queries, known.targets), known.weights, strict=True)
        parts = [
            weight * _some_products(asking.of(), table.vectors, table.places[places]) for asking, table, weight in sides
        ]
        return parts[0] + parts[1]


def _some_products(rows: np.ndarray, base: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of each of `rows` [n, d] with the vectors of `base` at its `places` [n, m], float32 [n, m]; without a copy of
    those vectors, which would take most of the time."""
    assert base.flags.c_contiguous and base.dtype == np.float32
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    places = np.ascontiguousarray(places, dtype=np.int64)
    found = np.empty(places.shape, dtype=np.float32)
    pointers = [faiss.swig_ptr(array) for array in (found, rows, base, places)]
    faiss.fvec_inner_products_by_idx(*pointers, rows.shape[1], *places.shape)
    return found
