"""A report's figures of scored rows: out of fold, and where labels are known of dev and test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from pandas import DataFrame
from sklearn.metrics import f1_score

from analyticup.corpus.rows import load_rows
from analyticup.corpus.tables import load_table, training_rows
from analyticup.engine.artifacts import Artifact
from analyticup.engine.files import read_json_lines
from analyticup.ensembling.threshold import Decision
from analyticup.metrics import ALL, SEEN, UNSEEN, LanguageFigures, binary_metrics
from analyticup.report.curves import (
    Series,
    calibration,
    confusion,
    intervals,
    precision_recall,
    rank_correlations,
    series,
)
from analyticup.report.figures import ORIGINAL, Agreement, CutFigures, Example, FoldFigures, Picture
from analyticup.submission.score import per_language

# Per language, in the lists of suspects and of confident errors.
EXAMPLES = 3
JUDGED = "scores.parquet"


def out_of_fold_table(own: Mapping[str, Artifact], decision: Decision) -> DataFrame:
    """The training rows as their folds scored them: row_id, language, fold, label, score, prediction and group."""
    table = load_table(own["threshold"].file("out_of_fold.parquet"))
    groups = load_rows(own["ingest"].file("train.parquet")).set_index("row_id")["group"]
    return table.assign(
        prediction=decision.decide(table["score"], table["language"]), group=groups.loc[table["row_id"]].to_numpy()
    )


def side_by_side(table: DataFrame, decision: Decision) -> list[CutFigures]:
    """A fixed threshold and the swept one on the rows of a table with `score`, and `label` where all have one; []
    where none is fixed."""
    if decision.swept is None:
        return []
    found: list[CutFigures] = []
    for value in (decision.value, decision.swept["threshold"]):
        said = table["score"].to_numpy() >= value
        f1 = float(f1_score(table["label"].to_numpy(dtype=int), said, zero_division=0.0)) if "label" in table else None
        found.append({"threshold": value, "rows": len(table), "positive": int(said.sum()), "f1": f1})
    return found


def languages_and_groups(table: DataFrame, trained: list[str]) -> list[LanguageFigures]:
    """Figures per language, then over languages with and without training rows, then over all."""
    labels, predictions, scores = (table[name].to_numpy() for name in ("label", "prediction", "score"))
    rows = per_language(labels, predictions, table["language"].tolist(), scores)
    for name, part in _groups(table, trained).items():
        if part.any():
            rows.append({"language": name, **binary_metrics(labels[part], predictions[part], scores[part])})
    return rows


def _groups(table: DataFrame, trained: list[str]) -> dict[str, np.ndarray]:
    seen = table["language"].isin(trained).to_numpy()
    return {SEEN: seen, UNSEEN: ~seen, ALL: seen | ~seen}


def picture(table: DataFrame, figures: list[LanguageFigures], trained: list[str], cut: np.ndarray) -> Picture:
    """All that is shown of a table with the columns of `out_of_fold_table`; `cut` [rows] is what the scores were
    compared with."""
    labels, scores = table["label"].to_numpy(dtype=int), table["score"].to_numpy(dtype=float)
    predictions = table["prediction"].to_numpy(dtype=int)
    parts = {row["language"]: (table["language"] == row["language"]).to_numpy() for row in figures}
    parts |= {name: part for name, part in _groups(table, trained).items() if name in parts}
    queries = table["group"].to_numpy()
    return {
        "languages": figures,
        "intervals": {
            name: intervals(labels[own], scores[own], predictions[own], queries[own].tolist())
            for name, own in parts.items()
        },
        "precision_recall": precision_recall(labels, scores),
        "calibration": calibration(labels, scores),
        "confusion": confusion(labels, predictions),
        "errors": _confident(table[predictions != labels], np.abs(scores - cut)[predictions != labels]),
    }


def _confident(wrong: DataFrame, distances: np.ndarray) -> list[Example]:
    """Of each language the rows farthest from the cut."""
    ordered = wrong.iloc[np.argsort(-distances, kind="stable")]
    return _first_of_each_language(
        {"row_id": row.row_id, "language": row.language, "label": int(row.label), "score": float(row.score), "why": ""}
        for row in ordered.itertuples()
    )


def suspects(filtered: Artifact) -> list[Example]:
    """Of each language the suspects whose label the judges find least likely."""
    records = read_json_lines(filtered.file("suspects.jsonl"))
    ordered = sorted(records, key=lambda record: record["score"] if record["label"] == 1 else 1 - record["score"])
    return _first_of_each_language(
        {
            **{name: record[name] for name in ("row_id", "language", "label", "score")},
            "why": f"{record['reasons']}: {record['action']}",
        }
        for record in ordered
    )


def _first_of_each_language(examples: Iterable[Example]) -> list[Example]:
    taken: Counter[str] = Counter()
    kept: list[Example] = []
    for example in examples:
        taken[example["language"]] += 1
        if taken[example["language"]] <= EXAMPLES:
            kept.append(example)
    return sorted(kept, key=lambda example: example["language"])


def spread(own: Mapping[str, Artifact], table: DataFrame) -> list[Series]:
    """How scores spread, by origin and label: of all training rows where judges scored them for the filter, else of
    the original rows out of fold."""
    if judged(own):
        scores = load_table(own["filter"].file(JUDGED)).set_index("row_id")["score"]
        rows = training_rows(own[_made_last(own)])
        return series(
            rows["origin"].to_numpy(), rows["label"].to_numpy(dtype=int), scores.loc[rows["row_id"]].to_numpy()
        )
    labels = table["label"].to_numpy(dtype=int)
    return series(np.full(len(table), ORIGINAL), labels, table["score"].to_numpy())


def judged(own: Mapping[str, Artifact]) -> bool:
    """Whether judges scored the training rows for a filter."""
    return "filter" in own and own["filter"].file(JUDGED).is_file()


def _made_last(own: Mapping[str, Artifact]) -> str:
    """The stage whose rows the folds divide and the filter judges."""
    return next(name for name in ("negatives", "translate", "ingest") if name in own)


def fold_figures(table: DataFrame) -> list[FoldFigures]:
    found: list[FoldFigures] = []
    for fold, own in table.groupby("fold", sort=True):
        labels, predictions, scores = (own[name].to_numpy() for name in ("label", "prediction", "score"))
        figures = binary_metrics(labels, predictions, scores)
        kept = {name: figures[name] for name in ("rows", "f1", "floor_f1", "auc")}
        spread = intervals(labels.astype(int), scores, predictions.astype(int), own["group"].tolist())
        found.append({"fold": str(fold), **kept, "intervals": spread})
    return found


def agreement(scores: DataFrame, cuts: np.ndarray) -> Agreement:
    """How the folds' models answer the rows of one file, each by itself; `cuts` [rows] are probabilities."""
    columns = [name for name in scores.columns if name.startswith("score_fold")]
    votes = (scores[columns].to_numpy() >= cuts[:, None]).sum(axis=1)
    return {
        "rows": len(scores),
        "votes": np.bincount(votes, minlength=len(columns) + 1).tolist(),
        "correlations": rank_correlations(scores[columns].to_numpy()),
    }
