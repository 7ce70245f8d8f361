"""Category paths: levels parted by a comma that no space follows (`parts, tools,locks` has two levels)."""

from __future__ import annotations

import re

from analyticup.corpus.text import normalise

Levels = tuple[str, ...]
# How a category relates to another one that is neither the same nor above or below it.
SIBLING, COUSIN, OTHER = "sibling", "cousin", "other"
RELATIONS = (SIBLING, COUSIN, OTHER)
_SEPARATOR = re.compile(r",(?! )")
# The competition marks retired categories in their name; the category meant is the same.
_RETIRED = re.compile(r" ?\(deactivate\)$")


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


def path_levels(path: str) -> Levels:
    """Levels in the form in which they are compared: normalised, without the mark of a retired category."""
    # Split first: normalising makes a separator of a full-width comma inside a name.
    return tuple(_RETIRED.sub("", normalise(level)) for level in split_path(path))


def on_one_line(one: Levels, other: Levels) -> bool:
    """Whether one path is an ancestor or a descendant of the other, or both are the same; False for an empty path."""
    shorter = min(len(one), len(other))
    return shorter > 0 and one[:shorter] == other[:shorter]


def same_leaf(one: Levels, other: Levels) -> bool:
    """Whether both paths end in the same name; False where that name is empty."""
    return bool(one and other and one[-1]) and one[-1] == other[-1]


def relation(one: Levels, other: Levels) -> str:
    """One of RELATIONS: sibling = same parent, cousin = same grandparent but not the same parent, other = the rest.

    The root does not count as a parent: two top-level categories, or two of the second level under different ones, are
    "other" (assumed). Symmetric; not meant for a path and its own ancestor, which are "other" too.
    """
    if len(one) == len(other) > 1:
        if one[:-1] == other[:-1]:
            return SIBLING
        if len(one) > 2 and one[:-2] == other[:-2]:
            return COUSIN
    return OTHER
