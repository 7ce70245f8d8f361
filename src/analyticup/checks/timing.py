"""How long a run would take, by the rates that `./run.sh bench --only gpu` measured on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from analyticup.checks.finding import Finding
from analyticup.settings.loading import task_settings
from analyticup.settings.paths import resolve
from analyticup.settings.schema import Settings, read_volumes
from analyticup.training import predicting
from analyticup.verdict import Verdict

# Below paths.submissions.
RATES: Final = Path("bench") / "gpu.jsonl"
# The model that the bench makes.
_MEASURED_PARAMETERS: Final = 14.8e9
_LANGUAGE: Final = re.compile(rb'"language":\s*"([^"]{1,20})"')
# Of the official training rows.
_POSITIVE_SHARE: Final = 0.69


@dataclass(frozen=True)
class Rates:
    """Rows per second of the bench's model, on that GPU."""

    gpu: str
    training: float
    scoring: float


def measured_rates(submissions: Path) -> Rates | None:
    """The best rates in steps of 32 rows and in scoring, adapters not merged; None where no GPU was measured here."""
    try:
        lines = [json.loads(line) for line in (submissions / RATES).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return None

    def best(step: str, **wanted: Any) -> float:
        own = [line for line in lines if line.get("step") == step and "rows_per_s" in line]
        return max((one["rows_per_s"] for one in own if all(one.get(k) == v for k, v in wanted.items())), default=0.0)

    facts = next((line for line in lines if "gpu" in line and not line.get("tiny")), None)
    training, scoring = best("training", rows=32), best("scoring", merged=False)
    return Rates(facts["gpu"], training, scoring) if facts and training and scoring else None


def time_findings(settings: Settings, parameters: float | None, on_gpu: bool) -> Iterable[Finding]:
    """One finding, for a GPU and given files only. `parameters` are the backbone's; time goes with their number."""
    if not on_gpu or settings.data.dir is None:
        return
    rates = measured_rates(resolve(settings.paths.submissions))
    if rates is None or not parameters:
        told = "not known; `./run.sh bench --only gpu` measures this machine's rates in about ten minutes"
        yield Finding(Verdict.NOTE, f"time: {told}")
        return
    slower, parts, total, written = parameters / _MEASURED_PARAMETERS, [], 0.0, 0.0
    for task in settings.tasks:
        own = task_settings(settings, task)
        rows = task_rows(own, task)
        written += written_tokens(own, rows)
        trained, scored = model_rows(own, rows)
        training, scoring = (
            count * slower / rate / 3600
            for count, rate in zip((trained, scored), (rates.training, rates.scoring), strict=True)
        )
        total += training + scoring
        parts.append(
            f"{task}: {trained:,.0f} rows to train on in {training:.1f} h, {scored:,.0f} to score in {scoring:.1f} h"
        )
    workers = f" with one worker; {settings.machine.workers} share it" * (settings.machine.workers > 1)
    told = f"about {total:.1f} h{workers} ({'; '.join(parts)}), by the rates of {RATES} on {rates.gpu}"
    others = f"the {written:,.0f} tokens of reasoning at most, translation" if written else "translation"
    yield Finding(Verdict.OK, f"time: {told}; {others} and embedding are left out (estimate)")


@dataclass(frozen=True)
class TaskRows:
    """Rows of a task: those given for training, as many with the translated ones, as many with the negatives too, and
    those of dev and test."""

    given: float
    translated: float
    whole: float
    asked: float


def task_rows(own: Settings, task: str) -> TaskRows:
    """By the files of `data.dir`, as far as they are there; none without it."""
    if own.data.dir is None:
        return TaskRows(0.0, 0.0, 0.0, 0.0)
    folder = Path(own.data.dir).expanduser()
    count, known = _rows_and_languages(folder / f"train_{task}.txt")
    given = float(min(count, own.data.train_rows or count))
    others = [_rows_and_languages(folder / f"{split}_{task}.txt") for split in ("dev", "test")]
    translated = given
    if own.translate.enabled:
        asked = set(own.translate.languages or set().union(*(languages for _, languages in others)) - known)
        volumes = read_volumes(own.translate.volumes)
        translated += sum(volumes.get(language, own.translate.rows_per_language) for language in asked)
    negatives = own.negatives.share * _POSITIVE_SHARE * translated if own.negatives.enabled else 0.0
    return TaskRows(given, translated, translated + negatives, sum(count for count, _ in others))


def written_tokens(own: Settings, rows: TaskRows) -> float:
    """The most tokens of reasoning that the backbone writes for a task."""
    return (rows.whole + rows.asked) * own.prompt.reasoning.max_tokens if own.prompt.reasoning.template else 0.0


def model_rows(own: Settings, rows: TaskRows) -> tuple[float, float]:
    """Rows that are trained on and rows that are scored by all trainings of a task, each as often as it is."""
    n = own.folds.n
    # Of all rows, by all trainings: each fold's leaves one part out.
    times = n - 1 + (own.train.refit != "none")
    trained, scored = times * rows.whole * own.train.epochs, rows.given + len(predicting(own)) * rows.asked
    if own.train.distil:
        trained, scored = 2 * trained, scored + times * rows.whole
    if own.filter.enabled and own.filter.scores != "neighbours":
        judges = 1 if own.filter.scores == "in-sample" else n - 1
        trained += own.filter.rounds * judges * rows.whole * own.train.epochs
        scored += own.filter.rounds * rows.whole
    return trained, scored


def _rows_and_languages(path: Path) -> tuple[int, frozenset[str]]:
    """Lines of a file and the languages in them; none of one that is absent."""
    if not path.is_file():
        return 0, frozenset()
    status = path.stat()
    return _counted(path, status.st_mtime_ns, status.st_size)


# Disk, memory and time are all estimated by them, and the official files have a million rows.
@lru_cache
def _counted(path: Path, changed: int, size: int) -> tuple[int, frozenset[str]]:
    count, languages = 0, set()
    with path.open("rb") as stream:
        for line in filter(bytes.strip, stream):
            count += 1
            if found := _LANGUAGE.search(line):
                languages.add(found[1].decode("utf-8", "replace"))
    return count, frozenset(languages)
