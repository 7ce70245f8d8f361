"""The augmentation stages: add translations, add semantic negatives."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
from pandas import DataFrame

from analyticup.augmentation.embedders import load_embedder
from analyticup.augmentation.negative_rules import PATH_TASK, relation_counts
from analyticup.augmentation.negatives import REMOVED, sample_negatives
from analyticup.augmentation.translate import missing_languages, translate_rows
from analyticup.augmentation.translation_report import write_report
from analyticup.augmentation.translators import build_translator
from analyticup.augmentation.translators.base import Tools
from analyticup.corpus.rows import load_rows
from analyticup.corpus.tables import FOLDS, load_table, save_with_new_rows, scored_splits, training_rows
from analyticup.corpus.text import normalise
from analyticup.engine.job import Counts, Job
from analyticup.metrics import sigmoid
from analyticup.model.backbone import fill_adapter, load_adapter
from analyticup.seeds import derive_seed
from analyticup.settings.schema import read_volumes
from analyticup.training.fold import score_rows


def translate(job: Job) -> Counts:
    """Reads the ingested rows; writes the training rows with the translated ones below, and a report of the pairs."""
    settings = job.settings
    rows = load_rows(job.inputs["rows"].file("train.parquet"))
    splits = scored_splits(job.inputs["rows"])
    languages = settings.translate.languages
    if languages is None:
        languages = missing_languages(rows, *splits.values())
    pool = {
        language: sorted(
            {query for frame in splits.values() for query in frame["query"][frame["language"] == language]}
        )
        for language in languages
    }
    machine = job.source.machine
    tools = Tools(job.cache, machine, pool, lambda: load_embedder(settings.embedder, job.cache, machine))
    translator = build_translator(settings.translate, tools)
    seed = derive_seed(settings.seed, "translate", job.task)
    new_rows, counts, pairs = translate_rows(rows, settings.translate, translator, languages, seed)
    save_with_new_rows(rows, new_rows, job.out)
    write_report(pairs, counts, seed, job.out)
    found: Counts = {"given": len(rows), "new": len(new_rows), "by language": counts}
    found["pairs refused"] = {language: pairs[language].refused for language in pairs if pairs[language].refused}
    wanted = dict.fromkeys(languages, settings.translate.rows_per_language) | read_volumes(settings.translate.volumes)
    say_what_is_missing(
        f"translate {job.task}",
        sum(count["kept"] for count in counts.values()),
        sum(wanted[language] for language in languages),
        "translation_report.md in the stage's folder says why",
    )
    unused = sorted(set(read_volumes(settings.translate.volumes)) - set(languages))
    if unused:
        found["translate.volumes not needed for"] = ", ".join(unused)
    if settings.translate.source_languages is not None:
        others = ~rows["language"].isin(settings.translate.source_languages)
        found["left out by translate.source_languages"] = int(others.sum())
    return found


def negatives(job: Job) -> Counts:
    """Writes the training rows with the sampled negatives below them; counts the candidates that each rule removed."""
    rows = training_rows(job.inputs["rows"])
    embedder = load_embedder(job.settings.embedder, job.cache, job.source.machine)
    seed = derive_seed(job.settings.seed, "negatives", job.task)
    scorer = _out_of_fold_scorer(job, rows) if job.settings.negatives.guard_above is not None else None
    new_rows, counts = sample_negatives(rows, job.settings.negatives, embedder, seed, scorer)
    save_with_new_rows(rows, new_rows, job.out)
    by_rule = {name: count for name, count in counts.items() if name in REMOVED}
    most = max(by_rule, key=lambda name: by_rule[name])
    say_what_is_missing(
        f"negatives {job.task}",
        counts["kept"],
        counts["asked"],
        f"most candidates were refused as: {most} ({by_rule[most]:,}); see negatives.low, high and neighbours, or take "
        f"negatives.band=percentile",
    )
    found: Counts = {"given": len(rows), "new": len(new_rows), "by rule": counts}
    if job.task == PATH_TASK:
        found["by relation"] = relation_counts(rows, new_rows)
    return found


def say_what_is_missing(what: str, made: int, asked: int, why: str) -> None:
    """A line on stderr where less than half of an asked volume of rows was made."""
    if 2 * made < asked:
        share = f"{made:,} of {asked:,} rows asked for were made ({made / asked:.0%})"
        print(f"{what}: {share}; {why}", file=sys.stderr, flush=True)


def _out_of_fold_scorer(job: Job, rows: DataFrame) -> Callable[[list[tuple[str, str]]], list[float]]:
    """(query, target) pairs -> p(yes), each by the judge that was not trained on the query."""
    fold_of = load_table(job.inputs["folds"].file(FOLDS)).set_index("row_id")["fold"]
    # Folds never divide the rows of a query.
    fold_of_query = dict(zip(rows["query"].map(normalise), rows["row_id"].map(fold_of), strict=True))
    folders = {fold: job.inputs[f"judge-fold{fold}"].folder for fold in range(job.settings.folds.n)}
    model = load_adapter(job.source.backbone(), folders[0])

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        table = pd.DataFrame(pairs, columns=["query", "target"]).assign(label=pd.NA)
        folds = table["query"].map(normalise).map(fold_of_query)
        scores = np.empty(len(table))
        for fold in sorted(set(folds)):
            own = (folds == fold).to_numpy()
            fill_adapter(model, folders[fold])
            title = f"negatives {job.task} guard fold{fold}"
            scores[own] = sigmoid(score_rows(table[own], model, job.settings, job.source, title))
        return scores.tolist()

    return score
