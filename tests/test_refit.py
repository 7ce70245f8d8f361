"""One more model, trained on all rows: what it is trained on, how it scores beside the folds' models or instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_ensemble import World, settings
from test_start import artifact, rows_of
from tiny_runs import ROOT, TINY, make_job, places

from analyticup import pipeline
from analyticup.__main__ import main
from analyticup.corpus.tables import FOLDS, load_table, save_table
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.engine.graph import Part
from analyticup.ensembling.combine import combine, combine_ranks, combine_weighted, fold_weights
from analyticup.metrics import sigmoid
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import Settings
from analyticup.training import stage as training

SAMPLE = ROOT / "configs" / "sample.yaml"
ALL = np.linspace(-3, 3, 20)


def graph(*given: str) -> dict[str, pipeline.Node]:
    nodes = pipeline.build(load_settings(SAMPLE, ["model.backbone=random:qwen3", *given]))
    found = {node.title: node for node in nodes}
    assert len(found) == len(nodes)
    return found


@pytest.mark.parametrize("mode", ["beside", "instead"])
def test_it_adds_a_model_and_changes_no_other_and_no_threshold(mode: str) -> None:
    off, on = graph(), graph(f"train.refit={mode}")
    predicted = {f"predict-{task}-fold{n}" for task in ("QC", "QI") for n in (0, 1)}
    new = {f"{name}-{task}-all" for task in ("QC", "QI") for name in ("train", "predict")}
    assert set(on) - set(off) == new and set(off) - set(on) == (predicted if mode == "instead" else set())
    changed = {title for title in on if title in off and on[title].identity != off[title].identity}
    assert changed == {"ensemble-QC", "ensemble-QI", "submit-all", "report-all"}
    whole, fold = on["train-QC-all"], on["train-QC-fold0"]
    assert whole.inputs == fold.inputs and whole.decides == fold.decides
    folds = {"predict-fold0", "predict-fold1"} if mode == "beside" else set()
    assert set(on["ensemble-QC"].inputs) == {"rows", "predict-all", *folds}


def test_it_has_a_start_and_a_teacher_of_its_own() -> None:
    nodes = graph("train.refit=instead", "train.start_from=other_task", "train.distil=0.5")
    given = {name: node.title for name, node in nodes["train-QC-all"].inputs.items()}
    assert given["start"] == "pretrain-QI-before-QC" and given["teacher"] == "teach-QC-all"
    assert nodes["teach-QC-all"].inputs["start"].title == "pretrain-QI-before-QC"


def test_it_is_trained_on_all_rows_and_scores_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = rows_of(("train-1", "en", "bag", 1), ("train-2", "en", "shoe", 0), ("train-2/t-de", "de", "schuh", 0))
    other = rows_of(("train-1", "en", "bag", 1), ("train-2", "en", "pen", 0))
    save_table({"row_id": own["row_id"].tolist(), "fold": [0, 1, 1]}, tmp_path / FOLDS)
    rows, folds = artifact(tmp_path / "own", rows=own), Artifact(tmp_path, StageRecord())
    seen = []

    def note(job, rows, held_out, purpose, check=True):
        seen.append((purpose, rows["row_id"].tolist(), held_out["row_id"].tolist()))
        return {}

    monkeypatch.setattr(training, "train_adapter", note)
    whole = {"settings": Settings(), "part": Part(purpose="all")}
    training.train(make_job(tmp_path, inputs={"rows": rows, "folds": folds}, **whole))
    training.teach(make_job(tmp_path, inputs={"rows": rows, "folds": folds}, **whole))
    given = {"rows": artifact(tmp_path / "other", train=other), "other_rows": rows, "folds": folds}
    training.pretrain(make_job(tmp_path, inputs=given, **whole))
    every = own["row_id"].tolist()
    assert seen == [("train", every, []), ("teach", every, every), ("pretrain", ["train-1", "train-2"], [])]


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.inputs["predict-all"] = made._folder("predictall")
    made.save_dev("all", ALL)
    return made


def scores(world: World, method: str, mode: str) -> np.ndarray:
    chosen, table, _, _ = world.run(settings(method).replace(**{"train.refit": mode}))
    np.testing.assert_allclose(table["score_all"], sigmoid(ALL))
    assert ("score_fold0" in table) == (mode == "beside")
    assert chosen["value"] == world.run(settings(method))[0]["value"]
    return table["score"].to_numpy()


def test_beside_the_folds_it_is_one_model_more(world: World) -> None:
    margins, parts = np.column_stack([world.dev, ALL]), [world.fold == 0, world.fold == 1, world.fold >= 0]
    np.testing.assert_allclose(scores(world, "mean_logit", "beside"), combine(margins, "mean_logit"))
    known = [world.margins[own] for own in parts]
    np.testing.assert_allclose(scores(world, "rank", "beside"), combine_ranks(margins, known))
    weights = fold_weights([world.labels[own] for own in parts], known)
    assert (weights > 0).all()
    np.testing.assert_allclose(scores(world, "weights", "beside"), combine_weighted(margins, weights))
    assert set(np.round(3 * scores(world, "vote", "beside"), 6)) <= {0, 1, 2, 3}


@pytest.mark.parametrize("method", ["mean_logit", "mean_probability", "weights"])
def test_instead_of_the_folds_its_score_is_the_score(world: World, method: str) -> None:
    np.testing.assert_allclose(scores(world, method, "instead"), sigmoid(ALL))


def test_its_rank_is_among_the_rows_of_all_folds(world: World) -> None:
    np.testing.assert_allclose(scores(world, "rank", "instead"), combine_ranks(ALL[:, None], [world.margins]))


@pytest.mark.slow
def test_a_run_its_bundle_and_what_is_regenerated_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["tasks=[QC]", "translate.enabled=false", "QC.negatives.enabled=false", "train.refit=instead"]
    given = [*TINY, *few, *places(tmp_path), "data.sample.train_queries=26", "data.sample.dev_queries=13"]
    config = ["--config", str(SAMPLE)]
    assert main(["run", *config, *given]) == 0 and main(["run", *config, *given]) == 0
    assert ": running" not in capsys.readouterr().out.rpartition("[1/")[2]
    made = tmp_path / "submissions" / "sample"
    assert list(load_table(made / "scores_QC.parquet")) == ["id", "language", "score_all", "score", "prediction"]
    assert main(["bundle", str(made)]) == 0
    assert (tmp_path / "submissions" / "sample-bundle" / "stages" / "train-QC-all").is_dir()
    for depth in ("decide", "predict"):
        shutil.rmtree(tmp_path / "artifacts", ignore_errors=True)
        bundle = str(tmp_path / "submissions" / "sample-bundle")
        assert main(["regenerate", bundle, "--depth", depth, *places(tmp_path)]) == 0
        again = tmp_path / "submissions" / f"sample-{depth}"
        assert (again / "submit_QC.txt").read_bytes() == (made / "submit_QC.txt").read_bytes()
        assert json.loads((again / "comparison.json").read_text())["changed"] == []
