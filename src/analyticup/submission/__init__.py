"""Submission files: written, validated by code that shares nothing with the writer, zipped, scored."""

from __future__ import annotations

from analyticup.engine.graph import Stage

SUBMIT = Stage("submit", version=2, run="analyticup.submission.stage:submit", model=False)
