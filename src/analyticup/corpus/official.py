"""The competition's files: their names, and which of them are there."""

from __future__ import annotations

import os
from pathlib import Path

from analyticup.corpus.forms import check_is_file
from analyticup.engine.files import file_sha256
from analyticup.errors import UserError
from analyticup.settings.schema import TASKS, Settings

SCORED_SPLITS = ("dev", "test")


def raw_files(settings: Settings) -> dict[str, Path]:
    """The official files of the run's tasks that are in `data.dir`, by name; raises UserError where one is missing."""
    folder = Path(settings.data.dir or "").expanduser()
    if not folder.is_dir():
        raise UserError(f"data.dir: {folder} is not a folder; put the competition's files into it, or correct the path")
    found = {}
    for task in settings.tasks:
        for name in official_names(task):
            # A dangling link or a folder is a mistake, not an absent file.
            if os.path.lexists(folder / name):
                check_is_file(folder / name)
                found[name] = folder / name
        if f"train_{task}.txt" not in found:
            raise UserError(
                f"{folder}/train_{task}.txt: no such file{alike(folder, f'train_{task}.txt')}; put the competition's "
                f"file there, or leave the task out with tasks=[{', '.join(other for other in TASKS if other != task)}]"
            )
        if not any(f"{split}_{task}.txt" in found for split in SCORED_SPLITS):
            raise UserError(
                f"{folder}: neither dev_{task}.txt nor test_{task}.txt is there; put at least one of them there"
            )
    return found


def alike(folder: Path, name: str) -> str:
    """ " (TRAIN_QC.TXT is there)": the files of which one may be meant, where an official one is not there; or ""."""
    stem, official = name.removesuffix(".txt").casefold(), {known for task in TASKS for known in official_names(task)}
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    near = [other for other in names if other.casefold().startswith(stem) and other not in official]
    return f" ({', '.join(near[:3])} {'is' if len(near) == 1 else 'are'} there)" if near else ""


def official_names(task: str) -> list[str]:
    """File names of a task: the competition's, and the label files that only the report reads."""
    return [*row_names(task), *label_names(task)]


def row_names(task: str) -> list[str]:
    """The competition's files of a task: train, dev, test."""
    return [f"{split}_{task}.txt" for split in ("train", *SCORED_SPLITS)]


def label_names(task: str) -> list[str]:
    """Files with known labels, which only the report reads."""
    return [*(f"{split}_{task}.labels.txt" for split in SCORED_SPLITS), f"train_{task}.truth.txt"]


def hash_files(settings: Settings) -> dict[str, str]:
    """File name -> sha256 of the official files; raises UserError as `raw_files`."""
    return {name: file_sha256(path) for name, path in raw_files(settings).items()}
