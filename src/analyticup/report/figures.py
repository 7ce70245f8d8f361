"""What report.json holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypedDict

from analyticup.engine.files import read_json, write_json
from analyticup.ensembling.threshold import Decision
from analyticup.metrics import LanguageFigures

REPORT = "report.json"


class StageFigures(TypedDict):
    """What a stage counted, the seconds that it took, and the most resident bytes of its process."""

    counts: dict[str, Any]
    seconds: float
    memory: int


# How a rule found the labels that are known to be wrong, see `report.collect`; the keys are the table's columns.
FilterQuality = TypedDict(
    "FilterQuality",
    {
        "rule": str,
        "original rows": int,
        "wrong labels": int,
        "suspects": int,
        "found": int,
        "precision": float | None,
        "recall": float | None,
        "base rate": float,
        "auroc": float | None,
        "ap": float | None,
    },
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What report.json holds: the run's name, and by task what each stage did, the threshold's decision and the
    filter's quality; `scores` by title, e.g. "dev QC", per language, group of languages and over all rows."""

    name: str
    stages: dict[str, dict[str, StageFigures]] = field(default_factory=dict)
    out_of_fold: dict[str, Decision] = field(default_factory=dict)
    scores: dict[str, list[LanguageFigures]] = field(default_factory=dict)
    filter: dict[str, list[FilterQuality]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        decisions = {task: decision.to_dict() for task, decision in self.out_of_fold.items()}
        write_json(path, {**vars(self), "out_of_fold": decisions})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises OSError, ValueError or RecursionError where there is no report."""
        try:
            plain = read_json(path)
            decisions = {task: Decision.from_dict(entry) for task, entry in plain["out_of_fold"].items()}
            return cls(**{**plain, "out_of_fold": decisions})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a report: {error}") from error
