"""What a model reads and starts from: English pivots, and an adapter of the other task that knows no held-out query."""

from __future__ import annotations

from collections import Counter

import pytest
from tiny_runs import ROOT, make_job

from analyticup import pipeline
from analyticup.augmentation import stage as augmentation
from analyticup.corpus.rows import make_rows, save_rows
from analyticup.corpus.tables import FOLDS, as_read, save_table
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.engine.graph import Part
from analyticup.errors import UserError
from analyticup.model.backbone import save_adapter
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import ModelSettings, Settings
from analyticup.training import stage as training
from analyticup.training.fold import train_fold
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
