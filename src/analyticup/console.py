"""What the commands that run stages share: the lock, the progress lines, the comparison with expected figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
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
    """Holds the artifacts folder, without what interrupted runs left; UserError where another run has it."""
    artifacts = resolve(settings.paths.artifacts)
    with lock(artifacts):
        left = [*remove_unfinished(artifacts), *clean_cache(resolve(settings.paths.cache))]
        for name in left:
            console.print(f"removed {name}, left half-made by an interrupted run")
        yield


def show_execution(console: Console, steps: object, total: int, artifacts: dict[str, Artifact]) -> None:
    from analyticup.report.tables import describe_counts

    number = 0
    for step in steps:  # type: ignore[attr-defined]
        if isinstance(step, Status):
            number += 1
            state = "cached" if step.artifact else f"running ({step.reason})"
            console.print(f"[{number}/{total}] {step.node.title}: {state}")
        elif isinstance(step, Done):
            artifacts[step.status.node.title] = step.artifact
            if step.ran:
                record = step.artifact.record
                title, told = step.status.node.title, describe_counts(record.counts)
                console.print(f"    {title}: {record.seconds:.1f} s: {told}")


def compare_with_expected(
    console: Console, name: str, settings: Settings, figures: Mapping[str, float], data: Mapping[str, str]
) -> bool:
    """Says how the figures compare with configs/expected.yaml; True where one fails."""
    from analyticup.results.expected import compare

    found = compare(name, settings, figures, data, PROJECT / "configs")
    for item in found:
        console.print(str(item), soft_wrap=True)
    return any(item.verdict == Verdict.FAIL for item in found)
