"""What tests run in other processes. It imports nothing heavy, so that such a process starts in a moment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_start_method
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.engine.files import publish_folder
from analyticup.engine.job import Job
from analyticup.engine.progress import track
from analyticup.errors import UserError
from analyticup.experiments.bench.harness import Done, Unavailable
from analyticup.settings.schema import Settings

MODELS = "worker_calls:no_models"


def no_models(settings: Settings) -> Any:
    return SimpleNamespace(machine=settings.machine, release=lambda: None)


def wait_for(condition: Callable[[], bool], seconds: int = 60) -> None:
    for _ in range(seconds * 20):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def answer(folder: Path, source: Any, processes: int = 1) -> Artifact:
    """Which process this is and what it may use, as soon as so many processes are at it."""
    (folder / str(os.getpid())).touch()
    wait_for(lambda: len(list(folder.iterdir())) >= processes)
    return Artifact(folder, StageRecord(counts={"pid": os.getpid(), "threads": source.machine.threads}))


def assigned() -> dict[str, float]:
    """What Ray has set aside for this worker."""
    import ray

    return ray.get_runtime_context().get_assigned_resources()


def fail_beside(folder: Path, source: Any) -> Artifact:
    """As soon as the other worker's stage has begun."""
    wait_for(lambda: any(folder.iterdir()))
    raise UserError("rows are wrong")


def work_long(folder: Path, source: Any) -> None:
    with publish_folder(folder):
        time.sleep(100)


def end_itself(folder: Path, source: Any) -> None:
    """By the signal that a batch system sends first."""
    with publish_folder(folder):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(100)


class EndsInAFinaliser:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass


def end_in_a_finaliser(folder: Path, source: Any) -> None:
    EndsInAFinaliser()
    time.sleep(5)


def slow_and_loud(rounds: int) -> int:
    """A bar, and a line in its middle."""
    for number in track(range(rounds), "loop"):
        time.sleep(1.05)
        if number == 1:
            print("half way")
    return rounds**2


def die(job: Job) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Writes:
    """A line of the benchmark that appends its name and process to a file; fails where told to."""

    name: str
    log: Path
    fails: str = ""

    def _say(self, what: str) -> None:
        with self.log.open("a") as stream:
            stream.write(f"{what} {self.name} {os.getpid()}\n")

    def warm_up(self) -> None:
        self._say("warm")
        if self.fails == "absent":
            raise Unavailable("not here")

    def prepare(self) -> None:
        pass

    def run(self) -> Done:
        self._say("run")
        if self.fails == "error":
            raise ValueError("broken\nsecond line")
        if self.fails == "death":
            os._exit(9)
        return Done(rows=2)


def hang(tiny):
    """A step of the GPU check that never ends."""
    time.sleep(600)
    yield {}


def begin(tiny):
    """A step of the GPU check that says how its process was started."""
    yield {"by": get_start_method()}


def crash(tiny):
    os._exit(9)
    yield {}


def die_once(log: Path, times: int, source: Any) -> Artifact:
    """Ends its process by SIGKILL so many times."""
    with log.open("a") as stream:
        lives = stream.tell() + 1
        stream.write(".")
    if lives <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return Artifact(log.parent, StageRecord(counts={"lives": lives}))


class Odd(Exception):
    """Cannot be made again from its arguments, as unpickling does."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"odd: {one}{two}")


def raise_odd(source: Any) -> Artifact:
    print("printed by a worker")
    raise Odd("a", "b")


def began_with(name: str) -> str | None:
    """An environment variable of this process, by what the system keeps of its start."""
    entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    return next((entry.decode().partition("=")[2] for entry in entries if entry.startswith(f"{name}=".encode())), None)
