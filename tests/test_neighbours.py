"""Nearest neighbours: exactly as by plain NumPy, or by a graph or an inverted file most of them, for any number of
threads."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from closeness import assert_same_sums

from analyticup.augmentation.neighbours import Neighbours, nearest
from analyticup.augmentation.translators.mined import ratio_margin
from analyticup.errors import UserError

pytestmark = pytest.mark.arithmetic


def _by_numpy(base, queries, k):
    similarity = (queries.astype(np.float64) @ base.astype(np.float64).T).astype(np.float32)
    order = np.lexsort((np.broadcast_to(np.arange(len(base)), similarity.shape), -similarity), axis=1)[:, :k]
    return np.take_along_axis(similarity, order, axis=1), order


def test_nearest_equals_plain_numpy():
    random = np.random.default_rng(3)
    base, queries = (random.normal(size=(size, 24)).astype(np.float32) for size in (700, 600))
    similarity, index = nearest(base, queries, 10)
    expected_similarity, expected_index = _by_numpy(base, queries, 10)
    np.testing.assert_array_equal(index, expected_index)
    assert_same_sums(similarity, expected_similarity)
    assert similarity.dtype == np.float32 and index.dtype == np.int64


def test_ties_go_to_the_lower_index_even_past_the_edge_of_k():
    random = np.random.default_rng(4)
    # Multiples of 1/8 are exact, so that equal vectors are equal similarities; 300 rows hold 16 vectors only.
    distinct = random.integers(-8, 9, size=(16, 6)) / 8
    base = distinct[random.integers(0, 16, size=300)].astype(np.float32)
    queries = distinct.astype(np.float32)
    for k in (1, 3, 40):
        similarity, index = nearest(base, queries, k)
        expected_similarity, expected_index = _by_numpy(base, queries, k)
        np.testing.assert_array_equal(index, expected_index)
        np.testing.assert_array_equal(similarity, expected_similarity)


def test_k_is_clipped_to_the_base_and_must_be_positive():
    base = np.eye(3, dtype=np.float32)
    similarity, index = nearest(base, base[:2], 30)
    assert similarity.shape == index.shape == (2, 3)
    assert nearest(base[:0], base, 5)[0].shape == (3, 0)
    assert nearest(base, base[:0], 2)[1].shape == (0, 2)
    with pytest.raises(UserError, match="k is 0"):
        nearest(base, base, 0)


@pytest.fixture(scope="module")
def clustered():
    """Unit vectors around 60 centres: 1,500 to look among, 400 to look for."""
    random = np.random.default_rng(5)
    centres = random.normal(size=(60, 32))
    vectors = centres[random.integers(0, 60, size=1900)] + 0.5 * random.normal(size=(1900, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return vectors[:1500], vectors[1500:]


def test_few_pairs_are_compared_exactly(clustered):
    base, queries = clustered
    made = Neighbours(base)
    for ours, exact in zip(made.of(queries, 4), nearest(base, queries, 4), strict=True):
        np.testing.assert_array_equal(ours, exact)
    assert "_graph" not in vars(made)


def test_the_graph_finds_nearly_all_with_the_cosines_of_the_exact_search(clustered):
    base, queries = clustered
    made = Neighbours(base, exact_pairs=0)
    (similarity, index), (exact, expected) = made.of(queries, 4), nearest(base, queries, 4)
    same = index == expected
    assert "_graph" in vars(made) and same.mean() > 0.98
    np.testing.assert_array_equal(similarity[same], exact[same])
    assert (similarity <= exact).all() and (np.diff(similarity) <= 0).all()
    assert made.of(queries, 5000)[1].shape == (400, 1500)


def test_what_is_found_is_the_same_for_any_number_of_threads(clustered):
    base, queries = clustered
    before, found = faiss.omp_get_max_threads(), []
    for threads in (1, 4):
        faiss.omp_set_num_threads(threads)
        found.append(Neighbours(base, exact_pairs=0).of(queries, 4))
        assert faiss.omp_get_max_threads() == threads
    faiss.omp_set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert one.tobytes() == other.tobytes()


def test_rows_that_the_graph_does_not_reach_are_looked_for_exactly(clustered, monkeypatch):
    base, queries = clustered
    made = Neighbours(base, exact_pairs=0)
    search = made._graph.search

    def loses(rows, k):
        similarity, index = search(rows, k)
        index[:, -1] = -1
        return similarity, index

    monkeypatch.setattr(made._graph, "search", loses)
    for ours, exact in zip(made.of(queries, 4), nearest(base, queries, 4), strict=True):
        np.testing.assert_array_equal(ours, exact)


def test_margins_by_the_graph_give_the_pairs_of_exact_margins(clustered):
    left, right = clustered
    pairs = [ratio_margin(Neighbours(left, limit), Neighbours(right, limit), 4) for limit in (10**9, 0)]
    exact, ours = ({(place, one[0]) for place, one in enumerate(found) if one[3]} for found in pairs)
    assert len(exact & ours) > 0.97 * max(len(exact), len(ours))
