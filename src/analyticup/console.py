"""What the commands that run stages share: the lock, the progress lines, the comparison with expected figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from analyticup.engine.artifacts import Artifact
from analyticup.engine.execution import Done
from analyticup.engine.files import clean_cache, lock, remove_unfinished
from analyticup.engine.graph import Status
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
        finally:
            # What the stages shared.
            remove_unfinished(artifacts)


def show_execution(
    console: Console, steps: Iterable[Status | Done], total: int, artifacts: dict[str, Artifact]
) -> None:
    """Prints a line as each stage starts and ends; puts the artifacts into `artifacts`, by title."""
    from analyticup.report.tables import describe_counts

    number = 0
    for step in steps:
        if isinstance(step, Status):
            number += 1
            state = "cached" if step.artifact else f"running ({step.reason})"
            console.print(f"[{number}/{total}] {step.node.title}: {state}")
        else:
            artifacts[step.status.node.title] = step.artifact
            if step.ran:
                record = step.artifact.record
                counts = describe_counts(record.counts)
                console.print(f"    {step.status.node.title}: {record.seconds:.1f} s: {counts}")


def compare_with_expected(
    console: Console, name: str, settings: Settings, figures: Mapping[str, float], data: Mapping[str, str]
) -> bool:
    """Prints how the figures compare with configs/expected.yaml; True where one fails."""
    from analyticup.results.expected import compare

    found = compare(name, settings, figures, data, PROJECT / "configs")
    for item in found:
        console.print(str(item), soft_wrap=True)
    return any(item.verdict == Verdict.FAIL for item in found)
