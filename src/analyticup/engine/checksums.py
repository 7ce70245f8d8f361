"""SHA256SUMS: the checksums of a folder that is handed on, in the form that `sha256sum --check` reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from analyticup.engine.artifacts import foreign_names
from analyticup.engine.files import file_sha256, write_atomically
from analyticup.errors import UserError

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS over every other file below a folder, by name."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in names if name != SUMS]
    write_atomically(folder / SUMS, "".join(lines))


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> sha256; UserError where there is no such file, or a line of another form."""
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: no readable checksums; give the folder or the zip that `bundle` wrote") from None
    found = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if not match or Path(match[2]).is_absolute() or ".." in Path(match[2]).parts:
            raise UserError(f"{path}:{number}: not a checksum and a file name; fetch the bundle anew")
        found[match[2]] = match[1]
    return found


def check_sums(folder: Path) -> Iterator[str]:
    """What is wrong with the files of a folder, by SHA256SUMS: missing, changed and unknown ones."""
    known = read_sums(folder)
    for name, digest in known.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif file_sha256(path) != digest:
            yield f"{name} has another content than {SUMS} says"
    yield from (f"{name} is not in {SUMS}" for name in foreign_names(folder, {SUMS, *known}))
