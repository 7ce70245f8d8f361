"""A run's final figures in W&B."""

from __future__ import annotations

from analyticup.engine.artifacts import Artifact
from analyticup.report.figures import REPORT, Report
from analyticup.settings.paths import resolve
from analyticup.settings.schema import Settings
from analyticup.tracking import tracked_run


def log_summary(settings: Settings, group: str, report: Artifact) -> None:
    """The summary run of a pipeline run: final figures per task and split. Once per report, so that a cached run adds
    nothing."""
    folder = resolve(settings.paths.artifacts)
    marker = folder / "wandb" / f"summary-{report.record.identity[:16]}-{report.digest[:16]}"
    if settings.tracking.mode == "disabled" or marker.exists():
        return
    figures = Report.load(report.file(REPORT))
    with tracked_run(settings.tracking, folder, group, "summary", settings.model_dump()) as tracked:
        if tracked is not None:
            tracked.summary.update(_final_figures(figures))
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


def _final_figures(figures: Report) -> dict[str, float | None]:
    names = ("f1", "f1_se", "floor_f1", "auc", "ap")
    flat: dict[str, float | None] = {}
    for task, decision in figures.out_of_fold.items():
        flat[f"{task}/threshold"] = decision.value
        flat |= {f"{task}/out_of_fold/{name}": decision.out_of_fold[name] for name in names}
    for title, rows in figures.scores.items():
        for row in rows:
            flat |= {f"{title.replace(' ', '/')}/{row['language']}/{name}": row[name] for name in names}
    return flat
