"""Ensembles: the arithmetic of each method, and the stages that use it, on hand-made scores of two folds."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from sklearn.preprocessing import StandardScaler
from tiny_runs import make_job

from analyticup import pipeline
from analyticup.corpus.rows import make_rows, save_rows
from analyticup.corpus.tables import load_table, save_table
from analyticup.engine import graph
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.engine.job import Job
from analyticup.ensembling import stage as ensembling
from analyticup.ensembling.combine import (
    combine,
    combine_ranks,
    combine_votes,
    combine_weighted,
    fold_weights,
    out_of_fold_scores,
    rank_among,
)
from analyticup.ensembling.stack import cross_fitted, fit_stack, for_means, stack_scores
from analyticup.ensembling.threshold import Choice
from analyticup.errors import CheckFailed, UserError
from analyticup.metrics import sigmoid
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import EnsembleSettings, Settings, ThresholdSettings
from analyticup.submission import stage as submission

pytestmark = pytest.mark.arithmetic

SAMPLE = Path(__file__).resolve().parents[1] / "configs" / "sample.yaml"
RANDOM = np.random.default_rng(5)
MARGINS = RANDOM.normal(0.3, 2, (40, 3)).round(1)
REFERENCES = [RANDOM.normal(0, 2, size).round(1) for size in (30, 50, 7)]


def test_means_of_logits_and_of_probabilities():
    margins = np.array([[0.0, 2.0], [-3.0, 3.0]])
    np.testing.assert_allclose(combine(margins, "mean_logit"), [1 / (1 + np.exp(-1)), 0.5])
    np.testing.assert_allclose(combine(margins, "mean_probability"), [(0.5 + 1 / (1 + np.exp(-2))) / 2, 0.5])


def test_ranks_of_the_reference_itself_are_its_ranks_with_ties_averaged():
    reference = np.array([3.0, 1.0, 1.0, -2.0, 3.0, 3.0])
    np.testing.assert_allclose(rank_among(reference, reference), (rankdata(reference) - 0.5) / 6)
    assert rank_among(np.array([-9.0, 9.0]), reference).tolist() == [0.0, 1.0]


def test_ranks_need_a_reference():
    with pytest.raises(ValueError, match="one reference row"):
        rank_among(np.array([1.0]), np.array([]))


def test_a_rank_does_not_depend_on_what_else_is_scored():
    together = combine_ranks(MARGINS, REFERENCES)
    np.testing.assert_array_equal(combine_ranks(MARGINS[:3], REFERENCES), together[:3])
    assert together.min() >= 0 and together.max() <= 1 and len(set(together)) > 10


def test_ranks_forget_the_scale_of_a_folds_logits():
    scale = np.array([1.0, 8.0, 0.25])
    stretched = combine_ranks(MARGINS * scale, [own * by for own, by in zip(REFERENCES, scale, strict=True)])
    np.testing.assert_array_equal(stretched, combine_ranks(MARGINS, REFERENCES))
    assert not np.allclose(combine(MARGINS * scale, "mean_logit"), combine(MARGINS, "mean_logit"))


def test_a_fold_that_scores_new_rows_decides_them_as_it_did_the_same_margins_out_of_fold():
    """What carries a threshold over from out-of-fold ranks to new rows."""
    reference = REFERENCES[0]
    told = out_of_fold_scores(reference, np.zeros(len(reference)), "rank")
    for threshold in (0.1, 0.35, 0.5, 0.9):
        lowest_yes = reference[told >= threshold].min()
        yes = combine_ranks(MARGINS[:, :1], [reference]) >= threshold
        assert yes[MARGINS[:, 0] >= lowest_yes].all()
        highest_no = reference[told < threshold].max()
        assert not yes[MARGINS[:, 0] <= highest_no].any()


def test_out_of_fold_ranks_are_made_within_each_fold():
    margins, folds = np.array([5.0, 6.0, -1.0, -2.0]), np.array(["fold0", "fold0", "fold1", "fold1"])
    assert out_of_fold_scores(margins, folds, "rank").tolist() == [0.25, 0.75, 0.75, 0.25]
    for method in ("mean_logit", "mean_probability", "vote", "weights"):
        np.testing.assert_array_equal(out_of_fold_scores(margins, folds, method), sigmoid(margins))


def test_votes_count_folds_at_or_above_the_rows_own_threshold():
    margins = np.array([[0.0, -1.0, -2.0, 3.0], [0.0, -1.0, -2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    choice = Choice(value=0.5, by_language={"ja": {"value": 0.6, "best": 0.6, "rows": 9}})
    assert combine_votes(margins, ["en", "ja", "fr"], choice).tolist() == [0.5, 0.25, 1.0]


def test_an_unknown_method_is_refused_and_not_taken_for_a_mean():
    with pytest.raises(ValueError, match="'mean_logits' is not a mean of the folds' scores"):
        combine(MARGINS, "mean_logits")


@pytest.mark.parametrize("seed", range(20))
def test_weights_are_a_mixture_whatever_the_scores(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 30, random.integers(2, 7))
    labels = [random.integers(0, 2, size) for size in sizes]
    margins = [random.normal(random.normal() * truth, 1).round(1) for truth in labels]
    weights = fold_weights(labels, margins)
    assert weights.shape == sizes.shape and (weights >= 0).all() and weights.sum() == pytest.approx(1)
    orders = [random.permutation(size) for size in sizes]
    shuffled = [[part[order] for part, order in zip(parts, orders, strict=True)] for parts in (labels, margins)]
    np.testing.assert_array_equal(fold_weights(*shuffled), weights)


TRUTH = np.array([0, 0, 1, 1])
PERFECT, GOOD, CHANCE, REVERSED = (np.array(own) for own in ([1, 2, 3, 4], [1, 3, 2, 4], [1, 1, 1, 1], [4, 3, 2, 1]))


@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ([GOOD, GOOD, GOOD], [1 / 3, 1 / 3, 1 / 3]),
        ([PERFECT, GOOD], [2 / 3, 1 / 3]),
        ([PERFECT, CHANCE], [1, 0]),
        ([PERFECT, REVERSED, PERFECT], [0.5, 0, 0.5]),
        ([CHANCE, CHANCE], [0.5, 0.5]),
        ([CHANCE, REVERSED], [0.5, 0.5]),
    ],
)
def test_a_folds_weight_is_its_area_above_chance(margins, expected):
    np.testing.assert_allclose(fold_weights([TRUTH] * len(margins), margins), expected)


def test_a_fold_of_one_class_counts_as_the_average_fold():
    found = fold_weights([TRUTH, TRUTH, np.ones(4)], [PERFECT, GOOD, GOOD])
    np.testing.assert_allclose(found, np.array([0.5, 0.25, 0.375]) / 1.125)
    np.testing.assert_allclose(fold_weights([np.ones(4), np.zeros(4)], [GOOD, GOOD]), [0.5, 0.5])


def test_equal_weights_give_the_mean_logit_and_one_weight_that_fold():
    np.testing.assert_allclose(combine_weighted(MARGINS, np.full(3, 1 / 3)), combine(MARGINS, "mean_logit"))
    np.testing.assert_allclose(combine_weighted(MARGINS, np.array([0, 1, 0])), sigmoid(MARGINS[:, 1]))


class World:
    """The folders of the stages before, for QC: 60 training rows in two folds, 20 dev rows; fold 1 knows little."""

    def __init__(self, root: Path) -> None:
        self.root = root
        random = np.random.default_rng(3)
        self.languages = np.array(["en", "fr", "ja"])[random.integers(0, 3, 60)]
        self.labels, self.fold = random.integers(0, 2, 60), np.arange(60) % 2
        self.margins = random.normal(self.labels * np.where(self.fold == 0, 4.0, 0.4) - 0.5, 1.5)
        self.dev = random.normal(0, 2, (20, 2))
        self.dev_languages = np.array(["en", "ja", "de", "fr"])[random.integers(0, 4, 20)]
        self.inputs = {"rows": self._folder("ingest")}
        save_rows(self._rows("train", self.languages, self.labels), root / "ingest" / "train.parquet")
        save_rows(self._rows("dev", self.dev_languages, [None] * 20), root / "ingest" / "dev.parquet")
        for part in (0, 1):
            self.inputs[f"train-fold{part}"] = self._folder(f"train{part}")
            # Held-out rows in another order than the training rows.
            own = random.permutation(np.flatnonzero(self.fold == part))
            columns = {"row_id": [f"train-{i + 1}" for i in own], "margin": self.margins[own]}
            save_table(columns, root / f"train{part}" / "held_out.parquet")
            self.inputs[f"predict-fold{part}"] = self._folder(f"predict{part}")
            self.save_dev(part, self.dev[:, part])

    def add_features(self) -> None:
        """What `stack` also reads: a vote that knows something, and one column of features."""
        random = np.random.default_rng(7)
        for name in ("neighbours", "features"):
            self.inputs[name] = self._folder(name)
        for split, known in (("train", self.labels), ("dev", np.arange(20) % 2)):
            ids = [f"{split}-{i + 1}" for i in range(len(known))]
            votes = {"vote": known, "margin": random.normal(known, 1.0), "density": random.normal(size=len(known))}
            save_table({"row_id": ids, **votes}, self.root / "neighbours" / f"{split}.parquet")
            cosines = {"row_id": ids, "cosine": random.normal(size=len(known))}
            save_table(cosines, self.root / "features" / f"{split}.parquet")

    def save_dev(self, part: int, margins: np.ndarray) -> None:
        ids = [f"dev-{i + 1}" for i in range(20)]
        save_table({"row_id": ids, "margin": margins}, self.root / f"predict{part}" / "dev.parquet")

    def _folder(self, name: str) -> Artifact:
        (self.root / name).mkdir()
        return Artifact(self.root / name, StageRecord())

    def _rows(self, split: str, languages, labels):
        names = [f"{split}-{i + 1}" for i in range(len(languages))]
        constant = {"task": "QC", "query": "lamp", "target": "home", "origin": "original", "group": "lamp"}
        columns = {"row_id": names, "source_id": names, "language": list(languages), "label": list(labels)}
        return make_rows({**columns, **{name: [value] * len(names) for name, value in constant.items()}})

    def job(self, name: str, settings: Settings, **inputs: Artifact) -> Job:
        out = self.root / name
        out.mkdir(exist_ok=True)
        source = self.root / "dev_QC.txt"
        fields = {"task": "QC", "origin_query": "lamp", "category_path": "home"}
        lines = [{"id": i + 1, "language": str(language), **fields} for i, language in enumerate(self.dev_languages)]
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        made = {"inputs": {**self.inputs, **inputs}, "out": out, "files": {source.name: source}}
        return make_job(self.root, settings=settings, **made)

    def run(self, settings: Settings):
        """threshold.json, the scores of dev with their predictions, and the counts of ensemble and submit."""
        ensembling.threshold(self.job("threshold", settings))
        threshold = Artifact(self.root / "threshold", StageRecord())
        counts = ensembling.ensemble(self.job("ensemble", settings, threshold=threshold))
        ends = {"threshold-QC": threshold, "ensemble-QC": Artifact(self.root / "ensemble", StageRecord())}
        _, submitted = submission._submit_task(self.job("submit", settings, **ends), "QC", "dev")
        chosen = json.loads((self.root / "threshold" / "threshold.json").read_text())
        return chosen, load_table(self.root / "submit" / "dev" / "scores_QC.parquet"), counts, submitted


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def settings(method: str, stack_features=("model", "neighbours", "cosine"), **threshold) -> Settings:
    ensemble = EnsembleSettings(method=method, stack_features=list(stack_features))
    return Settings(ensemble=ensemble, threshold=ThresholdSettings(**threshold))


def test_weights_are_fitted_on_each_folds_own_rows_and_recorded(world):
    _, table, counts, _ = world.run(settings("weights"))
    parts = [world.fold == 0, world.fold == 1]
    weights = fold_weights([world.labels[own] for own in parts], [world.margins[own] for own in parts])
    assert counts["weights"] == {"fold0": weights[0], "fold1": weights[1]} and weights[0] > 2 * weights[1] > 0
    np.testing.assert_allclose(table["score"], sigmoid(world.dev @ weights))


def test_ranks_and_their_threshold_are_on_one_scale(world):
    chosen, table, _, _ = world.run(settings("rank"))
    references = [world.margins[world.fold == part] for part in (0, 1)]
    np.testing.assert_allclose(table["score"], combine_ranks(world.dev, references))
    assert (table["prediction"] == (table["score"] >= chosen["value"])).all()
    kept = load_table(world.root / "threshold" / "out_of_fold.parquet")
    np.testing.assert_allclose(kept["score"], out_of_fold_scores(world.margins, world.fold, "rank"))
    assert chosen["scores"] == "rank" and kept["fold"].tolist() == [f"fold{part}" for part in world.fold]
    at_half = world.run(settings("mean_logit"))[0]["out_of_fold_at_half"]
    assert chosen["out_of_fold_at_half"]["f1"] == at_half["f1"]


def test_a_vote_is_taken_at_the_tasks_threshold_and_a_tie_is_a_yes(world):
    chosen, table, _, _ = world.run(settings("vote", mode="fixed", value=0.6))
    assert chosen["value"] == 0.6
    yes = sigmoid(world.dev) >= 0.6
    assert (table["score"] == yes.mean(axis=1)).all() and (table["score"] == 0.5).any()
    assert (table["prediction"] == yes.any(axis=1)).all()


@pytest.mark.parametrize("method", ["mean_logit", "rank", "vote"])
def test_beside_a_fixed_threshold_the_swept_one_has_its_submission_too(world, method):
    swept = world.run(settings(method))[0]["value"]
    chosen, table, _, submitted = world.run(settings(method, mode="fixed", value=0.9))
    given = {"threshold-QC": "threshold", "ensemble-QC": "ensemble"}
    ends = {name: Artifact(world.root / folder, StageRecord()) for name, folder in given.items()}
    job = world.job("whole", settings(method, mode="fixed", value=0.9), **ends)
    counts = submission.submit(job)["dev"]["QC"]
    names = {path.name for path in job.out.rglob("*")}
    if method == "vote":
        # Its folds were compared with the fixed one.
        assert "submit-swept.zip" not in names and counts == submitted
        return
    yes = (table["score"] >= swept).astype(int)
    assert chosen["value"] == 0.9 and (table["prediction"] != yes).any()
    assert counts == {**submitted, "swept": {"threshold": swept, "positive": yes.sum()}}
    assert names == {"dev", "submit_QC.txt", "scores_QC.parquet", "submit.zip", "submit-swept.zip"}
    for name, said in (("submit.zip", table["prediction"]), ("submit-swept.zip", yes)):
        with zipfile.ZipFile(job.out / "dev" / name) as archive:
            lines = archive.read("submit_QC.txt").decode().splitlines()
        assert [json.loads(line)["prediction"] for line in lines] == said.tolist()


def stacked(world, names=("model", "neighbours", "cosine")):
    """Features of the training rows and of dev as the stack sees them, made by hand."""
    tables = []
    for split, margins in (("train", world.margins), ("dev", world.dev.mean(axis=1))):
        known = {
            "model": margins,
            "neighbours": load_table(world.root / "neighbours" / f"{split}.parquet")["margin"],
            "cosine": load_table(world.root / "features" / f"{split}.parquet")["cosine"],
        }
        tables.append(np.column_stack([known[name] for name in names]))
    return tables


def regression(features, labels, spread=0.0):
    """The fitted model, and its probabilities of features of which a mean's vary less by `spread` [features]."""
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    model = LogisticRegression().fit(scaled, labels)
    covariance = np.cov(scaled.T)
    less = np.minimum(
        np.diag(np.broadcast_to(spread, len(covariance)) / scaler.var_),
        0.5 * np.diag(1 / np.diag(np.linalg.inv(covariance))),
    )
    weights = np.linalg.solve(covariance - less, covariance @ model.coef_[0])
    return model, lambda new: sigmoid(scaler.transform(new) @ weights + model.intercept_[0])


def test_a_stack_is_fitted_on_out_of_fold_rows_and_its_threshold_on_scores_of_rows_it_never_saw(world):
    world.add_features()
    names = ["model", "neighbours", "cosine", "leaf_cosine"]
    chosen, table, counts, _ = world.run(settings("stack", stack_features=names))
    training, dev = stacked(world)
    model, predict = regression(training, world.labels, [world.dev.var(axis=1).mean(), 0, 0])
    np.testing.assert_allclose(table["score"], predict(dev))
    # A feature that the task lacks is left out.
    assert list(counts["coefficients"]) == ["model", "neighbours", "cosine", "intercept"]
    np.testing.assert_allclose(list(counts["coefficients"].values()), [*model.coef_[0], model.intercept_[0]])
    kept = load_table(world.root / "threshold" / "out_of_fold.parquet")["score"].to_numpy()
    for part in (0, 1):
        own = world.fold == part
        np.testing.assert_allclose(kept[own], regression(training[~own], world.labels[~own])[1](training[own]))
    assert chosen["scores"] == "probability" and chosen["out_of_fold_at_half"]["f1"] == pytest.approx(
        f1_score(world.labels, kept >= 0.5)
    )


def test_a_stack_reads_a_bi_encoder_out_of_fold_and_on_dev_the_mean_of_its_folds(world):
    world.add_features()
    random = np.random.default_rng(5)
    known, seen = random.normal(world.labels, 1.0), random.normal(size=(20, 2))
    for part in (0, 1):
        name = f"bi_encoder-fold{part}"
        world.inputs[name] = world._folder(name)
        own = random.permutation(np.flatnonzero(world.fold == part))
        save_table(
            {"row_id": [f"train-{i + 1}" for i in own], "margin": known[own]}, world.root / name / "held_out.parquet"
        )
        save_table(
            {"row_id": [f"dev-{i + 1}" for i in range(20)], "margin": seen[:, part]}, world.root / name / "dev.parquet"
        )
    _, table, counts, _ = world.run(settings("stack", stack_features=["model", "bi_encoder"]))
    spread = [world.dev.var(axis=1).mean(), seen.var(axis=1).mean()]
    _, predict = regression(np.column_stack([world.margins, known]), world.labels, spread)
    np.testing.assert_allclose(table["score"], predict(np.column_stack([world.dev.mean(axis=1), seen.mean(axis=1)])))
    assert list(counts["coefficients"]) == ["model", "bi_encoder", "intercept"]
    save_table({"row_id": ["dev-1"], "margin": [0.0]}, world.root / "bi_encoder-fold0" / "dev.parquet")
    with pytest.raises(CheckFailed, match="the bi-encoder's scores of dev are not of its rows; delete their folder"):
        world.run(settings("stack", stack_features=["model", "bi_encoder"]))


def test_a_stack_refuses_features_of_other_rows_and_rows_of_one_label(world):
    world.add_features()
    path = world.root / "features" / "dev.parquet"
    kept = load_table(path)
    save_table({name: kept[name].to_numpy()[::-1] for name in kept}, path)
    with pytest.raises(CheckFailed, match="features of dev are not of its rows"):
        world.run(settings("stack"))
    with pytest.raises(UserError, match="all rows outside fold0 have one label"):
        cross_fitted(kept[["cosine"]], np.array([0, 1] * 5 + [1] * 10), np.array(["fold0"] * 10 + ["fold1"] * 10))


@pytest.mark.parametrize("method", ["mean_logit", "vote"])
def test_the_language_of_a_row_picks_its_threshold(world, method):
    chosen, table, _, submitted = world.run(settings(method, per_language=True, shrinkage_rows=5))
    values = {language: entry["value"] for language, entry in chosen["by_language"].items()}
    assert set(values) == {"en", "fr", "ja"} and len(set(values.values())) > 1
    assert submitted["by language"] == values
    cuts = np.array([values.get(language, chosen["value"]) for language in world.dev_languages])
    if method == "vote":
        expected = (sigmoid(world.dev) >= cuts[:, None]).mean(axis=1) >= 0.5
    else:
        expected = combine(world.dev, method) >= cuts
        assert (expected != (combine(world.dev, method) >= chosen["value"])).any()
    assert (table["prediction"] == expected).all()


@pytest.mark.parametrize("method", ["mean_logit", "stack"])
def test_the_threshold_never_reads_dev_and_its_scores(world, method):
    world.add_features()
    wanted = settings(method, per_language=True)
    before = world.run(wanted)[0]
    for path in world.root.glob("[!toe]*/dev.parquet"):
        path.write_bytes(b"")
    ensembling.threshold(world.job("again", wanted))
    assert json.loads((world.root / "again" / "threshold.json").read_text()) == before


@pytest.mark.parametrize("method", ["mean_logit", "rank", "vote", "weights", "stack"])
def test_a_score_that_is_no_number_stops_the_ensemble(world, method):
    world.add_features()
    world.save_dev(1, np.where(np.arange(20) == 7, np.nan, world.dev[:, 1]))
    with pytest.raises(CheckFailed, match="not finite"):
        world.run(settings(method))


def built(*overrides: str) -> dict[str, graph.Node]:
    return {node.title: node for node in pipeline.build(load_settings(SAMPLE, ["tasks=[QC]", "folds.n=2", *overrides]))}


def test_an_ensemble_depends_on_out_of_fold_rows_only_where_its_method_uses_them():
    folds = {"predict-fold0", "predict-fold1"}
    expected = {
        "mean_logit": folds,
        "mean_probability": folds,
        "rank": {*folds, "train-fold0", "train-fold1"},
        "weights": {*folds, "train-fold0", "train-fold1"},
        "vote": {*folds, "threshold"},
        "stack": {*folds, "train-fold0", "train-fold1", "neighbours", "features"},
    }
    for method, inputs in expected.items():
        nodes = built(f"ensemble.method={method}")
        assert set(nodes["ensemble-QC"].inputs) - {"rows"} == inputs
        # An input must have run before.
        order = list(nodes)
        for title, node in nodes.items():
            assert all(order.index(other.title) < order.index(title) for other in node.inputs.values())


def test_which_settings_change_which_stage():
    before = built()
    for override, changed in {
        "ensemble.method=weights": {"ensemble-QC", "submit-all", "report-all"},
        "ensemble.method=rank": {"ensemble-QC", "threshold-QC", "submit-all", "report-all"},
        "ensemble.stack_features=[model]": set(),
        "threshold.per_language=true": {"threshold-QC", "submit-all", "report-all"},
    }.items():
        after = built(override)
        assert {title for title in after if after[title].identity != before[title].identity} == changed


def test_a_mean_over_models_gets_the_weight_that_a_regression_on_means_would_give_it():
    random = np.random.default_rng(0)

    def drawn(models):
        """Margins of some models that have a signal in common, a feature that knows some of it, and labels."""
        signal = random.normal(0, 1, 40_000)
        margins = signal[:, None] + random.normal(0, 0.75, (len(signal), models))
        cosine = 0.02 * signal + random.normal(0, 0.1, len(signal))
        labels = (random.random(len(signal)) < sigmoid(signal + 5 * cosine - 0.5)).astype(int)
        spread = {"model": float(margins.var(axis=1).mean())}
        return pd.DataFrame({"model": margins.mean(axis=1), "cosine": cosine}), labels, spread

    def raw(pipeline):
        return pipeline[-1].coef_[0] / pipeline[0].scale_

    (one, one_labels, none), (means, labels, spread) = drawn(1), drawn(4)
    fitted = fit_stack(one, one_labels)
    assert none == {"model": 0} and np.allclose(raw(for_means(fitted, one, none)), raw(fitted))
    adjusted, ideal = for_means(fitted, one, spread), fit_stack(means, labels)
    np.testing.assert_allclose(raw(adjusted), raw(ideal), rtol=0.15)
    assert raw(adjusted)[0] > 1.2 * raw(fitted)[0]
    losses = [log_loss(labels, stack_scores(pipeline, means)) for pipeline in (fitted, adjusted, ideal)]
    assert losses[0] - losses[1] > 10 * (losses[1] - losses[2]) > 0
    # A feature that never changes says nothing.
    still = for_means(fit_stack(one.assign(still=1.0), one_labels), one.assign(still=1.0), spread)
    np.testing.assert_allclose(raw(still)[:2], raw(adjusted), rtol=1e-6)
    # However far models are apart, a margin keeps some of its own.
    assert (raw(for_means(fitted, one, {"model": 1e9})) > 0).all()
