"""`./run.sh ablate`: runs every row of a table for every seed, then writes the table."""

from __future__ import annotations

import argparse
import time

from rich.console import Console

from analyticup.console import compare_with_expected, exclusive_run, show_execution
from analyticup.engine.environment import describe
from analyticup.engine.execution import execute
from analyticup.engine.job import given_files
from analyticup.engine.workers import Runner, make_runner
from analyticup.errors import UserError
from analyticup.experiments.ablation.output import ablation_name, show, write
from analyticup.experiments.ablation.table import TABLES, figures_by_name
from analyticup.pipeline import MODELS, build
from analyticup.results.paired import RowRun, make_table, read_run
from analyticup.settings.loading import load_settings, settings_of
from analyticup.settings.paths import PROJECT, resolve
from analyticup.settings.schema import Settings
from analyticup.terminal import make_console


def ablate(options: argparse.Namespace) -> int:
    """Runs every row of the table for every seed, then writes submissions/ablation-<name>."""
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: must be at least 1")
    settings, console, started = settings_of(options), make_console(), time.monotonic()
    rows = [row for row in TABLES[options.table] if row.task in settings.tasks]
    plans = {row.config: _ablation_settings(options, row.config) for row in rows}
    runs = {}
    with exclusive_run(settings, console), make_runner(settings, MODELS) as runner:
        for row in rows:
            console.print(f"{row.task} {row.title} (configs/ablation/{row.config}.yaml)", style="bold")
            runs[row.config] = [_ablation_run(row.task, own, runner, console) for own in plans[row.config]]
    table = make_table({name: [run.scored for run in seeds] for name, seeds in runs.items()}, rows)
    name = ablation_name(settings, options.table)
    folder = resolve(settings.paths.submissions) / name
    write(folder, name, settings, table, rows, runs, options.overrides)
    show(console, table, rows, runs)
    console.print(f"table and pictures: {folder}; {time.monotonic() - started:.0f} s", soft_wrap=True)
    data = {file: digest for seeds in runs.values() for run in seeds for file, digest in run.data.items()}
    return int(compare_with_expected(console, name, settings, figures_by_name(table), data))


def _ablation_settings(options: argparse.Namespace, config: str) -> list[Settings]:
    """The settings of one row, for each seed; all rows are read before any of them runs."""
    base, overlay = options.config or PROJECT / "configs" / "sample.yaml", PROJECT / f"configs/ablation/{config}.yaml"
    first = load_settings(base, options.overrides, overlay)
    return [first.replace(seed=first.seed + number) for number in range(options.seeds)]


def _ablation_run(task: str, settings: Settings, runner: Runner, console: Console) -> RowRun:
    nodes, artifacts = build(settings), {}
    steps = execute(settings, nodes, describe(PROJECT), runner)
    show_execution(console, steps, [node.title for node in nodes], artifacts)
    return read_run(task, artifacts, given_files(settings, nodes[-1].file_hashes, artifacts.get("sample-all")))
