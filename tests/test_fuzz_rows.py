"""Malformed files: every reader ends in a table that accounts for every line, or in one clear line; nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import TEXTS, broken_files
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from analyticup.corpus.rows import TARGET_FIELD, ReadResult, load_rows, read_split, save_rows, write_rejects
from analyticup.errors import UserError
from analyticup.submission.score import read_labels, score_submission
from analyticup.submission.validate import validate_submission

ROWS = 4
AT_LEAST = 2000
# Warnings of a library would reach the user's terminal.
pytestmark = pytest.mark.filterwarnings("error")


class Tried:
    """Runs a reader over malformed files; counts the distinct ones, and those refused, by reader."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: set[bytes] = set()
        self.refused: set[bytes] = set()
        self.calls = 0

    def __call__(self, records: st.SearchStrategy, examples: int, read: Callable[[Path, list[bytes]], None]) -> None:
        path = self.folder / "some.txt"
        self.calls += 1

        # Without a seed of its own, every reader would be given the same files.
        @seed(self.calls)
        @settings(max_examples=examples)
        @given(records.flatmap(broken_files))
        def run(file: tuple[bytes, list[bytes]]) -> None:
            content, sound = file
            path.write_bytes(content)
            changed = {hashlib.sha256(content).digest()} if lines_of(content) != sound else set()
            self.files |= changed
            try:
                read(path, sound)
            except UserError as error:
                check_message(str(error), path)
                self.refused |= changed

        run()


@st.composite
def records(draw: st.DrawFn, task: str, **more: st.SearchStrategy) -> list[dict[str, Any]]:
    language = st.sampled_from(["en", "fr", "vn", "th", "sv"])
    return [
        {
            "id": number,
            "task": task,
            "language": draw(language),
            "origin_query": draw(TEXTS),
            TARGET_FIELD[task]: draw(st.one_of(st.none(), TEXTS)),
            **{name: draw(values) for name, values in more.items()},
        }
        for number in range(1, ROWS + 1)
    ]


def check_message(message: str, path: Path) -> None:
    """One line in plain characters that names the file, says what is wrong, and, after a semicolon, what to do."""
    assert message.isprintable() and len(message) < 600, message
    assert str(path) in message and "; " in message
    # Where the ids of two files differ, the message begins with the other one.
    assert re.match(rf"{re.escape(str(path.parent))}/\w+\.txt:(\d+:)? \w", message), message


def lines_of(content: bytes) -> list[bytes]:
    """Lines as the README has them, counted without the reader's code."""
    body = content[3:] if content[:3] == b"\xef\xbb\xbf" else content
    lines = body.split(b"\n")
    lines = lines[:-1] if lines[-1] == b"" else lines
    return [line[:-1] if line.endswith(b"\r") else line for line in lines]


def whole_text(text: str | None) -> str:
    """What the reader keeps of a text: half a surrogate pair becomes U+FFFD, a missing or blank target nothing."""
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text or "")


def check_accounts(result: ReadResult, content: bytes, sound: list[bytes], task: str, split: str) -> None:
    """No line is lost or invented, and every row holds the texts of its own line."""
    lines = lines_of(content)
    blank = {number for number, line in enumerate(lines, 1) if not line.strip()}
    rejected = {reject.line: reject for reject in result.rejects}
    assert len(rejected) == len(result.rejects)
    assert result.lines == len(lines) == len(result.rows) + len(rejected) + len(blank)
    assert result.notes.get("blank line", 0) == len(blank)
    for number, reject in rejected.items():
        line = lines[number - 1]
        assert reject.raw == line.decode("utf-8", "replace") and number not in blank
        # Of a sound line, only what the README lists may be wrong: a text or a title, or an id that came before.
        expected = ("duplicate id", "origin_query is blank", "is null", "is blank", "text longer", "lone surrogate")
        assert line not in sound or any(reason in reject.reason for reason in expected), reject
    kept = [number for number in range(1, len(lines) + 1) if number not in blank and number not in rejected]
    for number, row in zip(kept, result.rows.to_dict("records"), strict=True):
        check_row(row, json.loads(lines[number - 1]), task, split)


def check_row(row: dict[str, Any], given_record: dict[str, Any], task: str, split: str) -> None:
    target = given_record[TARGET_FIELD[task]]
    assert row["row_id"] == f"{split}-{given_record['id']}" and row["task"] == task
    assert row["language"] == whole_text(given_record["language"])
    assert row["query"] == whole_text(given_record["origin_query"])
    assert row["target"] == (whole_text(target) if target and target.strip() else "")
    if split == "train":
        assert row["label"] == given_record["label"] and type(given_record["label"]) is int
    else:
        assert row["label"] is None or row["label"] != row["label"]


def read_as(tried: Tried, task: str, split: str) -> Callable[[Path, list[bytes]], None]:
    def read(path: Path, sound: list[bytes]) -> None:
        result = read_split(path, task, split)
        check_accounts(result, path.read_bytes(), sound, task, split)
        if split == "dev":
            # Where texts are kept that would cost a training row.
            save_rows(result.rows, tried.folder / "rows.parquet")
            assert load_rows(tried.folder / "rows.parquet").equals(result.rows)
        write_rejects(result.rejects, tried.folder / "rejects.jsonl")
        written = (tried.folder / "rejects.jsonl").read_bytes().decode("utf-8").split("\n")[:-1]
        assert [json.loads(line)["line"] for line in written] == [reject.line for reject in result.rejects]

    return read


def read_label_file(path: Path, sound: list[bytes]) -> None:
    labels = read_labels(path)
    records = [json.loads(line) for line in lines_of(path.read_bytes()) if line.strip()]
    assert list(labels.items()) == [(record["id"], record["label"]) for record in records]
    assert all(type(label) is int and label in (0, 1) for label in labels.values())


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score_parts(folder: Path) -> dict[str, Path]:
    """A sound input, submission and label file of ROWS rows."""
    texts = {"language": "en", "origin_query": "q", "item_title": "t"}
    ids = range(1, ROWS + 1)
    return {
        "input": save(folder / "input.txt", [{"id": n, "task": "QI", **texts} for n in ids]),
        "submission": save(folder / "submission.txt", [{"id": n, **texts, "prediction": n % 2} for n in ids]),
        "labels": save(folder / "labels.txt", [{"id": n, "label": n // 3} for n in ids]),
    }


def score_with(parts: dict[str, Path], name: str) -> Callable[[Path, list[bytes]], None]:
    def read(path: Path, sound: list[bytes]) -> None:
        files = {**parts, name: path}
        scores = score_submission(files["input"], files["submission"], files["labels"])
        assert scores.overall["rows"] == ROWS == sum(entry["rows"] for entry in scores.languages)

    return read


def validate_with(parts: dict[str, Path], name: str) -> Callable[[Path, list[bytes]], None]:
    def read(path: Path, sound: list[bytes]) -> None:
        files = {**parts, name: path}
        for problem in validate_submission("QI", files["input"], files["submission"]):
            assert problem.line >= 1 and problem.what.isprintable() and problem.what.isascii()
            assert len(problem.what) < 400

    return read


@pytest.mark.slow
def test_malformed_files_end_in_a_full_account_or_in_one_line(tmp_path: Path) -> None:
    parts = score_parts(tmp_path)
    tried = Tried(tmp_path)
    bits = st.integers(0, 1)
    for task in TARGET_FIELD:
        for split in ("train", "dev", "test"):
            tried(records(task, label=bits), 420, read_as(tried, task, split))
    tried(records("QI", label=bits), 200, read_label_file)
    for name, more in (("input", {}), ("submission", {"prediction": bits}), ("labels", {"label": bits})):
        tried(records("QI", **more), 150, score_with(parts, name))
    for name, more in (("input", {}), ("submission", {"prediction": bits})):
        tried(records("QI", **more), 150, validate_with(parts, name))
    told = f"{len(tried.files)} malformed files, {len(tried.refused)} refused as a whole, 0 tracebacks"
    print(told)
    assert len(tried.files) >= AT_LEAST, told
    # Both ways to end are met often.
    assert 200 < len(tried.refused) < len(tried.files) - 200, told
