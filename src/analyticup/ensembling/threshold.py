"""The decision threshold of Eq. 3 (yes where the score is at or above it): chosen on out-of-fold rows, or fixed as in
the paper; for the task, or by language and then drawn towards the task's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from sklearn.metrics import f1_score

from analyticup.engine.files import read_json, write_json
from analyticup.engine.job import Counts
from analyticup.metrics import Figures, f1_at_thresholds
from analyticup.settings.schema import ThresholdSettings

DECISION = "threshold.json"
# Keeps the logit of a threshold of 0 or 1 finite; thresholds are rounded to 6 digits, which gives 0 and 1 back.
_NEAREST_TO_END = 1e-7
_DIGITS = 6
# A vote's score is the share of folds that say yes; as in Eq. 3 the cut itself says yes, so a tie is a yes.
VOTE_CUT = 0.5


class SweepPoint(TypedDict):
    """F1 of the positive class at one threshold."""

    threshold: float
    f1: float


class LanguageThreshold(TypedDict):
    """A language's threshold: `value` holds, `best` is its own F1-best one (None where its rows hold one class)."""

    value: float
    best: float | None
    rows: int


class Optimism(TypedDict):
    """See `measure_optimism`."""

    f1: float
    nested_f1: float
    optimism: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A threshold, 0..1, and how it was found (`mode`: sweep, fixed or off); `by_language` is empty unless languages
    have their own."""

    value: float
    mode: str = "fixed"
    sweep: list[SweepPoint] = field(default_factory=list)
    by_language: dict[str, LanguageThreshold] = field(default_factory=dict)

    @property
    def language_values(self) -> dict[str, float]:
        return {language: entry["value"] for language, entry in self.by_language.items()}

    @property
    def swept(self) -> SweepPoint | None:
        """Where the threshold is fixed: the one that would have been chosen for the task, with its F1; else None."""
        if self.mode != "fixed" or not self.sweep:
            return None
        grid, f1 = (np.array([point[name] for point in self.sweep]) for name in ("threshold", "f1"))
        return self.sweep[int(np.flatnonzero(grid == _best(grid, f1, 0.5))[0])]

    def thresholds(self, languages: ArrayLike) -> np.ndarray:
        """The threshold that holds for each row, [rows]: its language's where there is one, else the task's."""
        values = self.language_values
        return np.array([values.get(language, self.value) for language in np.asarray(languages)], dtype=float)

    def decide(self, scores: ArrayLike, languages: ArrayLike, method: str | None = None) -> np.ndarray:
        """Eq. 3, the one rule for every row: int8 [rows], 1 where the score is at or above the row's threshold.

        `scores` and `languages` are [rows]. `method` is the ensemble's where the scores are an ensemble's; None means
        one model's. The folds of a vote have each been compared with their threshold already; their share is
        compared with VOTE_CUT.
        """
        cuts = VOTE_CUT if method == "vote" else self.thresholds(languages)
        return (np.asarray(scores) >= cuts).astype("int8")


@dataclass(frozen=True, kw_only=True)
class Decision(Choice):
    """What threshold.json holds: the choice, the scale of its scores ("probability" or "rank"), the figures of the
    out-of-fold rows under it and at p = 0.5, and by how much its F1 is too good, for the task and by language."""

    scores: str = "probability"
    out_of_fold: Figures
    out_of_fold_at_half: Figures
    optimism: dict[str, Optimism] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the file."""
        return {"scores": self.scores, **vars(self)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse; a report of an earlier version may lack what has a default. TypeError where more is missing."""
        return cls(**plain)

    def save(self, path: Path) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls.from_dict(read_json(path))


def counts_by_language(decision: Decision) -> Counts:
    """The languages' thresholds, for a stage's counts; nothing where they have none."""
    return {"by language": decision.language_values} if decision.by_language else {}


def threshold_grid(settings: ThresholdSettings) -> np.ndarray:
    """The thresholds that are swept, ascending, both ends included where the step reaches them."""
    steps = int(np.floor((settings.high - settings.low) / settings.step + 1e-9))
    return np.round(settings.low + settings.step * np.arange(steps + 1), _DIGITS)


def choose_threshold(labels: np.ndarray, scores: np.ndarray, settings: ThresholdSettings) -> Choice:
    """The task's threshold, with the whole sweep whatever the mode.

    labels [rows] of 0/1 and scores [rows] in 0..1 are out-of-fold. `sweep` takes the best F1; among equals the one
    nearest to 0.5. The stage switched off means 0.5.
    """
    grid = threshold_grid(settings)
    f1 = f1_at_thresholds(labels, scores, grid)
    if not settings.enabled:
        value, mode = 0.5, "off"
    elif settings.mode == "fixed":
        value, mode = settings.value, "fixed"
    else:
        value, mode = _best(grid, f1, 0.5), "sweep"
    sweep: list[SweepPoint] = [{"threshold": float(t), "f1": float(score)} for t, score in zip(grid, f1, strict=True)]
    return Choice(value=value, mode=mode, sweep=sweep)


def _best(grid: np.ndarray, f1: np.ndarray, near: float) -> float:
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(grid[best[np.argmin(np.abs(grid[best] - near))]])


def choose_by_language(
    labels: np.ndarray, scores: np.ndarray, languages: np.ndarray, task_value: float, settings: ThresholdSettings
) -> dict[str, LanguageThreshold]:
    """The threshold of each language present: `value`, and with it `best`, its own F1-best one, and `rows`.

    `value` is `best` shrunk towards the task's (see `shrink`). Among equals the one nearest to the task's is best.
    A language whose rows hold one class says nothing about a threshold: `best` is None, `value` the task's.
    """
    grid = threshold_grid(settings)
    found: dict[str, LanguageThreshold] = {}
    for language in sorted(set(languages)):
        own = languages == language
        rows, best, value = int(own.sum()), None, task_value
        if len(np.unique(labels[own])) == 2:
            best = _best(grid, f1_at_thresholds(labels[own], scores[own], grid), task_value)
            value = shrink(best, task_value, rows, settings.shrinkage_rows)
        found[language] = {"value": value, "best": best, "rows": rows}
    return found


def shrink(best: float, task_value: float, rows: int, shrinkage_rows: int) -> float:
    """Mean of two thresholds in logit space, weighted by the language's rows (one or more) and by `shrinkage_rows`:
    the form of an empirical Bayes mean, with a prior that is worth so many rows (assumed)."""
    ends = np.clip(np.array([best, task_value]), _NEAREST_TO_END, 1 - _NEAREST_TO_END)
    return round(float(expit(np.average(logit(ends), weights=[rows, shrinkage_rows]))), _DIGITS)


def choose(labels: np.ndarray, scores: np.ndarray, languages: np.ndarray, settings: ThresholdSettings) -> Choice:
    """`choose_threshold` plus `by_language`, empty unless `per_language` is set and a sweep chooses.

    Takes only out-of-fold rows: labels, scores and languages, each [rows], in any order.
    """
    choice = choose_threshold(labels, scores, settings)
    if not settings.per_language or choice.mode != "sweep":
        return choice
    by_language = choose_by_language(labels, scores, languages, choice.value, settings)
    return dataclasses.replace(choice, by_language=by_language)


def measure_optimism(
    labels: np.ndarray, scores: np.ndarray, folds: np.ndarray, languages: np.ndarray, settings: ThresholdSettings
) -> dict[str, Optimism]:
    """How much too good F1 looks on the rows that the threshold was chosen on: `task`, and `language` where
    `per_language` applies.

    Each holds `f1` on those rows; `nested_f1`, for which every fold is decided by what the other folds' rows choose,
    over all rows pooled; and `optimism`, the first less the second. It is noisy and can be negative. A nested
    threshold is chosen on fewer rows than the final one, and the other folds' models were trained on the fold that is
    decided, so neither F1 is that of new rows. A fixed threshold is not chosen: its optimism is 0.
    ValueError where fewer than two folds have rows.
    """
    ways = {"task": settings.replace(per_language=False)}
    if settings.per_language and settings.enabled and settings.mode == "sweep":
        ways["language"] = settings
    measured: dict[str, Optimism] = {}
    for name, own in ways.items():
        decided = choose(labels, scores, languages, own).decide(scores, languages)
        nested = _nested_decisions(labels, scores, folds, languages, own)
        f1, nested_f1 = (float(f1_score(labels, said, zero_division=0.0)) for said in (decided, nested))
        measured[name] = {"f1": f1, "nested_f1": nested_f1, "optimism": f1 - nested_f1}
    return measured


def _nested_decisions(
    labels: np.ndarray, scores: np.ndarray, folds: np.ndarray, languages: np.ndarray, settings: ThresholdSettings
) -> np.ndarray:
    parts = np.unique(folds)
    if len(parts) < 2:
        raise ValueError("a nested estimate needs the out-of-fold rows of two folds or more")
    decided = np.zeros(len(labels), dtype="int8")
    for fold in parts:
        own = folds == fold
        choice = choose(labels[~own], scores[~own], languages[~own], settings)
        decided[own] = choice.decide(scores[own], languages[own])
    return decided
