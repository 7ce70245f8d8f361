"""What each command does, given its parsed arguments; returns the exit code."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analyticup.checks import NEEDS
from analyticup.console import compare_with_expected, exclusive_run, run_stages
from analyticup.corpus.official import alike
from analyticup.engine.artifacts import Artifact
from analyticup.engine.environment import describe
from analyticup.engine.execution import run_group, run_tags
from analyticup.engine.graph import Node, Status, inspect
from analyticup.engine.memory import Watch
from analyticup.engine.workers import make_runner
from analyticup.errors import UserError
from analyticup.filtering import decision_files
from analyticup.pipeline import MODELS, build
from analyticup.settings.loading import settings_of, task_settings
from analyticup.settings.paths import PROJECT, resolve
from analyticup.settings.schema import Settings
from analyticup.terminal import make_console, plain_table, size_text
from analyticup.verdict import Verdict, tally

if TYPE_CHECKING:
    from rich.console import Console

    from analyticup.results.finished import Finished


def run(options: argparse.Namespace) -> int:
    from analyticup.report.figures import REPORT, Report
    from analyticup.report.tables import show
    from analyticup.results.expected import figures_by_name
    from analyticup.results.manifest import foreign_manifest
    from analyticup.results.publish import publish
    from analyticup.results.tracked import log_finished
    from analyticup.tracking import close_left_open

    settings, console, started = settings_of(options), make_console(), time.monotonic()
    nodes = build(settings)
    folder = resolve(settings.paths.submissions) / settings.name
    if fault := foreign_manifest(folder):
        raise UserError(fault)
    _say_absent_files(settings, console)
    for path in decision_files(settings).values():
        console.print(f"{path}: people's decisions on rows are used", soft_wrap=True)
    environment = describe(PROJECT)
    with exclusive_run(settings, console), Watch() as watch:
        for left in close_left_open(resolve(settings.paths.artifacts)):
            console.print(f"{left}: closed the W&B run that an interrupted run left open", soft_wrap=True)
        with make_runner(settings, MODELS, NEEDS) as runner:
            artifacts = run_stages(settings, nodes, environment, runner, console)
            manifest = publish(folder, settings, artifacts, runner)
            group, tags = run_group(settings, nodes), run_tags(settings, nodes, environment)
            log_finished(settings, group, tags, artifacts, runner)
    figures = Report.load(artifacts["report-all"].file(REPORT))
    show(figures, console)
    _say_where(console, folder, settings, artifacts, manifest.final_split)
    failed = compare_with_expected(console, settings.name, settings, figures_by_name(figures), manifest.data)
    console.print(
        f"done in {time.monotonic() - started:.1f} s; at most {size_text(watch.peak)} of memory over all processes"
    )
    return int(failed)


def _say_absent_files(settings: Settings, console: Console) -> None:
    if settings.data.dir is None:
        console.print("data.dir is not set: the embedded sample corpus is used")
        return
    for task in settings.tasks:
        for split in ("dev", "test"):
            path = Path(settings.data.dir).expanduser() / f"{split}_{task}.txt"
            if not path.is_file():
                also = alike(path.parent, path.name)
                console.print(f"{path}: absent{also}, so there will be no {split} submission for {task}")


def _say_where(
    console: Console, folder: Path, settings: Settings, artifacts: Mapping[str, Artifact], final: str
) -> None:
    if settings.tracking.mode == "offline":
        runs = resolve(settings.paths.artifacts) / "wandb" / "offline-run-*"
        console.print(f"upload to W&B: {Path(sys.executable).with_name('wandb')} sync {runs}", soft_wrap=True)
    data = artifacts["sample-all"].folder if "sample-all" in artifacts else Path(settings.data.dir or "")
    console.print(f"submission ({final} files): {folder}", soft_wrap=True)
    for task in settings.tasks:
        if (folder / f"submit_{task}.txt").is_file():
            console.print(
                f"check it: ./run.sh validate --task {task} --input {data / f'{final}_{task}.txt'} "
                f"--submission {folder / f'submit_{task}.txt'}",
                soft_wrap=True,
            )


def plan(options: argparse.Namespace) -> int:
    settings, console = settings_of(options), make_console()
    statuses = inspect(build(settings), resolve(settings.paths.artifacts))
    if options.gpus or options.split:
        return _simulated(settings, statuses, options, console)
    table = plain_table(f"plan of {settings.name}", ("", "stage", "state", "why", "where"), left=5)
    for number, status in enumerate(statuses, 1):
        state, why = ("cached", "made by an earlier run") if status.artifact else ("run", status.reason)
        table.add_row(str(number), status.node.title, state, why, status.folder.name)
    console.print(table)
    for task in settings.tasks:
        own = task_settings(settings, task)
        off = [name for name in vars(own) if not getattr(getattr(own, name), "enabled", True)]
        if off:
            console.print(f"{task}: switched off by the settings: {', '.join(off)}")
    waiting = sum(status.artifact is None for status in statuses)
    where = resolve(settings.paths.artifacts)
    _say_time(settings, console)
    if settings.machine.engine == "ray":
        _say_cluster(settings, [status.node for status in statuses], console)
    console.print(f"{waiting} of {len(statuses)} stages would run; folders in {where}", soft_wrap=True)
    return 0


def _simulated(settings: Settings, statuses: Sequence[Status], options: argparse.Namespace, console: Console) -> int:
    from analyticup.checks.simulation import simulate

    names = {status.node.stage.name for status in statuses}
    if unknown := sorted(options.split.keys() - names):
        raise UserError(f"--split {', '.join(unknown)}: no such stage here; there are {', '.join(sorted(names))}")
    gpus = options.gpus or [settings.machine.devices]
    if min(gpus) < settings.machine.devices:
        raise UserError(
            f"--gpus {min(gpus)}: each worker takes machine.devices = {settings.machine.devices}; ask for more"
        )
    found = simulate(settings, statuses, gpus, options.split)
    table = plain_table(f"{settings.name} on several GPUs", ("GPUs", "hours", "idle"), left=0)
    for count, seconds in found.seconds.items():
        table.add_row(str(count), f"{seconds / 3600:.2f}", f"{found.idle[count]:.0%}")
    console.print(table)
    chain = f"{found.chained / 3600:.2f} h wait for one another: {', '.join(found.chain)}"
    console.print(f"{chain}\nestimate: {found.basis}", soft_wrap=True)
    return 0


def _say_cluster(settings: Settings, nodes: Sequence[Node], console: Console) -> None:
    from analyticup.engine.cluster import cluster_address

    address, workers, devices = cluster_address(), settings.machine.workers, settings.machine.devices
    where = f"the cluster at {address}" if address else "a cluster of its own on this machine, which ends with the run"
    console.print(f"engine: Ray, on {where}", soft_wrap=True)
    if settings.machine.accelerator != "cpu":
        plain = ", ".join(dict.fromkeys(node.stage.name for node in nodes if not node.stage.model))
        each = "each GPU" if devices == 1 else f"{devices} GPUs"
        console.print(f"a worker for {each}; beside them, without one: {plain}", soft_wrap=True)
    given = "there" if settings.machine.accelerator == "cpu" else "where there are no GPUs"
    console.print(f"{workers} workers on each node {given} (machine.workers)", soft_wrap=True)


def _say_time(settings: Settings, console: Console) -> None:
    """How long all stages would take, where this machine's GPU was measured."""
    from analyticup.checks.timing import measured_rates, time_findings

    if measured_rates(resolve(settings.paths.submissions)) is None:
        return
    from analyticup.checks.models import needed_models

    parameters = needed_models(settings, resolve(settings.paths.cache))[0].parameters
    for finding in time_findings(settings, parameters, on_gpu=True):
        console.print(finding.text, soft_wrap=True)


def check(options: argparse.Namespace) -> int:
    from analyticup.checks.finding import Finding
    from analyticup.checks.preflight import findings
    from analyticup.results.manifest import foreign_manifest

    settings, console = settings_of(options), make_console()
    found = findings(settings)
    if fault := foreign_manifest(resolve(settings.paths.submissions) / settings.name):
        found.append(Finding(Verdict.FAIL, fault))
    for number, finding in enumerate(found, 1):
        console.print(f"{number}. {finding.verdict}: {finding.text}", soft_wrap=True)
    blocking = sum(finding.verdict == Verdict.FAIL for finding in found)
    console.print("no blockers found" if not blocking else f"{blocking} finding(s) block the run")
    return int(blocking > 0)


def validate(options: argparse.Namespace) -> int:
    from analyticup.submission.validate import format_problems, validate_submission

    problems = validate_submission(options.task, options.input, options.submission)
    if problems:
        print(format_problems(problems))
        return 1
    print(f"{options.submission}: valid for {options.input}")
    return 0


def score(options: argparse.Namespace) -> int:
    from analyticup.report.tables import score_table
    from analyticup.submission.score import score_submission

    scores = score_submission(options.input, options.submission, options.labels, options.scores)
    rows = [*scores.languages, {"language": "all", **scores.overall}]
    make_console().print(score_table(str(options.submission), rows))
    return 0


def report(options: argparse.Namespace) -> int:
    from analyticup.report.tables import show
    from analyticup.results.finished import read_finished
    from analyticup.results.manifest import PAGE
    from analyticup.results.page import run_page
    from analyticup.results.publish import publish_page

    console = make_console()
    finished = [read_finished(folder) for folder in options.run_dirs]
    if len(finished) > 1:
        return _side_by_side(finished, options.out, console)
    if options.out:
        raise UserError(f"--out {options.out}: the page of one run is in its folder; leave --out away")
    (run,) = finished
    publish_page(run.folder, run.manifest, run_page(run.manifest, run.settings, run.artifacts))
    show(run.figures, console)
    console.print(f"as a page: {run.folder / PAGE}", soft_wrap=True)
    return 0


def _side_by_side(finished: list[Finished], out: Path | None, console: Console) -> int:
    from analyticup.engine.files import write_atomically
    from analyticup.results.comparison import compare_runs, comparison_html, comparison_path, differences_grid

    found = compare_runs(finished)
    for task, rows in found.rows.items():
        if task in found.entries:
            grid = differences_grid(found.entries[task])
            table = plain_table(f"{task}: differences to {found.first}, on {rows}", grid.columns, grid.left)
            for row in grid.rows:
                table.add_row(*map(str, row))
            console.print(table)
        else:
            console.print(f"{task}: not compared: {rows}", soft_wrap=True)
    path = out or comparison_path(found)
    write_atomically(path, comparison_html(found))
    console.print(f"as a page: {path}", soft_wrap=True)
    return 0


def verify(options: argparse.Namespace) -> int:
    """A line per item, then how many there are of each verdict."""
    from analyticup.results.verify import verify_run

    console, found = make_console(), []
    for item in verify_run(options.run_dir, options.overrides):
        found.append(item)
        console.print(f"{item.verdict:<7}  {item.what}: {item.text}", soft_wrap=True)
    console.print(tally(found, (Verdict.OK, Verdict.NEAR, Verdict.SKIPPED, Verdict.FAIL)))
    return int(any(item.verdict == Verdict.FAIL for item in found))
