from types import SimpleNamespace

import numpy as np
import pytest

from analyticup.augmentation import stage
from analyticup.augmentation.negative_rules import relation_counts
from analyticup.augmentation.negatives import COUNTS, sample_negatives, wanted_by_language
from analyticup.corpus import tables
from analyticup.corpus.rows import COLUMNS, load_rows, make_rows, save_rows
from analyticup.corpus.text import normalise, query_key
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.errors import UserError
from analyticup.settings.schema import NegativesSettings, Settings
from analyticup.training.source import Machine

pytestmark = pytest.mark.arithmetic

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
    new, counts = sample(rows, SETTINGS.replace(neighbours=6))
    assert new["target"].tolist() == ["t30"]
    expected = {
        "same target": 1,
        "above band": 1,
        "positive for the query": 1,
        "already a row": 1,
        "below band": 0,
    }
    assert {name: counts[name] for name in expected} == expected
    none_left, counts = sample(rows[rows["target"] != "t30"], SETTINGS.replace(neighbours=6))
    assert len(none_left) == 0
    assert counts["below band"] == 1 and counts["no candidate left"] == 1 and counts["kept"] == 0


def test_both_ends_of_the_band_belong_to_it():
    rows = rows_of(("en", "bag", "t0", 1), ("en", "z", "t90", 0))
    assert sample(rows, SETTINGS.replace(low=0.1))[1]["below band"] == 1
    right_angle = float(np.float32(np.cos(np.radians(90))))
    assert len(sample(rows, SETTINGS.replace(low=right_angle, high=right_angle))[0]) == 1


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
    new, counts = sample(rows, SETTINGS.replace(origins=["original"]))
    assert new["target"].tolist() == ["t20"]
    assert counts["positive for the query"] == 1 and counts["already a row"] == 0


def test_no_two_new_rows_are_equal_and_every_use_of_a_positive_gets_its_own_id():
    rows = rows_of(("en", "bag", "t0", 1), ("fr", "BAG", "t0", 1), *[("en", "z", f"t{n}", 0) for n in (20, 30, 40, 50)])
    new, counts = sample(rows, SETTINGS.replace(share=2.0))
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
    new, counts = sample(rows, SETTINGS.replace(neighbours=30))
    given = set(zip(rows["query"], rows["target"], strict=True))
    made = list(zip(new["query"], new["target"], strict=True))
    assert len(made) > 50 and not given & set(made) and len(set(made)) == len(made)
    assert counts["asked"] == counts["kept"] + counts["no candidate left"] == counts["positives"]


def test_each_language_gets_its_share():
    cells = [("en", f"e{n}", "t0", 1) for n in range(20)] + [("fr", f"f{n}", "t0", 1) for n in range(10)]
    rows = rows_of(*cells, ("en", "z", "t20", 0))
    new, counts = sample(rows, SETTINGS.replace(share=0.3))
    assert counts["positives"] == 30 and counts["asked"] == 9
    assert new["language"].value_counts().to_dict() == {"en": 6, "fr": 3}


def test_row_order_changes_nothing_and_the_seed_does():
    rows = rows_of(*[("en", f"q{n}", f"t{n}", 1) for n in range(40)])
    settings = SETTINGS.replace(share=0.25, neighbours=39)
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
    new, counts = sample(rows, SETTINGS.replace(origins=["translation"]))
    assert counts["positives"] == 1 and new["query"].tolist() == ["b"]


def test_equal_distances_are_decided_by_text():
    rows = rows_of(("en", "bag", "t0", 1), ("en", "z", "t20 b", 0), ("en", "z", "t20 a", 0), ("en", "z", "t20 c", 0))
    assert sample(rows)[0]["target"].tolist() == ["t20 a"]


def test_a_corpus_smaller_than_k_is_searched_whole():
    rows = rows_of(("en", "bag", "t0", 1), ("en", "z", "t20", 0))
    assert len(sample(rows, SETTINGS.replace(neighbours=500))[0]) == 1


def test_k_counts_the_neighbours_without_the_target_itself():
    rows = rows_of(("en", "bag", "t0", 1), ("en", "bag", "t10", 0), ("en", "z", "t20", 0))
    assert sample(rows, SETTINGS.replace(neighbours=1))[1]["no candidate left"] == 1
    assert sample(rows, SETTINGS.replace(neighbours=2))[0]["target"].tolist() == ["t20"]


def test_targets_with_equal_vectors_do_not_add_a_neighbour():
    rows = rows_of(("en", "bag", "t0 c", 1), ("en", "bag", "t0 a", 0), ("en", "z", "t0 b", 0))
    assert sample(rows, SETTINGS.replace(neighbours=1, high=1.0))[1]["no candidate left"] == 1
    assert sample(rows, SETTINGS.replace(neighbours=2, high=1.0))[0]["target"].tolist() == ["t0 b"]


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


def test_a_guard_without_a_model_is_refused_before_anything_is_embedded():
    embedder, told = PlaneEmbedder(), r"negatives\.guard_above is 0\.5, but no model scores the candidates"
    with pytest.raises(UserError, match=told):
        sample_negatives(rows_of(("en", "bag", "t0", 1)), SETTINGS.replace(guard_above=0.5), embedder, 1)
    assert embedder.calls == []


class AngleEmbedder(PlaneEmbedder):
    """Unit vectors at the given angles (degrees), for targets whose names are paths."""

    def __init__(self, angles):
        super().__init__()
        self.angles = angles

    def passages(self, texts):
        return super().passages([f"t{self.angles[text]}" for text in texts])


def sample_paths(own, others, settings=SETTINGS, task="QC", more=()):
    """Negatives of one positive with the path `own`; `others` stand as targets of another query, the first nearest."""
    rows = rows_of(("en", "bag", own, 1), *more, *[("en", "z", path, 0) for path in others])
    rows["task"] = task
    texts = dict.fromkeys([own, *[cell[2] for cell in more], *others])
    embedder = AngleEmbedder({text: 10.0 * place for place, text in enumerate(texts)})
    new, counts = sample_negatives(rows, settings.replace(low=-1.0), embedder, 1)
    return new["target"].tolist(), counts


def test_no_ancestor_or_descendant_of_a_positive_becomes_a_negative():
    others = ["Wear", "wear,Bags ", "wear,bags,totes,straw", "wear,hats"]
    assert sample_paths("wear,bags,totes", others)[0] == ["wear,hats"]
    assert sample_paths("wear,bags,totes", others)[1]["ancestor or descendant"] == 3


def test_a_comma_before_a_space_parts_no_levels():
    # As text the first is a beginning of the positive's; as a path it is not above it.
    assert sample_paths("cars, parts,locks", ["cars"])[0] == ["cars"]
    # A full-width comma is part of a name, though it is compared as a plain one.
    assert sample_paths("cars\uff0cparts,locks", ["cars"])[0] == ["cars"]


@pytest.mark.parametrize(
    "positive",
    [
        pytest.param(("fr", "Bag", "toys,cars", 1, "translation", "x", "elsewhere"), id="same query"),
        pytest.param(("fr", "sac", "toys,cars", 1, "translation", "x", "bag"), id="same group"),
    ],
)
def test_the_tree_rules_look_at_every_positive_of_the_query_and_of_the_group(positive):
    others = ["toys,cars,red", "shop,cars", "shop,hats"]
    settings = SETTINGS.replace(origins=["original"])
    kept, counts = sample_paths("wear,bags", others, settings, more=[positive])
    assert kept == ["shop,hats"] and counts["ancestor or descendant"] == counts["same leaf"] == 1
    stranger = ("fr", "other", "toys,cars", 1, "translation", "x", "elsewhere")
    assert sample_paths("wear,bags", others, settings, more=[stranger])[0] == ["toys,cars"]


def test_the_same_last_name_elsewhere_is_no_negative_unless_allowed():
    own, others = "women,Shoes", ["men, boys,\uff33hoes ", "men, boys,hats"]
    kept, counts = sample_paths(own, others)
    assert kept == [others[1]] and counts["same leaf"] == 1
    kept, counts = sample_paths(own, others, SETTINGS.replace(same_leaf="allow"))
    assert kept == [others[0]] and counts["same leaf"] == 0


def test_a_retired_category_is_no_negative_of_its_living_twin():
    kept, counts = sample_paths("wear,costumes", ["wear,costumes\uff08deactivate\uff09", "wear,hats"])
    assert kept == ["wear,hats"] and counts["positive for the query"] == 1


@pytest.mark.parametrize("other", ["wear", "wear,bags,totes", "toys,bags"])
def test_titles_are_not_taken_for_paths(other):
    settings = SETTINGS.replace(relations=["sibling"])
    assert sample_paths("wear,bags", [other], settings, task="QI")[0] == [other]
    assert sample_paths("wear,bags", [other], settings, task="QC")[0] == []


def test_a_positive_without_a_path_stands_above_nothing():
    rows = rows_of(("en", "bag", "", 1), ("en", "bag", " ", 1), ("en", "bag", "t0", 1), ("en", "z", "t20", 0))
    assert sample(rows)[0]["target"].tolist() == ["t20"]


@pytest.mark.parametrize(
    ("relations", "kept", "removed"),
    [
        (["sibling"], "a,b,s", 3),
        (["cousin"], "a,x,c", 1),
        (["other"], "k,b,o", 0),
        (["cousin", "sibling"], "a,x,c", 1),
        (["sibling", "cousin", "other"], "k,b,o", 0),
    ],
)
def test_only_the_named_relations_are_used(relations, kept, removed):
    found, counts = sample_paths("a,b,c0", ["k,b,o", "a,x,c", "a,u", "a,b,s"], SETTINGS.replace(relations=relations))
    assert found == [kept] and counts["relation"] == removed


def test_relations_of_the_kept_are_counted():
    rows = rows_of(("en", "bag", "a,b,c", 1), ("en", "z", "a,b,d", 0))
    new = rows_of(*[("en", "bag", path, 0, "negative", "train-1", "bag") for path in ("a,b,d", "a,b,e", "a,x,c", "k")])
    assert relation_counts(rows, new) == {"sibling": 2, "cousin": 1, "other": 1}
    assert relation_counts(rows, new.assign(task="QI")) == {"sibling": 0, "cousin": 0, "other": 0}


# Beside a positive at 0 degrees: above the band, two inside, two below it (low is 60 degrees away).
AROUND = [("en", "z", f"t{angle}", 0) for angle in (3, 20, 30, 70, 80)]


@pytest.mark.parametrize(
    ("hardness", "neighbours", "kept"),
    [
        ("band", 5, {"t20", "t30"}),
        ("hard", 5, {"t20", "t30", "t70", "t80"}),
        ("hard", 3, {"t20", "t30"}),
        # Not only among the neighbours.
        ("easy", 1, {"t70", "t80"}),
    ],
)
def test_hardness_says_how_near_negatives_are(hardness, neighbours, kept):
    settings = SETTINGS.replace(hardness=hardness, neighbours=neighbours, share=9.0)
    new, counts = sample(rows_of(("en", "bag", "t0", 1), *AROUND), settings)
    assert set(new["target"]) == kept
    assert counts["kept easy"] == (len(kept) if hardness == "easy" else 0)
    assert counts["asked"] == counts["kept"] + counts["no candidate left"] == 9


def test_hard_takes_the_nearest_first():
    settings = SETTINGS.replace(hardness="hard", low=0.99)
    assert sample(rows_of(("en", "bag", "t0", 1), *AROUND), settings)[0]["target"].tolist() == ["t20"]


def test_the_lower_end_of_the_band_is_not_easy():
    right_angle = float(np.float32(np.cos(np.radians(90))))
    rows = rows_of(("en", "bag", "t0", 1), ("en", "z", "t90", 0))
    settings = SETTINGS.replace(hardness="easy", low=right_angle)
    assert sample(rows, settings)[1]["not below low"] == 1
    assert len(sample(rows, settings.replace(low=right_angle + 1e-9))[0]) == 1


def test_easy_targets_are_drawn_from_all_by_the_seed_and_not_by_distance():
    rows = rows_of(*[("en", f"q{n}", "t0", 1) for n in range(200)], *[("en", "z", f"t{n}", 0) for n in range(61, 81)])
    settings = SETTINGS.replace(hardness="easy", neighbours=1)
    new, _ = sample(rows, settings)
    uses = new["target"].value_counts()
    # 200 draws over 20 targets: were one preferred or left out, it would stand far from 10.
    assert len(new) == 200 and len(uses) == 20 and uses.max() <= 25
    assert sample(rows.sample(frac=1, random_state=1), settings)[0].equals(new)
    assert not sample(rows, settings, seed=2)[0].equals(new)


@pytest.mark.parametrize("size", [1, 2, 3, 12, 255, 256, 257, 600])
def test_an_easy_target_is_found_wherever_it_stands(size):
    cells = [("en", "z", f"t{n / 100}", 0) for n in range(1, size)]
    for far in ("t80", "t-80"):
        rows = rows_of(("en", "bag", "t0", 1), *cells, ("en", "z", far, 0))
        new, counts = sample(rows, SETTINGS.replace(hardness="easy"))
        assert new["target"].tolist() == [far] and counts["not below low"] < size


def test_easy_negatives_obey_the_rules_too():
    rows = rows_of(("en", "bag", "t0", 1), ("en", "bag", "t70", 1), ("en", "bag", "t80", 0), ("en", "z", "t75", 0))
    for seed in range(20):
        new, _ = sample(rows, SETTINGS.replace(hardness="easy"), seed=seed)
        assert set(zip(new["source_id"], new["target"], strict=True)) == {("train-1", "t75")}


def test_mix_is_half_band_half_easy_in_every_language():
    cells = [(language, f"{language}{n}", "t0", 1) for language, size in (("en", 21), ("fr", 8)) for n in range(size)]
    rows = rows_of(*cells, *AROUND)
    settings = SETTINGS.replace(hardness="mix")
    new, counts = sample(rows, settings)
    easy = new["target"].isin(["t70", "t80"])
    assert counts["kept"] == 29 and counts["kept easy"] == easy.sum() == 14
    assert easy.groupby(new["language"]).sum().to_dict() == {"en": 10, "fr": 4}
    assert sample(rows.sample(frac=1, random_state=1), settings)[0].equals(new)
    other, _ = sample(rows, settings, seed=2)
    assert set(new["row_id"][easy]) != set(other["row_id"][other["target"].isin(["t70", "t80"])])


def test_in_a_mix_neither_half_stands_in_for_the_other():
    rows = rows_of(*[("en", f"q{n}", "t0", 1) for n in range(10)], ("en", "z", "t80", 0))
    assert sample(rows, SETTINGS.replace(hardness="mix"))[1]["kept"] == 5


class FakeScorer:
    """p(yes) by target; remembers what it was asked."""

    def __init__(self, scores):
        self.scores, self.calls = scores, []

    def __call__(self, pairs):
        self.calls.append(list(pairs))
        return [self.scores.get(target, 0.0) for _, target in pairs]


def guarded(rows, scorer, **change):
    settings = SETTINGS.replace(guard_above=0.5, **change)
    return sample_negatives(rows, settings, PlaneEmbedder(), 1, scorer)


def test_what_the_model_takes_for_a_positive_gives_way_to_the_next():
    rows = rows_of(("en", "bag", "t0", 1), ("en", "hat", "t5", 1), *[("en", "z", f"t{n}", 0) for n in (20, 30, 40)])
    scorer = FakeScorer({"t20": 0.5, "t30": 0.49})
    new, counts = guarded(rows, scorer)
    assert dict(zip(new["query"], new["target"], strict=True)) == {"bag": "t30", "hat": "t30"}
    assert counts["guard"] == 2 and counts["kept"] == 2 and counts["no candidate left"] == 0
    # All first choices at once, then those of the refused rows.
    assert [sorted(call) for call in scorer.calls] == [
        [("bag", "t20"), ("hat", "t20")],
        [("bag", "t30"), ("hat", "t30")],
    ]
    assert guarded(rows.iloc[::-1], scorer)[0].equals(new)


def test_only_refused_rows_are_scored_again():
    rows = rows_of(("en", "bag", "t0", 1), ("en", "hat", "t45", 1), *[("en", "z", f"t{n}", 0) for n in (20, 60)])
    scorer = FakeScorer({"t20": 0.9})
    guarded(rows, scorer)
    assert [len(call) for call in scorer.calls] == [2, 1]


def test_a_guard_that_refuses_everything_ends_after_so_many_rounds_as_neighbours():
    rows = rows_of(("en", "bag", "t0", 1), *[("en", "z", f"t{n}", 0) for n in range(61, 91)])
    scorer = FakeScorer(dict.fromkeys((f"t{n}" for n in range(91)), 1.0))
    # Easy candidates are all targets of the rows, 30 here.
    new, counts = guarded(rows, scorer, hardness="easy", neighbours=4)
    assert len(new) == 0 and len(scorer.calls) == counts["guard"] == 4 and counts["no candidate left"] == 1


def test_a_refused_target_is_not_scored_again_for_the_same_query():
    rows = rows_of(("en", "bag", "t0", 1), ("en", "BAG", "t5", 1), ("en", "z", "t20", 0), ("en", "z", "t30", 0))
    scorer = FakeScorer({"t20": 0.9, "t30": 0.9})
    new, counts = guarded(rows, scorer)
    assert len(new) == 0 and counts["no candidate left"] == 2
    # Both first choices, and the one that was the other row's; that row had passed over the first one's.
    assert counts["guard"] == 3 and counts["already a row"] == 1
    assert sorted(target for call in scorer.calls for _, target in call) == ["t20", "t30"]


def test_a_guard_that_refuses_nothing_changes_nothing():
    rows = rows_of(*[("en", f"q{n}", f"t{n}", 1) for n in range(40)])
    assert guarded(rows, FakeScorer({}))[0].equals(sample(rows)[0])


def test_without_guard_above_no_model_is_asked():
    scorer = FakeScorer({"t20": 1.0})
    rows = rows_of(("en", "bag", "t0", 1), ("en", "z", "t20", 0))
    assert len(sample_negatives(rows, SETTINGS, PlaneEmbedder(), 1, scorer)[0]) == 1 and scorer.calls == []


@pytest.mark.parametrize("scores", [[float("nan")], [1.1], [], [0.1, 0.1]])
def test_scores_that_are_none_are_not_taken_for_low_ones(scores):
    with pytest.raises(ValueError):
        guarded(rows_of(("en", "bag", "t0", 1), ("en", "z", "t20", 0)), lambda pairs: scores)


def labelled(language, positives, negatives):
    yes = [(language, f"{language}{n}", "t0", 1) for n in range(positives)]
    return yes + [(language, f"{language}-{n}", f"t{n % 40 + 20}", 0) for n in range(negatives)]


@pytest.mark.parametrize(
    ("positives", "negatives", "share", "wanted"),
    [
        (60, 40, 0.5, 20),
        (60, 40, 0.6, 0),
        (60, 40, 0.61, 0),
        (60, 40, 0.59, 2),  # 60 / 101 is above .59, 60 / 102 is not
        (7, 0, 0.7, 3),
        (6, 3, 0.6, 1),
        (21, 0, 0.7, 9),  # 21 / 0.7 is above 30 in binary
        (1, 0, 1.0, 0),
        (0, 5, 0.1, 0),
        (5, 0, 0.5, 5),
    ],
)
def test_negatives_wanted_for_a_share_of_positives(positives, negatives, share, wanted):
    records = rows_of(*labelled("en", positives, negatives)).to_dict("records")
    assert wanted_by_language(records, share) == {"en": wanted}


def test_derived_rows_count_for_the_share_and_unlabelled_ones_do_not():
    derived = [("en", f"d{n}", "t0", 1, origin, "x", "g") for n, origin in enumerate(("translation", "negative"))]
    rows = rows_of(*labelled("en", 2, 1), *derived, ("en", "u", "t0", None), ("de", "u", "t0", None))
    assert wanted_by_language(rows.to_dict("records"), 0.5) == {"de": 0, "en": 3}


def test_each_language_comes_down_to_the_share_of_positives():
    # ko is below it; it lacks any positive; de has unlabelled rows alone; pl has one class alone.
    cells = [*labelled("en", 30, 10), *labelled("fr", 12, 8), *labelled("ko", 4, 6), *labelled("it", 0, 3)]
    rows = rows_of(*cells, *labelled("pl", 6, 0), ("de", "u", "t20", None))
    new, counts = sample(rows, SETTINGS.replace(positive_share=0.5, share=9.0, neighbours=40))
    assert new["language"].value_counts().to_dict() == {"en": 20, "fr": 4, "pl": 6}
    assert counts["asked"] == counts["kept"] == 30 and counts["no source"] == 0
    every = [*zip(rows["language"], rows["label"], strict=True), *zip(new["language"], new["label"], strict=True)]
    for language in ("en", "fr", "pl"):
        own = [label for name, label in every if name == language]
        assert sum(own) / len(own) == 0.5


def test_a_positive_is_used_more_than_once_where_the_share_needs_it():
    new, _ = sample(rows_of(("en", "bag", "t0", 1), *AROUND[:3]), SETTINGS.replace(positive_share=0.16, low=0.1))
    # Three labelled negatives stand there already: 1 / 0.16 makes 7 rows.
    assert len(new) == 2
    assert sample(rows_of(("en", "bag", "t0", 1), *AROUND[:3]), SETTINGS.replace(positive_share=0.25))[1]["asked"] == 0


def test_a_language_without_a_usable_positive_is_counted():
    rows = rows_of(("de", "tasche", "t0", 1, "translation", "x", "g"), ("en", "bag", "t0", 1), ("en", "z", "t20", 0))
    new, counts = sample(rows, SETTINGS.replace(positive_share=0.25, origins=["original"]))
    assert new["language"].tolist() == ["en"]
    assert (counts["asked"], counts["no source"], counts["no candidate left"], counts["kept"]) == (5, 3, 1, 1)


def test_a_language_of_one_class():
    assert sample(rows_of(("en", "bag", "t0", 1), ("en", "hat", "t20", 1)))[1]["kept"] == 2
    new, counts = sample(rows_of(("en", "bag", "t0", 1), ("fr", "z", "t20", 0), ("de", "u", "t30", None)))
    assert new["language"].tolist() == ["en"] and counts["asked"] == 1


@pytest.mark.parametrize(
    "change", [{"hardness": "easy"}, {"hardness": "mix"}, {"hardness": "hard"}, {"positive_share": 0.2}]
)
def test_in_every_mode_nothing_new_contradicts_a_given_row(change):
    random = np.random.default_rng(1)
    cells = {}
    for _ in range(300):
        query, target = f"q{random.integers(30)}", f"t{random.integers(100)}"
        cells[query, target] = (("en", "fr")[int(query[1:]) % 2], query, target, int(random.integers(2)))
    rows = rows_of(*cells.values())
    settings = SETTINGS.replace(neighbours=60, **change)
    new, counts = sample(rows, settings)
    given = set(zip(rows["query"], rows["target"], strict=True))
    made = list(zip(new["query"], new["target"], strict=True))
    assert len(made) > 50 and not given & set(made) and len(set(made)) == len(made)
    assert new["row_id"].is_unique and counts["asked"] == counts["kept"] + counts["no candidate left"]
    assert sample(rows.sample(frac=1, random_state=2), settings)[0].equals(new)


@pytest.mark.parametrize("hardness", ["band", "hard", "easy", "mix"])
def test_a_single_category_or_no_row_leaves_nothing_in_every_mode(hardness):
    settings = SETTINGS.replace(hardness=hardness)
    cells = [("en", "bag", "t0", 1), ("en", "cap", "t0", 1), ("fr", "hat", "t0", 0)]
    assert sample(rows_of(*cells), settings)[1]["no candidate left"] == 2
    assert len(sample(rows_of(), settings.replace(positive_share=0.5))[0]) == 0


@pytest.mark.parametrize(("task", "relations"), [("QC", {"sibling": 0, "cousin": 0, "other": 1}), ("QI", None)])
def test_the_stage_keeps_given_and_new_rows_and_reports_relations_of_paths(tmp_path, monkeypatch, task, relations):
    rows = rows_of(("en", "bag", "t0", 1), ("en", "z", "t30", 0)).assign(task=task)
    save_rows(rows, tmp_path / "in" / tables.ROWS)
    monkeypatch.setattr("analyticup.augmentation.stage.load_embedder", lambda *_: PlaneEmbedder())
    job = SimpleNamespace(
        task=task,
        settings=Settings(negatives=SETTINGS),
        inputs={"rows": Artifact(tmp_path / "in", StageRecord())},
        out=tmp_path,
        cache=tmp_path,
        source=SimpleNamespace(machine=Machine("cpu", None)),
    )
    counts = stage.negatives(job)
    assert (counts["given"], counts["new"], counts.get("by relation")) == (2, 1, relations)
    assert load_rows(tmp_path / tables.ROWS)["target"].tolist() == ["t0", "t30", "t30"]


def test_a_band_of_percentiles_finds_as_much_whatever_the_embedder_calls_near():
    rows = rows_of(*[("en", f"q{angle}", f"t{angle}", 1) for angle in range(0, 80, 2)])
    few, counts = sample_negatives(rows, SETTINGS.replace(low=0.2, high=0.5), PlaneEmbedder(), 3)
    assert len(few) == 0 and counts["above band"] == 200
    ranked = SETTINGS.replace(band="percentile", low=0.2, high=0.5)
    many, _ = sample_negatives(rows, ranked, PlaneEmbedder(), 3)
    # The nearest targets lie 2 to 6 degrees away, at both ends up to 10.
    off = [abs(int(row["target"][1:]) - int(row["query"][1:])) for row in many.to_dict("records")]
    assert len(many) > 0.9 * len(rows) and set(off) <= {4, 6}
    easy, _ = sample_negatives(rows, ranked.replace(hardness="easy"), PlaneEmbedder(), 3)
    assert len(easy) == len(rows)


def test_a_percentile_is_not_below_0():
    with pytest.raises(ValueError, match=r"negatives\.low = -0\.5: a percentile is between 0 and 1"):
        NegativesSettings(band="percentile", low=-0.5)


@pytest.mark.parametrize(("made", "said"), [(49, True), (50, False), (0, True)])
def test_a_volume_that_is_not_half_made_is_told(capsys, made, said):
    stage.say_what_is_missing("negatives QC", made, 100, "why")
    told = capsys.readouterr().err
    assert (told == f"negatives QC: {made} of 100 rows asked for were made ({made}%); why\n") == said
