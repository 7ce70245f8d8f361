"""What a stage is given when it runs, and what it gives back."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyticup.engine.artifacts import Artifact
from analyticup.engine.graph import Part
from analyticup.settings.paths import decisions_folder, decisions_name
from analyticup.settings.schema import TASKS, Settings
from analyticup.tracking import Made, comparable, log_lineage, tracked_run

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

# Nested plain numbers and texts, for the record and the summary.
Counts = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One stage to run. `settings` are those of its task; `out` is its scratch folder; `files` maps the official file
    names that exist to their paths; `source` loads the run's models.

    `group`, `tags` and `made` are what the run and this stage are called in W&B.

    `shards` are those of its work, where it was done in several: the stage puts them together. In one of them
    `part.shard` says which it is.

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
    made: Made | None = None
    tags: tuple[str, ...] = ()
    shards: tuple[Artifact, ...] = ()

    @property
    def fold(self) -> int:
        """The fold of a stage that runs once per fold."""
        assert self.part.fold is not None, self.title
        return self.part.fold

    @property
    def title(self) -> str:
        return f"{self.task} {self.part}".strip()


@contextlib.contextmanager
def tracked_stage(job: Job, job_type: str, rows: Mapping[str, int]) -> Iterator[Run | None]:
    """The W&B run of a stage, or None where tracking is off: its settings, its numbers of `rows`, its lineage."""
    own, part = job.settings, str(job.part)
    name = "/".join(filter(None, (own.name, job.task, "-".join(filter(None, (job_type, part))))))
    config = {"task": job.task, "part": part, "rows": dict(rows), "settings": comparable(own)}
    with tracked_run(own.tracking, job.logs, job.group, name, config, job_type, job.tags) as run:
        yield run
        if run is not None:
            log_lineage(run, [made_of(one) for one in job.inputs.values()], [job.made] if job.made else [])


def made_of(artifact: Artifact) -> Made:
    """A stage's folder as W&B knows it."""
    record = artifact.record
    return Made(record.stage, "-".join(filter(None, (record.stage, record.task, record.part))), record.identity)


def given_files(settings: Settings, names: Collection[str], sample: Artifact | None) -> dict[str, Path]:
    """File name -> path of the files called `names`, and of all that the sample corpus consists of; `settings` are
    those of a task where decisions are among the names."""
    found = {path.name: path for path in sample.folder.glob("*.txt")} if sample else {}
    decided, given = decisions_folder(settings), {decisions_name(task) for task in TASKS}.intersection(names)
    found |= {name: decided / name for name in given if decided}
    if settings.data.dir is not None:
        found |= {name: Path(settings.data.dir).expanduser() / name for name in names if name not in given}
    return found
