"""Paths are split where the competition's separator stands, and nothing of them is lost."""

import pytest

from analyticup.corpus.languages import ISO, LANGUAGES
from analyticup.corpus.taxonomy import (
    RELATIONS,
    leaf,
    on_one_line,
    parent,
    path_levels,
    relation,
    same_leaf,
    split_path,
)
from analyticup.settings.schema import CHOICES

CASES = [
    ("cars, boats & tools,outer parts,locks & keys", ["cars, boats & tools", "outer parts", "locks & keys"]),
    ("toys", ["toys"]),
    ("costumes\uff08deactivate\uff09,hats", ["costumes\uff08deactivate\uff09", "hats"]),
    ("a,b,", ["a", "b", ""]),
    ("a,,b", ["a", "", "b"]),
    ("a,, b", ["a", ", b"]),
    ("a,\u00a0b", ["a", "\u00a0b"]),
    ("", []),
]


@pytest.mark.parametrize(("path", "levels"), CASES)
def test_levels(path: str, levels: list[str]) -> None:
    assert split_path(path) == levels
    assert ",".join(split_path(path)) == path


def test_leaf_and_parent_put_together_give_the_path() -> None:
    path = "cars, boats & tools,outer parts,locks, keys"
    assert leaf(path) == "locks, keys"
    assert parent(path) == "cars, boats & tools,outer parts"
    assert (leaf("toys"), parent("toys")) == ("toys", "")
    assert (leaf(""), parent("")) == ("", "")


def test_levels_are_compared_normalised_and_without_the_mark_of_retirement() -> None:
    assert path_levels("Cars, Boats  & Tools,\uff2cocks ") == ("cars, boats & tools", "locks")
    assert path_levels("costumes\uff08deactivate\uff09,hats (deactivate)") == ("costumes", "hats")
    # A full-width comma is compared as a plain one, but parts nothing.
    assert path_levels("a\uff0cb,c") == ("a,b", "c")
    assert path_levels("") == ()


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a", "a,b,c", True),
        ("a,b", "a,b", True),
        ("a,b", "A,B ,c", True),
        ("a,b", "a,c", False),
        ("a", "a, b", False),
        ("b", "a,b", False),
        ("", "a", False),
        ("", "", False),
    ],
)
def test_paths_on_one_line(one: str, other: str, expected: bool) -> None:
    assert on_one_line(path_levels(one), path_levels(other)) is expected
    assert on_one_line(path_levels(other), path_levels(one)) is expected


def test_same_leaf() -> None:
    assert same_leaf(path_levels("a,Shoes"), path_levels("b,c,shoes "))
    assert not same_leaf(path_levels("a,shoes"), path_levels("shoes,b"))
    assert not same_leaf(path_levels("a,"), path_levels("b,"))
    assert not same_leaf((), ())


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a,b,c", "a,b,d", "sibling"),
        ("a,b", "a,c", "sibling"),
        ("a,b,c", "A, b,d", "other"),
        ("a,b,c", "A,B,d", "sibling"),
        ("a,b,c", "a,x,c", "cousin"),
        ("a,b,c,d", "a,b,x,y", "cousin"),
        ("a,b,c,d", "a,x,c,d", "other"),
        ("a,b,c", "a,x", "other"),
        ("a,b", "c,d", "other"),
        ("a", "b", "other"),
        ("a", "a,b", "other"),
        ("", "a", "other"),
    ],
)
def test_relation(one: str, other: str, expected: str) -> None:
    assert relation(path_levels(one), path_levels(other)) == expected
    assert relation(path_levels(other), path_levels(one)) == expected


def test_the_settings_name_all_relations() -> None:
    assert CHOICES["negatives.relations"] == RELATIONS


def test_languages_of_the_competition() -> None:
    assert list(LANGUAGES) == ["en", "fr", "es", "ko", "pt", "ja", "th", "de", "it", "pl", "ar", "vn", "id"]
    assert LANGUAGES["vn"] == "Vietnamese"
    assert ISO["vn"] == "vi"
    assert {code for code in LANGUAGES if ISO[code] != code} == {"vn"}
