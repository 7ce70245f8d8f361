"""Where stages run: in this process, or several at once, each in its own worker process.

Which process runs a stage, and what else runs then, changes nothing in what it writes. Small trainings leave most of a
machine idle: on two cores two trainings at once, with a thread each, are faster than one after the other with two.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from analyticup.engine import progress
from analyticup.engine.artifacts import Artifact
from analyticup.engine.graph import Node
from analyticup.engine.memory import keep, let_go
from analyticup.engine.schedule import Slots
from analyticup.engine.signals import end_by
from analyticup.errors import ADVICE, UserError
from analyticup.settings.schema import MachineSettings, Settings

# A stage that only needs its models to run.
Call = Callable[[Any], Artifact]
# How long a stopped worker may spend cleaning up, in seconds.
GRACE_SECONDS = 10


def imported(name: str) -> Any:
    """The object called "module:name"."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


class Runner(Protocol):
    """Runs as many calls at once as it has `slots`."""

    slots: Slots

    def submit(self, call: Call, settings: Settings, node: Node | None = None) -> Future[Artifact]:
        """The call's artifact; `node` says what is run and what it needs, where that plays a part."""

    def ask(self, function: str, *arguments: Any) -> Any:
        """What "module:function" returns where stages run, so that what it imports stays there."""

    def __enter__(self) -> Runner: ...

    def __exit__(self, *error: Any) -> None: ...


def make_runner(settings: Settings, models: str, needs: str = "") -> Runner:
    """By `machine.engine` and `machine.workers`. To be entered; it can then serve several runs, which keep what was
    loaded.

    `models` is "module:function": what gives a stage the models of its settings, imported where stages run. So is
    `needs`: the memory that a worker takes (see `cluster.layout`), by which Ray places workers.
    """
    if settings.machine.engine == "ray":
        return imported("analyticup.engine.cluster:RayRunner")(settings, models, needs)
    return InProcess(models) if settings.machine.workers == 1 else Workers(settings, models)


class InProcess:
    """One stage at a time, in this process."""

    slots = Slots(1)

    def __init__(self, models: str) -> None:
        self._sources = Sources(models)

    def submit(self, call: Call, settings: Settings, node: Node | None = None) -> Future[Artifact]:
        done: Future[Artifact] = Future()
        done.set_result(finished(call, self._sources.of(settings)))
        return done

    def ask(self, function: str, *arguments: Any) -> Any:
        return imported(function)(*arguments)

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *error: Any) -> None:
        return None


class Workers:
    """`machine.workers` processes, each with its share of the cores, and on GPUs with one of them.

    They end with this process, however it ends.
    """

    def __init__(self, settings: Settings, models: str) -> None:
        count = settings.machine.workers
        self.slots = Slots(count)
        context = get_context("spawn")
        # Nothing is sent: the workers' end reports that the other one is closed, or its process gone.
        theirs, self._ours = context.Pipe(duplex=False)
        self._stops = context.Value("b", False)
        self._told = context.SimpleQueue() if progress.is_live(sys.stderr) else None
        self._listener = threading.Thread(target=progress.hear_all, args=(self._told,), daemon=True)
        given = (theirs, self._stops, context.Value("i", 0), settings.machine, models, self._told)
        self._pool = ProcessPoolExecutor(count, context, _start, given)
        self._models, self._started = models, False

    def submit(self, call: Call, settings: Settings, node: Node | None = None) -> Future[Artifact]:
        return self._ready().submit(_work, call, settings)

    def ask(self, function: str, *arguments: Any) -> Any:
        return self._ready().submit(called, function, *arguments).result()

    def _ready(self) -> ProcessPoolExecutor:
        if not self._started:
            # All at once, as each spends seconds on imports; a run that finds everything cached starts none.
            self._started = True
            with _deaf_from_the_start():
                for _ in range(self.slots.any):
                    self._pool.submit(_prepare, self._models)
        return self._pool

    def __enter__(self) -> Workers:
        if self._told is not None:
            self._listener.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is not None:
            self._stops.value = True
            self._ours.close()
        self._pool.shutdown(cancel_futures=True)
        self._ours.close()
        if self._told is not None:
            self._told.put(None)
            self._listener.join()


class Sources:
    """The models of the settings that were asked for last, as far as they are loaded. `threads` are those of a stage
    whose settings name none."""

    def __init__(self, models: str = "", threads: int | None = None) -> None:
        self._models = models
        self._threads = threads
        self._key: Any = None
        self._source: Any = None

    def of(self, settings: Settings) -> Any:
        # Adapters are put on and taken off, so that the tasks' may differ.
        key = (settings.model.model_copy(update={"lora": None}), settings.paths, settings.machine)
        if self._source is None or key != self._key:
            own = settings.replace(**{"machine.threads": settings.machine.threads or self._threads})
            make = imported(self._models)
            if self._source is None:
                keep()
            else:
                self._source.release()
            self._key, self._source = key, make(own)
        return self._source


# The models of a worker process, and the machine's GPUs where the worker sees only its own.
_sources = Sources()
_gpus = 0


def _start(alive: Connection, stops: Any, started: Any, machine: MachineSettings, models: str, queue: Any) -> None:
    """First thing in a worker: what it may use of the machine, and how it ends."""
    global _sources
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    _sources = Sources(models, max(1, cores() // machine.workers))
    if machine.accelerator != "cpu":
        _take_gpu(number, machine.devices)
    _watch(alive, stops)
    end_by([signal.SIGTERM], lambda _: sys.exit(1))
    if queue is not None:
        progress.relay_to(queue.put)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_of_all(seen: int) -> int:
    """The GPUs that all workers have, where this process sees so many."""
    return max(seen, _gpus)


def _take_gpu(number: int, each: int = 1) -> None:
    """Leaves `each` GPUs visible, in turn; not tried yet on a machine with several."""
    import torch

    global _gpus
    count = torch.cuda.device_count()
    if count > each:
        _gpus = count
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = given.split(",") if given else [str(gpu) for gpu in range(count)]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[(number * each + turn) % count] for turn in range(each))


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, from a process of its own: the memory that it took is free again when it ends.

    The function is one of a module, and what goes in and out can be pickled. An exception is raised here again. The
    process ends with this one.
    """
    return side_by_side(function, [arguments])[0]


def side_by_side(function: Callable[..., Any], given: Sequence[tuple[Any, ...]]) -> list[Any]:
    """`apart` for several calls at once, which may wait for each other: where one fails or is ended, so are all."""
    context = get_context("spawn")
    ends: dict[Connection, BaseProcess] = {}
    try:
        for arguments in given:
            ours, theirs = context.Pipe()
            process = context.Process(target=_answer, args=(theirs, progress.is_heard(), function, arguments))
            ends[ours] = process
            with _deaf_from_the_start():
                process.start()
            theirs.close()
        answers = _answers(list(ends), function.__name__)
    finally:
        for ours, process in ends.items():
            # One that is still at work ends by that.
            ours.close()
            if process.pid is not None:
                process.join(GRACE_SECONDS)
                process.kill()
                process.join()
    return answers


def _answers(ends: list[Connection], name: str) -> list[Any]:
    """What each of the processes gives back."""
    found: dict[Connection, Any] = {}
    lost: Exception | None = None
    while waiting := [one for one in ends if one not in found]:
        for one in wait(waiting):
            try:
                kind, said = one.recv()
            except EOFError:
                # Nothing else ends a process without a word.
                which = f"process {ends.index(one) + 1} of {len(ends)}" if len(ends) > 1 else "the process"
                raise MemoryError(f"{which} of {name} was ended") from None
            if kind == "told":
                progress.hear(said)
            elif kind == "raised" and isinstance(said, ConnectionError) and len(ends) > 1:
                # It has lost another one, which says why, or is gone.
                found[one], lost = None, said
            elif kind == "raised":
                raise said
            else:
                found[one] = said
    if lost is not None:
        raise lost
    return [found[one] for one in ends]


def _answer(theirs: Connection, heard: bool, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # Sent to a whole group, it is the main process that heeds it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _watch(theirs)
    if heard:
        progress.relay_to(lambda said: theirs.send(("told", said)))
    try:
        answer = ("done", function(*arguments))
    except Exception as error:
        error.add_note(traceback.format_exc())
        answer = ("raised", error)
    theirs.send(answer)


@contextmanager
def _deaf_from_the_start() -> Iterator[None]:
    """A process that is started within gets no Ctrl-C: one that still imports would end with a traceback. This process
    gets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch(alive: Connection, stops: Any = None) -> None:
    """This process leaves Ctrl-C to the main one, and ends when the one that started it closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(alive, stops), daemon=True).start()


def _end_with(alive: Connection, stops: Any) -> None:
    """Ends this process at once when the one that started it is gone; asked to stop, its stage may clean up first."""
    alive.poll(None)
    if stops is not None and stops.value:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
    os._exit(1)


def _prepare(models: str) -> None:
    # What it imports is not sent back: it would be imported there too.
    imported(models)


def called(function: str, *arguments: Any) -> Any:
    """What "module:function" returns, imported only here."""
    return imported(function)(*arguments)


def finished(call: Call, source: Any) -> Artifact:
    """The stage's artifact; what the stage leaves is freed."""
    try:
        return call(source)
    finally:
        let_go()


def _work(call: Call, settings: Settings) -> Artifact:
    try:
        return finished(call, _sources.of(settings))
    except SystemExit:
        raise UserError(f"a worker process was ended from outside; {ADVICE}") from None
