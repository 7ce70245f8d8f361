"""Folds: nothing that a model is scored on, or was derived from it, is among the rows it was trained on."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from analyticup.corpus.rows import COLUMNS, make_rows
from analyticup.corpus.taxonomy import path_levels
from analyticup.corpus.text import normalise, query_key
from analyticup.errors import CheckFailed, UserError
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import Settings
from analyticup.training import folds
from analyticup.training.fold import train_fold
from analyticup.training.folds import assign_folds, check_no_leakage, tied_groups


def table(rows):
    """A rows table from (row_id, language, query, label, source row or None) tuples."""
    group = {}
    columns = {name: [] for name in COLUMNS}
    for row_id, language, query, label, source in rows:
        group[row_id] = group[source] if source else query_key(query)
        origin = "original" if source is None else "translation" if "/t" in row_id else "negative"
        values = (row_id, "QC", language, query, f"shoes,{row_id}", label, origin, source or "", group[row_id])
        for name, value in zip(COLUMNS, values, strict=True):
            columns[name].append(value)
    return make_rows(columns)


def originals(queries=40, rows_per_query=3):
    number = 0
    for query in range(queries):
        language = ("en", "fr", "ja")[query % 3]
        for _ in range(rows_per_query):
            number += 1
            yield (f"train-{number}", language, f"thing {query}", (number * 7) % 3 > 0, None)


def with_derived(rows):
    """Each third original row gets a German translation; each fourth a negative."""
    derived = []
    for place, (row_id, _, query, _, _) in enumerate(rows):
        if place % 3 == 0:
            derived.append((f"{row_id}/t-de", "de", f"Ding {query.split()[1]}", 1, row_id))
        if place % 4 == 0:
            derived.append((f"{row_id}/n1", "en", query, 0, row_id))
    return [*rows, *derived]


def sides(rows, column, n, fold):
    values = rows[column] if column != "query" else rows["query"].map(normalise)
    return [(set(values[fold != i]), set(values[fold == i])) for i in range(n)]


@pytest.mark.parametrize("n", [2, 5])
def test_no_group_and_no_query_is_on_both_sides(n):
    rows = table(with_derived(list(originals())))
    fold = assign_folds(rows, n, seed=1)
    assert sorted(set(fold.tolist())) == list(range(n)) and fold.shape == (len(rows),)
    for column in ("group", "query"):
        for training, scored in sides(rows, column, n, fold):
            assert scored and not training & scored


def test_derived_rows_follow_their_source():
    rows = table(with_derived(list(originals())))
    fold = dict(zip(rows["row_id"], assign_folds(rows, 3, seed=1), strict=True))
    derived = rows[rows["source_id"] != ""]
    assert len(derived) > 50
    assert all(
        fold[row_id] == fold[source] for row_id, source in zip(derived["row_id"], derived["source_id"], strict=True)
    )


def clashing():
    """Every translation equals, but for case and width, an original query of another group."""
    rows = list(originals(30, 2))
    others = [f"THING  {(int(query.split()[1]) + 1) % 30 // 3 * 3}" for _, _, query, _, _ in rows]
    return [*rows, *((f"{row[0]}/t-de", "de", other, 1, row[0]) for row, other in zip(rows, others, strict=True))]


def test_a_translation_that_equals_a_query_of_another_group_ties_the_two():
    rows = table(clashing())
    fold = assign_folds(rows, 3, seed=1)
    for column in ("group", "query"):
        for training, scored in sides(rows, column, 3, fold):
            assert not training & scored


def test_without_that_tie_the_folds_would_leak_and_are_refused(monkeypatch):
    def by_group_alone(rows):
        return np.unique(rows["group"].to_numpy(dtype=str), return_inverse=True)[1]

    monkeypatch.setattr(folds, "tied_groups", by_group_alone)
    with pytest.raises(CheckFailed, match=r"leakage: \d+ queries are both"):
        assign_folds(table(clashing()), 3, seed=1)


def test_ties_reach_over_a_chain():
    rows = table(
        [
            ("train-1", "en", "a", 1, None),
            ("train-2", "en", "b", 1, None),
            ("train-3", "en", "c", 1, None),
            ("train-4", "en", "d", 1, None),
            ("train-1/t-de", "de", "B", 1, "train-1"),
            ("train-2/t-de", "de", "c", 1, "train-2"),
        ]
    )
    tied = tied_groups(rows)
    assert len({tied[i] for i in (0, 1, 2, 4, 5)}) == 1
    assert tied[3] != tied[0]


def test_the_order_of_the_rows_changes_nothing():
    rows = table(with_derived(list(originals())))
    expected = dict(zip(rows["row_id"], assign_folds(rows, 3, seed=4), strict=True))
    for seed in range(3):
        shuffled = rows.sample(frac=1, random_state=seed).reset_index(drop=True)
        found = dict(zip(shuffled["row_id"], assign_folds(shuffled, 3, seed=4), strict=True))
        assert found == expected


def test_the_seed_decides():
    rows = table(originals())
    one, two = assign_folds(rows, 2, seed=1), assign_folds(rows, 2, seed=2)
    np.testing.assert_array_equal(one, assign_folds(rows, 2, seed=1))
    assert not np.array_equal(one, two) and not np.array_equal(one, 1 - two)


def test_languages_and_labels_are_spread_evenly():
    rows = table((f"train-{i}", "en" if i < 90 else "fr", f"thing {i}", i % 3 > 0, None) for i in range(120))
    fold = assign_folds(rows, 3, seed=1)
    strata = rows["language"] + rows["label"].astype(str)
    for stratum in set(strata):
        sizes = np.bincount(fold[strata == stratum], minlength=3)
        assert sizes.max() - sizes.min() <= 1


def test_only_original_rows_count_for_the_spread():
    rows = list(originals(30, 1))
    many = [(f"{rows[0][0]}/n{i}", "en", rows[0][2], 0, rows[0][0]) for i in range(200)]
    plain, heavy = table(rows), table([*rows, *many])
    np.testing.assert_array_equal(assign_folds(plain, 3, 1), assign_folds(heavy, 3, 1)[: len(rows)])


def test_too_few_queries_are_refused_with_what_to_do():
    rows = table(
        [("train-1", "en", "bag", 1, None), ("train-2", "fr", "BAG ", 0, None), ("train-3", "en", "hat", 1, None)]
    )
    with pytest.raises(UserError, match=r"folds\.n = 3: only 2 distinct queries to divide; lower folds\.n"):
        assign_folds(rows, 3, seed=1)


@pytest.mark.parametrize("labels", [(1, 0, 1, 0), (1, 1, 0, 0)])
def test_strata_rarer_than_the_folds_do_not_stop_it(labels):
    texts = [("en", "bag"), ("fr", "hat"), ("de", "mug"), ("it", "cup")]
    rows = table(
        [(f"train-{i}", *text, label, None) for i, (text, label) in enumerate(zip(texts, labels, strict=True))]
    )
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert set(assign_folds(rows, 3, seed=1)) == {0, 1, 2}
    assert shown == []


def test_a_rare_stratum_gives_no_warning():
    rows = table([*originals(), ("train-999", "ko", "only one", 1, None)])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assign_folds(rows, 3, seed=1)
    assert shown == []


@pytest.mark.parametrize(
    ("what", "row"), [("groups", ("train-1/t-de", "de", "Tasche", 1)), ("queries", ("train-2", "en", " Bag", 0))]
)
def test_leakage_is_named(what, row):
    all_rows = table([("train-1", "en", "bag", 1, None), (*row, "train-1" if what == "groups" else None)])
    all_rows.loc[1, "group"] = "bag" if what == "groups" else "something else"
    with pytest.raises(CheckFailed, match=f"leakage: 1 {what} are both .* e.g. 'bag'"):
        check_no_leakage(all_rows.iloc[:1], all_rows.iloc[1:])


def test_separate_rows_pass_the_check():
    rows = table(originals(2, 1))
    check_no_leakage(rows.iloc[:1], rows.iloc[1:])
    check_no_leakage(rows.iloc[:0], rows)


def with_paths(rows):
    """Twenty path prefixes under four top levels; the rows of a query are in several of them."""
    own = rows["row_id"].str.partition("/")[0].str.removeprefix("train-").astype(int) % 20
    paths = [
        f"top {n % 4},middle, of {n % 10},low {n},leaf {row_id}" for n, row_id in zip(own, rows["row_id"], strict=True)
    ]
    return rows.assign(target=paths)


def test_by_path_prefix_no_prefix_is_divided_and_derived_rows_follow_their_source():
    rows = with_paths(table(with_derived(list(originals()))))
    # A negative has another path than its source.
    rows.loc[rows["origin"] == "negative", "target"] = "top 1,elsewhere,low,leaf"
    fold = assign_folds(rows, 4, seed=1, group_by="path_prefix:3")
    own = rows.assign(fold=fold, prefix=[",".join(path_levels(path)[:3]) for path in rows["target"]])
    original = own[own["origin"] == "original"]
    assert original.groupby("prefix")["fold"].nunique().max() == 1 and set(original["fold"]) == {0, 1, 2, 3}
    assert original.groupby("query")["fold"].nunique().max() > 1
    by_id = dict(zip(own["row_id"], own["fold"], strict=True))
    assert all(by_id[name] == by_id[name.partition("/")[0]] for name in by_id)
    with pytest.raises(CheckFailed, match=r"leakage: 20 path prefixes are both"):
        check_no_leakage(original, original, "path_prefix:3")
    with pytest.raises(CheckFailed, match=r"leakage: \d+ source rows are both"):
        check_no_leakage(own[own["origin"] != "original"], original, "path_prefix:3")
    with pytest.raises(UserError, match=r"only 4 distinct path prefixes to divide"):
        assign_folds(rows, 5, seed=1, group_by="path_prefix:1")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["folds.group_by=path_prefix:0"], "must be query, or path_prefix: and a number of levels"),
        (["folds.group_by=path_prefix:3"], "the targets of QI are titles, not category paths; set it for QC"),
        (
            ["QC.folds.group_by=path_prefix:3", "QC.negatives.enabled=true", "negatives.guard_above=0.9"],
            "negatives.guard_above needs folds that divide no query",
        ),
    ],
)
def test_folds_by_path_where_they_make_no_sense_are_refused(tmp_path, given, said):
    config = tmp_path / "a.yaml"
    config.write_text("name: a")
    with pytest.raises(UserError, match=said):
        load_settings(config, given)


def test_a_training_without_rows_of_a_label_is_refused():
    rows = table([row for row in originals() if row[3]])
    with pytest.raises(UserError, match=r"^QC fold0: the training rows have the labels \[1\]; both 0 and 1 are needed"):
        train_fold(rows, rows, Settings(), None, 0, "QC fold0", None)
