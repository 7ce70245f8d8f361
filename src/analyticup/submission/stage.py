"""The submit stage: predictions become validated submission files and a zip."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from pandas import DataFrame

from analyticup.corpus.official import SCORED_SPLITS
from analyticup.corpus.tables import load_table, save_table
from analyticup.engine.job import Counts, Job
from analyticup.ensembling.threshold import DECISION, Choice, Decision, counts_by_language
from analyticup.errors import CheckFailed
from analyticup.settings.loading import task_settings
from analyticup.submission.validate import format_problems, validate_submission
from analyticup.submission.write import write_submission, zip_submission

# By thresholds that suit this run's models, beside a submission by fixed ones. It holds files of the same names.
SWEPT = "submit-swept.zip"


def submit(job: Job) -> Counts:
    """Writes and validates the submission files of each split that any task has, and where a threshold is fixed, those
    by a swept one; counts rows and positive answers."""
    counts: Counts = {}
    for split in SCORED_SPLITS:
        tasks = [task for task in job.settings.tasks if f"{split}_{task}.txt" in job.files]
        written = {}
        for task in tasks:
            written[task], count = _submit_task(job, task, split)
            counts.setdefault(split, {})[task] = count
        if written:
            zip_submission([*written.values()], job.out / split / "submit.zip")
        if swept := _swept(job, tasks):
            _submit_swept(job, split, written, swept, counts[split])
    return counts


def _submit_task(job: Job, task: str, split: str) -> tuple[Path, Counts]:
    decision, scores = _scored(job, task, split)
    method = task_settings(job.settings, task).ensemble.method
    scores["prediction"] = decision.decide(scores["score"], scores["language"], method)
    folder = job.out / split
    folder.mkdir(exist_ok=True)
    path = _written(job, task, split, scores, folder)
    save_table({name: scores[name].to_numpy() for name in scores.columns}, folder / f"scores_{task}.parquet")
    counts = {"rows": len(scores), "positive": int(scores["prediction"].sum()), "threshold": decision.value}
    return path, {**counts, **counts_by_language(decision)}


def _swept(job: Job, tasks: Iterable[str]) -> dict[str, Choice]:
    """By task whose threshold is fixed, the one that the sweep would have chosen. The folds of a vote have been
    compared with theirs already, so it has none."""
    found = {}
    for task in tasks:
        point = Decision.load(job.inputs[f"threshold-{task}"].file(DECISION)).swept
        if point is not None and task_settings(job.settings, task).ensemble.method != "vote":
            found[task] = Choice(value=point["threshold"], mode="sweep")
    return found


def _submit_swept(job: Job, split: str, files: Mapping[str, Path], swept: Mapping[str, Choice], counts: Counts) -> None:
    """The submission `files` (by task) again, as a zip, in which tasks have their swept threshold."""
    with tempfile.TemporaryDirectory(dir=job.out) as scratch:
        written = dict(files)
        for task, choice in swept.items():
            _, scores = _scored(job, task, split)
            scores["prediction"] = choice.decide(scores["score"], scores["language"])
            written[task] = _written(job, task, split, scores, Path(scratch))
            counts[task]["swept"] = {"threshold": choice.value, "positive": int(scores["prediction"].sum())}
        zip_submission([*written.values()], job.out / split / SWEPT)


def _scored(job: Job, task: str, split: str) -> tuple[Decision, DataFrame]:
    scores = load_table(job.inputs[f"ensemble-{task}"].file(f"{split}.parquet"))
    return Decision.load(job.inputs[f"threshold-{task}"].file(DECISION)), scores


def _written(job: Job, task: str, split: str, scores: DataFrame, folder: Path) -> Path:
    """The submission file, validated; `scores` with their predictions."""
    source, path = job.files[f"{split}_{task}.txt"], folder / f"submit_{task}.txt"
    write_submission(task, source, dict(zip(scores["id"], scores["prediction"], strict=True)), path)
    problems = validate_submission(task, source, path)
    if problems:
        raise CheckFailed(f"{path.name}: the written submission is not valid\n{format_problems(problems)}")
    return path
