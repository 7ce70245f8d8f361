"""A stage's folder: its fingerprint, its atomic publication, its record, and the lock on the artifacts folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyticup.errors import UserError

RECORD = "record.json"
SCRATCH_PREFIX = ".unfinished-"


def fingerprint(parts: Mapping[str, Any]) -> str:
    """sha256 (hex) of a value made of dicts, lists, strings, ints, finite floats, bools and None.

    Raises TypeError or ValueError for anything else, so that nothing is left out of an identity by accident.
    """
    text = json.dumps(_checked(parts), sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _checked(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a fingerprint's keys must be strings")
        return {key: _checked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(item) for item in value]
    raise TypeError(f"a fingerprint cannot hold {type(value).__name__}: {value!r}")


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and size in bytes of every file under a folder, by relative path, the record left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {
        path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in files
    }


def content_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One sha256 over the names and sha256 of an artifact's files."""
    return fingerprint({name: str(entry["sha256"]) for name, entry in files.items()})


@contextlib.contextmanager
def publish_folder(folder: Path) -> Iterator[Path]:
    """Yields a scratch folder beside `folder` that becomes `folder` by one rename, or vanishes on any error.

    A folder that stands there already is replaced only at that moment.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.parent / f"{SCRATCH_PREFIX}{folder.name}"
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir()
    try:
        yield scratch
        _sync(scratch)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file (UTF-8, LF) so that a reader sees the old bytes or the new ones, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{SCRATCH_PREFIX}{path.name}")
    scratch.write_text(text, encoding="utf-8", newline="\n")
    os.replace(scratch, path)


@dataclass(frozen=True)
class Artifact:
    """A finished stage folder with its record."""

    folder: Path
    record: dict[str, Any]

    @property
    def digest(self) -> str:
        return str(self.record["digest"])

    def file(self, name: str) -> Path:
        return self.folder / name


def read_artifact(folder: Path, identity: str) -> Artifact | str:
    """The finished artifact of a folder, or the reason why there is none (one short phrase).

    Sizes are compared with the record; a folder that belongs to another identity is never used.
    """
    record_path = folder / RECORD
    if not folder.is_dir():
        return "not made yet"
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        files = {name: int(entry["bytes"]) for name, entry in record["files"].items()}
        complete = isinstance(record["digest"], str) and isinstance(record["inputs"], dict)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return "its record is missing or unreadable"
    if not complete or record.get("identity") != identity:
        return "its record belongs to other settings"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if path.stat().st_size != size:
            return f"its file {name} has another size than recorded"
    return Artifact(folder, record)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """The record of a stage folder: what is given, plus the files with sha256 and size, and their common digest."""
    files = list_files(folder)
    full = {**record, "files": files, "digest": content_digest(files)}
    text = json.dumps(full, indent=1, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def lock(artifacts: Path) -> Iterator[None]:
    """Holds the artifacts folder for one run; raises UserError where another run holds it."""
    import fcntl

    artifacts.mkdir(parents=True, exist_ok=True)
    with (artifacts / ".lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{artifacts}: another run is using this artifacts folder; wait for it, or give this one its own with "
                f"paths.artifacts=FOLDER"
            ) from None
        yield


def remove_unfinished(artifacts: Path) -> list[str]:
    """Deletes what interrupted runs left half-made; returns the names. Call it with the lock held."""
    leftovers = sorted(path for path in artifacts.glob(f"{SCRATCH_PREFIX}*"))
    for path in leftovers:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [path.name for path in leftovers]
