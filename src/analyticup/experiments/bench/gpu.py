"""`./run.sh bench --only gpu`: whether the paper's recipe on 14 billion parameters is right, fast and small enough on
this machine's GPU. Weights are random and made on the device, so nothing is downloaded.

Every step is a process of its own that is ended at its bound, and every measurement is one JSON line, kept at once: a
step that crashes, hangs or runs out of memory costs no other. This file imports no torch; the steps are in gpu_steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from analyticup.checks.timing import RATES
from analyticup.engine.files import write_atomically
from analyticup.engine.workers import imported
from analyticup.errors import machine_trouble

PART = "gpu"
FILE = RATES.name
_STEPS = "analyticup.experiments.bench.gpu_steps"
_IMPORTED = "imported"
Line = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A function of a module that yields its measurements, and how many seconds it may take."""

    name: str
    seconds: float
    module: str = _STEPS


# A CPU may be busy with other things.
TINY_FACTOR = 10
# For a process to import what its step needs: 25 s for the first on a machine whose files are not in memory yet.
STARTING = 60
# Together at most eight minutes, and ten seconds each for the imports.
STEPS = (
    Step("facts", 30),
    Step("packed_equals_plain", 40),
    Step("training", 110),
    Step("scoring", 80),
    Step("four_bit", 40),
    Step("out_of_memory", 30),
    Step("resume", 25),
    Step("repeat", 25),
    # Last, as the compiler may take longer.
    Step("compiled", 100),
)


def check_gpu(tiny: bool, folder: Path, say: Callable[[str], None], steps: tuple[Step, ...] = STEPS) -> int:
    """Runs the steps, says each measurement as a JSON line and writes them all to `folder`; 1 where a step failed.

    `tiny` takes a model that a CPU runs in a moment, for the same steps.
    """
    lines: list[Line] = []
    for line in _measured(steps, tiny):
        lines.append(line)
        say(json.dumps(line))
        write_atomically(folder / FILE, "".join(json.dumps(one) + "\n" for one in lines))
    return int(any("failed" in line for line in lines))


def _measured(steps: tuple[Step, ...], tiny: bool) -> Iterator[Line]:
    # Not forked from one that has imported: bitsandbytes touches the GPU when it is imported, and no fork of that may.
    context = get_context("spawn")
    started = time.monotonic()
    for step in steps:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(theirs, f"{step.module}:{step.name}", tiny), daemon=True)
        process.start()
        theirs.close()
        for values in _received(ours, STARTING, step.seconds * (TINY_FACTOR if tiny else 1)):
            yield {"step": step.name, "at": round(time.monotonic() - started, 1), **values}
        process.kill()
        process.join()


def _received(connection: Connection, starting: float, seconds: float) -> Iterator[Line]:
    ends = time.monotonic() + starting
    while connection.poll(max(0.0, ends - time.monotonic())):
        try:
            values = connection.recv()
        except EOFError:
            yield {"failed": "its process ended; was there enough memory?"}
            return
        if values is None:
            return
        if values == _IMPORTED:
            ends = time.monotonic() + seconds
            continue
        yield values
    yield {"failed": f"not done after {seconds:.0f} s"}


def _serve(connection: Connection, function: str, tiny: bool) -> None:
    try:
        measure = imported(function)
        connection.send(_IMPORTED)
        for values in measure(tiny):
            connection.send(values)
    # Whatever a library raises becomes that step's line.
    except Exception as error:
        connection.send({"failed": machine_trouble(error) or f"{type(error).__name__}: {error}"[:300]})
    connection.send(None)
