"""What looks at rows are worth, where the true labels are known: simulated reviewers on a finished run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyticup.corpus.rows import original_id
from analyticup.corpus.tables import scored_splits
from analyticup.errors import UserError
from analyticup.features.points import Points
from analyticup.features.vote import neighbour_vote
from analyticup.filtering.decisions import DROP, FLIP, KEEP, Decision, text_digest, write_decisions
from analyticup.metrics import binary_metrics, f1_at_thresholds
from analyticup.review.queue import Reviewed
from analyticup.seeds import seeded_key
from analyticup.settings.paths import decisions_name
from analyticup.submission.score import read_labels

# Thresholds that are tried, as shares of the votes.
_GRID = 101
ACCURACY = 0.8


@dataclass(frozen=True)
class Known:
    """A run's training rows with their true labels [rows], and labelled dev and test rows, as the vote sees them."""

    run: Reviewed
    truth: np.ndarray
    training: Points
    scored: Points
    labels: np.ndarray


@dataclass(frozen=True)
class Looks:
    """Rows at these places were looked at, and `said` holds the labels that they get [rows]; None = they are
    dropped."""

    way: str
    places: np.ndarray
    said: np.ndarray | None


@dataclass(frozen=True)
class Outcome:
    """After so many looks: rows that are trained on, how many of their labels are wrong, and F1 and ROC-AUC of the
    neighbour vote by them on the labelled dev and test rows, its threshold chosen on the training rows."""

    way: str
    looks: int
    rows: int
    wrong: int
    f1: float
    auc: float


def load_known(run: Reviewed) -> Known:
    """Raises UserError where the run's truth or the labels of dev and test are not known."""
    sample, given = run.stage("sample", task="all"), run.settings.data.dir
    folder = sample.folder if sample is not None else Path(given or "").expanduser()
    path = folder / f"train_{run.task}.truth.txt"
    if not path.is_file():
        raise UserError(f"{path}: no such file; looks can be simulated only where the true labels are known")
    truth = read_labels(path)
    ingested = run.stage("ingest")
    assert ingested is not None
    tables, labels = [], []
    for split, rows in scored_splits(ingested).items():
        known = read_labels(folder / f"{split}_{run.task}.labels.txt")
        tables.append(rows)
        labels += [known[original_id(row_id)] for row_id in rows["row_id"]]
    return Known(
        run=run,
        truth=np.array([truth[original_id(row_id)] for row_id in run.rows["row_id"]]),
        training=run.points(run.rows),
        scored=run.points(pd.concat(tables, ignore_index=True)),
        labels=np.array(labels),
    )


def every_look(known: Known, step: int, top: int) -> Iterator[Looks]:
    """Every way after 0, step, ... looks, at most `top` or all rows."""
    for way, places, said in _ways(known):
        for looks in range(0, min(top, len(known.truth)) + 1, step):
            yield Looks(way, np.array(places[:looks], dtype=int), said)


def curve(known: Known, step: int, top: int) -> Iterator[Outcome]:
    """The outcomes of every way, but for those that leave nothing to learn from."""
    for looks in every_look(known, step, top):
        labels, stays = known.run.rows["label"].to_numpy(dtype=int, copy=True), np.ones(len(known.truth), dtype=bool)
        if looks.said is None:
            stays[looks.places] = False
        else:
            labels[looks.places] = looks.said[looks.places]
        if len(set(labels[stays])) == 2:
            wrong = int((labels != known.truth)[stays].sum())
            figures = _figures(known, labels[stays], stays)
            yield Outcome(looks.way, len(looks.places), int(stays.sum()), wrong, *figures)


def write_looks(known: Known, step: int, top: int, folder: Path) -> list[Path]:
    """Writes the decisions of every way after step, ... looks, as `filter.decisions` takes them; returns their
    folders."""
    rows, found = known.run.rows.to_dict("records"), []
    for looks in every_look(known, step, top):
        if len(looks.places):
            words = re.findall(r"\w+", f"{looks.way} {len(looks.places)}")
            found.append(folder / "-".join(words))
            decided = (_decision(rows[at], None if looks.said is None else looks.said[at]) for at in looks.places)
            write_decisions(decided, found[-1] / decisions_name(known.run.task))
    return found


def _decision(row: dict[str, Any], said: int | None) -> Decision:
    label = int(row["label"])
    answer = DROP if said is None else KEEP if said == label else FLIP
    return Decision(row["row_id"], text_digest(row["query"], row["target"]), label, answer)


def _ways(known: Known) -> Iterator[tuple[str, list[int], np.ndarray | None]]:
    """(name, places in the order of the looks, labels that a reviewer gives; None = the rows are dropped)."""
    run, ids = known.run, known.run.rows["row_id"].tolist()
    doubtful = run.order(len(ids))
    by_chance = sorted(range(len(ids)), key=lambda at: seeded_key(run.settings.seed, "look", ids[at]))
    drawn = np.array([int(seeded_key(run.settings.seed, "slip", name)[:8], 16) / 2**32 for name in ids])
    slips = np.where(drawn < ACCURACY, known.truth, 1 - known.truth)
    for order, places in (("most doubtful first", doubtful), ("random order", by_chance)):
        yield f"{order}, a perfect reviewer", places, known.truth
        yield f"{order}, a reviewer who is right in {ACCURACY:.0%}", places, slips
    yield "most doubtful dropped", doubtful, None


def _figures(known: Known, labels: np.ndarray, stays: np.ndarray) -> tuple[float, float]:
    """(F1, ROC-AUC) of the vote of the rows that stay."""
    voters = known.training.take(stays)
    votes = [
        neighbour_vote(points, voters, labels, known.run.settings.neighbours.rows, "simulated looks")[0]
        for points in (voters, known.scored)
    ]
    grid = np.unique(np.quantile(votes[0], np.linspace(0, 1, _GRID)))
    threshold = grid[np.argmax(f1_at_thresholds(labels, votes[0], grid))]
    figures = binary_metrics(known.labels, (votes[1] >= threshold).astype(int), votes[1])
    assert figures["auc"] is not None
    return figures["f1"], figures["auc"]
