"""Translation augmentation: labelled rows for languages that have none, by translating the query alone.

Section "translation augmentation" of arXiv 2510.21671: label and target stay as they are. Which rows are
taken and how many is assumed: a sample per language, proportional over label x source language.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analyticup.augment import proportional_quotas, seeded_key
from analyticup.config import TranslateSettings
from analyticup.corpus.languages import LANGUAGES
from analyticup.corpus.rows import COLUMNS, make_rows, normalise
from analyticup.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pandas import DataFrame

    from analyticup.augment.translators import Translator

COUNTS = ("asked", "refused", "unchanged", "exists", "duplicate", "not sampled", "kept")


@dataclass(frozen=True)
class _Candidate:
    row: dict[str, Any]
    stratum: str
    query: str = ""
    """the translation"""


def missing_languages(train_rows: DataFrame, *others: DataFrame) -> list[str]:
    """Languages of `others` (dev, test) without a training row: competition order, then others by name."""
    trained = set(train_rows["language"])
    found = set().union(*(set(rows["language"]) for rows in others)) - trained
    order = list(LANGUAGES)
    return sorted(found, key=lambda code: (order.index(code) if code in LANGUAGES else len(order), code))


def translate_rows(
    rows: DataFrame,
    settings: TranslateSettings,
    translator: Translator,
    languages: Sequence[str],
    seed: int,
) -> tuple[DataFrame, dict[str, dict[str, int]]]:
    """New rows for `languages`, made from the labelled original rows in other languages.

    A selective translator is asked for every query, and at most `rows_per_language` rows are drawn from what
    it could translate; a costly one is asked for that sample alone. The order of `rows` changes nothing.
    Returns (rows table, language -> counts of rows); per language `asked` equals the sum of the other COUNTS:
    "unchanged" equals its source, "exists" stands among the given rows already (any label), "duplicate"
    came out twice, "not sampled" was more than asked for. Raises UserError where rows_per_language < 0.
    """
    limit = settings.rows_per_language
    if limit < 0:
        raise UserError(f"translate.rows_per_language is {limit}; it must be 0 or more")
    taken = {(normalise(query), normalise(target)) for query, target in zip(rows["query"], rows["target"], strict=True)}
    originals = rows[(rows["origin"] == "original") & rows["label"].notna()].to_dict("records")
    new_rows: list[dict[str, Any]] = []
    counts: dict[str, dict[str, int]] = {}
    for language in dict.fromkeys(languages):
        candidates = _candidates(originals, language, seed)
        if not translator.selective:
            candidates = _draw(candidates, limit)
        kept, count = _translate(candidates, translator, language, taken)
        drawn = _draw(kept, limit)
        count["not sampled"] = len(kept) - len(drawn)
        count["kept"] = len(drawn)
        counts[language] = {name: count[name] for name in COUNTS}
        new_rows += [_new_row(candidate, language) for candidate in drawn]
    return make_rows({name: [row[name] for row in new_rows] for name in COLUMNS}), counts


def _candidates(originals: list[dict[str, Any]], language: str, seed: int) -> list[_Candidate]:
    """In an order drawn from seed, row and language; without rows already in the target language."""
    rows = [row for row in originals if row["language"] != language]
    rows.sort(key=lambda row: seeded_key(seed, row["row_id"], language))
    return [_Candidate(row, f"{row['label']}/{row['language']}") for row in rows]


def _draw(candidates: list[_Candidate], limit: int) -> list[_Candidate]:
    """At most `limit` of them, proportional over the strata, in the given order."""
    sizes = Counter(candidate.stratum for candidate in candidates)
    quotas = proportional_quotas(sizes, min(limit, len(candidates)))
    drawn = []
    for candidate in candidates:
        if quotas[candidate.stratum] > 0:
            quotas[candidate.stratum] -= 1
            drawn.append(candidate)
    return drawn


def _translate(
    candidates: list[_Candidate], translator: Translator, language: str, taken: set[tuple[str, str]]
) -> tuple[list[_Candidate], Counter[str]]:
    translations = _ask(candidates, translator, language)
    count = Counter(asked=len(candidates))
    made: set[tuple[str, str]] = set()
    kept = []
    for candidate in candidates:
        source, target = candidate.row["query"], normalise(candidate.row["target"])
        query = translations[_question(candidate, translator)]
        key = (normalise(query or ""), target)
        if not key[0]:
            count["refused"] += 1
        elif key[0] == normalise(source):
            count["unchanged"] += 1
        elif key in taken:
            count["exists"] += 1
        elif key in made:
            count["duplicate"] += 1
        else:
            made.add(key)
            kept.append(_Candidate(candidate.row, candidate.stratum, query or ""))
    return kept, count


def _ask(candidates: list[_Candidate], translator: Translator, language: str) -> dict[tuple[str, str], str | None]:
    questions = sorted({_question(candidate, translator) for candidate in candidates})
    if not questions:
        return {}
    texts, sources = [text for text, _ in questions], [source for _, source in questions]
    answers = translator.translate(texts, language, sources if translator.uses_source else None)
    return dict(zip(questions, answers, strict=True))


def _question(candidate: _Candidate, translator: Translator) -> tuple[str, str]:
    return candidate.row["query"], candidate.row["language"] if translator.uses_source else ""


def _new_row(candidate: _Candidate, language: str) -> dict[str, Any]:
    source = candidate.row
    return source | {
        "row_id": f"{source['row_id']}/t-{language}",
        "language": language,
        "query": candidate.query,
        "origin": "translation",
        "source_id": source["row_id"],
    }
