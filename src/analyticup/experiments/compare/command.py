"""`./run.sh compare A B C`: any configs on the same data in one table, with paired differences to the first."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from analyticup.engine.artifacts import fingerprint
from analyticup.errors import UserError
from analyticup.experiments.compare.output import Told, draw_figures, show, write
from analyticup.experiments.compare.run import Runs, run_rows, seeded, table_of
from analyticup.results.paired import Row, difference
from analyticup.settings.loading import load_settings
from analyticup.settings.paths import resolve
from analyticup.settings.schema import TASKS, Settings
from analyticup.terminal import make_console

# Of a folder's name; the settings allow 100 characters for a run's.
LONGEST = 90


def compare(options: argparse.Namespace) -> int:
    """Runs every config for every seed, then writes submissions/compare-<names>."""
    configs, overrides = read_arguments([*options.configs, *getattr(options, "overrides", [])])
    console, started = make_console(), time.monotonic()
    plans = _plans(configs, overrides, options.seeds)
    runs, notes = paired_with_first(run_rows(plans, compared_rows(plans), console))
    table, (base, *_) = table_of(runs), next(iter(plans.values()))
    told = Told(", ".join(f"`{path}`" for path in configs), overrides, "the first config", notes)
    name = comparison_name(list(plans))
    folder = resolve(base.paths.submissions) / name
    write(folder, "comparison.json", name, base, table, runs, told)
    for task in dict.fromkeys(row.task for row in runs):
        draw_figures(task, [entry for entry in table if entry["task"] == task], folder / f"{task}.png")
    show(console, "comparison", table, runs)
    for note in notes:
        console.print(note, soft_wrap=True)
    console.print(f"table and pictures: {folder}; {time.monotonic() - started:.0f} s", soft_wrap=True)
    return 0


def read_arguments(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(configs, overrides): what has a `=` and is no file is a setting. UserError for less than two configs."""
    overrides = [text for text in given if "=" in text and not Path(text).is_file()]
    configs = [Path(text) for text in given if text not in overrides]
    if len(configs) < 2:
        raise UserError("compare: name two config files or more; the first is what the others are compared with")
    return configs, overrides


def _plans(configs: Sequence[Path], overrides: list[str], seeds: int) -> dict[str, list[Settings]]:
    """Name -> settings for each seed; all configs are read before any of them runs."""
    plans: dict[str, list[Settings]] = {}
    for path in configs:
        settings = load_settings(path, overrides)
        if settings.name in plans:
            raise UserError(f"{path}: another config is called {settings.name!r} too; give it a `name:` of its own")
        plans[settings.name] = seeded(settings, seeds)
    return plans


def compared_rows(plans: Mapping[str, Sequence[Settings]]) -> list[Row]:
    """A row for each task and config; the first config that has the task is what the others are compared with."""
    rows: list[Row] = []
    for task in TASKS:
        names = [name for name, seeds in plans.items() if task in seeds[0].tasks]
        rows += [Row(task, name, name, None if name == names[0] else names[0]) for name in names]
    return rows


def paired_with_first(runs: Runs) -> tuple[Runs, list[str]]:
    """The runs, without a parent for rows that did not score what their parent did, and a note for each of those."""
    by_name = {(row.task, row.config): seeds for row, seeds in runs.items()}
    found: Runs = {}
    notes = []
    for row, seeds in runs.items():
        base = by_name.get((row.task, row.parent or ""), seeds)
        faults = filter(None, map(difference, seeds, base))
        if fault := next(faults, ""):
            notes.append(f"{row.task} {row.title}: no difference to {row.parent}: {fault}")
            row = replace(row, parent=None)
        found[row] = seeds
    return found, notes


def comparison_name(names: Sequence[str]) -> str:
    """Name of the output folder; of many or long names, the first and a hash of all."""
    name = f"compare-{'-'.join(names)}"
    return name if len(name) <= LONGEST else f"compare-{names[0][:60]}-{fingerprint({'names': list(names)})[:8]}"
