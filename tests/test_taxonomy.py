"""Paths are split where the competition's separator stands, and nothing of them is lost."""

import pytest

from analyticup.corpus.languages import ISO, LANGUAGES
from analyticup.corpus.taxonomy import leaf, parent, split_path

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


def test_languages_of_the_competition() -> None:
    assert list(LANGUAGES) == ["en", "fr", "es", "ko", "pt", "ja", "th", "de", "it", "pl", "ar", "vn", "id"]
    assert LANGUAGES["vn"] == "Vietnamese"
    assert ISO["vn"] == "vi"
    assert {code for code in LANGUAGES if ISO[code] != code} == {"vn"}
