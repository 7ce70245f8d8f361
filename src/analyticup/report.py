"""The report of a run: figures collected from records and scores, shown as terminal tables and as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict

from analyticup.files import read_json, write_json
from analyticup.metrics import ALL, SEEN, UNSEEN, LanguageFigures
from analyticup.threshold import DECISION, Decision

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from analyticup.artifacts import Artifact
    from analyticup.settings.schema import FilterSettings
    from analyticup.stages import Job

REPORT = "report.json"

# Thresholds shown of the sweep; the record holds all.
SHOWN_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class StageFigures(TypedDict):
    """What a stage counted, and the seconds that it took."""

    counts: dict[str, Any]
    seconds: float


# How a rule found the labels that are known to be wrong, see `_filter_quality`; the keys are the table's columns.
FilterQuality = TypedDict(
    "FilterQuality",
    {
        "rule": str,
        "original rows": int,
        "wrong labels": int,
        "suspects": int,
        "found": int,
        "precision": float | None,
        "recall": float | None,
        "base rate": float,
        "auroc": float | None,
        "ap": float | None,
    },
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What report.json holds: the run's name, and by task what each stage did, the threshold's decision and the
    filter's quality; `scores` by title, e.g. "dev QC", per language, group of languages and over all rows."""

    name: str
    stages: dict[str, dict[str, StageFigures]] = field(default_factory=dict)
    out_of_fold: dict[str, Decision] = field(default_factory=dict)
    scores: dict[str, list[LanguageFigures]] = field(default_factory=dict)
    filter: dict[str, list[FilterQuality]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        decisions = {task: decision.to_dict() for task, decision in self.out_of_fold.items()}
        write_json(path, {**vars(self), "out_of_fold": decisions})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises OSError, ValueError or RecursionError where there is no report."""
        try:
            plain = read_json(path)
            decisions = {task: Decision.from_dict(entry) for task, entry in plain["out_of_fold"].items()}
            return cls(**{**plain, "out_of_fold": decisions})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a report: {error}") from error


def collect(job: Job) -> Report:
    """Everything the report shows. Label files are read here and by `score`, by no other stage."""
    from analyticup.settings.loading import task_settings
    from analyticup.stages import SCORED_SPLITS

    figures = Report(name=job.settings.name)
    for task in job.settings.tasks:
        own = {
            name.removesuffix(f"-{task}"): artifact
            for name, artifact in job.inputs.items()
            if artifact.record.task == task
        }
        figures.stages[task] = {
            name: {"counts": dict(artifact.record.counts), "seconds": artifact.record.seconds}
            for name, artifact in own.items()
        }
        figures.out_of_fold[task] = Decision.load(own["threshold"].file(DECISION))
        trained = _languages_with_training_rows(own["ingest"])
        for split in SCORED_SPLITS:
            labels = job.raw.get(f"{split}_{task}.labels.txt")
            if labels is not None and f"{split}_{task}.txt" in job.raw:
                scores = job.inputs["submit"].file(f"{split}/scores_{task}.parquet")
                figures.scores[f"{split} {task}"] = _scores(labels, scores, trained)
        if "filter" in own:
            wrong = _wrong_labels(job.raw.get(f"train_{task}.truth.txt"), own["ingest"])
            if wrong is not None:
                settings = task_settings(job.settings, task).filter
                figures.filter[task] = _filter_quality(wrong, own["filter"], own["ingest"], settings)
    return figures


def _languages_with_training_rows(ingested: Artifact) -> list[str]:
    from analyticup.corpus.rows import load_rows

    return sorted(set(load_rows(ingested.file("train.parquet"))["language"]))


def _scores(labels_file: Path, scores_file: Path, trained: list[str]) -> list[LanguageFigures]:
    """Figures per language, then over languages with and without training rows, then over all."""
    from analyticup.corpus.scores import load_table
    from analyticup.errors import UserError
    from analyticup.metrics import binary_metrics, per_language
    from analyticup.submission import read_labels

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
    from analyticup.corpus.rows import load_rows, original_id
    from analyticup.stages import FLIPPED
    from analyticup.submission import read_labels

    flipped = ingested.folder / FLIPPED
    turned = set(read_json(flipped)) if flipped.is_file() else set()
    if truth_file is None:
        # Real labels have errors of their own; only the turned ones are known.
        return turned or None
    truth = read_labels(truth_file)
    rows = load_rows(ingested.file("train.parquet"))
    return {
        name for name, label in zip(rows["row_id"], rows["label"], strict=True) if truth[original_id(name)] != label
    }


def _filter_quality(
    wrong: set[str], filtered: Artifact, ingested: Artifact, settings: FilterSettings
) -> list[FilterQuality]:
    """How well each rule alone finds the known wrong labels among the original training rows, then the least credible
    rows whatever the rules' cut-offs, then the rules in use.

    `auroc` and `ap` rank the rows by 1 - p(label), so they are the same for every rule; precision at the base rate is
    guessing. A rule alone is capped by `filter.max_share` of the original rows.
    """
    import numpy as np
    from sklearn.metrics import average_precision_score, roc_auc_score

    from analyticup.corpus.rows import load_rows
    from analyticup.corpus.scores import load_table
    from analyticup.filter import find_suspects, label_credibility
    from analyticup.settings.schema import leaves

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


def render(figures: Report) -> list[RenderableType]:
    """The report's tables, in reading order."""
    parts: list[RenderableType] = []
    for task, stages in figures.stages.items():
        parts.append(_stage_table(task, stages))
    for task, decision in figures.out_of_fold.items():
        parts.append(_sweep_table(task, decision))
        if decision.by_language:
            parts.append(_language_table(task, decision))
    for task, quality in figures.filter.items():
        parts.append(filter_table(f"{task}: suspects against the wrong labels that are known, by rule", quality))
    for title, rows in figures.scores.items():
        parts.append(score_table(title, rows))
    return parts


def plain_table(title: str, columns: Iterable[str], left: int = 1) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < left else "right", overflow="fold")
    return table


def _stage_table(task: str, stages: Mapping[str, StageFigures]) -> Table:
    table = plain_table(f"{task}: what each stage did", ("stage", "counts", "seconds"), left=2)
    for name, entry in stages.items():
        table.add_row(name, describe_counts(entry["counts"]), f"{entry['seconds']:.1f}")
    return table


def describe_counts(counts: Mapping[str, Any]) -> str:
    """Counts as one readable line; nested ones in brackets, zeros left out."""
    shown = []
    for key, value in counts.items():
        name = _printable(key)
        if isinstance(value, Mapping):
            inner = describe_counts(value)
            if inner:
                shown.append(f"{name} ({inner})")
        elif isinstance(value, float):
            shown.append(f"{name} {value:.3f}")
        elif isinstance(value, list):
            shown.append(f"{name} {', '.join(map(str, value)) or 'none'}")
        elif value not in (0, None):
            shown.append(f"{name} {value}")
    return ", ".join(shown)


def _sweep_table(task: str, decision: Decision) -> Table:
    figures = decision.out_of_fold
    ranked = decision.scores == "rank"
    title = (
        f"{task}: threshold on {figures['rows']} out-of-fold rows: {decision.value:.2f} "
        f"({decision.mode}{' over ranks' if ranked else ''}), "
        f"F1 {figures['f1']:.4f} ± {figures['f1_se']:.4f} on them{_optimism(decision)} "
        f"(at {'p = ' if ranked else ''}0.50: {decision.out_of_fold_at_half['f1']:.4f}; "
        f"all-positive floor {figures['floor_f1']:.4f}), AUC {_number(figures['auc'])}"
    )
    shown = [entry for entry in decision.sweep if round(entry["threshold"], 4) in SHOWN_THRESHOLDS]
    table = plain_table(title, ("threshold", *(f"{entry['threshold']:.2f}" for entry in shown)))
    table.add_row("F1", *(f"{entry['f1']:.4f}" for entry in shown))
    return table


def _optimism(decision: Decision) -> str:
    """F1 without what a threshold gains by being chosen on the rows it is judged on; of the task's threshold too where
    the languages have their own."""
    # A report of an earlier version has no such figures.
    if decision.mode != "sweep" or not decision.optimism:
        return ""
    measured = decision.optimism
    used = measured.get("language", measured["task"])
    text = f"; each fold by the others' threshold {used['nested_f1']:.4f}, optimism {used['optimism']:+.4f}"
    if "language" in measured:
        task = measured["task"]
        text += f"; one threshold for all languages {task['f1']:.4f}, nested {task['nested_f1']:.4f}"
    return text


def _language_table(task: str, decision: Decision) -> Table:
    table = plain_table(
        f"{task}: thresholds by language; a language without rows gets the task's",
        ("language", "out-of-fold rows", "its own best", "threshold"),
    )
    for language, entry in decision.by_language.items():
        table.add_row(_printable(language), str(entry["rows"]), _number(entry["best"]), _number(entry["value"]))
    return table


def filter_table(title: str, quality: Sequence[Mapping[str, Any]], left: int = 1) -> Table:
    """Entries of `_filter_quality`, whatever stands before their figures."""
    table = plain_table(title, quality[0], left)
    for entry in quality:
        table.add_row(*cells(entry))
    return table


def cells(entry: Mapping[str, Any]) -> list[str]:
    """An entry's values as texts: four places for fractions, "-" for what does not apply."""
    return [_number(value) if isinstance(value, float | None) else str(value) for value in entry.values()]


def score_table(title: str, rows: Sequence[LanguageFigures]) -> Table:
    table = plain_table(
        f"{title}: against the labels",
        ("language", "rows", "F1", "± s.e.", "floor", "precision", "recall", "AUC", "AP"),
    )
    names = ("f1", "f1_se", "floor_f1", "precision", "recall", "auc", "ap")
    for place, row in enumerate(rows):
        last_language = place + 1 < len(rows) and " " not in row["language"] and "with" in rows[place + 1]["language"]
        table.add_row(
            _printable(row["language"]),
            str(row["rows"]),
            *(_number(row[name]) for name in names),
            end_section=last_language,
        )
    return table


def _printable(language: str) -> str:
    """A language as it is; as JSON in ASCII where it holds control characters or half a surrogate pair."""
    return language if language.isprintable() else json.dumps(language)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def show(figures: Report, console: Console) -> None:
    for part in render(figures):
        console.print(part)


def to_html(figures: Report) -> str:
    """The same tables as one self-contained page."""
    import io

    from rich.console import Console

    console = Console(record=True, width=160, file=io.StringIO(), markup=False, emoji=False)
    console.print(f"Run {figures.name}", style="bold")
    show(figures, console)
    return console.export_html(inline_styles=True)
