"""Files of the competition's form and, whole, of its size: rows of each language, rows of a query, lengths of texts.

Every word is made of syllables, so no row is real. A word has one spelling in each language, which `romanised` undoes:
what stands in for an embedder can tell that two queries mean the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from analyticup.corpus.rows import SPLITS, TARGET_FIELD
from analyticup.engine.files import write_json_lines

_QC_LANGUAGES = ("en", "fr", "es", "ko", "pt", "ja")
_QC_ALL = (*_QC_LANGUAGES, "de", "it", "pl", "ar")
_QI_ALL = ("en", "fr", "es", "ko", "pt", "ja", "th", "de", "it", "pl", "ar", "vn", "id")
# Task -> split -> language -> rows of the official file.
OFFICIAL_ROWS: Final[dict[str, dict[str, dict[str, int]]]] = {
    "QC": {
        "train": dict.fromkeys(_QC_LANGUAGES, 50_000),
        "dev": dict.fromkeys(_QC_ALL, 10_000),
        "test": dict.fromkeys(_QC_ALL, 10_000),
    },
    "QI": {
        "train": dict.fromkeys(("en", "fr", "es", "pt", "th"), 50_000) | dict.fromkeys(("ja", "ko"), 45_000),
        "dev": dict.fromkeys(_QI_ALL, 5_000),
        "test": dict.fromkeys(_QI_ALL, 10_000),
    },
}
POSITIVE: Final = {"QC": 0.6895, "QI": 0.624}
NULL_TITLES: Final = 453 / 340_000
# A query has 1 to 10 rows, 3 on average.
ROWS_OF_QUERY: Final = range(1, 11)
_WEIGHTS: Final = [0.69**rows for rows in ROWS_OF_QUERY]
# Assumed: the share of dev and test queries that say the same as a training query of another language.
SHARED: Final = 1 / 3
# Assumed: kinds of products, other words, and category paths for each kind.
PRODUCTS, WORDS, PATHS_OF_PRODUCT = 2_000, 20_000, 4
# Titles that several queries have: assumed, from 13,880 distinct ones of 15,052 real titles.
BESTSELLERS: Final = 0.08
_LETTERS: Final = "bdfghklmnprstvzaeiou"
# Language -> its letters, in the order of _LETTERS; no letter stands for two.
ALPHABETS: Final[dict[str, str]] = {
    "en": "bdfghklmnprstvzaeiou",
    "fr": "bdfghklmnprstvzàèîôû",
    "es": "bdfghklmnprstvzáéíóú",
    "pt": "bdfghklmnprstvzãêĩõũ",
    "de": "bdfghklmnprstvzäëïöü",
    "it": "bdfghklmnprstvzàèìòù",
    "pl": "bdfghkłmńpŕśtvżąęįǫų",
    "vn": "bđfghklmnprstvzăẽỉơư",
    "id": "bdwgcklmnprstyjaeiou",
    "ko": "바다파가하카라마나빠자사타와차아에이오우",
    "ja": "バダフガハカラマナパリサタヴザアエイオウ",
    "th": "บดฝกหคลมนปรสตวซอยงจฉ",
    "ar": "بدفغحكلمنپرستوزاعيقه",
}
_BACK: Final = str.maketrans(
    {letter: plain for own in ALPHABETS.values() for letter, plain in zip(own, _LETTERS, strict=True)}
)


def romanised(text: str) -> str:
    """A generated text as English would spell it."""
    return text.translate(_BACK)


def official_rows(task: str, split: str, share: float = 1.0) -> int:
    """How many rows a file of that share of the official size has."""
    return sum(round(rows * share) for rows in OFFICIAL_ROWS[task][split].values())


def write_official(folder: Path, tasks: Sequence[str], share: float, seed: int) -> None:
    """Writes the three files of each task, each language with that share (above 0, at most 1) of its official rows.

    What is in memory at once does not grow with it. The same seed gives the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        for split in SPLITS:
            write_json_lines(folder / f"{split}_{task}.txt", generated_rows(task, split, share, seed))


def generated_rows(task: str, split: str, share: float, seed: int) -> Iterator[dict[str, Any]]:
    """The rows of one file, one language after the other, those of a query together. With a lower share a language has
    the first of its rows."""
    number = 0
    for language, rows in OFFICIAL_ROWS[task][split].items():
        for fields in _rows_of_language(task, split, language, round(rows * share), seed):
            number += 1
            yield {"id": number, "task": task, "language": language, **fields}


def _rows_of_language(task: str, split: str, language: str, rows: int, seed: int) -> Iterator[dict[str, Any]]:
    query = 0
    while rows > 0:
        words = _query_words(task, split, language, query, seed)
        draw = Random(f"{seed} {task} {split} {language} {query} rows")
        text = " ".join([*(_spelt(word, language) for word in words), *_code(draw, 0.15)])
        for place in range(min(rows, draw.choices(ROWS_OF_QUERY, _WEIGHTS)[0])):
            fits = draw.random() < POSITIVE[task]
            target = _path(words[0], place, fits, draw) if task == "QC" else _title(words, fits, language, draw)
            if task == "QI" and split == "train" and draw.random() < NULL_TITLES:
                target = None
            yield {"origin_query": text, TARGET_FIELD[task]: target} | (
                {"label": int(fits)} if split == "train" else {}
            )
            rows -= 1
        query += 1


def _query_words(task: str, split: str, language: str, query: int, seed: int) -> list[int]:
    """The numbers of a query's words, the product first; few products and words are in many queries."""
    draw = Random(f"{seed} {task} {split} {language} {query} words")
    if split != "train" and draw.random() < SHARED:
        other = draw.choice(list(OFFICIAL_ROWS[task]["train"]))
        return _query_words(task, "train", other, query, seed)
    return [_product(draw), *(_other_word(draw) for _ in range(draw.choice((1, 2))))]


def _product(draw: Random) -> int:
    return int(PRODUCTS * draw.random() ** 3)


def _other_word(draw: Random) -> int:
    return PRODUCTS + int(WORDS * draw.random() ** 2)


def _code(draw: Random, share: float) -> list[str]:
    """Now and then a number or a model's code."""
    return [f"{draw.choice('abs')}{draw.randrange(10, 1000)}"] if draw.random() < share else []


def _spelt(word: int, language: str = "en") -> str:
    """A word of two syllables or more, another one for every number."""
    syllables, alphabet = [], ALPHABETS[language]
    while word or len(syllables) < 2:
        word, part = divmod(word, 75)
        syllables.append(alphabet[part % 15] + alphabet[15 + part // 15])
    return "".join(syllables)


def _path(product: int, place: int, fits: bool, draw: Random) -> str:
    """Another one of the product's paths in every place, or one that is near it as often as far. Two to five levels."""
    leaf = product * PATHS_OF_PRODUCT + place
    if not fits:
        moved = PATHS_OF_PRODUCT * (draw.randrange(1, 6) if draw.random() < 0.5 else draw.randrange(6, PRODUCTS))
        leaf += moved
    leaf %= PRODUCTS * PATHS_OF_PRODUCT
    names = [
        f"{_spelt(leaf // 320)}s, {_spelt(leaf // 320 + 40)} & {_spelt(leaf // 320 + 80)}",
        f"{_spelt(leaf // 20 + 200)} & {_spelt(leaf // 20 + 700)}",
        f"{_spelt(leaf // 8 + 1200)} {_spelt(leaf // 8 % 50)}",
        f"{_spelt(leaf // 4 + 2300)} {_spelt(leaf // 4 % 60)}",
    ]
    depth = (2, 3, 3, 4, 4, 4, 4, 5)[leaf % 8]
    return ",".join([*names[: depth - 1], f"{_spelt(leaf + 6000)} {_spelt(leaf % 70)} {_spelt(leaf % 90 + 90)}"])


def _title(words: list[int], fits: bool, language: str, draw: Random) -> str:
    """A title with the query's product and words, or with another product; mostly English."""
    product = words[0] if fits else _product(draw)
    if draw.random() < BESTSELLERS:
        draw = Random(f"bestseller {product}")
        words = words[:1]
    others = [_other_word(draw) for _ in range(draw.randrange(6, 11))]
    spelling = language if language == "th" and draw.random() < 0.3 else "en"
    return " ".join([*(_spelt(word, spelling) for word in (product, *words[1:], *others)), *_code(draw, 0.7)])
