"""A stage as a value, and a run's graph of them: identities, folders, the plan and the order come from these."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from analyticup.engine.artifacts import Artifact, Unusable, fingerprint, read_artifact
from analyticup.settings.schema import Settings

Item = TypeVar("Item")
# Below the folder of artifacts, a folder for each node whose shards are at work.
SHARDS = "shards"


def nothing(own: Settings) -> Mapping[str, Any]:
    """For stages whose bytes no setting decides."""
    return {}


@dataclass(frozen=True)
class Cut:
    """Into how many shards the work of a node is cut, and what decides which shard does what, besides their number.
    With `first` there is a step before them, and each has what it makes as its input of that name."""

    pieces: int = 1
    by: Mapping[str, Any] = field(default_factory=dict)
    first: str = ""


UNCUT = Cut()


def uncut(own: Settings) -> Cut:
    """For stages that do all their work at once."""
    return UNCUT


@dataclass(frozen=True)
class Stage:
    """What a room offers. `run` is "module:function", imported only where the stage runs, so that a plan is instant;
    `settings` gives the part of a task's settings that decides the stage's bytes. With a `cut` it does its work in
    shards and puts them together; neither its bytes nor its identity show how many there were. `model`: it may run one,
    and so gets a GPU where there are any.

    Raise `version` when the stage writes other bytes from the same settings and inputs.
    """

    name: str
    version: int
    run: str
    settings: Callable[[Settings], Mapping[str, Any]] = nothing
    cut: Callable[[Settings], Cut] = uncut
    model: bool = True


class Shard(NamedTuple):
    """Every `of`th piece of some work, from piece `number` (0 to of - 1) on."""

    number: int
    of: int

    def take(self, pieces: Sequence[Item]) -> Sequence[Item]:
        return pieces[self.number :: self.of]

    def __str__(self) -> str:
        if self == FIRST:
            return "first"
        return f"shard{self.number + 1}of{self.of}" if self.of > 1 else ""


WHOLE = Shard(0, 1)
# The step before all shards, however many there are.
FIRST = Shard(0, 0)


@dataclass(frozen=True)
class Part:
    """Which of a task's nodes of one stage: the fold (None = none or all), what it is for, the round from 1, and the
    shard of its work."""

    fold: int | None = None
    purpose: str = ""
    round: int = 1
    shard: Shard = WHOLE

    def __str__(self) -> str:
        fold = "" if self.fold is None else f"fold{self.fold}"
        turn = f"round{self.round}" if self.round > 1 else ""
        return "-".join(filter(None, (fold, self.purpose, turn, str(self.shard))))


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
    cut: Cut = UNCUT

    @cached_property
    def shards(self) -> tuple[Node, ...]:
        """The nodes that do its work, where it is cut: what they make is gone once this one is done."""
        if self.cut.pieces == 1:
            return ()
        parts = [replace(self.part, shard=Shard(number, self.cut.pieces)) for number in range(self.cut.pieces)]
        own, before = replace(self, decides={**self.decides, **self.cut.by}, cut=UNCUT), list[Node]()
        if self.cut.first:
            before = [replace(self, part=replace(self.part, shard=FIRST), cut=UNCUT)]
            own = replace(own, inputs={**self.inputs, self.cut.first: before[0]})
        return (*before, *(replace(own, part=part) for part in parts))

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
        given = (stage.settings(own), dict(inputs or {}), known, stage.cut(own))
        self.nodes.append(Node(stage, task, part or Part(), *given))
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


def shards_folder(folder: Path) -> Path:
    """Where the shards of the node with this folder are, however many there are."""
    return folder.parent / SHARDS / folder.name


def inspect_node(node: Node, folder: Path, found: Mapping[str, Status], ran: Collection[str] = ()) -> Status:
    """The status of one node; `found` holds those of its inputs, `ran` the identities of what ran in this run."""
    status = _inspect(node, folder, found, ran)
    if status.artifact is not None or not node.shards:
        return status
    made = [one.artifact is not None for one in inspect_shards(node, folder, found, ran)]
    return replace(status, reason=f"{status.reason}; {sum(made)} of {len(made)} shards are made")


def inspect_shards(node: Node, folder: Path, found: Mapping[str, Status], ran: Collection[str] = ()) -> list[Status]:
    """The status of each of a node's shards; arguments as for `inspect_node`."""
    known = dict(found)
    for shard in node.shards:
        known[shard.identity] = _inspect(shard, shards_folder(folder) / str(shard.part.shard), known, ran)
    return [known[shard.identity] for shard in node.shards]


def _inspect(node: Node, folder: Path, found: Mapping[str, Status], ran: Collection[str]) -> Status:
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
