"""In place of a training: the adapter of a fold that somebody published, with its held-out scores."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import snapshot_download

from analyticup.engine.artifacts import RECORD, StageRecord, Unusable, read_artifact
from analyticup.engine.job import Counts, Job
from analyticup.errors import UserError
from analyticup.settings.schema import Settings
from analyticup.training import training_settings
from analyticup.training.published import STAGES, on_hub


def adopt(job: Job) -> Counts:
    """Copies the fold's adapter and held-out scores from `model.adapters`; counts what their training counted.

    Raises UserError where they are missing or damaged, or belong to another base model or prompt.
    """
    folder = _folder(str(job.settings.model.adapters), job) / STAGES / f"train-{job.task}-{job.part}"
    record = StageRecord.load(folder / RECORD)
    made = record if isinstance(record, Unusable) else read_artifact(folder, record.identity)
    if isinstance(made, Unusable):
        raise UserError(f"model.adapters: {folder}: {made.reason}; give a whole bundle, made with its adapters")
    if other := _other(made.record, job.settings):
        raise UserError(f"model.adapters: {folder}: trained with another {other}; use the settings.yaml of its bundle")
    for name in made.record.files:
        shutil.copyfile(folder / name, job.out / name)
    return dict(made.record.counts)


def _folder(adapters: str, job: Job) -> Path:
    found = on_hub(adapters)
    if found is None:
        return Path(adapters).expanduser()
    wanted = [f"{STAGES}/train-{job.task}-*/*"]
    return Path(snapshot_download(found.repository, revision=found.commit, allow_patterns=wanted))


def _other(record: StageRecord, settings: Settings) -> str:
    """What of base model and prompt is not as it was in the adapter's training."""
    ours = training_settings(settings)
    names = {"weights": "base model (model.backbone, model.revision)", "prompt": "prompt (prompt.*)"}
    return " and another ".join(text for name, text in names.items() if record.settings.get(name) != ours[name])
