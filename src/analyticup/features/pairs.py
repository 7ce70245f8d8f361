"""Features of a pair of texts that need neither labels nor vectors: shared letters, numbers and words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Self

import numpy as np
import pandas as pd
from pandas import DataFrame, Series
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from analyticup.corpus.text import normalise

_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Trigrams:
    """Three letters in a row, blanks at the ends of words included: they find a word in another form, in a compound and
    with a slip of the pen. Weights are inverse document frequencies over distinct training texts."""

    weights: TfidfVectorizer

    @classmethod
    def of(cls, rows: DataFrame) -> Self:
        """From training rows."""
        texts = sorted({*rows["query"], *rows["target"]})
        vectorizer = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(3, 3), preprocessor=normalise, binary=True, norm=None
        )
        return cls(vectorizer.fit(texts))

    def shared(self, rows: DataFrame) -> np.ndarray:
        """Share of the query's weight that the target holds too, float64 [rows] in 0..1; 0 for a query without any."""
        query, target = (self._weighted(rows[name]) for name in ("query", "target"))
        return _sums(query.multiply(target > 0)) / np.maximum(_sums(query), 1e-9)

    def _weighted(self, texts: Series) -> csr_matrix:
        """[texts, trigrams]; each distinct text is read once."""
        places, distinct = pd.factorize(texts)
        return self.weights.transform(distinct)[places]


def _sums(matrix: csr_matrix) -> np.ndarray:
    return np.asarray(matrix.sum(axis=1)).ravel()


def shared_numbers(query: str, target: str) -> float:
    """Share of the query's numbers that are in the target too, 0..1; 1 where it has none. A size or a model number that
    differs is another product, though the vectors hardly do."""
    asked = set(_NUMBER.findall(normalise(query)))
    return len(asked & set(_NUMBER.findall(normalise(target)))) / len(asked) if asked else 1.0


def names_last_word(query: str, target: str) -> float:
    """1 where a word of the target begins like the query's last word, which in English names the product; else 0.

    The last two letters of a longer word are not compared, as its ending may differ (assumed).
    """
    asked = words(query)
    return float(bool(asked) and _named(asked[-1], words(target)))


def words(text: str) -> list[str]:
    """Letters and digits in a row; a script without blanks gives one word for many."""
    return _WORD.findall(normalise(text))


def _named(word: str, among: list[str]) -> bool:
    stem = word[: max(3, len(word) - 2)]
    return any(other.startswith(stem) for other in among)


@dataclass(frozen=True)
class Rarity:
    """How rare a word is: its inverse document frequency over distinct training targets."""

    targets: int
    holding: Mapping[str, int]

    @classmethod
    def of(cls, rows: DataFrame) -> Self:
        """From training rows."""
        distinct = rows["target"].unique()
        return cls(len(distinct), Counter(word for target in distinct for word in set(words(target))))

    def missing(self, query: str, target: str) -> float:
        """Rarity of the rarest word of the query that no word of the target begins like, in nats; 0 where none is
        missing. That a rare word is missing weighs more than how many are."""
        held = words(target)
        return max((self._of(word) for word in words(query) if not _named(word, held)), default=0.0)

    def _of(self, word: str) -> float:
        return log((self.targets + 1) / (self.holding.get(word, 0) + 0.5))
