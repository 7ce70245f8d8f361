"""In place of a training: the adapter of a fold that somebody published, with its held-out scores."""

from __future__ import annotations

import shutil
from pathlib import Path

from analyticup.engine.artifacts import RECORD, Artifact, StageRecord, Unusable, read_artifact
from analyticup.engine.job import Counts, Job
from analyticup.errors import UserError
from analyticup.model.pins import fetched, identity
from analyticup.settings.schema import ModelSettings, Settings
from analyticup.training import training_settings
from analyticup.training.published import STAGES, on_hub


def adopt(job: Job) -> Counts:
    """Copies the fold's adapter and held-out scores from `model.adapters`; counts what their training counted.

    Raises UserError as `published_training`.
    """
    made = published_training(
        _folder(str(job.settings.model.adapters), job), f"train-{job.task}-{job.part}", job.settings
    )
    for name in made.record.files:
        shutil.copyfile(made.file(name), job.out / name)
    return dict(made.record.counts)


def published_training(bundle: Path, title: str, settings: Settings) -> Artifact:
    """What a training wrote, in a bundle's folder; raises UserError where it is missing or damaged, or belongs to
    another base model or prompt than the settings'."""
    folder = bundle / STAGES / title
    record = StageRecord.load(folder / RECORD)
    made = record if isinstance(record, Unusable) else read_artifact(folder, record.identity)
    if isinstance(made, Unusable):
        raise UserError(f"model.adapters: {folder}: {made.reason}; give a whole bundle, made with its adapters")
    if other := _other(made.record, settings):
        raise UserError(f"model.adapters: {folder}: trained with another {other}; use the settings.yaml of its bundle")
    return made


def is_of_base(record: StageRecord, settings: ModelSettings) -> bool:
    """Whether an adapter was trained on these weights; a model of the same shapes would take it without a word."""
    return bool(record.settings.get("weights") == identity(settings))


def _folder(adapters: str, job: Job) -> Path:
    found = on_hub(adapters)
    if found is None:
        return Path(adapters).expanduser()
    return Path(fetched(found.repository, found.commit, [f"{STAGES}/train-{job.task}-*/*"]))


def _other(record: StageRecord, settings: Settings) -> str:
    """What of base model, prompt and layers is not as it was in the adapter's training."""
    ours = training_settings(settings)
    same = {
        "base model (model.backbone, model.revision)": is_of_base(record, settings.model),
        "prompt (prompt.*)": record.settings.get("prompt") == ours["prompt"],
        # Its lower layers would be taken for the backbone's.
        "choice of layers (model.lora.layers)": (record.settings.get("lora") or {}).get("layers")
        == settings.model.lora.layers,
        "head (model.head)": record.settings.get("head") == ours.get("head"),
    }
    return " and another ".join(text for text, is_same in same.items() if not is_same)
