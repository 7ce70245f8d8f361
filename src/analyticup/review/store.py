"""What the reviewers of a run answered, row by row, and the decisions that come of it.

A folder holds `votes_QC.jsonl`, with every reviewer's answers and notes, and `decisions_QC.jsonl`, made from it, which
the filter reads. A note changes no run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from sklearn.metrics import cohen_kappa_score

from analyticup.engine.files import lock, read_bytes, write_atomically
from analyticup.errors import UserError
from analyticup.filtering.decisions import ANSWERS, UNSURE, Decision, write_decisions
from analyticup.settings.paths import decisions_name


@dataclass(frozen=True)
class Vote:
    """One reviewer's answer (of ANSWERS) on a row that had this `text` (see `text_digest`) and `label` then."""

    row_id: str
    text: str
    label: int
    answer: str
    note: str
    reviewer: str


@dataclass(frozen=True)
class Agreement:
    """Of two reviewers: the rows that both answered, and Cohen's kappa over their answers (Cohen 1960); None where it
    is not defined, as both gave one and the same answer throughout."""

    reviewers: tuple[str, str]
    rows: int
    kappa: float | None


class Store:
    """The answers on the rows of one task in a folder."""

    def __init__(self, folder: Path, task: str) -> None:
        self.path, self.decisions_path = folder / f"votes_{task}.jsonl", folder / decisions_name(task)

    def votes(self) -> list[Vote]:
        """All answers; UserError with file:line where the file is damaged."""
        if not self.path.exists():
            return []
        found = []
        for number, line in enumerate(read_bytes(self.path).splitlines(), 1):
            try:
                found.append(Vote(**json.loads(line)))
            except (ValueError, TypeError, RecursionError):
                raise UserError(f"{self.path}:{number}: no answer on a row; repair the line or delete it") from None
        return found

    def add(self, votes: Iterable[Vote]) -> list[Vote]:
        """Puts answers in, each in place of the reviewer's earlier one on that row, and writes the decisions anew;
        returns all answers.

        Answers on a row that has other texts or another label now are left out of the decisions, not lost.
        """
        with lock(self.path.parent, waits=True):
            kept = {(vote.row_id, vote.reviewer): vote for vote in self.votes()}
            new = list(votes)
            for vote in new:
                # Last in the file: what was answered last says what a row holds now.
                kept.pop((vote.row_id, vote.reviewer), None)
                kept[vote.row_id, vote.reviewer] = vote
            return self._write(list(kept.values()))

    def remove(self, row_id: str, reviewer: str) -> list[Vote]:
        """Takes an answer back."""
        with lock(self.path.parent, waits=True):
            return self._write([vote for vote in self.votes() if (vote.row_id, vote.reviewer) != (row_id, reviewer)])

    def _write(self, votes: list[Vote]) -> list[Vote]:
        text = "".join(json.dumps(asdict(vote), ensure_ascii=False) + "\n" for vote in votes)
        write_atomically(self.path, text)
        write_decisions(decide(votes), self.decisions_path)
        return votes


def answers_by_row(votes: Iterable[Vote]) -> dict[str, list[Vote]]:
    """The answers on each row, without those on texts or a label that it had before."""
    found: dict[str, list[Vote]] = {}
    for vote in votes:
        same = [one for one in found.get(vote.row_id, []) if (one.text, one.label) == (vote.text, vote.label)]
        found[vote.row_id] = [*same, vote]
    return found


def decide(votes: Iterable[Vote]) -> list[Decision]:
    """What most reviewers of a row say, `unsure` left out; nothing where two answers are as frequent."""
    found = []
    for row_id, given in answers_by_row(votes).items():
        ranked = Counter(vote.answer for vote in given if vote.answer != UNSURE).most_common(2)
        if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
            found.append(Decision(row_id, given[0].text, given[0].label, ranked[0][0]))
    return found


def conflicts(votes: Iterable[Vote]) -> dict[str, list[Vote]]:
    """The rows on which reviewers give different answers, `unsure` left out."""
    sure = {row: [vote for vote in given if vote.answer != UNSURE] for row, given in answers_by_row(votes).items()}
    return {row: given for row, given in sorted(sure.items()) if len({vote.answer for vote in given}) > 1}


def agreements(votes: Sequence[Vote]) -> list[Agreement]:
    """Of every two reviewers that answered a common row."""
    by_reviewer: dict[str, dict[str, str]] = {}
    for row_id, given in answers_by_row(votes).items():
        for vote in given:
            by_reviewer.setdefault(vote.reviewer, {})[row_id] = vote.answer
    found = []
    for one, other in combinations(sorted(by_reviewer), 2):
        common = sorted(by_reviewer[one].keys() & by_reviewer[other].keys())
        if common:
            found.append(Agreement((one, other), len(common), _kappa(by_reviewer[one], by_reviewer[other], common)))
    return found


def _kappa(one: Mapping[str, str], other: Mapping[str, str], rows: Sequence[str]) -> float | None:
    first, second = ([answers[row] for row in rows] for answers in (one, other))
    if len({*first, *second}) < 2:
        return None
    return float(np.float64(cohen_kappa_score(first, second, labels=list(ANSWERS))))
