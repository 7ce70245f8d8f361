"""The report: figures collected from records and scores, as terminal tables and as one page."""

from __future__ import annotations

from analyticup.engine.graph import Stage

REPORT = Stage("report", version=9, run="analyticup.report.stage:report", model=False)
