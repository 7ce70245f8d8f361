"""The ensembling stages: one score from the folds' scores, and the threshold it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
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
from analyticup.ensembling.stack import (
    Stacked,
    coefficients,
    cross_fitted,
    fit_stack,
    for_means,
    stack_features,
    stack_scores,
)
from analyticup.ensembling.threshold import DECISION, Decision, choose, counts_by_language, measure_optimism
from analyticup.errors import CheckFailed
from analyticup.metrics import binary_metrics, sigmoid
from analyticup.training import ON_ALL, predicting
from analyticup.training.out_of_fold import gathered


def ensemble(job: Job) -> Counts:
    """Writes, for dev and test, each row's score by model and the combined one."""
    names = list(predicting(job.settings))
    splits = scored_splits(job.inputs["rows"])
    scored = {split: (rows, _margins(job, names, split, rows)) for split, rows in splits.items()}
    combined, fitted = _combination(job, names, scored)
    counts: Counts = {"folds": job.settings.folds.n, "method": job.settings.ensemble.method, **fitted}
    for split, (rows, margins) in scored.items():
        by_model = {f"score_{name}": sigmoid(margins[:, place]) for place, name in enumerate(names)}
        columns = {"id": [original_id(name) for name in rows["row_id"]], "language": rows["language"].tolist()}
        save_table({**columns, **by_model, "score": combined(margins, rows, split)}, job.out / f"{split}.parquet")
        counts[split] = len(rows)
    return counts


def _margins(job: Job, names: Sequence[str], split: str, rows: DataFrame) -> np.ndarray:
    """Of a split's rows by each model, [rows, models]."""
    tables = [load_table(job.inputs[f"predict-{name}"].file(f"{split}.parquet")) for name in names]
    if any(table["row_id"].tolist() != rows["row_id"].tolist() for table in tables):
        raise CheckFailed(f"ensemble {job.task} {split}: the folds' scores are not of the same rows")
    margins = np.column_stack([table["margin"].to_numpy() for table in tables])
    if not np.isfinite(margins).all():
        raise CheckFailed(f"ensemble {job.task} {split}: a score is not finite; a fold's model is broken")
    return margins


def _combination(
    job: Job, names: Sequence[str], scored: Mapping[str, tuple[DataFrame, np.ndarray]]
) -> tuple[Callable[[np.ndarray, DataFrame, str], np.ndarray], Counts]:
    """The method as a function of margins [rows, models], their rows and their split, and what was fitted for it;
    `names` are the models', `scored` are rows and margins of each split."""
    method = job.settings.ensemble.method
    if method == "rank":
        references = [margins for _, margins in _held_out(job).by_model(names)]
        return lambda margins, rows, split: combine_ranks(margins, references), {}
    if method == "weights":
        weights = fold_weights(*zip(*_held_out(job).by_model(names), strict=True))
        named = {name: float(weight) for name, weight in zip(names, weights, strict=True)}
        return lambda margins, rows, split: combine_weighted(margins, weights), {"weights": named}
    if method == "vote":
        decision = Decision.load(job.inputs["threshold"].file(DECISION))
        return lambda margins, rows, split: combine_votes(margins, rows["language"], decision), {}
    if method == "stack":
        held_out = _held_out(job)
        trained = _stacked(job, held_out.rows, held_out.margins[:, None], "train").table
        fitted = fit_stack(trained, held_out.labels)
        own = {split: _stacked(job, rows, margins, split) for split, (rows, margins) in scored.items()}
        # Of all splits together, so that a row's score does not depend on its file.
        sizes = [len(one.table) for one in own.values()]
        spreads = pd.DataFrame([one.spread for one in own.values()])
        spread = {name: float(np.average(values, weights=sizes)) for name, values in spreads.items()}
        adjusted = for_means(fitted, trained, spread)
        told = {"coefficients": coefficients(fitted), "spread": spread, "coefficients of means": coefficients(adjusted)}
        return lambda margins, rows, split: stack_scores(adjusted, own[split].table), told
    return lambda margins, rows, split: combine(margins, method), {}


def _stacked(job: Job, rows: DataFrame, margins: np.ndarray, split: str) -> Stacked:
    return stack_features(rows, margins, job.inputs, split, job.settings.ensemble.stack_features)


@dataclass(frozen=True)
class HeldOut:
    """The training rows with their labels, and for each the margin and the name of the fold that never saw it."""

    rows: DataFrame
    labels: np.ndarray
    margins: np.ndarray
    folds: np.ndarray

    def by_model(self, names: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Labels and margins by which each model is known: those of the fold it never saw. The one of all rows has
        none of its own, and stands for the folds' models: those of all folds (assumed)."""
        own = [np.full(len(self.folds), True) if name == str(ON_ALL) else self.folds == name for name in names]
        return [(self.labels[part], self.margins[part]) for part in own]


def _held_out(job: Job) -> HeldOut:
    rows = load_rows(job.inputs["rows"].file("train.parquet"))
    scored = gathered(rows, job.inputs, "train")
    return HeldOut(rows, rows["label"].to_numpy(dtype=int), scored["margin"].to_numpy(), scored["part"].to_numpy())


def threshold(job: Job) -> Counts:
    """Chooses the threshold on the out-of-fold rows; writes the decision with its figures, and those rows' scores."""
    settings, method = job.settings.threshold, job.settings.ensemble.method
    held_out = _held_out(job)
    rows, labels, parts = held_out.rows, held_out.labels, held_out.folds
    languages = rows["language"].to_numpy()
    if method == "stack":
        table = _stacked(job, rows, held_out.margins[:, None], "train").table
        scores = probabilities = cross_fitted(table, labels, parts)
    else:
        scores, probabilities = out_of_fold_scores(held_out.margins, parts, method), sigmoid(held_out.margins)
    choice = choose(labels, scores, languages, settings)
    decision = Decision(
        **vars(choice),
        scores=threshold_scale(method),
        out_of_fold=binary_metrics(labels, choice.decide(scores, languages), scores),
        # At p = 0.5, also where the threshold is compared with ranks.
        out_of_fold_at_half=binary_metrics(labels, (probabilities >= 0.5).astype(int), scores),
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
