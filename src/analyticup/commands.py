"""What each command does, given its parsed arguments; returns the exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyticup.config import Settings
from analyticup.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from analyticup.ablation import Scored
    from analyticup.artifacts import Artifact
    from analyticup.train import ModelSource


def _console() -> Console:
    from rich.console import Console

    # Off a terminal rich assumes 80 columns, which breaks the tables. What stands in them may come from a data file.
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=150)


def _settings(options: argparse.Namespace) -> Settings:
    from analyticup.config_loading import load_settings
    from analyticup.pipeline import PROJECT

    config = options.config or PROJECT / "configs" / "sample.yaml"
    return load_settings(config, options.overrides)


def run(options: argparse.Namespace) -> int:
    from analyticup.artifacts import lock, remove_unfinished
    from analyticup.environment import describe
    from analyticup.pipeline import PROJECT, build, execute, resolve
    from analyticup.publish import publish
    from analyticup.report import show

    settings, console, started = _settings(options), _console(), time.monotonic()
    nodes = build(settings)
    _say_absent_files(settings, console)
    artifacts: dict[str, Artifact] = {}
    with lock(resolve(settings.paths.artifacts)):
        for name in remove_unfinished(resolve(settings.paths.artifacts)):
            console.print(f"removed {name}, left half-made by an interrupted run", markup=False)
        _execute(console, execute(settings, nodes, describe(PROJECT)), len(nodes), artifacts)
        folder = resolve(settings.paths.submissions) / settings.name
        publish(folder, settings, artifacts)
        _track_summary(settings, nodes[-1].identity[:8], artifacts)
    figures = json.loads(artifacts["report-all"].file("report.json").read_text(encoding="utf-8"))
    show(figures, console)
    _say_where(console, folder, settings, artifacts)
    failed = _judge(console, settings, figures, folder)
    console.print(f"done in {time.monotonic() - started:.1f} s", markup=False)
    return int(failed)


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
                console.print(f"    {record['seconds']:.1f} s: {describe_counts(record['counts'])}", markup=False)


def _say_absent_files(settings: Settings, console: Console) -> None:
    if settings.data.dir is None:
        console.print("data.dir is not set: the embedded sample corpus is used", markup=False)
        return
    for task in settings.tasks:
        for split in ("dev", "test"):
            path = Path(settings.data.dir).expanduser() / f"{split}_{task}.txt"
            if not path.is_file():
                console.print(f"{path}: absent, so there will be no {split} submission for {task}", markup=False)


def _say_where(console: Console, folder: Path, settings: Settings, artifacts: dict[str, Artifact]) -> None:
    data = artifacts["sample-all"].folder if "sample-all" in artifacts else Path(settings.data.dir or "")
    final = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["final_split"]
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
    """Runs every row of the ablation for every seed, then writes submissions/ablation-<name>."""
    from analyticup.ablation import ROWS, draw_thresholds, make_table
    from analyticup.artifacts import lock
    from analyticup.pipeline import model_source, resolve

    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: must be at least 1")
    settings, console, started = _settings(options), _console(), time.monotonic()
    rows = [row for row in ROWS if row.task in settings.tasks]
    plans = {row.config: _ablation_settings(options, row.config) for row in rows}
    source, runs = model_source(settings), {}
    with lock(resolve(settings.paths.artifacts)):
        for row in rows:
            console.print(f"{row.task} {row.title} (configs/ablation/{row.config}.yaml)", style="bold", markup=False)
            runs[row.config] = [_ablation_run(row.task, own, source, console) for own in plans[row.config]]
    table = make_table({name: [scored for _, scored in found] for name, found in runs.items()}, rows)
    folder = resolve(settings.paths.submissions) / f"ablation-{settings.name}"
    folder.mkdir(parents=True, exist_ok=True)
    _write_ablation(folder, settings, table, runs, options)
    for task in settings.tasks:
        draw_thresholds(task, runs[[row.config for row in rows if row.task == task][-1]][0][1], folder / f"{task}.png")
    _show_ablation(console, table)
    console.print(f"table and pictures: {folder}; {time.monotonic() - started:.0f} s", markup=False, soft_wrap=True)
    return 0


def _ablation_settings(options: argparse.Namespace, config: str) -> list[Settings]:
    """The settings of one row, for each seed; all rows are read before any of them runs."""
    from analyticup.config_loading import load_settings
    from analyticup.pipeline import PROJECT

    base, overlay = options.config or PROJECT / "configs" / "sample.yaml", PROJECT / f"configs/ablation/{config}.yaml"
    first = load_settings(base, options.overrides, overlay)
    return [dataclasses.replace(first, seed=first.seed + number) for number in range(options.seeds)]


def _ablation_run(task: str, settings: Settings, source: ModelSource, console: Console) -> tuple[str, Scored]:
    from analyticup.ablation import read_scored
    from analyticup.environment import describe
    from analyticup.pipeline import PROJECT, build, execute, given_files

    nodes, artifacts = build(settings), {}
    _execute(console, execute(settings, nodes, describe(PROJECT), source), len(nodes), artifacts)
    return read_scored(task, artifacts, given_files(settings, nodes[-1].raw, artifacts.get("sample-all")))


def _write_ablation(
    folder: Path,
    settings: Settings,
    table: list[dict[str, Any]],
    runs: dict[str, list[tuple[str, Scored]]],
    options: argparse.Namespace,
) -> None:
    from analyticup.ablation import to_csv, to_markdown
    from analyticup.artifacts import write_atomically
    from analyticup.config_loading import to_dict
    from analyticup.pipeline import resolve
    from analyticup.tracking import log_table

    scored_on = ", ".join(sorted({split for found in runs.values() for split, _ in found}))
    about = (
        f"Ablation of {settings.name}, scored on {scored_on} rows, {options.seeds} seed(s). In brackets: 95 % "
        f"bootstrap interval over queries. A gain is the paired difference to the row that it builds on."
    )
    write_atomically(folder / "table.md", to_markdown(table, about))
    write_atomically(folder / "table.csv", to_csv(table))
    content = {"about": about, "config": to_dict(settings), "overrides": options.overrides, "table": table}
    write_atomically(folder / "ablation.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    log_table(settings, resolve(settings.paths.artifacts), f"ablation-{settings.name}", table)


def _show_ablation(console: Console, table: list[dict[str, Any]]) -> None:
    from analyticup.ablation import COLUMNS, cells
    from analyticup.report import plain_table

    shown = plain_table("ablation (95 % bootstrap intervals over queries)", COLUMNS, left=3)
    for entry in table:
        shown.add_row(*cells(entry))
    console.print(shown)


def _judge(console: Console, settings: Settings, figures: dict[str, Any], folder: Path) -> bool:
    """Says how the figures compare with configs/expected.yaml; True where one fails."""
    from analyticup.expected import FAIL, verdicts
    from analyticup.pipeline import PROJECT

    data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["data"]
    found = verdicts(settings, figures, data, PROJECT / "configs")
    if isinstance(found, str):
        console.print(f"not compared with expected figures: {found}", markup=False, soft_wrap=True)
        return False
    for one in found:
        text = f"{one.figure} {one.value:.4f}, expected {one.expected:.4f} ± {one.tolerance:.4f}"
        console.print(f"{one.verdict}: {text}", markup=False)
    return any(one.verdict == FAIL for one in found)


def _track_summary(settings: Settings, group: str, artifacts: dict[str, Artifact]) -> None:
    """One summary run in W&B, where something was trained or scored anew."""
    from analyticup.config_loading import to_dict
    from analyticup.pipeline import resolve
    from analyticup.tracking import log_summary

    marker = artifacts["report-all"]
    log_summary(settings, resolve(settings.paths.artifacts), f"{settings.name}-{group}", to_dict(settings), marker)


def plan(options: argparse.Namespace) -> int:
    from analyticup.config_loading import task_settings
    from analyticup.pipeline import build, inspect, resolve
    from analyticup.report import plain_table

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

    console, blocking = _console(), 0
    settings = _settings(options)
    for number, finding in enumerate(findings(settings), 1):
        blocking += finding.level == "blocks"
        console.print(f"{number}. {finding.level}: {finding.text}", markup=False, soft_wrap=True)
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
    from analyticup.report import show

    manifest = options.run_dir / "manifest.json"
    try:
        read = json.loads(manifest.read_text(encoding="utf-8"))
        path = resolve(read["config"]["paths"]["artifacts"]) / read["stages"]["report-all"]["folder"] / "report.json"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{manifest}: no readable manifest; give the folder of a finished run, e.g. submissions/sample"
        ) from None
    if not path.is_file():
        raise UserError(f"{path}: no such file; the run's artifacts are gone, run it again (report.html still stands)")
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: not a report; delete its folder and run again") from None
    show(figures, _console())
    return 0
