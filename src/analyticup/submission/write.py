"""Writes submission files, and packs them into a zip."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from analyticup.corpus.rows import TARGET_FIELD
from analyticup.engine.files import replace_file, write_json_lines, write_zip
from analyticup.errors import UserError
from analyticup.submission.records import input_rows, same_ids


def write_submission(task: str, input_file: Path, predictions: Mapping[int, int], out_file: Path) -> None:
    """Writes one JSON line per row of `input_file`, in its order, values copied from it, atomically.

    `predictions` maps each id of the input to 0 or 1. UTF-8, non-ASCII as is, LF ends. Half of a surrogate
    pair, which UTF-8 cannot hold, is written as the `\\udXXX` escape that it came from: the value survives.
    Raises UserError, and leaves `out_file` as it was, for an input that cannot be trusted (file:line), a row
    without a prediction, a prediction for no row, or one other than the integers 0 and 1.
    """
    target = TARGET_FIELD[task]
    rows = input_rows(input_file, task)
    if out_file.exists() and out_file.samefile(input_file):
        raise UserError(f"{out_file}: is the input file; give another path to write to")
    same_ids(predictions, rows, f"predictions for {input_file}", str(input_file))
    copied = ("id", "language", "origin_query", target)
    records = [
        {name: row[name] for name in copied} | {"prediction": _zero_or_one(predictions[row_id], row_id)}
        for row_id, row in rows.items()
    ]
    with _writing(out_file) as scratch:
        write_json_lines(scratch, records)


def zip_submission(files: Sequence[Path], out: Path) -> None:
    """Packs files flat into a zip, by name, with fixed dates and permissions: same files, same bytes.

    UserError where a file cannot be read or two have the same name.
    """
    names = [file.name for file in files]
    if len(set(names)) != len(names):
        raise UserError(f"{out}: two of the files have the same name ({', '.join(sorted(names))}); rename one")
    with _writing(out) as scratch:
        write_zip(scratch, {file.name: file for file in sorted(files, key=lambda file: file.name)})


def _zero_or_one(value: object, row_id: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # also takes NumPy's integers
    except TypeError:
        number = -1
    if isinstance(value, bool) or number not in (0, 1):
        raise UserError(f"prediction of id {row_id} is {value!r}; it must be the integer 0 or 1")
    return number


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """`replace_file`; UserError where the machine fails."""
    try:
        with replace_file(path) as scratch:
            yield scratch
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); check the folder and the disk") from error
