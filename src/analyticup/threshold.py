"""The decision threshold of Eq. 3 (yes where the score is at or above it): chosen on out-of-fold rows, or fixed as in
the paper; for the task, or by language and then drawn towards the task's."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from analyticup.settings.schema import ThresholdSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

# Keeps the logit of a threshold of 0 or 1 finite; thresholds are rounded to 6 digits, which gives 0 and 1 back.
_NEAREST_TO_END = 1e-7
_DIGITS = 6


def threshold_grid(settings: ThresholdSettings) -> np.ndarray:
    """The thresholds that are swept, ascending, both ends included where the step reaches them."""
    import numpy as np

    steps = int(np.floor((settings.high - settings.low) / settings.step + 1e-9))
    return np.round(settings.low + settings.step * np.arange(steps + 1), _DIGITS)


def choose_threshold(labels: np.ndarray, scores: np.ndarray, settings: ThresholdSettings) -> dict[str, Any]:
    """The task's threshold and how it came about: `value`, `mode`, and the sweep (threshold and F1 of the positive
    class).

    labels [rows] of 0/1 and scores [rows] in 0..1 are out-of-fold. `sweep` takes the best F1; among equals the one
    nearest to 0.5. The stage switched off means 0.5.
    """
    from analyticup.metrics import f1_at_thresholds

    grid = threshold_grid(settings)
    f1 = f1_at_thresholds(labels, scores, grid)
    if not settings.enabled:
        value, mode = 0.5, "off"
    elif settings.mode == "fixed":
        value, mode = settings.value, "fixed"
    else:
        value, mode = _best(grid, f1, 0.5), "sweep"
    sweep = [{"threshold": float(t), "f1": float(score)} for t, score in zip(grid, f1, strict=True)]
    return {"value": value, "mode": mode, "sweep": sweep}


def _best(grid: np.ndarray, f1: np.ndarray, near: float) -> float:
    import numpy as np

    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(grid[best[np.argmin(np.abs(grid[best] - near))]])


def choose_by_language(
    labels: np.ndarray, scores: np.ndarray, languages: np.ndarray, task_value: float, settings: ThresholdSettings
) -> dict[str, dict[str, Any]]:
    """The threshold of each language present: `value`, and with it `best`, its own F1-best one, and `rows`.

    `value` is `best` shrunk towards the task's (see `shrink`). Among equals the one nearest to the task's is best.
    A language whose rows hold one class says nothing about a threshold: `best` is None, `value` the task's.
    """
    import numpy as np

    from analyticup.metrics import f1_at_thresholds

    grid = threshold_grid(settings)
    chosen = {}
    for language in sorted(set(languages)):
        own = languages == language
        rows, best, value = int(own.sum()), None, task_value
        if len(np.unique(labels[own])) == 2:
            best = _best(grid, f1_at_thresholds(labels[own], scores[own], grid), task_value)
            value = shrink(best, task_value, rows, settings.shrinkage_rows)
        chosen[language] = {"value": value, "best": best, "rows": rows}
    return chosen


def shrink(best: float, task_value: float, rows: int, shrinkage_rows: int) -> float:
    """Mean of two thresholds in logit space, weighted by the language's rows (one or more) and by `shrinkage_rows`:
    the form of an empirical Bayes mean, with a prior that is worth so many rows (assumed)."""
    import numpy as np
    from scipy.special import expit, logit

    ends = np.clip(np.array([best, task_value]), _NEAREST_TO_END, 1 - _NEAREST_TO_END)
    return round(float(expit(np.average(logit(ends), weights=[rows, shrinkage_rows]))), _DIGITS)


def choose(
    labels: np.ndarray, scores: np.ndarray, languages: np.ndarray, settings: ThresholdSettings
) -> dict[str, Any]:
    """`choose_threshold` plus `by_language`, empty unless `per_language` is set and a sweep chooses.

    It is given out-of-fold rows alone: labels, scores and languages, each [rows], in any order.
    """
    chosen = choose_threshold(labels, scores, settings)
    wanted = settings.per_language and chosen["mode"] == "sweep"
    by_language = choose_by_language(labels, scores, languages, chosen["value"], settings) if wanted else {}
    return {**chosen, "by_language": by_language}


def thresholds_of(chosen: Mapping[str, Any], languages: np.ndarray) -> np.ndarray:
    """The threshold that holds for each row, [rows]: its language's where there is one, else the task's."""
    import numpy as np

    by_language = {language: entry["value"] for language, entry in chosen["by_language"].items()}
    return np.array([by_language.get(language, chosen["value"]) for language in languages], dtype=float)


def measure_optimism(
    labels: np.ndarray, scores: np.ndarray, folds: np.ndarray, languages: np.ndarray, settings: ThresholdSettings
) -> dict[str, dict[str, float]]:
    """How much too good F1 looks on the rows that the threshold was chosen on: `task`, and `language` where
    `per_language` applies.

    Each holds `f1` on those rows; `nested_f1`, for which every fold is decided by what the other folds' rows choose,
    over all rows pooled; and `optimism`, the first less the second. It holds noise and can be negative. A nested
    threshold is chosen on fewer rows than the final one, and the other folds' models were trained on the fold that is
    decided, so neither F1 is that of new rows. A fixed threshold is not chosen: its optimism is 0.
    ValueError where fewer than two folds have rows.
    """
    from sklearn.metrics import f1_score

    ways = {"task": dataclasses.replace(settings, per_language=False)}
    if settings.per_language and settings.enabled and settings.mode == "sweep":
        ways["language"] = settings
    measured = {}
    for name, own in ways.items():
        decided = scores >= thresholds_of(choose(labels, scores, languages, own), languages)
        nested = _nested_decisions(labels, scores, folds, languages, own)
        f1, nested_f1 = (float(f1_score(labels, said, zero_division=0.0)) for said in (decided, nested))
        measured[name] = {"f1": f1, "nested_f1": nested_f1, "optimism": f1 - nested_f1}
    return measured


def _nested_decisions(
    labels: np.ndarray, scores: np.ndarray, folds: np.ndarray, languages: np.ndarray, settings: ThresholdSettings
) -> np.ndarray:
    import numpy as np

    parts = np.unique(folds)
    if len(parts) < 2:
        raise ValueError("a nested estimate needs the out-of-fold rows of two folds or more")
    decided = np.zeros(len(labels), dtype=bool)
    for fold in parts:
        own = folds == fold
        chosen = choose(labels[~own], scores[~own], languages[~own], settings)
        decided[own] = scores[own] >= thresholds_of(chosen, languages[own])
    return decided
