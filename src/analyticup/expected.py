"""Whether a run came to the figures that configs/expected.yaml holds for its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyticup.config import Settings
from analyticup.config_loading import load_settings, to_dict
from analyticup.errors import UserError

OK, NEAR, FAIL = "OK", "near", "FAIL"
# How a run runs, and where its files lie, is no part of what it should come to.
_FREE = ("machine", "paths", "tracking", "predict")


@dataclass(frozen=True)
class Verdict:
    """One figure against its expectation: OK within the tolerance, near within twice of it, FAIL beyond."""

    figure: str
    value: float
    expected: float
    tolerance: float

    @property
    def verdict(self) -> str:
        distance = abs(self.value - self.expected)
        return OK if distance <= self.tolerance else NEAR if distance <= 2 * self.tolerance else FAIL


def verdicts(
    settings: Settings, figures: Mapping[str, Any], data: Mapping[str, str], configs: Path
) -> list[Verdict] | str:
    """The run's figures against configs/expected.yaml, or the reason why there is nothing to compare.

    `figures` as in report.json, `data` file name -> sha256 as in the manifest. An expectation holds for the shipped
    config without overrides on exactly the files that it was measured on.
    """
    entry = _read(configs / "expected.yaml").get(settings.name)
    if entry is None:
        return f"configs/expected.yaml says nothing on {settings.name}"
    shipped = configs / f"{settings.name}.yaml"
    if not shipped.is_file() or _compared(settings) != _compared(load_settings(shipped, [])):
        return f"the settings differ from configs/{settings.name}.yaml as it is shipped"
    if any(data.get(name) != digest for name, digest in entry["data"].items()):
        return f"the files are not those that the expectations of {settings.name} were measured on"
    return [
        Verdict(name, _find(name, figures), given["value"], given["tolerance"])
        for name, given in entry["figures"].items()
    ]


def _read(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _compared(settings: Settings) -> dict[str, Any]:
    plain = {key: value for key, value in to_dict(settings).items() if key not in _FREE}
    return plain | {"data": {**plain["data"], "dir": None}}


def _find(name: str, figures: Mapping[str, Any]) -> float:
    """The figure called "<split> <task> <languages>: <figure>", e.g. "dev QC all: auc"."""
    place, _, figure = name.partition(": ")
    split, task, languages = place.split(" ", 2)
    for row in figures["scores"].get(f"{split} {task}", ()):
        if row["language"] == languages and row.get(figure) is not None:
            return float(row[figure])
    raise UserError(f"configs/expected.yaml: the report has no figure {name!r}; correct the name")
