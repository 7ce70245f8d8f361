"""What a model reads and starts from: English pivots, and an adapter of the other task that knows no held-out query."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import ROOT, make_job

from analyticup import pipeline
from analyticup.augmentation import stage as augmentation
from analyticup.corpus.rows import make_rows, save_rows
from analyticup.corpus.tables import FOLDS, as_read, load_table, save_table
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.engine.graph import Part
from analyticup.errors import UserError
from analyticup.model.backbone import save_adapter
from analyticup.model.heads import CLASSES
from analyticup.model.objective import label_nll, two_way
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import ModelSettings, Settings
from analyticup.training import stage as training
from analyticup.training.fold import doubts, train_fold
from analyticup.training.source import Machine, ModelSource

SAMPLE = ROOT / "configs" / "sample.yaml"
TINY = Settings(model=ModelSettings(backbone="random:qwen3", head="classifier", dtype="float32"))


def rows_of(*given):
    """(row id, language, query, label) each."""
    ids, languages, queries, labels = zip(*given, strict=True)
    n = len(given)
    origins = ["translation" if "/" in row_id else "original" for row_id in ids]
    columns = {"row_id": ids, "language": languages, "query": queries, "label": labels, "origin": origins}
    return make_rows({**columns, "task": ["QC"] * n, "target": ["shoes"] * n, "source_id": [""] * n, "group": queries})


def artifact(folder, **tables):
    folder.mkdir()
    for name, rows in tables.items():
        save_rows(rows, folder / f"{name}.parquet")
    return Artifact(folder, StageRecord())


def test_a_pivot_is_the_query_and_its_english_translation(tmp_path):
    train = rows_of(
        ("train-1", "de", "rote maxikleid", 1), ("train-2", "en", "rote maxikleid", 0), ("train-3", "de", "x7", 1)
    )
    dev = rows_of(("dev-1", "es", "vestido largo", None))
    given = artifact(tmp_path / "ingest", train=train, dev=dev)
    job = make_job(
        tmp_path,
        settings=load_settings(SAMPLE, ["prompt.pivot=en"]),
        inputs={"rows": given, "ingest": given},
    )
    counts = augmentation.pivot(job)
    assert counts == {"asked": 3, "found": 2, "refused": {"no known phrase": 1}}
    made = {"pivot": Artifact(tmp_path, StageRecord())}
    assert as_read(train, made)["query"].tolist() == ["rote maxikleid - red maxi dress", "rote maxikleid", "x7"]
    assert as_read(dev, made)["query"].tolist() == ["vestido largo - maxi dress"]
    assert as_read(train, {}) is train


def test_a_fold_starts_from_rows_of_the_other_task_without_the_queries_it_holds_out(tmp_path, monkeypatch):
    own = rows_of(("train-1", "en", "bag", 1), ("train-2", "en", "shoe", 0), ("train-3", "en", "mug", 1))
    other = rows_of(("train-1", "en", "mug", 1), ("train-2", "en", "shoe", 0), ("train-3", "en", "pen", 1))
    inputs = {"rows": artifact(tmp_path / "other", train=other), "other_rows": artifact(tmp_path / "own", rows=own)}
    save_table({"row_id": own["row_id"].tolist(), "fold": [0, 0, 1]}, tmp_path / FOLDS)
    inputs["folds"] = Artifact(tmp_path, StageRecord())
    seen = {}
    monkeypatch.setattr(training, "train_adapter", lambda job, rows, held_out, purpose: seen.update(rows=rows) or {})
    for fold, queries in ((0, ["mug", "pen"]), (1, ["shoe", "pen"])):
        counts = training.pretrain(
            make_job(tmp_path, settings=Settings(), inputs=inputs, part=Part(fold, "before-QC"), task="QI")
        )
        assert seen["rows"]["query"].tolist() == queries
        assert counts == {"left out, as the fold holds out their query": 1}


def test_a_training_goes_on_from_the_adapter_that_it_starts_from(tmp_path):
    settings = TINY.replace(**{"train.lr": 0.0})
    source = ModelSource(settings, tmp_path, Machine("cpu", None))
    rows = rows_of(*((f"train-{n}", "en", f"query {n}", n % 2) for n in range(8)))
    trained, before = train_fold(rows, rows, TINY.replace(**{"train.lr": 1e-2}), source, 1, "first", None)
    save_adapter(trained, tmp_path, "random:qwen3")
    # At a learning rate of 0 a training is what it started from; another seed draws another head.
    _, same = train_fold(rows, rows, settings, source, 2, "second", None, None, tmp_path)
    _, fresh = train_fold(rows, rows, settings, source, 2, "third", None)
    assert same.tolist() == before.tolist() != fresh.tolist()


def test_a_teachers_probability_is_part_of_the_target():
    given = TINY.train.replace(distil=0.25, label_smoothing=0.1)
    # Targets .75 * .9 + .25 * .6, .75 * .1 + .25 * .6, and a teacher that is sure of the other label.
    found = doubts([1, 0, 1], np.array([0.6, 0.6, 0.0]), given)
    np.testing.assert_allclose(found, [1 - 0.825, 0.225, 1 - 0.675])
    logits, labels = torch.tensor([[0.5, 2.0], [1.0, -1.0], [0.0, 0.3]]), torch.tensor([1, 0, 1])
    targets = torch.tensor([0.825, 0.225, 0.675])
    expected = torch.nn.functional.cross_entropy(logits, torch.stack([1 - targets, targets], dim=1))
    smoothing = torch.tensor(found, dtype=torch.float32)
    for loss in (label_nll, two_way):
        torch.testing.assert_close(loss(logits, torch.eye(2), CLASSES, labels, smoothing=smoothing), expected)


@pytest.mark.parametrize("packing", [True, False])
def test_a_student_learns_from_its_teacher_and_only_of_rows_it_trains_on(tmp_path, packing):
    rows = rows_of(*((f"train-{n}", "en", f"query {n}", n % 2) for n in range(8)))
    save_rows(rows, tmp_path / "rows.parquet")
    save_table({"row_id": rows["row_id"].tolist(), "fold": [0, 1] * 2 + [1, 0] * 2}, tmp_path / FOLDS)
    here = Artifact(tmp_path, StageRecord())
    settings = TINY.replace(**{"train.distil": 1.0, "train.lr": 1e-2, "model.packing": packing})
    source, made = ModelSource(settings, tmp_path, Machine("cpu", None)), {}

    def run(stage, name, **more):
        (out := tmp_path / name).mkdir()
        job = make_job(
            out, settings=settings, inputs={"rows": here, "folds": here, **more}, part=Part(0), source=source
        )
        stage(replace(job, settings=job.settings.replace(**{"tracking.mode": "disabled"})))
        made[name] = load_table(out / "held_out.parquet").set_index("row_id")["margin"]
        return Artifact(out, StageRecord())

    teacher = run(training.teach, "teacher")
    assert sorted(made["teacher"].index) == ["train-1", "train-3", "train-4", "train-6"]
    run(training.train, "taught", teacher=teacher)
    run(training.train, "plain")
    assert list(made["taught"].index) == list(made["plain"].index) == ["train-0", "train-2", "train-5", "train-7"]
    assert made["taught"].tolist() != made["plain"].tolist()


def test_stages_that_two_tasks_need_are_there_once():
    given = ["model.backbone=random:qwen3", "prompt.pivot=en", "train.start_from=other_task", "QI.filter.enabled=true"]
    nodes = pipeline.build(load_settings(SAMPLE, given))
    titles = Counter(node.title for node in nodes)
    assert set(titles.values()) == {1}
    by_title = {node.title: node for node in nodes}
    start = by_title["train-QC-fold1"].inputs["start"]
    assert start is by_title["pretrain-QI-fold1-before-QC"]
    assert {name: node.title for name, node in start.inputs.items()} == {
        "rows": "ingest-QI",
        "other_rows": "negatives-QC",
        "folds": "folds-QC",
        "pivot": "pivot-QI",
    }
    # A judge starts from the base; it reads what the trained models read.
    judge = by_title["filter_model-QI-fold0"]
    assert "start" not in judge.inputs and judge.inputs["pivot"].title == "pivot-QI"
    assert [node.title for node in nodes if "pivot" in node.inputs and node.stage.name == "predict"]
    done = set()
    for node in nodes:
        assert {other.title for other in node.inputs.values()} <= done
        done.add(node.title)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["tasks=[QC]", "train.start_from=other_task"], "train.start_from = other_task needs the rows of both tasks"),
        (
            ["translate.enabled=false", "translate.translator=seq2seq", "prompt.pivot=en"],
            "prompt.pivot = en translates with translate.seq2seq.model; set that",
        ),
    ],
)
def test_what_lacks_another_setting_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        load_settings(SAMPLE, given)
