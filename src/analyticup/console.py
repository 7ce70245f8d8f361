"""What the commands that run stages share: the lock, the checks before them, the progress lines, the comparison with
expected figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from analyticup.engine.artifacts import Artifact
from analyticup.engine.execution import Done, execute
from analyticup.engine.files import clean_cache, lock, remove_unfinished
from analyticup.engine.graph import SHARDS, Node, Status, inspect
from analyticup.engine.workers import Runner
from analyticup.errors import ADVICE, UserError
from analyticup.settings.paths import PROJECT, resolve
from analyticup.settings.schema import Settings
from analyticup.training import PREDICT
from analyticup.verdict import Verdict

if TYPE_CHECKING:
    from rich.console import Console

# By name, as the checks import torch.
BLOCKERS: Final = "analyticup.checks.preflight:blockers"


@contextlib.contextmanager
def exclusive_run(settings: Settings, console: Console) -> Iterator[None]:
    """Holds the artifacts folder and clears what interrupted runs left in it; UserError where another run has it."""
    artifacts = resolve(settings.paths.artifacts)
    with lock(artifacts):
        left = [*_clear(artifacts), *clean_cache(resolve(settings.paths.cache))]
        for name in left:
            console.print(f"removed {name}, left half-made by an interrupted run")
        try:
            yield
        except BrokenPipeError:
            raise UserError(f"nobody reads this program's output any more, so it ended; {ADVICE}") from None
        finally:
            # What the stages shared, and what those that were ended left.
            _clear(artifacts)


def _clear(artifacts: Path) -> list[str]:
    folders = (artifacts, *(artifacts / SHARDS).glob("*"))
    return [name for folder in folders for name in remove_unfinished(folder)]


def run_stages(
    settings: Settings,
    nodes: Sequence[Node],
    environment: Mapping[str, Any],
    runner: Runner,
    console: Console,
    given: Sequence[Status] = (),
    checked: bool = False,
) -> dict[str, Artifact]:
    """Runs the nodes that are not cached and shows them; their artifacts by title, in the order of the nodes. Before
    the first that runs, UserError as by `refuse_blocked`, unless that was `checked`. For the rest see `execute`."""
    steps = execute(settings, nodes, environment, runner, given)
    if not checked:
        steps = _once_checked(steps, settings, nodes, runner, console)
    return _show(console, steps, [node.title for node in nodes])


def refuse_blocked(settings: Settings, nodes: Sequence[Node], runner: Runner, console: Console, what: str) -> bool:
    """Says what `check` would find to block the nodes later, before any of them runs: as a UserError, in which `what`
    names them. Hashes those that are cached; False where all are, so that there was nothing to look at."""
    waiting = (one.node for one in inspect(nodes, resolve(settings.paths.artifacts)) if one.artifact is None)
    if (first := next(waiting, None)) is not None:
        _refuse(settings, nodes, first, runner, console, f"{what}: ")
    return first is not None


def _once_checked(
    steps: Iterable[Status | Done], settings: Settings, nodes: Sequence[Node], runner: Runner, console: Console
) -> Iterator[Status | Done]:
    checked = False
    for step in steps:
        if not checked and isinstance(step, Status) and step.artifact is None:
            checked = True
            _refuse(settings, nodes, step.node, runner, console)
        yield step


def _refuse(
    settings: Settings, nodes: Sequence[Node], first: Node, runner: Runner, console: Console, where: str = ""
) -> None:
    """`first` is the first of the nodes that runs. Where none of them scores rows, none takes long, and the checks'
    imports would be most of it."""
    places = [place for place, node in enumerate(nodes) if node.stage.name == PREDICT.name]
    if not places:
        return
    models = {node.identity for node in nodes[: places[-1] + 1]}
    blocking = []
    for finding in runner.ask(BLOCKERS, settings, first.identity in models):
        if finding.verdict == Verdict.FAIL:
            blocking.append(f"{where}{finding.text}")
        else:
            console.print(f"{finding.verdict}: {where}{finding.text}", soft_wrap=True)
    if blocking:
        raise UserError("\n".join([*blocking, "nothing was started; `./run.sh check` shows all findings"]))


def _show(console: Console, steps: Iterable[Status | Done], titles: Sequence[str]) -> dict[str, Artifact]:
    """Shows the stages with these titles as they start and end: a line for each on `console`, and on a terminal one
    display of all of them; their artifacts, in that order."""
    from analyticup.engine.view import run_view

    number, artifacts = 0, dict[str, Artifact]()
    with run_view(console, titles) as view:
        for step in steps:
            if isinstance(step, Status):
                number += 1
                if view:
                    view.starts(step.node.title)
                state = "cached" if step.artifact else f"running ({step.reason})"
                if step.artifact or not view:
                    console.print(f"[{number}/{len(titles)}] {step.node.title}: {state}")
                continue
            artifacts[step.status.node.title] = step.artifact
            if view:
                view.ends(step.status.node.title)
            if step.ran:
                _print_outcome(console, step, short=view is not None)
    # They came in the order in which they were done.
    return {title: artifacts[title] for title in titles}


def _print_outcome(console: Console, step: Done, short: bool) -> None:
    """What a stage counted and the time it took; `short`: as much as one line of the window holds."""
    from analyticup.report.tables import describe_counts

    record = step.artifact.record
    text = f"    {step.status.node.title}: {record.seconds:.1f} s: {describe_counts(record.counts)}"
    console.print(text, no_wrap=short, overflow="ellipsis" if short else None)


def compare_with_expected(
    console: Console, name: str, settings: Settings, figures: Mapping[str, float], data: Mapping[str, str]
) -> bool:
    """Prints how the figures compare with configs/expected.yaml; True where one fails."""
    from analyticup.results.expected import compare

    found = compare(name, settings, figures, data, PROJECT / "configs")
    for item in found:
        console.print(str(item), soft_wrap=True)
    return any(item.verdict == Verdict.FAIL for item in found)
