"""Collects a report's figures from the records and scores of a run's stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pandas import DataFrame
from sklearn.metrics import average_precision_score, roc_auc_score

from analyticup.corpus.rows import load_rows, original_id
from analyticup.corpus.stage import FLIPPED
from analyticup.corpus.tables import load_table, scored_splits, training_rows
from analyticup.engine.artifacts import Artifact
from analyticup.engine.files import read_json, read_json_lines
from analyticup.engine.job import Job
from analyticup.ensembling.threshold import DECISION, VOTE_CUT, Decision
from analyticup.filtering.rules import find_suspects, label_credibility
from analyticup.report import scored
from analyticup.report.figures import OUT_OF_FOLD, FilterQuality, FlowStep, Report, StageFigures
from analyticup.settings.loading import task_settings
from analyticup.settings.schema import FilterSettings, leaves
from analyticup.submission.score import labels_of

# The stages that give training rows, in their order.
ROW_STAGES = ("ingest", "translate", "negatives", "filter")
LEFT_OUT = "left out by data.train_rows"


def collect(job: Job) -> Report:
    """Everything the report shows. Label files are read here and by `score`, by no other stage."""
    figures = Report(name=job.settings.name)
    for task in job.settings.tasks:
        own = {
            name.removesuffix(f"-{task}"): artifact
            for name, artifact in job.inputs.items()
            if artifact.record.task == task
        }
        figures.stages[task] = {
            name: StageFigures(
                counts=dict(artifact.record.counts), seconds=artifact.record.seconds, memory=artifact.record.memory
            )
            for name, artifact in own.items()
        }
        decision = figures.out_of_fold[task] = Decision.load(own["threshold"].file(DECISION))
        figures.flow[task] = _flow(own)
        _scored_rows(job, task, own, decision, figures)
        # A filter that is off has people's decisions only, and no scores.
        if scored.judged(own):
            wrong = _wrong_labels(job.files.get(f"train_{task}.truth.txt"), own["ingest"])
            if wrong is not None:
                settings = task_settings(job.settings, task).filter
                figures.filter[task] = _filter_quality(wrong, own["filter"], own["ingest"], settings)
            figures.suspects[task] = scored.suspects(own["filter"])
    return figures


def _scored_rows(job: Job, task: str, own: Mapping[str, Artifact], decision: Decision, figures: Report) -> None:
    """The figures of the rows out of fold, and of dev and test: how the folds agree, and what the labels say."""
    settings, trained = task_settings(job.settings, task), _languages_with_training_rows(own["ingest"])
    method = settings.ensemble.method
    held_out = scored.out_of_fold_table(own, decision)
    figures.folds[task] = scored.fold_figures(held_out)
    figures.spread[task] = scored.spread(own, held_out)
    rows = scored.languages_and_groups(held_out, trained)
    cuts = decision.thresholds(held_out["language"])
    figures.pictures[f"{OUT_OF_FOLD} {task}"] = scored.picture(held_out, rows, trained, cuts)
    tables = {f"{OUT_OF_FOLD} {task}": held_out}
    for split, given in scored_splits(own["ingest"]).items():
        title, table = f"{split} {task}", load_table(job.inputs["submit"].file(f"{split}/scores_{task}.parquet"))
        # A rank or a stack's probability is no probability of a fold's.
        cuts = decision.thresholds(table["language"]) if method not in ("rank", "stack") else np.full(len(table), 0.5)
        if settings.train.refit != "instead":
            figures.agreement[title] = scored.agreement(table, cuts)
        labels = job.files.get(f"{split}_{task}.labels.txt")
        if labels is None:
            tables[title] = table
        else:
            tables[title] = table = _labelled(
                labels, table.assign(group=given["group"], row_id=given["row_id"])
            ).reset_index(drop=True)
            cuts = np.full(len(table), VOTE_CUT) if method == "vote" else decision.thresholds(table["language"])
            rows = figures.scores[title] = scored.languages_and_groups(table, trained)
            figures.pictures[title] = scored.picture(table, rows, trained, cuts)
    # The folds of a vote have been compared with the threshold before.
    both = {title: scored.side_by_side(table, decision) for title, table in tables.items() if method != "vote"}
    figures.cuts.update({title: cuts for title, cuts in both.items() if cuts})


def _flow(own: Mapping[str, Artifact]) -> list[FlowStep]:
    """The training rows after each stage that adds some or sets some aside."""
    steps: list[FlowStep] = []
    before: set[str] = set()
    for stage in ROW_STAGES:
        if stage in own:
            rows = training_rows(own[stage])
            aside = _refused(own[stage]) if stage == "ingest" else _set_aside(own[stage], before - set(rows["row_id"]))
            steps.append({"stage": stage, "rows": dict(sorted(Counter(rows["origin"]).items())), "aside": aside})
            before = set(rows["row_id"])
    return steps


def _refused(ingested: Artifact) -> dict[str, int]:
    """Training lines that gave no row, by reason."""
    why = Counter(reject["reason"] for reject in read_json_lines(ingested.file("rejects.jsonl")))
    left_out = ingested.record.counts["train"].get(LEFT_OUT, 0)
    return dict(why.most_common()) | ({LEFT_OUT: left_out} if left_out else {})


def _set_aside(artifact: Artifact, gone: set[str]) -> dict[str, int]:
    """Rows that a stage took out, by what it says was done with them."""
    if not gone:
        return {}
    done = {record["row_id"]: record["action"] for record in read_json_lines(artifact.file("suspects.jsonl"))}
    why = Counter(f"suspects {done[row_id]}" if row_id in done else "not suspected" for row_id in sorted(gone))
    return dict(why.most_common())


def _languages_with_training_rows(ingested: Artifact) -> list[str]:
    return sorted(set(load_rows(ingested.file("train.parquet"))["language"]))


def _labelled(labels_file: Path, table: DataFrame) -> DataFrame:
    """The rows of a table that have a label, with it."""
    truth = labels_of(labels_file, table["id"].tolist(), "the rows that were scored")
    return table.assign(label=table["id"].map(truth))[table["id"].isin(truth)].astype({"label": int})


def _wrong_labels(truth_file: Path | None, ingested: Artifact) -> dict[str, bool] | None:
    """Whether its label is known to be wrong, by row id of the original training rows that something is known of; None
    where nothing is known."""
    flipped = ingested.folder / FLIPPED
    known = set(read_json(flipped)) if flipped.is_file() else set()
    rows = load_rows(ingested.file("train.parquet"))
    if truth_file is None:
        # Real labels have errors of their own; only the flipped ones are known.
        return {name: name in known for name in rows["row_id"]} if known else None
    ids = [original_id(name) for name in rows["row_id"]]
    truth = labels_of(truth_file, ids, "the training rows")
    labelled = zip(rows["row_id"], ids, rows["label"], strict=True)
    return {name: truth[number] != label for name, number, label in labelled if number in truth}


def _filter_quality(
    wrong: dict[str, bool], filtered: Artifact, ingested: Artifact, settings: FilterSettings
) -> list[FilterQuality]:
    """How well each rule by itself finds the known wrong labels among the original training rows; then the same of the
    least credible rows whatever the rules' cut-offs, and of the rules in use.

    `ROC-AUC` and `average precision` rank the rows by 1 - p(label), so they are the same for every rule; precision at
    the base rate is guessing. A rule by itself is capped by `filter.max_share` of the original rows.
    """
    rows = load_rows(ingested.file("train.parquet"))
    rows = rows[rows["row_id"].isin(wrong)]
    score = load_table(filtered.file("scores.parquet")).set_index("row_id")["score"].loc[rows["row_id"]].to_numpy()
    labels = rows["label"].to_numpy(dtype=int)
    is_wrong = rows["row_id"].map(wrong).to_numpy(dtype=bool)
    doubt = 1 - label_credibility(labels, score)
    both = 0 < is_wrong.sum() < len(rows)
    ranking = {
        "ROC-AUC": float(roc_auc_score(is_wrong, doubt)) if both else None,
        "average precision": float(average_precision_score(is_wrong, doubt)) if both else None,
    }
    used = {record["row_id"] for record in read_json_lines(filtered.file("suspects.jsonl"))}
    picked = {
        rule: np.array([bool(r) for r in find_suspects(labels, score, settings.replace(rules=[rule]))], dtype=bool)
        for rule in leaves()["filter.rules"].choices
    }
    worst = np.argsort(-doubt, kind="stable")[: int(is_wrong.sum())]
    picked["least credible, as many as are wrong"] = np.isin(np.arange(len(rows)), worst)
    picked["in use: " + ", ".join(settings.rules)] = rows["row_id"].isin(used).to_numpy()
    return [
        {
            "rule": rule,
            "original rows": len(rows),
            "wrong labels": int(is_wrong.sum()),
            "suspects": int(suspect.sum()),
            "found": int((suspect & is_wrong).sum()),
            "precision": float(is_wrong[suspect].mean()) if suspect.any() else None,
            "recall": float(suspect[is_wrong].mean()) if is_wrong.any() else None,
            "base rate": float(is_wrong.mean()),
            **ranking,
        }
        for rule, suspect in picked.items()
    ]
