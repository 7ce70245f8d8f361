"""The sheet that reviewers fill in: CSV for a spreadsheet, or JSON lines; written, and read back strictly.

What spreadsheets do to a CSV is accepted: other separators, CRLF, UTF-16, quotes, columns moved or added. Cells that a
spreadsheet would take for a formula, a number or a date get an apostrophe in front, which is taken away again.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analyticup.engine.files import read_bytes, replace_file, write_json_lines
from analyticup.errors import UserError, show_value
from analyticup.filtering.decisions import ANSWERS
from analyticup.review.candidate import Candidate

# The row's id and what a person writes come first and last; `run` says which run the rows are of.
COLUMNS = (
    *("row_id", "task", "language", "query", "target", "label", "model", "judge", "neighbours", "reason", "nearest"),
    *("translation", "decision", "note", "run"),
)
NEEDED = ("row_id", "task", "query", "target", "label", "decision", "run")
MARK = "'"
# Formulas, also of full width; the mark itself; white space that may be cut off; what is read as a number or a date.
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_RISKY = re.compile(
    rf"[=+\-@\uff1d\uff0b\uff0d\uff20'\"]|\s|.*\s$|\W*\d|(?:{_MONTHS})[a-z]*\W*\d|(?:true|false)$",
    re.IGNORECASE | re.DOTALL,
)
_ERRORS_SHOWN = 20
# A cell of Excel holds no more.
_LONGEST = 32_000


@dataclass(frozen=True)
class Answer:
    """A filled-in line of a sheet: its line in the file, from 1, and its cells by column, marks taken away."""

    line: int
    cells: Mapping[str, str]

    @property
    def decision(self) -> str:
        return self.cells["decision"].strip().casefold()


def protect(text: str) -> str:
    """A text as no spreadsheet changes or runs it."""
    return MARK + text if _RISKY.match(text) else text


def _same(cell: str, text: str) -> bool:
    """Whether a cell holds a row's text, with or without its mark; line breaks and forms of accents play no part."""
    return any(_plain(shown) == _plain(text) for shown in (cell, cell.removeprefix(MARK)))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def write_sheet(candidates: Iterable[Candidate], task: str, run: str, path: Path) -> None:
    """Writes a sheet, as JSON lines where the name ends in .jsonl, else as CSV: UTF-8 with BOM, comma, CRLF."""
    records = [_record(candidate, task, run) for candidate in candidates]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as scratch:
        if path.suffix == ".jsonl":
            write_json_lines(scratch, records)
            return
        # Half of a surrogate pair cannot be written; no spreadsheet takes a NUL.
        with scratch.open("w", encoding="utf-8-sig", errors="replace", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(COLUMNS)
            writer.writerows([_cell(record[name]) for name in COLUMNS] for record in records)


def refuse_to_lose(path: Path) -> None:
    """Raises UserError where a sheet would replace another file, or answers that somebody has given."""
    if not path.exists():
        return
    try:
        filled = sum(bool(answer.decision) for answer in read_sheet(path))
    except UserError:
        raise UserError(f"{path}: is there already and is no sheet; give another file with --out") from None
    if filled:
        raise UserError(f"{path}: has {filled} decisions; import it and move it away, or give another file with --out")


def _record(candidate: Candidate, task: str, run: str) -> dict[str, Any]:
    shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(candidate).items()}
    own = {**shown, "task": task, "decision": "", "note": "", "run": run}
    return {name: own[name] for name in COLUMNS}


def _cell(value: Any) -> Any:
    # LibreOffice loses a tab within a cell.
    return protect(value.replace("\0", "\ufffd").replace("\t", " ")[:_LONGEST]) if isinstance(value, str) else value


def read_sheet(path: Path) -> list[Answer]:
    """The lines of a sheet; UserError where it is no sheet: another encoding, or columns that are missing."""
    data = read_bytes(path)
    answers = list(_json_lines(data, path) if path.suffix == ".jsonl" else _csv_lines(data, path))
    if not answers:
        raise UserError(f"{path}: the sheet has no rows; export it again")
    return answers


def _json_lines(data: bytes, path: Path) -> Iterator[Answer]:
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{path}:{number}: broken JSON; repair the line") from None
        if not isinstance(record, dict) or (missing := [name for name in NEEDED if name not in record]):
            raise UserError(
                f"{path}:{number}: it lacks {', '.join(missing) if isinstance(record, dict) else 'an object'}"
            )
        yield Answer(number, {name: value if isinstance(value, str) else str(value) for name, value in record.items()})


def _csv_lines(data: bytes, path: Path) -> Iterator[Answer]:
    text, skipped = _decoded(data, path), 0
    if text[:4].lower() == "sep=":
        # Excel's own way to name the separator.
        text, skipped = text.split("\n", 1)[-1], 1
    for separator in (",", ";", "\t"):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        header = [name.strip().casefold() for name in next(reader, [])]
        if set(NEEDED) <= set(header):
            break
    else:
        raise UserError(
            f"{path}:{skipped + 1}: no sheet of ./run.sh review export: the first line must name the columns "
            f"{', '.join(NEEDED)}, separated by commas, semicolons or tabs"
        )
    before = reader.line_num
    try:
        for cells in reader:
            line, before = before + 1 + skipped, reader.line_num
            if any(cell.strip() for cell in cells):
                yield Answer(line, dict(zip(header, [*cells, *[""] * len(header)], strict=False)))
    except csv.Error as error:
        raise UserError(f"{path}:{before + 1 + skipped}: {error}; save the sheet again") from None


def _decoded(data: bytes, path: Path) -> str:
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"{path}: byte {error.start + 1} is no UTF-{16 if wide else 8}"
        raise UserError(f"{what}; save it as CSV UTF-8, as other forms lose scripts") from None


def check(answers: Sequence[Answer], rows: Mapping[str, Mapping[str, Any]], task: str, run: str, path: Path) -> None:
    """Raises UserError with a line, file:line, for each thing that is wrong: another run, an unknown or repeated id,
    edited text, a decision that is none. `rows` are the run's by id."""
    wrong, seen = [], {}
    for answer in answers:
        if what := _fault(answer, rows, task, run):
            wrong.append(f"{path}:{answer.line}: {what}")
        row_id = _text(answer, "row_id")
        if row_id in seen:
            wrong.append(f"{path}:{answer.line}: row {row_id} is in line {seen[row_id]} too; keep one of them")
        seen.setdefault(row_id, answer.line)
    more = [f"{path}: and {len(wrong) - _ERRORS_SHOWN} more"] if len(wrong) > _ERRORS_SHOWN else []
    if wrong:
        raise UserError("\n".join([*wrong[:_ERRORS_SHOWN], *more, "nothing was stored"]))


def _fault(answer: Answer, rows: Mapping[str, Mapping[str, Any]], task: str, run: str) -> str:
    """What is wrong with a line; "" where nothing is."""
    if (_text(answer, "run"), _text(answer, "task")) != (run, task):
        return "a row of another run or task; import each sheet by itself"
    row_id = _text(answer, "row_id")
    row = rows.get(row_id)
    if row is None:
        return f"the run has no training row {show_value(row_id)}; put the id back"
    for name in ("query", "target"):
        if not _same(answer.cells[name], row[name][:_LONGEST].replace("\0", "\ufffd")):
            return f"the {name} of {row_id} was edited: {show_value(answer.cells[name])}; put it back, or export again"
    if _text(answer, "label") not in (str(row["label"]), f"{row['label']}.0"):
        return f"the label of {row_id} was edited; put {row['label']} back and write flip as the decision"
    if answer.decision not in ("", *ANSWERS):
        return f"decision {show_value(answer.cells['decision'])} is none of {', '.join(ANSWERS)}, or empty"
    return ""


def _text(answer: Answer, name: str) -> str:
    return answer.cells[name].strip().removeprefix(MARK)
