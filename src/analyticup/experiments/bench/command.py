"""`./run.sh bench`: measures, shows the table, and writes it to submissions/bench."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyticup.engine.environment import describe
from analyticup.engine.files import json_text, write_atomically
from analyticup.errors import UserError
from analyticup.experiments.bench.gpu import PART, check_gpu
from analyticup.settings.loading import settings_of
from analyticup.settings.paths import PROJECT, resolve
from analyticup.settings.schema import Settings
from analyticup.terminal import make_console, plain_table

if TYPE_CHECKING:
    from analyticup.experiments.bench.run import Plan


def bench(options: argparse.Namespace) -> int:
    """Measures and writes submissions/bench, also after each round or step; 1 where a variant or step failed."""
    settings = settings_of(options, "small.yaml")
    folder = resolve(settings.paths.submissions) / "bench"
    if options.only == PART:
        return check_gpu(options.tiny, folder, lambda text: print(text, flush=True))
    if options.tiny:
        raise UserError("--tiny: goes with --only gpu")
    return _compare(options, settings, folder)


def _compare(options: argparse.Namespace, settings: Settings, folder: Path) -> int:
    # Here and not above: `--only gpu` runs where not all of the kit's packages are.
    from analyticup.experiments.bench.run import run_bench
    from analyticup.experiments.bench.table import COLUMNS, cells, to_markdown

    console, started = make_console(), time.monotonic()
    plan = _bench_plan(options)
    circumstances = {
        "plan": dataclasses.asdict(plan),
        "config": settings.model_dump(),
        "environment": describe(PROJECT),
    }

    def write(records: list[dict[str, Any]], about: list[str]) -> None:
        content = {"about": about, **circumstances, "table": records}
        write_atomically(folder / "bench.json", json_text(content))
        write_atomically(folder / "table.md", to_markdown(records, about))

    records, about = run_bench(settings, plan, lambda text: console.print(text, soft_wrap=True), write)
    write(records, about)
    shown = plain_table("bench: median (min..max)", COLUMNS, left=2)
    for record in records:
        shown.add_row(*cells(record))
    console.print(shown)
    for text in [*about, f"table: {folder}; {time.monotonic() - started:.0f} s"]:
        console.print(text, soft_wrap=True)
    return int(any(record["failed"] for record in records))


def _bench_plan(options: argparse.Namespace) -> Plan:
    from analyticup.experiments.bench.run import Plan

    given: dict[str, Any] = {"rounds": options.rounds}
    given |= {name: getattr(options, name) for name in ("train_rows", "score_rows", "embed_rows")}
    if options.only is not None:
        given["parts"] = tuple(part.strip() for part in options.only.split(","))
    if options.shares is not None:
        try:
            given["shares"] = tuple(sorted({float(part) for part in options.shares.split(",")}))
        except ValueError:
            raise UserError(f"--shares {options.shares}: must be numbers, e.g. 0.01,0.1") from None
    return Plan(**given)
