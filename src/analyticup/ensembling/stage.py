"""The ensembling stages: one score from the folds' scores, and the threshold it is compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pandas import DataFrame

from analyticup.corpus.rows import load_rows, original_id
from analyticup.corpus.tables import load_table, save_table, scored_splits
from analyticup.engine.job import Counts, Job
from analyticup.ensembling import threshold_scale
from analyticup.ensembling.combine import (
    combine,
    combine_ranks,
    combine_votes,
    combine_weighted,
    fold_weights,
    out_of_fold_scores,
)
from analyticup.ensembling.threshold import DECISION, Decision, choose, counts_by_language, measure_optimism
from analyticup.errors import CheckFailed
from analyticup.metrics import binary_metrics, sigmoid
from analyticup.training.out_of_fold import gathered


def ensemble(job: Job) -> Counts:
    """Writes, for dev and test, each row's score by fold and the combined one."""
    n = job.settings.folds.n
    combined, fitted = _combination(job)
    counts: Counts = {"folds": n, "method": job.settings.ensemble.method, **fitted}
    for split, rows in scored_splits(job.inputs["rows"]).items():
        tables = [load_table(job.inputs[f"predict-fold{fold}"].file(f"{split}.parquet")) for fold in range(n)]
        if any(table["row_id"].tolist() != rows["row_id"].tolist() for table in tables):
            raise CheckFailed(f"ensemble {job.task} {split}: the folds' scores are not of the same rows")
        margins = np.column_stack([table["margin"].to_numpy() for table in tables])
        if not np.isfinite(margins).all():
            raise CheckFailed(f"ensemble {job.task} {split}: a score is not finite; a fold's model is broken")
        per_fold = {f"score_fold{fold}": sigmoid(margins[:, fold]) for fold in range(n)}
        columns = {"id": [original_id(name) for name in rows["row_id"]], "language": rows["language"].tolist()}
        save_table({**columns, **per_fold, "score": combined(margins, rows)}, job.out / f"{split}.parquet")
        counts[split] = len(rows)
    return counts


def _combination(job: Job) -> tuple[Callable[[np.ndarray, DataFrame], np.ndarray], Counts]:
    """The method as a function of margins [rows, folds] and their rows, and what was fitted for it."""
    method = job.settings.ensemble.method
    if method == "rank":
        references = [margins for _, margins in _held_out_by_fold(job)]
        return lambda margins, rows: combine_ranks(margins, references), {}
    if method == "weights":
        weights = fold_weights(*zip(*_held_out_by_fold(job), strict=True))
        named = {f"fold{fold}": float(weight) for fold, weight in enumerate(weights)}
        return lambda margins, rows: combine_weighted(margins, weights), {"weights": named}
    if method == "vote":
        decision = Decision.load(job.inputs["threshold"].file(DECISION))
        return lambda margins, rows: combine_votes(margins, rows["language"], decision), {}
    return lambda margins, rows: combine(margins, method), {}


def _held_out_by_fold(job: Job) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and margins of each fold's out-of-fold rows."""
    rows = load_rows(job.inputs["rows"].file("train.parquet"))
    scored = gathered(rows, job.inputs, "train")
    labels, margins = rows["label"].to_numpy(dtype=int), scored["margin"].to_numpy()
    own = [(scored["part"] == f"fold{fold}").to_numpy() for fold in range(job.settings.folds.n)]
    return [(labels[part], margins[part]) for part in own]


def threshold(job: Job) -> Counts:
    """Chooses the threshold on the out-of-fold rows; writes the decision with its figures, and those rows' scores."""
    settings, method = job.settings.threshold, job.settings.ensemble.method
    rows = load_rows(job.inputs["rows"].file("train.parquet"))
    labels, languages = rows["label"].to_numpy(dtype=int), rows["language"].to_numpy()
    scored = gathered(rows, job.inputs, "train")
    margins, parts = scored["margin"].to_numpy(), scored["part"].to_numpy()
    scores = out_of_fold_scores(margins, parts, method)
    choice = choose(labels, scores, languages, settings)
    decision = Decision(
        **vars(choice),
        scores=threshold_scale(method),
        out_of_fold=binary_metrics(labels, choice.decide(scores, languages), scores),
        # At p = 0.5, also where the threshold is compared with ranks.
        out_of_fold_at_half=binary_metrics(labels, (sigmoid(margins) >= 0.5).astype(int), scores),
        optimism=measure_optimism(labels, scores, parts, languages, settings),
    )
    decision.save(job.out / DECISION)
    columns = {
        "row_id": rows["row_id"].tolist(),
        "language": languages.tolist(),
        "fold": parts.tolist(),
        "label": labels,
        "score": scores,
    }
    save_table(columns, job.out / "out_of_fold.parquet")
    figures = decision.out_of_fold
    shown = {"f1": figures["f1"], "floor_f1": figures["floor_f1"], "auc": figures["auc"]}
    return {"threshold": decision.value, "mode": decision.mode, **counts_by_language(decision), **shown}
