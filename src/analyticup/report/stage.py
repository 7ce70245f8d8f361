"""The report stage: report.json."""

from __future__ import annotations

from analyticup.engine.job import Counts, Job
from analyticup.report.collect import collect
from analyticup.report.figures import REPORT


def report(job: Job) -> Counts:
    """Writes the figures of all stages."""
    figures = collect(job)
    figures.save(job.out / REPORT)
    return {"scored against labels": sorted(figures.scores)}
