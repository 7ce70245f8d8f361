"""The rows table: its schema, its Parquet form, and the strict reading of the competition's files into it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from pandas import DataFrame

from analyticup.corpus.forms import check_is_file, refuse_other_forms
from analyticup.corpus.languages import LANGUAGES
from analyticup.corpus.text import query_key
from analyticup.engine.files import write_json_lines
from analyticup.errors import UserError

COLUMNS: Final = ("row_id", "task", "language", "query", "target", "label", "origin", "source_id", "group")
TARGET_FIELD: Final[dict[str, str]] = {"QC": "category_path", "QI": "item_title"}
SPLITS: Final = ("train", "dev", "test")
MAX_CHARS: Final = 2000  # assumed: far above any query, path or title; a longer text is a broken line
MAX_ID: Final = 2**63 - 1  # score tables hold ids as 64-bit integers
_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile("[\ud800-\udfff]")


class BadLine(Exception):
    """One line cannot be used. `reason` is the same for the same fault, so that reasons can be counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class Reject:
    """A refused training line: file name, line from 1, reason, and the line (invalid bytes as U+FFFD)."""

    file: str
    line: int
    reason: str
    raw: str


@dataclass(frozen=True)
class ReadResult:
    """What a file held: `lines == len(rows) + len(rejects) + notes.get("blank line", 0)`.

    `notes` counts what was accepted though unusual, by kind; it is empty for a plain file.
    """

    rows: DataFrame
    rejects: list[Reject]
    lines: int
    notes: dict[str, int]


def original_id(row_id: str) -> int:
    """The competition's id of an original row: 17 for "dev-17". Raises ValueError for a derived row's id."""
    return int(row_id.split("-", 1)[1])


def make_rows(columns: Mapping[str, Sequence[Any]]) -> DataFrame:
    """A rows table, shape (n, 9), from one sequence per name in COLUMNS; a label is 0, 1 or None."""
    dtypes = {name: "Int8" if name == "label" else "str" for name in COLUMNS}
    return pd.DataFrame({name: pd.Series(columns[name], dtype=dtypes[name]) for name in COLUMNS})


def empty_rows() -> DataFrame:
    """A rows table without rows, columns and types as everywhere."""
    return make_rows({name: [] for name in COLUMNS})


def _features() -> Features:
    return Features({name: Value("int8" if name == "label" else "string") for name in COLUMNS})


def save_rows(frame: DataFrame, path: Path) -> None:
    """Writes a rows table as Parquet; the same rows give the same bytes, whatever the frame's index.

    Raises ValueError where the table breaks its schema (columns, unique row_id, label outside 0, 1, missing).
    """
    if tuple(frame.columns) != COLUMNS:
        raise ValueError(f"a rows table has the columns {COLUMNS}, not {tuple(frame.columns)}")
    if not frame["row_id"].is_unique:
        twice = frame["row_id"][frame["row_id"].duplicated()].iloc[0]
        raise ValueError(f"row_id {twice!r} is in the table twice")
    if not frame["label"].dropna().isin((0, 1)).all():
        raise ValueError("a label is 0, 1 or missing")
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = Dataset.from_pandas(frame, features=_features(), preserve_index=False)
    # Dataset.to_parquet writes the same table, with a progress bar that can only be switched off globally.
    pq.write_table(dataset.data.table, path)


def load_rows(path: Path) -> DataFrame:
    """Reads what `save_rows` wrote, index 0..n-1. UserError where the file is absent or something else."""
    try:
        # Dataset.from_parquet would leave a second copy in the user's cache folder.
        dataset = Dataset(pq.ParquetFile(path).read())
    except (OSError, pa.ArrowException) as error:
        fault = _first_line(error)
        raise UserError(f"{path}: no readable rows table ({fault}); run the stage that makes it") from error
    if dataset.features != _features():
        raise UserError(f"{path}: not the columns and types of a rows table; run its stage again")
    frame = dataset.data.table.to_pandas(types_mapper={pa.int8(): pd.Int8Dtype()}.get)
    return make_rows({name: frame[name] for name in COLUMNS})


def read_lines(path: Path) -> tuple[list[bytes], bool]:
    """Lines of a file without their LF or CRLF, and whether a UTF-8 byte order mark was skipped.

    UserError where the file is missing, is not a plain file, or cannot be read.
    """
    check_is_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    refuse_other_forms(data, path)
    lines = data.removeprefix(_BOM).split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines], data.startswith(_BOM)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise BadLine("duplicate key")
    return record


def _no_constant(name: str) -> NoReturn:
    raise BadLine("broken JSON", f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def decode_line(raw: bytes) -> dict[str, Any]:
    """The JSON object on a line. BadLine for a NUL byte, bad UTF-8 or JSON, a duplicate key, no object."""
    if b"\0" in raw:
        raise BadLine("NUL byte")
    try:
        record = _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadLine("invalid UTF-8", f"byte {error.start + 1}") from error
    except (ValueError, RecursionError) as error:
        raise BadLine("broken JSON", _first_line(error)) from error
    if not isinstance(record, dict):
        raise BadLine("not a JSON object")
    return record


def _show(text: str) -> str:
    """A text as JSON in ASCII, shortened: no control or right-to-left character disturbs a terminal."""
    return json.dumps(text if len(text) <= 60 else f"{text[:60]}...")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _text(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None and name not in record:
        raise BadLine(f"missing field {name}")
    if not isinstance(value, str):
        raise BadLine(f"{name} is not a text")
    return value


class _RowReader:
    """Turns decoded lines of one split into columns; `add` raises BadLine and then adds nothing."""

    def __init__(self, task: str, split: str, max_chars: int) -> None:
        self.task, self.split, self.max_chars = task, split, max_chars
        self.train = split == "train"
        self.notes: Counter[str] = Counter()
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self._ids: set[int] = set()
        self._keys: dict[str, str] = {}

    def add(self, record: dict[str, Any]) -> None:
        row_id = self._id(record)
        language = _text(record, "language")
        if not language.strip():
            raise BadLine("missing field language")
        query = _text(record, "origin_query")
        target = self._target(record)
        language, query, target = self._checked(language, query, target)
        label = self._label(record) if self.train else None
        if language not in LANGUAGES:
            self.notes[f"language {_show(language)} outside the competition"] += 1
        self._ids.add(row_id)
        group = self._keys.get(query)
        if group is None:
            group = self._keys[query] = query_key(query)
        values = (f"{self.split}-{row_id}", self.task, language, query, target, label, "original", "", group)
        for name, value in zip(COLUMNS, values, strict=True):
            self.columns[name].append(value)

    def _id(self, record: dict[str, Any]) -> int:
        if "id" not in record:
            raise BadLine("missing field id")
        value = record["id"]
        if type(value) is not int or not 1 <= value <= MAX_ID:
            raise BadLine("id is not a whole number from 1")
        if value in self._ids:
            raise BadLine("duplicate id", str(value))
        return value

    def _target(self, record: dict[str, Any]) -> str:
        name = TARGET_FIELD[self.task]
        if name in record and record[name] is None:
            fault, target = f"{name} is null", ""
        else:
            target = _text(record, name)
            if target.strip():
                return target
            fault = f"{name} is blank"
        if self.train:
            raise BadLine(fault)
        self.notes[fault] += 1
        return ""

    def _checked(self, language: str, query: str, target: str) -> tuple[str, str, str]:
        """Faults that cost a training row but never a dev or test row, which must get a prediction."""
        faults = []
        if not query.strip():
            faults.append("origin_query is blank")
        if len(query) > self.max_chars or len(target) > self.max_chars:
            faults.append(f"text longer than {self.max_chars} characters")
        # Neither Parquet nor a tokenizer takes half of a surrogate pair, which a JSON escape can bring in.
        texts = (language, query, target)
        if any(map(_SURROGATE.search, texts)):
            faults.append("lone surrogate in a text")
            language, query, target = (_SURROGATE.sub("\ufffd", text) for text in texts)
        if faults and self.train:
            raise BadLine(faults[0])
        self.notes.update(faults)
        return language, query, target

    @staticmethod
    def _label(record: dict[str, Any]) -> int:
        label = record.get("label")
        if type(label) is not int or label not in (0, 1):
            raise BadLine("label is not 0 or 1")
        return label


def read_split(path: Path, task: str, split: str, max_chars: int = MAX_CHARS) -> ReadResult:
    """Reads one competition file strictly: `task` "QC" or "QI", `split` "train", "dev" or "test".

    A bad training line goes to the rejects. A dev or test line is kept or refuses the whole file, for a
    submission without it would be invalid; a label in it is never read. In dev and test, a missing or blank
    target becomes "" and a lone surrogate U+FFFD. Texts above `max_chars` characters are bad in training.
    Raises UserError, naming file and line, where the file is refused: unreadable, without rows, of the other
    task, a bad dev or test line, or more than half of the training lines rejected.
    """
    if task not in TARGET_FIELD or split not in SPLITS:
        raise ValueError(f"no task {task!r} or no split {split!r}: {tuple(TARGET_FIELD)}, {SPLITS}")
    lines, had_bom = read_lines(path)
    reader = _RowReader(task, split, max_chars)
    reader.notes.update(["byte order mark"] if had_bom else [])
    rejects: list[Reject] = []
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            reader.notes["blank line"] += 1
            continue
        try:
            record = decode_line(raw)
            _same_task(record, task, f"{path}:{number}")
            reader.add(record)
        except BadLine as bad:
            if not reader.train:
                raise UserError(f"{path}:{number}: {bad}; repair it: every {split} row is needed") from bad
            rejects.append(Reject(path.name, number, bad.reason, raw.decode("utf-8", errors="replace")))
    _refuse_hopeless(path, task, len(reader.columns["row_id"]), rejects)
    return ReadResult(make_rows(reader.columns), rejects, len(lines), dict(sorted(reader.notes.items())))


def _same_task(record: dict[str, Any], task: str, where: str) -> None:
    found = _text(record, "task")
    if found != task:
        raise UserError(f"{where}: task is {_show(found)}, not {task}; give the {task} file")


def _refuse_hopeless(path: Path, task: str, kept: int, rejects: list[Reject]) -> None:
    if not kept and not rejects:
        raise UserError(f"{path}: the file has no rows; put the {task} file there")
    if len(rejects) > kept:
        raise UserError(
            f"{path}:{rejects[0].line}: {rejects[0].reason}, the first of {len(rejects)} lines refused of "
            f"{kept + len(rejects)}; check that this is a {task} training file in JSON lines"
        )


def write_rejects(rejects: Iterable[Reject], path: Path) -> None:
    """Writes refused lines as JSON lines with the keys file, line, reason, raw; none give an empty file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path, map(vars, rejects))
