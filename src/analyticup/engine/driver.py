"""The process of a run that has Ray: it starts workers on the cluster, hands them their calls, and calls again what a
lost worker or node has left. Its counterpart, in the process that shows the run, is `cluster`."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from analyticup.engine import progress
from analyticup.engine.cluster import Layout, Need, Setup, end, family, layout
from analyticup.engine.environment import package_versions
from analyticup.engine.signals import end_by
from analyticup.engine.workers import GRACE_SECONDS, Sources, cores, imported
from analyticup.errors import ADVICE, UserError, machine_trouble

# A stage that ends its worker so often is to blame itself.
ATTEMPTS: Final = 3
# The least that Ray takes: only calls and their answers pass through its store.
_STORE_BYTES: Final = 80_000_000
# After so long, a wait for a place on the cluster is said.
_PATIENCE: Final = 20.0
# After so long Ray knows that a node is gone: five checks, one every three seconds.
_NOTICED: Final = 20.0
# What changes how a process works, and is set for this one; other nodes are told.
PASSED_ON: Final = (
    *("PYTHONPATH", "PYTHONHASHSEED", "MKL_CBWR"),
    *("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "OMP_NUM_THREADS"),
)


@dataclass(frozen=True)
class Place:
    """Where a worker runs, and what is wrong there, if anything."""

    pid: int
    node: str
    address: str
    fault: str


@ray.remote
class Worker:
    """Runs calls one after the other, in the main thread of its process."""

    def __init__(self, setup: Setup, need: Need, environment: dict[str, str], folder: str, relay: Queue) -> None:
        _as_without_ray(environment)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_by([signal.SIGTERM], lambda _: sys.exit(1))
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        progress.relay_to(lambda said: _told(relay, said), bars=setup.live)
        self._setup, self._sources = setup, Sources(setup.models, need.cpus)
        with contextlib.suppress(OSError):
            os.chdir(folder)

    def prepare(self) -> None:
        """Imports what all stages need, while others start."""
        imported(self._setup.models)

    def place(self) -> Place:
        context, fault = ray.get_runtime_context(), ""
        node, versions = ray.util.get_node_ip_address(), package_versions()
        other = [name for name, version in self._setup.packages.items() if versions.get(name) != version]
        if other:
            here, there = versions.get(other[0]), self._setup.packages[other[0]]
            fault = f"node {node} has {other[0]} {here} and not {there}; set up the same environment on all nodes"
        elif not self._setup.artifacts.is_dir():
            fault = f"node {node} does not see {self._setup.artifacts}; put paths.artifacts on a shared filesystem"
        return Place(os.getpid(), context.get_node_id(), node, fault)

    def do(self, work: bytes) -> tuple[str, Any]:
        try:
            return "done", pickle.loads(work)(self._sources)
        except Exception as error:
            error.add_note(traceback.format_exc())
            return "raised", error


def _as_without_ray(environment: dict[str, str]) -> None:
    """Before libraries are imported: Ray sets the number of threads for all of them where it is not set; without Ray,
    each has its own default."""
    if "OMP_NUM_THREADS" not in environment:
        os.environ.pop("OMP_NUM_THREADS", None)


@ray.remote(num_cpus=0, max_retries=0)
def needed(environment: dict[str, str], needs: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    _as_without_ray(environment)
    return needs()


def _end_with(parent: int) -> None:
    """A worker whose node is gone ends before its stage runs again elsewhere."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _told(relay: Queue, said: Any) -> None:
    # Where the run no longer listens, the worker ends soon.
    with contextlib.suppress(RayError):
        relay.put(said)


@ray.remote(num_cpus=0, max_retries=0)
def terminate(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def drive(theirs: Connection, setup: Setup) -> None:
    """Serves the calls that come through the pipe until None comes, or its other end is closed."""
    # Sent to the whole group, it is the process that shows the run that heeds them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _quiet(setup.folder / "driver.log")
    send = _sending(theirs)
    try:
        connect(setup)
        found = layout(setup.machine, [node["Resources"] for node in ray.nodes() if node["Alive"]], _memory(setup))
        driver = Driver(setup, found, send)
    except Exception as error:
        place = setup.address or f"with its files in {setup.folder.parent} (TMPDIR)"
        told = f"Ray does not start, {place}: {_in_short(error)}; see that there are disk, memory and processes left"
        send("failed", error if isinstance(error, UserError) else UserError(told))
        return
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    send("slots", found.slots)
    if found.less:
        each = f"{found.need.memory / 1e9:.1f} GB of main memory for each (estimate)"
        send("told", f"Ray: {found.slots.any} workers, {found.less} less than asked for: {each}")
    with contextlib.suppress(EOFError, OSError):
        while (call := theirs.recv()) is not None:
            driver.take(*call)
    driver.stop()
    # An own cluster takes more than a second to end by itself, and leaves no more behind.
    own = family(os.getpid())
    if setup.address is not None:
        ray.shutdown()
    end(own)
    shutil.rmtree(setup.folder, ignore_errors=True)
    # Threads that still wait for Ray must not keep the process.
    os._exit(0)


def _memory(setup: Setup) -> tuple[float, float]:
    """Of a worker; on an own cluster nobody else takes any, and to estimate it would be a third of the start."""
    if setup.address is None:
        return 0.0, 0.0
    here = _at(ray.get_runtime_context().get_node_id())
    return ray.get(needed.options(scheduling_strategy=here).remote(_passed_on(), setup.needs))


def _in_short(error: Exception) -> str:
    """On one line; Ray's own go over many."""
    return machine_trouble(error) or " ".join(str(error).split())[:300]


def _quiet(log: Path) -> None:
    """What Ray says on its own does not belong into a run's lines."""
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


def _sending(pipe: Connection) -> Callable[..., None]:
    lock = threading.Lock()

    def send(*said: Any) -> None:
        with lock, contextlib.suppress(OSError):
            pipe.send(said)

    return send


def _passed_on() -> dict[str, str]:
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}


def connect(setup: Setup) -> None:
    """To the cluster of the setup, or to an own one, which is started and then ends with this process."""
    if setup.address is not None:
        ray.init(address=setup.address, runtime_env={"env_vars": _passed_on()}, log_to_driver=False)
        return
    workers = setup.machine.workers
    ray.init(
        address="local",
        num_cpus=max(workers, cores()),
        num_gpus=0 if setup.machine.accelerator == "cpu" else None,
        include_dashboard=False,
        object_store_memory=_STORE_BYTES,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(setup.folder),
    )


@dataclass(frozen=True, order=True)
class _Task:
    number: int
    title: str
    # Pickled, as this process would import what it names.
    work: bytes
    # The nodes of the workers that it was lost with.
    lost: tuple[str, ...] = ()


_Todo = queue.PriorityQueue[_Task]


class Driver:
    """A thread for each worker hands it a call, and waits for the answer. `send` takes what goes to the run."""

    def __init__(self, setup: Setup, found: Layout, send: Callable[..., None]) -> None:
        self._setup, self._send = setup, send
        self._node = ray.get_runtime_context().get_node_id()
        self._relay = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": _at(self._node)})
        self._environment = _passed_on()
        # By number, so that what runs again comes first. The second is for stages that run no model.
        self._todo: tuple[_Todo, _Todo] = (queue.PriorityQueue(), queue.PriorityQueue())
        # Whether there is a worker for them. Where several runs share a cluster, it may be long in coming; and it comes
        # after one of the others, so that no run keeps what another one needs and cannot go on itself.
        self._beside, self._begun = False, threading.Event()
        self._busy: dict[Any, Place] = {}
        self._stopping = False
        self._in_thread(self._listen)
        self._in_thread(self._watch)
        for _ in range(found.slots.any):
            self._in_thread(self._serve, found.need, self._todo[0])
        for _ in range(found.slots.plain):
            self._in_thread(self._serve, Need(1), self._todo[1])

    def take(self, number: int, title: str, model: bool, work: bytes) -> None:
        self._todo[self._beside and not model].put(_Task(number, title, work))

    def stop(self) -> None:
        """Lets the stages that run clean up first."""
        self._stopping, end = True, time.monotonic() + GRACE_SECONDS
        for place in list(self._busy.values()):
            terminate.options(scheduling_strategy=_at(place.node)).remote(place.pid)
        while self._busy and time.monotonic() < end:
            time.sleep(0.05)

    def _in_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        def call() -> None:
            try:
                function(*arguments)
            except UserError as error:
                self._fail(error)
            except Exception as error:
                self._fail(UserError(f"Ray: {_in_short(error)}; {ADVICE}"))

        threading.Thread(target=call, daemon=True).start()

    def _fail(self, error: UserError) -> None:
        """Ends the run where no call could be served any more."""
        if not self._stopping:
            self._send("failed", error)

    def _listen(self) -> None:
        with contextlib.suppress(RayError):
            while True:
                self._send("told", self._relay.get())

    def _watch(self) -> None:
        """The run's calls belong to the node that it is on."""
        while _alive(self._node):
            time.sleep(2)
        self._fail(UserError(f"the Ray node of this process is gone; {ADVICE}"))

    def _serve(self, need: Need, todo: _Todo) -> None:
        if todo is self._todo[1]:
            self._begun.wait()
        worker, place = self._started(need)
        self._beside |= todo is self._todo[1]
        self._begun.set()
        # Later ones have a call waiting, which may need less.
        worker.prepare.remote()
        while not self._stopping:
            if not self._did(worker, place, todo.get(), todo):
                worker, place = self._started(need)

    def _started(self, need: Need) -> tuple[Any, Place]:
        """A new worker, as soon as the cluster has a place for it."""
        given = (self._setup, need, self._environment, os.getcwd(), self._relay)
        for attempt in itertools.count(1):
            worker = Worker.options(num_cpus=need.cpus, num_gpus=need.gpus, memory=need.memory or None).remote(*given)
            asked = worker.place.remote()
            if not ray.wait([asked], timeout=_PATIENCE)[0] and not self._busy:
                wanted = f"cores: {need.cpus}, GPUs: {need.gpus}, memory: {need.memory / 1e9:.1f} GB"
                self._send("told", f"waiting for a worker to start on the Ray cluster; it takes {wanted}")
            try:
                place = ray.get(asked)
            except RayActorError:
                if attempt == ATTEMPTS:
                    raise
                continue
            if place.fault:
                raise UserError(place.fault)
            return worker, place
        raise AssertionError

    def _did(self, worker: Any, place: Place, task: _Task, todo: _Todo) -> bool:
        """Whether the worker is there for the next task."""
        self._busy[worker] = place
        try:
            kind, answer = ray.get(worker.do.remote(task.work))
        except RayActorError:
            with contextlib.suppress(RayError):
                # It may only be out of reach.
                ray.kill(worker)
            self._again(task, place, todo)
            return False
        except RayError as error:
            kind, answer = "raised", RuntimeError(str(error))
        finally:
            del self._busy[worker]
        self._send(kind, task.number, answer)
        return True

    def _again(self, task: _Task, place: Place, todo: _Todo) -> None:
        if self._stopping:
            return
        lost = (*task.lost, place.node)
        if self._to_blame(lost):
            self._send("raised", task.number, MemoryError(f"its worker was ended {ATTEMPTS} times"))
            return
        self._send("told", f"{task.title}: its worker on {place.address} was lost; it runs again")
        todo.put(replace(task, lost=lost))

    def _to_blame(self, lost: tuple[str, ...]) -> bool:
        """Whether a stage has ended too many workers: a node that goes takes with it what has done it no harm."""
        end = time.monotonic() + _NOTICED
        while sum(map(_alive, lost)) >= ATTEMPTS:
            # The run's own node is there.
            if lost[-1] == self._node or time.monotonic() > end:
                return True
            time.sleep(0.5)
        return False


def _at(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _alive(node: str) -> bool:
    return any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())
