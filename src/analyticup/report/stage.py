"""The report stage: report.json and report.html."""

from __future__ import annotations

from analyticup.engine.job import Counts, Job
from analyticup.report.collect import collect
from analyticup.report.figures import REPORT
from analyticup.report.tables import to_html


def report(job: Job) -> Counts:
    """Writes the figures of all stages as JSON and as a page."""
    figures = collect(job)
    figures.save(job.out / REPORT)
    (job.out / "report.html").write_text(to_html(figures), encoding="utf-8")
    return {"scored against labels": sorted(figures.scores)}
