"""What a stage is given when it runs, and what it gives back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analyticup.engine.artifacts import Artifact
from analyticup.engine.graph import Part
from analyticup.settings.paths import decisions_folder, decisions_name
from analyticup.settings.schema import TASKS, Settings

# Nested plain numbers and texts, for the record and the summary.
Counts = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One stage to run. `settings` are those of its task; `out` is its scratch folder; `files` maps the official file
    names that exist to their paths; `source` loads the run's models.

    `resume_file` is where a stage may keep what it resumes from after an interruption; the engine removes it when the
    stage is done. `resume_identity` hashes all that must be the same then, except the device.
    """

    task: str
    part: Part
    settings: Settings
    inputs: Mapping[str, Artifact]
    out: Path
    files: Mapping[str, Path]
    cache: Path
    logs: Path
    group: str
    resume_file: Path
    resume_identity: str
    source: Any = field(repr=False)

    @property
    def fold(self) -> int:
        """The fold of a stage that runs once per fold."""
        assert self.part.fold is not None, self.title
        return self.part.fold

    @property
    def title(self) -> str:
        return f"{self.task} {self.part}".strip()


def given_files(settings: Settings, names: Collection[str], sample: Artifact | None) -> dict[str, Path]:
    """File name -> path of the files called `names`, and of all that the sample corpus consists of; `settings` are
    those of a task where decisions are among the names."""
    found = {path.name: path for path in sample.folder.glob("*.txt")} if sample else {}
    decided, given = decisions_folder(settings), {decisions_name(task) for task in TASKS}.intersection(names)
    found |= {name: decided / name for name in given if decided}
    if settings.data.dir is not None:
        found |= {name: Path(settings.data.dir).expanduser() / name for name in names if name not in given}
    return found
