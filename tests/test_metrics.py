"""Figures are checked against hand counts, the vectorised ones against slow and plain forms of themselves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analyticup.metrics import binary_metrics, f1_at_thresholds
from analyticup.submission.score import per_language

pytestmark = pytest.mark.arithmetic


def sample(rows: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.7).astype(int)
    return labels, np.round(0.3 * labels + 0.7 * rng.random(rows), 2)


def test_hand_counted_figures() -> None:
    # 3 hits, 1 miss, 2 false alarms, 1 right refusal
    found = binary_metrics([1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0], [0.9, 0.8, 0.7, 0.2, 0.6, 0.5, 0.1])
    assert found.pop("f1_se") > 0
    assert found == {
        "rows": 7,
        "positives": 4,
        "f1": pytest.approx(6 / 9),
        "precision": pytest.approx(3 / 5),
        "recall": pytest.approx(3 / 4),
        "floor_f1": pytest.approx(8 / 11),
        "auc": pytest.approx(10 / 12),  # of 12 pairs, (0.2, 0.6) and (0.2, 0.5) are in the wrong order
        "ap": pytest.approx((1 + 1 + 1 + 4 / 6) / 4),
    }


def test_floor_is_the_f1_of_predicting_one_everywhere() -> None:
    labels, scores = sample(500)
    assert binary_metrics(labels, np.ones(500, int))["f1"] == pytest.approx(
        binary_metrics(labels, scores > 0.5)["floor_f1"]
    )


@pytest.mark.parametrize(("label", "f1"), [(0, 0.0), (1, 1.0)])
def test_one_class_has_no_ranking_figures(label: int, f1: float) -> None:
    found = binary_metrics([label] * 3, [label] * 3, [0.1, 0.2, 0.3])
    assert (found["auc"], found["ap"], found["f1"], found["f1_se"]) == (None, None, f1, 0.0)
    assert found["floor_f1"] == f1


def test_without_scores_there_are_no_ranking_figures() -> None:
    found = binary_metrics([0, 1], [0, 1])
    assert (found["auc"], found["ap"]) == (None, None)


def test_standard_error_agrees_with_resampling_rows_and_is_repeatable() -> None:
    labels, scores = sample(400)
    guesses = (scores >= 0.5).astype(int)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(500):
        rows = rng.integers(0, 400, 400)
        drawn.append(binary_metrics(labels[rows], guesses[rows])["f1"])
    error = binary_metrics(labels, guesses)["f1_se"]
    assert error == pytest.approx(np.std(drawn), rel=0.15)
    assert error == binary_metrics(labels, guesses)["f1_se"]
    assert error != binary_metrics(labels, guesses, seed=1)["f1_se"]


def test_figures_do_not_depend_on_the_container() -> None:
    labels, scores = sample(50)
    guesses = scores >= 0.5
    plain = binary_metrics(labels.tolist(), guesses.astype(int).tolist(), scores.tolist())
    assert binary_metrics(pd.Series(labels, dtype="Int8"), pd.Series(guesses), pd.Series(scores)) == plain


@pytest.mark.parametrize(
    ("labels", "predictions", "scores"),
    [
        ([], [], None),
        ([0, 1], [1], None),
        ([0, 2], [1, 1], None),
        ([0, 1], [0.5, 1], None),
        ([0, float("nan")], [0, 1], None),
        (pd.Series([0, None], dtype="Int8"), [0, 1], None),
        ([0, 1], [0, 1], [0.5]),
        ([0, 1], [0, 1], [0.5, float("nan")]),
        ([0, 1], [0, 1], [0.5, float("inf")]),
    ],
)
def test_values_that_cannot_be_scored_raise(labels: list, predictions: list, scores: list | None) -> None:
    with pytest.raises(ValueError):
        binary_metrics(labels, predictions, scores)


def test_languages_come_in_competition_order_with_their_own_rows() -> None:
    labels, scores = sample(60)
    codes = ["sv", "id", "vn", "ar", "da", "ja"] * 10
    guesses = (scores >= 0.5).astype(int)
    found = per_language(labels, guesses, codes, scores)
    assert [row["language"] for row in found] == ["ja", "ar", "vn", "id", "da", "sv"]
    assert found[0] == {"language": "ja", **binary_metrics(labels[5::6], guesses[5::6], scores[5::6])}
    assert per_language(labels, guesses, codes)[0]["auc"] is None
    with pytest.raises(ValueError):
        per_language(labels, guesses, codes[1:])


def test_thresholds_agree_with_one_at_a_time() -> None:
    labels, scores = sample(300)
    grid = [-1.0, 0.0, 0.3, 0.5, 0.55, float(scores.max()), 2.0]
    slow = [binary_metrics(labels, scores >= threshold)["f1"] for threshold in grid]
    found = f1_at_thresholds(labels, scores, grid)
    assert found == pytest.approx(slow)
    assert found.shape == (7,)
    assert found[-1] == 0.0


def test_threshold_itself_counts_as_positive() -> None:
    assert f1_at_thresholds([1, 0], [0.4, 0.1], [0.4]).tolist() == [1.0]
    assert f1_at_thresholds([0, 0], [0.4, 0.1], [0.0, 0.3]).tolist() == [0.0, 0.0]


def test_thresholds_refuse_missing_scores() -> None:
    with pytest.raises(ValueError):
        f1_at_thresholds([1, 0], [0.4, float("nan")], [0.4])
