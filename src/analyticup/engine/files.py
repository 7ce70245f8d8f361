"""Files and folders that are written whole or not at all, their sha256, and the lock on a folder. No other module
replaces a file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from analyticup.errors import UserError

SCRATCH_PREFIX = ".unfinished-"


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that the user named; UserError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from error


def scratch_path(path: Path) -> Path:
    """Where a file or folder is written before it takes its place."""
    return path.with_name(f"{SCRATCH_PREFIX}{path.name}")


@contextlib.contextmanager
def publish_folder(folder: Path) -> Iterator[Path]:
    """Yields a scratch folder next to `folder` that becomes `folder` by one rename, or vanishes on any error.

    A folder that is there already is replaced only at that moment.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_path(folder)
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir()
    try:
        yield scratch
        for path in scratch.rglob("*"):
            if path.is_file():
                _sync(path)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


@contextlib.contextmanager
def replace_together() -> Iterator[Callable[[Path], Path]]:
    """Yields a function that gives the scratch file to write in place of a path; all of them take their places at the
    end, in that order, or vanish on any error."""
    scratches: dict[Path, Path] = {}

    def scratch_for(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return scratches.setdefault(path, scratch_path(path))

    try:
        yield scratch_for
        for scratch in scratches.values():
            _sync(scratch)
        for path, scratch in scratches.items():
            os.replace(scratch, path)
    except BaseException:
        for scratch in scratches.values():
            scratch.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """`replace_together` for one file."""
    with replace_together() as scratch_for:
        yield scratch_for(path)


def _sync(path: Path) -> None:
    """A rename that reaches the disk before the bytes do would leave an empty file after a power cut."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file (UTF-8, LF) so that a reader sees the old bytes or the new ones, never a part."""
    with replace_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="\n")


def json_text(value: Any, sort_keys: bool = False) -> str:
    """JSON as every file of a run holds it."""
    return json.dumps(value, indent=1, sort_keys=sort_keys, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """A JSON file of a folder that is published as a whole, and so need not be replaced in one step itself."""
    path.write_text(json_text(value), encoding="utf-8", newline="\n")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """One value a line, UTF-8, LF; half of a surrogate pair, which UTF-8 cannot hold, as its `\\udXXX` escape."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        stream.writelines(f"{encode(value)}\n" for value in values)


def write_zip(out: Path, files: Mapping[str, Path]) -> None:
    """Packs files under the given names, in their order, with fixed dates and permissions: same files, same bytes."""
    with zipfile.ZipFile(out, "w") as archive:
        for name, path in files.items():
            content = read_bytes(path)
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix: the default differs by platform, and the permissions need it
            entry.external_attr = (0o755 if path.stat().st_mode & 0o100 else 0o644) << 16
            archive.writestr(entry, content, compresslevel=9)


def read_json_lines(path: Path) -> list[Any]:
    """The values of what `write_json_lines` wrote."""
    # Not splitlines(): a text may hold U+2028, which JSON leaves as it is.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def read_json(path: Path) -> Any:
    """The value of a JSON file; OSError, ValueError or RecursionError where there is none."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def lock(artifacts: Path, waits: bool = False) -> Iterator[None]:
    """Holds the artifacts folder for one run; where another run holds it, `waits` for that or raises UserError."""
    artifacts.mkdir(parents=True, exist_ok=True)
    with (artifacts / ".lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{artifacts}: another run is using this artifacts folder; wait for it, or give this one its own with "
                f"paths.artifacts=FOLDER"
            ) from None
        except OSError as error:
            raise UserError(
                f"{artifacts}: its filesystem has no locks, which keep two runs apart ({error.strerror}); give a "
                f"folder on another disk with paths.artifacts=FOLDER"
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


def discard(path: Path) -> None:
    """Removes a file or folder that a stage resumes from, and what a killed write left of it."""
    for one in (path, scratch_path(path)):
        if one.is_dir():
            shutil.rmtree(one)
        else:
            one.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Removes what killed writes left in a folder of such files, and the folder where none is left. No stage may be
    running."""
    # safetensors writes to a hidden file first; others are somebody else's.
    for pattern in (".tmp*", f"{SCRATCH_PREFIX}*"):
        for path in folder.glob(pattern):
            path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
