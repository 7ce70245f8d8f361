"""One display of a whole run at the foot of a terminal: its stages, the bars of those that run, time and memory."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from analyticup.engine import progress
from analyticup.engine.memory import Watch
from analyticup.terminal import size_text

# The rate is that of so many seconds: a run's speed changes with what else the machine does.
RATE_SECONDS = 30.0
# Below this many columns a line has no bar and no rate.
NARROW = 70
# A wider window shows no more, and one that is made smaller breaks fewer lines of the frame before.
WIDEST = 100
BAR_COLUMNS = 16


@dataclass
class _Bar:
    description: str
    done: int
    total: int | None
    seen: deque[tuple[float, int]] = field(default_factory=deque)

    def update(self, now: float, done: int) -> None:
        self.done = done
        self.seen.append((now, done))
        while len(self.seen) > 2 and now - self.seen[0][0] > RATE_SECONDS:
            self.seen.popleft()

    @property
    def rate(self) -> float | None:
        """Units per second lately; None where nothing has moved yet."""
        (began, before), (now, done) = self.seen[0], self.seen[-1]
        return (done - before) / (now - began) if now > began and done > before else None


class RunView:
    """`starts`, `ends` and `receive` say what happens; while entered, it is drawn anew four times a second."""

    def __init__(self, console: Console, titles: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._waiting, self._running, self._total = list(titles), dict[str, float](), len(titles)
        self._bars: dict[Any, _Bar] = {}
        self._lock = threading.RLock()
        self._watch = Watch()
        self._console = console
        # Another console writes to stdout then, which may be a file.
        own = console.file is sys.stdout
        self._live = Live(
            get_renderable=self.frame, console=console, transient=True, redirect_stdout=own, vertical_overflow="crop"
        )

    def __enter__(self) -> RunView:
        self._watch.__enter__()
        self._live.start(refresh=True)
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.stop()
        self._watch.__exit__(*error)

    def starts(self, title: str) -> None:
        with self._lock:
            self._waiting.remove(title)
            self._running[title] = self._clock()

    def ends(self, title: str) -> None:
        with self._lock:
            self._running.pop(title, None)

    def receive(self, said: Any) -> None:
        """What a bar says, see `progress`; a text goes above the display."""
        if isinstance(said, str):
            self._console.print(said, markup=False, highlight=False, emoji=False, soft_wrap=True)
            return
        with self._lock:
            if len(said) == 1:
                self._bars.pop(said[0], None)
            else:
                name, description, done, total = said
                self._bars.setdefault(name, _Bar(description, done, total)).update(self._clock(), done)

    def frame(self) -> RenderableType:
        """The display as it is now, no line wider than the window."""
        with self._lock:
            width = min(self._console.width, WIDEST)
            return Group(*(self._lines(width)))

    def _lines(self, width: int) -> Iterator[RenderableType]:
        now, done = self._clock(), self._total - len(self._waiting) - len(self._running)
        told = f"{done} of {self._total} stages done, {len(self._running)} running, {len(self._waiting)} waiting"
        yield _line(f"{told}; {_minutes(now - self._began)}, {size_text(self._watch.now)}", width, "bold")
        running = ", ".join(f"{title} {_minutes(now - began)}" for title, began in self._running.items())
        if running:
            yield _line(f"running: {running}", width)
        if self._bars:
            yield self._table(width)
        if self._waiting:
            yield _line(f"next: {', '.join(self._waiting)}", width, "dim")

    def _table(self, width: int) -> Table:
        table = Table.grid(padding=(0, 1), pad_edge=False)
        table.width = width
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        wide = width >= NARROW
        for _ in range(4 if wide else 2):
            table.add_column(justify="right", no_wrap=True)
        for bar in self._bars.values():
            rate = bar.rate
            counted = f"{bar.done}/{bar.total}" if bar.total is not None else str(bar.done)
            left = _minutes((bar.total - bar.done) / rate) + " left" if bar.total is not None and rate else ""
            drawn = ProgressBar(total=bar.total, completed=bar.done, width=BAR_COLUMNS)
            speed = f"{rate:.1f}/s" if rate else ""
            cells: list[RenderableType] = [drawn, counted, speed, left] if wide else [counted, left]
            table.add_row(Text(bar.description), *cells)
        return table


def _line(text: str, width: int, style: str = "") -> Text:
    line = Text(text, style=style, no_wrap=True, overflow="ellipsis")
    line.truncate(width, overflow="ellipsis")
    return line


def _minutes(seconds: float) -> str:
    """As 4:05, or 1:04:05 from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextlib.contextmanager
def run_view(console: Console, titles: Sequence[str]) -> Iterator[RunView | None]:
    """The display of a run of stages with these titles; None where stderr is no terminal that can be drawn on.

    `console` is what the run is told on; where that is no terminal, the display is on stderr.
    """
    if not progress.is_live(sys.stderr):
        yield None
        return
    own = console if console.is_terminal else Console(stderr=True, highlight=False, markup=False, emoji=False)
    with RunView(own, titles) as view, progress.heard_by(view.receive):
        yield view
