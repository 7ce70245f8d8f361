"""What each command does, given its parsed arguments; returns the exit code."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyticup.errors import UserError
from analyticup.settings.schema import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from analyticup.ablation import RowRun
    from analyticup.artifacts import Artifact
    from analyticup.bench.run import Plan
    from analyticup.settings.schema import Settings
    from analyticup.workers import Runner


def _console() -> Console:
    from rich.console import Console

    # Off a terminal rich assumes 80 columns, which breaks the tables. What stands in them may come from a data file.
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=150)


def _settings(options: argparse.Namespace, default: str = "sample.yaml") -> Settings:
    from analyticup.pipeline import PROJECT
    from analyticup.settings.loading import load_settings

    config = options.config or PROJECT / "configs" / default
    return load_settings(config, options.overrides)


def run(options: argparse.Namespace) -> int:
    from analyticup.environment import describe
    from analyticup.expected import figures_by_name
    from analyticup.pipeline import PROJECT, build, execute, resolve
    from analyticup.publish import publish
    from analyticup.report import REPORT, Report, show

    settings, console, started = _settings(options), _console(), time.monotonic()
    nodes = build(settings)
    _say_absent_files(settings, console)
    artifacts: dict[str, Artifact] = {}
    with _alone(settings, console):
        _execute(console, execute(settings, nodes, describe(PROJECT)), len(nodes), artifacts)
        folder = resolve(settings.paths.submissions) / settings.name
        manifest = publish(folder, settings, artifacts)
        _track_summary(settings, nodes[-1].identity[:8], artifacts)
    figures = Report.load(artifacts["report-all"].file(REPORT))
    show(figures, console)
    _say_where(console, folder, settings, artifacts, manifest.final_split)
    failed = _judge(console, settings.name, settings, figures_by_name(figures), manifest.data)
    console.print(f"done in {time.monotonic() - started:.1f} s", markup=False)
    return int(failed)


@contextlib.contextmanager
def _alone(settings: Settings, console: Console) -> Iterator[None]:
    """Holds the artifacts folder, without what interrupted runs left; UserError where another run has it."""
    from analyticup.files import clean_cache, lock, remove_unfinished
    from analyticup.pipeline import resolve

    artifacts = resolve(settings.paths.artifacts)
    with lock(artifacts):
        left = [*remove_unfinished(artifacts), *clean_cache(resolve(settings.paths.cache))]
        for name in left:
            console.print(f"removed {name}, left half-made by an interrupted run", markup=False)
        yield


def _execute(console: Console, steps: object, total: int, artifacts: dict[str, Artifact]) -> None:
    from analyticup.pipeline import Done, Status
    from analyticup.report import describe_counts

    number = 0
    for step in steps:  # type: ignore[attr-defined]
        if isinstance(step, Status):
            number += 1
            state = "cached" if step.artifact else f"running ({step.reason})"
            console.print(f"[{number}/{total}] {step.node.title}: {state}", markup=False)
        elif isinstance(step, Done):
            artifacts[step.status.node.title] = step.artifact
            if step.ran:
                record = step.artifact.record
                title, told = step.status.node.title, describe_counts(record.counts)
                console.print(f"    {title}: {record.seconds:.1f} s: {told}", markup=False)


def _say_absent_files(settings: Settings, console: Console) -> None:
    if settings.data.dir is None:
        console.print("data.dir is not set: the embedded sample corpus is used", markup=False)
        return
    for task in settings.tasks:
        for split in ("dev", "test"):
            path = Path(settings.data.dir).expanduser() / f"{split}_{task}.txt"
            if not path.is_file():
                console.print(f"{path}: absent, so there will be no {split} submission for {task}", markup=False)


def _say_where(
    console: Console, folder: Path, settings: Settings, artifacts: Mapping[str, Artifact], final: str
) -> None:
    data = artifacts["sample-all"].folder if "sample-all" in artifacts else Path(settings.data.dir or "")
    console.print(f"submission ({final} files): {folder}", markup=False, soft_wrap=True)
    for task in settings.tasks:
        if (folder / f"submit_{task}.txt").is_file():
            console.print(
                f"check it: ./run.sh validate --task {task} --input {data / f'{final}_{task}.txt'} "
                f"--submission {folder / f'submit_{task}.txt'}",
                markup=False,
                soft_wrap=True,
            )


def ablate(options: argparse.Namespace) -> int:
    """Runs every row of the table for every seed, then writes submissions/ablation-<name>."""
    from analyticup.ablation import TABLES, figures_by_name, make_table
    from analyticup.ablation_output import ablation_name, show, write
    from analyticup.pipeline import resolve
    from analyticup.workers import make_runner

    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: must be at least 1")
    settings, console, started = _settings(options), _console(), time.monotonic()
    rows = [row for row in TABLES[options.table] if row.task in settings.tasks]
    plans = {row.config: _ablation_settings(options, row.config) for row in rows}
    runs = {}
    with _alone(settings, console), make_runner(settings) as runner:
        for row in rows:
            console.print(f"{row.task} {row.title} (configs/ablation/{row.config}.yaml)", style="bold", markup=False)
            runs[row.config] = [_ablation_run(row.task, own, runner, console) for own in plans[row.config]]
    table = make_table({name: [run.scored for run in seeds] for name, seeds in runs.items()}, rows)
    name = ablation_name(settings, options.table)
    folder = resolve(settings.paths.submissions) / name
    write(folder, name, settings, table, rows, runs, options.overrides)
    show(console, table, rows, runs)
    console.print(f"table and pictures: {folder}; {time.monotonic() - started:.0f} s", markup=False, soft_wrap=True)
    data = {file: digest for seeds in runs.values() for run in seeds for file, digest in run.data.items()}
    return int(_judge(console, name, settings, figures_by_name(table), data))


def _ablation_settings(options: argparse.Namespace, config: str) -> list[Settings]:
    """The settings of one row, for each seed; all rows are read before any of them runs."""
    from analyticup.pipeline import PROJECT
    from analyticup.settings.loading import load_settings

    base, overlay = options.config or PROJECT / "configs" / "sample.yaml", PROJECT / f"configs/ablation/{config}.yaml"
    first = load_settings(base, options.overrides, overlay)
    return [first.replace(seed=first.seed + number) for number in range(options.seeds)]


def _ablation_run(task: str, settings: Settings, runner: Runner, console: Console) -> RowRun:
    from analyticup.ablation import read_run
    from analyticup.environment import describe
    from analyticup.pipeline import PROJECT, build, execute, given_files

    nodes, artifacts = build(settings), {}
    _execute(console, execute(settings, nodes, describe(PROJECT), runner), len(nodes), artifacts)
    return read_run(task, artifacts, given_files(settings, nodes[-1].raw, artifacts.get("sample-all")))


def bench(options: argparse.Namespace) -> int:
    """Measures, shows the table and writes submissions/bench, also after each round; 1 where a variant failed."""
    from analyticup.bench.run import run_bench
    from analyticup.bench.table import COLUMNS, cells, to_markdown
    from analyticup.environment import describe
    from analyticup.files import json_text, write_atomically
    from analyticup.pipeline import PROJECT, resolve
    from analyticup.report import plain_table
    from analyticup.settings.loading import to_dict

    settings, console, started = _settings(options, "small.yaml"), _console(), time.monotonic()
    plan = _bench_plan(options)
    folder = resolve(settings.paths.submissions) / "bench"
    circumstances = {"plan": dataclasses.asdict(plan), "config": to_dict(settings), "environment": describe(PROJECT)}

    def write(records: list[dict[str, Any]], about: list[str]) -> None:
        content = {"about": about, **circumstances, "table": records}
        write_atomically(folder / "bench.json", json_text(content))
        write_atomically(folder / "table.md", to_markdown(records, about))

    records, about = run_bench(settings, plan, lambda text: console.print(text, markup=False, soft_wrap=True), write)
    write(records, about)
    shown = plain_table("bench: median (min..max)", COLUMNS, left=2)
    for record in records:
        shown.add_row(*cells(record))
    console.print(shown)
    for text in [*about, f"table: {folder}; {time.monotonic() - started:.0f} s"]:
        console.print(text, markup=False, soft_wrap=True)
    return int(any(record["failed"] for record in records))


def _bench_plan(options: argparse.Namespace) -> Plan:
    from analyticup.bench.run import Plan

    given: dict[str, Any] = {"rounds": options.rounds, "data_rounds": options.data_rounds}
    given |= {"train_rows": options.train_rows, "score_rows": options.score_rows}
    if options.only is not None:
        given["parts"] = tuple(part.strip() for part in options.only.split(","))
    if options.data_rows is not None:
        try:
            given["data_rows"] = tuple(int(part) for part in options.data_rows.split(","))
        except ValueError:
            raise UserError(f"--data-rows {options.data_rows}: must be whole numbers, e.g. 10000,100000") from None
    return Plan(**given)


def _judge(
    console: Console, name: str, settings: Settings, figures: Mapping[str, float], data: Mapping[str, str]
) -> bool:
    """Says how the figures compare with configs/expected.yaml; True where one fails."""
    from analyticup.expected import compare
    from analyticup.pipeline import PROJECT
    from analyticup.verdict import Verdict

    found = compare(name, settings, figures, data, PROJECT / "configs")
    for item in found:
        console.print(str(item), markup=False, soft_wrap=True)
    return any(item.verdict == Verdict.FAIL for item in found)


def _track_summary(settings: Settings, group: str, artifacts: dict[str, Artifact]) -> None:
    """One summary run in W&B, where something was trained or scored anew."""
    from analyticup.pipeline import resolve
    from analyticup.settings.loading import to_dict
    from analyticup.tracking import log_summary

    marker = artifacts["report-all"]
    log_summary(settings, resolve(settings.paths.artifacts), f"{settings.name}-{group}", to_dict(settings), marker)


def plan(options: argparse.Namespace) -> int:
    from analyticup.pipeline import build, inspect, resolve
    from analyticup.report import plain_table
    from analyticup.settings.loading import task_settings

    settings, console = _settings(options), _console()
    statuses = inspect(build(settings), resolve(settings.paths.artifacts))
    table = plain_table(f"plan of {settings.name}", ("", "stage", "state", "why", "where"), left=5)
    for number, status in enumerate(statuses, 1):
        state, why = ("cached", "made by an earlier run") if status.artifact else ("run", status.reason)
        table.add_row(str(number), status.node.title, state, why, status.folder.name)
    console.print(table)
    for task in settings.tasks:
        own = task_settings(settings, task)
        off = [name for name in ("translate", "negatives", "filter") if not getattr(own, name).enabled]
        if off:
            console.print(f"{task}: switched off by the settings: {', '.join(off)}", markup=False)
    waiting = sum(status.artifact is None for status in statuses)
    where = resolve(settings.paths.artifacts)
    console.print(f"{waiting} of {len(statuses)} stages would run; folders in {where}", markup=False, soft_wrap=True)
    return 0


def check(options: argparse.Namespace) -> int:
    from analyticup.preflight import findings
    from analyticup.verdict import Verdict

    console, found = _console(), findings(_settings(options))
    for number, finding in enumerate(found, 1):
        console.print(f"{number}. {finding.verdict}: {finding.text}", markup=False, soft_wrap=True)
    blocking = sum(finding.verdict == Verdict.FAIL for finding in found)
    console.print("nothing stands in the way" if not blocking else f"{blocking} finding(s) block the run", markup=False)
    return int(blocking > 0)


def validate(options: argparse.Namespace) -> int:
    from analyticup.submission import format_problems, validate_submission

    problems = validate_submission(options.task, options.input, options.submission)
    if problems:
        print(format_problems(problems))
        return 1
    print(f"{options.submission}: valid for {options.input}")
    return 0


def score(options: argparse.Namespace) -> int:
    from analyticup.report import score_table
    from analyticup.submission import score_submission

    scores = score_submission(options.input, options.submission, options.labels, options.scores)
    rows = [*scores.languages, {"language": "all", **scores.overall}]
    _console().print(score_table(str(options.submission), rows))
    return 0


def report(options: argparse.Namespace) -> int:
    from analyticup.pipeline import resolve
    from analyticup.publish import Manifest, no_manifest
    from analyticup.report import REPORT, Report, show

    manifest, _ = Manifest.load(options.run_dir)
    try:
        path = resolve(manifest.config["paths"]["artifacts"]) / manifest.stages["report-all"].folder / REPORT
    except (KeyError, TypeError):
        raise no_manifest(options.run_dir) from None
    if not path.is_file():
        raise UserError(f"{path}: no such file; the run's artifacts are gone, run it again (report.html still stands)")
    try:
        figures = Report.load(path)
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not a report; delete its folder and run again") from None
    show(figures, _console())
    return 0


def verify(options: argparse.Namespace) -> int:
    """A line per item, then how many there are of each verdict."""
    from analyticup.verdict import Verdict, tally
    from analyticup.verify import verify_run

    console, found = _console(), []
    for item in verify_run(options.run_dir, options.overrides):
        found.append(item)
        console.print(f"{item.verdict:<7}  {item.what}: {item.text}", markup=False, soft_wrap=True)
    console.print(tally(found, (Verdict.OK, Verdict.NEAR, Verdict.SKIPPED, Verdict.FAIL)), markup=False)
    return int(any(item.verdict == Verdict.FAIL for item in found))
