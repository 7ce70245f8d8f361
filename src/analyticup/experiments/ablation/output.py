"""What `ablate` writes and shows: the table as Markdown, CSV, JSON and in W&B, and the pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def ablation_name(settings: Settings, table: str) -> str:
    """Name of the output folder and of the entry in configs/expected.yaml."""
    return f"ablation-{settings.name}" if table == "paper" else f"ablation-{table}-{settings.name}"


def write(
    folder: Path,
    name: str,
    settings: Settings,
    table: Sequence[Entry],
    rows: Sequence[Row],
    runs: Mapping[str, Sequence[RowRun]],
    overrides: Sequence[str],
) -> None:
    every = [run for seeds in runs.values() for run in seeds]
    scored_on = ", ".join(sorted({run.split for run in every}))
    telling = [text for text in overrides if not run_only(text.partition("=")[0])]
    given = f" with {' '.join(telling)}" if telling else ""
    about = (
        f"`configs/{settings.name}.yaml`{given}, scored on {scored_on} rows, {table[0]['seeds']} seed(s). In brackets: "
        f"95 % bootstrap interval over queries. A gain is the paired difference to the row that it builds on."
    )
    quality = filter_quality(rows, runs)
    folder.mkdir(parents=True, exist_ok=True)
    text = to_markdown(table, about)
    if quality:
        text += "\n" + markdown_table(list(quality[0]), map(tables.cells, quality))
    write_atomically(folder / "table.md", text)
    write_atomically(folder / "table.csv", to_csv(table))
    content = {"about": about, "config": settings.model_dump(), "overrides": list(overrides), "table": table}
    content |= {"filter": quality} if quality else {}
    write_atomically(folder / "ablation.json", json_text(content))
    for task in settings.tasks:
        if drawn := [run[0] for row in rows if row.task == task and (run := runs[row.config])[0].chosen]:
            draw_thresholds(task, drawn[-1].scored, folder / f"{task}.png")
    log_table(settings, resolve(settings.paths.artifacts), name, LONG_COLUMNS, long_rows(table))


def show(console: Console, table: Sequence[Entry], rows: Sequence[Row], runs: Mapping[str, Sequence[RowRun]]) -> None:
    shown = plain_table("ablation (95 % bootstrap intervals over queries)", COLUMNS, left=3)
    for entry in table:
        shown.add_row(*cells(entry))
    console.print(shown)
    quality = filter_quality(rows, runs)
    if quality:
        console.print(filter_table("suspects against the labels that are known to be wrong", quality, left=2))


def filter_quality(rows: Sequence[Row], runs: Mapping[str, Sequence[RowRun]]) -> list[dict[str, Any]]:
    """How each filter found the labels that are known to be wrong, by rule, for the first seed of every row."""
    return [{"row": row.title, **entry} for row in rows for entry in runs[row.config][0].filter_quality]


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grid = [entry["threshold"] for entry in scored.sweep]
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(grid, [entry["f1"] for entry in scored.sweep], label="out of fold")
    axes.plot(grid, f1_at_thresholds(scored.labels, scored.scores, grid), label="scored rows")
    axes.axvline(scored.threshold, color="black", linestyle="--", label=f"chosen: {scored.threshold:.2f}")
    axes.set(title=f"{task}: F1 over threshold", xlabel="threshold", ylabel="F1 of the positive class")
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
