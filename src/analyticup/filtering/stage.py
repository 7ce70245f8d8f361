"""The filtering stages: train the judges, then filter the rows they doubt."""

from __future__ import annotations

import numpy as np

from analyticup.corpus.rows import save_rows
from analyticup.corpus.tables import ROWS, load_table, save_table, training_rows
from analyticup.engine.files import write_json_lines
from analyticup.engine.job import Counts, Job
from analyticup.filtering.rules import apply_remedy, find_suspects
from analyticup.metrics import sigmoid
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
    """Finds suspects among the training rows; writes the rows after the remedy, every row's score, and the suspects."""
    rows = training_rows(job.inputs["rows"])
    settings = job.settings.filter
    if settings.scores == "neighbours":
        voted = load_table(job.inputs["neighbours"].file("train.parquet")).set_index("row_id")
        margins = voted.loc[rows["row_id"], "margin"]
    else:
        margins = gathered(rows, job.inputs, "filter_model")["margin"]
    scores = sigmoid(margins.to_numpy())
    reasons = find_suspects(rows["label"].to_numpy(dtype=int), scores, settings)
    kept, suspects = apply_remedy(rows, scores, reasons, settings.remedy)
    save_rows(kept, job.out / ROWS)
    # Every row's score, so that each rule can be measured where wrong labels are known.
    save_table({"row_id": rows["row_id"].tolist(), "score": scores}, job.out / "scores.parquet")
    plain = [
        {key: value.item() if isinstance(value, np.generic) else value for key, value in record.items()}
        for record in suspects.sort_values("row_id").to_dict("records")
    ]
    write_json_lines(job.out / "suspects.jsonl", plain)
    by_rule = {rule: sum(rule in broken for broken in reasons) for rule in settings.rules}
    by_action = suspects["action"].value_counts().sort_index().to_dict()
    return {
        "given": len(rows),
        "suspects": len(suspects),
        "kept": len(kept),
        "by rule": by_rule,
        "by action": by_action,
    }
