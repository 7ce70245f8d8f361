"""The augmentation stages: add translations, add semantic negatives."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
from pandas import DataFrame

from analyticup.augmentation.embedders import load_embedder
from analyticup.augmentation.negative_rules import PATH_TASK, relation_counts
from analyticup.augmentation.negatives import REMOVED, sample_negatives
from analyticup.augmentation.reasoning import reason_about
from analyticup.augmentation.translate import ask, missing_languages, translate_rows
from analyticup.augmentation.translation_report import write_report
from analyticup.augmentation.translators import build_translator
from analyticup.augmentation.translators.base import Tools, Translator
from analyticup.corpus.rows import load_rows
from analyticup.corpus.tables import (
    FOLDS,
    PIVOT_TABLE,
    REASONING_TABLE,
    as_read,
    load_table,
    save_table,
    save_with_new_rows,
    scored_splits,
    training_rows,
)
from analyticup.corpus.text import normalise
from analyticup.engine.graph import WHOLE
from analyticup.engine.job import Counts, Job
from analyticup.metrics import sigmoid
from analyticup.model.backbone import fill_adapter, load_adapter
from analyticup.seeds import derive_seed
from analyticup.settings.schema import read_volumes
from analyticup.training.fold import score_rows


def translate(job: Job) -> Counts:
    """Reads the ingested rows; writes the training rows with the translated ones below, and a report of the pairs. A
    shard translates some of the languages, which know nothing of one another, and writes nothing."""
    settings = job.settings
    rows = load_rows(job.inputs["rows"].file("train.parquet"))
    splits = scored_splits(job.inputs["rows"])
    languages = settings.translate.languages
    if languages is None:
        languages = missing_languages(rows, *splits.values())
    translator = _translator(job, splits, languages)
    seed = derive_seed(settings.seed, "translate", job.task)
    # The translations of a shard are in the translator's cache, where the stage itself finds those of all.
    languages = list(job.part.shard.take(languages))
    new_rows, counts, pairs = translate_rows(rows, settings.translate, translator, languages, seed)
    if job.part.shard != WHOLE:
        return {"new": len(new_rows)}
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


def _translator(job: Job, splits: Mapping[str, DataFrame], languages: Iterable[str]) -> Translator:
    settings, machine = job.settings, job.source.machine
    pool = {
        language: sorted(
            {query for frame in splits.values() for query in frame["query"][frame["language"] == language]}
        )
        for language in languages
    }
    tools = Tools(job.cache, machine, pool, lambda: load_embedder(settings.embedder, job.cache, machine))
    return build_translator(settings.translate, tools)


def pivot(job: Job) -> Counts:
    """Writes what the model reads in the place of a query, `prompt.pivot`, for each query of training, dev and test
    that has a translation other than itself."""
    wanted, splits = "en", scored_splits(job.inputs["ingest"])
    tables = [training_rows(job.inputs["rows"]), *splits.values()]
    asked = {pair for rows in tables for pair in zip(rows["language"], rows["query"], strict=True)}
    asked = {pair for pair in asked if pair[0] != wanted and normalise(pair[1])}
    answers = ask(asked, _translator(job, splits, [wanted]), wanted)
    found = {
        pair: answer.text if job.settings.prompt.pivot == "en_only" else f"{pair[1]} - {answer.text}"
        for pair, answer in answers.items()
        if answer.text is not None and normalise(answer.text) not in ("", normalise(pair[1]))
    }
    columns = {"language": [pair[0] for pair in found], "query": [pair[1] for pair in found]}
    save_table({**columns, "read": list(found.values())}, job.out / PIVOT_TABLE)
    refused = Counter(answer.refused or "empty" for answer in answers.values() if answer.text is None)
    return {"asked": len(answers), "found": len(found), "refused": dict(sorted(refused.items()))}


def reason(job: Job) -> Counts:
    """Writes what the backbone says about each query and target of training, dev and test, as the model reads them. A
    shard says it of its part, and leaves it in the cache, where the stage itself finds it."""
    tables = [as_read(rows, job.inputs) for rows in scored_splits(job.inputs["ingest"]).values()]
    if "rows" in job.inputs:
        tables.append(as_read(training_rows(job.inputs["rows"]), job.inputs))
    asked = {pair for rows in tables for pair in zip(rows["query"], rows["target"], strict=True)}
    shard = job.part.shard
    found = reason_about(asked, job.settings, job.source, job.cache, f"reason {job.title}", shard)
    if shard == WHOLE:
        columns = {"query": [query for query, _ in found], "target": [target for _, target in found]}
        save_table({**columns, "reasoning": [one.text for one in found.values()]}, job.out / REASONING_TABLE)
    most = job.settings.prompt.reasoning.max_tokens
    written = [one.tokens for one in found.values()]
    return {"asked": len(found), "tokens": sum(written), "cut off": sum(tokens == most for tokens in written)}


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
    language_of_query = dict(zip(rows["query"], rows["language"], strict=True))
    folders = {fold: job.inputs[f"judge-fold{fold}"].folder for fold in range(job.settings.folds.n)}
    model = load_adapter(job.source.backbone(), folders[0])

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        table = pd.DataFrame(pairs, columns=["query", "target"]).assign(label=pd.NA)
        languages = table["query"].map(language_of_query)
        folds = table["query"].map(normalise).map(fold_of_query)
        scores = np.empty(len(table))
        for fold in sorted(set(folds)):
            own = (folds == fold).to_numpy()
            fill_adapter(model, folders[fold])
            title = f"negatives {job.task} guard fold{fold}"
            read = as_read(table[own].assign(language=languages[own]), job.inputs)
            scores[own] = sigmoid(score_rows(read, model, job.settings, job.source, title))
        return scores.tolist()

    return score
