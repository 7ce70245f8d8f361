"""The corpus stages: the sample is generated; official files become checked rows."""

from __future__ import annotations

from pandas import DataFrame

from analyticup.corpus.official import SCORED_SPLITS
from analyticup.corpus.rows import read_split, save_rows, write_rejects
from analyticup.corpus.sample import write_sample
from analyticup.engine.files import write_json
from analyticup.engine.job import Counts, Job
from analyticup.seeds import seeded_key

FLIPPED = "flipped.json"


def sample(job: Job) -> Counts:
    """Writes the sample corpus as the competition's files."""
    write_sample(job.settings.data.sample, job.settings.seed, job.out)
    return {"files": len(list(job.out.iterdir()))}


def ingest(job: Job) -> Counts:
    """Reads a task's official files; writes a rows table per split, and the training lines that it refused."""
    counts: Counts = {}
    rejects = []
    for split in ("train", *SCORED_SPLITS):
        path = job.files.get(f"{split}_{job.task}.txt")
        if path is None:
            counts[split] = {"absent": 1}
            continue
        result = read_split(path, job.task, split, job.settings.data.max_chars)
        rows = result.rows
        if split == "train" and job.settings.data.train_rows:
            rows = whole_queries(rows, job.settings.data.train_rows, job.settings.seed)
        flipped: list[str] = []
        if split == "train" and job.settings.data.flip_labels:
            rows, flipped = flip_labels(rows, job.settings.data.flip_labels, job.settings.seed)
            write_json(job.out / FLIPPED, flipped)
        save_rows(rows, job.out / f"{split}.parquet")
        rejects += result.rejects
        counts[split] = {"lines": result.lines, "rows": len(rows), "rejects": len(result.rejects), **result.notes}
        if len(rows) < len(result.rows):
            counts[split]["left out by data.train_rows"] = len(result.rows) - len(rows)
        if flipped:
            counts[split]["labels turned by data.flip_labels"] = len(flipped)
    write_rejects(rejects, job.out / "rejects.jsonl")
    return counts


def whole_queries(rows: DataFrame, limit: int, seed: int) -> DataFrame:
    """At most `limit` rows: whole groups, in an order drawn from seed and text, kept in the file's order."""
    sizes = rows["group"].value_counts()
    kept, total = set(), 0
    for group in sorted(sizes.index, key=lambda text: seeded_key(seed, "subset", text)):
        if total + int(sizes[group]) <= limit:
            kept.add(group)
            total += int(sizes[group])
    return rows[rows["group"].isin(kept)].reset_index(drop=True)


def flip_labels(rows: DataFrame, share: float, seed: int) -> tuple[DataFrame, list[str]]:
    """(rows with round(share x rows) labels flipped, their row ids sorted); drawn only by seed and row id."""
    drawn = sorted(rows["row_id"], key=lambda name: seeded_key(seed, "flip", name))[: round(share * len(rows))]
    flipped = rows["row_id"].isin(drawn)
    return rows.assign(label=rows["label"].where(~flipped, 1 - rows["label"])), sorted(drawn)
