from dataclasses import replace

import numpy as np
import pytest

from analyticup.augment.negatives import COUNTS, sample_negatives
from analyticup.config import NegativesSettings
from analyticup.corpus.rows import COLUMNS, make_rows, normalise, query_key
from analyticup.errors import UserError

SETTINGS = NegativesSettings(share=1.0, neighbours=5, low=0.5, high=0.99)


class PlaneEmbedder:
    """Targets named `t<degrees>...` are unit vectors at that angle, so that cosines are known."""

    identity = "plane"

    def __init__(self):
        self.calls = []

    def passages(self, texts):
        self.calls.append(list(texts))
        angles = np.radians([float(normalise(text).split()[0].removeprefix("t")) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def queries(self, texts):
        raise AssertionError("targets are passages")


def rows_of(*cells):
    """Rows from (language, query, target, label) and, where derived, (origin, source_id, group)."""
    columns = {name: [] for name in COLUMNS}
    for number, (language, query, target, label, *derived) in enumerate(cells, 1):
        origin, source_id, group = derived or ("original", "", query_key(query))
        values = (f"train-{number}", "QC", language, query, target, label, origin, source_id, group)
        for name, value in zip(COLUMNS, values, strict=True):
            columns[name].append(value)
    return make_rows(columns)


def sample(rows, settings=SETTINGS, seed=1):
    return sample_negatives(rows, settings, PlaneEmbedder(), seed)


def test_the_nearest_allowed_target_becomes_a_negative_row():
    rows = rows_of(("en", "Bag", "t0", 1), ("fr", "x", "t20", 0), ("fr", "y", "t30", 0))
    new, counts = sample(rows)
    assert new.iloc[0].to_dict() == {
        "row_id": "train-1/n-0",
        "task": "QC",
        "language": "en",
        "query": "Bag",
        "target": "t20",
        "label": 0,
        "origin": "negative",
        "source_id": "train-1",
        "group": "bag",
    }
    assert len(new) == 1 and tuple(new.columns) == COLUMNS and str(new["label"].dtype) == "Int8"
    assert counts == dict.fromkeys(COUNTS, 0) | {"positives": 1, "asked": 1, "kept": 1}


def test_every_rule_removes_and_counts():
    rows = rows_of(
        ("en", "bag", "t0", 1),
        ("en", "Z1", "T0 ", 0),
        ("en", "z2", "t2", 0),
        ("en", "BAG", "t10", 1),
        ("en", "bag", "t20", 0),
        ("en", "z3", "t30", 0),
        ("en", "z4", "t70", 0),
    )
    rows.loc[3, "origin"] = "other"
    new, counts = sample(rows, replace(SETTINGS, neighbours=6))
    assert new["target"].tolist() == ["t30"]
    expected = {
        "same target": 1,
        "above band": 1,
        "positive for the query": 1,
        "already a row": 1,
        "below band": 0,
    }
    assert {name: counts[name] for name in expected} == expected
    none_left, counts = sample(rows[rows["target"] != "t30"], replace(SETTINGS, neighbours=6))
    assert len(none_left) == 0
    assert counts["below band"] == 1 and counts["no candidate left"] == 1 and counts["kept"] == 0


def test_both_ends_of_the_band_belong_to_it():
    rows = rows_of(("en", "bag", "t0", 1), ("en", "z", "t90", 0))
    assert sample(rows, replace(SETTINGS, low=0.1))[1]["below band"] == 1
    right_angle = float(np.float32(np.cos(np.radians(90))))
    assert len(sample(rows, replace(SETTINGS, low=right_angle, high=right_angle))[0]) == 1


def test_a_positive_of_the_same_group_is_no_negative_in_another_language():
    group = ("translation", "train-1", "bag")
    rows = rows_of(
        ("en", "bag", "t0", 1),
        ("de", "tasche", "t0", 1, *group),
        ("en", "bag", "t10", 1),
        ("fr", "z", "t20", 0),
    )
    new, _ = sample(rows)
    assert sorted(zip(new["query"], new["target"], strict=True)) == [("bag", "t20"), ("tasche", "t20")]


def test_a_positive_of_the_same_query_in_another_group_is_no_negative():
    rows = rows_of(
        ("en", "chat", "t0", 1),
        ("fr", "Chat", "t10", 1, "translation", "train-9", "cat"),
        ("fr", "z", "t20", 0),
    )
    new, counts = sample(rows, replace(SETTINGS, origins=["original"]))
    assert new["target"].tolist() == ["t20"]
    assert counts["positive for the query"] == 1 and counts["already a row"] == 0


def test_no_two_new_rows_are_equal_and_every_use_of_a_positive_gets_its_own_id():
    rows = rows_of(("en", "bag", "t0", 1), ("fr", "BAG", "t0", 1), *[("en", "z", f"t{n}", 0) for n in (20, 30, 40, 50)])
    new, counts = sample(rows, replace(SETTINGS, share=2.0))
    assert counts["asked"] == counts["kept"] == 4
    assert sorted(new["target"]) == ["t20", "t30", "t40", "t50"]
    assert sorted(new["row_id"]) == ["train-1/n-0", "train-1/n-1", "train-2/n-0", "train-2/n-1"]


def test_nothing_new_contradicts_a_given_row():
    random = np.random.default_rng(0)
    cells = {}
    for _ in range(400):
        query, target = f"q{random.integers(40)}", f"t{random.integers(60)}"
        cells[query, target] = (("en", "fr")[int(query[1:]) % 2], query, target, int(random.integers(2)))
    rows = rows_of(*cells.values())
    new, counts = sample(rows, replace(SETTINGS, neighbours=30))
    given = set(zip(rows["query"], rows["target"], strict=True))
    made = list(zip(new["query"], new["target"], strict=True))
    assert len(made) > 50 and not given & set(made) and len(set(made)) == len(made)
    assert counts["asked"] == counts["kept"] + counts["no candidate left"] == counts["positives"]


def test_each_language_gets_its_share():
    cells = [("en", f"e{n}", "t0", 1) for n in range(20)] + [("fr", f"f{n}", "t0", 1) for n in range(10)]
    rows = rows_of(*cells, ("en", "z", "t20", 0))
    new, counts = sample(rows, replace(SETTINGS, share=0.3))
    assert counts["positives"] == 30 and counts["asked"] == 9
    assert new["language"].value_counts().to_dict() == {"en": 6, "fr": 3}


def test_row_order_changes_nothing_and_the_seed_does():
    rows = rows_of(*[("en", f"q{n}", f"t{n}", 1) for n in range(40)])
    settings = replace(SETTINGS, share=0.25, neighbours=39)
    new, counts = sample(rows, settings)
    assert counts["kept"] == 10
    shuffled, _ = sample(rows.sample(frac=1, random_state=3), settings)
    assert shuffled.equals(new)
    assert set(sample(rows, settings, seed=2)[0]["row_id"]) != set(new["row_id"])


def test_only_positives_of_the_named_origins_are_used():
    rows = rows_of(
        ("en", "a", "t0", 1),
        ("de", "b", "t0", 1, "translation", "train-1", "a"),
        ("en", "c", "t0", 0),
        ("en", "d", "t20", None),
    )
    new, counts = sample(rows, replace(SETTINGS, origins=["translation"]))
    assert counts["positives"] == 1 and new["query"].tolist() == ["b"]


def test_equal_distances_are_decided_by_text():
    rows = rows_of(("en", "bag", "t0", 1), ("en", "z", "t20 b", 0), ("en", "z", "t20 a", 0), ("en", "z", "t20 c", 0))
    assert sample(rows)[0]["target"].tolist() == ["t20 a"]


def test_a_corpus_smaller_than_k_is_searched_whole():
    rows = rows_of(("en", "bag", "t0", 1), ("en", "z", "t20", 0))
    assert len(sample(rows, replace(SETTINGS, neighbours=500))[0]) == 1


def test_k_counts_the_neighbours_without_the_target_itself():
    rows = rows_of(("en", "bag", "t0", 1), ("en", "bag", "t10", 0), ("en", "z", "t20", 0))
    assert sample(rows, replace(SETTINGS, neighbours=1))[1]["no candidate left"] == 1
    assert sample(rows, replace(SETTINGS, neighbours=2))[0]["target"].tolist() == ["t20"]


def test_targets_with_equal_vectors_do_not_add_a_neighbour():
    rows = rows_of(("en", "bag", "t0 c", 1), ("en", "bag", "t0 a", 0), ("en", "z", "t0 b", 0))
    assert sample(rows, replace(SETTINGS, neighbours=1, high=1.0))[1]["no candidate left"] == 1
    assert sample(rows, replace(SETTINGS, neighbours=2, high=1.0))[0]["target"].tolist() == ["t0 b"]


def test_a_single_category_leaves_no_candidate():
    new, counts = sample(rows_of(("en", "bag", "t0", 1), ("en", "hat", "t0", 0)))
    assert len(new) == 0 and tuple(new.columns) == COLUMNS
    assert counts["asked"] == counts["no candidate left"] == 1


@pytest.mark.parametrize("rows", [rows_of(), rows_of(("en", "bag", "t0", 0), ("en", "hat", "t0", None))])
def test_without_positives_nothing_is_made_or_embedded(rows):
    embedder = PlaneEmbedder()
    new, counts = sample_negatives(rows, SETTINGS, embedder, 1)
    assert len(new) == 0 and counts == dict.fromkeys(COUNTS, 0) and embedder.calls == []


def test_a_missing_target_is_never_swapped_in():
    rows = rows_of(("en", "bag", "t0", 1), ("en", "hat", "", None), ("en", "z", "t20", 0))
    embedder = PlaneEmbedder()
    sample_negatives(rows, SETTINGS, embedder, 1)
    assert embedder.calls == [["t0", "t20"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": -0.1}, "negatives.share is -0.1"),
        ({"neighbours": 0}, "negatives.neighbours is 0"),
        ({"low": 0.9, "high": 0.8}, "negatives.low is 0.9 and negatives.high 0.8"),
        ({"high": 1.5}, "negatives.low is 0.5 and negatives.high 1.5"),
        ({"low": float("nan")}, "negatives.low is nan"),
        ({"share": float("inf")}, "negatives.share is inf"),
        ({"share": float("nan")}, "negatives.share is nan"),
        ({"origins": []}, "negatives.origins is empty"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_embedded(change, message):
    embedder = PlaneEmbedder()
    with pytest.raises(UserError) as error:
        sample_negatives(rows_of(("en", "bag", "t0", 1)), replace(SETTINGS, **change), embedder, 1)
    assert message in str(error.value) and embedder.calls == []
