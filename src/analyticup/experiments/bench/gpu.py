"""`./run.sh bench --only gpu`: whether the paper's recipe on 14 billion parameters is right, fast and small enough on
this machine's GPU. Weights are random and made on the device, so nothing is downloaded.

Every step is a process of its own that is ended at its bound, and every measurement is one JSON line, kept at once: a
step that crashes, hangs or runs out of memory costs no other. This file imports no torch; the steps are in gpu_steps.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
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
# For a process to import what its step needs: up to 24 s on the H200 of this folder's README.
STARTING = 60
# Together at most eight minutes, imports not counted.
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
    """Runs the steps, says each measurement as a JSON line and writes them all to `folder`; 1 where a step failed or
    found figures or bytes that should be equal and are not.

    `tiny` takes a model that a CPU runs in a moment, for the same steps.
    """
    lines: list[Line] = []
    for line in _measured(steps, tiny):
        lines.append(line)
        say(json.dumps(line))
        write_atomically(folder / FILE, "".join(json.dumps(one) + "\n" for one in lines))
    return int(any("failed" in line or not line.get("equal", True) or not line.get("goes_on", True) for line in lines))


def _measured(steps: tuple[Step, ...], tiny: bool) -> Iterator[Line]:
    # Not forked from one that has imported: bitsandbytes touches the GPU when it is imported, and no fork of that may.
    context, factor = get_context("spawn"), TINY_FACTOR if tiny else 1
    started = time.monotonic()
    # What a killed step leaves of its files goes with the folder.
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        for step in steps:
            ours, theirs = context.Pipe(duplex=False)
            given = theirs, f"{step.module}:{step.name}", tiny, scratch
            process = context.Process(target=_serve, args=given, daemon=True)
            process.start()
            theirs.close()
            for values in _received(ours, STARTING * factor, step.seconds * factor):
                yield {"step": step.name, "at": round(time.monotonic() - started, 1), **values}
            process.kill()
            # A process that hangs in a driver cannot be ended.
            process.join(20)


def _received(connection: Connection, starting: float, seconds: float) -> Iterator[Line]:
    bound, doing = starting, "imported"
    ends = time.monotonic() + bound
    while connection.poll(max(0.0, ends - time.monotonic())):
        try:
            values = connection.recv()
        except EOFError:
            yield {"failed": "its process ended; was there enough memory?"}
            return
        if values is None:
            return
        if values == _IMPORTED:
            bound, doing = seconds, "done"
            ends = time.monotonic() + bound
            continue
        yield values
    yield {"failed": f"not {doing} after {bound:.0f} s"}


def _serve(connection: Connection, function: str, tiny: bool, scratch: str) -> None:
    tempfile.tempdir = scratch
    # Nothing of an earlier compilation.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(scratch) / "compiled")
    try:
        measure = imported(function)
        connection.send(_IMPORTED)
        for values in measure(tiny):
            connection.send(values)
    # Whatever a library raises becomes that step's line.
    except Exception as error:
        connection.send({"failed": machine_trouble(error) or f"{type(error).__name__}: {error}"[:300]})
    connection.send(None)
