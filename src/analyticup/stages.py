"""What each stage does: reads its inputs' files, calls the module that knows how, writes its own files.

A stage returns its counts, a nested dict of plain numbers and texts for the record and the summary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyticup.artifacts import Artifact
from analyticup.errors import CheckFailed
from analyticup.files import write_json
from analyticup.seeds import derive_seed
from analyticup.settings.loading import task_settings, to_dict
from analyticup.settings.schema import Settings, read_volumes

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame

    from analyticup.model.checkpoint import StepCheckpoint
    from analyticup.threshold import Decision
    from analyticup.train import ModelSource

ROWS = "rows.parquet"
FOLDS = "folds.parquet"
FLIPPED = "flipped.json"
SCORED_SPLITS = ("dev", "test")
Counts = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One stage to run. `settings` are those of its task; `out` is its scratch folder; `raw` maps the official
    file names that exist to their paths."""

    task: str
    part: str
    settings: Settings
    inputs: Mapping[str, Artifact]
    out: Path
    raw: Mapping[str, Path]
    cache: Path
    logs: Path
    group: str
    source: ModelSource = field(repr=False)
    # Of the stages that train.
    checkpoint: StepCheckpoint | None = None

    @property
    def fold(self) -> int:
        return int(self.part.partition("-")[0].removeprefix("fold"))

    @property
    def title(self) -> str:
        return f"{self.task} {self.part}".strip()


def sample(job: Job) -> Counts:
    from analyticup.corpus.sample import write_sample

    write_sample(job.settings.data.sample, job.settings.seed, job.out)
    return {"files": len(list(job.out.iterdir()))}


def ingest(job: Job) -> Counts:
    from analyticup.corpus.rows import read_split, save_rows, write_rejects

    counts: Counts = {}
    rejects = []
    for split in ("train", *SCORED_SPLITS):
        path = job.raw.get(f"{split}_{job.task}.txt")
        if path is None:
            counts[split] = {"absent": 1}
            continue
        result = read_split(path, job.task, split, job.settings.data.max_chars)
        rows = result.rows
        if split == "train" and job.settings.data.train_rows:
            rows = whole_queries(rows, job.settings.data.train_rows, job.settings.seed)
        turned: list[str] = []
        if split == "train" and job.settings.data.flip_labels:
            rows, turned = flip_labels(rows, job.settings.data.flip_labels, job.settings.seed)
            write_json(job.out / FLIPPED, turned)
        save_rows(rows, job.out / f"{split}.parquet")
        rejects += result.rejects
        counts[split] = {"lines": result.lines, "rows": len(rows), "rejects": len(result.rejects), **result.notes}
        if len(rows) < len(result.rows):
            counts[split]["left out by data.train_rows"] = len(result.rows) - len(rows)
        if turned:
            counts[split]["labels turned by data.flip_labels"] = len(turned)
    write_rejects(rejects, job.out / "rejects.jsonl")
    return counts


def whole_queries(rows: DataFrame, limit: int, seed: int) -> DataFrame:
    """At most `limit` rows: whole groups, in an order drawn from seed and text, kept in the file's order."""
    from analyticup.augment import seeded_key

    sizes = rows["group"].value_counts()
    kept, total = set(), 0
    for group in sorted(sizes.index, key=lambda text: seeded_key(seed, "subset", text)):
        if total + int(sizes[group]) <= limit:
            kept.add(group)
            total += int(sizes[group])
    return rows[rows["group"].isin(kept)].reset_index(drop=True)


def flip_labels(rows: DataFrame, share: float, seed: int) -> tuple[DataFrame, list[str]]:
    """(rows with round(share x rows) labels turned, their row ids sorted); drawn by seed and row id alone."""
    from analyticup.augment import seeded_key

    drawn = sorted(rows["row_id"], key=lambda name: seeded_key(seed, "flip", name))[: round(share * len(rows))]
    turned = rows["row_id"].isin(drawn)
    return rows.assign(label=rows["label"].where(~turned, 1 - rows["label"])), sorted(drawn)


def _scored_splits(ingested: Artifact) -> dict[str, DataFrame]:
    from analyticup.corpus.rows import load_rows

    paths = {split: ingested.file(f"{split}.parquet") for split in SCORED_SPLITS}
    return {split: load_rows(path) for split, path in paths.items() if path.exists()}


def translate(job: Job) -> Counts:
    from analyticup.augment.translate import missing_languages, translate_rows
    from analyticup.augment.translation_report import write_report
    from analyticup.augment.translators import Tools, build_translator
    from analyticup.corpus.rows import load_rows, save_rows
    from analyticup.embed import load_embedder

    settings = job.settings
    rows = load_rows(job.inputs["rows"].file("train.parquet"))
    splits = _scored_splits(job.inputs["rows"])
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
    save_rows(_concat(rows, new_rows), job.out / ROWS)
    write_report(pairs, counts, seed, job.out)
    told: Counts = {"given": len(rows), "new": len(new_rows), "by language": counts}
    told["pairs refused"] = {language: pairs[language].refused for language in pairs if pairs[language].refused}
    unused = sorted(set(read_volumes(settings.translate.volumes)) - set(languages))
    if unused:
        told["translate.volumes not needed for"] = ", ".join(unused)
    if settings.translate.source_languages is not None:
        others = ~rows["language"].isin(settings.translate.source_languages)
        told["left out by translate.source_languages"] = int(others.sum())
    return told


def _concat(rows: DataFrame, new_rows: DataFrame) -> DataFrame:
    import pandas as pd

    return pd.concat([rows, new_rows], ignore_index=True)


def training_rows(artifact: Artifact) -> DataFrame:
    """The training rows that an ingest, translate, negatives or filter artifact holds."""
    from analyticup.corpus.rows import load_rows

    path = artifact.file(ROWS)
    return load_rows(path if path.exists() else artifact.file("train.parquet"))


def negatives(job: Job) -> Counts:
    from analyticup.augment.negative_rules import PATH_TASK, relation_counts
    from analyticup.augment.negatives import sample_negatives
    from analyticup.corpus.rows import save_rows
    from analyticup.embed import load_embedder

    rows = training_rows(job.inputs["rows"])
    embedder = load_embedder(job.settings.embedder, job.cache, job.source.machine)
    seed = derive_seed(job.settings.seed, "negatives", job.task)
    scorer = _out_of_fold_scorer(job, rows) if job.settings.negatives.guard_above is not None else None
    new_rows, counts = sample_negatives(rows, job.settings.negatives, embedder, seed, scorer)
    save_rows(_concat(rows, new_rows), job.out / ROWS)
    found: Counts = {"given": len(rows), "new": len(new_rows), "by rule": counts}
    if job.task == PATH_TASK:
        found["by relation"] = relation_counts(rows, new_rows)
    return found


def _out_of_fold_scorer(job: Job, rows: DataFrame) -> Callable[[list[tuple[str, str]]], list[float]]:
    """(query, target) pairs -> p(yes), each by the judge that was not trained on the query."""
    import numpy as np
    import pandas as pd

    from analyticup.corpus.rows import normalise
    from analyticup.corpus.scores import load_table
    from analyticup.ensemble import sigmoid
    from analyticup.model.backbone import fill_adapter, load_adapter
    from analyticup.train import score_rows

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


def folds(job: Job) -> Counts:
    import numpy as np

    from analyticup.corpus.scores import save_table
    from analyticup.folds import assign_folds

    rows = training_rows(job.inputs["rows"])
    n = job.settings.folds.n
    fold = assign_folds(rows, n, derive_seed(job.settings.seed, "folds", job.task))
    save_table({"row_id": rows["row_id"].tolist(), "fold": fold}, job.out / FOLDS)
    original = (rows["origin"] == "original").to_numpy()
    sizes = {
        f"fold{i}": {"original": int(np.sum((fold == i) & original)), "all": int(np.sum(fold == i))} for i in range(n)
    }
    return {"rows": len(rows), **sizes}


def _with_folds(job: Job) -> tuple[DataFrame, DataFrame]:
    """(rows before filtering, rows to train on), both with their fold."""
    from analyticup.corpus.scores import load_table

    fold_of = load_table(job.inputs["folds"].file(FOLDS)).set_index("row_id")["fold"]
    before = training_rows(job.inputs["rows"])
    after = training_rows(job.inputs["filter"]) if "filter" in job.inputs else before
    return tuple(rows.assign(fold=rows["row_id"].map(fold_of)) for rows in (before, after))


def train(job: Job) -> Counts:
    """One fold's adapter; the scores of the original rows it never saw. Held-out rows are never filtered."""
    before, after = _with_folds(job)
    held_out = before[(before["fold"] == job.fold) & (before["origin"] == "original")]
    return _train(job, after[after["fold"] != job.fold], held_out, "train")


def filter_model(job: Job) -> Counts:
    """A model that judges training rows: those of its fold it never saw, or in-sample all of them.

    From the second round on it is trained on what the round before has left.
    """
    before, after = _with_folds(job)
    if job.part.startswith("all"):
        return _train(job, after, before, "filter", check=False)
    return _train(job, after[after["fold"] != job.fold], before[before["fold"] == job.fold], "filter")


def _train(job: Job, training: DataFrame, held_out: DataFrame, purpose: str, check: bool = True) -> Counts:
    from analyticup.corpus.scores import save_table
    from analyticup.folds import check_no_leakage
    from analyticup.model.backbone import save_adapter
    from analyticup.tracking import tracked_run
    from analyticup.train import train_fold

    if check:
        check_no_leakage(training, held_out)
    settings = job.settings
    seed = derive_seed(settings.seed, purpose, job.task, job.part)
    config = {"task": job.task, "part": job.part, "purpose": purpose, "rows": len(training), **to_dict(settings.train)}
    name = f"{purpose}-{job.task}-{job.part}"
    with tracked_run(settings.tracking, job.logs, job.group, name, config) as logger:
        description = f"{purpose} {job.title}"
        model, margins = train_fold(training, held_out, settings, job.source, seed, description, logger, job.checkpoint)
    save_adapter(model, job.out, settings.model.backbone)
    columns = {"row_id": held_out["row_id"].tolist(), "margin": margins}
    save_table(columns, job.out / "held_out.parquet")
    return {"trained on": len(training), "scored": len(held_out), **_held_out_figures(held_out, margins)}


def _held_out_figures(rows: DataFrame, margins: np.ndarray) -> Counts:
    from analyticup.metrics import binary_metrics

    labels = rows["label"].to_numpy(dtype=int)
    figures = binary_metrics(labels, (margins >= 0).astype(int), margins)
    return {name: figures[name] for name in ("f1", "floor_f1", "auc")}


def filter_rows(job: Job) -> Counts:
    import numpy as np

    from analyticup.corpus.rows import save_rows
    from analyticup.corpus.scores import save_table
    from analyticup.ensemble import sigmoid
    from analyticup.filter import apply_remedy, find_suspects

    rows = training_rows(job.inputs["rows"])
    scores = sigmoid(_gathered(rows, job.inputs, "filter_model")["margin"].to_numpy())
    settings = job.settings.filter
    reasons = find_suspects(rows["label"].to_numpy(dtype=int), scores, settings)
    kept, suspects = apply_remedy(rows, scores, reasons, settings.remedy)
    save_rows(kept, job.out / ROWS)
    # Every row's score, so that each rule can be measured where wrong labels are known.
    save_table({"row_id": rows["row_id"].tolist(), "score": scores}, job.out / "scores.parquet")
    with (job.out / "suspects.jsonl").open("w", encoding="utf-8", newline="\n") as stream:
        for record in suspects.sort_values("row_id").to_dict("records"):
            plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in record.items()}
            stream.write(json.dumps(plain, ensure_ascii=False) + "\n")
    by_rule = {rule: sum(rule in broken for broken in reasons) for rule in settings.rules}
    by_action = suspects["action"].value_counts().sort_index().to_dict()
    return {
        "given": len(rows),
        "suspects": len(suspects),
        "kept": len(kept),
        "by rule": by_rule,
        "by action": by_action,
    }


def _gathered(rows: DataFrame, inputs: Mapping[str, Artifact], role: str) -> DataFrame:
    """The held-out `margin` of all `role` artifacts and the `part` that scored it, in the order of the rows; every row
    must be scored once."""
    import pandas as pd

    from analyticup.corpus.scores import load_table

    names = [name for name in sorted(inputs) if name.startswith(role)]
    parts = [
        load_table(inputs[name].file("held_out.parquet")).assign(part=name.removeprefix(f"{role}-")) for name in names
    ]
    scored = pd.concat(parts).set_index("row_id")
    if not scored.index.is_unique or not rows["row_id"].isin(scored.index).all():
        raise CheckFailed(
            f"{role}: the folds' scores do not cover every row exactly once; the folds do not fit the rows"
        )
    return scored.loc[rows["row_id"], ["margin", "part"]]


def predict(job: Job) -> Counts:
    from analyticup.corpus.scores import save_table
    from analyticup.model.backbone import load_adapter
    from analyticup.train import score_rows

    counts = {}
    model = load_adapter(job.source.backbone(), job.inputs["train"].folder)
    if job.settings.predict.merge_adapters:
        model.merge_adapter()
    for split, rows in _scored_splits(job.inputs["rows"]).items():
        margins = score_rows(rows, model, job.settings, job.source, f"predict {job.title} {split}")
        save_table({"row_id": rows["row_id"].tolist(), "margin": margins}, job.out / f"{split}.parquet")
        counts[split] = len(rows)
    return counts


def ensemble(job: Job) -> Counts:
    import numpy as np

    from analyticup.corpus.rows import original_id
    from analyticup.corpus.scores import load_table, save_table
    from analyticup.ensemble import sigmoid

    n = job.settings.folds.n
    combined, fitted = _combination(job)
    counts: Counts = {"folds": n, "method": job.settings.ensemble.method, **fitted}
    for split, rows in _scored_splits(job.inputs["rows"]).items():
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
    from analyticup.ensemble import combine, combine_ranks, combine_votes, combine_weighted, fold_weights
    from analyticup.threshold import DECISION, Decision

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
    from analyticup.corpus.rows import load_rows

    rows = load_rows(job.inputs["rows"].file("train.parquet"))
    scored = _gathered(rows, job.inputs, "train")
    labels, margins = rows["label"].to_numpy(dtype=int), scored["margin"].to_numpy()
    own = [(scored["part"] == f"fold{fold}").to_numpy() for fold in range(job.settings.folds.n)]
    return [(labels[part], margins[part]) for part in own]


def threshold(job: Job) -> Counts:
    from analyticup.corpus.rows import load_rows
    from analyticup.corpus.scores import save_table
    from analyticup.ensemble import out_of_fold_scores, sigmoid, threshold_scale
    from analyticup.metrics import binary_metrics
    from analyticup.threshold import DECISION, Decision, choose, measure_optimism

    settings, method = job.settings.threshold, job.settings.ensemble.method
    rows = load_rows(job.inputs["rows"].file("train.parquet"))
    labels, languages = rows["label"].to_numpy(dtype=int), rows["language"].to_numpy()
    scored = _gathered(rows, job.inputs, "train")
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
    told = {"f1": figures["f1"], "floor_f1": figures["floor_f1"], "auc": figures["auc"]}
    return {"threshold": decision.value, "mode": decision.mode, **_by_language(decision), **told}


def _by_language(decision: Decision) -> Counts:
    return {"by language": decision.language_values} if decision.by_language else {}


def submit(job: Job) -> Counts:
    """Submission files of each split that every task has or that any task has, validated by independent code."""
    from analyticup.submission import zip_submission

    counts: Counts = {}
    for split in SCORED_SPLITS:
        tasks = [task for task in job.settings.tasks if f"{split}_{task}.txt" in job.raw]
        written = []
        for task in tasks:
            path, count = _submit_task(job, task, split)
            written.append(path)
            counts.setdefault(split, {})[task] = count
        if written:
            zip_submission(written, job.out / split / "submit.zip")
    return counts


def _submit_task(job: Job, task: str, split: str) -> tuple[Path, Counts]:
    from analyticup.corpus.scores import load_table, save_table
    from analyticup.submission import format_problems, validate_submission, write_submission
    from analyticup.threshold import DECISION, Decision

    decision = Decision.load(job.inputs[f"threshold-{task}"].file(DECISION))
    scores = load_table(job.inputs[f"ensemble-{task}"].file(f"{split}.parquet"))
    method = task_settings(job.settings, task).ensemble.method
    scores["prediction"] = decision.decide(scores["score"], scores["language"], method)
    folder = job.out / split
    folder.mkdir(exist_ok=True)
    source, path = job.raw[f"{split}_{task}.txt"], folder / f"submit_{task}.txt"
    write_submission(task, source, dict(zip(scores["id"], scores["prediction"], strict=True)), path)
    problems = validate_submission(task, source, path)
    if problems:
        raise CheckFailed(f"{path.name}: the written submission is not valid\n{format_problems(problems)}")
    save_table({name: scores[name].to_numpy() for name in scores.columns}, folder / f"scores_{task}.parquet")
    counts = {"rows": len(scores), "positive": int(scores["prediction"].sum()), "threshold": decision.value}
    return path, {**counts, **_by_language(decision)}


def report(job: Job) -> Counts:
    from analyticup.report import REPORT, collect, to_html

    figures = collect(job)
    figures.save(job.out / REPORT)
    (job.out / "report.html").write_text(to_html(figures), encoding="utf-8")
    return {"scored against labels": sorted(figures.scores)}
