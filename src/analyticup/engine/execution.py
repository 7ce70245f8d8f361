"""The run: each node that is not cached, as soon as its inputs are done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from analyticup.engine.artifacts import Artifact, StageRecord, await_seen, fingerprint, read_artifact
from analyticup.engine.files import discard, publish_folder, tidy
from analyticup.engine.graph import WHOLE, Node, Status, inspect_node, inspect_shards, shards_folder
from analyticup.engine.job import Job, given_files
from analyticup.engine.memory import Watch, peak, reset_peak
from analyticup.engine.schedule import choose, urgent_first
from analyticup.engine.workers import Runner, imported
from analyticup.errors import UserError, machine_trouble
from analyticup.settings.loading import task_settings
from analyticup.settings.paths import resolve
from analyticup.settings.schema import TASKS, Settings
from analyticup.tracking import Made


@dataclass(frozen=True)
class Done:
    """The outcome of one node: its status before, its artifact, and whether it ran now."""

    status: Status
    artifact: Artifact
    ran: bool


def execute(
    settings: Settings,
    nodes: Sequence[Node],
    environment: Mapping[str, Any],
    runner: Runner,
    given: Sequence[Status] = (),
) -> Iterator[Status | Done]:
    """Runs what is not cached as soon as a node's inputs are done and a worker is free: in list order, and with several
    slots first what most others wait for. Yields a Status before each node and a Done after it. A node that is cut
    starts with its shards, which are no nodes of the run: nothing is yielded for them.

    `environment` (versions, git revision) goes into the records. When a stage runs again, so does all that depends on
    it. Several runs may share a `runner`, and with it what it has loaded. `given` are inputs that are not among the
    nodes, with their artifacts.
    """
    execution = _Execution(settings, nodes, environment, runner)
    execution.found = {status.node.identity: status for status in given}
    yield from execution.steps()


class _Execution:
    """One run: the nodes that wait, that run and that are done."""

    def __init__(
        self, settings: Settings, nodes: Sequence[Node], environment: Mapping[str, Any], runner: Runner
    ) -> None:
        self.settings, self.environment, self.runner = settings, environment, runner
        self.artifacts = resolve(settings.paths.artifacts)
        self.group, self.tags = run_group(settings, nodes), run_tags(settings, nodes, environment)
        self.waiting = list(nodes)
        self.running: dict[Future[Artifact], Status] = {}
        self.found: dict[str, Status] = {}
        self.ran: set[str] = set()
        # Of nodes whose shards are made, and of the shards: what is known before they start.
        self.begun: dict[str, Status] = {}

    def steps(self) -> Iterator[Status | Done]:
        while self.waiting or self.running:
            while (node := self._next()) is not None:
                if node.identity in self.begun:
                    self._start(self.begun[node.identity])
                    continue
                status = inspect_node(node, self.artifacts / node.name, self.found, self.ran)
                yield status
                if status.artifact is not None:
                    yield self._done(status, status.artifact)
                elif node.shards:
                    self._begin(status)
                else:
                    self._start(status)
            for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                status = self.running.pop(future)
                with _naming(status.node):
                    artifact = future.result()
                    await_seen(artifact.folder, self.artifacts)
                if status.node.part.shard != WHOLE:
                    self._keep(status, artifact)
                    discard(_resume_file(self.artifacts, status.node.name))
                    continue
                self.ran.add(status.node.identity)
                yield self._done(status, artifact)
        for shared in (_resume_file(self.artifacts, ""), shards_folder(self.artifacts / "none")):
            tidy(shared.parent)

    def _next(self) -> Node | None:
        """Taken from those that wait: the first whose inputs are all there, and its shards where they were begun."""

        def ready(node: Node) -> bool:
            needed = [*node.inputs.values(), *(node.shards if node.identity in self.begun else ())]
            return all(other.identity in self.found for other in needed)

        slots, running = self.runner.slots, [status.node for status in self.running.values()]
        if slots.any > 1:
            self.waiting = urgent_first(self.waiting)
        place = choose(self.waiting, ready, running, slots)
        return None if place is None else self.waiting.pop(place)

    def _begin(self, status: Status) -> None:
        """Puts a node's shards among what waits, and itself behind them."""
        shards = inspect_shards(status.node, status.folder, self.found, self.ran)
        for shard in shards:
            if shard.artifact is not None:
                self._keep(shard, shard.artifact)
        missing = [shard for shard in shards if shard.artifact is None]
        self.begun |= {one.node.identity: one for one in [status, *missing]}
        self.waiting[:0] = [*(shard.node for shard in missing), status.node]

    def _start(self, status: Status) -> None:
        inputs = {name: self.found[other.identity].artifact for name, other in status.node.inputs.items()}
        shards = tuple(self.found[shard.identity].artifact for shard in status.node.shards)
        given = (inputs, shards, self.settings, self.group, self.tags, self.environment)
        call = partial(_run, status.node, status.folder, *given)
        self.running[self.runner.submit(call, self.settings, status.node)] = status

    def _keep(self, status: Status, artifact: Artifact) -> None:
        self.found[status.node.identity] = Status(status.node, status.folder, artifact, status.reason)

    def _done(self, status: Status, artifact: Artifact) -> Done:
        self._keep(status, artifact)
        for left in (_resume_file(self.artifacts, status.node.name), shards_folder(status.folder)):
            discard(left)
        return Done(status, artifact, ran=status.artifact is None)


def run_group(settings: Settings, nodes: Sequence[Node]) -> str:
    """What the runs of one pipeline run have in common in W&B."""
    return f"{settings.name}-{nodes[-1].identity[:8]}"


def run_tags(settings: Settings, nodes: Sequence[Node], environment: Mapping[str, Any]) -> tuple[str, ...]:
    """Config, revision of the code and hash of the data, as tags in W&B."""
    raw = {name: digest for node in nodes for name, digest in node.file_hashes.items()}
    # A generated corpus is what its stage's settings make it.
    data = fingerprint(raw or {"made by": nodes[0].identity})
    return (settings.name, f"git {environment.get('git', 'unknown')[:12]}", f"data {data[:12]}")


def _resume_file(artifacts: Path, name: str) -> Path:
    return artifacts / "checkpoints" / f"{name}.safetensors"


def _run(
    node: Node,
    folder: Path,
    inputs: Mapping[str, Artifact],
    shards: tuple[Artifact, ...],
    settings: Settings,
    group: str,
    tags: tuple[str, ...],
    environment: Mapping[str, Any],
    source: Any,
) -> Artifact:
    clock, started = time.time(), time.monotonic()
    reset_peak()
    digests = {name: artifact.digest for name, artifact in inputs.items()}
    resumes = {"node": node.identity, "inputs": digests, "packages": environment.get("packages", {})}
    own = task_settings(settings, node.task) if node.task in TASKS else settings
    artifacts = resolve(settings.paths.artifacts)
    for artifact in (*inputs.values(), *shards):
        await_seen(artifact.folder, artifacts)
    with _naming(node), publish_folder(folder) as scratch:
        job = Job(
            task=node.task,
            part=node.part,
            settings=own,
            inputs=inputs,
            out=scratch,
            files=given_files(own, node.file_hashes, inputs.get("sample")),
            cache=resolve(settings.paths.cache),
            logs=artifacts,
            group=group,
            resume_file=_resume_file(artifacts, node.name),
            resume_identity=fingerprint(resumes),
            source=source,
            made=Made(node.stage.name, node.title, node.identity),
            tags=tags,
            shards=shards,
        )
        with Watch() as watch:
            counts = imported(node.stage.run)(job)
        record = StageRecord(
            stage=node.stage.name,
            task=node.task,
            part=str(node.part),
            identity=node.identity,
            code=node.stage.version,
            settings=dict(node.decides),
            raw=dict(node.file_hashes),
            inputs=digests,
            input_folders={name: artifact.folder.name for name, artifact in inputs.items()},
            counts=counts,
            started=round(min([clock, *(one.record.started for one in shards)]), 2),
            seconds=round(time.monotonic() - started + sum(one.record.seconds for one in shards), 2),
            # The watch knows the processes that the stage started, but looks only now and then.
            memory=max(peak(), watch.peak, *(one.record.memory for one in shards)),
            environment=dict(environment),
        )
        record.save(scratch)
    made = read_artifact(folder, node.identity)
    assert isinstance(made, Artifact), made
    return made


@contextlib.contextmanager
def _naming(node: Node) -> Iterator[None]:
    """Says in which stage the machine failed."""
    try:
        yield
    except Exception as error:
        trouble = machine_trouble(error)
        if trouble is None:
            raise
        raise UserError(f"{node.title}: {trouble}") from error
