"""Resampled figures equal scikit-learn's, and are drawn by whole queries."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from analyticup import metrics
from analyticup.metrics import interval, query_weights, weighted_figures

pytestmark = pytest.mark.arithmetic


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    scores = np.round(random.random(60), 1)  # many ties
    labels = (random.random(60) < 0.4 + 0.4 * scores).astype(int)
    queries = [f"query {i // 3}" for i in range(60)]
    return labels, scores, (scores >= 0.5).astype(int), queries


def drawn(queries, seed):
    return np.concatenate(list(query_weights(queries, seed)))


def test_every_resample_equals_scikit_learn_with_sample_weight(rows):
    labels, scores, predictions, queries = rows
    weights = drawn(queries, seed=3)
    found = weighted_figures(labels, scores, predictions, query_weights(queries, seed=3))
    for i in (0, 7, 999):
        given = {"sample_weight": weights[i].astype(float)}
        assert found["f1"][i] == pytest.approx(f1_score(labels, predictions, **given))
        assert found["auc"][i] == pytest.approx(roc_auc_score(labels, scores, **given))
        assert found["ap"][i] == pytest.approx(average_precision_score(labels, scores, **given))


def test_rows_of_a_query_are_drawn_together_and_as_many_queries_as_there_are(rows):
    weights = drawn(rows[3], seed=3)
    assert (weights.reshape(-1, 20, 3) == weights.reshape(-1, 20, 3)[:, :, :1]).all()
    assert (weights.sum(axis=1) == 60).all() and weights.std() > 0


def test_two_models_over_the_same_queries_get_the_same_draws(rows):
    order = np.random.default_rng(1).permutation(60)
    shuffled = drawn([rows[3][i] for i in order], seed=3)
    assert (shuffled == drawn(rows[3], seed=3)[:, order]).all()
    assert (shuffled != drawn([rows[3][i] for i in order], seed=4)).any()


def test_many_rows_are_drawn_in_parts_that_hold_a_bounded_number_and_give_the_same(rows, monkeypatch):
    whole = drawn(rows[3], seed=3)
    monkeypatch.setattr(metrics, "_ROWS_AT_ONCE", 7 * 60)
    parts = list(query_weights(rows[3], seed=3))
    assert {len(part) for part in parts} == {7, 6} and (np.concatenate(parts) == whole).all()


@pytest.mark.parametrize(("many", "resamples"), [(20, 1000), (10, 500), (1, 200)])
def test_of_many_queries_fewer_resamples_are_drawn(rows, many, resamples, monkeypatch):
    monkeypatch.setattr(metrics, "_RESAMPLED_QUERIES", many)
    assert len(drawn(rows[3], seed=3)) == resamples


def test_a_missing_class_is_no_number_and_is_left_out_of_the_interval():
    labels, scores = np.array([1, 0]), np.array([0.9, 0.1])
    found = weighted_figures(labels, scores, labels, [np.array([[2, 0], [1, 1]])])
    assert np.isnan(found["auc"][0]) and found["auc"][1] == 1
    assert interval(found["auc"]) == (1, 1)
