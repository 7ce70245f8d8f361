"""The training stages: assign folds, train an adapter per fold, score the dev and test rows with it."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from pandas import DataFrame
from peft import PeftModel

from analyticup.corpus.tables import FOLDS, as_read, load_table, save_table, scored_splits, training_rows
from analyticup.engine.artifacts import fingerprint
from analyticup.engine.files import read_json
from analyticup.engine.graph import WHOLE, Shard
from analyticup.engine.job import Counts, Job, tracked_stage
from analyticup.engine.workers import cores, side_by_side
from analyticup.metrics import binary_metrics, sigmoid
from analyticup.model.backbone import load_adapter, merge_into_copies, save_adapter
from analyticup.model.checkpoint import StepCheckpoint
from analyticup.model.ranks import joined
from analyticup.seeds import derive_seed
from analyticup.training import PRECISION
from analyticup.training.fold import score_rows, train_fold
from analyticup.training.folds import assign_folds, check_no_leakage
from analyticup.training.out_of_fold import in_order
from analyticup.training.source import model_source
from analyticup.training.vllm_scoring import VllmAdapter

# Scores that differ by less, as a share of the largest, are one score (assumed; bfloat16 has 8 bits).
_ALIKE: Final = 1e-5
# Of a training, by its purpose.
JOB_TYPES = {"filter": "judge", "pretrain": "train", "teach": "train", "train": "train"}


def folds(job: Job) -> Counts:
    """Writes the fold of every training row; counts original and all rows of each."""
    rows = training_rows(job.inputs["rows"])
    n = job.settings.folds.n
    fold = assign_folds(rows, n, derive_seed(job.settings.seed, "folds", job.task), job.settings.folds.group_by)
    save_table({"row_id": rows["row_id"].tolist(), "fold": fold}, job.out / FOLDS)
    original = (rows["origin"] == "original").to_numpy()
    sizes = {
        f"fold{i}": {"original": int(np.sum((fold == i) & original)), "all": int(np.sum(fold == i))} for i in range(n)
    }
    return {"rows": len(rows), **sizes}


def with_folds(job: Job, rows: str = "rows") -> tuple[DataFrame, DataFrame]:
    """(rows before filtering, rows to train on), both with their fold; the first from the input called `rows`."""
    fold_of = load_table(job.inputs["folds"].file(FOLDS)).set_index("row_id")["fold"]
    before = training_rows(job.inputs[rows])
    after = training_rows(job.inputs["filter"]) if "filter" in job.inputs else before
    return tuple(rows.assign(fold=rows["row_id"].map(fold_of)) for rows in (before, after))


def pretrain(job: Job) -> Counts:
    """What a fold of the other task starts from: an adapter for this task's original rows.

    The two tasks have queries in common, and a label of one says something about the other. So the rows whose query is
    among those that the fold holds out, by `group` as the folds are made, are left out.
    """
    rows = training_rows(job.inputs["rows"])
    held_out, _ = with_folds(job, rows="other_rows")
    held_out = held_out[(held_out["fold"] == job.part.fold) & (held_out["origin"] == "original")]
    left = rows[~rows["group"].isin(set(held_out["group"]))]
    check_no_leakage(left, held_out)
    counts = train_adapter(job, left, left.head(0), "pretrain")
    return {**counts, "left out, as the fold holds out their query": len(rows) - len(left)}


def teach(job: Job) -> Counts:
    """A fold's teacher: trained as the fold is, and the margins of the rows that it was trained on."""
    _, after = with_folds(job)
    own = after[after["fold"] != job.part.fold]
    return train_adapter(job, own, own, "teach", check=False)


def train(job: Job) -> Counts:
    """One fold's adapter; the scores of the original rows it never saw. Held-out rows are never filtered. Without a
    fold it is trained on all rows, and none is left to score."""
    before, after = with_folds(job)
    held_out = before[(before["fold"] == job.part.fold) & (before["origin"] == "original")]
    training = after[after["fold"] != job.part.fold]
    if "teacher" in job.inputs:
        margin = load_table(job.inputs["teacher"].file("held_out.parquet")).set_index("row_id")["margin"]
        training = training.assign(taught=sigmoid(margin.loc[training["row_id"]].to_numpy()))
    return train_adapter(job, training, held_out, "train")


def train_adapter(job: Job, training: DataFrame, held_out: DataFrame, purpose: str, check: bool = True) -> Counts:
    """Trains an adapter on `training`; writes it and the margins of `held_out`; with `check` they share no query."""
    if check:
        check_no_leakage(training, held_out, job.settings.folds.group_by)
    training, held_out = as_read(training, job.inputs), as_read(held_out, job.inputs)
    devices = job.settings.machine.devices
    if devices == 1:
        return _trained(job, training, held_out, purpose)
    # Each process loads its own, on a GPU into the memory that this one takes.
    job.source.release()
    with tempfile.TemporaryDirectory() as folder:
        given = (replace(job, source=None), training, held_out, purpose, Path(folder) / "meeting")
        return side_by_side(joint_training, [(*given, Shard(number, devices)) for number in range(devices)])[0]


def joint_training(
    job: Job, training: DataFrame, held_out: DataFrame, purpose: str, meeting: Path, rank: Shard
) -> Counts:
    """The training in a process of its own, together with those of the other ranks; the first one writes and counts."""
    machine = job.settings.machine
    threads = machine.threads or max(1, cores() // (machine.workers * machine.devices))
    source = model_source(job.settings.replace(**{"machine.threads": threads}))
    with joined(rank, meeting, source.machine.device):
        return _trained(replace(job, source=source), training, held_out, purpose, rank)


def _trained(job: Job, training: DataFrame, held_out: DataFrame, purpose: str, rank: Shard = WHOLE) -> Counts:
    settings, part = job.settings, str(job.part)
    seed = derive_seed(settings.seed, purpose, job.task, part)
    rows = {"trained on": len(training), "held out": len(held_out)}
    start = job.inputs["start"].folder if "start" in job.inputs else None
    given = (training, held_out, settings, job.source, seed, f"{purpose} {job.title}")
    tracking = tracked_stage(job, JOB_TYPES[purpose], rows) if rank.number == 0 else contextlib.nullcontext()
    with tracking as tracked:
        model, margins = train_fold(*given, tracked, _checkpoint(job, rank), start, rank)
    if rank.number:
        return {}
    save_adapter(model, job.out, settings.model.backbone)
    columns = {"row_id": held_out["row_id"].tolist(), "margin": margins}
    save_table(columns, job.out / "held_out.parquet")
    figures = _held_out_figures(held_out, margins) if len(held_out) else {}
    counts = {"trained on": len(training), "scored": len(held_out), **figures, **_collapse(model, margins)}
    return {**counts, **_precision(job)}


def _precision(job: Job) -> Counts:
    """In another one the same rows give other bytes."""
    return {PRECISION: f"{job.source.dtype} on {job.source.machine.device}"}


def _checkpoint(job: Job, rank: Shard) -> StepCheckpoint | None:
    """Where an interrupted training resumes: the same training, on the same device and packages. None = nowhere."""
    minutes = job.settings.machine.checkpoint_minutes
    if not minutes:
        return None
    decides = {"job": job.resume_identity, "device": job.source.machine.device}
    identity = fingerprint(decides if rank.of == 1 else {**decides, "devices": rank.of})
    return StepCheckpoint(job.resume_file, identity, minutes, writes=rank.number == 0)


def _collapse(model: PeftModel, margins: np.ndarray) -> Counts:
    """What a training that led nowhere looks like, where it did."""
    found: Counts = {}
    # The matrices B start at zero, and only a step that changes nothing leaves them there.
    ups = [value for name, value in model.named_parameters() if "lora_B" in name]
    if ups and not any(value.any() for value in ups):
        found["collapsed"] = "the adapter is as it was before training"
    elif len(margins) > 1 and np.ptp(margins) <= _ALIKE * max(1.0, np.abs(margins).max()):
        found["collapsed"] = "all held-out rows have the same score"
    return found


def _held_out_figures(rows: DataFrame, margins: np.ndarray) -> Counts:
    labels = rows["label"].to_numpy(dtype=int)
    figures = binary_metrics(labels, (margins >= 0).astype(int), margins)
    return {name: figures[name] for name in ("f1", "floor_f1", "auc")}


def predict(job: Job) -> Counts:
    """Writes the margins of the dev and test rows under one fold's adapter, or of one shard of them."""
    splits = scored_splits(job.inputs["rows"])
    if job.part.shard != WHOLE:
        return _predict(job, splits)
    with tracked_stage(job, "predict", {name: len(rows) for name, rows in splits.items()}) as tracked:
        started = time.monotonic()
        counts = _from_shards(job, splits) if job.shards else _predict(job, splits)
        if tracked is not None:
            seconds = time.monotonic() - started + sum(shard.record.seconds for shard in job.shards)
            tracked.summary.update({"predict/rows_per_second": sum(counts.values()) / seconds})
    return {**counts, **_precision(job)}


def _predict(job: Job, splits: Mapping[str, DataFrame]) -> Counts:
    counts = {}
    model = _adapted(job, job.inputs["train"].folder)
    for split, rows in splits.items():
        title, read = f"predict {job.title} {split}", as_read(rows, job.inputs)
        margins = score_rows(read, model, job.settings, job.source, title, job.part.shard)
        own = ~np.isnan(margins)
        save_table({"row_id": rows["row_id"][own].tolist(), "margin": margins[own]}, job.out / f"{split}.parquet")
        counts[split] = int(own.sum())
    return counts


def _adapted(job: Job, adapter: Path) -> PeftModel | VllmAdapter:
    """The backbone with a saved adapter, held by what `predict.engine` names."""
    if job.settings.predict.engine == "vllm":
        rank = read_json(adapter / "adapter_config.json")["r"]
        return VllmAdapter(job.source.vllm(job.settings, rank), adapter)
    model = load_adapter(job.source.backbone(), adapter)
    if job.settings.predict.merge_adapters:
        merge_into_copies(model)
    return model


def _from_shards(job: Job, splits: Mapping[str, DataFrame]) -> Counts:
    """Writes what scoring all rows at once would write."""
    for split, rows in splits.items():
        parts = [load_table(shard.file(f"{split}.parquet")) for shard in job.shards]
        scored = in_order(
            rows, parts, f"predict {job.title} {split}: the shards", "delete the folder shards in paths.artifacts"
        )
        columns = {"row_id": rows["row_id"].tolist(), "margin": scored["margin"].to_numpy()}
        save_table(columns, job.out / f"{split}.parquet")
    return {split: len(rows) for split, rows in splits.items()}
