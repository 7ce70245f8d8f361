"""The review session on a terminal: one row at a time, single keys; every answer is stored at once."""

from __future__ import annotations

import contextlib
import sys
import termios
import time
import tty
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from analyticup.errors import UserError
from analyticup.filtering.decisions import ANSWERS, DROP, FLIP, KEEP, UNSURE, text_digest
from analyticup.review.candidate import Candidate
from analyticup.review.store import Store, Vote

# Gives the next key, or "" where no more will come.
Keys = Callable[[], str]
BY_KEY = {"k": KEEP, "f": FLIP, "d": DROP, "u": UNSURE}
HELP = "[k]eep the label  [f]lip it  [d]rop the row  [u]nsure\n[s]kip for now  [n]ote  [z] take back  [q]uit"
_WIDEST = 100


@contextlib.contextmanager
def terminal_keys() -> Iterator[Keys]:
    """Single keys of the terminal, without Enter; UserError where there is none."""
    if not sys.stdin.isatty():
        raise UserError("review: no terminal to ask on; use ./run.sh review export RUN and a spreadsheet")
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield lambda: sys.stdin.read(1)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@dataclass
class Session:
    """Asks about the `candidates` in turn. `before` rows were answered in earlier sessions."""

    title: str
    candidates: Sequence[Candidate]
    store: Store
    reviewer: str
    console: Console
    before: int = 0
    answers: dict[str, str] = field(default_factory=dict)
    _behind: list[int] = field(default_factory=list)
    _note: str = ""

    def run(self, keys: Keys) -> None:
        """Until the rows or the keys end, or a person quits."""
        at, started = 0, time.monotonic()
        while at < len(self.candidates):
            self._show(at, time.monotonic() - started)
            key = keys().casefold()
            if key in ("q", "", "\x04"):
                break
            if key in BY_KEY:
                self._answer(self.candidates[at], BY_KEY[key])
            elif key == "n":
                self._note = self._line(keys)
            elif key == "z" and self._behind:
                at = self._behind.pop()
                self._take_back(self.candidates[at])
            if key in BY_KEY or key == "s":
                self._behind.append(at)
                at, self._note = at + 1, ""

    def _answer(self, row: Candidate, answer: str) -> None:
        text = text_digest(row.query, row.target)
        self.store.add([Vote(row.row_id, text, row.label, answer, self._note, self.reviewer)])
        self.answers[row.row_id] = answer

    def _take_back(self, row: Candidate) -> None:
        if self.answers.pop(row.row_id, None):
            self.store.remove(row.row_id, self.reviewer)

    def _line(self, keys: Keys) -> str:
        """A line that is typed, shown as it grows."""
        typed = ""
        self.console.print("note, then Enter: ", end="")
        while (key := keys()) not in ("\n", "\r", ""):
            typed = typed[:-1] if key in ("\x7f", "\b") else typed + key
            self.console.file.write("\b \b" if key in ("\x7f", "\b") else key)
            self.console.file.flush()
        return typed.strip()

    def _show(self, at: int, seconds: float) -> None:
        width = min(self.console.width, _WIDEST)
        done, total = self.before + len(self.answers), self.before + len(self.candidates)
        count = Counter(self.answers.values())
        said = ", ".join(f"{count[answer]} {answer}" for answer in ANSWERS if count[answer])
        pace = f"{seconds / len(self.answers):.0f} s a row" if self.answers else ""
        self.console.clear()
        self.console.print(Text(self.title, style="bold"), width=width)
        self.console.print(ProgressBar(total=max(total, 1), completed=done, width=width))
        self.console.print()
        self.console.print(" · ".join(filter(None, (f"{done} of {total} answered", said, pace))), width=width)
        self.console.print()
        self.console.print(_grid(self.candidates[at]), width=width)
        if self._note:
            self.console.print(f"note: {self._note}", width=width)
        self.console.print()
        self.console.print(Text(HELP, style="dim"), width=width)


def _grid(row: Candidate) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    judge = "" if row.judge is None else f"filter's judge {row.judge:.2f}, "
    grid.add_row("query", Text(f"{row.query}  ({row.language})", style="bold"))
    grid.add_row("target", Text(row.target, style="bold"))
    grid.add_row("label", Text(f"{row.label} ({'fits' if row.label else 'does not fit'})", style="bold"))
    grid.add_row("p(fits)", f"model {row.model:.2f}, {judge}neighbours {row.neighbours:.2f}")
    grid.add_row("why", row.reason)
    for place, line in enumerate(row.nearest.split("; ") if row.nearest else []):
        grid.add_row("" if place else "nearest", line)
    if row.translation:
        grid.add_row("as in", row.translation)
    return grid
