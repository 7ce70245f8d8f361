"""A stage's folder: its fingerprint, its atomic publication, its record, and the lock on the artifacts folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyticup.errors import UserError

RECORD = "record.json"
SEAL = "sha256_of_the_rest"
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
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD)
    return {
        path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in files
    }


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object as it is read back from a file, with the sha256 of all its values, by which an edit is found."""
    plain = json.loads(json.dumps(content))
    return {**plain, SEAL: _seal(plain)}


def is_sealed(content: Any) -> bool:
    """Whether a value read from JSON is what `sealed` gave; formatting and the order of keys play no part."""
    return isinstance(content, dict) and content.get(SEAL) == _seal(content)


def _seal(content: Mapping[str, Any]) -> str:
    text = json.dumps({name: value for name, value in content.items() if name != SEAL}, sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


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
    with replace_together() as scratch_for:
        scratch_for(path).write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def replace_together() -> Iterator[Callable[[Path], Path]]:
    """Yields a function that gives the scratch file to write in place of a path; all of them take their places at the
    end, in that order, or vanish on any error."""
    scratches: dict[Path, Path] = {}

    def scratch_for(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return scratches.setdefault(path, path.with_name(f"{SCRATCH_PREFIX}{path.name}"))

    try:
        yield scratch_for
        for path, scratch in scratches.items():
            os.replace(scratch, path)
    except BaseException:
        for scratch in scratches.values():
            scratch.unlink(missing_ok=True)
        raise


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

    Every file is hashed; a folder that was damaged, added to or edited, or that belongs to another identity, is never
    used.
    """
    if not folder.is_dir():
        return "not made yet"
    record = _read_record(folder / RECORD)
    if isinstance(record, str):
        return record
    if record.get("identity") != identity:
        return "its record belongs to other settings"
    return _damage(folder, record["files"]) or Artifact(folder, record)


def _read_record(path: Path) -> dict[str, Any] | str:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "its record is missing or unreadable"
    if not is_sealed(record):
        return "its record was edited, or written by an earlier version"
    return record


def _damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    """What is wrong with the files of a folder, or "" where they are those of its record and no others."""
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"its file {name} has another size than recorded"
        if file_sha256(path) != entry["sha256"]:
            return f"its file {name} has another content than recorded"
    foreign = foreign_names(folder, {RECORD, *files})
    return f"it holds {foreign[0]}, which its stage did not write" if foreign else ""


def foreign_names(folder: Path, names: Collection[str]) -> list[str]:
    """What stands under a folder besides the files `names` and the folders that they are in."""
    known = {folder / name for name in names}
    known |= {parent for path in known for parent in path.parents}
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path not in known)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """The record of a stage folder: what is given, plus the files with sha256 and size, their common digest, and the
    record's own sha256."""
    files = list_files(folder)
    full = sealed({**record, "files": files, "digest": content_digest(files)})
    text = json.dumps(full, indent=1, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def lock(artifacts: Path, waits: bool = False) -> Iterator[None]:
    """Holds the artifacts folder for one run; where another run holds it, `waits` for that or raises UserError."""
    import fcntl

    artifacts.mkdir(parents=True, exist_ok=True)
    with (artifacts / ".lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{artifacts}: another run is using this artifacts folder; wait for it, or give this one its own with "
                f"paths.artifacts=FOLDER"
            ) from None
        yield


def remove_unfinished(folder: Path) -> list[str]:
    """Deletes what interrupted runs left half-made; returns the names. Call it with the lock held."""
    leftovers = sorted(folder.glob(f"{SCRATCH_PREFIX}*"))
    for path in leftovers:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [path.name for path in leftovers]


def clean_cache(cache: Path) -> list[str]:
    """`remove_unfinished` for a cache, which several artifacts folders may share; nothing while one fills it."""
    if not any(cache.glob(f"{SCRATCH_PREFIX}*")):
        return []
    try:
        with lock(cache):
            return remove_unfinished(cache)
    except UserError:
        return []
