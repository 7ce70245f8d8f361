"""`./run.sh ablate`: a comparison whose configs are the rows of a table, laid over the given config."""

from __future__ import annotations

import argparse
import time

from analyticup.console import compare_with_expected
from analyticup.experiments.ablation.table import TABLES, figures_by_name
from analyticup.experiments.compare.output import Told, draw_thresholds, show, write
from analyticup.experiments.compare.run import run_rows, seeded, table_of
from analyticup.settings.loading import load_settings, settings_of
from analyticup.settings.paths import PROJECT, resolve
from analyticup.settings.schema import Settings
from analyticup.terminal import make_console


def ablate(options: argparse.Namespace) -> int:
    """Runs every row of the table for every seed, then writes submissions/ablation-<name>."""
    settings, console, started = settings_of(options), make_console(), time.monotonic()
    rows = [row for row in TABLES[options.table] if row.task in settings.tasks]
    # All rows are read before any of them runs.
    runs = run_rows({row.config: _settings(options, row.config) for row in rows}, rows, console)
    table, name = table_of(runs), ablation_name(settings, options.table)
    folder = resolve(settings.paths.submissions) / name
    told = Told(f"`configs/{settings.name}.yaml`", options.overrides, "the row that it builds on")
    write(folder, "ablation.json", name, settings, table, runs, told)
    for task in settings.tasks:
        if drawn := [seeds[0] for row, seeds in runs.items() if row.task == task and seeds[0].chosen]:
            draw_thresholds(task, drawn[-1].scored, folder / f"{task}.png")
    show(console, "ablation", table, runs)
    console.print(f"table and pictures: {folder}; {time.monotonic() - started:.0f} s", soft_wrap=True)
    data = {file: digest for seeds in runs.values() for run in seeds for file, digest in run.data.items()}
    return int(compare_with_expected(console, name, settings, figures_by_name(table), data))


def ablation_name(settings: Settings, table: str) -> str:
    """Name of the output folder and of the entry in configs/expected.yaml."""
    return f"ablation-{settings.name}" if table == "paper" else f"ablation-{table}-{settings.name}"


def _settings(options: argparse.Namespace, config: str) -> list[Settings]:
    """The settings of one row, for each seed."""
    base, overlay = options.config or PROJECT / "configs" / "sample.yaml", PROJECT / f"configs/ablation/{config}.yaml"
    return seeded(load_settings(base, options.overrides, overlay), options.seeds)
