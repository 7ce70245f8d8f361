"""Texts in the form in which they are compared."""

from __future__ import annotations

import unicodedata


def normalise(text: str) -> str:
    """Form in which texts are compared (assumed): NFKC, casefold, whitespace runs to one space, stripped."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def query_key(text: str) -> str:
    """The `group` of an original row: queries with the same key must never be split across folds."""
    return normalise(text)
