"""The report of a run on a terminal: figures collected from records and scores, as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from analyticup.ensembling.threshold import Decision
from analyticup.metrics import LanguageFigures
from analyticup.report.figures import CutFigures, Report, StageFigures
from analyticup.terminal import plain_table

# Thresholds shown of the sweep; the record holds all.
SHOWN_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def render(figures: Report) -> list[RenderableType]:
    """The report's tables, in reading order."""
    parts: list[RenderableType] = []
    for task, stages in figures.stages.items():
        parts.append(_stage_table(task, stages))
    for task, decision in figures.out_of_fold.items():
        parts.append(_sweep_table(task, decision))
        if decision.by_language:
            parts.append(_language_table(task, decision))
    for task, quality in figures.filter.items():
        parts.append(filter_table(f"{task}: suspects against the wrong labels that are known, by rule", quality))
    for title, rows in figures.scores.items():
        parts.append(score_table(title, rows))
    if figures.cuts:
        parts.append(_cut_table(figures.cuts))
    return parts


def _stage_table(task: str, stages: Mapping[str, StageFigures]) -> Table:
    table = plain_table(f"{task}: what each stage did", ("stage", "counts", "seconds", "GB"), left=2)
    for name, entry in stages.items():
        table.add_row(name, describe_counts(entry["counts"]), f"{entry['seconds']:.1f}", f"{entry['memory'] / 1e9:.1f}")
    return table


def describe_counts(counts: Mapping[str, Any]) -> str:
    """Counts as one readable line; nested ones in brackets, zeros left out."""
    shown = []
    for key, value in counts.items():
        name = printable(key)
        if isinstance(value, Mapping):
            inner = describe_counts(value)
            if inner:
                shown.append(f"{name} ({inner})")
        elif isinstance(value, float):
            shown.append(f"{name} {value:.3f}")
        elif isinstance(value, list):
            shown.append(f"{name} {', '.join(map(str, value)) or 'none'}")
        elif value not in (0, None):
            shown.append(f"{name} {value}")
    return ", ".join(shown)


def _sweep_table(task: str, decision: Decision) -> Table:
    figures = decision.out_of_fold
    ranked = decision.scores == "rank"
    title = (
        f"{task}: threshold on {figures['rows']} out-of-fold rows: {decision.value:.2f} "
        f"({decision.mode}{' over ranks' if ranked else ''}), "
        f"F1 {figures['f1']:.4f} ± {figures['f1_se']:.4f} on them{_optimism(decision)} "
        f"(at {'p = ' if ranked else ''}0.50: {decision.out_of_fold_at_half['f1']:.4f}; "
        f"all-positive floor {figures['floor_f1']:.4f}), AUC {number(figures['auc'])}"
    )
    shown = [entry for entry in decision.sweep if round(entry["threshold"], 4) in SHOWN_THRESHOLDS]
    table = plain_table(title, ("threshold", *(f"{entry['threshold']:.2f}" for entry in shown)))
    table.add_row("F1", *(f"{entry['f1']:.4f}" for entry in shown))
    return table


def _optimism(decision: Decision) -> str:
    """F1 without what a threshold gains by being chosen on the rows it is judged on; of the task's threshold too where
    the languages have their own."""
    # A report of an earlier version has no such figures.
    if decision.mode != "sweep" or not decision.optimism:
        return ""
    measured = decision.optimism
    used = measured.get("language", measured["task"])
    text = f"; each fold by the others' threshold {used['nested_f1']:.4f}, optimism {used['optimism']:+.4f}"
    if "language" in measured:
        task = measured["task"]
        text += f"; one threshold for all languages {task['f1']:.4f}, nested {task['nested_f1']:.4f}"
    return text


def _language_table(task: str, decision: Decision) -> Table:
    table = plain_table(
        f"{task}: thresholds by language; a language without rows gets the task's",
        ("language", "out-of-fold rows", "its own best", "threshold"),
    )
    for language, entry in decision.by_language.items():
        table.add_row(printable(language), str(entry["rows"]), number(entry["best"]), number(entry["value"]))
    return table


def _cut_table(cuts: Mapping[str, Sequence[CutFigures]]) -> Table:
    """Fixed and swept thresholds side by side."""
    title = "fixed thresholds (submit.zip) and those of the sweep (submit-swept.zip) on the same rows"
    table = plain_table(title, ("", "rows", *("fixed", "yes", "F1"), *("swept", "yes", "F1")))
    for name, both in cuts.items():
        figures = [
            text for cut in both for text in (f"{cut['threshold']:.2f}", str(cut["positive"]), number(cut["f1"]))
        ]
        table.add_row(name, str(both[0]["rows"]), *figures)
    return table


def filter_table(title: str, quality: Sequence[Mapping[str, Any]], left: int = 1) -> Table:
    """Rows of `FilterQuality`, with any columns before their figures."""
    table = plain_table(title, quality[0], left)
    for entry in quality:
        table.add_row(*cells(entry))
    return table


def cells(entry: Mapping[str, Any]) -> list[str]:
    """An entry's values as texts: four places for fractions, "-" for what does not apply."""
    return [number(value) if isinstance(value, float | None) else str(value) for value in entry.values()]


def score_table(title: str, rows: Sequence[LanguageFigures]) -> Table:
    table = plain_table(
        f"{title}: against the labels",
        ("language", "rows", "F1", "± s.e.", "floor", "precision", "recall", "AUC", "AP"),
    )
    names = ("f1", "f1_se", "floor_f1", "precision", "recall", "auc", "ap")
    for place, row in enumerate(rows):
        last_language = place + 1 < len(rows) and " " not in row["language"] and "with" in rows[place + 1]["language"]
        table.add_row(
            printable(row["language"]),
            str(row["rows"]),
            *(number(row[name]) for name in names),
            end_section=last_language,
        )
    return table


def printable(language: str) -> str:
    """A language as it is; as JSON in ASCII where it holds control characters or half a surrogate pair."""
    return language if language.isprintable() else json.dumps(language)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def show(figures: Report, console: Console) -> None:
    for part in render(figures):
        console.print(part)
