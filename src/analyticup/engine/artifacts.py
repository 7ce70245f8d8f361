"""A stage's folder: its fingerprint, its record, and whether it still is what its record says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self, TypedDict, TypeVar

from analyticup.engine.files import file_sha256, read_json, write_json
from analyticup.errors import UserError

RECORD = "record.json"
# Fields of records that older ones may lack: their folders are as good.
LATER = {"memory", "started"}
SEAL = "sha256_of_the_rest"
# So long NFS may show what was there before (acdirmax), and some more.
STALE_SECONDS: Final = 90.0


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


class FileFacts(TypedDict):
    """What a record says of a file; `bytes` is its size."""

    sha256: str
    bytes: int


def list_files(folder: Path) -> dict[str, FileFacts]:
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


def content_digest(files: Mapping[str, FileFacts]) -> str:
    """One sha256 over the names and sha256 of an artifact's files."""
    return fingerprint({name: str(entry["sha256"]) for name, entry in files.items()})


@dataclass(frozen=True)
class Unusable:
    """Why a folder cannot be used, in one short phrase."""

    reason: str


class _RecordFile:
    """record.json, whose keys are a dataclass's fields in their order."""

    def save(self, folder: Path) -> None:
        """Writes the record of a folder, with its files as they are now and the record's own sha256."""
        files = list_files(folder)
        found = {"files": files, "digest": content_digest(files)}
        write_json(folder / RECORD, sealed({**vars(self), **found}))

    @classmethod
    def load(cls, path: Path) -> Self | Unusable:
        """The record in a file, or why there is none that this version can use."""
        try:
            plain = read_json(path)
        except (OSError, ValueError, RecursionError):
            return Unusable("its record is missing or unreadable")
        names = {item.name for item in fields(cls)}  # type: ignore[arg-type]
        if not is_sealed(plain) or not names - LATER <= plain.keys():
            return Unusable("its record was edited, or written by an earlier version")
        return cls(**{name: plain[name] for name in names & plain.keys()})


@dataclass(frozen=True, kw_only=True)
class Record(_RecordFile):
    """What a folder is, its files (by relative path, the record left out) and their common digest; the last two are
    filled in by `save`."""

    identity: str
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class StageRecord(_RecordFile):
    """The record of a stage's folder, files and digest as in `Record`.

    `code` (version of the stage's code), `settings` and `raw` (official file name -> sha256) are part of the identity.
    `inputs` are the digests of the folders it was made from, `input_folders` their names, both by the input's name;
    `counts` is what the stage returned, `started` when it did by the clock (seconds since 1970), `seconds` the time it
    took, `memory` the most resident bytes of its process, those that it started included; of one that was made in
    shards, their first start, and the sum and the most of theirs.
    """

    stage: str = ""
    task: str = ""
    part: str = ""
    identity: str = ""
    code: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    raw: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    input_folders: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    started: float = 0.0
    seconds: float = 0.0
    memory: int = 0
    environment: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    digest: str = ""


AnyRecord = TypeVar("AnyRecord", Record, StageRecord)


@dataclass(frozen=True)
class Artifact:
    """A finished stage folder with its record."""

    folder: Path
    record: StageRecord

    @property
    def digest(self) -> str:
        return self.record.digest

    def file(self, name: str) -> Path:
        return self.folder / name


def read_artifact(folder: Path, identity: str) -> Artifact | Unusable:
    """The finished artifact of a stage's folder, or why there is none; checked as by `read_record`."""
    record = read_record(folder, identity, StageRecord)
    return record if isinstance(record, Unusable) else Artifact(folder, record)


def await_seen(folder: Path, artifacts: Path, patience: float = STALE_SECONDS) -> None:
    """Returns when this machine sees a finished folder below `artifacts` that another one may have made a moment ago;
    what a bundle gave lies elsewhere and has no record. Raises UserError after `patience` seconds."""
    end = time.monotonic() + patience
    while artifacts in folder.parents and not (folder / RECORD).is_file():
        if time.monotonic() > end:
            raise UserError(
                f"{folder}: was made, but is not to be seen on {platform.node()} after {patience:g} s; all nodes must "
                f"share paths.artifacts, and nothing in it may be removed during a run"
            )
        time.sleep(0.1)
        # Listed anew, a folder's contents are asked of the server.
        with contextlib.suppress(OSError):
            os.listdir(folder.parent)


def read_record(folder: Path, identity: str, kind: type[AnyRecord]) -> AnyRecord | Unusable:
    """The record of a finished folder, or why the folder cannot be used.

    Every file is hashed; a folder that was damaged, added to or edited, or that belongs to another identity, is never
    used.
    """
    if not folder.is_dir():
        return Unusable("not made yet")
    record = kind.load(folder / RECORD)
    if isinstance(record, Unusable):
        return record
    if record.identity != identity:
        return Unusable("its record belongs to other settings")
    return _damage(folder, record.files) or record


def _damage(folder: Path, files: Mapping[str, FileFacts]) -> Unusable | None:
    """What is wrong with the files of a folder; None where they are those of its record and no others."""
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return Unusable(f"its file {name} is missing")
        if path.stat().st_size != entry["bytes"]:
            return Unusable(f"its file {name} has another size than recorded")
        if file_sha256(path) != entry["sha256"]:
            return Unusable(f"its file {name} has another content than recorded")
    foreign = foreign_names(folder, {RECORD, *files})
    return Unusable(f"it holds {foreign[0]}, which its stage did not write") if foreign else None


def foreign_names(folder: Path, names: Collection[str]) -> list[str]:
    """What else is under a folder than the files `names` and the folders that they are in."""
    known = {folder / name for name in names}
    known |= {parent for path in known for parent in path.parents}
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path not in known)
