"""The training stages: assign folds, train an adapter per fold, score the dev and test rows with it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from pandas import DataFrame
from peft import PeftModel

from analyticup.corpus.tables import FOLDS, as_read, load_table, save_table, scored_splits, training_rows
from analyticup.engine.artifacts import Artifact, fingerprint
from analyticup.engine.files import read_json
from analyticup.engine.graph import FIRST, WHOLE, Shard
from analyticup.engine.job import Counts, Job, tracked_stage
from analyticup.engine.workers import cores, side_by_side
from analyticup.metrics import binary_metrics, known_figures, sigmoid
from analyticup.model.backbone import load_adapter, merge_into_copies, save_adapter
from analyticup.model.checkpoint import StepCheckpoint
from analyticup.model.ranks import joined
from analyticup.seeds import derive_seed
from analyticup.training import PRECISION
from analyticup.training.fold import score_held_out, score_rows, train_fold
from analyticup.training.folds import assign_folds, check_no_leakage
from analyticup.training.out_of_fold import HELD_OUT, in_order
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
        margin = load_table(job.inputs["teacher"].file(HELD_OUT)).set_index("row_id")["margin"]
        training = training.assign(taught=sigmoid(margin.loc[training["row_id"]].to_numpy()))
    return train_adapter(job, training, held_out, "train")


def train_adapter(job: Job, training: DataFrame, held_out: DataFrame, purpose: str, check: bool = True) -> Counts:
    """Trains an adapter on `training`; writes it and the margins of `held_out`; with `check` they share no query. Where
    that is cut, the first step trains, and each shard scores some of `held_out` by what it made."""
    if check:
        check_no_leakage(training, held_out, job.settings.folds.group_by)
    if job.shards:
        return _put_together(job, held_out, purpose)
    training, held_out = as_read(training, job.inputs), as_read(held_out, job.inputs)
    if "trained" in job.inputs:
        return _scored_shard(job, held_out)
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
    scores = job.part.shard != FIRST
    if not scores:
        # It draws and is called as if it were the whole, which W&B then knows by what puts it together.
        job = replace(job, part=replace(job.part, shard=WHOLE), made=None)
    settings, part = job.settings, str(job.part)
    seed = derive_seed(settings.seed, purpose, job.task, part)
    rows = {"trained on": len(training), "held out": len(held_out)}
    start = job.inputs["start"].folder if "start" in job.inputs else None
    given = (training, held_out, settings, job.source, seed, f"{purpose} {job.title}")
    tracking = tracked_stage(job, JOB_TYPES[purpose], rows) if rank.number == 0 else contextlib.nullcontext()
    with tracking as tracked:
        model, margins = train_fold(*given, tracked, _checkpoint(job, rank), start, rank, scores)
    if rank.number:
        return {}
    save_adapter(model, job.out, settings.model.backbone)
    counts = {"trained on": len(training), **_unmoved(model), **_precision(job)}
    return _with_scores(job, held_out, margins, counts) if scores else counts


def _with_scores(job: Job, held_out: DataFrame, margins: np.ndarray, trained: Counts) -> Counts:
    """Writes the margins; what the training has counted, and the figures on the held-out rows."""
    save_table({"row_id": held_out["row_id"].tolist(), "margin": margins}, job.out / HELD_OUT)
    figures = _held_out_figures(held_out, margins) if len(held_out) else {}
    return {"trained on": trained["trained on"], "scored": len(held_out), **figures, **_alike(margins), **trained}


def _scored_shard(job: Job, held_out: DataFrame) -> Counts:
    model = load_adapter(job.source.backbone(), job.inputs["trained"].folder)
    margins = score_held_out(held_out, model, job.settings, job.source, f"held-out rows {job.title}", job.part.shard)
    return {"scored": _save_own(held_out, margins, job.out / HELD_OUT)}


def _put_together(job: Job, held_out: DataFrame, purpose: str) -> Counts:
    """Writes what training and scoring at once would write. The W&B run of the training has ended, so a second one of
    its name has the figures on the held-out rows."""
    trained, *shards = job.shards
    for name in trained.record.files:
        shutil.copyfile(trained.file(name), job.out / name)
    margins = _of_shards(held_out, shards, HELD_OUT, f"{purpose} {job.title}")
    counts = _with_scores(job, held_out, margins, trained.record.counts)
    rows = {"trained on": counts["trained on"], "held out": len(held_out)}
    with tracked_stage(job, JOB_TYPES[purpose], rows) as tracked:
        if tracked is not None and len(held_out):
            figures = known_figures(held_out["label"].to_numpy(dtype=int), margins)
            tracked.log({f"val/{name}": value for name, value in figures.items()})
    return counts


def _save_own(rows: DataFrame, margins: np.ndarray, path: Path) -> int:
    """Writes the rows that were scored; counts them."""
    own = ~np.isnan(margins)
    save_table({"row_id": rows["row_id"][own].tolist(), "margin": margins[own]}, path)
    return int(own.sum())


def _of_shards(rows: DataFrame, shards: Sequence[Artifact], name: str, what: str) -> np.ndarray:
    """The margins that the shards have in the file of that name, in the order of the rows."""
    parts = [load_table(shard.file(name)) for shard in shards]
    scored = in_order(rows, parts, f"{what}: the shards", "delete the folder shards in paths.artifacts")
    return scored["margin"].to_numpy()


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


def _unmoved(model: PeftModel) -> Counts:
    """What a training that changed nothing looks like, where it did: `_alike` says less of it."""
    # The matrices B start at zero, and only a step that changes nothing leaves them there.
    ups = [value for name, value in model.named_parameters() if "lora_B" in name]
    if ups and not any(value.any() for value in ups):
        return {"collapsed": "the adapter is as it was before training"}
    return {}


def _alike(margins: np.ndarray) -> Counts:
    """What a training that led nowhere looks like, where it did."""
    if len(margins) > 1 and np.ptp(margins) <= _ALIKE * max(1.0, np.abs(margins).max()):
        return {"collapsed": "all held-out rows have the same score"}
    return {}


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
        counts[split] = _save_own(rows, margins, job.out / f"{split}.parquet")
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
        margins = _of_shards(rows, job.shards, f"{split}.parquet", f"predict {job.title} {split}")
        save_table({"row_id": rows["row_id"].tolist(), "margin": margins}, job.out / f"{split}.parquet")
    return {split: len(rows) for split, rows in splits.items()}
