"""Reading: every kind of bad input has one defined treatment, and every line of a file is accounted for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from analyticup.corpus import rows
from analyticup.corpus.rows import COLUMNS, ReadResult, load_rows, make_rows, read_split, save_rows
from analyticup.corpus.text import normalise, query_key
from analyticup.errors import UserError

SRC = Path(__file__).resolve().parents[1] / "src"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "competition"
ROW = {"id": 3, "task": "QI", "language": "fr", "origin_query": "lampe", "item_title": "Lamp", "label": 1}


def line(**changes: Any) -> bytes:
    """The row as a line, with fields changed; ... takes a field out."""
    row = {name: value for name, value in {**ROW, **changes}.items() if value is not ...}
    return json.dumps(row, ensure_ascii=False).encode()


def good(row_id: int, split: str) -> bytes:
    return line(id=row_id, label=0 if split == "train" else ...)


def read(path: Path, bad: bytes, split: str, ending: bytes = b"\n") -> ReadResult:
    """Reads a file whose third line is `bad`, between good rows with ids 1, 2, 4 and 5."""
    before, after = [good(1, split), good(2, split)], [good(4, split), good(5, split)]
    path.write_bytes(ending.join([*before, bad, *after]) + ending)
    result = read_split(path, "QI", split)
    blank = result.notes.get("blank line", 0)
    assert result.lines == 5 == len(result.rows) + len(result.rejects) + blank
    return result


# What is wrong, the line, the reason of its reject in train, and for dev and test either the fault that
# refuses the file or the (query, target) that are kept.
FAULTS: list[tuple[str, bytes, str, str | tuple[str, str]]] = [
    ("cut off", line()[:-5], "broken JSON", "broken JSON"),
    ("NaN", line(label=float("nan")), "broken JSON", "broken JSON (NaN is not a JSON value)"),
    ("raw tab in a text", line().replace(b"lampe", b"la\tmpe"), "broken JSON", "broken JSON"),
    ("second object", line() + b" {}", "broken JSON", "broken JSON"),
    ("second byte order mark", b"\xef\xbb\xbf" + line(), "broken JSON", "broken JSON"),
    ("nested too deeply", b"[" * 100_000, "broken JSON", "broken JSON"),
    ("number without end", line(id=7).replace(b"7", b"7" * 5000), "broken JSON", "broken JSON"),
    ("key twice", line()[:-1] + b', "label": 0}', "duplicate key", "duplicate key"),
    ("array", b"[1, 2]", "not a JSON object", "not a JSON object"),
    ("number", b"17", "not a JSON object", "not a JSON object"),
    ("null", b"null", "not a JSON object", "not a JSON object"),
    ("invalid UTF-8", line().replace(b"lampe", b"l\xe9mpe"), "invalid UTF-8", "invalid UTF-8 (byte "),
    ("encoded surrogate", line().replace(b"lampe", b"\xed\xa0\x80"), "invalid UTF-8", "invalid UTF-8"),
    ("NUL byte", line().replace(b"lampe", b"l\0mpe"), "NUL byte", "NUL byte"),
    ("no id", line(id=...), "missing field id", "missing field id"),
    ("id true", line(id=True), "id is not a whole number from 1", "id is not a whole number from 1"),
    ("id text", line(id="3"), "id is not a whole number from 1", "id is not a whole number from 1"),
    ("id 3.0", line(id=3.0), "id is not a whole number from 1", "id is not a whole number from 1"),
    ("id 0", line(id=0), "id is not a whole number from 1", "id is not a whole number from 1"),
    ("id above 64 bit", line(id=2**63), "id is not a whole number from 1", "id is not a whole number from 1"),
    ("id twice", line(id=2), "duplicate id", "duplicate id (2)"),
    ("no task", line(task=...), "missing field task", "missing field task"),
    ("task null", line(task=None), "task is not a text", "task is not a text"),
    ("no language", line(language=...), "missing field language", "missing field language"),
    ("language empty", line(language=""), "missing field language", "missing field language"),
    ("language blank", line(language=" "), "missing field language", "missing field language"),
    ("language number", line(language=1), "language is not a text", "language is not a text"),
    ("no query", line(origin_query=...), "missing field origin_query", "missing field origin_query"),
    ("query null", line(origin_query=None), "origin_query is not a text", "origin_query is not a text"),
    ("query list", line(origin_query=["a"]), "origin_query is not a text", "origin_query is not a text"),
    ("no title", line(item_title=...), "missing field item_title", "missing field item_title"),
    ("title number", line(item_title=4), "item_title is not a text", "item_title is not a text"),
    ("title null", line(item_title=None), "item_title is null", ("lampe", "")),
    ("title empty", line(item_title=""), "item_title is blank", ("lampe", "")),
    ("title blank", line(item_title=" \u3000\t"), "item_title is blank", ("lampe", "")),
    ("query empty", line(origin_query=""), "origin_query is blank", ("", "Lamp")),
    ("query blank", line(origin_query=" \u3000"), "origin_query is blank", (" \u3000", "Lamp")),
    ("query long", line(origin_query="x" * 2001), "text longer than 2000 characters", ("x" * 2001, "Lamp")),
    ("title long", line(item_title="é" * 2001), "text longer than 2000 characters", ("lampe", "é" * 2001)),
    (
        "lone surrogate",
        line(origin_query="a☃").replace("☃".encode(), rb"\ud800"),
        "lone surrogate in a text",
        ("a\ufffd", "Lamp"),
    ),
    (
        "lone surrogate in a language",
        line(language="☃").replace("☃".encode(), rb"\udfff"),
        "lone surrogate in a text",
        ("lampe", "Lamp"),
    ),
    ("no label", line(label=...), "label is not 0 or 1", ("lampe", "Lamp")),
    ("label true", line(label=True), "label is not 0 or 1", ("lampe", "Lamp")),
    ("label text", line(label="1"), "label is not 0 or 1", ("lampe", "Lamp")),
    ("label 0.5", line(label=0.5), "label is not 0 or 1", ("lampe", "Lamp")),
    ("label 1.0", line(label=1.0), "label is not 0 or 1", ("lampe", "Lamp")),
    ("label null", line(label=None), "label is not 0 or 1", ("lampe", "Lamp")),
    ("label 2", line(label=2), "label is not 0 or 1", ("lampe", "Lamp")),
]
NAMES = [fault[0] for fault in FAULTS]


@pytest.mark.parametrize(("bad", "reason"), [(fault[1], fault[2]) for fault in FAULTS], ids=NAMES)
def test_bad_training_line_is_rejected_with_its_reason(tmp_path: Path, bad: bytes, reason: str) -> None:
    result = read(tmp_path / "train_QI.txt", bad, "train")
    (reject,) = result.rejects
    assert (reject.file, reject.line, reject.reason) == ("train_QI.txt", 3, reason)
    assert reject.raw == bad.decode("utf-8", errors="replace")
    assert list(result.rows["row_id"]) == ["train-1", "train-2", "train-4", "train-5"]
    assert list(result.rows["label"]) == [0, 0, 0, 0]


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize(("bad", "reason", "treatment"), [fault[1:] for fault in FAULTS], ids=NAMES)
def test_bad_dev_line_is_kept_or_refuses_the_file(
    tmp_path: Path, bad: bytes, reason: str, treatment: str | tuple[str, str], split: str
) -> None:
    path = tmp_path / "some.txt"
    if isinstance(treatment, str):
        with pytest.raises(UserError) as caught:
            read(path, bad, split)
        assert str(caught.value).startswith(f"{path}:3: {treatment}")
        assert str(caught.value).endswith(f"; repair it: every {split} row is needed")
        assert "\n" not in str(caught.value)
        return
    result = read(path, bad, split)
    assert list(result.rows["row_id"]) == [f"{split}-{number}" for number in range(1, 6)]
    assert tuple(result.rows.loc[2, ["query", "target"]]) == treatment
    assert result.notes == ({} if reason == "label is not 0 or 1" else result.notes | {reason: 1})
    assert result.rows["label"].isna().all()
    save_rows(result.rows, tmp_path / "rows.parquet")
    assert load_rows(tmp_path / "rows.parquet").equals(result.rows)


# Unusual lines that are kept in every split, and the note that counts them.
KEPT = [
    ("extra fields", line(shop="x", more={"a": [1]}), {}),
    ("own language", line(language="sv"), {'language "sv" outside the competition': 1}),
    ("vi is not vn", line(language="vi"), {'language "vi" outside the competition': 1}),
    ("escaped NUL", line(origin_query="a\0b"), {}),
    ("line separator", line(item_title="a\u2028b\u2029c\x85d"), {}),
    ("2000 characters", line(origin_query="x" * 2000), {}),
    ("same texts, other label", line(label=0), {}),
    ("capitals and spaces", line(origin_query="  LAMPE  à\u3000Huile "), {}),
    ("largest id", line(id=2**63 - 1), {}),
]


@pytest.mark.parametrize("split", rows.SPLITS)
@pytest.mark.parametrize(("kept", "notes"), [case[1:] for case in KEPT], ids=[case[0] for case in KEPT])
def test_unusual_line_is_kept_and_noted(tmp_path: Path, kept: bytes, notes: dict[str, int], split: str) -> None:
    result = read(tmp_path / "some.txt", kept, split)
    wanted = json.loads(kept)
    assert result.rejects == []
    assert result.notes == notes
    found = result.rows.iloc[2]
    assert rows.original_id(found["row_id"]) == wanted["id"]
    assert list(found[["task", "language", "query", "target", "origin", "source_id"]]) == [
        "QI", wanted["language"], wanted["origin_query"], wanted["item_title"], "original", "",
    ]  # fmt: skip
    assert found["group"] == " ".join(wanted["origin_query"].lower().split())


@pytest.mark.parametrize("split", rows.SPLITS)
@pytest.mark.parametrize("blank", [b"", b"   ", b"\t"])
def test_blank_lines_are_skipped_and_counted(tmp_path: Path, blank: bytes, split: str) -> None:
    result = read(tmp_path / "some.txt", blank, split)
    assert (len(result.rows), result.notes) == (4, {"blank line": 1})


@pytest.mark.parametrize("split", rows.SPLITS)
def test_byte_order_mark_and_crlf_change_nothing(tmp_path: Path, split: str) -> None:
    plain = read(tmp_path / "plain.txt", line(), split)
    windows = read(tmp_path / "windows.txt", line(), split, ending=b"\r\n")
    assert windows.rows.equals(plain.rows)
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "windows.txt").read_bytes())
    marked = read_split(tmp_path / "bom.txt", "QI", split)
    assert marked.rows.equals(plain.rows)
    assert marked.notes == {"byte order mark": 1}


def test_reject_of_a_crlf_file_holds_the_line_without_its_end(tmp_path: Path) -> None:
    (reject,) = read(tmp_path / "train_QI.txt", b"oops", "train", ending=b"\r\n").rejects
    assert reject.raw == "oops"


def test_last_line_needs_no_newline(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_bytes(good(1, "dev") + b"\n" + good(2, "dev"))
    assert len(read_split(tmp_path / "some.txt", "QI", "dev").rows) == 2


@pytest.mark.parametrize("split", rows.SPLITS)
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_file_without_rows_is_refused(tmp_path: Path, content: bytes, split: str) -> None:
    path = tmp_path / "some.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="the file has no rows"):
        read_split(path, "QI", split)


@pytest.mark.parametrize("split", rows.SPLITS)
def test_missing_file_and_folder_are_refused(tmp_path: Path, split: str) -> None:
    with pytest.raises(UserError, match=r"absent\.txt: no such file"):
        read_split(tmp_path / "absent.txt", "QI", split)
    with pytest.raises(UserError, match="not a file"):
        read_split(tmp_path, "QI", split)


def test_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "some.txt").write_bytes(good(1, "dev"))
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(UserError, match=r"some\.txt: cannot be read \(Permission denied\); check its permissions"):
        read_split(tmp_path / "some.txt", "QI", "dev")


@pytest.mark.parametrize("split", rows.SPLITS)
def test_row_of_the_other_task_refuses_the_file(tmp_path: Path, split: str) -> None:
    path = tmp_path / "some.txt"
    with pytest.raises(UserError) as caught:
        read(path, line(task="QC"), split)
    assert str(caught.value) == f'{path}:3: task is "QC", not QI; give the QI file'


def test_more_than_half_of_the_training_lines_rejected_refuses_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train_QI.txt"
    half = [good(1, "train"), b"", b"oops", line(id=2), line(label=7)]
    path.write_bytes(b"\n".join(half))
    assert len(read_split(path, "QI", "train").rejects) == 2
    path.write_bytes(b"\n".join([*half, b"{}"]))
    with pytest.raises(UserError) as caught:
        read_split(path, "QI", "train")
    assert f"{path}:3: broken JSON, the first of 3 lines refused of 5; " in str(caught.value)


def test_id_of_a_rejected_line_is_free_for_a_later_one(tmp_path: Path) -> None:
    path = tmp_path / "train_QI.txt"
    path.write_bytes(b"\n".join([good(1, "train"), line(label=None), line(label=1)]))
    result = read_split(path, "QI", "train")
    assert list(result.rows["row_id"]) == ["train-1", "train-3"]
    assert [reject.line for reject in result.rejects] == [2]


def test_category_rows_take_their_own_target(tmp_path: Path) -> None:
    path = tmp_path / "dev_QC.txt"
    path.write_bytes(line(task="QC", category_path="home, garden,lamps", item_title="never read"))
    assert list(read_split(path, "QC", "dev").rows["target"]) == ["home, garden,lamps"]


def test_max_chars_is_the_callers(tmp_path: Path) -> None:
    path = tmp_path / "train_QI.txt"
    path.write_bytes(
        b"\n".join(
            [
                line(id=1, origin_query="abc", item_title="abcd"),
                line(id=2, origin_query="abc", item_title="abc"),
            ]
        )
    )
    result = read_split(path, "QI", "train", max_chars=3)
    assert [(reject.line, reject.reason) for reject in result.rejects] == [(1, "text longer than 3 characters")]


def test_rejects_file_is_json_lines(tmp_path: Path) -> None:
    result = read(tmp_path / "train_QI.txt", b'{"id": 3, "caf\xe9\x01\0": "\xe2\x98\x83"', "train")
    rows.write_rejects(result.rejects, tmp_path / "rejects.jsonl")
    written = (tmp_path / "rejects.jsonl").read_bytes()
    assert written.endswith(b"\n")
    assert "☃" in written.decode("utf-8")
    assert json.loads(written) == {
        "file": "train_QI.txt",
        "line": 3,
        "reason": "NUL byte",
        "raw": '{"id": 3, "caf\ufffd\x01\0": "☃"',
    }
    rows.write_rejects([], tmp_path / "none.jsonl")
    assert (tmp_path / "none.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("  iPhone   13\u3000Pro ", "iphone 13 pro"),
        ("ＳＴＲＡẞＥ", "strasse"),
        ("cafe\u0301", "café"),
        ("Ⅻ ﬁ", "xii fi"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_normalise(text: str, key: str) -> None:
    assert normalise(text) == query_key(text) == key
    assert normalise(key) == key
    assert normalise(unicodedata.normalize("NFD", text)) == key


def table(**changes: list[Any]) -> Any:
    columns: dict[str, list[Any]] = {name: ["x", "ไทย"] for name in COLUMNS} | {"label": [1, None]}
    return make_rows(columns | {"row_id": ["dev-1", "dev-2"]} | changes)


def test_same_rows_give_same_bytes(tmp_path: Path) -> None:
    first, second, third = tmp_path / "a.parquet", tmp_path / "b.parquet", tmp_path / "c.parquet"
    save_rows(table(), first)
    save_rows(table().set_index([[7, 3]]), second)
    save_rows(load_rows(first), third)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()
    save_rows(table(label=[0, None]), second)
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize("frame", [table(), rows.empty_rows()], ids=["two rows", "no rows"])
def test_rows_come_back_from_parquet_as_they_were(tmp_path: Path, frame: Any) -> None:
    save_rows(frame, tmp_path / "rows.parquet")
    loaded = load_rows(tmp_path / "rows.parquet")
    assert tuple(loaded.columns) == COLUMNS
    assert loaded.dtypes.equals(frame.dtypes)
    assert str(loaded["label"].dtype) == "Int8"
    assert loaded.equals(frame)


def test_table_that_breaks_the_schema_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    with pytest.raises(ValueError, match="'dev-1' is in the table twice"):
        save_rows(table(row_id=["dev-1", "dev-1"]), path)
    with pytest.raises(ValueError, match="a label is"):
        save_rows(table(label=[2, None]), path)
    with pytest.raises(ValueError, match="has the columns"):
        save_rows(table()[list(reversed(COLUMNS))], path)
    assert not path.exists()


def test_file_that_is_no_rows_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no readable rows table"):
        load_rows(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match="no readable rows table"):
        load_rows(tmp_path / "text.parquet")
    table()[["row_id", "label"]].to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="not the columns and types"):
        load_rows(tmp_path / "other.parquet")


def test_saving_and_loading_write_nowhere_else_and_print_nothing(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    code = (
        "from pathlib import Path; from analyticup.corpus.rows import *\n"
        "save_rows(make_rows({n: [1] if n == 'label' else ['x'] for n in COLUMNS}), Path('rows.parquet'))\n"
        "assert len(load_rows(Path('rows.parquet'))) == 1\n"
    )
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(SRC), "TMPDIR": str(work)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True, check=True
    )
    assert (ended.stdout, ended.stderr) == ("", "")
    assert list(home.rglob("*")) == []
    assert [path.name for path in work.rglob("*")] == ["rows.parquet"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the competition's real rows are not on this machine")
@pytest.mark.parametrize("name", ["train_QC", "dev_QC", "train_QI", "dev_QI"])
def test_real_rows_are_read_whole(name: str) -> None:
    split, task = name.split("_")
    path = SHARED / f"{name}.txt"
    result = read_split(path, task, split)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    assert (len(result.rows), result.rejects, result.notes) == (len(lines), [], {})
    assert result.rows["label"].isna().all() == (split != "train")
    assert result.rows["group"].nunique() <= result.rows["query"].nunique()
    assert json.loads(lines[-1])["origin_query"] == result.rows["query"].iloc[-1]
