"""The submission folder of a run: copies of the submission artifact's files, and a manifest made from the records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analyticup.artifacts import Artifact, file_sha256, is_sealed, remove_unfinished, replace_together, sealed
from analyticup.settings.loading import to_dict
from analyticup.settings.schema import Settings

MANIFEST = "manifest.json"


def publish(folder: Path, settings: Settings, artifacts: Mapping[str, Artifact]) -> list[Path]:
    """Makes `submissions/<name>` hold the run's files; unchanged files are not touched, files of an earlier run that
    this one does not have are removed. Returns the files.

    The final split (test where it was given, else dev) lies at the top, the other one in a folder `dev`. No file takes
    its place before all are written; the manifest, with the sha256 of each, is the last.
    """
    sources, manifest = published_files(artifacts), make_manifest(settings, artifacts)
    text = json.dumps(sealed(manifest), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    path = folder / MANIFEST
    for place in (folder, folder / "dev"):
        remove_unfinished(place)
    with replace_together() as scratch_for:
        for name, source in sources.items():
            if not _same(source, folder / name):
                shutil.copyfile(source, scratch_for(folder / name))
        if not path.is_file() or path.read_bytes() != text.encode("utf-8"):
            scratch_for(path).write_text(text, encoding="utf-8", newline="\n")
        for name in sorted(set(_earlier_files(folder)) - set(sources)):
            (folder / name).unlink(missing_ok=True)
    return [*(folder / name for name in sources), path]


def _earlier_files(folder: Path) -> list[str]:
    """Names that the manifest in a folder lists; none where it was edited, as they are going to be deleted."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return list(manifest["files"]) if is_sealed(manifest) else []


def _same(source: Path, target: Path) -> bool:
    return target.is_file() and file_sha256(target) == file_sha256(source)


def published_splits(artifacts: Mapping[str, Artifact]) -> list[str]:
    """The splits that have a submission, the final one first."""
    return [split for split in ("test", "dev") if (artifacts["submit-all"].folder / split).is_dir()]


def published_files(artifacts: Mapping[str, Artifact]) -> dict[str, Path]:
    """Name below `submissions/<name>` -> the artifact's file that is copied there."""
    submit, splits = artifacts["submit-all"], published_splits(artifacts)
    sources = {"report.html": artifacts["report-all"].file("report.html")}
    for split in splits:
        prefix = "" if split == splits[0] else f"{split}/"
        sources |= {f"{prefix}{path.name}": path for path in sorted((submit.folder / split).iterdir())}
    return sources


def make_manifest(settings: Settings, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """What ran, on which bytes, with which settings: from the artifacts alone, so that a cached run says the same."""
    records = {name: artifact.record for name, artifact in artifacts.items()}
    chosen = {
        task: json.loads(artifacts[f"threshold-{task}"].file("threshold.json").read_text(encoding="utf-8"))
        for task in settings.tasks
    }
    training = next(record for name, record in records.items() if name.startswith("train-"))
    return {
        "name": settings.name,
        "final_split": published_splits(artifacts)[0],
        "files": {name: file_sha256(path) for name, path in sorted(published_files(artifacts).items())},
        "config": to_dict(settings),
        "data": data_sha256(artifacts),
        "model": {
            "backbone": settings.model.backbone,
            "revision": settings.model.revision,
            **training["settings"]["weights"],
        },
        "thresholds": {task: value["value"] for task, value in chosen.items()},
        "thresholds_by_language": {
            task: value["by_language"] for task, value in chosen.items() if value["by_language"]
        },
        "out_of_fold": {task: value["out_of_fold"] for task, value in chosen.items()},
        "environment": records["submit-all"]["environment"],
        "stages": {
            name: {
                "folder": artifacts[name].folder.name,
                "identity": record["identity"],
                "code": record["code"],
                "digest": record["digest"],
                "seconds": record["seconds"],
                "counts": record["counts"],
            }
            for name, record in records.items()
        },
        "seconds": round(sum(record["seconds"] for record in records.values()), 2),
    }


def data_sha256(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """sha256 of each official file that was read, given or generated."""
    if "sample-all" in artifacts:
        files = artifacts["sample-all"].record["files"]
        return {name: entry["sha256"] for name, entry in sorted(files.items())}
    given: dict[str, str] = {}
    for artifact in artifacts.values():
        given |= artifact.record["raw"]
    return dict(sorted(given.items()))
