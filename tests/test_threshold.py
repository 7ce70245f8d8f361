"""The threshold: the grid, the best F1 on it, ties, fixed and off."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from analyticup.config import ThresholdSettings
from analyticup.threshold import choose_threshold, threshold_grid

LABELS = np.array([1, 1, 0, 1, 0, 0])
SCORES = np.array([0.9, 0.8, 0.7, 0.4, 0.3, 0.1])


@pytest.mark.parametrize(
    ("low", "high", "step", "grid"),
    [
        (0.1, 0.3, 0.1, [0.1, 0.2, 0.3]),
        (0.05, 0.3, 0.1, [0.05, 0.15, 0.25]),
        (0.2, 0.2, 0.01, [0.2]),
        (0.0, 1.0, 0.5, [0.0, 0.5, 1.0]),
        (0.1, 0.3, 1.0, [0.1]),
    ],
)
def test_the_grid_holds_both_ends_where_the_step_reaches_them(low, high, step, grid):
    assert threshold_grid(ThresholdSettings(low=low, high=high, step=step)).tolist() == grid


def test_the_default_grid_has_clean_numbers():
    grid = threshold_grid(ThresholdSettings())
    assert grid.tolist() == [round(0.05 + 0.01 * i, 2) for i in range(91)]


def test_the_sweep_finds_the_best_f1_and_reports_each_threshold():
    chosen = choose_threshold(LABELS, SCORES, ThresholdSettings(low=0.1, high=0.9, step=0.1))
    grid = [round(0.1 * i, 6) for i in range(1, 10)]
    expected = [f1_score(LABELS, np.greater_equal(SCORES, threshold)) for threshold in grid]
    np.testing.assert_allclose([entry["f1"] for entry in chosen["sweep"]], expected)
    assert chosen["mode"] == "sweep" and max(expected) == pytest.approx(6 / 7)
    assert chosen["value"] == 0.4


def test_a_score_equal_to_the_threshold_is_positive():
    chosen = choose_threshold(np.array([1, 0]), np.array([0.6, 0.4]), ThresholdSettings(low=0.4, high=0.6, step=0.2))
    assert [entry["f1"] for entry in chosen["sweep"]] == [pytest.approx(2 / 3), 1.0]


def test_among_equals_the_threshold_nearest_to_one_half_wins():
    separated = np.array([0.1, 0.9, 0.95]), np.array([0, 1, 1])
    assert choose_threshold(separated[1], separated[0], ThresholdSettings())["value"] == 0.5
    low = np.array([0.1, 0.3, 0.95]), np.array([0, 1, 1])
    assert choose_threshold(low[1], low[0], ThresholdSettings())["value"] == 0.3
    high = np.array([0.7, 0.9, 0.95]), np.array([0, 1, 1])
    assert choose_threshold(high[1], high[0], ThresholdSettings())["value"] == 0.71


def test_fixed_takes_the_papers_value_whatever_the_scores_and_still_shows_the_sweep():
    chosen = choose_threshold(LABELS, SCORES, ThresholdSettings(mode="fixed", value=0.2))
    assert (chosen["value"], chosen["mode"], len(chosen["sweep"])) == (0.2, "fixed", 91)


def test_off_means_one_half_even_where_a_value_is_given():
    chosen = choose_threshold(LABELS, SCORES, ThresholdSettings(enabled=False, mode="fixed", value=0.2))
    assert (chosen["value"], chosen["mode"]) == (0.5, "off")


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_still_gives_a_threshold(label):
    chosen = choose_threshold(np.full(6, label), SCORES, ThresholdSettings())
    assert chosen["value"] == (0.5 if label == 0 else 0.1)


def test_the_order_of_the_rows_changes_nothing():
    order = np.random.default_rng(0).permutation(len(LABELS))
    assert choose_threshold(LABELS[order], SCORES[order], ThresholdSettings()) == choose_threshold(
        LABELS, SCORES, ThresholdSettings()
    )
