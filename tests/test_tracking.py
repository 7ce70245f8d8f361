"""Weights & Biases without a server: what the offline files hold, that runs are closed, that nothing else changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_checkpoint import EVERY_STEP, Interrupted, rows, settings, stop_at
from test_shards import TINY_TRAINING, made
from tiny_runs import ROOT, make_job
from wandb_server import standing_in

from analyticup import tracking
from analyticup.engine.graph import FIRST, Shard
from analyticup.engine.job import tracked_stage
from analyticup.engine.workers import InProcess
from analyticup.ensembling.threshold import Decision, SweepPoint
from analyticup.metrics import binary_metrics
from analyticup.model.backbone import save_adapter
from analyticup.model.checkpoint import StepCheckpoint
from analyticup.report.figures import Report
from analyticup.results import tracked
from analyticup.settings.schema import Settings, TrackingSettings
from analyticup.tracking import Made, close_left_open, read_records, tracked_run
from analyticup.training.fold import train_fold
from analyticup.training.source import Machine, ModelSource
from analyticup.training.telemetry import sample_size

OFFLINE = TrackingSettings(mode="offline", sample_rows=6)


@pytest.fixture(autouse=True)
def own_folders(monkeypatch):
    # W&B's folders are set once per process, by the first run.
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.delenv(name, raising=False)


def files(folder):
    """The files of the runs, once W&B's process has written all of them."""
    found, until = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")), time.monotonic() + 120
    while set(found) & tracking.written_now() and time.monotonic() < until:
        time.sleep(0.1)
    return found


def read(path):
    """A run's file, read back: its head, config, history by name, summary, artifacts and exit code."""
    found = SimpleNamespace(config={}, history={}, summary={}, artifacts=[], exit=None, run=None)
    for _, record in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                found.history.setdefault(name, []).append(json.loads(item.value_json))
        elif kind == "summary":
            for item in record.summary.update:
                found.summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "exit":
            found.exit = record.exit.exit_code
    return found


def test_a_stage_is_a_closed_run_with_name_group_type_tags_config_and_lineage(tmp_path):
    own = Settings(name="mine", tracking=OFFLINE)
    record = SimpleNamespace(stage="negatives", task="QC", part="", identity="a" * 64)
    given = {"group": "mine-12345678", "tags": ("mine", "git abc", "data def"), "logs": tmp_path}
    made = Made("train", "train-QC-fold0", "b" * 64)
    job = make_job(tmp_path, settings=own, inputs={"rows": SimpleNamespace(record=record)}, made=made, **given)
    with tracked_stage(job, "train", {"trained on": 7}) as run:
        run.log({"x": 1})
    (path,) = files(tmp_path)
    found = read(path)
    assert (found.run.display_name, found.run.run_group, found.run.job_type) == (
        "mine/QC/train",
        "mine-12345678",
        "train",
    )
    assert list(found.run.tags) == ["mine", "git abc", "data def"] and found.exit == 0
    assert found.config["rows"] == {"trained on": 7} and found.config["settings"]["train"]["lr"] == own.train.lr
    assert not {"paths", "machine", "tracking"} & set(found.config["settings"])
    assert [(one.name, one.type, *set(one.aliases) - {"latest"}, one.use_after_commit) for one in found.artifacts] == [
        ("negatives-QC", "rows", "a" * 12, True),
        ("train-QC-fold0", "adapters", "b" * 12, False),
    ]


def trained(folder, mode, checkpoint=None):
    """The bytes of an adapter that is trained with dropout, and of its held-out margins."""
    given = settings(epochs=2).replace(tracking=TrackingSettings(mode=mode, sample_rows=6))
    held_out = rows(9, 2).assign(row_id=[f"train-{i}" for i in range(9)])
    source = ModelSource(given, folder, Machine("cpu", 1))
    with tracked_run(given.tracking, folder, "group", "name", {}, "train") as run:
        model, margins = train_fold(rows(26, 1), held_out, given, source, 3, "fold", run, checkpoint)
    (folder / "out").mkdir(parents=True)
    save_adapter(model, folder / "out", "base")
    return (folder / "out" / "adapter_model.safetensors").read_bytes(), margins.tobytes()


def test_tracking_and_its_sample_change_no_byte_and_show_a_training_over_time(tmp_path):
    assert trained(tmp_path / "with", "offline") == trained(tmp_path / "without", "disabled")
    (path,) = files(tmp_path / "with")
    found = read(path).history
    # 7 batches in each of 2 epochs.
    pace = ("lr", "gradient_norm", "tokens_per_second", "memory_gb")
    assert {name: len(found[f"train/{name}"]) for name in ("loss", *pace)} == dict.fromkeys(("loss", *pace), 14)
    assert all(value > 0 for name in pace[1:] for value in found[f"train/{name}"])
    assert found["train/lr"][0] > found["train/lr"][-1]
    assert len(found["val/sample/f1"]) == 8 and len(found["val/f1"]) == len(found["val/ap"]) == 1


def test_a_training_that_is_cut_has_two_runs_of_one_name_with_its_steps_and_with_its_figures(tmp_path):
    own = {**TINY_TRAINING, "paths.cache": str(tmp_path), "tracking.mode": "offline", "tracking.sample_rows": 6}
    given = Settings(name="mine").replace(**own)
    made(given, tmp_path / "whole")
    first = made(given, tmp_path / "first", FIRST)
    made(given, tmp_path / "cut", shards=(first, made(given, tmp_path / "shard", Shard(0, 1), {"trained": first})))
    found = {name: read(path) for name in ("whole", "first", "cut") for path in files(tmp_path / f"{name}-logs")}
    assert not files(tmp_path / "shard-logs")
    assert {one.run.display_name for one in found.values()} == {"mine/QC/train-fold0"}
    whole, first, cut = (found[name].history for name in ("whole", "first", "cut"))
    assert first["train/loss"] == whole["train/loss"] and first["val/sample/f1"] == whole["val/sample/f1"]
    figures = {name: value for name, value in whole.items() if name in ("val/f1", "val/auc", "val/ap")}
    assert len(figures) == 3 and not figures.keys() & first.keys()
    assert all(cut[name] == pytest.approx(values) for name, values in figures.items())


def test_an_interrupted_training_leaves_a_closed_run_and_comes_to_the_same_bytes(tmp_path, monkeypatch):
    checkpoint = StepCheckpoint(tmp_path / "checkpoints" / "fold.safetensors", "own", EVERY_STEP)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 10)
        trained(tmp_path / "first", "offline", checkpoint)
    (path,) = files(tmp_path / "first")
    assert read(path).exit == 1 and len(read(path).history["train/loss"]) == 9
    assert trained(tmp_path / "second", "offline", checkpoint) == trained(tmp_path / "whole", "disabled")


def test_the_sample_is_paid_by_the_training():
    assert sample_size(Settings(), trained_on=400, held_out=400) == 0
    assert sample_size(Settings(), trained_on=9_000, held_out=2_000) == 135
    assert sample_size(Settings(), trained_on=240_000, held_out=60_000) == 256
    few = Settings(tracking=TrackingSettings(sample_rows=20))
    assert sample_size(few, 400, 9) == 9


def alone(**more):
    """An environment in which W&B starts a process of its own, and does not use that of the tests."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"} | more


ENDLESS = """
import sys, time
from pathlib import Path
from analyticup.settings.schema import TrackingSettings
from analyticup.tracking import tracked_run
with tracked_run(TrackingSettings(mode="offline"), Path(sys.argv[1]), "group", "name", {}, "train") as run:
    for step in range(1000):
        run.log({"loss": step})
    print("logged", flush=True)
    time.sleep(600)
"""


def test_the_run_of_a_killed_process_is_closed_with_what_it_had_written(tmp_path):
    command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=alone(PYTHONPATH=str(ROOT / "src")))
    assert process.stdout is not None and process.stdout.readline() == b"logged\n"
    process.kill()
    process.wait()
    (path,) = files(tmp_path)
    # W&B's own process has gone down with the other.
    assert close_left_open(tmp_path) == [path.parent] and close_left_open(tmp_path) == []
    found = read(path)
    assert found.exit == 1 and found.run.display_name == "name" and found.history["loss"][:3] == [0, 1, 2]


STRANGE = {
    **{
        "WANDB_MODE": "online",
        "WANDB_DISABLED": "true",
        "WANDB_DIR": "/proc/nowhere",
        "WANDB_CACHE_DIR": "/proc/nowhere",
    },
    **{"WANDB_PROJECT": "theirs", "WANDB_NAME": "theirs", "WANDB_RUN_ID": "theirs", "WANDB_RUN_GROUP": "theirs"},
    **{"WANDB_RESUME": "must", "WANDB_SWEEP_ID": "theirs", "WANDB_JOB_TYPE": "theirs", "WANDB_TAGS": "theirs"},
    **{"WANDB_NOTES": "theirs", "WANDB_SERVICE": "2-1-tcp-localhost-1", "WANDB_BASE_URL": "http://127.0.0.1:9"},
}
NAMELESS = """
import pwd, sys
pwd.getpwuid = {}.__getitem__
from pathlib import Path
from analyticup.__main__ import have_a_home
from analyticup.settings.schema import TrackingSettings
from analyticup.tracking import Made, log_lineage, tracked_run
have_a_home()
with tracked_run(TrackingSettings(mode="offline"), Path(sys.argv[1]), "group", "name", {}, "train") as run:
    run.log({"loss": 1})
    log_lineage(run, [], [Made("train", "t", "i" * 64)])
"""


def test_the_settings_decide_and_not_the_surroundings(tmp_path):
    """Variables of others, and no home folder: the user's number has no name."""
    environment = {name: value for name, value in alone(PYTHONPATH=str(ROOT / "src")).items() if name != "HOME"}
    command = [sys.executable, "-c", NAMELESS, str(tmp_path / "mine")]
    done = subprocess.run(command, env=environment | STRANGE, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (path,) = files(tmp_path / "mine")
    found = read(path)
    assert found.exit == 0 and found.history["loss"] == [1] and [one.name for one in found.artifacts] == ["t"]
    assert (found.run.display_name, found.run.run_group, found.run.job_type) == ("name", "group", "train")
    assert b"theirs" not in path.read_bytes()
    assert [one.name for one in tmp_path.iterdir()] == ["mine"]


def test_a_run_that_was_cut_off_is_uploaded_whole_with_its_lineage(tmp_path):
    with tracked_run(OFFLINE, tmp_path, "mine-1", "mine/QC/train", {"a": {"b": 1}}, "train", ["mine"]) as run:
        run.log({"loss": 1})
        used, made = Made("filter", "filter-QC", "a" * 64), Made("train", "train-QC-fold0", "b" * 64)
        tracking.log_lineage(run, [used], [made])
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    close_left_open(tmp_path)
    with standing_in() as (address, sent):
        account = alone(WANDB_BASE_URL=address, WANDB_API_KEY="a" * 40, HOME=str(tmp_path))
        command = [str(Path(sys.executable).with_name("wandb")), "sync", str(path.parent)]
        done = subprocess.run(command, env=account, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Finished syncing" in done.stdout + done.stderr
    first = sent["UpsertBucket"][0]
    assert (first["groupName"], first["displayName"], first["jobType"]) == ("mine-1", "mine/QC/train", "train")
    made_artifacts = {one["input"]["artifactCollectionName"] for one in sent["CreateArtifact"]}
    assert made_artifacts == {"filter-QC", "train-QC-fold0"} and len(sent["UseArtifact"]) == 1
    assert any(one.get("complete") for one in sent["file_stream"])


def test_what_was_cut_off_is_ended_after_the_last_whole_record(tmp_path):
    with tracked_run(OFFLINE, tmp_path, "group", "name", {}, "train") as run:
        run.log({"loss": 1})
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    assert read(path).exit is None
    assert close_left_open(tmp_path) == [path.parent] and close_left_open(tmp_path) == []
    assert read(path).exit == 1 and read(path).history["loss"] == [1]


def test_a_run_of_which_nothing_was_written_is_removed(tmp_path):
    with tracked_run(OFFLINE, tmp_path, "group", "name", {}, "train"):
        pass
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:7])
    assert close_left_open(tmp_path) == [] and not path.parent.exists()


@pytest.mark.parametrize("left", [0, 3, 6, 7, 8, 12, 500])
def test_the_exit_record_fits_at_any_place_of_a_block(tmp_path, left):
    from wandb.proto.wandb_internal_pb2 import Record

    record = Record(uuid="x" * (32768 - 7 - 7 - 3 - 1 - left))
    content = record.SerializeToString()
    content = content[:1] and content
    path = tmp_path / "run.wandb"
    piece = tracking._PIECE.pack(tracking._check(1, content), len(content), 1) + content
    path.write_bytes(b":W&B\xe1\xbe\x00" + piece)
    end = path.stat().st_size
    assert 32768 - 8 < end + left <= 32768 + 8
    tracking._append_exit(path, end)
    kinds = [one.WhichOneof("record_type") for _, one in read_records(path)]
    assert kinds == [None, "exit"]


def test_an_exception_closes_the_run_and_says_where_it_is(tmp_path, capsys):
    with pytest.raises(Interrupted), tracked_run(OFFLINE, tmp_path, "group", "mine/QC/train", {}, "train"):
        raise Interrupted
    (path,) = files(tmp_path)
    assert read(path).exit == 1
    assert capsys.readouterr().err == f"mine/QC/train: its W&B run is closed, in {path.parent}\n"


# ---------------------------------------------------------------- a finished run


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A finished run of one task as far as W&B sees it, and its settings."""
    import numpy as np

    from analyticup.corpus.tables import save_table
    from analyticup.engine.artifacts import Artifact, StageRecord

    labels, scores = np.array([1, 0, 1, 1]), np.array([0.9, 0.2, 0.4, 0.8])
    figures = binary_metrics(labels, scores >= 0.5, scores)
    sweep = [SweepPoint(threshold=0.3, f1=0.9), SweepPoint(threshold=0.5, f1=0.8)]
    decision = Decision(
        value=0.3, mode="sweep", scores="probability", out_of_fold=figures, out_of_fold_at_half=figures, sweep=sweep
    )
    report = Report(name="mine", out_of_fold={"QC": decision}, scores={"test QC": [{"language": "all", **figures}]})
    artifacts = {}
    for title in (
        "train-QC-fold0",
        "predict-QC-fold0",
        "ensemble-QC",
        "threshold-QC",
        "filter-QC",
        "submit-all",
        "report-all",
    ):
        stage, task, *part = title.split("-")
        (tmp_path / title).mkdir()
        record = StageRecord(stage=stage, task=task, part="-".join(part), identity=title[0] * 64, digest="d" * 64)
        artifacts[title] = Artifact(tmp_path / title, record)
    report.save(tmp_path / "report-all" / "report.json")
    save_table({"label": labels, "score": scores}, tmp_path / "threshold-QC" / "out_of_fold.parquet")
    suspect = {"row_id": "train-1", "language": "en", "query": "SECRET", "target": "SECRET", "label": 1, "score": 0.1}
    text = json.dumps({**suspect, "reasons": "disagreement", "action": "dropped"}) + "\n"
    (tmp_path / "filter-QC" / "suspects.jsonl").write_text(text)
    own = Settings(name="mine", tasks=["QC"]).replace(**{"filter.enabled": True, "paths.artifacts": str(tmp_path)})
    return own, artifacts


def logged(folder):
    return {one.run.display_name: one for one in map(read, files(folder))}


def tables(run):
    return {name.removesuffix("/_type") for name in run.history if name.endswith("/_type")}


def test_the_summary_makes_runs_comparable_and_the_ensemble_has_its_plots(tmp_path, finished):
    own, artifacts = finished
    for _ in range(2):
        tracked.log_finished(own, "mine-1", ("mine",), artifacts, InProcess(""))
    found = logged(tmp_path)
    # Once, though it was asked for twice.
    assert set(found) == {"mine/QC/ensemble", "mine/summary"} and len(files(tmp_path)) == 2
    summary, ensemble = found["mine/summary"], found["mine/QC/ensemble"]
    assert {summary.run.job_type, ensemble.run.job_type} == {"summary", "ensemble"}
    assert summary.summary["QC/threshold"] == 0.3 and summary.summary["test/QC/all/f1"] > 0
    assert tables(summary) == {"stages", "languages/test_QC"}
    assert tables(ensemble) == {"threshold_sweep_table", "precision_recall_table", "suspects"}
    assert ("predict-QC-fold0", True) in {(one.name, one.use_after_commit) for one in ensemble.artifacts}
    assert ("submit-all", False) in {(one.name, one.use_after_commit) for one in summary.artifacts}


@pytest.mark.parametrize("asked", [False, True])
def test_no_row_is_logged_unless_it_is_asked_for(tmp_path, finished, asked):
    own, artifacts = finished
    tracked.log_finished(own.replace(**{"tracking.log_rows": asked}), "mine-1", (), artifacts, InProcess(""))
    written = b"".join(path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file())
    assert (b"SECRET" in written) == asked
