"""What the commands that run stages share: the lock, the progress lines, the comparison with expected figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from analyticup.engine.artifacts import Artifact
from analyticup.engine.execution import Done
from analyticup.engine.files import clean_cache, lock, remove_unfinished
from analyticup.engine.graph import Status
from analyticup.errors import ADVICE, UserError
from analyticup.settings.paths import PROJECT, resolve
from analyticup.settings.schema import Settings
from analyticup.verdict import Verdict

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def exclusive_run(settings: Settings, console: Console) -> Iterator[None]:
    """Holds the artifacts folder and clears what interrupted runs left in it; UserError where another run has it."""
    artifacts = resolve(settings.paths.artifacts)
    with lock(artifacts):
        left = [*remove_unfinished(artifacts), *clean_cache(resolve(settings.paths.cache))]
        for name in left:
            console.print(f"removed {name}, left half-made by an interrupted run")
        try:
            yield
        except BrokenPipeError:
            raise UserError(f"nobody reads this program's output any more, so it ended; {ADVICE}") from None
        finally:
            # What the stages shared.
            remove_unfinished(artifacts)


def show_execution(
    console: Console, steps: Iterable[Status | Done], titles: Sequence[str], artifacts: dict[str, Artifact]
) -> None:
    """Shows the stages with these titles as they start and end: a line for each on `console`, and on a terminal one
    display of all of them; puts the artifacts into `artifacts`, by title."""
    from analyticup.engine.view import run_view

    number = 0
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
