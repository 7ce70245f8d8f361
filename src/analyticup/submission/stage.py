"""The submit stage: predictions become validated submission files and a zip."""

from __future__ import annotations

from pathlib import Path

from analyticup.corpus.official import SCORED_SPLITS
from analyticup.corpus.tables import load_table, save_table
from analyticup.engine.job import Counts, Job
from analyticup.ensembling.threshold import DECISION, Decision, counts_by_language
from analyticup.errors import CheckFailed
from analyticup.settings.loading import task_settings
from analyticup.submission.validate import format_problems, validate_submission
from analyticup.submission.write import write_submission, zip_submission


def submit(job: Job) -> Counts:
    """Writes and validates the submission files of each split that any task has; counts rows and positive answers."""
    counts: Counts = {}
    for split in SCORED_SPLITS:
        tasks = [task for task in job.settings.tasks if f"{split}_{task}.txt" in job.files]
        written = []
        for task in tasks:
            path, count = _submit_task(job, task, split)
            written.append(path)
            counts.setdefault(split, {})[task] = count
        if written:
            zip_submission(written, job.out / split / "submit.zip")
    return counts


def _submit_task(job: Job, task: str, split: str) -> tuple[Path, Counts]:
    decision = Decision.load(job.inputs[f"threshold-{task}"].file(DECISION))
    scores = load_table(job.inputs[f"ensemble-{task}"].file(f"{split}.parquet"))
    method = task_settings(job.settings, task).ensemble.method
    scores["prediction"] = decision.decide(scores["score"], scores["language"], method)
    folder = job.out / split
    folder.mkdir(exist_ok=True)
    source, path = job.files[f"{split}_{task}.txt"], folder / f"submit_{task}.txt"
    write_submission(task, source, dict(zip(scores["id"], scores["prediction"], strict=True)), path)
    problems = validate_submission(task, source, path)
    if problems:
        raise CheckFailed(f"{path.name}: the written submission is not valid\n{format_problems(problems)}")
    save_table({name: scores[name].to_numpy() for name in scores.columns}, folder / f"scores_{task}.parquet")
    counts = {"rows": len(scores), "positive": int(scores["prediction"].sum()), "threshold": decision.value}
    return path, {**counts, **counts_by_language(decision)}
