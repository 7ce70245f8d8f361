"""The filtering stages: train the judges, then filter the rows they doubt."""

from __future__ import annotations

import numpy as np
from pandas import DataFrame

from analyticup.corpus.rows import save_rows
from analyticup.corpus.tables import ROWS, load_table, save_table, training_rows
from analyticup.engine.files import write_json_lines
from analyticup.engine.job import Counts, Job
from analyticup.filtering import SUSPECTS
from analyticup.filtering.decisions import apply_decisions, fitting, read_decisions
from analyticup.filtering.rules import apply_remedy, find_suspects
from analyticup.metrics import sigmoid
from analyticup.settings.paths import decisions_name
from analyticup.training.out_of_fold import gathered
from analyticup.training.stage import train_adapter, with_folds


def judge(job: Job) -> Counts:
    """A model that judges training rows: those of its fold it never saw, or in-sample all of them.

    From the second round on it is trained on what the round before has left.
    """
    before, after = with_folds(job)
    if job.part.fold is None:
        return train_adapter(job, after, before, "filter", check=False)
    return train_adapter(job, after[after["fold"] != job.fold], before[before["fold"] == job.fold], "filter")


def filter_rows(job: Job) -> Counts:
    """Finds suspects among the training rows, then does what people decided; writes the rows that are left, every row's
    score, and the suspects. A filter that is off has decisions only: no scores, no suspects."""
    rows = training_rows(job.inputs["rows"])
    if job.settings.filter.enabled:
        kept, suspects, counts = _without_suspects(job, rows)
    else:
        kept, suspects, counts = rows, rows.head(0).assign(action=""), {"given": len(rows)}
    if path := job.files.get(decisions_name(job.task)):
        decisions = read_decisions(path)
        decided = fitting(rows, decisions)
        kept, counts["decided"] = apply_decisions(rows, kept, decided)
        counts["decided"]["not among the rows"] = len(decisions) - len(decided)
        counts["kept"] = len(kept)
        answers = suspects["row_id"].map({row_id: f"decided: {one.answer}" for row_id, one in decided.items()})
        suspects = suspects.assign(action=answers.fillna(suspects["action"]))
    save_rows(kept, job.out / ROWS)
    plain = [
        {key: value.item() if isinstance(value, np.generic) else value for key, value in record.items()}
        for record in suspects.sort_values("row_id").to_dict("records")
    ]
    write_json_lines(job.out / SUSPECTS, plain)
    return counts


def _without_suspects(job: Job, rows: DataFrame) -> tuple[DataFrame, DataFrame, Counts]:
    """(rows after the remedy, suspects, counts); writes every row's score."""
    settings = job.settings.filter
    if settings.scores == "neighbours":
        voted = load_table(job.inputs["neighbours"].file("train.parquet")).set_index("row_id")
        margins = voted.loc[rows["row_id"], "margin"]
    else:
        margins = gathered(rows, job.inputs, "filter_model")["margin"]
    scores = sigmoid(margins.to_numpy())
    reasons = find_suspects(rows["label"].to_numpy(dtype=int), scores, settings)
    kept, suspects = apply_remedy(rows, scores, reasons, settings.remedy)
    # Every row's score, so that each rule can be measured where wrong labels are known.
    save_table({"row_id": rows["row_id"].tolist(), "score": scores}, job.out / "scores.parquet")
    by_rule = {rule: sum(rule in broken for broken in reasons) for rule in settings.rules}
    by_action = suspects["action"].value_counts().sort_index().to_dict()
    return (
        kept,
        suspects,
        {
            "given": len(rows),
            "suspects": len(suspects),
            "kept": len(kept),
            "by rule": by_rule,
            "by action": by_action,
        },
    )
