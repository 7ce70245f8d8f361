"""The submission folder of a run: copies of the submission artifact's files, and a manifest made from the records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analyticup.artifacts import Artifact, file_sha256, remove_unfinished, replace_together
from analyticup.config import Settings
from analyticup.config_loading import to_dict

MANIFEST = "manifest.json"


def publish(folder: Path, settings: Settings, artifacts: Mapping[str, Artifact]) -> list[Path]:
    """Makes `submissions/<name>` hold the run's files; unchanged files are not touched, files of an earlier run that
    this one does not have are removed. Returns the files.

    The final split (test where it was given, else dev) lies at the top, the other one in a folder `dev`. No file takes
    its place before all are written; the manifest, with the sha256 of each, is the last.
    """
    submit, report = artifacts["submit-all"], artifacts["report-all"]
    splits = [split for split in ("test", "dev") if (submit.folder / split).is_dir()]
    sources = {"report.html": report.file("report.html")}
    for split in splits:
        prefix = "" if split == splits[0] else f"{split}/"
        sources |= {f"{prefix}{path.name}": path for path in sorted((submit.folder / split).iterdir())}
    manifest = make_manifest(
        settings, artifacts, splits[0], {name: file_sha256(path) for name, path in sources.items()}
    )
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    path = folder / MANIFEST
    for place in (folder, folder / "dev"):
        remove_unfinished(place)
    with replace_together() as scratch_for:
        for name, source in sources.items():
            if not _same(source, folder / name):
                shutil.copyfile(source, scratch_for(folder / name))
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            scratch_for(path).write_text(text, encoding="utf-8", newline="\n")
        for name in sorted(set(_earlier_files(folder)) - set(sources)):
            (folder / name).unlink(missing_ok=True)
    return [*(folder / name for name in sources), path]


def _earlier_files(folder: Path) -> list[str]:
    try:
        names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return [name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _same(source: Path, target: Path) -> bool:
    return target.is_file() and file_sha256(target) == file_sha256(source)


def make_manifest(
    settings: Settings, artifacts: Mapping[str, Artifact], final_split: str, files: Mapping[str, str]
) -> dict[str, Any]:
    """What ran, on which bytes, with which settings: from the records alone, so that a cached run says the same."""
    records = {name: artifact.record for name, artifact in artifacts.items()}
    chosen = {
        task: json.loads(artifacts[f"threshold-{task}"].file("threshold.json").read_text(encoding="utf-8"))
        for task in settings.tasks
    }
    training = next(record for name, record in records.items() if name.startswith("train-"))
    return {
        "name": settings.name,
        "final_split": final_split,
        "files": dict(sorted(files.items())),
        "config": to_dict(settings),
        "data": _data_sha256(artifacts),
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
                "digest": record["digest"],
                "seconds": record["seconds"],
                "counts": record["counts"],
            }
            for name, record in records.items()
        },
        "seconds": round(sum(record["seconds"] for record in records.values()), 2),
    }


def _data_sha256(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """sha256 of each official file that was read, given or generated."""
    if "sample-all" in artifacts:
        files = artifacts["sample-all"].record["files"]
        return {name: entry["sha256"] for name, entry in sorted(files.items())}
    given: dict[str, str] = {}
    for artifact in artifacts.values():
        given |= artifact.record["raw"]
    return dict(sorted(given.items()))
