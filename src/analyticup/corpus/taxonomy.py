"""Category paths: levels parted by a comma that no space follows (`parts, tools,locks` has two levels)."""

import re

_SEPARATOR = re.compile(r",(?! )")


def split_path(path: str) -> list[str]:
    """Levels of a category path from the root down, unchanged, so that `",".join(split_path(p)) == p`.

    An empty path has no levels. Source: the separator of the competition's `category_path` field.
    """
    return _SEPARATOR.split(path) if path else []


def leaf(path: str) -> str:
    """The last level of a path; "" for an empty path."""
    return split_path(path)[-1] if path else ""


def parent(path: str) -> str:
    """The path without its last level; "" for a top-level or an empty path."""
    return ",".join(split_path(path)[:-1])
