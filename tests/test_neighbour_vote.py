"""The neighbour vote and the features of texts: what votes, what never does, and how both become one score."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import get_args

import faiss
import numpy as np
import pytest
from scipy.special import expit
from tiny_runs import ROOT, make_job

from analyticup import pipeline
from analyticup.augmentation.neighbours import nearest
from analyticup.corpus.rows import COLUMNS, make_rows, save_rows
from analyticup.corpus.tables import load_table
from analyticup.corpus.text import query_key
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.errors import UserError
from analyticup.features import stage, vote
from analyticup.features.inverted_file import InvertedFile
from analyticup.features.pairs import Rarity, Trigrams, names_last_word, shared_numbers, words
from analyticup.features.points import Points
from analyticup.features.vectors import Table
from analyticup.features.vote import Scale, neighbour_vote
from analyticup.filtering.stage import filter_rows
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import FilterSettings, NeighbourSettings, Settings, StackFeature

pytestmark = pytest.mark.arithmetic

SAMPLE = ROOT / "configs" / "sample.yaml"
RANDOM = np.random.default_rng(3)


def unit(n, d=6, random=RANDOM):
    vectors = random.normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


QUERIES, TARGETS, GROUPS, LABELS = unit(60), unit(60), np.arange(60) // 3, RANDOM.integers(0, 2, 60)
SETTINGS = NeighbourSettings(query_concentration=4.0, target_concentration=2.0)


def points_of(queries, targets, groups):
    """A point for each row, no text twice."""
    tables = (Table(vectors, np.arange(len(vectors))) for vectors in (queries, targets))
    return Points.of(*tables, groups, SETTINGS)


POINTS = points_of(QUERIES, TARGETS, GROUPS)


def plain_vote(place, labels, k):
    """The same from its definition: (share, log of the weight)."""
    exponents = 4 * QUERIES @ QUERIES[place] + 2 * TARGETS @ TARGETS[place]
    others = np.flatnonzero(GROUPS[place] != GROUPS)
    nearest = others[np.argsort(-exponents[others])][:k]
    weights = np.exp(exponents[nearest].astype(float))
    return (weights @ labels[nearest]) / weights.sum(), np.log(weights.sum())


@pytest.mark.parametrize("block", [1, 7, 2048])
@pytest.mark.parametrize("k", [1, 5, 200])
def test_the_vote_in_blocks_is_that_of_its_definition(monkeypatch, block, k):
    monkeypatch.setattr(vote, "_BLOCK", block)
    votes, density = neighbour_vote(POINTS, POINTS, LABELS, k, "vote")
    expected = np.array([plain_vote(place, LABELS, k) for place in range(60)])
    np.testing.assert_allclose(votes, expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(density, expected[:, 1], atol=1e-5)


def test_the_order_of_the_voters_and_of_the_rows_changes_nothing():
    votes, _ = neighbour_vote(POINTS, POINTS, LABELS, 9, "vote")
    order = RANDOM.permutation(60)
    shuffled = POINTS.take(order)
    np.testing.assert_allclose(neighbour_vote(shuffled, shuffled, LABELS[order], 9, "vote")[0], votes[order], atol=1e-9)


def test_a_query_of_many_voters_is_left_out_of_the_search_for_its_neighbours(monkeypatch):
    groups = np.repeat([0, 1, 2], [4, 50, 6])
    points = points_of(QUERIES, TARGETS, groups)
    plain = neighbour_vote(points, points, LABELS, 5, "vote")
    sought = []
    known = vote.nearest
    monkeypatch.setattr(vote, "nearest", lambda base, rows, k: sought.append(k) or known(base, rows, k))
    monkeypatch.setattr(vote, "MANY_VOTERS", 8)
    np.testing.assert_allclose(neighbour_vote(points, points, LABELS, 5, "vote"), plain, atol=1e-12)
    # Its own, and the largest of the others.
    assert sought == [5 + 6, 5]


def test_of_many_pairs_nearly_all_that_matter_are_found_without_looking_at_each(monkeypatch):
    kinds = np.repeat(np.arange(20), 80)
    around = [unit(20)[kinds] + 0.1 * unit(1600) for _ in range(2)]
    queries, targets = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in around)
    points, labels = points_of(queries, targets, np.arange(1600) // 2), RANDOM.integers(0, 2, 1600)
    exact, density = neighbour_vote(points, points, labels, 20, "vote")
    monkeypatch.setattr(vote, "EXACT_PAIRS", 100)
    monkeypatch.setattr(vote, "nearest", lambda *given: pytest.fail("searched every pair"))
    found, weights = neighbour_vote(points, points, labels, 20, "vote")
    assert np.corrcoef(found, exact)[0, 1] > 0.98 and np.abs(weights - density).mean() < 0.01
    again, _ = neighbour_vote(points, points, labels, 20, "vote")
    np.testing.assert_array_equal(again, found)


@pytest.fixture(scope="module")
def clustered():
    """(1,500 points around 60, 400 others that ask)"""
    random = np.random.default_rng(5)
    around = random.normal(size=(60, 32))[random.integers(0, 60, size=1900)]
    moved = ((around + 0.5 * random.normal(size=(1900, 32))).astype(np.float32) for _ in range(2))
    every = points_of(*(vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in moved), np.arange(1900))
    return every.take(slice(1500)), every.take(slice(1500, None))


def test_the_inverted_file_finds_most_of_many(clustered):
    points, asked = clustered
    made = InvertedFile(points)
    (products, places), (exact, expected) = made.nearest(asked, 50), nearest(points.vectors(), asked.vectors(), 50)
    found = [len({*ours} & {*theirs}) / 50 for ours, theirs in zip(places, expected, strict=True)]
    assert np.mean(found) > 0.9
    # It looked at a part of the rows only.
    assert faiss.extract_index_ivf(made._file).nprobe < faiss.extract_index_ivf(made._file).nlist / 2
    assert (products <= exact * 1.00001).all() and (np.diff(products) <= 0).all()
    own = np.einsum("nd,nkd->nk", asked.vectors(), points.vectors()[places])
    np.testing.assert_allclose(products, own, rtol=1e-4)
    assert made.nearest(asked.take(slice(5)), 5000)[1].shape == (5, 1500)


def test_what_the_inverted_file_does_not_find_never_votes(clustered, monkeypatch):
    points, asked = clustered
    labels = np.arange(1500) % 2
    monkeypatch.setattr(vote, "EXACT_PAIRS", 0)
    known = InvertedFile.nearest

    def loses(self, rows, k):
        products, places = known(self, rows, 21)
        products[:, 10:] = -np.inf
        return products, np.where(np.isfinite(products), places, -1)

    monkeypatch.setattr(InvertedFile, "nearest", loses)
    np.testing.assert_allclose(
        neighbour_vote(asked, points, labels, 20, "vote"), neighbour_vote(asked, points, labels, 10, "vote")
    )


def test_a_query_of_many_voters_is_left_out_of_an_inverted_file_too(clustered, monkeypatch):
    points, _ = clustered
    points, labels = replace(points, groups=np.arange(1500) // 10), np.arange(1500) % 2
    monkeypatch.setattr(vote, "EXACT_PAIRS", 0)
    plain, _ = neighbour_vote(points.take(slice(20)), points, labels, 20, "vote")
    made = []
    monkeypatch.setattr(vote, "InvertedFile", lambda among: made.append(len(among.groups)) or InvertedFile(among))
    monkeypatch.setattr(vote, "MANY_VOTERS", 9)
    found, _ = neighbour_vote(points.take(slice(20)), points, labels, 20, "vote")
    # One for each of the two queries that ask, and none for the 148 that do not.
    assert made == [1490, 1490]
    assert np.abs(found - plain).max() < 0.15


def test_the_inverted_file_finds_the_same_for_any_number_of_threads(clustered):
    points, asked = clustered
    before, found = faiss.omp_get_max_threads(), []
    for threads in (1, 4):
        faiss.omp_set_num_threads(threads)
        found.append(InvertedFile(points).nearest(asked, 4))
        assert faiss.omp_get_max_threads() == threads
    faiss.omp_set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert one.tobytes() == other.tobytes()


def test_where_nobody_votes_it_is_the_share_of_positives():
    alone = POINTS.take(slice(3))
    votes, density = neighbour_vote(alone, alone, np.array([1, 1, 0]), 5, "vote")
    assert votes.tolist() == [2 / 3] * 3 and density.tolist() == [0, 0, 0]


def test_a_scale_gives_probabilities_and_never_turns_a_vote_round():
    labels = RANDOM.integers(0, 2, 4000)
    votes = 0.6 + 0.05 * labels + RANDOM.normal(0, 0.05, 4000)
    told = expit(Scale.fit(votes, labels).apply(votes))
    high = told > 0.7
    assert labels[high].mean() == pytest.approx(told[high].mean(), abs=0.03) and told.min() < 0.2
    against = Scale.fit(-votes, labels)
    assert against.slope == 0 and expit(against.intercept) == pytest.approx(labels.mean())
    with pytest.raises(UserError, match="training rows of both labels"):
        Scale.fit(votes, np.ones(4000))


class WordEmbedder:
    """The sum of a text's words, each a vector drawn from its hash."""

    identity = "words"

    def queries(self, texts):
        return np.stack([self._vector(text) for text in texts])

    passages = queries

    def _vector(self, text):
        seeds = [int(hashlib.sha256(word.encode()).hexdigest()[:8], 16) for word in text.casefold().split()]
        vector = sum(unit(1, 24, np.random.default_rng(seed))[0] for seed in seeds)
        return vector / np.linalg.norm(vector)


PRODUCTS = ("lamp", "chair", "phone", "drill", "shoe")


def training(labels=None, rows=120):
    """Queries of a colour and a product, two rows each; right where the target names the product."""
    columns = {name: [] for name in COLUMNS}
    for i in range(rows):
        query = f"colour{i // 2} {PRODUCTS[i // 2 % 5]}"
        target = f"home,{PRODUCTS[(i // 2 + (i % 2) * (1 + i // 10 % 4)) % 5]}"
        label = 1 - i % 2 if labels is None else labels[i]
        values = (f"train-{i + 1}", "QC", "en", query, target, label, "original", "", query_key(query))
        for name, value in zip(COLUMNS, values, strict=True):
            columns[name].append(value)
    return make_rows(columns)


def run(folder, run_stage, train, dev=None, **more):
    """The tables that a stage writes for these rows."""
    given = folder / "ingest"
    given.mkdir(parents=True)
    save_rows(train, given / "train.parquet")
    if dev is not None:
        save_rows(dev, given / "dev.parquet")
    inputs = {"rows": Artifact(given, StageRecord()), **more}
    out = folder / "out"
    out.mkdir()
    run_stage(make_job(folder, inputs=inputs, settings=Settings(), out=out))
    return {path.stem: load_table(path) for path in out.iterdir()}, out


@pytest.fixture(autouse=True)
def word_embedder(monkeypatch):
    monkeypatch.setattr(stage, "load_embedder", lambda *given: WordEmbedder())


def test_no_label_of_its_own_query_reaches_a_row(tmp_path):
    """The labels of one query turn; the votes on its rows, and on a dev row that asks the same, stay as they were."""
    rows = training()
    asked = rows["group"] == "colour7 phone"
    dev = training()[asked].assign(row_id=["dev-1", "dev-2"], query="Colour7  PHONE", label=None)
    turned = rows.assign(label=rows["label"].where(~asked, 1 - rows["label"]))
    before, _ = run(tmp_path / "a", stage.neighbours, rows, dev=dev)
    after, _ = run(tmp_path / "b", stage.neighbours, turned, dev=dev)
    own = asked.to_numpy()
    assert own.sum() == 2 and (before["train"]["vote"][own] == after["train"]["vote"][own]).all()
    assert (before["dev"]["vote"] == after["dev"]["vote"]).all()
    np.testing.assert_array_equal(before["dev"]["vote"], before["train"]["vote"][own])
    assert (before["train"]["vote"][~own] != after["train"]["vote"][~own]).any()


def test_made_rows_never_vote_but_are_voted_on(tmp_path):
    rows = training()
    made = rows[:20].assign(
        row_id=[f"{name}-de" for name in rows["row_id"][:20]],
        query=[f"farbe {query}" for query in rows["query"][:20]],
        origin="translation",
        source_id=rows["row_id"][:20],
    )
    both = make_rows({name: [*rows[name], *made[name]] for name in COLUMNS})
    alone, _ = run(tmp_path / "a", stage.neighbours, rows)
    found, _ = run(tmp_path / "b", stage.neighbours, both)
    np.testing.assert_array_equal(found["train"]["vote"][:120], alone["train"]["vote"])
    # Nor does the query that a row was made from vote on it.
    asked = both["group"] == both["group"][0]
    turned = both.assign(label=both["label"].where(~asked, 1 - both["label"]))
    after, _ = run(tmp_path / "c", stage.neighbours, turned)
    same = (after["train"]["vote"] == found["train"]["vote"])[120:]
    assert same[:2].all() and not same.all()


def test_the_filter_finds_labels_that_their_neighbours_contradict(tmp_path):
    rows = training()
    wrong = rows["row_id"].isin(["train-7", "train-50", "train-91"])
    turned = rows.assign(label=rows["label"].where(~wrong, 1 - rows["label"]))
    _, made = run(tmp_path, stage.neighbours, turned)
    inputs = {"rows": Artifact(tmp_path / "ingest", StageRecord()), "neighbours": Artifact(made, StageRecord())}
    (tmp_path / "filter").mkdir()
    rules = FilterSettings(enabled=True, scores="neighbours", disagreement_below=0.5, max_share=0.025)
    filter_rows(make_job(tmp_path, inputs=inputs, settings=Settings(filter=rules), out=tmp_path / "filter"))
    suspects = [json.loads(line) for line in (tmp_path / "filter" / "suspects.jsonl").read_text().splitlines()]
    assert [suspect["row_id"] for suspect in suspects] == ["train-50", "train-7", "train-91"]
    assert len(load_table(tmp_path / "filter" / "scores.parquet")) == 120


def test_both_stages_write_the_same_bytes_twice(tmp_path):
    for name in ("neighbours", "features"):
        outs = [
            run(tmp_path / f"{name}{turn}", getattr(stage, name), training(), dev=training().assign(label=None))[1]
            for turn in (0, 1)
        ]
        for path in outs[0].iterdir():
            assert path.read_bytes() == (outs[1] / path.name).read_bytes()
        assert {path.stem for path in outs[0].iterdir()} == {"train", "dev"}


def test_a_later_round_lets_only_what_is_left_vote(tmp_path):
    rows = training()
    left = tmp_path / "left"
    left.mkdir()
    # Turned where the label was 0, so that every voter says yes.
    save_rows(rows[30:].assign(label=1), left / "rows.parquet")
    with pytest.raises(UserError, match="both labels"):
        run(tmp_path / "a", stage.neighbours, rows, filter=Artifact(left, StageRecord()))
    save_rows(rows[30:], left / "rows.parquet")
    found, _ = run(tmp_path / "b", stage.neighbours, rows, filter=Artifact(left, StageRecord()))
    assert len(found["train"]) == 120
    every, _ = run(tmp_path / "c", stage.neighbours, rows)
    assert (found["train"]["vote"] != every["train"]["vote"]).any()


def test_share_of_the_querys_trigrams():
    rows = training(rows=4)
    grams = Trigrams.of(rows)
    np.testing.assert_allclose(grams.shared(rows.assign(target=rows["query"])), 1)
    assert grams.shared(rows.assign(target="xyz", query=[*rows["query"][:3], ""])).tolist() == [0] * 4
    plural = pairs(["door handles"] * 2, ["handle for a door", "doorknob"])
    near, far = Trigrams.of(plural).shared(plural)
    assert 1 > near > far > 0


def pairs(query, target):
    return training(rows=len(query)).assign(query=query, target=target)


@pytest.mark.parametrize(
    ("query", "target", "share"),
    [
        ("2 in. pipe", "1/2 in. pipe", 1),
        ("20x25 filter", "20 in. x 30 in.", 0.5),
        ("pipe", "2 in.", 1),
        ("３ a", "3", 1),
    ],
)
def test_share_of_the_querys_numbers(query, target, share):
    assert shared_numbers(query, target) == share


@pytest.mark.parametrize(
    ("query", "target", "named"),
    [("oak doors", "Door, Oak", 1), ("oak door", "oak table", 0), ("", "door", 0), ("a tv", "TV stand", 1)],
)
def test_whether_the_last_word_is_named(query, target, named):
    assert names_last_word(query, target) == named


@pytest.mark.parametrize(
    ("query", "target", "missing"),
    [
        ("oak door", "door, oak", None),
        ("oak doors", "door", "oak"),
        ("pine oak door", "door", "pine"),
        ("", "door", None),
    ],
)
def test_rarity_of_the_rarest_missing_word(query, target, missing):
    rarity = Rarity.of(pairs(["x"] * 4, ["oak door", "oak table", "oak, oak", "pine"]))
    holding = {"oak": 3, "pine": 1}
    expected = np.log(5 / (holding[missing] + 0.5)) if missing else 0
    assert rarity.missing(query, target) == pytest.approx(expected)


def test_words_of_any_script():
    assert words("ＯＡＫ door-handle, 3/4") == ["oak", "door", "handle", "3", "4"]
    assert words("قفل باب") == ["قفل", "باب"]


def test_a_title_is_compared_with_those_of_its_query_in_the_same_file(tmp_path):
    """Three titles for one query: the one that names no lamp is behind, and unlike the others."""
    rows = pairs(["red lamp"] * 3 + ["drill"], ["red lamp", "blue lamp", "chair", "drill"])
    rows = rows.assign(task="QI", group=rows["query"])
    found = run(tmp_path, stage.features, rows, dev=rows[2:].assign(label=None))[0]
    behind, alike = found["train"]["behind_best"], found["train"]["typical"]
    assert behind[0] == behind[3] == 0 and behind[2] < behind[1] < 0
    assert alike[2] < alike[:2].min() and alike[3] == pytest.approx(1)
    assert found["dev"]["behind_best"].tolist() == [0, 0]
    np.testing.assert_allclose(found["dev"]["typical"], 1)


def test_a_path_is_compared_with_all_paths_of_the_training_rows(tmp_path):
    rows = training().assign(target=lambda rows: rows["target"].str.replace(",", " "))
    unseen = rows[:2].assign(row_id=["dev-1", "dev-2"], target=["home sofa", "home lamp"], label=None)
    found = run(tmp_path, stage.features, rows, dev=unseen)[0]
    right = rows["label"] == 1
    np.testing.assert_allclose(found["train"]["behind_best"][right], 0, atol=1e-6)
    assert (found["train"]["behind_best"][~right] < 0).all()
    assert found["dev"]["behind_best"][0] < found["dev"]["behind_best"][1] == 0


def test_what_paths_and_titles_have_of_their_own(tmp_path):
    paths, _ = run(tmp_path / "qc", stage.features, training())
    titles, _ = run(tmp_path / "qi", stage.features, training().assign(task="QI"))
    assert set(paths["train"]) - set(titles["train"]) == {"leaf_cosine"}
    assert set(titles["train"]) - set(paths["train"]) == {"typical"}
    offered = {"row_id", *get_args(StackFeature)} - {"model", "neighbours", "bi_encoder", "density"}
    assert set(paths["train"]) | set(titles["train"]) == offered
    right = training()["label"] == 1
    assert paths["train"]["leaf_cosine"][right].min() > paths["train"]["leaf_cosine"][~right].max()


def test_votes_are_made_only_where_something_asks_for_them():
    def titles(*overrides):
        return {node.title: node for node in pipeline.build(load_settings(SAMPLE, ["tasks=[QC]", *overrides]))}

    own = {"neighbours-QC", "features-QC", "neighbours-QC-filter"}
    assert not own & set(titles())
    stacked = titles("ensemble.method=stack")
    assert own & set(stacked) == {"neighbours-QC", "features-QC"}
    assert {"neighbours", "features", "train-fold0"} <= set(stacked["ensemble-QC"].inputs)
    judged = titles("QC.filter.enabled=true", "QC.filter.scores=neighbours", "QC.filter.rounds=2")
    assert "filter_model-QC-fold0" not in judged and set(judged["filter-QC"].inputs) == {"rows", "neighbours"}
    assert set(judged["neighbours-QC-filter-round2"].inputs) == {"rows", "filter"}
