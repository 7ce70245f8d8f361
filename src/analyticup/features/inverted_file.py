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
_ROWS_TO_A_LIST, _PLACING_ROWS = 39, 64
_BLOCK = 16_384


class InvertedFile:
    """An inverted file (Jegou et al. 2011) of the points' principal components finds half as many again as are asked
    for, and the whole vectors say which are near. Building and searching it take a fraction of what a graph takes."""

    def __init__(self, points: Points) -> None:
        self._points = points
        self._whole = tuple(_flat(table.vectors) for table in (points.queries, points.targets))
        rows, width = len(points.groups), sum(index.d for index in self._whole)
        lists = max(min(ceil(_LISTS * rows**0.5), rows // _ROWS_TO_A_LIST), 1)
        recipe = f"PCA{min(_COMPONENTS, width)},IVF{lists},Flat"
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
        parts = zip(
            self._whole, (rows.queries, rows.targets), (self._points.queries, self._points.targets), strict=True
        )
        products = [_some_products(index, asking.of(), known.places[places]) for index, asking, known in parts]
        return products[0] + products[1]


def _flat(vectors: np.ndarray) -> faiss.IndexFlatIP:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    return index


def _some_products(index: faiss.IndexFlatIP, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Without a copy of the vectors at those places, which would take most of the time."""
    rows, places = np.ascontiguousarray(rows, dtype=np.float32), np.ascontiguousarray(places, dtype=np.int64)
    found = np.empty(places.shape, dtype=np.float32)
    pointers = (faiss.swig_ptr(array) for array in (found, places))
    index.compute_distance_subset(len(rows), faiss.swig_ptr(rows), places.shape[1], *pointers)
    return found
