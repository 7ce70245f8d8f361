"""What a bundle holds, and how one is opened: a folder, or the zip of it."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from analyticup.engine.artifacts import RECORD, Artifact, StageRecord, Unusable, content_digest, list_files
from analyticup.engine.checksums import check_sums
from analyticup.errors import CheckFailed, UserError
from analyticup.results.manifest import MANIFEST, Manifest
from analyticup.settings.loading import settings_from_dict
from analyticup.settings.schema import Settings
from analyticup.training.published import STAGES

ROWS = "rows"
SUBMISSION = "submission"
DATA = "data"
DECISIONS = "decisions"
LOCKS = "requirements"
SETTINGS = "settings.yaml"
CARD = "README.md"
ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, whose files are those of its checksums."""

    folder: Path
    manifest: Manifest

    @property
    def config_place(self) -> str:
        """Where its settings are, for error messages."""
        return f"{self.folder / MANIFEST}: config"

    def settings(self, overrides: Sequence[str] = ()) -> Settings:
        """Those of the run, with overrides on top."""
        return settings_from_dict(self.manifest.config, self.config_place, list(overrides))

    def published(self, name: str) -> Path:
        """A file of the run's submissions folder; of those without texts every bundle has it."""
        return self.folder / SUBMISSION / name

    @property
    def has_adapters(self) -> bool:
        return any(self.folder.glob(f"{STAGES}/train-*/{ADAPTER}"))

    @property
    def has_rows(self) -> bool:
        return (self.folder / DATA).is_dir()

    def artifact(self, title: str) -> Artifact:
        """What a stage wrote, or of an ingest stage the rows without their texts; UserError where that is not in it."""
        name, _, task = title.partition("-")
        if name == "ingest":
            folder = self.folder / ROWS / task
            return Artifact(folder, StageRecord(stage=name, task=task, digest=content_digest(list_files(folder))))
        folder = self.folder / STAGES / title
        record = StageRecord.load(folder / RECORD)
        if isinstance(record, Unusable):
            raise UserError(
                f"{folder}: the run that was bundled had no stage {title}, which these settings need; take the "
                f"ensemble.method of its settings.yaml, or run it anew with these settings"
            )
        return Artifact(folder, record)


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """A bundle's folder, or its zip unpacked into a scratch folder of the system's.

    Raises UserError where there is none, and CheckFailed, naming each file, where one is missing, changed or unknown.
    """
    if not path.is_file():
        yield _checked(path)
        return
    with tempfile.TemporaryDirectory(prefix="analyticup-bundle-") as scratch:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(scratch)
        except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError) as error:
            raise CheckFailed(f"{path}: no readable zip ({error}); fetch it anew") from None
        yield _checked(Path(scratch))


def _checked(folder: Path) -> Bundle:
    faults = list(check_sums(folder))
    if faults:
        raise CheckFailed("\n".join(f"{folder}: {fault}; fetch the bundle anew" for fault in faults))
    manifest, intact = Manifest.load(folder)
    if not intact:
        raise CheckFailed(f"{folder / MANIFEST}: it was edited, or is of another version; fetch the bundle anew")
    return Bundle(folder, manifest)
