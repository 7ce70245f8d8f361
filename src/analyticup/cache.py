"""Small sqlite caches of costly results (vectors, translations), filled batch by batch."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analyticup.errors import UserError


def open_cache(path: Path, table: str) -> sqlite3.Connection:
    """Open or make a sqlite cache holding `table`, "name (columns)"; UserError where the file is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cache = sqlite3.connect(path, timeout=60)
    try:
        with cache:
            cache.execute(f"CREATE TABLE IF NOT EXISTS {table}")
    except sqlite3.DatabaseError as error:
        cache.close()
        raise UserError(f"{path}: the cache cannot be used ({error}); delete the file and run again") from error
    return cache


def read_cache(cache: sqlite3.Connection, table: str, keys: list[str]) -> dict[str, Any]:
    """key -> value for those of `keys` that stand in the two-column `table`."""
    found: dict[str, Any] = {}
    for part in batches(keys, 500):
        marks = ",".join("?" * len(part))
        found.update(cache.execute(f"SELECT key, value FROM {table} WHERE key IN ({marks})", part))
    return found


def batches(items: Any, size: int) -> Iterator[Any]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
