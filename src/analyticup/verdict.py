"""The words of every comparison and check: `verify`, `check` and the comparison with expected figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """NOTE: fine, but know this. SKIPPED: not checked, the text says why. NEAR: close, but not the same (a figure
    within twice its tolerance; stages of an earlier code version). Only FAIL decides the exit code."""

    OK = "OK"
    NOTE = "note"
    NEAR = "near"
    SKIPPED = "SKIPPED"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Item:
    """One thing that was checked: `what`, and in `text` what came of it."""

    verdict: Verdict
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.what}: {self.text}"


def tally(items: Iterable[Item], words: Iterable[Verdict]) -> str:
    """How many items there are of each of some verdicts, e.g. "66 OK, 0 near, 2 SKIPPED, 0 FAIL"."""
    found = [item.verdict for item in items]
    return ", ".join(f"{found.count(word)} {word}" for word in words)
