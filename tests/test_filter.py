"""The filter: which rows are suspects, by which rule, and what becomes of them."""

from __future__ import annotations

import numpy as np
import pytest

from analyticup.corpus.rows import COLUMNS, make_rows
from analyticup.filtering.rules import RULES, apply_remedy, find_suspects, label_credibility
from analyticup.settings.schema import FilterSettings, leaves

pytestmark = pytest.mark.arithmetic

DISAGREEMENT, AMBIGUITY, CONFIDENT = "disagreement", "ambiguity", "confident-learning"


def settings(*rules, **changes):
    return FilterSettings(**{"rules": list(rules), "max_share": 1.0, **changes})


def table(labels):
    n = len(labels)
    columns = {name: [f"{name}{i}" for i in range(n)] for name in COLUMNS}
    return make_rows({**columns, "label": labels, "row_id": [f"train-{i}" for i in range(n)]})


def test_the_settings_offer_exactly_the_rules_that_there_are():
    assert leaves()["filter.rules"].choices == tuple(RULES)


def test_credibility_is_the_probability_of_the_label_a_row_has():
    np.testing.assert_allclose(label_credibility(np.array([1, 0, 1]), np.array([0.9, 0.9, 0.2])), [0.9, 0.1, 0.2])


def test_disagreement_looks_at_the_label_and_its_cut_is_open():
    labels = np.array([1, 1, 1, 0, 0, 0])
    scores = np.array([0.25, 0.24, 0.9, 0.75, 0.76, 0.1])
    found = find_suspects(labels, scores, settings(DISAGREEMENT, disagreement_below=0.25))
    assert found == [[], [DISAGREEMENT], [], [], [DISAGREEMENT], []]


def test_ambiguity_is_a_band_around_one_half_whatever_the_label():
    labels = np.array([1, 0, 1, 0, 1])
    scores = np.array([0.5, 0.5, 0.56, 0.44, 0.625])
    found = find_suspects(labels, scores, settings(AMBIGUITY, ambiguity_band=0.125))
    assert found == [[AMBIGUITY]] * 4 + [[]]


def flipped(rows=400, wrong=20):
    """Well separated scores with the first rows' labels turned; returns (labels, scores)."""
    random = np.random.default_rng(0)
    truth = np.arange(rows) % 2
    scores = np.clip(np.where(truth == 1, 0.9, 0.1) + random.normal(0, 0.03, rows), 0.01, 0.99)
    labels = truth.copy()
    labels[:wrong] = 1 - labels[:wrong]
    return labels, scores


def test_confident_learning_finds_turned_labels():
    labels, scores = flipped()
    found = find_suspects(labels, scores, settings(CONFIDENT))
    assert [bool(rules) for rules in found] == [True] * 20 + [False] * 380
    assert found[0] == [CONFIDENT]


@pytest.mark.parametrize("label", [0, 1])
def test_confident_learning_needs_both_labels_and_finds_nothing_otherwise(label):
    found = find_suspects(np.full(6, label), np.linspace(0.05, 0.95, 6), settings(CONFIDENT))
    assert found == [[]] * 6


def test_a_row_names_all_the_rules_it_breaks_in_the_order_of_the_settings():
    labels, scores = np.array([1, 1]), np.array([0.46, 0.9])
    for rules in ((DISAGREEMENT, AMBIGUITY), (AMBIGUITY, DISAGREEMENT)):
        assert find_suspects(labels, scores, settings(*rules, disagreement_below=0.47)) == [list(rules), []]


def test_no_rules_and_no_rows_give_no_suspects():
    assert find_suspects(np.array([1, 0]), np.array([0.0, 1.0]), settings()) == [[], []]
    assert find_suspects(np.zeros(0, dtype=int), np.zeros(0), settings(DISAGREEMENT, AMBIGUITY, CONFIDENT)) == []


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.29, 29), (0.295, 29), (1.0, 50)])
def test_the_cap_keeps_the_least_credible(share, count):
    labels = np.ones(100, dtype=int)
    scores = np.random.default_rng(0).permutation(np.linspace(0.0, 0.99, 100))
    found = find_suspects(labels, scores, settings(DISAGREEMENT, disagreement_below=0.5, max_share=share))
    suspects = [score for score, rules in zip(scores, found, strict=True) if rules]
    assert sorted(suspects) == sorted(scores)[:count]


def test_rows_beyond_the_cap_break_no_rule_at_all():
    found = find_suspects(
        np.array([1, 1, 1, 1]),
        np.array([0.46, 0.1, 0.9, 0.9]),
        settings(DISAGREEMENT, AMBIGUITY, disagreement_below=0.5, max_share=0.25),
    )
    assert found == [[], [DISAGREEMENT], [], []]


LABELS, SCORES = [1, 0, 1, 0], np.array([0.1, 0.95, 0.55, 0.2])
REASONS = [[DISAGREEMENT], [DISAGREEMENT, CONFIDENT], [AMBIGUITY], []]


def test_drop_removes_the_suspects_and_lists_them():
    kept, suspects = apply_remedy(table(LABELS), SCORES, REASONS, "drop")
    assert kept["row_id"].tolist() == ["train-3"] and kept.index.tolist() == [0]
    assert tuple(kept.columns) == COLUMNS
    assert suspects.columns.tolist() == [*COLUMNS, "score", "reasons", "action"]
    assert suspects["row_id"].tolist() == ["train-0", "train-1", "train-2"]
    assert suspects["reasons"].tolist() == [DISAGREEMENT, f"{DISAGREEMENT}; {CONFIDENT}", AMBIGUITY]
    assert suspects["action"].tolist() == ["dropped"] * 3
    np.testing.assert_allclose(suspects["score"], SCORES[:3])
    assert suspects["label"].tolist() == [1, 0, 1]


def test_relabel_turns_only_labels_that_are_the_less_likely_ones():
    rows = table(LABELS)
    kept, suspects = apply_remedy(rows, SCORES, REASONS, "relabel")
    assert kept["label"].tolist() == [0, 1, 1, 0]
    assert suspects["action"].tolist() == ["relabelled", "relabelled", "kept"]
    # The suspects show the label that was doubted, and the given table is not changed.
    assert suspects["label"].tolist() == rows["label"].tolist()[:3] == LABELS[:3]
    assert kept["label"].dtype == rows["label"].dtype


def test_review_changes_nothing_but_lists_the_suspects():
    kept, suspects = apply_remedy(table(LABELS), SCORES, REASONS, "review")
    assert kept.equals(table(LABELS))
    assert suspects["action"].tolist() == ["kept"] * 3


def test_a_table_with_another_index_is_handled_by_place():
    rows = table(LABELS).set_index(np.array([7, 3, 9, 1]))
    for remedy, left in (("drop", ["train-3"]), ("relabel", ["train-0", "train-1", "train-2", "train-3"])):
        kept, suspects = apply_remedy(rows, SCORES, REASONS, remedy)
        assert kept["row_id"].tolist() == left
        assert suspects["row_id"].tolist() == ["train-0", "train-1", "train-2"]


@pytest.mark.parametrize("remedy", ["drop", "relabel", "review"])
def test_no_suspects_leave_the_rows_as_they_are(remedy):
    kept, suspects = apply_remedy(table(LABELS), SCORES, [[]] * 4, remedy)
    assert kept.equals(table(LABELS)) and len(suspects) == 0
