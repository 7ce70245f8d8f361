"""Input and submission files read strictly, line by line, for the writer and the scorer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from analyticup.corpus.rows import MAX_ID, TARGET_FIELD, BadLine, decode_line, read_lines
from analyticup.errors import UserError, show_value


def same_ids(found: Iterable[int], wanted: Iterable[int], found_in: str, wanted_in: str) -> None:
    have, want = set(found), set(wanted)
    faults = []
    for name, ids in (("missing", want - have), ("unknown", have - want)):
        if ids:
            first = ", ".join(map(str, sorted(ids)[:5]))
            faults.append(f"{len(ids)} {name} (id {first}{', ...' if len(ids) > 5 else ''})")
    if faults:
        raise UserError(f"{found_in}: ids not those of {wanted_in}: {', '.join(faults)}; give matching files")


def read_records(path: Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line; ids are checked to be whole numbers, each given once."""
    seen: set[int] = set()
    for number, raw in enumerate(read_lines(path)[0], 1):
        if not raw.strip():
            continue
        try:
            record = decode_line(raw)
            row_id = record.get("id")
            if type(row_id) is not int or not 1 <= row_id <= MAX_ID:
                raise BadLine("id is not a whole number from 1")
            if row_id in seen:
                raise BadLine("duplicate id", str(row_id))
        except BadLine as bad:
            raise UserError(f"{path}:{number}: {bad}; repair the {what}") from bad
        seen.add(row_id)
        yield number, record
    if not seen:
        raise UserError(f"{path}: the {what} has no rows; give the right file")


def input_rows(path: Path, task: str | None = None) -> dict[int, dict[str, Any]]:
    """Rows of an input file by id, in its order; of either task where `task` is None."""
    rows: dict[int, dict[str, Any]] = {}
    for number, row in read_records(path, "input file"):
        found = row.get("task")
        if not isinstance(found, str) or found not in TARGET_FIELD or (task and found != task):
            raise UserError(f"{path}:{number}: task is {show_value(found)}; give a {task or 'QC or QI'} file")
        field = TARGET_FIELD[found]
        for name in ("language", "origin_query", field):
            if not (isinstance(row.get(name), str) or (name == field and row.get(name, 0) is None)):
                raise UserError(f"{path}:{number}: {name} is missing or not a text; repair the input file")
        rows[row["id"]] = row
    return rows


def read_bits(path: Path, field: str, what: str, task: str | None = None) -> dict[int, int]:
    bits = {}
    for number, record in read_records(path, what):
        if task and record.get("task", task) != task:
            raise UserError(f"{path}:{number}: task is {show_value(record['task'])}; give the {what} of {task}")
        value = record.get(field)
        if type(value) is not int or value not in (0, 1):
            raise UserError(f"{path}:{number}: {field} is not the integer 0 or 1; repair the {what}")
        bits[record["id"]] = value
    return bits
