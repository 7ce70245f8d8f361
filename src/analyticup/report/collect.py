"""Collects a report's figures from the records and scores of a run's stages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from analyticup.corpus.official import SCORED_SPLITS
from analyticup.corpus.rows import load_rows, original_id
from analyticup.corpus.stage import FLIPPED
from analyticup.corpus.tables import load_table
from analyticup.engine.artifacts import Artifact
from analyticup.engine.files import read_json
from analyticup.engine.job import Job
from analyticup.ensembling.threshold import DECISION, Decision
from analyticup.errors import UserError
from analyticup.filtering.rules import find_suspects, label_credibility
from analyticup.metrics import ALL, SEEN, UNSEEN, LanguageFigures, binary_metrics
from analyticup.report.figures import FilterQuality, Report, StageFigures
from analyticup.settings.loading import task_settings
from analyticup.settings.schema import FilterSettings, leaves
from analyticup.submission.score import per_language, read_labels


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
        figures.out_of_fold[task] = Decision.load(own["threshold"].file(DECISION))
        trained = _languages_with_training_rows(own["ingest"])
        for split in SCORED_SPLITS:
            labels = job.files.get(f"{split}_{task}.labels.txt")
            if labels is not None and f"{split}_{task}.txt" in job.files:
                scores = job.inputs["submit"].file(f"{split}/scores_{task}.parquet")
                figures.scores[f"{split} {task}"] = _scores(labels, scores, trained)
        # A filter that is off has people's decisions only, and no scores.
        if "filter" in own and task_settings(job.settings, task).filter.enabled:
            wrong = _wrong_labels(job.files.get(f"train_{task}.truth.txt"), own["ingest"])
            if wrong is not None:
                settings = task_settings(job.settings, task).filter
                figures.filter[task] = _filter_quality(wrong, own["filter"], own["ingest"], settings)
    return figures


def _languages_with_training_rows(ingested: Artifact) -> list[str]:
    return sorted(set(load_rows(ingested.file("train.parquet"))["language"]))


def _scores(labels_file: Path, scores_file: Path, trained: list[str]) -> list[LanguageFigures]:
    """Figures per language, then over languages with and without training rows, then over all."""
    truth, table = read_labels(labels_file), load_table(scores_file)
    missing = [number for number in table["id"] if number not in truth]
    if missing:
        raise UserError(
            f"{labels_file}: {len(missing)} ids of the input have no label, e.g. {missing[0]}; complete the file"
        )
    labels = table["id"].map(truth).to_numpy()
    seen = table["language"].isin(trained).to_numpy()
    scores, predictions = table["score"].to_numpy(), table["prediction"].to_numpy()
    rows = per_language(labels, predictions, table["language"].tolist(), scores)
    parts = {SEEN: seen, UNSEEN: ~seen, ALL: seen | ~seen}
    for name, part in parts.items():
        if part.any():
            rows.append({"language": name, **binary_metrics(labels[part], predictions[part], scores[part])})
    return rows


def _wrong_labels(truth_file: Path | None, ingested: Artifact) -> set[str] | None:
    """Row ids of the original training rows whose label is known to be wrong; None where nothing is known."""
    flipped = ingested.folder / FLIPPED
    known = set(read_json(flipped)) if flipped.is_file() else set()
    if truth_file is None:
        # Real labels have errors of their own; only the flipped ones are known.
        return known or None
    truth = read_labels(truth_file)
    rows = load_rows(ingested.file("train.parquet"))
    return {
        name for name, label in zip(rows["row_id"], rows["label"], strict=True) if truth[original_id(name)] != label
    }


def _filter_quality(
    wrong: set[str], filtered: Artifact, ingested: Artifact, settings: FilterSettings
) -> list[FilterQuality]:
    """How well each rule by itself finds the known wrong labels among the original training rows; then the same of the
    least credible rows whatever the rules' cut-offs, and of the rules in use.

    `auroc` and `ap` rank the rows by 1 - p(label), so they are the same for every rule; precision at the base rate is
    guessing. A rule by itself is capped by `filter.max_share` of the original rows.
    """
    rows = load_rows(ingested.file("train.parquet"))
    score = load_table(filtered.file("scores.parquet")).set_index("row_id")["score"].loc[rows["row_id"]].to_numpy()
    labels = rows["label"].to_numpy(dtype=int)
    is_wrong = rows["row_id"].isin(wrong).to_numpy()
    doubt = 1 - label_credibility(labels, score)
    both = 0 < is_wrong.sum() < len(rows)
    ranking = {
        "auroc": float(roc_auc_score(is_wrong, doubt)) if both else None,
        "ap": float(average_precision_score(is_wrong, doubt)) if both else None,
    }
    # Not splitlines(): a query may hold U+2028, which JSON leaves as it is.
    lines = filtered.file("suspects.jsonl").read_text(encoding="utf-8").split("\n")
    used = {record["row_id"] for record in map(json.loads, filter(None, lines))}
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
