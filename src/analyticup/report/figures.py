"""What report.json holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypedDict

from analyticup.engine.files import read_json, write_json
from analyticup.ensembling.threshold import Decision
from analyticup.metrics import LanguageFigures
from analyticup.report.curves import CalibrationBin, Confusion, CurvePoint, Intervals, Series

REPORT = "report.json"


class StageFigures(TypedDict):
    """What a stage counted, the seconds that it took, and the most resident bytes of its processes."""

    counts: dict[str, Any]
    seconds: float
    memory: int


OUT_OF_FOLD = "out-of-fold"
ORIGINAL = "original"

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
        "ROC-AUC": float | None,
        "average precision": float | None,
    },
)


class FlowStep(TypedDict):
    """The training rows after a stage: by origin, and how many were set aside on the way there, by reason."""

    stage: str
    rows: dict[str, int]
    aside: dict[str, int]


class Example(TypedDict):
    """A row worth a look, without its texts; `why` are the rules that a suspect breaks and what was done with it."""

    row_id: str
    language: str
    label: int
    score: float
    why: str


class Picture(TypedDict):
    """One set of scored rows whose labels are known, e.g. those out of fold: figures per language, group of languages
    and over all rows, with their intervals; the points of its curves, and its most confident errors by language."""

    languages: list[LanguageFigures]
    intervals: dict[str, Intervals]
    precision_recall: list[CurvePoint]
    calibration: list[CalibrationBin]
    confusion: Confusion
    errors: list[Example]


class FoldFigures(TypedDict):
    """One fold's model on the rows that it never saw."""

    fold: str
    rows: int
    f1: float
    floor_f1: float
    auc: float | None
    intervals: Intervals


class Agreement(TypedDict):
    """The folds' models on the same rows: `votes[k]` rows have k yeses at the threshold; rank correlation by pair."""

    rows: int
    votes: list[int]
    correlations: list[list[float | None]]


class CutFigures(TypedDict):
    """What a threshold makes of some rows; F1 where all have labels."""

    threshold: float
    rows: int
    positive: int
    f1: float | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What report.json holds: the run's name, and by task what each stage did, the threshold's decision and the
    filter's quality; `scores` by title, e.g. "dev QC", per language, group of languages and over all rows; `cuts` by
    title, where a threshold is fixed, that one and the swept one on the same rows.

    The rest is what the page shows besides: by task how the training rows came and went, how scores spread, the folds
    and the suspects; `pictures` and `agreement` by title, e.g. "out-of-fold QC" or "test QC". It holds no row's text.
    """

    name: str
    stages: dict[str, dict[str, StageFigures]] = field(default_factory=dict)
    out_of_fold: dict[str, Decision] = field(default_factory=dict)
    scores: dict[str, list[LanguageFigures]] = field(default_factory=dict)
    cuts: dict[str, list[CutFigures]] = field(default_factory=dict)
    filter: dict[str, list[FilterQuality]] = field(default_factory=dict)
    flow: dict[str, list[FlowStep]] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    spread: dict[str, list[Series]] = field(default_factory=dict)
    folds: dict[str, list[FoldFigures]] = field(default_factory=dict)
    agreement: dict[str, Agreement] = field(default_factory=dict)
    suspects: dict[str, list[Example]] = field(default_factory=dict)

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
