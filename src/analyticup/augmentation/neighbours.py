"""Nearest neighbours of vectors by faiss: exact, or at large sizes by a graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import faiss
import numpy as np

from analyticup.engine.cache import batches
from analyticup.errors import UserError

# Up to so many pairs of a base row and a query the search is exact: some 10 s of one core with 384 dimensions. Building
# a graph of 100,000 rows takes twice that.
EXACT_PAIRS = 1_000_000_000
# The graph's links per row, and how many candidates are kept while it is built and searched (assumed). What they find
# is measured in experiments/bench/README.md.
LINKS, BUILD_WIDTH, SEARCH_WIDTH = 32, 80, 64
# Queries that are compared at once. Faiss takes eight times as long for each of them in blocks of 256.
_BLOCK = 1024
# Candidates that are there at once: 600 MB for their places, similarities and order.
_FOUND_VALUES = 30_000_000
# Values of candidates' vectors that are there at once: 64 MB in double precision.
_SETTLED_VALUES = 8_000_000


class Neighbours:
    """Rows [m, d] to look for neighbours among, of like length. A graph of them is built once, where a search needs
    it."""

    def __init__(self, base: np.ndarray, exact_pairs: int = EXACT_PAIRS) -> None:
        self.base = np.ascontiguousarray(base, dtype=np.float32)
        self._exact_pairs = exact_pairs

    def of(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`nearest`, with the same inner products; but above `exact_pairs` pairs a neighbour may be missed for the next
        one.

        Equal for any number of threads.
        """
        if len(self.base) * len(queries) <= self._exact_pairs:
            return nearest(self.base, queries, k)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        k = min(k, len(self.base))
        similarity = np.zeros((len(queries), k), dtype=np.float32)
        index = np.zeros((len(queries), k), dtype=np.int64)
        for rows in batches(np.arange(len(queries)), _BLOCK):
            found = self._candidates(queries[rows], k)
            # A part of the graph that no link leads to gives -1.
            lost = (found < 0).any(axis=1)
            similarity[rows], index[rows] = _settled(self.base, queries[rows], np.maximum(found, 0), k)
            if lost.any():
                similarity[rows[lost]], index[rows[lost]] = nearest(self.base, queries[rows[lost]], k)
        return similarity, index

    def _candidates(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Places of k base rows and a few more that are near each of `queries` [n, d]; -1 where none was found."""
        # Twice as many candidates as are asked for (assumed).
        self._graph.hnsw.efSearch = max(SEARCH_WIDTH, 2 * k)
        return self._graph.search(queries, min(k + 4, len(self.base)))[1]

    @cached_property
    def _graph(self) -> faiss.IndexHNSWFlat:
        """A hierarchical navigable small world graph (Malkov & Yashunin 2020)."""
        graph = faiss.IndexHNSWFlat(self.base.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = BUILD_WIDTH
        # Several threads would link the rows in no fixed order.
        with one_thread():
            graph.add(self.base)
        return graph


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, faiss computes with one thread, so that nothing depends on their number."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _settled(base: np.ndarray, queries: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of the base rows `found` [n, more than k] for each query, scored in double precision: (similarity,
    index), ties by index."""
    exact = np.zeros(found.shape, dtype=np.float32)
    for rows in batches(np.arange(len(found)), max(_SETTLED_VALUES // (found.shape[1] * base.shape[1]), 1)):
        exact[rows] = np.einsum("nd,nkd->nk", queries[rows].astype(np.float64), base[found[rows]].astype(np.float64))
    return best_first(exact, found, k)


def best_first(similarity: np.ndarray, index: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k of each row, [n, k or more] both, with the highest similarity, ties by index."""
    order = np.lexsort((index, -similarity), axis=1)[:, :k]
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(index, order, axis=1)


def nearest(base: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of `base` [m, d] for each row of `queries` [n, d], by inner product.

    Returns (similarity [n, min(k, m)] float32, index [n, min(k, m)] int64), similarity descending, ties by
    index. Raises UserError where k < 1.
    """
    if k < 1:
        raise UserError(f"k is {k}; at least 1 neighbour must be asked for")
    base = np.ascontiguousarray(base, dtype=np.float32)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    k = min(k, len(base))
    similarity = np.zeros((len(queries), k), dtype=np.float32)
    index = np.zeros((len(queries), k), dtype=np.int64)
    if k == 0 or len(queries) == 0:
        return similarity, index
    faiss_index = faiss.IndexFlatIP(base.shape[1])
    faiss_index.add(base)
    # faiss breaks ties in no fixed order, and its last bits depend on the block a row falls into: so more
    # than k are asked for, scored again in double precision and sorted; where a tie may reach past the edge,
    # ask for more.
    open_rows, asked = np.arange(len(queries)), min(k + 8, len(base))
    while len(open_rows):
        unsettled = []
        for rows in batches(open_rows, max(min(_BLOCK, _FOUND_VALUES // asked), 1)):
            rough, found = faiss_index.search(queries[rows], asked)
            similarity[rows], index[rows] = _settled(base, queries[rows], found, k)
            margin = 1e-5 * np.maximum(1.0, np.abs(similarity[rows][:, -1]))
            unsettled.append(rows[rough[:, -1] >= similarity[rows][:, -1] - margin])
        open_rows = np.concatenate(unsettled) if asked < len(base) else open_rows[:0]
        asked = min(asked * 4, len(base))
    return similarity, index
