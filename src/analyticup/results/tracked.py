"""A finished run in W&B: a run per task for its ensemble, and one with the final figures; rows' texts only if asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import precision_recall_curve

from analyticup.corpus.tables import load_table
from analyticup.engine.artifacts import Artifact
from analyticup.engine.files import read_json_lines
from analyticup.engine.graph import Part
from analyticup.engine.job import made_of
from analyticup.engine.workers import Runner
from analyticup.ensembling.threshold import Decision
from analyticup.filtering import SUSPECTS
from analyticup.report.figures import REPORT, Report
from analyticup.settings.loading import task_settings
from analyticup.settings.paths import resolve
from analyticup.settings.schema import Settings
from analyticup.tracking import comparable, log_lineage, table, tracked_run

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

NAMES = ("f1", "f1_se", "floor_f1", "auc", "ap")
# Points of a curve that are shown.
_POINTS = 200


def log_finished(
    settings: Settings, group: str, tags: Sequence[str], artifacts: Mapping[str, Artifact], runner: Runner
) -> None:
    """Once per report, so that a cached run adds nothing. It is done where stages run, which have W&B at work."""
    folder, report = resolve(settings.paths.artifacts), artifacts["report-all"].record
    marker = folder / "wandb" / f"summary-{report.identity[:16]}-{report.digest[:16]}"
    if settings.tracking.mode != "disabled" and not marker.exists():
        runner.ask(f"{__name__}:log_figures", settings, group, tags, dict(artifacts))
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def log_figures(settings: Settings, group: str, tags: Sequence[str], artifacts: Mapping[str, Artifact]) -> None:
    """A run for each task's ensemble, and one with the final figures."""
    folder, report = resolve(settings.paths.artifacts), artifacts["report-all"]
    figures = Report.load(report.file(REPORT))
    for task in settings.tasks:
        own = task_settings(settings, task)
        config = {"task": task, "settings": comparable(own)}
        name = f"{settings.name}/{task}/ensemble"
        with tracked_run(settings.tracking, folder, group, name, config, "ensemble", tags) as run:
            if run is not None:
                _log_task(run, own, task, figures, artifacts)
    config = {"settings": comparable(settings), "data": list(tags)}
    with tracked_run(settings.tracking, folder, group, f"{settings.name}/summary", config, "summary", tags) as run:
        if run is not None:
            run.summary.update(final_figures(figures))
            run.log({"stages": _stages(artifacts), **dict(_languages(figures))})
            decided = [one for title, one in artifacts.items() if title.split("-")[0] in ("ensemble", "threshold")]
            log_lineage(run, map(made_of, decided), [made_of(artifacts["submit-all"])])


def _log_task(run: Run, own: Settings, task: str, figures: Report, artifacts: Mapping[str, Artifact]) -> None:
    decision = figures.out_of_fold[task]
    run.summary.update({"threshold": decision.value, **{name: decision.out_of_fold[name] for name in NAMES}})
    scored = load_table(artifacts[f"threshold-{task}"].file("out_of_fold.parquet"))
    run.log(
        {
            "threshold_sweep": _sweep(decision),
            "precision_recall": _precision_recall(scored["label"].to_numpy(), scored["score"].to_numpy()),
        }
    )
    filtered = artifacts.get("-".join(filter(None, ("filter", task, str(Part(round=own.filter.rounds))))))
    if filtered is not None and own.filter.enabled:
        run.log({"suspects": _suspects(filtered.file(SUSPECTS), own.tracking.log_rows)})
    names = (f"ensemble-{task}", f"threshold-{task}")
    used = [one for title, one in artifacts.items() if title.startswith((f"predict-{task}", f"train-{task}"))]
    log_lineage(run, map(made_of, used), [made_of(artifacts[name]) for name in names])


def _sweep(decision: Decision) -> Any:
    import wandb

    rows = [(point["threshold"], point["f1"]) for point in decision.sweep]
    title = f"F1 over threshold, out of fold (chosen: {decision.value:.2f})"
    return wandb.plot.line(table(("threshold", "F1"), rows), "threshold", "F1", title=title)


def _precision_recall(labels: np.ndarray, scores: np.ndarray) -> Any:
    import wandb

    precision, recall, _ = precision_recall_curve(labels, scores)
    shown = np.unique(np.linspace(0, len(recall) - 1, _POINTS).round().astype(int))
    rows = zip(recall[shown].tolist(), precision[shown].tolist(), strict=True)
    title = "Precision over recall, out of fold"
    return wandb.plot.line(table(("recall", "precision"), rows), "recall", "precision", title=title)


def _suspects(path: Path, texts: bool) -> Any:
    columns = ["row_id", "language", *(("query", "target") if texts else ()), "label", "score", "reasons", "action"]
    return table(columns, ([record[name] for name in columns] for record in read_json_lines(path)))


def _languages(figures: Report) -> Iterator[tuple[str, Any]]:
    """A table per split and task that has labels."""
    for title, rows in figures.scores.items():
        if rows:
            yield f"languages/{title.replace(' ', '_')}", table(list(rows[0]), (list(row.values()) for row in rows))


def _stages(artifacts: Mapping[str, Artifact]) -> Any:
    records = {title: one.record for title, one in artifacts.items()}
    columns = ("stage", "identity", "seconds", "memory_gb")
    rows = [(title, one.identity[:12], one.seconds, one.memory / 1e9) for title, one in records.items()]
    return table(columns, rows)


def final_figures(figures: Report) -> dict[str, float | None]:
    """Thresholds and figures by task and split, as the summary run has them."""
    flat: dict[str, float | None] = {}
    for task, decision in figures.out_of_fold.items():
        flat[f"{task}/threshold"] = decision.value
        flat |= {f"{task}/out_of_fold/{name}": decision.out_of_fold[name] for name in NAMES}
    for title, rows in figures.scores.items():
        for row in rows:
            flat |= {f"{title.replace(' ', '/')}/{row['language']}/{name}": row[name] for name in NAMES}
    return flat
