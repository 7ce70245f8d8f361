"""A stage as a value, and a run's graph of them: identities, folders, the plan and the order come from these."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from analyticup.engine.artifacts import Artifact, Unusable, fingerprint, read_artifact
from analyticup.settings.schema import Settings


def nothing(own: Settings) -> Mapping[str, Any]:
    """For stages whose bytes no setting decides."""
    return {}


@dataclass(frozen=True)
class Stage:
    """What a room offers. `run` is "module:function", imported only where the stage runs, so that a plan is instant;
    `settings` gives the part of a task's settings that decides the stage's bytes.

    Raise `version` when the stage writes other bytes from the same settings and inputs.
    """

    name: str
    version: int
    run: str
    settings: Callable[[Settings], Mapping[str, Any]] = nothing


@dataclass(frozen=True)
class Part:
    """Which of a task's nodes of one stage: the fold (None = none or all), what it is for, and the round from 1."""

    fold: int | None = None
    purpose: str = ""
    round: int = 1

    def __str__(self) -> str:
        fold = "" if self.fold is None else f"fold{self.fold}"
        return "-".join(filter(None, (fold, self.purpose, f"round{self.round}" if self.round > 1 else "")))


@dataclass(frozen=True)
class Node:
    """A stage of one task and part. What it depends on decides its identity, and with it its folder's name.

    `decides` are the settings that decide its bytes, `file_hashes` the sha256 of the official files it reads.
    """

    stage: Stage
    task: str
    part: Part
    decides: Mapping[str, Any]
    inputs: Mapping[str, Node]
    file_hashes: Mapping[str, str]

    @property
    def title(self) -> str:
        return "-".join(filter(None, (self.stage.name, self.task, str(self.part))))

    @cached_property
    def identity(self) -> str:
        """sha256 over stage, version, settings, files and the inputs' identities: no path, no device, no worker
        count."""
        return self.identity_of(self.stage.version, {name: node.identity for name, node in self.inputs.items()})

    def identity_of(self, version: int, inputs: Mapping[str, str]) -> str:
        """The identity with another version of the stage's code and the inputs' identities that belong to it."""
        own = {"stage": self.stage.name, "task": self.task, "part": str(self.part), "code": version}
        given = {"settings": dict(self.decides), "raw": dict(self.file_hashes), "inputs": dict(inputs)}
        return fingerprint({**own, **given})

    @property
    def name(self) -> str:
        return f"{self.title}-{self.identity[:8]}"


class Graph:
    """The nodes of a run, in the order in which they were added. `hashes`: official file name -> sha256."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self.nodes: list[Node] = []
        self.hashes = hashes

    def add(
        self,
        stage: Stage,
        own: Settings,
        task: str,
        inputs: Mapping[str, Node] | None = None,
        part: Part | None = None,
        files: Collection[str] = (),
    ) -> Node:
        """A new node; of the official `files` those that are there enter its identity."""
        known = {name: self.hashes[name] for name in files if name in self.hashes}
        self.nodes.append(Node(stage, task, part or Part(), stage.settings(own), dict(inputs or {}), known))
        return self.nodes[-1]


def identities_by(nodes: Sequence[Node], versions: Mapping[str, int]) -> dict[str, str]:
    """Title -> the identity that other versions (by stage name) would give; `nodes` in the order of execution."""
    found: dict[str, str] = {}
    for node in nodes:
        inputs = {name: found[other.title] for name, other in node.inputs.items()}
        found[node.title] = node.identity_of(versions.get(node.stage.name, node.stage.version), inputs)
    return found


@dataclass(frozen=True)
class Status:
    """Whether a node's artifact can be used as it is; `reason` says why not."""

    node: Node
    folder: Path
    artifact: Artifact | None
    reason: str


def inspect(nodes: Sequence[Node], artifacts: Path) -> list[Status]:
    """For every node whether it is cached or must run, and why; hashes files, creates nothing."""
    found: dict[str, Status] = {}
    for node in nodes:
        found[node.identity] = inspect_node(node, artifacts / node.name, found)
    return [found[node.identity] for node in nodes]


def inspect_node(node: Node, folder: Path, found: Mapping[str, Status], ran: Collection[str] = ()) -> Status:
    """The status of one node; `found` holds those of its inputs, `ran` the identities of what ran in this run."""
    read = read_artifact(folder, node.identity)
    if isinstance(read, Unusable):
        return Status(node, folder, None, read.reason)
    for name, other in node.inputs.items():
        status = found[other.identity]
        if status.artifact is None:
            return Status(node, folder, None, f"its input {other.title} will run")
        if other.identity in ran:
            return Status(node, folder, None, f"its input {other.title} was made again")
        if read.record.inputs.get(name) != status.artifact.digest:
            return Status(node, folder, None, f"its input {other.title} has changed")
    return Status(node, folder, read, "cached")
