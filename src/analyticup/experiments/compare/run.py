"""What `compare` and `ablate` share: each row of a table is trained for every seed, and stages that rows have in common
only once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from analyticup.checks import NEEDS
from analyticup.console import exclusive_run, refuse_blocked, run_stages
from analyticup.engine.environment import describe
from analyticup.engine.graph import Node
from analyticup.engine.job import given_files
from analyticup.engine.workers import Runner, make_runner
from analyticup.pipeline import MODELS, build
from analyticup.results.paired import Entry, Row, RowRun, make_table, read_run
from analyticup.settings.paths import PROJECT
from analyticup.settings.schema import Settings

# The runs of each row of a table, one per seed.
Runs = dict[Row, list[RowRun]]


def seeded(first: Settings, seeds: int) -> list[Settings]:
    """The settings with `seeds` seeds, one or more, from their own on."""
    return [first.replace(seed=first.seed + number) for number in range(seeds)]


def run_rows(plans: Mapping[str, Sequence[Settings]], rows: Sequence[Row], console: Console) -> Runs:
    """Runs what is not cached. `plans`: what `rows` call a config, and its settings, one per seed.

    Where the runs write and on what they are executed is what the first of them says. Raises UserError for what would
    block any of them before the first one runs.
    """
    first = next(iter(plans.values()))[0]
    alike = {name: getattr(first, name) for name in ("paths", "machine", "tracking")}
    plans = {config: [settings.replace(**alike) for settings in seeds] for config, seeds in plans.items()}
    graphs = {config: [(settings, build(settings)) for settings in seeds] for config, seeds in plans.items()}
    found: dict[Row, list[RowRun]] = {row: [] for row in rows}
    with exclusive_run(first, console), make_runner(first, MODELS, NEEDS) as runner:
        for config, seeds in graphs.items():
            for settings, nodes in seeds:
                # What blocks a config blocks each of its seeds, but those that are cached run nothing.
                if refuse_blocked(settings, nodes, runner, console, config):
                    break
        for config, seeds in graphs.items():
            own = [row for row in rows if row.config == config]
            for settings, nodes in seeds:
                console.print(f"{config}, seed {settings.seed}: {', '.join(row.task for row in own)}", style="bold")
                for row, run in zip(own, _run(own, settings, nodes, runner, console), strict=True):
                    found[row].append(run)
    return found


def _run(
    rows: Sequence[Row], settings: Settings, nodes: Sequence[Node], runner: Runner, console: Console
) -> list[RowRun]:
    artifacts = run_stages(settings, nodes, describe(PROJECT), runner, console, checked=True)
    files = given_files(settings, nodes[-1].file_hashes, artifacts.get("sample-all"))
    return [read_run(row.task, artifacts, files) for row in rows]


def table_of(runs: Mapping[Row, Sequence[RowRun]]) -> list[Entry]:
    """The entries of all rows, task by task in the order of the rows."""
    table: list[Entry] = []
    for task in dict.fromkeys(row.task for row in runs):
        own = {row: [run.scored for run in seeds] for row, seeds in runs.items() if row.task == task}
        table += make_table({row.config: seeds for row, seeds in own.items()}, list(own))
    return table
