"""`check` on all rows: what a run's first stages, and its report, would refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pandas import DataFrame

from analyticup.augmentation.translate import missing_languages, source_rows
from analyticup.augmentation.translators import unknown_languages
from analyticup.checks.data import data_findings
from analyticup.checks.finding import Finding
from analyticup.corpus.official import SCORED_SPLITS, label_names, raw_files
from analyticup.corpus.rows import SPLITS, ReadResult, original_id, read_split
from analyticup.corpus.stage import whole_queries
from analyticup.engine.progress import track
from analyticup.errors import UserError
from analyticup.filtering import decision_files
from analyticup.filtering.decisions import read_decisions
from analyticup.seeds import derive_seed
from analyticup.settings.loading import task_settings
from analyticup.settings.schema import TASKS, Settings
from analyticup.submission.records import input_rows
from analyticup.submission.score import labels_of, read_labels
from analyticup.training.folds import assign_folds, divisible_groups
from analyticup.verdict import Verdict

_FEW_GROUPS: Final = 100
# So many labels of each kind are not equal in two files by chance (assumed).
_NOT_BY_CHANCE: Final = 8


def row_findings(settings: Settings) -> Iterable[Finding]:
    """Reads every file of the run's tasks as the run will, divides the training rows into folds, and reads labels and
    people's decisions."""
    with _faults_found() as look:
        for path in decision_files(settings).values():
            read_decisions(path)
    yield from look.found
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
    for task in settings.tasks:
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
                    read = read_split(path, task, split, own.data.max_chars)
                    tables[split] = read.rows
                    yield from _refused(path, task, read)
            yield from look.found
            progress.advance()
    if "train" in tables:
        if own.data.train_rows:
            tables["train"] = whole_queries(tables["train"], own.data.train_rows, own.seed)
        with _faults_found() as look:
            yield _divided(own, task, tables["train"])
        yield from look.found
    with _faults_found() as look:
        _translatable(own, task, tables)
    yield from look.found
    for name in label_names(task):
        split = name.partition("_")[0]
        # The report reads those of the training rows where a filter has judged them.
        if name in files and split in tables and (split != "train" or own.filter.enabled):
            with _faults_found() as look:
                yield from _labelled(files[name], task, files[f"{split}_{task}.txt"], tables[split])
            yield from look.found


def _refused(path: Path, task: str, read: ReadResult) -> Iterable[Finding]:
    if read.rejects:
        first, count = read.rejects[0], f"{len(read.rejects):,} of {read.lines:,} lines"
        text = f"data {task}: {path}: {count} would be left out, first line {first.line}: {first.reason}"
        yield Finding(Verdict.NOTE, text)


def _translatable(own: Settings, task: str, tables: Mapping[str, DataFrame]) -> None:
    """Raises UserError where no row can be translated, or the translator knows no language that is asked for."""
    if not own.translate.enabled or "train" not in tables:
        return
    source_rows(tables["train"], own.translate.source_languages)
    wanted = own.translate.languages
    if wanted is None:
        wanted = missing_languages(tables["train"], *(tables[split] for split in SCORED_SPLITS if split in tables))
    if fault := unknown_languages(own.translate, wanted):
        raise UserError(f"{task}: {fault}; name those to translate to with {task}.translate.languages")


def _divided(own: Settings, task: str, rows: DataFrame) -> Finding:
    if own.ensemble.method == "stack" or (own.filter.enabled and own.filter.scores == "neighbours"):
        held = [rows.loc[rows["label"] == label, "group"].nunique() for label in (0, 1)]
        if min(held) < 2:
            raise UserError(
                f"data {task}: only {min(held)} queries have rows with label {int(held[1] < held[0])}: too few for a "
                f"stack or a vote of neighbours; bring more rows, or take another ensemble.method and filter.scores"
            )
    if own.negatives.enabled and rows.loc[rows["label"] == 0, "group"].nunique() < 2:
        return Finding(Verdict.NOTE, f"data {task}: hardly a row has label 0: the folds depend on `negatives`")
    # With this many groups a division is never in doubt, and takes long.
    if len(set(divisible_groups(rows, own.folds.n, own.folds.group_by).tolist())) < _FEW_GROUPS:
        assign_folds(rows, own.folds.n, derive_seed(own.seed, "folds", task), own.folds.group_by)
    queries, positive = rows["group"].nunique(), int(rows["label"].sum())
    text = f"{len(rows):,} training rows, {positive:,} with label 1, of {queries:,} queries, in {own.folds.n} folds"
    return Finding(Verdict.OK, f"data {task}: {text}")


def _labelled(path: Path, task: str, rows_path: Path, rows: DataFrame) -> Iterable[Finding]:
    ids = [original_id(name) for name in rows["row_id"]]
    known, labels = labels_of(path, ids, str(rows_path), task), read_labels(path)
    verdict = Verdict.OK if len(known) == len(ids) else Verdict.NOTE
    yield Finding(verdict, f"data {task}: {path}: labels of {len(known):,} of {len(ids):,} rows; figures are of those")
    others = [path.with_name(name) for each in TASKS for name in label_names(each) if name != path.name]
    if twin := next((other for other in others if _is_copy(labels, other)), None):
        # The same text for both, which is shown once.
        one, other = sorted((path, twin))
        yield Finding(
            Verdict.FAIL, f"data: {one} and {other.name} hold the same labels; give each the labels of its own rows"
        )
    elif labels.keys() != set(ids) and (owner := _owner_of(labels, rows_path)):
        yield Finding(
            Verdict.NOTE, f"data {task}: {path}: its ids are those of {owner}; see that its labels are {rows_path}'s"
        )


def _is_copy(labels: Mapping[int, int], other: Path) -> bool:
    """Whether another label file says the same, and not by chance."""
    if not other.is_file() or min(Counter(labels.values()).values()) < _NOT_BY_CHANCE or len(set(labels.values())) < 2:
        return False
    with suppress(UserError):
        return read_labels(other) == labels
    return False


def _owner_of(labels: Mapping[int, int], rows_path: Path) -> Path | None:
    """Another file of rows whose ids are just those of the labels."""
    for other in (rows_path.with_name(f"{split}_{task}.txt") for task in TASKS for split in SCORED_SPLITS):
        with suppress(UserError):
            if other != rows_path and other.is_file() and labels.keys() == input_rows(other).keys():
                return other
    return None
