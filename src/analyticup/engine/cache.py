"""Small sqlite caches of costly results (vectors, translations), filled batch by batch."""

from __future__ import annotations

import hashlib
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from analyticup.errors import UserError, machine_trouble


class Cache:
    """Values (bytes or text) by text key in one sqlite file, each with a checksum; a damaged one counts as absent.

    Every method raises UserError where the file is not a database or is damaged.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        with self._named():
            self._database = sqlite3.connect(path, timeout=60)
        with self._named(), self._database:
            self._database.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value, sha256 TEXT)")

    def read(self, keys: Sequence[str]) -> dict[str, Any]:
        """key -> value for those of `keys` that are there; says so where some are damaged."""
        found = self._rows("key, value, sha256", keys)
        whole = {key: value for key, value, digest in found if digest == _checksum(key, value)}
        if len(whole) < len(found):
            print(f"{self.path}: {len(found) - len(whole)} damaged entries are made again", file=sys.stderr, flush=True)
        return whole

    def absent(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` that are not there, in their order."""
        found = {key for (key,) in self._rows("key", keys)}
        return [key for key in keys if key not in found]

    def _rows(self, columns: str, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        with self._named():
            for part in batches(keys, 500):
                marks = ",".join("?" * len(part))
                found += self._database.execute(f"SELECT {columns} FROM entries WHERE key IN ({marks})", part)
        return found

    def claim(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` that no one has claimed yet, and which are now claimed: of several processes, one makes a
        value."""
        with self._named(), self._database:
            self._database.execute("CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY)")
            insert = "INSERT OR IGNORE INTO claims VALUES (?)"
            return [key for key in keys if self._database.execute(insert, (key,)).rowcount]

    def write(self, values: Mapping[str, Any]) -> None:
        """Adds or replaces entries, all or none."""
        rows = [(key, value, _checksum(key, value)) for key, value in values.items()]
        with self._named(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if hasattr(self, "_database"):
                self.close()
            # A full disk does not mean that the file is broken.
            if machine_trouble(error):
                raise
            # Neither do another program that has it open, and a filesystem without locks.
            sound = isinstance(error, sqlite3.OperationalError)
            advice = "end what else uses it, or set paths.cache to a local disk" if sound else "delete the file"
            raise UserError(f"{self.path}: the cache cannot be used ({error}); {advice} and run again") from error


def text_key(kind: str, text: str) -> str:
    """A key for a text that says nothing of it; a lone surrogate has one too."""
    return f"{kind}:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _checksum(key: str, value: Any) -> str:
    content = value if isinstance(value, bytes) else str(value).encode()
    return hashlib.sha256(key.encode() + b"\0" + content).hexdigest()


def batches(items: Any, size: int) -> Iterator[Any]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
