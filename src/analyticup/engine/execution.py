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

from analyticup.engine.artifacts import Artifact, StageRecord, fingerprint, read_artifact
from analyticup.engine.files import discard, publish_folder, tidy
from analyticup.engine.graph import Node, Status, inspect_node
from analyticup.engine.job import Job, given_files
from analyticup.engine.memory import Watch, peak, reset_peak
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
    """Runs what is not cached, in list order, as soon as a node's inputs are done and a worker is free. Yields a Status
    before each node and a Done after it.

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

    def steps(self) -> Iterator[Status | Done]:
        while self.waiting or self.running:
            while len(self.running) < self.runner.count and (node := self._next()) is not None:
                status = inspect_node(node, self.artifacts / node.name, self.found, self.ran)
                yield status
                if status.artifact is not None:
                    yield self._done(status, status.artifact)
                else:
                    self._start(status)
            for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                status = self.running.pop(future)
                with _naming(status.node):
                    artifact = future.result()
                self.ran.add(status.node.identity)
                yield self._done(status, artifact)
        tidy(_resume_file(self.artifacts, "").parent)

    def _next(self) -> Node | None:
        """The first node whose inputs are all there."""
        for place, node in enumerate(self.waiting):
            if all(other.identity in self.found for other in node.inputs.values()):
                return self.waiting.pop(place)
        return None

    def _start(self, status: Status) -> None:
        inputs = {name: self.found[other.identity].artifact for name, other in status.node.inputs.items()}
        call = partial(_run, status.node, status.folder, inputs, self.settings, self.group, self.tags, self.environment)
        self.running[self.runner.submit(call, self.settings)] = status

    def _done(self, status: Status, artifact: Artifact) -> Done:
        node = status.node
        self.found[node.identity] = Status(node, status.folder, artifact, status.reason)
        discard(_resume_file(self.artifacts, node.name))
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
    with _naming(node), publish_folder(folder) as scratch:
        job = Job(
            task=node.task,
            part=node.part,
            settings=own,
            inputs=inputs,
            out=scratch,
            files=given_files(own, node.file_hashes, inputs.get("sample")),
            cache=resolve(settings.paths.cache),
            logs=resolve(settings.paths.artifacts),
            group=group,
            resume_file=_resume_file(folder.parent, node.name),
            resume_identity=fingerprint(resumes),
            source=source,
            made=Made(node.stage.name, node.title, node.identity),
            tags=tags,
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
            started=round(clock, 2),
            seconds=round(time.monotonic() - started, 2),
            # The watch knows the processes that the stage started, but looks only now and then.
            memory=max(peak(), watch.peak),
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
