"""`check` on all rows: what a run's first stages, and its report, would refuse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pandas import DataFrame

from analyticup.checks.data import data_findings
from analyticup.checks.finding import Finding
from analyticup.corpus.official import SCORED_SPLITS, raw_files
from analyticup.corpus.rows import SPLITS, original_id, read_split
from analyticup.corpus.stage import whole_queries
from analyticup.engine.progress import track
from analyticup.errors import UserError
from analyticup.seeds import derive_seed
from analyticup.settings.loading import task_settings
from analyticup.settings.schema import Settings
from analyticup.submission.score import labels_of
from analyticup.training.folds import assign_folds, divisible_groups
from analyticup.verdict import Verdict

_FEW_GROUPS: Final = 100


def row_findings(settings: Settings) -> Iterable[Finding]:
    """Reads every file of the run's tasks as the run will, divides the training rows into folds, and reads labels."""
    if settings.data.dir is None:
        return
    for task in settings.tasks:
        # One task's missing file is no reason to pass over the other's.
        with _faults_found() as look:
            files = raw_files(settings.replace(tasks=[task]))
            yield from _of_task(task_settings(settings, task), task, files)
        yield from look.found


def rows_beyond_the_first(settings: Settings) -> Iterable[Finding]:
    """`row_findings` of the tasks that `data_findings` has nothing against, so that no fault is told twice."""
    for task in settings.tasks if settings.data.dir is not None else []:
        own = settings.replace(tasks=[task])
        if all(finding.verdict != Verdict.FAIL for finding in data_findings(own)):
            yield from row_findings(own)


@dataclass
class _Look:
    found: list[Finding] = field(default_factory=list)


@contextmanager
def _faults_found() -> Iterator[_Look]:
    """Within, a UserError becomes a finding that blocks."""
    look = _Look()
    try:
        yield look
    except UserError as error:
        look.found.append(Finding(Verdict.FAIL, str(error)))


def _of_task(own: Settings, task: str, files: dict[str, Path]) -> Iterable[Finding]:
    tables: dict[str, DataFrame] = {}
    with track(len(SPLITS), f"read {task}") as progress:
        for split in SPLITS:
            path = files.get(f"{split}_{task}.txt")
            with _faults_found() as look:
                if path is not None:
                    tables[split] = read_split(path, task, split, own.data.max_chars).rows
            yield from look.found
            progress.advance()
    if "train" in tables:
        with _faults_found() as look:
            yield _divided(own, task, tables["train"])
        yield from look.found
    for split in SCORED_SPLITS:
        path = files.get(f"{split}_{task}.labels.txt")
        if path is not None and split in tables:
            with _faults_found() as look:
                yield _labelled(path, task, files[f"{split}_{task}.txt"], tables[split])
            yield from look.found


def _divided(own: Settings, task: str, rows: DataFrame) -> Finding:
    if own.data.train_rows:
        rows = whole_queries(rows, own.data.train_rows, own.seed)
    if own.negatives.enabled and rows.loc[rows["label"] == 0, "group"].nunique() < 2:
        return Finding(Verdict.NOTE, f"data {task}: hardly a row has label 0: the folds depend on `negatives`")
    # With this many groups a division is never in doubt, and takes long.
    if len(set(divisible_groups(rows, own.folds.n).tolist())) < _FEW_GROUPS:
        assign_folds(rows, own.folds.n, derive_seed(own.seed, "folds", task))
    queries, positive = rows["group"].nunique(), int(rows["label"].sum())
    text = f"{len(rows):,} training rows, {positive:,} with label 1, of {queries:,} queries, in {own.folds.n} folds"
    return Finding(Verdict.OK, f"data {task}: {text}")


def _labelled(path: Path, task: str, rows_path: Path, rows: DataFrame) -> Finding:
    ids = [original_id(name) for name in rows["row_id"]]
    known = labels_of(path, ids, str(rows_path))
    verdict = Verdict.OK if len(known) == len(ids) else Verdict.NOTE
    return Finding(verdict, f"data {task}: {path}: labels of {len(known):,} of {len(ids):,} rows; figures are of those")
