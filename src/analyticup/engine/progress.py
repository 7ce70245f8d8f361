"""Progress of long loops: a bar with rate and time left on a terminal, sparse plain lines elsewhere.

On a terminal the process that started the workers shows their bars, one below the other.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
import threading
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
# In a worker: sends what a bar shows. (name, description, units done, total) is a bar, (name,) its end, a text
# goes above the bars.
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
        elif self._stream.isatty():
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


def relay_to(queue: Any) -> None:
    """In a worker process: bars, and what is printed, go through the queue of a `Display` from now on."""
    global _relay
    _relay = queue.put
    sys.stdout = sys.stderr = _RelayedText()


class _RelayedText(io.TextIOBase):
    """Passes on whole lines."""

    def __init__(self) -> None:
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        if lines and _relay is not None:
            _relay("\n".join(lines))
        return len(text)


class Display:
    """The bars of several processes on one terminal; `queue` (multiprocessing.SimpleQueue) brings what they show."""

    def __init__(self, queue: Any, stream: TextIO | None = None) -> None:
        self.queue = queue
        self._stream = stream if stream is not None else sys.stderr
        self._bar: Progress | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Shows what is still in the queue, then takes the bars away."""
        self.queue.put(None)
        self._thread.join()

    def _follow(self) -> None:
        tasks: dict[Any, Any] = {}
        while (said := self.queue.get()) is not None:
            if isinstance(said, str):
                self._print(said)
            elif len(said) == 1:
                self._open().remove_task(tasks.pop(said[0]))
            else:
                name, description, done, total = said
                if name not in tasks:
                    tasks[name] = self._open().add_task(description, total=total)
                self._open().update(tasks[name], completed=done)
            if self._bar is not None and not tasks:
                # Stopped and not empty: what this process prints then finds the terminal as it was.
                self._bar.stop()
                self._bar = None
        if self._bar is not None:
            self._bar.stop()

    def _open(self) -> Progress:
        if self._bar is None:
            self._bar = _make_bar(self._stream)
            self._bar.start()
        return self._bar

    def _print(self, text: str) -> None:
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, emoji=False)


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
