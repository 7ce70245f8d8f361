"""Submissions byte by byte; every injected fault is caught at its line; scores meet the right rows."""

from __future__ import annotations

import gzip
import inspect
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analyticup.corpus import rows
from analyticup.errors import UserError
from analyticup.metrics import binary_metrics
from analyticup.submission import records, score, write
from analyticup.submission.score import read_labels, score_submission
from analyticup.submission.validate import Problem, format_problems, validate_submission
from analyticup.submission.write import write_submission, zip_submission

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "competition"
QUERIES = ["red shoes", "أحذية", 'say "hi" \\ 50%', "ไทย", "x\u2028y", "lampe"]
INPUT = [
    {"id": 10 * n, "task": "QI", "language": "vn", "origin_query": query, "item_title": f"T {n}"}
    for n, query in enumerate(QUERIES, 1)
]
INPUT[3]["item_title"] = None
PREDICTIONS = {10: 1, 20: 0, 30: 1, 40: 0, 50: 1, 60: 1}


def save(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_bytes("".join(json.dumps(record) + "\n" for record in records).encode())
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "test_QI.txt", INPUT)


@pytest.fixture
def valid(tmp_path: Path, source: Path) -> Path:
    write_submission("QI", source, PREDICTIONS, tmp_path / "submit_QI.txt")
    return tmp_path / "submit_QI.txt"


def test_bytes_of_a_submission(source: Path, valid: Path) -> None:
    fields = [
        r'"origin_query": "red shoes", "item_title": "T 1", "prediction": 1',
        r'"origin_query": "أحذية", "item_title": "T 2", "prediction": 0',
        r'"origin_query": "say \"hi\" \\ 50%", "item_title": "T 3", "prediction": 1',
        r'"origin_query": "ไทย", "item_title": null, "prediction": 0',
        '"origin_query": "x\u2028y", "item_title": "T 5", "prediction": 1',
        r'"origin_query": "lampe", "item_title": "T 6", "prediction": 1',
    ]
    wanted = [f'{{"id": {10 * n}, "language": "vn", {rest}}}\n' for n, rest in enumerate(fields, 1)]
    assert valid.read_bytes() == "".join(wanted).encode()
    assert validate_submission("QI", source, valid) == []


def test_category_rows_keep_their_field(tmp_path: Path) -> None:
    record = {
        "label": 1,
        "category_path": "a, b,c",
        "origin_query": "q",
        "language": "pl",
        "task": "QC",
        "id": 1,
    }
    source = save(tmp_path / "dev_QC.txt", [record])
    write_submission("QC", source, {1: 0}, tmp_path / "new" / "submit_QC.txt")
    assert (tmp_path / "new" / "submit_QC.txt").read_text() == (
        '{"id": 1, "language": "pl", "origin_query": "q", "category_path": "a, b,c", "prediction": 0}\n'
    )


HOSTILE = [
    "\0\x01\x1b[31m\x7f\x85",
    "\t\r\n",
    "\u202eabc\u200f\u2066",
    "\u2028\u2029",
    "\U0001f469\u200d\U0001f467\U0001f3f4\U000e0067\U000e007f",
    '"\\"\\\\',
    "\\ud800",
    "\ud800",
    "\udc00\ud800",
    "a\\\udfff\\",
    "\ufeffx",
    "\uffff\U0010ffff",
    "é" * 100_000,
    "",
    " ",
    "e\u0301\u00e9",
    '{"id": 1}',
    "</script>%s%00",
]


@pytest.mark.parametrize("escaped", [True, False])
def test_hostile_texts_survive_and_validate(tmp_path: Path, escaped: bool) -> None:
    records = [
        {"id": n, "task": "QI", "language": f"x{text}", "origin_query": text, "item_title": text}
        for n, text in enumerate(HOSTILE, 1)
    ]
    lines = [json.dumps(record, ensure_ascii=escaped) + "\n" for record in records]
    source, out = tmp_path / "test_QI.txt", tmp_path / "submit_QI.txt"
    source.write_bytes("".join(lines).encode("utf-8", errors="backslashreplace"))
    write_submission("QI", source, dict.fromkeys(range(1, len(HOSTILE) + 1), 1), out)
    assert validate_submission("QI", source, out) == []
    written = [json.loads(line) for line in out.read_bytes().decode("utf-8").split("\n")[:-1]]
    assert [record["item_title"] for record in written] == HOSTILE
    assert len(rows.read_split(source, "QI", "test").rows) == len(HOSTILE)


def test_input_of_another_system_gives_the_same_submission(tmp_path: Path, source: Path, valid: Path) -> None:
    changed = b"\xef\xbb\xbf" + source.read_bytes().replace(b"\n", b"\r\n\r\n")
    (tmp_path / "windows.txt").write_bytes(changed)
    write_submission("QI", tmp_path / "windows.txt", PREDICTIONS, tmp_path / "other.txt")
    assert (tmp_path / "other.txt").read_bytes() == valid.read_bytes()
    assert validate_submission("QI", tmp_path / "windows.txt", valid) == []


def test_numpy_integers_are_predictions(tmp_path: Path, source: Path, valid: Path) -> None:
    predictions = dict(zip(np.array(list(PREDICTIONS)), np.array(list(PREDICTIONS.values()), "int8"), strict=True))
    write_submission("QI", source, predictions, tmp_path / "other.txt")
    assert (tmp_path / "other.txt").read_bytes() == valid.read_bytes()


@pytest.mark.parametrize(
    ("predictions", "what"),
    [
        ({10: 1, 20: 0}, "4 missing (id 30, 40, 50, 60)"),
        ({}, "6 missing (id 10, 20, 30, 40, 50, ...)"),
        (PREDICTIONS | {7: 1}, "1 unknown (id 7)"),
        *((PREDICTIONS | {20: bad}, "prediction of id 20 is") for bad in (True, "1", 0.5, 1.0, None, 2, -1, np.True_)),
    ],
)
def test_writer_refuses_what_the_validator_would(
    tmp_path: Path, source: Path, valid: Path, predictions: dict[int, Any], what: str
) -> None:
    before = valid.read_bytes()
    with pytest.raises(UserError) as caught:
        write_submission("QI", source, predictions, valid)
    assert what in str(caught.value)
    assert valid.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["submit_QI.txt", "test_QI.txt"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"task": "QC"}, '1: task is "QC"; give a QI file'),
        ({"task": None}, "1: task is null; give a QI file"),
        ({"task": ["QI"]}, '1: task is ["QI"]; give a QI file'),
        ({"task": {}}, "1: task is {}; give a QI file"),
        ({"id": "10"}, "1: id is not a whole number"),
        ({"origin_query": None}, "1: origin_query is missing or not a text"),
        ({"item_title": 5}, "1: item_title is missing or not a text"),
        ({"id": 20}, "2: duplicate id (20)"),
    ],
)
def test_writer_refuses_an_input_that_cannot_be_trusted(tmp_path: Path, line: dict[str, Any], what: str) -> None:
    source = save(tmp_path / "test_QI.txt", [INPUT[0] | line, *INPUT[1:]])
    with pytest.raises(UserError) as caught:
        write_submission("QI", source, PREDICTIONS, tmp_path / "out.txt")
    assert f"{source}:{what}" in str(caught.value)
    assert not (tmp_path / "out.txt").exists()


def test_writer_never_replaces_its_input(source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(UserError, match="is the input file"):
        write_submission("QI", source, PREDICTIONS, source)
    assert source.read_bytes() == before


def test_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, source: Path, valid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = valid.read_bytes()

    def full(path: Path, values: Any) -> None:
        path.write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_json_lines", full)
    with pytest.raises(UserError, match="cannot be written \\(No space left on device\\)"):
        write_submission("QI", source, PREDICTIONS | {10: 0}, valid)
    assert valid.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["submit_QI.txt", "test_QI.txt"]


# ---- the validator


def put(number: int, old: str, new: str) -> Callable[[list[bytes]], list[bytes]]:
    """Replaces a text in one line."""

    def change(lines: list[bytes]) -> list[bytes]:
        assert old.encode() in lines[number - 1]
        lines[number - 1] = lines[number - 1].replace(old.encode(), new.encode(), 1)
        return lines

    return change


def line(number: int, content: bytes) -> Callable[[list[bytes]], list[bytes]]:
    """Replaces one line."""
    return lambda lines: [*lines[: number - 1], content, *lines[number:]]


def whole(change: Callable[[bytes], bytes]) -> Callable[[list[bytes]], list[bytes]]:
    """Another form of the file, as the lines that it seems to have."""
    return lambda lines: change(b"\n".join(lines) + b"\n").split(b"\n")


def order(*numbers: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [lines[number - 1] for number in numbers]


def missing(*numbers: int) -> list[tuple[str, int, str]]:
    return [("input", number, f"id {10 * number} is missing from the submission") for number in numbers]


def here(number: int, what: str) -> list[tuple[str, int, str]]:
    return [("submission", number, what)]


NOT_A_BIT = "not the integer 0 or 1"
# Name, change to the lines of a valid submission, and ALL problems it must give: file, line, part of text.
FAULTS: list[tuple[str, Callable[[list[bytes]], list[bytes]], list[tuple[str, int, str]]]] = [
    ("prediction true", put(3, '"prediction": 1', '"prediction": true'), here(3, f"true, {NOT_A_BIT}")),
    ("prediction text", put(3, '"prediction": 1', '"prediction": "1"'), here(3, f'"1", {NOT_A_BIT}')),
    ("prediction 0.5", put(2, '"prediction": 0', '"prediction": 0.5'), here(2, f"0.5, {NOT_A_BIT}")),
    ("prediction 1.0", put(3, '"prediction": 1', '"prediction": 1.0'), here(3, f"1.0, {NOT_A_BIT}")),
    ("prediction 1e0", put(3, '"prediction": 1', '"prediction": 1e0'), here(3, f"1.0, {NOT_A_BIT}")),
    ("prediction null", put(2, '"prediction": 0', '"prediction": null'), here(2, f"null, {NOT_A_BIT}")),
    ("prediction 2", put(6, '"prediction": 1', '"prediction": 2'), here(6, f"2, {NOT_A_BIT}")),
    ("prediction -1", put(6, '"prediction": 1', '"prediction": -1'), here(6, f"-1, {NOT_A_BIT}")),
    ("prediction list", put(6, '"prediction": 1', '"prediction": [1]'), here(6, f"[1], {NOT_A_BIT}")),
    ("prediction NaN", put(6, '"prediction": 1', '"prediction": NaN'), here(6, "NaN") + missing(6)),
    ("prediction -Infinity", put(6, " 1}", " -Infinity}"), here(6, "-Infinity") + missing(6)),
    ("prediction 1e999", put(6, '"prediction": 1', '"prediction": 1e999'), here(6, NOT_A_BIT)),
    ("prediction 01", put(6, '"prediction": 1', '"prediction": 01'), here(6, "broken JSON") + missing(6)),
    ("no prediction", put(3, ', "prediction": 1', ""), here(3, "missing field prediction")),
    ("no title", put(3, '"item_title": "T 3", ', ""), here(3, "missing field item_title")),
    ("no language", put(3, '"language": "vn", ', ""), here(3, "missing field language")),
    ("no query", put(1, '"origin_query": "red shoes", ', ""), here(1, "missing field origin_query")),
    ("no id", put(3, '"id": 30, ', ""), here(3, "missing field id") + missing(3)),
    ("label added", put(5, "1}", '1, "label": 1}'), here(5, 'extra field "label"')),
    ("task added", put(5, "1}", '1, "task": "QI"}'), here(5, 'extra field "task"')),
    (
        "query changed",
        put(1, "red shoes", "red Shoes"),
        here(1, 'query was changed: "red shoes" became "red Shoes", from character 5'),
    ),
    ("query trimmed", put(6, "lampe", "lampe "), here(6, "origin_query was changed")),
    ("query retold in other characters", put(6, "lampe", "lamp\u0435"), here(6, r'became "lamp\u0435"')),
    ("title changed", put(6, "T 6", "T 5"), here(6, "item_title was changed")),
    ("null title filled", put(4, "null", '""'), here(4, 'item_title was changed: null became ""')),
    ("title nulled", put(6, '"T 6"', "null"), here(6, 'item_title was changed: "T 6" became null')),
    ("language changed", put(2, '"vn"', '"vi"'), here(2, 'language was changed: "vn" became "vi"')),
    ("id unknown", put(6, '"id": 60', '"id": 61'), here(6, "unknown id 61") + missing(6)),
    ("id text", put(6, '"id": 60', '"id": "60"'), here(6, 'id is "60", not an integer') + missing(6)),
    ("id 60.0", put(6, '"id": 60', '"id": 60.0'), here(6, "id is 60.0, not an integer") + missing(6)),
    ("id true", put(6, '"id": 60', '"id": true'), here(6, "id is true, not an integer") + missing(6)),
    ("row twice", order(1, 2, 3, 4, 5, 6, 2), here(7, "duplicate id 20, given before at line 2")),
    ("row missing", order(1, 2, 4, 5, 6), missing(3)),
    ("last rows missing", order(1, 2, 3, 4), missing(5, 6)),
    ("two rows swapped", order(1, 3, 2, 4, 5, 6), here(3, "wrong order: id 20 comes before id 30")),
    ("last row first", order(6, 1, 2, 3, 4, 5), here(2, "wrong order: id 10 comes before id 60")),
    ("reversed", order(6, 5, 4, 3, 2, 1), [("submission", n, "wrong order") for n in range(2, 7)]),
    ("blank line", lambda lines: [*lines[:2], b"", *lines[2:]], here(3, "blank line")),
    ("blank line at the end", lambda lines: [*lines, b""], here(7, "blank line")),
    ("line of spaces", lambda lines: [*lines[:2], b"  ", *lines[2:]], here(3, "blank line")),
    ("byte order mark", lambda lines: [b"\xef\xbb\xbf" + lines[0], *lines[1:]], here(1, "byte order mark")),
    ("CRLF on one line", lambda lines: [*lines[:4], lines[4] + b"\r", lines[5]], here(5, "carriage return")),
    ("CR between fields", put(5, ", ", ",\r"), here(5, "carriage return")),
    (
        "CRLF everywhere",
        lambda lines: [line + b"\r" for line in lines],
        [("submission", n, "carriage return") for n in range(1, 7)],
    ),
    ("cut off", lambda lines: [*lines[:5], lines[5][:40]], here(6, "broken JSON") + missing(6)),
    ("two objects", lambda lines: [*lines[:4], lines[4] + lines[5]], here(5, "broken JSON") + missing(5, 6)),
    ("trailing comma", put(2, "0}", "0,}"), here(2, "broken JSON") + missing(2)),
    ("array", line(2, b"[20]"), here(2, "not a JSON object: [20]") + missing(2)),
    ("text", line(2, b'"hello"'), here(2, 'not a JSON object: "hello"') + missing(2)),
    ("bare 1", line(2, b"1"), here(2, "not a JSON object: 1") + missing(2)),
    ("nested deeply", line(2, b"[" * 100_000), here(2, "broken JSON") + missing(2)),
    ("endless number", put(2, "20", "2" * 5000), here(2, "broken JSON") + missing(2)),
    ("NUL byte", put(1, "red", "r\0d"), here(1, "broken JSON") + missing(1)),
    ("invalid UTF-8", line(6, b'{"id": 60, "\xff": 1}'), here(6, "invalid UTF-8 at byte 13") + missing(6)),
    ("key twice", put(6, '"id": 60', '"id": 60, "prediction": 0'), here(6, 'key "prediction" is given twice')),
    ("key twice, same value", put(6, '"id": 60', '"id": 60, "id": 60'), here(6, 'key "id" is given twice')),
    ("UTF-16", whole(lambda text: text.decode().encode("utf-16")), here(1, "the file is in UTF-16; save it as UTF-8")),
    ("UTF-16, big end first", whole(lambda text: text.decode().encode("utf-16-be")), here(1, "in UTF-16")),
    ("gzip", whole(gzip.compress), here(1, "the file is compressed by gzip; unpack it (gunzip)")),
    ("zip", whole(lambda text: b"PK\3\4" + text), here(1, "the file is a zip archive")),
    ("empty file", lambda lines: [], here(1, "the file is empty") + missing(1, 2, 3, 4, 5, 6)),
    (
        "several at once",
        lambda lines: put(2, '"vn", ', '"en", "a": 1, ')(put(2, "0}", "7}")(order(1, 2, 4, 3, 5, 5)(lines))),
        [
            *here(2, 'extra field "a"'),
            *here(2, "language was changed"),
            *here(2, "prediction is 7"),
            *here(4, "wrong order"),
            *here(6, "duplicate id 50"),
            *missing(6),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "wanted"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_validator_reports_exactly_the_injected_faults(
    source: Path, valid: Path, change: Callable[..., list[bytes]], wanted: list[tuple[str, int, str]]
) -> None:
    lines = change(valid.read_bytes().split(b"\n")[:-1])
    valid.write_bytes(b"".join(line + b"\n" for line in lines))
    found = validate_submission("QI", source, valid)
    assert [(problem.file, problem.line) for problem in found] == [(file, number) for file, number, _ in wanted]
    for problem, (_, _, what) in zip(found, wanted, strict=True):
        assert what in problem.what
        assert problem.what.isascii()


def test_what_the_validator_does_not_judge(source: Path, valid: Path) -> None:
    turned = [dict(reversed(json.loads(line).items())) for line in valid.read_text().split("\n")[:-1]]
    valid.write_text("\n".join(json.dumps(record, separators=(",", ":")) for record in turned))
    assert validate_submission("QI", source, valid) == []


def test_missing_ids_are_named_by_the_line_of_the_input(tmp_path: Path, source: Path, valid: Path) -> None:
    source.write_bytes(b"\n" + source.read_bytes())
    valid.write_bytes(b"".join(valid.read_bytes().splitlines(keepends=True)[1:]))
    assert validate_submission("QI", source, valid) == [Problem(2, "id 10 is missing from the submission", "input")]


def test_input_of_the_other_task_is_the_one_problem(tmp_path: Path, source: Path, valid: Path) -> None:
    (found,) = validate_submission("QC", source, valid)
    assert (found.file, found.line) == ("input", 1)
    assert found.what == 'task is "QI", not QC: the wrong input file (6 such rows)'
    mixed = save(tmp_path / "mixed.txt", [*INPUT[:2], INPUT[2] | {"task": "QC"}, *INPUT[3:]])
    (found,) = validate_submission("QI", mixed, valid)
    assert (found.file, found.line) == ("input", 3)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", ": the input file has no rows"),
        (b'{"id": 1', ":1: broken JSON"),
        ('{"id": 1}\n'.encode("utf-16"), ": the file is in UTF-16; save it as UTF-8"),
        (gzip.compress(b'{"id": 1}\n', mtime=0), ": the file is compressed by gzip; unpack it (gunzip)"),
        (b'{"id": 1}\r{"id": 2}\r', ": the file has lines that end in CR alone"),
        (
            b'\n{"task": "QI", "id": 1, "language": "en", "origin_query": "q"}',
            ":2: no text in field item_title",
        ),
        (b'{"task": "QI", "id": 1, "language": null}', ":1: no text in field language"),
        (
            b'{"task": "QI", "id": 1, "language": "en", "origin_query": 1}',
            ":1: no text in field origin_query",
        ),
        (b'{"task": "QI", "id": "1", "language": "en", "origin_query": "q", "item_title": ""}', ":1: id "),
    ],
)
def test_broken_input_is_the_users_error(source: Path, valid: Path, content: bytes, what: str) -> None:
    source.write_bytes(content)
    with pytest.raises(UserError) as caught:
        validate_submission("QI", source, valid)
    assert str(caught.value).startswith(f"{source}{what}")


def test_files_that_cannot_be_read_are_the_users_error(tmp_path: Path, source: Path, valid: Path) -> None:
    for one, other in ((tmp_path / "absent", valid), (source, tmp_path / "absent"), (source, tmp_path)):
        with pytest.raises(UserError, match="cannot be read"):
            validate_submission("QI", one, other)


def test_validator_does_not_use_the_writers_code(source: Path, valid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("the validator must not share code with the writer")

    for module in (rows, records, write, score):
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                monkeypatch.setattr(module, name, forbidden)
    monkeypatch.setattr(rows, "TARGET_FIELD", {})
    assert validate_submission("QI", source, valid) == []


def test_every_problem_is_listed() -> None:
    assert format_problems([]) == "no problems"
    assert format_problems([Problem(3, "blank line")]) == "submission line 3: blank line\n1 problem"
    many = format_problems([Problem(n, "id missing", "input") for n in range(1, 5001)]).split("\n")
    assert (len(many), many[4999], many[5000]) == (5001, "input line 5000: id missing", "5000 problems")


def test_long_texts_are_shown_where_they_differ(tmp_path: Path) -> None:
    source = save(tmp_path / "test_QI.txt", [INPUT[0] | {"origin_query": "x" * 900 + "\u202eright" + "x" * 900}])
    write_submission("QI", source, {10: 1}, tmp_path / "out.txt")
    (tmp_path / "out.txt").write_bytes((tmp_path / "out.txt").read_bytes().replace(b"right", b"wrong"))
    (found,) = validate_submission("QI", source, tmp_path / "out.txt")
    assert r"\u202eright" in found.what and r"\u202ewrong" in found.what
    assert "from character 902" in found.what
    assert len(found.what) < 300


# ---- the zip


def test_zip_is_flat_sorted_and_reproducible(tmp_path: Path) -> None:
    for folder, time in (("a", 1_000_000_000), ("b", 1_700_000_000)):
        (tmp_path / folder).mkdir()
        for name in ("submit_QI.txt", "submit_QC.txt"):
            file = tmp_path / folder / name
            file.write_text("é" * 1000)
            file.chmod(0o600 if folder == "a" else 0o644)
            os.utime(file, (time, time))
    for folder, names in (
        ("a", ["submit_QI.txt", "submit_QC.txt"]),
        ("b", ["submit_QC.txt", "submit_QI.txt"]),
    ):
        zip_submission([tmp_path / folder / name for name in names], tmp_path / folder / "submit.zip")
    assert (tmp_path / "a" / "submit.zip").read_bytes() == (tmp_path / "b" / "submit.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a" / "submit.zip") as archive:
        assert archive.namelist() == ["submit_QC.txt", "submit_QI.txt"]
        assert archive.read("submit_QI.txt").decode() == "é" * 1000
        for entry in archive.infolist():
            assert (entry.date_time, entry.compress_type) == ((1980, 1, 1, 0, 0, 0), zipfile.ZIP_DEFLATED)
            assert (entry.external_attr >> 16, entry.create_system) == (0o644, 3)


def test_zip_refuses_missing_files_and_equal_names(tmp_path: Path, valid: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        zip_submission([valid, tmp_path / "absent.txt"], tmp_path / "submit.zip")
    with pytest.raises(UserError, match="have the same name"):
        zip_submission([valid, tmp_path / "other" / "submit_QI.txt"], tmp_path / "submit.zip")
    assert sorted(os.listdir(tmp_path)) == ["submit_QI.txt", "test_QI.txt"]


# ---- scoring


def labels_file(tmp_path: Path, labels: dict[int, int]) -> Path:
    return save(tmp_path / "labels.txt", [{"id": row_id, "label": label} for row_id, label in labels.items()])


def test_labels_are_read(tmp_path: Path) -> None:
    assert read_labels(labels_file(tmp_path, {3: 1, 1: 0})) == {3: 1, 1: 0}


@pytest.mark.parametrize(
    "bad",
    [
        '{"id": 2, "label": true}',
        '{"id": 2, "label": "1"}',
        '{"id": 2, "label": 1.0}',
        '{"id": 2, "label": NaN}',
        '{"id": 2, "label": 0, "label": 1}',
        '{"id": 2}',
        '{"id": 1, "label": 0}',
        '{"id": 0, "label": 0}',
        '{"id": true, "label": 0}',
        '{"label": 0}',
        "[2, 1]",
        "x",
    ],
)
def test_labels_are_read_strictly(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text('{"id": 1, "label": 0}\n' + bad + "\n")
    with pytest.raises(UserError) as caught:
        read_labels(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert str(caught.value).endswith("; repair the label file")


@pytest.fixture
def judged(tmp_path: Path) -> dict[str, Path]:
    """Input in two languages, a submission, and labels and scores in another order than the input."""
    records = [record | {"language": "en" if n < 4 else "pl"} for n, record in enumerate(INPUT)]
    source = save(tmp_path / "dev_QI.txt", records)
    write_submission("QI", source, PREDICTIONS, tmp_path / "submit.txt")
    labels = labels_file(tmp_path, {60: 1, 50: 1, 40: 1, 30: 0, 20: 0, 10: 1})
    frame = pd.DataFrame({"id": [30, 10, 20, 40, 60, 50], "language": "en", "score": [0.8, 0.9, 0.1, 0.3, 0.7, 0.6]})
    frame.to_parquet(tmp_path / "scores.parquet")
    return {
        "source": source,
        "submission": tmp_path / "submit.txt",
        "labels": labels,
        "scores": tmp_path / "scores.parquet",
    }


def test_scores_meet_their_own_rows(judged: dict[str, Path]) -> None:
    found = score_submission(judged["source"], judged["submission"], judged["labels"], judged["scores"])
    truth, guess, scores = [1, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 1], [0.9, 0.1, 0.8, 0.3, 0.6, 0.7]
    assert found.overall == binary_metrics(truth, guess, scores)
    assert found.languages == [
        {"language": "en", **binary_metrics(truth[:4], guess[:4], scores[:4])},
        {"language": "pl", **binary_metrics(truth[4:], guess[4:], scores[4:])},
    ]
    assert found.languages[1]["auc"] is None
    bare = score_submission(judged["source"], judged["submission"], judged["labels"])
    assert (bare.overall["auc"], bare.overall["f1"]) == (None, found.overall["f1"])


def test_other_ids_are_refused_with_counts_and_the_first_few(tmp_path: Path, judged: dict[str, Path]) -> None:
    source, given = judged["source"], judged["submission"]
    with pytest.raises(UserError) as caught:
        score_submission(source, given, labels_file(tmp_path, {10: 1, 7: 0, 8: 1}))
    assert "5 missing (id 20, 30, 40, 50, 60), 2 unknown (id 7, 8)" in str(caught.value)
    labels = labels_file(tmp_path, dict.fromkeys(PREDICTIONS, 1))
    given.write_bytes(given.read_bytes().split(b"\n", 1)[1])
    with pytest.raises(UserError, match=r"submit\.txt: .*1 missing \(id 10\)"):
        score_submission(source, given, labels)


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        ({"id": [10, 20], "score": [0.1, 0.2]}, "4 missing"),
        ({"id": [10, 10], "score": [0.1, 0.2]}, "given twice"),
        ({"id": [10, 20], "score": [0.1, None]}, "not finite"),
        ({"id": ["10"], "score": [0.1]}, "no columns id and score of numbers"),
        ({"id": [10], "score": ["0.1"]}, "no columns id and score of numbers"),
        ({"id": [10]}, "no columns id and score of numbers"),
        ({"id": pd.array([None, 7], "Int64"), "score": [0.1, 0.2]}, "an id is missing"),
    ],
)
def test_scores_that_do_not_fit_are_refused(judged: dict[str, Path], frame: dict[str, list], what: str) -> None:
    pd.DataFrame(frame).to_parquet(judged["scores"])
    with pytest.raises(UserError, match=what):
        score_submission(judged["source"], judged["submission"], judged["labels"], judged["scores"])


def test_scores_with_a_column_twice_are_refused(judged: dict[str, Path]) -> None:
    columns = [pa.array([10, 20]), pa.array([10, 20]), pa.array([0.1, 0.2])]
    pq.write_table(pa.Table.from_arrays(columns, names=["id", "id", "score"]), judged["scores"])
    with pytest.raises(UserError, match="no columns id and score of numbers"):
        score_submission(judged["source"], judged["submission"], judged["labels"], judged["scores"])


def test_scores_that_cannot_be_read_are_refused(judged: dict[str, Path], tmp_path: Path) -> None:
    judged["scores"].write_text("no parquet")
    for path in (judged["scores"], tmp_path / "absent.parquet"):
        with pytest.raises(UserError, match="no readable score table"):
            score_submission(judged["source"], judged["submission"], judged["labels"], path)


def test_a_prediction_of_the_wrong_type_is_not_scored(judged: dict[str, Path]) -> None:
    given = judged["submission"]
    given.write_bytes(given.read_bytes().replace(b'"prediction": 0', b'"prediction": false', 1))
    with pytest.raises(UserError, match=r"submit\.txt:2: prediction is not the integer 0 or 1"):
        score_submission(judged["source"], given, judged["labels"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the competition's real rows are not on this machine")
@pytest.mark.parametrize("task", ["QC", "QI"])
def test_all_positive_on_real_rows_scores_its_floor(tmp_path: Path, task: str) -> None:
    source = SHARED / f"dev_{task}.txt"
    labels = read_labels(SHARED / f"dev_{task}.labels.txt")
    write_submission(task, source, dict.fromkeys(labels, 1), tmp_path / "submit.txt")
    assert validate_submission(task, source, tmp_path / "submit.txt") == []
    found = score_submission(source, tmp_path / "submit.txt", SHARED / f"dev_{task}.labels.txt").overall
    assert found["f1"] == pytest.approx(found["floor_f1"])
    assert found["f1"] == pytest.approx({"QC": 0.809, "QI": 0.814}[task], abs=0.0005)
