"""`./run.sh report A B C`: finished runs side by side, with paired differences to the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyticup.engine.job import given_files
from analyticup.errors import UserError
from analyticup.metrics import ALL
from analyticup.report import charts
from analyticup.report.page import Figure, Grid, Section, between, render
from analyticup.report.tables import number
from analyticup.results.finished import Finished
from analyticup.results.page import changed_settings, value_text
from analyticup.results.paired import Entry, Row, RowRun, cost, difference, make_table, read_run

# Of each language group, in the order in which they are shown.
SHOWN = {"f1": "F1", "auc": "ROC-AUC"}
# Where a run writes and how it is executed is told apart from what decides its figures.
_PLACES = ("paths.", "machine.", "tracking.", "report.")


@dataclass(frozen=True)
class Comparison:
    """Runs by the names they are given here, the first of them the one that the others are compared with. `entries` are
    by task those of `make_table`; `rows` names the rows that they are on, or says why there are none."""

    runs: Mapping[str, Finished]
    entries: Mapping[str, list[Entry]]
    rows: Mapping[str, str]

    @property
    def first(self) -> str:
        return next(iter(self.runs))


def compare_runs(finished: Sequence[Finished]) -> Comparison:
    """Paired are the rows with known labels that all runs scored: dev, else test, else training rows out of fold.

    UserError where no task is in all runs. A task whose rows are not the same in all runs has no entries.
    """
    folders = [run.folder.resolve() for run in finished]
    names = [
        folder.name if [one.name for one in folders].count(folder.name) == 1 else str(folder) for folder in folders
    ]
    if len(set(names)) < len(names):
        raise UserError(f"{finished[0].folder}: given twice; a run can only be compared with another one")
    runs = dict(zip(names, finished, strict=True))
    tasks = [task for task in finished[0].settings.tasks if all(task in run.settings.tasks for run in finished)]
    if not tasks:
        raise UserError(f"{', '.join(names)}: no task is in all of these runs; compare runs of one task")
    entries: dict[str, list[Entry]] = {}
    rows: dict[str, str] = {}
    for task in tasks:
        read = {name: _read(task, run) for name, run in runs.items()}
        rows[task] = _fault(read) or next(iter(read.values())).split
        if not _fault(read):
            given = [Row(task, name, name, None if name == names[0] else names[0]) for name in names]
            entries[task] = make_table({name: [run.scored] for name, run in read.items()}, given)
    return Comparison(runs, entries, rows)


def _read(task: str, run: Finished) -> RowRun:
    files = given_files(run.settings, run.manifest.data, run.artifacts.get("sample-all"))
    return read_run(task, run.artifacts, {name: path for name, path in files.items() if path.is_file()})


def _fault(read: Mapping[str, RowRun]) -> str:
    """Why the rows of these runs cannot be paired; "" where they can."""
    (first, base), *others = read.items()
    faults = ((name, difference(run, base)) for name, run in others)
    return next((f"{name} and {first} {fault}" for name, fault in faults if fault), "")


def comparison_html(found: Comparison) -> str:
    """The comparison as one self-contained page."""
    names = list(found.runs)
    return render(
        "comparison.html", title=" · ".join(names), names=names, first=found.first, sections=list(_sections(found))
    )


def _sections(found: Comparison) -> Iterator[Section]:
    differences = [_differences(task, found) for task in found.rows]
    yield Section(
        "differences",
        f"Differences to {found.first}",
        "A dot is the figure less that of the first run on the same rows, its line the 95 % interval over queries, "
        "drawn alike for both. One that holds 0 shows no difference and is grey.",
        differences,
    )
    yield Section(
        "languages",
        "F1 by language",
        "On the rows whose labels are known, as in each run's own report.",
        [figure for task in found.rows for figure in _languages(task, found)],
    )
    yield Section(
        "settings",
        "What was set differently",
        f"Settings that do not have the same value in all runs; {charts.NONE} is the default.",
        [_settings(found)],
    )
    yield Section("cost", "Time and memory", "Sums over the stages, and the highest peak of one.", [_cost(found)])


def _differences(task: str, found: Comparison) -> Figure:
    if task not in found.entries:
        return Figure(task, note=f"Not paired: {found.rows[task]}.")
    entries = found.entries[task]
    bars = [
        charts.Difference(entry["config"], charts.GROUPS[entry["languages"]], SHOWN[name], *_gain(entry[name]["gain"]))  # type: ignore
        for name in SHOWN
        for entry in entries
        if entry["config"] != found.first
    ]
    title = f"{task}, {entries[0]['rows']} rows: {found.rows[task]}"
    return Figure(
        title, charts.difference_chart(f"{task}: differences to {found.first}", bars), differences_grid(entries)
    )


def _gain(gain: Mapping[str, Any]) -> tuple[float, float, float]:
    return gain["value"], gain["low"], gain["high"]


def differences_grid(entries: Sequence[Entry]) -> Grid:
    """A row for each run and group of languages: figures with intervals, and their differences with theirs."""
    columns = ["run", "languages", "rows", "floor"]
    for name in SHOWN.values():
        columns += [name, "95 %", "difference", "95 %"]
    rows = []
    for entry in entries:
        row = [entry["config"], charts.GROUPS[entry["languages"]]]
        row += [charts.whole(entry["rows"]), number(entry["floor_f1"])]
        for name in SHOWN:
            figure: Any = entry[name]  # type: ignore[literal-required]
            row += [number(figure["value"]), between((figure["low"], figure["high"]))]
            gain = figure.get("gain")
            row += [charts.signed(gain["value"]), _signed_range(gain)] if gain else [charts.NONE, charts.NONE]
        rows.append(row)
    return Grid(columns, rows, 2)


def _signed_range(gain: Mapping[str, Any]) -> str:
    return f"{charts.signed(gain['low'])} to {charts.signed(gain['high'])}"


def _languages(task: str, found: Comparison) -> Iterator[Figure]:
    split = found.rows[task].split()[0]
    title = next((name for name in (f"{split} {task}", f"out-of-fold {task}") if task in found.entries), "")
    pictures = {name: run.figures.pictures.get(title) for name, run in found.runs.items()}
    if not all(pictures.values()):
        return
    f1 = {
        name: {row["language"]: row["f1"] for row in picture["languages"]}
        for name, picture in pictures.items()
        if picture
    }
    first = pictures[found.first]
    assert first is not None
    rows = [
        [row["language"], charts.whole(row["rows"]), number(row["floor_f1"])]
        + [number(f1[name].get(row["language"])) for name in found.runs]
        for row in first["languages"]
    ]
    shown = [row for row in first["languages"] if row["language"] not in charts.GROUPS or row["language"] == ALL]
    lines = [
        (row["language"], row["floor_f1"], [f1[name].get(row["language"]) for name in found.runs]) for row in shown
    ]
    drawing = charts.side_by_side_chart(f"{title}: F1 by language of {', '.join(found.runs)}", list(found.runs), lines)
    yield Figure(title, drawing, Grid(["language", "rows", "floor", *found.runs], rows))


def _settings(found: Comparison) -> Figure:
    changed = {name: changed_settings(run.settings) for name, run in found.runs.items()}
    keys = sorted({key for own in changed.values() for key in own if key != "name" and not key.startswith(_PLACES)})
    rows = [
        [key, *(value_text(own[key]) if key in own else charts.NONE for own in changed.values())]
        for key in keys
        if len({value_text(own.get(key)) for own in changed.values()}) > 1
    ]
    note = "" if rows else "Nothing that decides a figure."
    return Figure("Settings", grid=Grid(["setting", *changed], rows, 1 + len(changed)), note=note, wide=True)


def _cost(found: Comparison) -> Figure:
    rows = []
    for name, run in found.runs.items():
        _, peak = cost(run.artifacts.values())
        git = str(run.manifest.environment.get("git", "unknown"))[:12]
        rows.append([name, git, str(len(run.artifacts)), f"{run.manifest.seconds:.0f}", f"{peak / 1e9:.2f}"])
    return Figure(
        "Runs", grid=Grid(["run", "git revision", "stages", "seconds", "highest peak, GB"], rows, 2), wide=True
    )


def comparison_path(found: Comparison) -> Path:
    """Next to the first run's folder."""
    names = "-".join(run.folder.resolve().name for run in found.runs.values())
    return found.runs[found.first].folder.resolve().with_name(f"{names}.html")
