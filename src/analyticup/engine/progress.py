"""Progress of long loops: a bar with rate and time left on a terminal, sparse plain lines elsewhere.

In a run on a terminal, all bars are part of one display (see `view`), those of other processes too.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
QUIET_SECONDS = 2.0
LINE_SECONDS = 5.0
RELAY_SECONDS = 0.2
# Gets what a bar says instead of showing it: (name, description, units done, total) is a bar, (name,) its end, a text
# goes above the bars. In a worker it sends that to the process that started it, there it is the run's display.
_relay: Callable[[Any], None] | None = None
_names = itertools.count()


class Track(Generic[Item]):
    """Made by `track`: iterate over it, or enter it with `with` and call `advance`."""

    def __init__(
        self,
        items: Iterable[Item] | None,
        total: int | None,
        description: str,
        stream: TextIO | None,
        clock: Callable[[], float],
    ) -> None:
        self._items = items
        self._total = total
        self._description = description
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._done = 0
        self._started = clock()
        self._last_line: float | None = None
        self._written = 0
        self._bar: Progress | None = None
        self._name = (os.getpid(), next(_names))
        self._relayed: float | None = None

    def __enter__(self) -> Track[Item]:
        self._started = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._relayed is not None and _relay is not None:
            _relay((self._name,))
        elif kind is None and self._last_line is not None and self._done != self._written:
            self._write_line()

    def __iter__(self) -> Iterator[Item]:
        if self._items is None:
            raise TypeError("track(<number>) is a context manager; only track(<iterable>) can be iterated")
        with self:
            for item in self._items:
                yield item
                self.advance()

    def advance(self, count: int = 1) -> None:
        """Say that `count` more units of work are done."""
        self._done += count
        now = self._clock()
        # Short work stays silent, so that a run of many small stages is readable.
        if now - self._started < QUIET_SECONDS:
            return
        if _relay is not None:
            if self._relayed is None or now - self._relayed >= RELAY_SECONDS:
                self._relayed = now
                _relay((self._name, self._description, self._done, self._total))
        elif is_live(self._stream):
            self._update_bar()
        elif self._last_line is None or now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self._write_line()

    def _update_bar(self) -> None:
        if self._bar is None:
            self._bar = _make_bar(self._stream)
            self._bar.start()
            self._bar.add_task(self._description, total=self._total)
        self._bar.update(self._bar.task_ids[0], completed=self._done)

    def _write_line(self) -> None:
        self._written = self._done
        elapsed = max(self._clock() - self._started, 1e-9)
        rate = self._done / elapsed
        text = f"{self._description}: {self._done}"
        if self._total is not None:
            text += f"/{self._total}"
        text += f", {rate:.1f}/s, {elapsed:.0f} s"
        if self._total is not None and 0 < self._done < self._total:
            text += f", {(self._total - self._done) / rate:.0f} s left"
        print(text, file=self._stream, flush=True)


def track(
    work: Iterable[Item] | int,
    description: str,
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Track[Item]:
    """Follow `work` on `stream` (stderr): silent for 2 s, then a bar, or off a terminal a line every 5 s.

    An iterable gives `for item in track(items, "embed")`; a number (units of work, >= 0) gives
    `with track(1000, "embed") as progress: progress.advance(64)`.
    """
    if isinstance(work, int):
        return Track(None, work, description, stream, clock)
    total = len(work) if hasattr(work, "__len__") else None
    return Track(work, total, description, stream, clock)


def is_live(stream: TextIO) -> bool:
    """Whether something that moves can be drawn: on a terminal that can do that, and not in the log of a CI job."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


@contextlib.contextmanager
def heard_by(receive: Callable[[Any], None]) -> Iterator[None]:
    """Within, `receive` gets what the bars of this process show, and of those that hand theirs on to it."""
    global _relay
    before, _relay = _relay, receive
    try:
        yield
    finally:
        _relay = before


def is_heard() -> bool:
    """Whether bars of this process go elsewhere."""
    return _relay is not None


def hear(said: Any) -> None:
    """Takes what another process has handed on; without a display, texts alone are shown."""
    if _relay is not None:
        _relay(said)
    elif isinstance(said, str):
        print(said, file=sys.stderr, flush=True)


def hear_all(queue: Any) -> None:
    """Hears what comes through a queue (multiprocessing.SimpleQueue), up to None."""
    while (said := queue.get()) is not None:
        hear(said)


def relay_to(send: Callable[[Any], None], bars: bool = True) -> None:
    """In another process: bars, and what is printed, are handed on by `send` from now on; without `bars`, these are
    plain lines."""
    global _relay
    _relay = send if bars else None
    sys.stdout = sys.stderr = _RelayedText(send)


class _RelayedText(io.TextIOBase):
    """Passes on whole lines."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send, self._begun = send, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        if lines:
            self._send("\n".join(lines))
        return len(text)


def _make_bar(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(TextColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(""),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(file=stream), transient=True)
