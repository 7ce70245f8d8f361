"""What the writer writes is valid, whatever the texts; every fault put into a valid submission is found at its line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import HOSTILE, SPLINTERS, TEXTS, VALUES
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from analyticup.corpus.rows import TARGET_FIELD
from analyticup.errors import UserError
from analyticup.submission.validate import validate_submission
from analyticup.submission.write import write_submission

pytestmark = pytest.mark.filterwarnings("error")
EXAMPLES_PER_FAULT = 8
Lines = list[bytes]


@st.composite
def inputs(draw: st.DrawFn, least: int = 1) -> tuple[str, list[dict[str, Any]]]:
    """(task, rows of an input file) with ids in any order."""
    task = draw(st.sampled_from(list(TARGET_FIELD)))
    ids = draw(st.lists(st.integers(1, 10**12), unique=True, min_size=least, max_size=5))
    rows = [
        {
            "id": number,
            "task": task,
            "language": draw(TEXTS),
            "origin_query": draw(TEXTS),
            TARGET_FIELD[task]: draw(st.one_of(st.none(), TEXTS)),
        }
        for number in ids
    ]
    return task, rows


def save_input(folder: Path, rows: list[dict[str, Any]], escaped: bool = True) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows)
    path = folder / "input.txt"
    path.write_bytes(text.encode("utf-8", "backslashreplace"))
    return path


@settings(max_examples=200)
@given(file=inputs(), escaped=st.booleans(), data=st.data())
def test_what_is_written_is_valid_and_says_what_was_given(tmp_path: Path, file, escaped: bool, data) -> None:
    task, rows = file
    source, out = save_input(tmp_path, rows, escaped), tmp_path / "submit.txt"
    predictions = {row["id"]: data.draw(st.integers(0, 1)) for row in rows}
    write_submission(task, source, predictions, out)
    assert validate_submission(task, source, out) == []
    written = [json.loads(line) for line in out.read_bytes().decode("utf-8").split("\n")[:-1]]
    assert [list(record) for record in written] == [
        ["id", "language", "origin_query", TARGET_FIELD[task], "prediction"]
    ] * len(rows)
    for record, row in zip(written, rows, strict=True):
        assert record == {name: row[name] for name in row if name != "task"} | {"prediction": predictions[row["id"]]}


ODD_PREDICTIONS = st.one_of(st.sampled_from([True, False, None, "1", 0.0, 1.0, 2, -1, 2**70]), st.text(), st.floats())


@settings(max_examples=150)
@given(file=inputs(), data=st.data())
def test_what_the_validator_would_refuse_is_not_written(tmp_path: Path, file, data) -> None:
    task, rows = file
    source, out = save_input(tmp_path, rows), tmp_path / "submit.txt"
    out.unlink(missing_ok=True)
    ids = data.draw(st.lists(st.one_of(st.sampled_from([row["id"] for row in rows]), st.integers(-1, 3)), max_size=6))
    predictions = {number: data.draw(st.one_of(st.integers(0, 1), ODD_PREDICTIONS)) for number in ids}
    sound = set(ids) == {row["id"] for row in rows} and all(
        type(value) is int and value in (0, 1) for value in predictions.values()
    )
    try:
        write_submission(task, source, predictions, out)
    except UserError as error:
        assert not sound and "\n" not in str(error)
        assert [path.name for path in tmp_path.iterdir()] == ["input.txt"]
    else:
        assert sound and validate_submission(task, source, out) == []


def in_line(change: Callable[[bytes], bytes]) -> Callable[[Lines, int], tuple[bytes, int | None]]:
    """A fault inside line `place` (from 0), found at that line."""

    def inject(lines: Lines, place: int) -> tuple[bytes, int | None]:
        changed = change(lines[place])
        assert changed != lines[place]
        return join([*lines[:place], changed, *lines[place + 1 :]]), place + 1

    return inject


def join(lines: Lines) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def field(name: str, value: str) -> Callable[[Lines, int], tuple[bytes, int | None]]:
    """Another JSON value for a field; for `target`, whichever of the two names it has."""
    keys = rb"category_path|item_title" if name == "target" else name.encode()

    def change(line: bytes) -> bytes:
        record = json.loads(line)
        key = next(key for key in record if re.fullmatch(keys.decode(), key))
        before = json.dumps(record[key]).encode()
        rendered = {k: json.dumps(v).encode() for k, v in record.items()}
        rendered[key] = value.encode() if value.encode() != before else b'"another"'
        return b"{" + b", ".join(json.dumps(k).encode() + b": " + v for k, v in rendered.items()) + b"}"

    return in_line(change)


def without(name: str) -> Callable[[Lines, int], tuple[bytes, int | None]]:
    def change(line: bytes) -> bytes:
        record = json.loads(line)
        return json.dumps({k: v for k, v in record.items() if not re.fullmatch(name, k)}).encode()

    return in_line(change)


def more(text: bytes) -> Callable[[Lines, int], tuple[bytes, int | None]]:
    """Further members at the end of the object."""
    return in_line(lambda line: line[:-1] + b", " + text + b"}")


def put(place: int, lines: Lines, *new: bytes) -> bytes:
    return join([*lines[:place], *new, *lines[place:]])


def swapped_texts(lines: Lines, place: int) -> tuple[bytes, int | None]:
    first, second = json.loads(lines[0]), json.loads(lines[1])
    first["origin_query"], second["origin_query"] = second["origin_query"] + "x", first["origin_query"] + "y"
    return join([json.dumps(first).encode(), json.dumps(second).encode(), *lines[2:]]), 1


# Kind -> (lines of a valid submission of three rows and more, a place) -> (bytes, line at which a problem must stand;
# None where the problem stands at a line of the input).
FAULTS: dict[str, Callable[[Lines, int], tuple[bytes, int | None]]] = {
    **{
        f"prediction {value}": field("prediction", value)
        for value in ("true", "false", '"1"', "0.5", "1.0", "0.0", "1e0", "-0.0", "null", "2", "-1", "[1]", "{}", "NaN")
    },
    "prediction 1e999": field("prediction", "1e999"),
    "prediction of 5000 digits": field("prediction", "1" * 5000),
    "prediction nested deeply": field("prediction", "[" * 900 + "]" * 900),
    "no prediction": without("prediction"),
    "no id": without("id"),
    "no language": without("language"),
    "no query": without("origin_query"),
    "no target": without("category_path|item_title"),
    "extra field": more(b'"label": 1'),
    "extra field with an empty name": more(b'"": null'),
    "key twice": more(b'"prediction": 1'),
    "id twice in a row": more(b'"id": 1'),
    "language changed": field("language", '"xx-other"'),
    "query changed": field("origin_query", '"another query"'),
    "query null": field("origin_query", "null"),
    "query a list": field("origin_query", "[1]"),
    "target changed": field("target", '"another target"'),
    "target a number": field("target", "7"),
    "texts swapped": swapped_texts,
    "id unknown": field("id", "999999999999999"),
    "id a text": field("id", '"1"'),
    "id a float": field("id", "1.0"),
    "id true": field("id", "true"),
    "id negative": field("id", "-1"),
    "row missing": lambda lines, place: (join([*lines[:place], *lines[place + 1 :]]), None),
    "row twice": lambda lines, place: (put(len(lines), lines, lines[place]), len(lines) + 1),
    "first row last": lambda lines, place: (join([*lines[1:], lines[0]]), len(lines)),
    "blank line": lambda lines, place: (put(place, lines, b""), place + 1),
    "line of spaces": lambda lines, place: (put(place, lines, b" \t"), place + 1),
    "blank line at the end": lambda lines, place: (join(lines) + b"\n", len(lines) + 1),
    "byte order mark": lambda lines, place: (b"\xef\xbb\xbf" + join(lines), 1),
    "byte order mark inside": lambda lines, place: (join([lines[0], b"\xef\xbb\xbf" + lines[1], *lines[2:]]), 2),
    "CRLF": lambda lines, place: (join(lines).replace(b"\n", b"\r\n"), 1),
    "CR alone": lambda lines, place: (join(lines).replace(b"\n", b"\r"), 1),
    "NUL": in_line(lambda line: line.replace(b'"id"', b'"i\0d"')),
    "NUL after the object": in_line(lambda line: line + b"\0"),
    "invalid UTF-8": in_line(lambda line: line.replace(b'"prediction"', b'"predict\xffion"')),
    "encoded surrogate": in_line(lambda line: line.replace(b'"prediction"', b'"\xed\xa0\x80"')),
    "cut off": in_line(lambda line: line[:-1]),
    "rest behind the object": in_line(lambda line: line + b" x"),
    "two objects on a line": in_line(lambda line: line + line),
    "trailing comma": in_line(lambda line: line[:-1] + b",}"),
    "single quotes": in_line(lambda line: line.replace(b'"prediction"', b"'prediction'")),
    "comment": in_line(lambda line: line + b" # fine"),
    "a list": in_line(lambda line: b"[" + line + b"]"),
    "null": in_line(lambda line: b"null"),
    "nested deeply": in_line(lambda line: b"[" * 100_000),
    "header": lambda lines, place: (put(0, lines, b"id,prediction"), 1),
    "rest behind the last line": lambda lines, place: (join(lines) + b"}", len(lines) + 1),
    "NUL bytes at the end": lambda lines, place: (join(lines) + b"\0" * 20, len(lines) + 1),
    "one JSON array": lambda lines, place: (b"[" + b",\n".join(lines) + b"]\n", 1),
    "UTF-16": lambda lines, place: (join(lines).decode("utf-8").encode("utf-16"), 1),
    "empty file": lambda lines, place: (b"", 1),
    "only a line feed": lambda lines, place: (b"\n", 1),
}


def not_found(folder: Path, number: int, inject: Callable[[Lines, int], tuple[bytes, int | None]]) -> list[bool]:
    """Whether the fault went unnoticed at its line, for each of the submissions that it was put into."""
    missed = []

    @seed(number)
    @settings(max_examples=EXAMPLES_PER_FAULT)
    @given(file=inputs(least=3), place=st.integers(0, 2))
    def run(file: tuple[str, list[dict[str, Any]]], place: int) -> None:
        task, rows = file
        source, out = save_input(folder, rows), folder / "submit.txt"
        write_submission(task, source, {row["id"]: row["id"] % 2 for row in rows}, out)
        content, line = inject(out.read_bytes().split(b"\n")[:-1], place)
        out.write_bytes(content)
        wanted = ("input", place + 1) if line is None else ("submission", line)
        missed.append(
            wanted not in [(problem.file, problem.line) for problem in validate_submission(task, source, out)]
        )

    run()
    return missed


def test_every_injected_fault_is_found_at_its_line(tmp_path: Path) -> None:
    missed = {kind: not_found(tmp_path, number, inject) for number, (kind, inject) in enumerate(FAULTS.items())}
    injected, caught = sum(map(len, missed.values())), sum(part.count(False) for part in missed.values())
    told = f"{len(FAULTS)} kinds of faults, {injected} injected, {caught} caught"
    print(told)
    assert {kind for kind, part in missed.items() if any(part)} == set(), told
    assert len(FAULTS) >= 25 and injected >= len(FAULTS) * EXAMPLES_PER_FAULT // 2, told


@settings(max_examples=300)
@given(file=inputs(), data=st.data())
def test_a_submission_that_passes_means_what_the_input_says(tmp_path: Path, file, data) -> None:
    task, rows = file
    source, out = save_input(tmp_path, rows), tmp_path / "submit.txt"
    write_submission(task, source, dict.fromkeys((row["id"] for row in rows), 1), out)
    content = out.read_bytes()
    at = data.draw(st.integers(0, len(content)))
    new = data.draw(st.sampled_from([b"", *SPLINTERS, *(value.encode() for value in VALUES[:20])]))
    out.write_bytes(content[:at] + new + content[at + data.draw(st.integers(0, 2)) :])
    problems = validate_submission(task, source, out)
    assert all(problem.what.isascii() and problem.what.isprintable() for problem in problems)
    if not problems:
        for line, row in zip(out.read_bytes().decode("utf-8").removesuffix("\n").split("\n"), rows, strict=True):
            record = json.loads(line)
            assert type(record["id"]) is int and type(record.pop("prediction")) is int
            assert record == {name: value for name, value in row.items() if name != "task"}


def test_hostile_texts_of_100k_characters_pass_through(tmp_path: Path) -> None:
    rows = [
        {
            "id": n,
            "task": "QI",
            "language": "en",
            "origin_query": (text or "x") * (100_000 // max(1, len(text))),
            "item_title": text,
        }
        for n, text in enumerate(HOSTILE, 1)
    ]
    source, out = save_input(tmp_path, rows), tmp_path / "submit.txt"
    write_submission("QI", source, dict.fromkeys(range(1, len(rows) + 1), 0), out)
    assert validate_submission("QI", source, out) == []
