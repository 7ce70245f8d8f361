"""A report of made-up rows, as the report stage would collect it, in a moment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analyticup.corpus.languages import LANGUAGES
from analyticup.ensembling.threshold import Decision, choose_threshold, measure_optimism
from analyticup.metrics import binary_metrics
from analyticup.report import scored
from analyticup.report.charts import StageCost
from analyticup.report.figures import Report
from analyticup.report.page import Facts, Figure, Grid
from analyticup.settings.schema import ThresholdSettings
from analyticup.verdict import Item, Verdict

TASKS = ("QC", "QI")
ARABIC, THAI = "حذاء رياضي للرجال", "รองเท้าวิ่งผู้ชาย"


def made_report(languages: tuple[str, ...] = tuple(LANGUAGES), seed: int = 0) -> Report:
    """400 training rows in the first seven languages and 260 test rows in all, both tasks; the scores know a little."""
    figures = Report(name="made")
    for task in TASKS:
        held_out, test = _table(languages[:7], 400, "train", seed), _table(languages, 260, "test", seed + 1)
        labels, scores = held_out["label"].to_numpy(), held_out["score"].to_numpy()
        settings = ThresholdSettings()
        choice = choose_threshold(labels, scores, settings)
        for table in (held_out, test):
            table["prediction"] = choice.decide(table["score"], table["language"])
        figures.out_of_fold[task] = Decision(
            **vars(choice),
            out_of_fold=binary_metrics(labels, held_out["prediction"], scores),
            out_of_fold_at_half=binary_metrics(labels, (scores >= 0.5).astype(int), scores),
            optimism=measure_optimism(labels, scores, held_out["fold"], held_out["language"], settings),
        )
        trained = list(languages[:7])
        for title, table in ((f"test {task}", test), (f"out-of-fold {task}", held_out)):
            rows = scored.languages_and_groups(table, trained)
            figures.pictures[title] = scored.picture(table, rows, trained, choice.thresholds(table["language"]))
        figures.scores[f"test {task}"] = figures.pictures[f"test {task}"]["languages"]
        figures.folds[task] = scored.fold_figures(held_out)
        figures.agreement[f"test {task}"] = scored.agreement(test, choice.thresholds(test["language"]))
        figures.spread[task] = scored.spread({}, held_out)
        counts: dict[str, Any] = {"lines": 403, "rows": 400, "rejects": 3}
        figures.stages[task] = {
            "ingest": {"counts": {"train": counts}, "seconds": 1.0, "memory": 10**9},
            "translate": {
                "counts": {"given": 400, "new": 90, "by language": {key: {"kept": 7} for key in languages}},
                "seconds": 1.0,
                "memory": 10**9,
            },
        }
        figures.flow[task] = [
            {"stage": "ingest", "rows": {"original": 400}, "aside": {"item_title is null": 3}},
            {"stage": "translate", "rows": {"original": 400, "translation": 90}, "aside": {}},
        ]
        figures.suspects[task] = [
            {"row_id": "train-1", "language": languages[0], "label": 1, "score": 0.03, "why": "disagreement: dropped"}
        ]
    return figures


def _table(languages: tuple[str, ...], rows: int, split: str, seed: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, rows)
    folds = [1 / (1 + np.exp(-(2 * labels - 1 + draw.normal(0, 1.4, rows)))) for _ in range(3)]
    return pd.DataFrame(
        {
            "row_id": [f"{split}-{number}" for number in range(rows)],
            "language": [languages[number % len(languages)] for number in range(rows)],
            "fold": [f"fold{number % 3}" for number in range(rows)],
            "group": [f"query {number // 2}" for number in range(rows)],
            "label": labels,
            **{f"score_fold{fold}": scores for fold, scores in enumerate(folds)},
            "score": np.mean(folds, axis=0),
        }
    )


def made_facts(figures: Report, texts: bool = True) -> Facts:
    """With a text for every row that the report names: Arabic and Thai where the language is, else Latin."""
    named = {
        (task, example["row_id"]): example["language"]
        for task in TASKS
        for example in [
            *figures.suspects[task],
            *(row for title, own in figures.pictures.items() if title.endswith(task) for row in own["errors"]),
        ]
    }
    queries = {"ar": ARABIC, "th": THAI}
    shown = {key: (queries.get(language, "query <b>&"), "a,long,category,path") for key, language in named.items()}
    return Facts(
        name=figures.name,
        command="./run.sh run --config configs/sample.yaml",
        costs=[
            StageCost(f"train-{task}-fold{fold}", 41.0, 2 * 10**9, 2.5e9, start=20.0 * fold)
            for task in TASKS
            for fold in range(3)
        ],
        verdicts=[Item(Verdict.OK, "figure test QC all: f1", "0.7000, expected 0.7100 ± 0.0300")],
        expected={"test QC all: f1": (0.71, 0.03)},
        texts=shown if texts else {},
        no_texts="" if texts else "Texts are left out, as report.rows does not allow them.",
        provenance=[
            Figure("Command", code="./run.sh run " + "train.lr=0.0001 " * 40, wide=True),
            Figure("Input files, sha256", grid=Grid(["file", "sha256"], [["train_QC.txt", "ab" * 32]], 2), folded=True),
        ],
    )
