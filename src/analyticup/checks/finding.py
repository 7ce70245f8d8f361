"""One finding of `./run.sh check`, and what several checks share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analyticup.verdict import Verdict


@dataclass(frozen=True)
class Finding:
    """What was found: FAIL means that the run would fail."""

    verdict: Verdict
    text: str


def nearest_existing(path: Path) -> Path:
    """The path itself or the nearest of its parents that exists."""
    return next(place for place in (path, *path.parents) if place.exists())
