"""The sqlite caches: what is damaged is never handed out."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from analyticup.engine.cache import Cache
from analyticup.errors import UserError

VALUES = {"a": b"\x00\x01", "b": "größer", "c": "[]", "d": b"value that stands in the file as it is"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with closing(Cache(tmp_path / "deep" / "cache.sqlite")) as cache:
        cache.write(VALUES)
    return tmp_path / "deep" / "cache.sqlite"


def read(path: Path, keys: list[str]) -> dict[str, object]:
    with closing(Cache(path)) as cache:
        return cache.read(keys)


def test_values_come_back_as_they_went_in(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(path, [*VALUES, "absent", *map(str, range(1200))]) == VALUES
    assert not capsys.readouterr().err


def test_a_flipped_byte_is_no_value_and_is_replaced(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = path.read_bytes()
    assert content.count(b"value that stands") == 1
    path.write_bytes(content.replace(b"value that stands", b"value that stinks"))
    assert read(path, list(VALUES)) == {name: VALUES[name] for name in "abc"}
    assert capsys.readouterr().err == f"{path}: 1 damaged entries are made again\n"
    with closing(Cache(path)) as cache:
        cache.write({"d": VALUES["d"]})
    assert read(path, list(VALUES)) == VALUES


@pytest.mark.parametrize(
    "change", ["UPDATE entries SET value = 'other' WHERE key = 'b'", "UPDATE entries SET sha256 = NULL WHERE key = 'b'"]
)
def test_an_edited_entry_is_no_value(path: Path, change: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(change)
    assert "b" not in read(path, list(VALUES))


def test_a_cache_of_an_earlier_version_is_filled_anew(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "old.sqlite")) as database, database:
        database.execute("CREATE TABLE vectors (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
        database.execute("INSERT INTO vectors VALUES ('a', 'old')")
    assert read(tmp_path / "old.sqlite", ["a"]) == {}


@pytest.mark.parametrize(
    "damage", [lambda content: b"no database " * 99, lambda content: content[:100] + b"\xff" * (len(content) - 100)]
)
def test_a_broken_file_is_named_with_what_to_do(path: Path, damage) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"cache\.sqlite: the cache cannot be used .*; delete the file and run again"):
        read(path, list(VALUES))
