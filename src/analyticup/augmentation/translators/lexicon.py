"""Word-for-word translation by the phrase tables of the embedded sample corpus."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from analyticup.augmentation.translators.base import Tools, Translation
from analyticup.corpus import TABLES, tables_sha256
from analyticup.corpus.text import normalise
from analyticup.errors import UserError
from analyticup.settings.schema import EmbedderSettings

# Columns of the tables that are no language.
_OTHER_COLUMNS = {"concept", "path", "accessory_of", "alias_en", "kind", "attribute"}
# First words of the Unicode names of letters that are written without blanks between words.
_BLANKLESS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "IDEOGRAPHIC")


@dataclass(frozen=True)
class Entry:
    is_concept: bool
    name: str
    phrases: dict[str, str]
    """language -> phrase, as the table writes it"""


class LexiconTranslator:
    """Replaces known phrases, longest first from the left; numbers, codes, brands and unknown words stay.

    The source language is not asked for: phrases of all languages are looked for, because language tags are
    noisy. A text without any product phrase is refused. Where one phrase stands for several entries, a
    product goes before an attribute, then the first by name wins.
    """

    selective = True
    uses_source = False
    uses_embedder: ClassVar[bool] = False
    any_language: ClassVar[bool] = False

    def __init__(self, tables: Path = TABLES) -> None:
        """`tables`: a folder with concepts_*.tsv and attributes.tsv; the sample corpus' own by default."""
        entries = _read_tables(tables)
        self.identity = f"lexicon:{tables_sha256(tables)[:16]}"
        self._languages = sorted(set().union(*(entry.phrases for entry in entries)) - {"alias_en"})
        self._entries: dict[str, Entry] = {}
        for entry in sorted(entries, key=lambda entry: (not entry.is_concept, entry.name)):
            for phrase in entry.phrases.values():
                self._entries.setdefault(normalise(phrase), entry)
        self._longest = max(map(len, self._entries), default=0)

    @classmethod
    def build(cls, settings: None, tools: Tools) -> LexiconTranslator:
        """Not cached: it is faster than a cache."""
        return cls()

    @classmethod
    def decides(cls, settings: None, embedder: EmbedderSettings) -> dict[str, Any]:
        return {"tables": tables_sha256()}

    @classmethod
    def models(cls, settings: None) -> list[str]:
        return []

    def translate(
        self, texts: list[str], target_language: str, sources: Sequence[str] | None = None
    ) -> list[Translation]:
        """See `Translator.translate`; raises UserError where the tables lack the target language."""
        if target_language not in self._languages:
            raise UserError(
                f"the lexicon has no language {target_language!r}; it has {', '.join(self._languages)} "
                "(translate.languages, translate.translator)"
            )
        found = [self._translate(normalise(text), target_language) for text in texts]
        return [Translation(text, refused="" if text else "no known phrase") for text in found]

    def _translate(self, text: str, language: str) -> str | None:
        parts: list[str] = []
        kept = ""
        start, found_concept = 0, False
        while start < len(text):
            phrase = self._phrase_at(text, start)
            if not phrase:
                kept += text[start]
                start += 1
                continue
            entry = self._entries[phrase]
            found_concept = found_concept or entry.is_concept
            parts += [*kept.split(), entry.phrases[language]]
            kept = ""
            start += len(phrase)
        return " ".join([*parts, *kept.split()]) if found_concept else None

    def _phrase_at(self, text: str, start: int) -> str:
        """The longest known phrase that begins at `start` and cuts no word; "" where there is none."""
        if not _is_boundary(text, start):
            return ""
        for end in range(min(len(text), start + self._longest), start, -1):
            if text[start:end] in self._entries and _is_boundary(text, end):
                return text[start:end]
        return ""


def _is_boundary(text: str, place: int) -> bool:
    """Whether a word may end before, and another begin at, `place`."""
    if place in (0, len(text)):
        return True
    before, after = text[place - 1], text[place]
    if unicodedata.category(after).startswith("M"):
        return False
    if _is_blankless(before) or _is_blankless(after):
        return True
    return not (_is_word(before) and _is_word(after))


def _is_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _is_blankless(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_BLANKLESS)


def _read_tables(folder: Path) -> list[Entry]:
    paths = [*sorted(folder.glob("concepts_*.tsv")), folder / "attributes.tsv"]
    if len(paths) < 2 or not paths[-1].is_file():
        raise UserError(f"{folder}: the lexicon needs concepts_*.tsv and attributes.tsv there")
    entries: list[Entry] = []
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines()
        entries += map(_entry, csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return entries


def _entry(row: dict[str, str]) -> Entry:
    is_concept = "concept" in row
    name = row["concept"] if is_concept else f"{row['kind']}/{row['attribute']}"
    phrases = {column: row[column] for column in row if column not in _OTHER_COLUMNS}
    if row.get("alias_en"):
        phrases["alias_en"] = row["alias_en"]
    return Entry(is_concept, name, phrases)
