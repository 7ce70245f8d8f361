"""What a translation model wrote, tidied, and why it cannot be a translation. All limits are assumed."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Final

from analyticup.augmentation.translators.base import Translation
from analyticup.corpus.languages import ISO, LANGUAGES
from analyticup.corpus.text import normalise

# Raised when the rules below change, so that what they let into a cache is not used any more.
RULES: Final = 1
_QUOTES = ('""', "''", "“”", "\u2018\u2019", "„“", "«»", "「」", "『』")
# A longer output is a loop or an explanation, not a translation.
_MAX_GROWTH, _MAX_EXTRA = 4, 40
# A word that stands this many times more often than any word of the source is a loop.
_MAX_REPEATS = 3
_TAG = re.compile(f"<(?:{'|'.join(sorted(ISO.values()))})>")
_EXPLANATION = re.compile(r"\b(?:translation|explanation|note)s?\s*:")
# By the first words of the Unicode names of letters.
_JAPANESE = frozenset({"CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA"})
_OWN_SCRIPT: Final = {
    "ar": frozenset({"ARABIC"}),
    "ja": _JAPANESE,
    "ko": frozenset({"HANGUL"}),
    "th": frozenset({"THAI"}),
}
# Greek is not among them: its letters are units and names in any language.
_KNOWN_SCRIPTS = frozenset({"ARABIC", "HANGUL", "THAI", "CYRILLIC"}) | _JAPANESE


def first_line(text: str) -> str:
    """The first line with text, without quotes around it; "" where there is none."""
    text = text.strip()
    text = text.splitlines()[0].strip() if text else ""
    for left, right in _QUOTES:
        if len(text) > 1 and text.startswith(left) and text.endswith(right):
            inner = text[len(left) : -len(right)]
            # `"a" or "b"` is not one quotation.
            return text if left in inner or right in inner else inner.strip()
    return text


def judged(text: str, translation: str, language: str) -> Translation:
    """`translation` as it is, or refused with the reason that `refusal` gives."""
    reason = refusal(text, translation, language)
    return Translation(None, refused=reason) if reason else Translation(translation)


def refusal(text: str, translation: str, language: str) -> str:
    """Why `translation` cannot be one of `text` into `language` (competition code), or "" where it may be.

    The reasons: "empty", "too long", "repeats", "holds a tag", "explains", "unchanged" (for other scripts than Latin
    alone: brand names in Latin letters are rightly kept), "foreign letters", "no letter of its script" (unless it has
    the words of `text`). Languages beyond the thirteen have no script known here.
    """
    left, right = normalise(text), normalise(translation)
    if not right:
        return "empty"
    if len(translation) > _MAX_GROWTH * len(text) + _MAX_EXTRA:
        return "too long"
    if _most_frequent(right) > _most_frequent(left) + _MAX_REPEATS:
        return "repeats"
    if _TAG.search(right) and not _TAG.search(left):
        return "holds a tag"
    if _EXPLANATION.search(right) and not _EXPLANATION.search(left):
        return "explains"
    if left == right and scripts(left) - {"LATIN"}:
        return "unchanged"
    return _script_refusal(left, right, language) if language in LANGUAGES else ""


def _script_refusal(left: str, right: str, language: str) -> str:
    own, found = _OWN_SCRIPT.get(language, frozenset({"LATIN"})), scripts(right)
    if (found & _KNOWN_SCRIPTS) - own:
        return "foreign letters"
    # What has the words of its source consists of names and codes.
    return "" if found & own or sorted(_words(left)) == sorted(_words(right)) else "no letter of its script"


def scripts(text: str) -> set[str]:
    """The scripts of the letters in `text`: the first words of their Unicode names, e.g. {"LATIN", "CJK"}."""
    letters = {letter for letter in unicodedata.normalize("NFKC", text) if letter.isalpha()}
    return {re.split(r"[ -]", unicodedata.name(letter, "?"))[0] for letter in letters}


def _most_frequent(text: str) -> int:
    return max(Counter(_words(text)).values(), default=0)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)
