"""The threshold: the grid, the best F1 on it, ties, fixed and off; by language; and how optimistic its F1 is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from analyticup.ensembling.threshold import (
    Choice,
    Decision,
    choose,
    choose_by_language,
    choose_threshold,
    measure_optimism,
    shrink,
    threshold_grid,
)
from analyticup.errors import UserError
from analyticup.report.figures import Report
from analyticup.report.tables import render
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import ThresholdSettings

pytestmark = pytest.mark.arithmetic

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
    np.testing.assert_allclose([entry["f1"] for entry in chosen.sweep], expected)
    assert chosen.mode == "sweep" and max(expected) == pytest.approx(6 / 7)
    assert chosen.value == 0.4


def test_a_score_equal_to_the_threshold_is_positive():
    chosen = choose_threshold(np.array([1, 0]), np.array([0.6, 0.4]), ThresholdSettings(low=0.4, high=0.6, step=0.2))
    assert [entry["f1"] for entry in chosen.sweep] == [pytest.approx(2 / 3), 1.0]


def test_among_equals_the_threshold_nearest_to_one_half_wins():
    separated = np.array([0.1, 0.9, 0.95]), np.array([0, 1, 1])
    assert choose_threshold(separated[1], separated[0], ThresholdSettings()).value == 0.5
    low = np.array([0.1, 0.3, 0.95]), np.array([0, 1, 1])
    assert choose_threshold(low[1], low[0], ThresholdSettings()).value == 0.3
    high = np.array([0.7, 0.9, 0.95]), np.array([0, 1, 1])
    assert choose_threshold(high[1], high[0], ThresholdSettings()).value == 0.71


def test_fixed_takes_the_papers_value_whatever_the_scores_and_still_shows_the_sweep():
    chosen = choose_threshold(LABELS, SCORES, ThresholdSettings(mode="fixed", value=0.2))
    assert (chosen.value, chosen.mode, len(chosen.sweep)) == (0.2, "fixed", 91)


def test_off_means_one_half_even_where_a_value_is_given():
    chosen = choose_threshold(LABELS, SCORES, ThresholdSettings(enabled=False, mode="fixed", value=0.2))
    assert (chosen.value, chosen.mode) == (0.5, "off")


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_still_gives_a_threshold(label):
    chosen = choose_threshold(np.full(6, label), SCORES, ThresholdSettings())
    assert chosen.value == (0.5 if label == 0 else 0.1)


def test_the_order_of_the_rows_changes_nothing():
    order = np.random.default_rng(0).permutation(len(LABELS))
    assert choose_threshold(LABELS[order], SCORES[order], ThresholdSettings()) == choose_threshold(
        LABELS, SCORES, ThresholdSettings()
    )


BY_LANGUAGE = ThresholdSettings(per_language=True, shrinkage_rows=40)


def world(seed: int, rows: int = 240):
    """Labels, scores, folds and languages; scores of language `ja` are shifted up, as if it had another best cut."""
    random = np.random.default_rng(seed)
    labels, languages = random.integers(0, 2, rows), random.choice(["en", "fr", "ja"], rows, p=[0.6, 0.3, 0.1])
    margins = random.normal(2 * labels - 1 + 2 * (languages == "ja"), 1.5)
    return labels, 1 / (1 + np.exp(-margins)), random.integers(0, 3, rows), languages


def test_shrinking_is_a_mean_of_logits_weighted_by_rows():
    logits = np.log([0.8 / 0.2, 0.3 / 0.7])
    mean = (100 * logits[0] + 300 * logits[1]) / 400
    assert shrink(0.8, 0.3, 100, 300) == pytest.approx(1 / (1 + np.exp(-mean)), abs=1e-6)
    assert shrink(0.8, 0.3, 100, 0) == 0.8
    assert shrink(0.8, 0.3, 1, 10**9) == 0.3


@pytest.mark.parametrize(("best", "task"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0), (0.0, 0.4), (0.05, 0.95)])
def test_a_shrunk_threshold_lies_between_the_two_and_moves_to_the_task_with_fewer_rows(best, task):
    values = [shrink(best, task, rows, 500) for rows in (10**9, 5000, 500, 50, 5)]
    assert np.isfinite(values).all() and min(best, task) <= min(values) and max(values) <= max(best, task)
    assert values == sorted(values, reverse=best > task)
    assert shrink(best, task, 7, 0) == best


def test_a_language_gets_its_own_best_shrunk_to_the_tasks():
    labels, scores, _, languages = world(0)
    chosen = choose(labels, scores, languages, BY_LANGUAGE)
    assert list(chosen.by_language) == ["en", "fr", "ja"]
    assert chosen.value == choose_threshold(labels, scores, BY_LANGUAGE).value
    own = languages == "ja"
    entry = chosen.by_language["ja"]
    curve = [f1_score(labels[own], scores[own] >= threshold) for threshold in threshold_grid(BY_LANGUAGE)]
    assert f1_score(labels[own], scores[own] >= entry["best"]) == pytest.approx(max(curve))
    assert entry["rows"] == own.sum() and entry["best"] > chosen.value
    assert entry["value"] == shrink(entry["best"], chosen.value, entry["rows"], 40)


def test_each_row_is_held_against_its_languages_threshold_or_the_tasks():
    own = {language: {"value": value, "best": None, "rows": 1} for language, value in (("en", 0.3), ("ja", 0.7))}
    choice, languages = Choice(value=0.4, by_language=own), np.array(["ja", "de", "en", "en"])
    assert choice.thresholds(languages).tolist() == [0.7, 0.4, 0.3, 0.3]
    assert choice.decide(np.array([0.6, 0.4, 0.3, 0.2]), languages).tolist() == [0, 1, 1, 0]
    assert Choice(value=0.4).thresholds(np.array(["ja", "de"])).tolist() == [0.4, 0.4]


def test_the_folds_of_a_vote_have_been_held_against_the_threshold_and_a_tie_is_a_yes():
    choice = Choice(value=0.9)
    assert choice.decide([0.4, 0.5, 0.95], ["en"] * 3, "vote").tolist() == [0, 1, 1]
    assert choice.decide([0.4, 0.5, 0.95], ["en"] * 3, "rank").tolist() == [0, 0, 1]


def test_a_decision_is_read_back_as_it_was_written_and_its_file_has_a_fixed_form(tmp_path):
    decision = figures_of(BY_LANGUAGE)
    decision.save(tmp_path / "threshold.json")
    assert Decision.load(tmp_path / "threshold.json") == decision
    plain = json.loads((tmp_path / "threshold.json").read_text())
    keys = ("scores", "value", "mode", "sweep", "by_language", "out_of_fold", "out_of_fold_at_half", "optimism")
    assert tuple(plain) == keys and tuple(plain["by_language"]["en"]) == ("value", "best", "rows")


def test_among_a_languages_equals_the_one_nearest_to_the_tasks_threshold_wins():
    labels, scores = np.array([0, 1]), np.array([0.2, 0.8])
    for task, best in ((0.1, 0.21), (0.35, 0.35), (0.9, 0.8)):
        found = choose_by_language(labels, scores, np.array(["en", "en"]), task, BY_LANGUAGE)
        assert found["en"]["best"] == pytest.approx(best)


@pytest.mark.parametrize("label", [0, 1])
def test_a_language_of_one_class_gets_the_tasks_threshold(label):
    labels, scores, _, languages = world(1)
    labels = np.where(languages == "ja", label, labels)
    chosen = choose(labels, scores, languages, BY_LANGUAGE)
    entry = chosen.by_language["ja"]
    assert entry == {"value": chosen.value, "best": None, "rows": (languages == "ja").sum()}
    assert chosen.by_language["en"]["best"] is not None


@pytest.mark.parametrize("seed", range(5))
def test_one_language_alone_has_the_tasks_threshold(seed):
    labels, scores, _, _ = world(seed)
    chosen = choose(labels, scores, np.full(len(labels), "en"), BY_LANGUAGE)
    assert chosen.by_language["en"]["value"] == chosen.by_language["en"]["best"] == chosen.value


def test_no_threshold_by_language_unless_asked_for_and_chosen():
    labels, scores, _, languages = world(0)
    off = ThresholdSettings(per_language=True, enabled=False)
    fixed = ThresholdSettings(per_language=True, mode="fixed", value=0.2)
    for settings in (ThresholdSettings(), off, fixed):
        assert choose(labels, scores, languages, settings).by_language == {}


def by_hand(labels, scores, folds, languages, settings) -> float:
    """F1 of every row decided by the other folds' choice, one row at a time."""
    decided = []
    for row in range(len(labels)):
        other = [i for i in range(len(labels)) if folds[i] != folds[row]]
        task = choose_threshold(labels[other], scores[other], settings).value
        found = choose_by_language(labels[other], scores[other], languages[other], task, settings)
        value = found.get(languages[row], {"value": task})["value"] if settings.per_language else task
        decided.append(scores[row] >= value)
    return f1_score(labels, decided)


@pytest.mark.parametrize("per_language", [False, True])
def test_the_nested_estimate_decides_each_row_by_the_other_folds(per_language):
    rows = world(2, rows=70)
    labels, scores, folds, languages = rows
    # Scores that lie on the grid, and a language that one fold holds alone: no other fold can choose its threshold.
    scores = (np.round((scores - 0.05) / 0.03) * 0.03 + 0.05).round(6)
    languages = np.where((languages == "ja") & (folds != 0), "fr", languages)
    settings = ThresholdSettings(per_language=per_language, shrinkage_rows=5, step=0.03)
    measured = measure_optimism(labels, scores, folds, languages, settings)
    assert list(measured) == (["task", "language"] if per_language else ["task"])
    own = measured["language" if per_language else "task"]
    assert own["nested_f1"] == pytest.approx(by_hand(labels, scores, folds, languages, settings))
    chosen = choose(labels, scores, languages, settings)
    assert own["f1"] == pytest.approx(f1_score(labels, chosen.decide(scores, languages)))
    assert own["optimism"] == pytest.approx(own["f1"] - own["nested_f1"])


def test_choosing_looks_too_good_on_noise_and_the_more_so_by_language():
    """Scores that say nothing: what is gained on the own rows is gained by choosing alone."""
    found = []
    for seed in range(30):
        labels, _, folds, languages = world(seed, rows=90)
        scores = np.random.default_rng(seed + 1000).uniform(size=90)
        free = ThresholdSettings(per_language=True, shrinkage_rows=0)
        measured = measure_optimism(labels, scores, folds, languages, free)
        found.append((measured["task"]["optimism"], measured["language"]["optimism"]))
    task, language = np.mean(found, axis=0)
    assert 0 < task < language


@pytest.mark.parametrize("settings", [ThresholdSettings(mode="fixed", value=0.3), ThresholdSettings(enabled=False)])
def test_what_is_not_chosen_is_not_optimistic(settings):
    measured = measure_optimism(*world(0), settings)["task"]
    assert measured["optimism"] == 0 and measured["f1"] == measured["nested_f1"] > 0


def test_one_fold_alone_gives_no_nested_estimate():
    labels, scores, folds, languages = world(0)
    with pytest.raises(ValueError, match="two folds"):
        measure_optimism(labels, scores, np.zeros_like(folds), languages, ThresholdSettings())


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_rows_changes_no_language_and_no_estimate(seed):
    labels, scores, folds, languages = world(seed)
    scores = scores.round(1)
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels[order], scores[order], folds[order], languages[order]
    assert choose(*shuffled[:2], shuffled[3], BY_LANGUAGE) == choose(labels, scores, languages, BY_LANGUAGE)
    assert measure_optimism(*shuffled, BY_LANGUAGE) == measure_optimism(labels, scores, folds, languages, BY_LANGUAGE)


FIXED = "threshold.mode=fixed"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["threshold.per_language=true", FIXED],
            "argument 'threshold.per_language=true': threshold.per_language = true chooses thresholds on rows, but "
            "threshold.mode = fixed for {task}; use sweep, or leave it false",
        ),
        (
            ["ensemble.method=rank", FIXED],
            "argument 'ensemble.method=rank': ensemble.method = rank makes scores that are not probabilities, but "
            "threshold.mode = fixed for {task} compares them with one; use threshold.mode = sweep, or another method",
        ),
        (
            ["ensemble.method=rank", "threshold.enabled=false"],
            "argument 'ensemble.method=rank': ensemble.method = rank makes scores that are not probabilities, but "
            "threshold.enabled = false for {task} compares them with one; use threshold.mode = sweep, or another "
            "method",
        ),
    ],
)
def test_settings_that_need_a_chosen_threshold_are_refused_without_one(tmp_path, overrides, told):
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    with pytest.raises(UserError) as caught:
        load_settings(empty, overrides)
    assert str(caught.value).split("\n") == [told.format(task="QC"), told.format(task="QI")]
    with pytest.raises(UserError) as caught:
        load_settings(empty, [*overrides, "QI.threshold.mode=sweep", "QI.threshold.enabled=true"])
    assert str(caught.value) == told.format(task="QC")
    load_settings(empty, [*overrides, "QI.threshold.mode=sweep", "QI.threshold.enabled=true", "tasks=QI"])


def test_a_switched_off_threshold_may_still_name_its_languages(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    load_settings(tmp_path / "empty.yaml", ["threshold.per_language=true", FIXED, "threshold.enabled=false"])


def figures_of(settings: ThresholdSettings) -> Decision:
    from analyticup.metrics import binary_metrics

    labels, scores, folds, languages = world(0)
    choice = choose(labels, scores, languages, settings)
    return Decision(
        **vars(choice),
        out_of_fold=binary_metrics(labels, choice.decide(scores, languages), scores),
        out_of_fold_at_half=binary_metrics(labels, scores >= 0.5, scores),
        optimism=measure_optimism(labels, scores, folds, languages, settings),
    )


def report_of(decision: Decision) -> list:
    return render(Report(name="run", out_of_fold={"QC": decision}))


def test_the_report_sets_the_nested_f1_beside_the_chosen_one():
    chosen = figures_of(ThresholdSettings())
    (table,) = report_of(chosen)
    own = chosen.optimism["task"]
    assert f"F1 {own['f1']:.4f} ±" in table.title
    assert f"threshold {own['nested_f1']:.4f}, optimism {own['optimism']:+.4f} (at 0.50" in table.title
    (fixed,) = report_of(figures_of(ThresholdSettings(mode="fixed")))
    assert "optimism" not in fixed.title
    # A report of an earlier version.
    plain = chosen.to_dict()
    del plain["optimism"]
    assert "optimism" not in report_of(Decision.from_dict(plain))[0].title


def test_the_report_lists_the_languages_and_compares_with_one_threshold():
    chosen = figures_of(BY_LANGUAGE)
    table, languages = report_of(chosen)
    task, own = chosen.optimism["task"], chosen.optimism["language"]
    assert f"F1 {own['f1']:.4f} ±" in table.title and f"threshold {own['nested_f1']:.4f}" in table.title
    assert f"for all languages {task['f1']:.4f}, nested {task['nested_f1']:.4f}" in table.title
    assert list(languages.columns[0].cells) == ["en", "fr", "ja"]
    assert list(languages.columns[3].cells) == [f"{entry['value']:.4f}" for entry in chosen.by_language.values()]
