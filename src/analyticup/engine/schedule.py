"""Which stage starts next, for a run and for its simulation with a clock that only adds up."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from analyticup.engine.graph import Node


@dataclass(frozen=True)
class Slots:
    """How many stages run at once: `any` of all kinds, and beside them `plain` ones that run no model, so that on a
    cluster these take no GPU. Without plain slots they share the others."""

    any: int
    plain: int = 0

    def free_for(self, node: Node, running: Collection[Node]) -> bool:
        """Whether the node could start beside those that run."""
        beside = sum(not other.stage.model for other in running) if self.plain else 0
        if self.plain and not node.stage.model:
            return beside < self.plain
        return len(running) - beside < self.any


def choose(
    waiting: Sequence[Node], ready: Callable[[Node], bool], running: Collection[Node], slots: Slots
) -> int | None:
    """The place of the first node that waits, is ready and finds a slot beside those that run."""
    places = (place for place, node in enumerate(waiting) if slots.free_for(node, running) and ready(node))
    return next(places, None)


def urgent_first(nodes: Sequence[Node]) -> list[Node]:
    """In the order in which several slots should take them: those first that most stages with a model wait for, one
    after the other; otherwise as they are given. Nothing comes before its inputs."""
    behind = dict.fromkeys((node.identity for node in nodes), 0)
    for node in reversed(nodes):
        behind[node.identity] += node.stage.model
        for other in (*node.inputs.values(), *node.shards):
            behind[other.identity] = max(behind.get(other.identity, 0), behind[node.identity])
    return sorted(nodes, key=lambda node: -behind[node.identity])


def replay(nodes: Sequence[Node], seconds: Mapping[str, float], slots: Slots) -> float:
    """How long a run takes that starts its stages in this order where it can choose, each of which takes the `seconds`
    by its title."""
    now = 0.0
    waiting, running, done = list(nodes), list[tuple[float, int, Node]](), set[str]()
    while waiting or running:
        beside = [node for *_, node in running]
        while (place := choose(waiting, partial(_ready, done), beside, slots)) is not None:
            node = waiting.pop(place)
            beside.append(node)
            heapq.heappush(running, (now + seconds[node.title], len(waiting), node))
        now, _, ended = heapq.heappop(running)
        done.add(ended.identity)
    return now


def _ready(done: Container[str], node: Node) -> bool:
    return all(other.identity in done for other in node.inputs.values())


def longest_chain(nodes: Sequence[Node], seconds: Mapping[str, float]) -> list[str]:
    """The titles of the stages, each an input of the next, that take longest together: no number of slots is faster."""
    chains: dict[str, list[str]] = {}
    for node in nodes:
        before = max((chains[other.identity] for other in node.inputs.values()), key=_total(seconds), default=[])
        chains[node.identity] = [*before, node.title]
    return max(chains.values(), key=_total(seconds))


def _total(seconds: Mapping[str, float]) -> Callable[[list[str]], float]:
    return lambda titles: sum(seconds[title] for title in titles)
