"""Features of a pair of texts that need neither labels nor training: cosines, shared letters, shared numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
from pandas import DataFrame
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
        query, target = (self.weights.transform(rows[name]) for name in ("query", "target"))
        return _sums(query.multiply(target > 0)) / np.maximum(_sums(query), 1e-9)


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
    words = _WORD.findall(normalise(query))
    if not words:
        return 0.0
    stem = words[-1][: max(3, len(words[-1]) - 2)]
    return float(any(word.startswith(stem) for word in _WORD.findall(normalise(target))))
