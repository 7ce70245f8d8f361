"""Translations mined from real queries: the best partner of a query among unlabelled queries of the target
language.

Ratio-margin bitext mining after Artetxe & Schwenk (2019, "Margin-based Parallel Corpus Mining with
Multilingual Sentence Embeddings", ACL; their "ratio" margin), plus guards against what looks alike but is no
translation.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from analyticup.augmentation.embedder_pin import embedder_identity
from analyticup.augmentation.translators.base import Tools, Translation
from analyticup.corpus.text import normalise
from analyticup.settings.schema import EmbedderSettings, MinedSettings, decisive

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame

    from analyticup.augmentation.embedders import Embedder
    from analyticup.augmentation.neighbours import Neighbours

PAIR_COLUMNS = ("source", "target", "cosine", "margin", "verdict")
KEPT = "kept"
# Raised when large searches find other neighbours.
SEARCH = 3
_BLANKLESS = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
# Scripts without blanks between words are measured in characters instead (assumed).
_MIN_CHARACTERS = 4
# English letters that one letter stands for: medians over the 426 phrases of the sample corpus' tables of concepts.
# Letters of all other scripts count as one (Arabic: 1.1).
_DENSE = {
    1.2: re.compile(r"[\u0e00-\u0e7f]"),
    1.7: re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"),
    2.5: re.compile(r"[\uac00-\ud7af]"),
}
_ANY_DENSE = re.compile("|".join(dense.pattern for dense in _DENSE.values()))


class MinedTranslator:
    """Takes a pool of unlabelled queries by language as the only possible translations.

    A pair is kept when each is the other's best partner by margin (mutual best), the margin and the cosine
    reach their floors, the numbers in both agree, each has a word that the other lacks, neither is much longer
    than the other, short, the same text, or mostly codes. A translation's score is its margin. Of very many queries
    the neighbours are looked for in a graph (see `neighbours`), so that the work grows with the queries and not with
    their square.
    """

    selective = True
    uses_source = False
    uses_embedder: ClassVar[bool] = True
    any_language: ClassVar[bool] = True

    def __init__(self, pool: Mapping[str, Sequence[str]], embedder: Embedder, settings: MinedSettings) -> None:
        """`pool`: language -> queries."""
        self._pool = {language: sorted(set(pool[language])) for language in sorted(pool)}
        self._embedder = embedder
        self._settings = settings
        self._pairs: dict[str, DataFrame] = {}
        self._asked: list[str] = []
        self._vectors: Neighbours | None = None
        self._traits = cache(_traits)
        content = repr((self._pool, embedder.identity, sorted(decisive(settings).items())))
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        self.identity = f"mined:{digest[:16]}"

    @classmethod
    def build(cls, settings: MinedSettings, tools: Tools) -> MinedTranslator:
        """Not cached: what it finds depends on all texts asked for together."""
        return cls(tools.pool, tools.embedder(), settings)

    @classmethod
    def decides(cls, settings: MinedSettings, embedder: EmbedderSettings) -> dict[str, Any]:
        return {"mined": decisive(settings), "embedder": {"identity": embedder_identity(embedder)}, "search": SEARCH}

    @classmethod
    def models(cls, settings: MinedSettings) -> list[str]:
        return []

    def translate(
        self, texts: list[str], target_language: str, sources: Sequence[str] | None = None
    ) -> list[Translation]:
        """See `Translator.translate`. A margin depends on the set of all texts asked for together."""
        distinct = sorted(set(texts))
        pool = self._pool.get(target_language, [])
        table = self._mine(distinct, pool)
        self._pairs[target_language] = table
        found = {row.source: _translation(row) for row in table.itertuples()}
        return [found.get(text, Translation(None, refused="no query to find")) for text in texts]

    def pairs(self, language: str) -> DataFrame:
        """Each text of the last call for `language` with its best partner: PAIR_COLUMNS, best margin first.

        `verdict` is "kept" or the first rule that refused the pair; no rows before the first call.
        """
        import pandas as pd

        if language not in self._pairs:
            return pd.DataFrame(columns=list(PAIR_COLUMNS))
        return self._pairs[language].copy()

    def _mine(self, texts: list[str], pool: list[str]) -> DataFrame:
        import pandas as pd

        from analyticup.augmentation.neighbours import Neighbours

        if not texts or not pool:
            return pd.DataFrame(columns=list(PAIR_COLUMNS))
        # The same texts are asked for in one language after the other.
        if self._vectors is None or texts != self._asked:
            self._asked, self._vectors = texts, Neighbours(self._embedder.queries(texts))
        partners = ratio_margin(self._vectors, Neighbours(self._embedder.queries(pool)), self._settings.k)
        rows = []
        for text, (index, cosine, margin, mutual) in zip(texts, partners, strict=True):
            verdict = self._verdict(text, pool[index], cosine, margin, mutual)
            rows.append((text, pool[index], cosine, margin, verdict))
        table = pd.DataFrame(rows, columns=list(PAIR_COLUMNS))
        return table.sort_values(["margin", "source"], ascending=[False, True], ignore_index=True)

    def _verdict(self, source: str, target: str, cosine: float, margin: float, mutual: bool) -> str:
        left, right = self._traits(source), self._traits(target)
        if left.plain == right.plain:
            return "same text"
        if not (self._is_long_enough(left) and self._is_long_enough(right)):
            return "too short"
        if left.mostly_codes or right.mostly_codes:
            return "mostly codes"
        if self._settings.same_numbers and left.numbers != right.numbers:
            return "other numbers"
        if length_ratio(left.length, right.length) > self._settings.max_length_ratio:
            return "other length"
        # All words of one stand in the other too, accents aside: reordered, or left out.
        if left.words <= right.words or right.words <= left.words:
            return "no word of its own"
        if cosine < self._settings.min_similarity:
            return "low similarity"
        if margin < self._settings.margin:
            return "low margin"
        return KEPT if mutual else "not mutual best"

    def _is_long_enough(self, text: _Traits) -> bool:
        if _BLANKLESS.search(text.plain):
            return len(text.plain.replace(" ", "")) >= _MIN_CHARACTERS
        return len(text.plain.split()) >= self._settings.min_words


@dataclass(frozen=True)
class _Traits:
    """What a text is judged by: its normalised form, its numbers, its length, its words without accents, and whether it
    is mostly codes."""

    plain: str
    numbers: list[str]
    length: float
    words: frozenset[str]
    mostly_codes: bool


def _traits(text: str) -> _Traits:
    plain = normalise(text)
    return _Traits(plain, numbers(plain), weighted_length(plain), _plain_words(plain), _is_mostly_codes(plain))


def ratio_margin(left: Neighbours, right: Neighbours, k: int) -> list[tuple[int, float, float, bool]]:
    """The best partner in `right` [m, d] of each row of `left` [n, d]: (index, cosine, margin, mutual best).

    margin(x, y) = cos(x, y) / (mean cosine of x's k neighbours / 2 + mean cosine of y's k neighbours / 2)
    (Artetxe & Schwenk 2019, Eq. 1 with the ratio function); partners are looked for among the k nearest of x
    and the rows of `right` that have x among their k nearest. k is clipped to each side's size. Ties go to
    the lower index. Both sides must hold at least one row, of length 1.
    """
    import numpy as np

    forward, forward_index = right.of(left.base, k)
    backward, backward_index = left.of(right.base, k)
    left_mean, right_mean = forward.mean(axis=1), backward.mean(axis=1)
    # A pair that stands in both keeps one cosine, so that it has one margin: that of the second search.
    x = np.concatenate([backward_index.ravel(), np.repeat(np.arange(len(left.base)), forward.shape[1])])
    y = np.concatenate([np.repeat(np.arange(len(right.base)), backward.shape[1]), forward_index.ravel()])
    cosine = np.concatenate([backward.ravel(), forward.ravel()])
    _, first = np.unique(x * len(right.base) + y, return_index=True)
    x, y, cosine = x[first], y[first], cosine[first].astype(np.float64)
    margin = cosine / ((left_mean[x] + right_mean[y]).astype(np.float64) / 2)
    best_left, best_right = _first_best(x, y, margin), _first_best(y, x, margin)
    mutual = x[best_right][y[best_left]] == np.arange(len(left.base))
    columns = (y[best_left], cosine[best_left], margin[best_left], mutual)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _first_best(one: np.ndarray, other: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """For each value 0, 1, ... of `one`, which all occur, the place of its best margin; ties to the lower `other`."""
    import numpy as np

    order = np.lexsort((other, -margin, one))
    return order[np.unique(one[order], return_index=True)[1]]


def numbers(text: str) -> list[str]:
    """The runs of digits in `text`, sorted; digits of any script as ASCII, without leading zeros."""
    runs = re.findall(r"\d+", text)
    return sorted("".join(str(unicodedata.digit(digit)) for digit in run).lstrip("0") for run in runs)


def length_ratio(one: float, other: float) -> float:
    """The longer of two lengths over the shorter, 1 or more."""
    short, long = sorted((one, other))
    return long / short if short else math.inf


def weighted_length(text: str) -> float:
    """Letters and digits of a text; those of dense scripts are weighted."""
    letters = [letter for letter in text if letter.isalnum()]
    if not _ANY_DENSE.search(text):
        return float(len(letters))
    return sum(next((weight for weight, dense in _DENSE.items() if dense.match(letter)), 1.0) for letter in letters)


def _translation(row: Any) -> Translation:
    kept = row.verdict == KEPT
    return Translation(row.target if kept else None, row.margin, "" if kept else row.verdict)


def _is_mostly_codes(text: str) -> bool:
    """Whether half of the words or more hold a digit: models, sizes and quantities carry no language."""
    words = text.split()
    return 2 * sum(any(character.isdigit() for character in word) for word in words) >= len(words)


def _plain_words(text: str) -> frozenset[str]:
    decomposed = unicodedata.normalize("NFD", text)
    return frozenset(re.findall(r"\w+", "".join(mark for mark in decomposed if not unicodedata.combining(mark))))
