"""Stages on Ray: on the cluster that RAY_ADDRESS names, or on one of its own on this machine, which ends with the run.

Ray lives in a process of its own (see `driver`): this one does without its import, its signal handlers and its sudden
ends, and the processes of an own cluster go, however the run ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import psutil

from analyticup.engine import progress
from analyticup.engine.artifacts import Artifact
from analyticup.engine.environment import package_versions
from analyticup.engine.graph import Node
from analyticup.engine.schedule import Slots
from analyticup.engine.workers import GRACE_SECONDS, Call, called, finished
from analyticup.errors import ADVICE, UserError
from analyticup.settings.paths import PROJECT, resolve
from analyticup.settings.schema import MachineSettings, Settings

# By name, as only the process that it runs in imports Ray.
_DRIVE: Final = "analyticup.engine.driver:drive"
# Ray reads them when it is imported. By the first, all of an own cluster is on 127.0.0.1, whatever its name says.
_OWN: Final = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Only the system ends what takes too much memory, as without Ray.
    "RAY_memory_monitor_refresh_ms": "0",
    # By default workers step back behind everything else on the machine.
    "RAY_worker_niceness": "0",
    # A head that is gone does not come back.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    # Nobody else on this machine may use it.
    "RAY_AUTH_MODE": "token",
}
# Of Ray's Unix sockets the paths below its folder take some 65 of the 107 bytes that they may have.
_LONGEST: Final = 30
_ANSWER_SECONDS: Final = 5


def cluster_address() -> str | None:
    """Of the cluster to use; None = one of its own. Ray calls that `local` too."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def cluster_fault() -> str | None:
    """Why no stage could run on Ray, in one line; None where nothing speaks against it. Nothing is started."""
    if find_spec("ray") is None:
        lock = PROJECT / ".ci" / "requirements-ray.lock"
        how = f"{sys.executable} -m pip install --no-deps --require-hashes -r {lock}"
        return f"machine.engine = ray: the package ray is not installed; run: {how}"
    address = cluster_address()
    if address is None or address == "auto":
        return None
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "://" in address:
        return f"RAY_ADDRESS = {address}: give HOST:PORT of the head node, or unset it for a cluster on this machine"
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        return f"RAY_ADDRESS = {address}: no cluster answers there ({error}); start it, or unset RAY_ADDRESS"
    return None


@dataclass(frozen=True)
class Setup:
    """What the process with Ray is told. `address` None = an own cluster, with its files in `folder`; `packages` are
    the versions that every worker must have, `artifacts` the folder that it must see; `live`: bars are drawn. `needs`
    gives the `memory` of `layout`, where stages run."""

    models: str
    machine: MachineSettings
    address: str | None
    folder: Path
    packages: dict[str, str]
    artifacts: Path
    live: bool
    needs: Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class Need:
    """What a worker takes of a node: cores, which are its stages' threads too, GPUs, and bytes of main memory."""

    cpus: int
    gpus: int = 0
    memory: int = 0


@dataclass(frozen=True)
class Layout:
    """The workers of a cluster: how many, what each takes, and how many fewer they are than memory would allow."""

    slots: Slots
    need: Need
    less: int = 0


def layout(
    machine: MachineSettings, nodes: Sequence[Mapping[str, float]], memory: tuple[float, float] = (0.0, 0.0)
) -> Layout:
    """One worker for every `machine.devices` GPUs, and on each node where they leave a core one without; where there
    are none, or with `machine.accelerator=cpu`, `machine.workers` of them on each. `nodes` are the resources of each,
    by Ray's names; those without a core, as a head may be, get none.

    All take as many cores as there are for each on the node with the fewest. `memory` are the bytes of main memory that
    a worker takes which runs models on the CPU, and on a GPU: a node has no more workers than its memory holds. Where
    none holds one, each has one all the same, as an estimate stops no run. Raises UserError for no cores at all.
    """
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1]
    if not nodes:
        raise UserError("no node of the Ray cluster has a core; start some, or give this one --num-cpus")
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= machine.devices]
    on_gpus = bool(with_gpus) and machine.accelerator != "cpu"
    nodes = with_gpus if on_gpus else nodes
    wanted = [int(node["GPU"]) // machine.devices if on_gpus else machine.workers for node in nodes]
    held = [int(node.get("memory", sys.maxsize)) for node in nodes]
    each = int(memory[on_gpus])
    # Ray would wait for ever for a place with more.
    each = each if each <= max(held) else min(held)
    counts = [min(count, one // max(1, each)) for count, one in zip(wanted, held, strict=True)]
    # A node with GPUs leaves a core to a worker without, if it can.
    shares = [(int(node["CPU"]) - on_gpus) // count for node, count in zip(nodes, counts, strict=True) if count]
    need = Need(max(1, min(shares)), machine.devices * on_gpus, each)
    left = [node["CPU"] - count * need.cpus >= 1 for node, count in zip(nodes, counts, strict=True)]
    return Layout(Slots(sum(counts), plain=sum(left) * on_gpus), need, sum(wanted) - sum(counts))


class RayRunner:
    """Workers on Ray, each of them an actor that keeps what it has loaded. They start with the first call.

    `needs` is "module:function": from the settings to the `memory` of `layout`. Raises UserError where there is no Ray,
    or no cluster.
    """

    def __init__(self, settings: Settings, models: str, needs: str = "") -> None:
        if fault := cluster_fault():
            raise UserError(fault)
        # As many as they will be on an own cluster; on another one that is known when it is reached.
        self.slots = Slots(settings.machine.workers)
        self._settings, self._models, self._needs = settings, models, needs
        self._ours, self._theirs = get_context("spawn").Pipe()
        self._process: Any = None
        self._folder: Path | None = None
        self._family: list[psutil.Process] = []
        self._waiting: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._ended = False

    def submit(self, call: Call, settings: Settings, node: Node | None = None) -> Future[Artifact]:
        title, model = (node.title, node.stage.model) if node else ("a stage", True)
        return self._send(title, model, partial(_staged, call, settings))

    def ask(self, function: str, *arguments: Any) -> Any:
        return self._send("the checks", True, partial(_asked, function, arguments)).result()

    def _send(self, title: str, model: bool, work: Any) -> Future[Any]:
        if self._process is None:
            self._begin()
        future, number = Future[Any](), next(self._numbers)
        with self._lock:
            if self._ended:
                raise UserError(_GONE)
            self._waiting[number] = future
        self._ours.send((number, title, model, pickle.dumps(work)))
        return future

    def _begin(self) -> None:
        """Starts the process with Ray; waits until it says how many calls run at once."""
        place = tempfile.gettempdir()
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir=place if len(place) <= _LONGEST else "/tmp"))
        artifacts, live = resolve(self._settings.paths.artifacts), progress.is_live(sys.stderr)
        artifacts.mkdir(parents=True, exist_ok=True)
        given = (self._models, self._settings.machine, cluster_address(), self._folder, package_versions())
        context, needs = get_context("spawn"), partial(_needed, self._needs, self._settings)
        # It starts processes of its own, so it is no daemon; it ends when our end of the pipe is closed.
        self._process = context.Process(target=_drive, args=(self._theirs, Setup(*given, artifacts, live, needs)))
        self._process.start()
        self._theirs.close()
        try:
            said, told = self._ours.recv()
        except EOFError:
            said, told = "failed", UserError(_GONE)
        if said == "failed":
            raise told
        self.slots, self._family = told, family(self._process.pid)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Hears what is told and done, until the other process closes its end."""
        trouble: Exception = UserError(_GONE)
        try:
            while (said := self._ours.recv())[0] != "failed":
                self._hear(said)
            trouble = said[1]
        except (EOFError, OSError):
            pass
        except Exception as error:
            # What came cannot be read here; nobody may wait for it.
            trouble = error
        with self._lock:
            self._ended = True
            left, self._waiting = list(self._waiting.values()), {}
        for future in left:
            future.set_exception(trouble)

    def _hear(self, said: tuple[Any, ...]) -> None:
        kind, *rest = said
        if kind == "told":
            progress.hear(rest[0])
            return
        number, answer = rest
        with self._lock:
            future = self._waiting.pop(number)
        if kind == "done":
            future.set_result(answer)
        else:
            future.set_exception(answer)

    def __enter__(self) -> RayRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if self._process is None:
            self._theirs.close()
            self._ours.close()
            return
        # Its own, too, where it has to be ended itself.
        self._family += family(self._process.pid)
        # As reading waits in another thread, the pipe is closed by a word.
        with contextlib.suppress(OSError):
            self._ours.send(None)
        self._process.join(2 * GRACE_SECONDS)
        self._process.kill()
        self._process.join()
        self._ours.close()
        end(self._family)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _needed(needs: str, settings: Settings) -> tuple[float, float]:
    # What is wrong with the settings is said by the checks, which run next.
    with contextlib.suppress(UserError, OSError, ValueError):
        return called(needs, settings) if needs else (0.0, 0.0)
    return 0.0, 0.0


def _drive(theirs: Connection, setup: Setup) -> None:
    # Workers import from where this process does.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    if setup.address is None:
        os.environ.update({**_OWN, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    called(_DRIVE, theirs, setup)


_GONE: Final = f"the Ray cluster has ended, or its connection to this run; {ADVICE}"


def family(pid: int) -> list[psutil.Process]:
    """All processes that a process has started, and those that these have."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def end(processes: Sequence[psutil.Process]) -> None:
    """Ends those that are still there: Ray's own wait a minute for a head that was killed."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    limit = time.monotonic() + GRACE_SECONDS
    while any(map(_runs, processes)) and time.monotonic() < limit:
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    """A zombie does not: in a container it may be seconds before the first process asks about it."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _staged(call: Call, settings: Settings, sources: Any) -> Artifact:
    return finished(call, sources.of(settings))


def _asked(function: str, arguments: tuple[Any, ...], sources: Any) -> Any:
    return called(function, *arguments)
