"""`./run.sh bundle`: all that somebody else needs of a finished run, and nothing else, as a folder and a zip."""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pandas import DataFrame

from analyticup.corpus.official import official_names
from analyticup.corpus.rows import SPLITS, load_rows, save_rows
from analyticup.engine.artifacts import RECORD, Artifact
from analyticup.engine.checksums import SUMS, write_sums
from analyticup.engine.files import file_sha256, publish_folder, replace_file, write_zip
from analyticup.engine.job import given_files
from analyticup.errors import CheckFailed, UserError
from analyticup.filtering import decision_files
from analyticup.report.figures import REPORT, Report
from analyticup.results.manifest import MANIFEST, PAGE, Manifest, published_files
from analyticup.results.verify import PLACES, read_stages, verify_run
from analyticup.settings.loading import settings_from_dict
from analyticup.settings.paths import PROJECT
from analyticup.settings.schema import (
    TASKS,
    BundleSettings,
    FilterSettings,
    MachineSettings,
    PathSettings,
    Settings,
    TrackingSettings,
)
from analyticup.sharing.card import model_card
from analyticup.sharing.layout import ADAPTER, CARD, DATA, DECISIONS, LOCKS, ROWS, SETTINGS, SUBMISSION
from analyticup.training.published import STAGES
from analyticup.verdict import Verdict

# Without any text of a row.
SHARED = ("train", "predict", "ensemble", "threshold", "neighbours", "features", "bi_encoder")
OPTIONS = ("bundle.rows", "bundle.adapters")
# In the place of the folder that the run read, which is nobody else's business.
DATA_DIR = "data"
_DECIDED = "filter.decisions"


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run that `verify` finds nothing wrong with: its folder, its settings on this machine and its stages."""

    folder: Path
    manifest: Manifest
    settings: Settings
    stages: Mapping[str, Artifact]

    @classmethod
    def load(cls, folder: Path, overrides: list[str]) -> FinishedRun:
        """Raises UserError where there is no finished run or a stage is gone, CheckFailed for what `verify` finds."""
        allowed = (*PLACES, *OPTIONS)
        if wrong := [text for text in overrides if text.partition("=")[0] not in allowed]:
            raise UserError(
                f"argument {wrong[0]!r}: the settings are the manifest's; only {', '.join(allowed)} can be given"
            )
        manifest, _ = Manifest.load(folder)
        settings = settings_from_dict(manifest.config, f"{folder / MANIFEST}: config", overrides)
        places = [text for text in overrides if text.partition("=")[0] in PLACES]
        faults = [item for item in verify_run(folder, places) if item.verdict == Verdict.FAIL]
        if faults:
            raise CheckFailed("\n".join(f"not bundled: {item.what}: {item.text}" for item in faults))
        stages = read_stages(manifest, settings)
        usable = {title: stage for title, stage in stages.items() if isinstance(stage, Artifact)}
        if gone := sorted(stages.keys() - usable.keys()):
            raise UserError(
                f"{settings.paths.artifacts}: the stages {', '.join(gone)} are not there; say where they are with "
                f"paths.artifacts=FOLDER, or run again"
            )
        return cls(folder, manifest, settings, usable)


def write_bundle(run: FinishedRun, folder: Path) -> None:
    """Makes `folder` the bundle of a run; the same run gives the same bytes. UserError where other files are there."""
    if folder.exists() and not (folder / SUMS).is_file():
        raise UserError(f"{folder}: is there already and no bundle; give another folder with --out")
    portable = portable_settings(run.settings)
    manifest = dataclasses.replace(run.manifest, config=portable.model_dump())
    report = run.stages["report-all"].file(REPORT)
    with publish_folder(folder) as scratch:
        (scratch / MANIFEST).write_text(manifest.text, encoding="utf-8", newline="\n")
        settings = yaml.safe_dump(portable.model_dump(), allow_unicode=True, sort_keys=False)
        (scratch / SETTINGS).write_text(settings, encoding="utf-8", newline="\n")
        for name, source in _files(run):
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, scratch / name)
        for task in run.settings.tasks:
            _without_texts(run.stages[f"ingest-{task}"], scratch / ROWS / task)
        card = model_card(manifest, portable, Report.load(report), run.settings.bundle)
        (scratch / CARD).write_text(card, encoding="utf-8", newline="\n")
        write_sums(scratch)


def zip_folder(folder: Path, out: Path) -> None:
    """A zip of a folder's files, below the folder's name left out; the same files give the same bytes."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with replace_file(out) as scratch:
        write_zip(scratch, {name: folder / name for name in names})


def is_packed(path: Path) -> bool:
    """Whether a file is the zip of a bundle, or of a code submission, which has one in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).name == SUMS for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def portable_settings(settings: Settings) -> Settings:
    """The settings without what is of this machine: all that can change a figure is as it was."""
    own: dict[str, Any] = {"paths": PathSettings(), "machine": MachineSettings(), "tracking": TrackingSettings()}
    own |= {task: {key: value for key, value in getattr(settings, task).items() if key != _DECIDED} for task in TASKS}
    data_dir = None if settings.data.dir is None else DATA_DIR
    places = {"data.dir": data_dir, _DECIDED: FilterSettings().decisions}
    return settings.replace(**own, bundle=BundleSettings(), **places)


def _files(run: FinishedRun) -> Iterator[tuple[str, Path]]:
    """Name in the bundle -> file, for all that is copied."""
    for title, stage in run.stages.items():
        if stage.record.stage in SHARED and "filter" not in stage.record.part:
            for name in (RECORD, *stage.record.files):
                if name != ADAPTER or run.settings.bundle.adapters:
                    yield f"{STAGES}/{title}/{name}", stage.file(name)
    yield REPORT, run.stages["report-all"].file(REPORT)
    for path in sorted((PROJECT / ".ci").glob("requirements*.lock")):
        yield f"{LOCKS}/{path.name}", path
    rows = run.settings.bundle.rows
    for name, path in published_files(run.stages).items():
        if rows or Path(name).name.startswith("scores_"):
            yield f"{SUBMISSION}/{name}", path
    for name, path in decision_files(run.settings).items():
        if run.manifest.data.get(name) == file_sha256(path):
            yield f"{DECISIONS}/{name}", path
    if rows:
        # It may show texts of rows.
        yield f"{SUBMISSION}/{PAGE}", run.folder / PAGE
        names = [name for task in run.settings.tasks for name in official_names(task) if name in run.manifest.data]
        given = given_files(run.settings, names, run.stages.get("sample-all"))
        yield from ((f"{DATA}/{name}", given[name]) for name in names)


def _without_texts(ingested: Artifact, folder: Path) -> None:
    """The rows tables of a task with row id, language and label alone: what a threshold is chosen on."""
    for split in SPLITS:
        path = ingested.file(f"{split}.parquet")
        if path.exists():
            save_rows(_blank(load_rows(path)), folder / path.name)


def _blank(rows: DataFrame) -> DataFrame:
    return rows.assign(**{name: "" for name in ("query", "target", "group")})
