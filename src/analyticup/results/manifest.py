"""The manifest of a run, made from the records of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar, get_origin, get_type_hints

from analyticup.engine.artifacts import Artifact, is_sealed, sealed
from analyticup.engine.files import file_sha256, json_text, read_json
from analyticup.ensembling.threshold import DECISION, Decision, LanguageThreshold
from analyticup.errors import UserError
from analyticup.metrics import Figures
from analyticup.settings.schema import Settings

MANIFEST = "manifest.json"
# The report as a page. Only a published run has it, as it also says what is in the manifest.
PAGE = "report.html"
T = TypeVar("T")


@dataclass(frozen=True)
class StageEntry:
    """What the manifest says of a stage: its folder's name, and of its record what `StageRecord` calls so."""

    folder: str
    identity: str
    code: int
    digest: str
    seconds: float
    counts: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds: what ran, on which bytes, with which settings.

    `files` are the published files by name and `data` the official files, both -> sha256; `config` are all
    settings; `thresholds`, `thresholds_by_language` (of tasks that have them) and `out_of_fold` are by task, `stages`
    by title; `seconds` is the sum over the stages.
    """

    name: str
    final_split: str
    files: dict[str, str]
    config: dict[str, Any]
    data: dict[str, str]
    model: dict[str, Any]
    thresholds: dict[str, float]
    thresholds_by_language: dict[str, dict[str, LanguageThreshold]]
    out_of_fold: dict[str, Figures]
    environment: dict[str, Any]
    stages: dict[str, StageEntry]
    seconds: float

    @property
    def text(self) -> str:
        """The file's content."""
        return json_text(sealed(asdict(self)), sort_keys=True)

    @classmethod
    def load(cls, folder: Path) -> tuple[Self, bool]:
        """The manifest of a run's folder, and whether it is unchanged; UserError where it is not a manifest."""
        try:
            plain = read_json(folder / MANIFEST)
            stages = {name: _typed(StageEntry, entry) for name, entry in plain["stages"].items()}
            found = _typed(cls, {**plain, "stages": stages})
            names = [*found.files, *found.data, *(entry.folder for entry in found.stages.values())]
            complete = not any(Path(name).is_absolute() or ".." in Path(name).parts for name in names)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            complete = False
        if not complete:
            raise no_manifest(folder)
        return found, is_sealed(plain)


def foreign_manifest(folder: Path) -> str:
    """Why no run may be published in a folder: another program's manifest.json is there; "" where none is."""
    try:
        plain = read_json(folder / MANIFEST)
    except (OSError, ValueError, RecursionError):
        # None, or a damaged one, which is made anew.
        return ""
    if isinstance(plain, dict) and {"stages", "config"} & plain.keys():
        return ""
    return f"{folder}: its {MANIFEST} is not of a run, and would be replaced; take another name or paths.submissions"


def no_manifest(folder: Path) -> UserError:
    return UserError(
        f"{folder / MANIFEST}: no readable manifest; run again, or give a finished run, e.g. submissions/sample"
    )


def _typed(cls: type[T], plain: Mapping[str, Any]) -> T:
    """A dataclass from the values of a JSON object, whatever else it holds; TypeError where one is of another kind."""
    kinds = {name: get_origin(hint) or hint for name, hint in get_type_hints(cls).items()}
    for name, kind in kinds.items():
        if not isinstance(plain[name], (float, int) if kind is float else kind):
            raise TypeError(f"{name} is not a {kind.__name__}")
    return cls(**{name: plain[name] for name in kinds})


def published_splits(artifacts: Mapping[str, Artifact]) -> list[str]:
    """The splits that have a submission, the final one first."""
    return [split for split in ("test", "dev") if (artifacts["submit-all"].folder / split).is_dir()]


def published_files(artifacts: Mapping[str, Artifact]) -> dict[str, Path]:
    """Name below `submissions/<name>` -> the artifact's file that is copied there; the page has no such file."""
    submit, splits = artifacts["submit-all"], published_splits(artifacts)
    sources: dict[str, Path] = {}
    for split in splits:
        prefix = "" if split == splits[0] else f"{split}/"
        sources |= {f"{prefix}{path.name}": path for path in sorted((submit.folder / split).iterdir())}
    return sources


def make_manifest(settings: Settings, artifacts: Mapping[str, Artifact]) -> Manifest:
    """Only from the artifacts, so that a cached run says the same."""
    records = {name: artifact.record for name, artifact in artifacts.items()}
    decisions = {task: Decision.load(artifacts[f"threshold-{task}"].file(DECISION)) for task in settings.tasks}
    training = next(record for name, record in records.items() if name.startswith("train-"))
    backbone = {"backbone": settings.model.backbone, "revision": settings.model.revision}
    return Manifest(
        name=settings.name,
        final_split=published_splits(artifacts)[0],
        files={name: file_sha256(path) for name, path in sorted(published_files(artifacts).items())},
        config=settings.model_dump(),
        data=data_sha256(artifacts),
        model={**backbone, **training.settings["weights"]},
        thresholds={task: decision.value for task, decision in decisions.items()},
        thresholds_by_language={
            task: decision.by_language for task, decision in decisions.items() if decision.by_language
        },
        out_of_fold={task: decision.out_of_fold for task, decision in decisions.items()},
        environment=dict(records["submit-all"].environment),
        stages={name: _stage_entry(artifact) for name, artifact in artifacts.items()},
        seconds=round(sum(record.seconds for record in records.values()), 2),
    )


def _stage_entry(artifact: Artifact) -> StageEntry:
    record = artifact.record
    own = {item.name: getattr(record, item.name) for item in fields(StageEntry) if item.name != "folder"}
    return StageEntry(folder=artifact.folder.name, **own)


def data_sha256(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """sha256 of each official file that was read, given or generated, and of people's decisions."""
    given: dict[str, str] = {}
    if "sample-all" in artifacts:
        given = {name: entry["sha256"] for name, entry in artifacts["sample-all"].record.files.items()}
    for artifact in artifacts.values():
        given |= artifact.record.raw
    return dict(sorted(given.items()))
