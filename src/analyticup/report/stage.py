"""The report stage: report.json."""

from __future__ import annotations

from analyticup.engine.job import Counts, Job
from analyticup.report.collect import collect
from analyticup.report.figures import REPORT


def report(job: Job) -> Counts:
    """Writes the figures of all stages."""
    figures = collect(job)
    figures.save(job.out / REPORT)
    counts: Counts = {"scored against labels": sorted(figures.scores)}
    for title, rows in figures.scores.items():
        split, task = title.split()
        unlabelled = job.inputs["submit"].record.counts[split][task]["rows"] - rows[-1]["rows"]
        if unlabelled:
            counts.setdefault("rows without a label", {})[title] = unlabelled
    return counts
