"""Files that cannot be JSON lines in UTF-8: refused as a whole, by their cause and not by their first line's fault."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from analyticup.errors import UserError

_UTF16 = "in UTF-16 or UTF-32; save it as UTF-8 (iconv -f UTF-16 -t UTF-8 OLD >NEW)"
# First bytes of a file -> what it is.
_FORMS: Final = {
    b"\x1f\x8b": "compressed by gzip; unpack it (gunzip)",
    b"PK\x03\x04": "a zip archive; unpack it (unzip)",
    b"BZh": "compressed by bzip2; unpack it (bunzip2)",
    b"\xfd7zXZ\0": "compressed by xz; unpack it (unxz)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it (unzstd)",
    b"7z\xbc\xaf\x27\x1c": "compressed by 7-Zip; unpack it (7z x)",
    b"PAR1": "a Parquet file; write it as JSON lines",
    b"\xd0\xcf\x11\xe0": "a file of an old Office program; write it as JSON lines",
    b"version https://git-lfs": "a Git LFS pointer and not the file itself; fetch that (git lfs pull)",
    b"<": "a web page, or XML; get the file itself, after signing in where that is asked for",
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
    b"\0\0\xfe\xff": _UTF16,
}
_SPREADSHEET: Final = b"[Content_Types].xml"


def check_is_file(path: Path) -> None:
    """Raises UserError where nothing is there, or other than a plain file, and says what."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: a link to {path.readlink()}, which is not there; put that file there or fix the link")
    if not path.exists():
        raise UserError(f"{path}: no such file; put it there or correct the path")
    if path.is_dir():
        raise UserError(f"{path}: a folder, not a file; give the path of a JSON lines file")
    if not path.is_file():
        raise UserError(f"{path}: not a file; give the path of a JSON lines file")


def refuse_other_forms(data: bytes, path: Path) -> None:
    """Raises UserError, with the cause, for a file that is compressed, in UTF-16 or UTF-32, JSON but not in lines, or
    whose lines end in CR alone: every line of it would be refused."""
    head = data[:64]
    if _SPREADSHEET in head:
        raise UserError(f"{path}: a spreadsheet (.xlsx); write it as JSON lines")
    for begin, what in _FORMS.items():
        if data.startswith(begin):
            raise UserError(f"{path}: {what}")
    if len(head) > 3 and not head.strip(b"\0"):
        raise UserError(f"{path}: begins with NUL bytes alone: a copy or download that broke off; get it again")
    if _not_in_lines(data.removeprefix(b"\xef\xbb\xbf").strip()):
        raise UserError(f"{path}: JSON, but not one object a line; write it so (jq -c '.[]' or jq -c . OLD >NEW)")
    # Without a byte order mark: every second byte of ASCII is NUL, or three of four.
    if len(head) > 3 and (head[1::2].count(0) == len(head) // 2 or head[::2].count(0) == (len(head) + 1) // 2):
        raise UserError(f"{path}: {_UTF16}")
    if b"\n" not in data and b"\r" in data.rstrip(b"\r"):
        raise UserError(f"{path}: its lines end in CR alone; convert them to LF (tr '\\r' '\\n' <OLD >NEW)")


def _not_in_lines(text: bytes) -> bool:
    """Whether it begins and ends as an array does, or as objects do that are written over several lines."""
    first, last = text.split(b"\n", 1)[0].rstrip(), text.rsplit(b"\n", 1)[-1].lstrip()
    array = text.startswith((b"[{", b"[ {")) or first == b"["
    return (array and last.endswith(b"]")) or (first == b"{" and last == b"}")
