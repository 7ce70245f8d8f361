"""How long a run would take on several GPUs: its stages replayed by the scheduler, with the seconds that they took, or
those that they would take, as far as they have not run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from analyticup.augmentation import PIVOT, REASON, TRANSLATE
from analyticup.checks.timing import Rates, TaskRows, measured_rates, task_rows, written_tokens
from analyticup.engine.graph import UNCUT, Node, Status
from analyticup.engine.schedule import Slots, longest_chain, replay, urgent_first
from analyticup.filtering import JUDGE
from analyticup.settings.loading import task_settings
from analyticup.settings.paths import resolve
from analyticup.settings.schema import Settings
from analyticup.training import PREDICT, PRETRAIN, TEACH, TRAIN

# Where the bench has not measured this machine's GPU. By arithmetic an H100 trains on 151 to 242 rows/s at 45 % of its
# rate, and scores 673 to 1,074 rows/s at all of it, of which about half is taken.
ASSUMED: Final = Rates("rates that are assumed for an H100", training=180.0, scoring=450.0)
# Queries that a translator of 7 billion parameters makes on one GPU (assumed).
_TRANSLATED_A_SECOND: Final = 25.0
# Tokens that a model of 14 billion parameters writes on one GPU, in batches of 32 (assumed).
_WRITTEN_A_SECOND: Final = 1000.0
# Of each stage, besides what its model does: files, figures, loading (assumed).
_OTHER_SECONDS: Final = 60.0
# They use all the GPUs of a worker (`machine.devices`).
_ON_ALL: Final = (JUDGE, PRETRAIN, TEACH, TRAIN)
# Shorter stages are not named, as a share of their chain.
_NAMED: Final = 0.02


@dataclass(frozen=True)
class Simulated:
    """A run on several numbers of GPUs: by each, the seconds that it takes, and the idle share of the GPUs' time.

    `basis` says on what they rest; the stages of the `chain` wait for one another, and take `chained` seconds however
    many GPUs there are.
    """

    basis: str
    seconds: dict[int, float]
    idle: dict[int, float]
    chain: list[str]
    chained: float


def simulate(
    settings: Settings, statuses: Sequence[Status], gpus: Iterable[int], pieces: Mapping[str, int]
) -> Simulated:
    """The whole run, however much of it is cached. `pieces`: into how many equal pieces, each on a GPU of its own, the
    work of all stages of a name would be cut."""
    rates = measured_rates(resolve(settings.paths.submissions)) or ASSUMED
    nodes = [status.node for status in statuses]
    taken = {status.node.title: status.artifact.record.seconds for status in statuses if status.artifact}
    basis = f"{len(taken)} of {len(nodes)} stages have run" + f"; the others by {rates.gpu}" * (len(taken) < len(nodes))
    estimated = stage_seconds(settings, nodes, rates)
    trained = stage_seconds(settings, nodes, replace(rates, scoring=math.inf))
    shares = {title: 1 - trained[title] / whole for title, whole in estimated.items()}
    nodes, work = in_pieces(nodes, {**estimated, **taken}, pieces, shares)
    each = settings.machine.devices
    times = {node.title: work[node.title] / (each if node.stage in _ON_ALL else 1) for node in nodes}
    # A machine with eight GPUs has one worker without.
    runs = {
        count: replay(urgent_first(nodes), times, Slots(max(1, count // each), plain=1 + count // 8)) for count in gpus
    }
    done = sum(work[node.title] for node in nodes if node.stage.model)
    chain = longest_chain(nodes, times)
    chained = sum(times[title] for title in chain)
    named = [title for title in chain if times[title] >= _NAMED * chained]
    return Simulated(basis, runs, {count: 1 - done / (count * run) for count, run in runs.items()}, named, chained)


def in_pieces(
    nodes: Sequence[Node], seconds: Mapping[str, float], pieces: Mapping[str, int], shares: Mapping[str, float]
) -> tuple[list[Node], dict[str, float]]:
    """The graph and its seconds, with several nodes in the place of each whose stage is cut. `shares`: how much of a
    stage's time it scores; where one step comes before the shards, they do only that."""
    cut, times = dict[str, list[Node]](), dict[str, float]()
    for node in nodes:
        inputs = {f"{name} {other.title}": other for name, one in node.inputs.items() for other in cut[one.identity]}
        count, whole = pieces.get(node.stage.name, node.cut.pieces), seconds[node.title]
        own, first = replace(node, inputs=inputs, cut=UNCUT), list[Node]()
        if count > 1 and node.cut.first and node.stage.name not in pieces:
            first = [_piece(own, "first")]
            scored = whole * shares[node.title]
            times[first[0].title], whole = whole - scored, scored
            # On one GPU each.
            stage = replace(node.stage, name=f"{node.stage.name} scoring")
            own = replace(own, stage=stage, inputs={**inputs, "first": first[0]})
        made = [_piece(own, f"{number + 1}/{count}") for number in range(count)] if count > 1 else [own]
        times |= {one.title: whole / count for one in made}
        cut[node.identity] = [*first, *made]
    return [one for made in cut.values() for one in made], times


def _piece(node: Node, name: str) -> Node:
    return replace(node, part=replace(node.part, purpose=f"{node.part.purpose} {name}".strip()))


def stage_seconds(settings: Settings, nodes: Sequence[Node], rates: Rates) -> dict[str, float]:
    """By a stage's title, what it would take one GPU."""
    rows = {task: task_rows(task_settings(settings, task), task) for task in settings.tasks}

    def of(node: Node) -> Iterator[float]:
        yield _OTHER_SECONDS
        if node.task in rows:
            yield _model_seconds(task_settings(settings, node.task), rows[node.task], node, rates)

    return {node.title: sum(of(node)) for node in nodes}


def _model_seconds(own: Settings, rows: TaskRows, node: Node, rates: Rates) -> float:
    """Embedding, which takes minutes, is left out."""
    name, epochs, held_out = node.stage.name, own.train.epochs, 1 / own.folds.n
    if name == TRANSLATE.name:
        return (rows.translated - rows.given) / _TRANSLATED_A_SECOND
    if name == PIVOT.name:
        return (rows.translated + rows.asked) / _TRANSLATED_A_SECOND
    if name == REASON.name:
        return written_tokens(own, rows) / _WRITTEN_A_SECOND
    if name == PREDICT.name:
        return rows.asked / rates.scoring
    if name == JUDGE.name and node.part.fold is None:
        return rows.whole * epochs / rates.training + rows.whole / rates.scoring
    if node.part.fold is None:
        held_out = 0.0
    others = 1 - held_out
    if name == PRETRAIN.name:
        return rows.given * epochs / rates.training
    if name == TEACH.name:
        return others * rows.whole * (epochs / rates.training + 1 / rates.scoring)
    if name in (JUDGE.name, TRAIN.name):
        return others * rows.whole * epochs / rates.training + held_out * rows.given / rates.scoring
    return 0.0
