"""What `compare` and `ablate` write and show: the table as Markdown, CSV, JSON and in W&B, and the pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from analyticup.engine.files import json_text, write_atomically
from analyticup.metrics import FIGURES, f1_at_thresholds
from analyticup.report import tables
from analyticup.report.tables import filter_table
from analyticup.results.paired import Entry, Gain, Row, RowRun, Scored
from analyticup.settings.paths import resolve
from analyticup.settings.schema import Settings, run_only
from analyticup.terminal import markdown_table, plain_table
from analyticup.tracking import log_table

COLUMNS = ("task", "row", "languages", "rows", "floor F1", "F1", "gain", "AUC", "gain", "AP", "gain")
LONG_COLUMNS = (
    *("task", "config", "row", "languages", "rows", "seeds", "floor_f1", "figure"),
    *("value", "low", "high", "seed_sd", "gain", "gain_low", "gain_high", "inside_noise"),
)
COST_COLUMNS = ("task", "row", "seconds", "peak GB")


@dataclass(frozen=True)
class Told:
    """What is said above a table: the configs, the overrides on top of them, what a gain is a difference to, and what
    else is to know."""

    configs: str
    overrides: Sequence[str]
    parent: str
    notes: Sequence[str] = ()


def write(
    folder: Path,
    file: str,
    name: str,
    settings: Settings,
    table: Sequence[Entry],
    runs: Mapping[Row, Sequence[RowRun]],
    told: Told,
) -> None:
    """Writes table.md, table.csv and `file`, the same as JSON, into the folder; logs the table in W&B as `name`.
    `settings` are those of the first row."""
    every = [run for seeds in runs.values() for run in seeds]
    scored_on = ", ".join(sorted({run.split for run in every}))
    telling = [text for text in told.overrides if not run_only(text.partition("=")[0])]
    given = f" with {' '.join(telling)}" if telling else ""
    about = " ".join(
        [
            f"{told.configs}{given}, scored on {scored_on} rows, {table[0]['seeds']} seed(s). In brackets: 95 % "
            f"bootstrap interval over queries. A gain is the paired difference to {told.parent}.",
            *(f"{note}." for note in told.notes),
        ]
    )
    quality = filter_quality(runs)
    costs = [cost_cells(row, seeds) for row, seeds in runs.items()]
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{to_markdown(table, about)}\n{_ABOUT_COST}\n\n{markdown_table(COST_COLUMNS, costs)}"
    if quality:
        text += "\n" + markdown_table(list(quality[0]), map(tables.cells, quality))
    write_atomically(folder / "table.md", text)
    write_atomically(folder / "table.csv", to_csv(table))
    content = {"about": about, "config": settings.model_dump(), "overrides": list(told.overrides), "table": table}
    content["cost"] = [dict(zip(COST_COLUMNS, cells, strict=True)) for cells in costs]
    content |= {"filter": quality} if quality else {}
    write_atomically(folder / file, json_text(content))
    log_table(settings, resolve(settings.paths.artifacts), name, LONG_COLUMNS, long_rows(table))


_ABOUT_COST = (
    "Seconds of a task's stages when they were made, the mean over the seeds, and the highest peak of one. What rows "
    "share counts for each of them."
)


def show(console: Console, title: str, table: Sequence[Entry], runs: Mapping[Row, Sequence[RowRun]]) -> None:
    shown = plain_table(f"{title} (95 % bootstrap intervals over queries)", COLUMNS, left=3)
    for entry in table:
        shown.add_row(*cells(entry))
    console.print(shown)
    cost = plain_table("time and memory of the stages when they were made", COST_COLUMNS, left=2)
    for row, seeds in runs.items():
        cost.add_row(*cost_cells(row, seeds))
    console.print(cost)
    quality = filter_quality(runs)
    if quality:
        console.print(filter_table("suspects against the labels that are known to be wrong", quality, left=2))


def cost_cells(row: Row, seeds: Sequence[RowRun]) -> list[str]:
    """The texts of COST_COLUMNS."""
    seconds, peak = float(np.mean([run.seconds for run in seeds])), max(run.memory for run in seeds)
    return [row.task, row.title, f"{seconds:.0f}", f"{peak / 1e9:.2f}"]


def filter_quality(runs: Mapping[Row, Sequence[RowRun]]) -> list[dict[str, Any]]:
    """How each filter found the labels that are known to be wrong, by rule, for the first seed of every row."""
    return [{"row": row.title, **entry} for row, seeds in runs.items() for entry in seeds[0].filter_quality]


def cells(entry: Entry) -> list[str]:
    """One entry of `make_table` as the texts of COLUMNS."""
    shown = [entry["task"], entry["row"], entry["languages"], str(entry["rows"]), _number(entry["floor_f1"])]
    for name in ("f1", "auc", "ap"):
        figure = entry[name]
        spread = "" if figure["seed_sd"] is None else f", s.d. over seeds {_number(figure['seed_sd'])}"
        shown.append(f"{_number(figure['value'])} [{_number(figure['low'])}, {_number(figure['high'])}]{spread}")
        shown.append(_gain(figure.get("gain")))
    return shown


def _number(value: float) -> str:
    return f"{value:.4f}".replace("0.", ".", 1)


def _gain(gain: Gain | None) -> str:
    if gain is None:
        return "-"
    if not gain["value"] and not gain["low"] and not gain["high"]:
        return "+0.0000, the same"
    text = f"{gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"
    return f"{text} inside the noise" if gain["inside_noise"] else text


def to_markdown(table: Sequence[Entry], about: str) -> str:
    return f"{about}\n\n{markdown_table(COLUMNS, map(cells, table))}"


def long_rows(table: Sequence[Entry]) -> list[list[Any]]:
    """One row of LONG_COLUMNS per entry and figure, numbers unrounded, None where there is none."""
    found = []
    for entry in table:
        for name in FIGURES:
            figure = entry[name]
            gain = figure.get("gain") or {}
            own = [figure[key] for key in ("value", "low", "high", "seed_sd")]
            tail = [gain.get(key) for key in ("value", "low", "high", "inside_noise")]
            found.append([*(entry[key] for key in LONG_COLUMNS[:7]), name, *own, *tail])
    return found


def to_csv(table: Sequence[Entry]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([LONG_COLUMNS, *long_rows(table)])
    return stream.getvalue()


def draw_thresholds(task: str, scored: Scored, path: Path) -> None:
    """Figure 2 of the paper for this run: F1 over threshold out of fold (where it is chosen) and on the scored rows."""
    figure = _figure(6, 4)
    grid = [entry["threshold"] for entry in scored.sweep]
    axes = figure.add_subplot()
    axes.plot(grid, [entry["f1"] for entry in scored.sweep], label="out of fold")
    axes.plot(grid, f1_at_thresholds(scored.labels, scored.scores, grid), label="scored rows")
    axes.axvline(scored.threshold, color="black", linestyle="--", label=f"chosen: {scored.threshold:.2f}")
    axes.set(title=f"{task}: F1 over threshold", xlabel="threshold", ylabel="F1 of the positive class")
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def draw_figures(task: str, table: Sequence[Entry], path: Path) -> None:
    """F1 and ROC-AUC of one task's entries with their intervals, and each group's floor."""
    figure = _figure(10, 1.2 + 0.28 * len(table))
    names = [f"{entry['row']}: {entry['languages']}" for entry in table]
    for axes, (name, title) in zip(figure.subplots(1, 2, sharey=True), (("f1", "F1"), ("auc", "ROC-AUC")), strict=True):
        found: list[Any] = [entry[name] for entry in table]  # type: ignore[literal-required]
        for place, one in enumerate(found):
            axes.plot([one["low"], one["high"]], [place, place], color="tab:blue")
        axes.plot([one["value"] for one in found], range(len(table)), "o", color="tab:blue")
        floors = [entry["floor_f1"] if name == "f1" else 0.5 for entry in table]
        axes.plot(floors, range(len(table)), "|", color="black", label="floor" if name == "f1" else "chance")
        axes.set(title=f"{task}: {title}, 95 % intervals", yticks=range(len(table)), yticklabels=names)
        axes.legend()
    axes.invert_yaxis()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _figure(width: float, height: float) -> Any:
    # Only here: the import takes a second.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
