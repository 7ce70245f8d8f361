"""Whether a run reproduced the figures that configs/expected.yaml holds for its config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from analyticup.errors import UserError
from analyticup.report.figures import Report
from analyticup.settings.loading import load_settings
from analyticup.settings.paths import decisions_name
from analyticup.settings.schema import TASKS, Settings, decisive
from analyticup.verdict import Item, Verdict


def compare(
    name: str, settings: Settings, figures: Mapping[str, float], data: Mapping[str, str], configs: Path
) -> list[Item]:
    """The figures against those under `name` in configs/expected.yaml; one SKIPPED item where none can be compared.

    `figures` by the names that the file uses, `data` file name -> sha256 as in the manifest. An expectation holds for
    the shipped config with the entry's `overrides`, none if it has none, on exactly the files it was measured on.
    """
    given = expectations(name, settings, data, configs)
    if isinstance(given, str):
        return [Item(Verdict.SKIPPED, "expected figures", f"none to compare with: {given}")]
    return [compare_figure(figure, _find(figure, figures), *pair) for figure, pair in given.items()]


def expectations(
    name: str, settings: Settings, data: Mapping[str, str], configs: Path
) -> dict[str, tuple[float, float]] | str:
    """What is expected of a run, (value, tolerance) by the figure's name, or why nothing is."""
    entry = (yaml.safe_load((configs / "expected.yaml").read_text(encoding="utf-8")) or {}).get(name)
    if reason := _unlike(name, entry, settings, data, configs):
        return reason
    return {figure: (given["value"], given["tolerance"]) for figure, given in entry["figures"].items()}


def compare_figure(figure: str, value: float, expected: float, tolerance: float) -> Item:
    """OK within the tolerance, near within twice of it, FAIL beyond."""
    distance = abs(value - expected)
    near = Verdict.NEAR if distance <= 2 * tolerance else Verdict.FAIL
    text = f"{value:.4f}, expected {expected:.4f} ± {tolerance:.4f}"
    return Item(Verdict.OK if distance <= tolerance else near, f"figure {figure}", text)


def _unlike(
    name: str, entry: Mapping[str, Any] | None, settings: Settings, data: Mapping[str, str], configs: Path
) -> str:
    """Why an entry's expectations do not hold for a run; "" where they do."""
    if entry is None:
        return f"configs/expected.yaml says nothing on {name}"
    shipped, overrides = configs / f"{settings.name}.yaml", entry.get("overrides", [])
    if not shipped.is_file() or decisive(settings) != decisive(load_settings(shipped, overrides)):
        given = "".join(f" {text}" for text in overrides)
        return f"the settings differ from configs/{settings.name}.yaml{given} as it is shipped"
    if decided := sorted(data.keys() & set(map(decisions_name, TASKS))):
        return f"people's decisions are among the inputs ({', '.join(decided)})"
    if any(data.get(file) != digest for file, digest in entry["data"].items()):
        return f"the files are not those that the expectations of {name} were measured on"
    return ""


def figures_by_name(report: Report) -> dict[str, float]:
    """The figures of report.json as configs/expected.yaml calls them, e.g. "dev QC all: auc"."""
    return {
        f"{title} {row['language']}: {figure}": float(value)
        for title, rows in report.scores.items()
        for row in rows
        for figure, value in row.items()
        if isinstance(value, int | float)
    }


def _find(name: str, figures: Mapping[str, float]) -> float:
    if name not in figures:
        raise UserError(f"configs/expected.yaml: there is no figure {name!r}; correct the name")
    return figures[name]
