"""Runs on the same rows, compared: figures with their intervals, and paired differences with theirs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from pandas import DataFrame

from analyticup.corpus.official import SCORED_SPLITS
from analyticup.corpus.rows import load_rows
from analyticup.corpus.tables import load_table
from analyticup.engine.artifacts import Artifact
from analyticup.ensembling.threshold import DECISION, Decision, SweepPoint
from analyticup.metrics import ALL, FIGURES, SEEN, UNSEEN, interval, query_weights, weighted_figures
from analyticup.report.figures import REPORT, FilterQuality, Report
from analyticup.results.manifest import data_sha256
from analyticup.submission.score import read_labels


@dataclass(frozen=True)
class Row:
    """One row of the table: its config's file name and the row that it adds one thing to."""

    task: str
    config: str
    title: str
    parent: str | None


@dataclass(frozen=True)
class Scored:
    """One trained row of the table, scored: arrays [rows] in the order of the input."""

    queries: list[str]
    languages: list[str]
    labels: np.ndarray
    scores: np.ndarray
    predictions: np.ndarray
    trained: frozenset[str]
    sweep: list[SweepPoint]
    threshold: float


@dataclass(frozen=True)
class RowRun:
    """The outcome of one row of the table with one seed."""

    split: str
    scored: Scored
    # Whether the threshold was chosen and not fixed.
    chosen: bool
    # As in the report: how well the filter found the labels that are known to be wrong; empty where none is known.
    filter_quality: list[FilterQuality]
    # sha256 of the files that were read.
    data: dict[str, str]
    # Of the task's stages when they were made: their seconds, and the most resident bytes of one.
    seconds: float = 0.0
    memory: int = 0


def read_run(task: str, artifacts: Mapping[str, Artifact], raw: Mapping[str, Path]) -> RowRun:
    """A finished run of one task: scored are the dev or test rows where they have labels, else the training rows out of
    fold, which have no languages without training rows."""
    decision = Decision.load(artifacts[f"threshold-{task}"].file(DECISION))
    report = Report.load(artifacts["report-all"].file(REPORT))
    train = load_rows(artifacts[f"ingest-{task}"].file("train.parquet"))
    split = next((s for s in SCORED_SPLITS if {f"{s}_{task}.labels.txt", f"{s}_{task}.txt"} <= set(raw)), "")
    if split:
        scored = _labelled(task, split, artifacts, raw, frozenset(train["language"]), decision)
    else:
        scored = _out_of_fold(task, artifacts, train, decision)
    seconds, memory = cost([artifact for artifact in artifacts.values() if artifact.record.task == task])
    return RowRun(
        split=split or "out-of-fold train",
        scored=scored,
        chosen=decision.mode == "sweep",
        filter_quality=report.filter.get(task, []),
        data=data_sha256(artifacts),
        seconds=seconds,
        memory=memory,
    )


def cost(artifacts: Collection[Artifact]) -> tuple[float, int]:
    """(seconds of these stages, most resident bytes of one), as they were when the stages were made."""
    records = [artifact.record for artifact in artifacts]
    return sum(record.seconds for record in records), max((record.memory for record in records), default=0)


def difference(run: RowRun, base: RowRun) -> str:
    """Why the two cannot be paired, row by row; "" where they can."""
    own, usual = run.scored, base.scored
    same = own.queries == usual.queries and own.languages == usual.languages
    if run.split == base.split and same and np.array_equal(own.labels, usual.labels):
        return ""
    return f"did not score the same rows ({run.split} and {base.split})"


def _labelled(
    task: str,
    split: str,
    artifacts: Mapping[str, Artifact],
    raw: Mapping[str, Path],
    trained: frozenset[str],
    decision: Decision,
) -> Scored:
    # The report stage has checked that every id has a label.
    truth = read_labels(raw[f"{split}_{task}.labels.txt"])
    table = load_table(artifacts["submit-all"].file(f"{split}/scores_{task}.parquet"))
    rows = load_rows(artifacts[f"ingest-{task}"].file(f"{split}.parquet"))
    return Scored(
        queries=rows["group"].tolist(),
        languages=table["language"].tolist(),
        labels=table["id"].map(truth).to_numpy(dtype=int),
        scores=table["score"].to_numpy(),
        predictions=table["prediction"].to_numpy(dtype=int),
        trained=trained,
        sweep=decision.sweep,
        threshold=decision.value,
    )


def _out_of_fold(task: str, artifacts: Mapping[str, Artifact], train: DataFrame, decision: Decision) -> Scored:
    table = load_table(artifacts[f"threshold-{task}"].file("out_of_fold.parquet"))
    return Scored(
        queries=train.set_index("row_id")["group"].loc[table["row_id"]].tolist(),
        languages=table["language"].tolist(),
        labels=table["label"].to_numpy(dtype=int),
        scores=table["score"].to_numpy(),
        predictions=decision.decide(table["score"], table["language"]),
        trained=frozenset(train["language"]),
        sweep=decision.sweep,
        threshold=decision.value,
    )


class Gain(TypedDict):
    """A figure less that of the row's parent, with its interval."""

    value: float
    low: float
    high: float
    inside_noise: bool


class Figure(TypedDict):
    """A figure with its interval; see `make_table`."""

    value: float
    low: float
    high: float
    per_seed: list[float]
    seed_sd: float | None
    gain: NotRequired[Gain]


class Entry(TypedDict):
    """One row of the table for one group of languages."""

    task: str
    row: str
    config: str
    languages: str
    rows: int
    seeds: int
    floor_f1: float
    f1: Figure
    ap: Figure
    auc: Figure


@dataclass(frozen=True)
class _Resampled:
    """A row's figures per seed, their resamples [resamples] averaged over the seeds, rows, seeds and floor."""

    point: dict[str, list[float]]
    resamples: dict[str, np.ndarray]
    rows: int
    seeds: int
    floor_f1: float


def make_table(runs: Mapping[str, Sequence[Scored]], rows: Sequence[Row]) -> list[Entry]:
    """One entry per row of the table and language group, in order; `runs` maps a config to its scored seeds.

    Each figure is the mean over the seeds; `low`, `high` are its 95 % bootstrap interval over queries. `gain` is the
    difference to the row's parent with its own, paired interval, and `inside_noise` whether that holds 0. `seed_sd` is
    the standard deviation over seeds (None with one).
    """
    drawn = {(row.config, part): _resampled(runs[row.config], part) for row in rows for part in (ALL, SEEN, UNSEEN)}
    table: list[Entry] = []
    for row in rows:
        for part in (ALL, SEEN, UNSEEN):
            own = drawn[row.config, part]
            if own is None:
                continue
            base = drawn.get((row.parent or "", part))
            table.append(
                {
                    "task": row.task,
                    "row": row.title,
                    "config": row.config,
                    "languages": part,
                    "rows": own.rows,
                    "seeds": own.seeds,
                    "floor_f1": own.floor_f1,
                    "f1": _figure(own, base, "f1"),
                    "ap": _figure(own, base, "ap"),
                    "auc": _figure(own, base, "auc"),
                }
            )
    return table


def _resampled(seeds: Sequence[Scored], part: str) -> _Resampled | None:
    """Figures and their resamples, each with a row per seed; None where the group has no rows."""
    point: dict[str, list[float]] = {name: [] for name in FIGURES}
    resamples: dict[str, list[np.ndarray]] = {name: [] for name in FIGURES}
    floors, sizes = [], []
    for scored in seeds:
        chosen = _members(scored, part)
        if not chosen.any():
            return None
        given = (scored.labels[chosen], scored.scores[chosen], scored.predictions[chosen])
        queries = [query for query, inside in zip(scored.queries, chosen, strict=True) if inside]
        once = weighted_figures(*given, [np.ones((1, len(queries)))])
        drawn = weighted_figures(*given, query_weights(queries, seed=0))
        for name in FIGURES:
            point[name].append(float(once[name][0]))
            resamples[name].append(drawn[name])
        positives = int(given[0].sum())
        floors.append(2 * positives / (positives + len(queries)))
        sizes.append(len(queries))
    averaged = {name: np.mean(drawn, axis=0) for name, drawn in resamples.items()}
    return _Resampled(point, averaged, sizes[0], len(seeds), float(np.mean(floors)))


def _members(scored: Scored, part: str) -> np.ndarray:
    seen = np.isin(scored.languages, sorted(scored.trained))
    return {ALL: np.ones(len(seen), dtype=bool), SEEN: seen, UNSEEN: ~seen}[part]


def _figure(own: _Resampled, base: _Resampled | None, name: str) -> Figure:
    values = own.point[name]
    low, high = interval(own.resamples[name])
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    figure: Figure = {
        "value": float(np.mean(values)),
        "low": low,
        "high": high,
        "per_seed": values,
        "seed_sd": spread,
    }
    if base is not None:
        # Of another number of queries, other resamples.
        drawn = min(len(own.resamples[name]), len(base.resamples[name]))
        gain_low, gain_high = interval(own.resamples[name][:drawn] - base.resamples[name][:drawn])
        figure["gain"] = {
            "value": figure["value"] - float(np.mean(base.point[name])),
            "low": gain_low,
            "high": gain_high,
            "inside_noise": gain_low <= 0 <= gain_high,
        }
    return figure
