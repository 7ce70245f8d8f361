"""Interleaved rounds: every variant has its own process and works only when it is its turn.

A process each, so that peak memory is only that variant's; all idle but one, so that none slows another; A B C A B C,
so that a machine that slows down meanwhile slows all alike.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from analyticup.errors import UserError

WARM_UP, ROUND, STOP = "warm up", "round", "stop"


class Unavailable(Exception):
    """A variant cannot be measured here; the text says why. That is not a failure."""


@dataclass(frozen=True)
class Done:
    """What one round did. `tokens` are real ones, without padding; `steps` are optimiser steps; `flops` are what the
    method needs for these tokens (see the module flops); None = does not apply or is not known."""

    rows: int
    tokens: int | None = None
    steps: int | None = None
    flops: float | None = None


@dataclass(frozen=True)
class Round:
    """One measured round. `cpu_seconds`: of all the process's threads, and of the processes that it started;
    `peak_bytes`: most resident memory of the process during it, weights included (where the peak cannot be reset, so
    far); `device_bytes`: most memory allocated on the GPU, None without one."""

    seconds: float
    cpu_seconds: float
    done: Done
    peak_bytes: int
    device_bytes: int | None = None


class Variant(Protocol):
    """What is measured. It is pickled to its process, so nothing heavy may be loaded before `warm_up`."""

    def warm_up(self) -> None:
        """Loads what is needed and does a little of the work once; not measured."""
        ...

    def prepare(self) -> None:
        """Before every round, not timed: the weights of a training, for example."""
        ...

    def run(self) -> Done:
        """The work; timed as a whole."""
        ...


@dataclass(frozen=True)
class Entry:
    """A line of the table: its part (training, ...), its name and its variant."""

    part: str
    name: str
    variant: Variant


@dataclass
class Result:
    """An entry with its rounds. `note` says why there are none; `failed` whether that is an error."""

    entry: Entry
    rounds: list[Round] = field(default_factory=list)
    note: str = ""
    failed: bool = False


def measure(
    entries: Sequence[Entry],
    rounds: int,
    say: Callable[[str], None] = lambda text: None,
    keep: Callable[[list[Result]], None] = lambda results: None,
    preload: Sequence[str] = (),
) -> list[Result]:
    """Warms every entry up once, then measures `rounds` >= 1 rounds of all of them, in turn.

    An entry that fails is left out of the further rounds; the others continue. `say` gets a line for each turn, `keep`
    the results after each round. The processes share what the modules named in `preload` take.
    """
    results = [Result(entry) for entry in entries]
    with contextlib.ExitStack() as stack:
        workers = []
        for result in results:
            workers.append(_Worker(result.entry.variant, preload))
            stack.callback(workers[-1].stop)
            say(f"{result.entry.part}: {result.entry.name}: warming up")
            _turn(workers[-1], WARM_UP, result)
        for number in range(1, rounds + 1):
            for worker, result in zip(workers, results, strict=True):
                if result.note:
                    continue
                answer = _turn(worker, ROUND, result)
                if isinstance(answer, Round):
                    result.rounds.append(answer)
                    say(f"{result.entry.part}: {result.entry.name}: round {number}/{rounds}, {answer.seconds:.1f} s")
            keep(results)
    return results


def _turn(worker: _Worker, command: str, result: Result) -> Any:
    try:
        kind, answer = worker.ask(command)
    except (EOFError, ConnectionError):
        kind, answer = "failed", f"its process ended (exit code {worker.exit_code()}); was there enough memory?"
    if kind == "interrupted":
        raise KeyboardInterrupt
    if kind == "done":
        return answer
    result.note, result.failed, result.rounds = str(answer), kind == "failed", []
    # Frees its memory for the others.
    worker.stop()
    return None


class _Worker:
    """A child process with one variant, which answers one command at a time."""

    def __init__(self, variant: Variant, preload: Sequence[str] = ()) -> None:
        context = get_context("forkserver" if preload else "spawn")
        if preload:
            context.set_forkserver_preload(list(preload))
        self._connection, theirs = context.Pipe()
        # A conversion of the model starts a process of its own, so it is no daemon; it ends when our end is closed.
        self._process = context.Process(target=_serve, args=(theirs, variant))
        self._process.start()
        theirs.close()

    def ask(self, command: str) -> tuple[str, Any]:
        self._connection.send(command)
        return self._connection.recv()

    def exit_code(self) -> int | None:
        self._process.join(10)
        return self._process.exitcode

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(STOP)
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection, variant: Variant) -> None:
    with contextlib.suppress(EOFError):
        while (command := connection.recv()) != STOP:
            connection.send(_answer(command, variant))


def _answer(command: str, variant: Variant) -> tuple[str, Any]:
    # Progress lines and advice of so many processes would break up the table.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return "done", variant.warm_up() if command == WARM_UP else timed_round(variant)
        except Unavailable as reason:
            return "unavailable", str(reason)
        except KeyboardInterrupt:
            return "interrupted", None
        # Whatever a rival's library raises becomes that line's note and the command's exit code.
        except Exception as error:
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            return "failed", (text.splitlines() or [""])[0]


def timed_round(variant: Variant) -> Round:
    """One round in this process."""
    variant.prepare()
    gc.collect()
    _reset_peak_resident()
    _synchronise(reset_peak=True)
    cpu_before, started = _cpu_seconds(), time.perf_counter()
    done = variant.run()
    device_bytes = _synchronise()
    seconds, cpu_seconds = time.perf_counter() - started, _cpu_seconds() - cpu_before
    return Round(seconds, cpu_seconds, done, peak_resident_bytes(), device_bytes)


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def _synchronise(reset_peak: bool = False) -> int | None:
    """Waits for the GPU; the most memory allocated on it since the last reset, None without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    if reset_peak:
        torch.cuda.reset_peak_memory_stats()
    return int(peak)


def _reset_peak_resident() -> None:
    """From here on counts what is resident now and later; only on Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident_bytes() -> int:
    """Most resident memory of this process since the last reset, or since its start where there is none."""
    status = Path("/proc/self/status")
    # Linux hands ru_maxrss down from the parent to what it starts; VmHWM is this process's own.
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
