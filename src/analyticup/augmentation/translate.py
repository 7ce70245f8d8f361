"""Translation augmentation: labelled rows for languages that have none, by translating only the query.

Section "translation augmentation" of arXiv 2510.21671: label and target stay as they are. Which rows are
taken and how many is assumed: a sample per language, proportional over label x source language.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pandas import DataFrame

from analyticup.augmentation.translators.base import Translation, Translator
from analyticup.corpus.languages import LANGUAGES
from analyticup.corpus.rows import COLUMNS, make_rows
from analyticup.corpus.text import normalise
from analyticup.errors import UserError
from analyticup.seeds import proportional_quotas, seeded_key
from analyticup.settings.schema import TranslateSettings, read_volumes

# After so many rows in a row that give nothing, a costly translator is asked no more (assumed).
_HOPELESS: Final = 200
COUNTS = ("asked", "refused", "unchanged", "exists", "duplicate", "not sampled", "kept")


@dataclass(frozen=True)
class Pair:
    """A query and its translation; `rows`: how many new rows hold it."""

    source: str
    source_language: str
    translation: str
    language: str
    score: float | None
    rows: int


@dataclass(frozen=True)
class Pairs:
    """Of one target language, each (source language, query) once: what was translated, and reason -> number refused."""

    found: list[Pair]
    refused: dict[str, int]


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
) -> tuple[DataFrame, dict[str, dict[str, int]], dict[str, Pairs]]:
    """New rows for `languages`, made from the labelled original rows in other languages (`source_languages`).

    A selective translator is asked for every query, and at most `rows_per_language` rows (or those of `volumes`)
    are drawn from what it could translate; a costly one is asked only for that sample, and for the next row of its
    label in place of each that gave none, until there is no other. The order of `rows` changes nothing, and a new row
    keeps the group of its source, so that no fold trains on it while judging its source.
    Returns (rows table, language -> counts of rows, language -> pairs); per language `asked` equals the sum of the
    other COUNTS: "unchanged" equals its source, "exists" is among the given rows already (any label), "duplicate"
    came out twice, "not sampled" was more than asked for. Raises UserError where no labelled row is in one of the
    source languages.
    """
    volumes = read_volumes(settings.volumes)
    # One language after the other asks for the same texts.
    key = cache(normalise)
    taken = {(key(query), key(target)) for query, target in zip(rows["query"], rows["target"], strict=True)}
    originals = source_rows(rows, settings.source_languages).to_dict("records")
    new_rows: list[dict[str, Any]] = []
    counts: dict[str, dict[str, int]] = {}
    pairs: dict[str, Pairs] = {}
    for language in dict.fromkeys(languages):
        limit = volumes.get(language, settings.rows_per_language)
        candidates = _candidates(originals, language, seed)
        wanted = candidates if translator.selective else _draw(candidates, limit, settings.positive_share)
        asked, translations = wanted, _ask(wanted, translator, language)
        kept, count = _usable(asked, translations, taken, key)
        while not translator.selective and (more := _in_place_of(wanted, kept, asked, candidates)):
            asked, translations = [*asked, *more], translations | _ask(more, translator, language)
            earlier = len(kept)
            kept, count = _usable(asked, translations, taken, key)
            if len(kept) == earlier and len(more) >= _HOPELESS:
                break
        drawn = _draw(kept, limit, settings.positive_share)
        count["not sampled"] = len(kept) - len(drawn)
        count["kept"] = len(drawn)
        counts[language] = {name: count[name] for name in COUNTS}
        pairs[language] = _pairs(translations, drawn, language)
        new_rows += [_new_row(candidate, language) for candidate in drawn]
    return make_rows({name: [row[name] for row in new_rows] for name in COLUMNS}), counts, pairs


def source_rows(rows: DataFrame, languages: list[str] | None) -> DataFrame:
    """The labelled original rows that are translated; UserError where none is in one of the languages."""
    labelled = rows[(rows["origin"] == "original") & rows["label"].notna()]
    if languages is None:
        return labelled
    chosen = labelled[labelled["language"].isin(languages)]
    if chosen.empty:
        raise UserError(
            f"translate.source_languages = {', '.join(languages) or 'none'}: no labelled row is in one of these; there "
            f"are {', '.join(sorted(set(labelled['language'])))}"
        )
    return chosen


def _candidates(originals: list[dict[str, Any]], language: str, seed: int) -> list[_Candidate]:
    """In an order drawn from seed, row and language; without rows already in the target language."""
    rows = [row for row in originals if row["language"] != language]
    rows.sort(key=lambda row: seeded_key(seed, row["row_id"], language))
    return [_Candidate(row, f"{row['label']}/{row['language']}") for row in rows]


def _in_place_of(
    wanted: list[_Candidate], kept: list[_Candidate], asked: list[_Candidate], candidates: list[_Candidate]
) -> list[_Candidate]:
    """The next candidates that were not asked yet: of each label as many as are kept too few of those wanted."""
    missing = Counter(one.row["label"] for one in wanted) - Counter(one.row["label"] for one in kept)
    if not missing:
        return []
    names, found = {one.row["row_id"] for one in asked}, []
    for candidate in candidates:
        label = candidate.row["label"]
        if missing[label] > 0 and candidate.row["row_id"] not in names:
            missing[label] -= 1
            found.append(candidate)
    return found


def _draw(candidates: list[_Candidate], limit: int, positive_share: float | None) -> list[_Candidate]:
    """At most `limit` of them, proportional over the strata, in the given order; as many as the share of positives
    allows."""
    if positive_share is None:
        return _proportional(candidates, limit)
    by_label = {label: [one for one in candidates if one.row["label"] == label] for label in (0, 1)}
    negatives, positives = _balanced(len(by_label[0]), len(by_label[1]), limit, positive_share)
    drawn = [*_proportional(by_label[0], negatives), *_proportional(by_label[1], positives)]
    names = {candidate.row["row_id"] for candidate in drawn}
    return [candidate for candidate in candidates if candidate.row["row_id"] in names]


def _balanced(negatives: int, positives: int, limit: int, share: float) -> tuple[int, int]:
    """(negatives, positives) to take of those there are: at most `limit`, and the share to the nearest row."""
    for total in range(min(limit, negatives + positives), 0, -1):
        wanted = int(total * share + 0.5)
        if wanted <= positives and total - wanted <= negatives:
            return total - wanted, wanted
    return 0, 0


def _proportional(candidates: list[_Candidate], limit: int) -> list[_Candidate]:
    sizes = Counter(candidate.stratum for candidate in candidates)
    quotas = proportional_quotas(sizes, min(limit, len(candidates)))
    drawn = []
    for candidate in candidates:
        if quotas[candidate.stratum] > 0:
            quotas[candidate.stratum] -= 1
            drawn.append(candidate)
    return drawn


def _usable(
    candidates: list[_Candidate],
    translations: dict[tuple[str, str], Translation],
    taken: set[tuple[str, str]],
    key: Callable[[str], str],
) -> tuple[list[_Candidate], Counter[str]]:
    """Those that become new rows, and how many candidates met which of the COUNTS."""
    count = Counter(asked=len(candidates))
    made: set[tuple[str, str]] = set()
    kept = []
    for candidate in candidates:
        source = candidate.row["query"]
        query = translations[candidate.row["language"], source].text or ""
        row = (key(query), key(candidate.row["target"]))
        if not row[0]:
            count["refused"] += 1
        elif row[0] == key(source):
            count["unchanged"] += 1
        elif row in taken:
            count["exists"] += 1
        elif row in made:
            count["duplicate"] += 1
        else:
            made.add(row)
            kept.append(_Candidate(candidate.row, candidate.stratum, query))
    return kept, count


def _ask(candidates: list[_Candidate], translator: Translator, language: str) -> dict[tuple[str, str], Translation]:
    return ask({(candidate.row["language"], candidate.row["query"]) for candidate in candidates}, translator, language)


def ask(pairs: Iterable[tuple[str, str]], translator: Translator, language: str) -> dict[tuple[str, str], Translation]:
    """(source language, query) -> translation into `language`, sorted by those; each question is put once."""
    asked = sorted(set(pairs))
    question = {key: (key[1], key[0] if translator.uses_source else "") for key in asked}
    questions = sorted(set(question.values()))
    if not questions:
        return {}
    texts, sources = [text for text, _ in questions], [source for _, source in questions]
    answers = translator.translate(texts, language, sources if translator.uses_source else None)
    answer = dict(zip(questions, answers, strict=True))
    return {key: answer[question[key]] for key in asked}


def _pairs(translations: dict[tuple[str, str], Translation], drawn: list[_Candidate], language: str) -> Pairs:
    used = Counter((candidate.row["language"], candidate.row["query"]) for candidate in drawn)
    found = []
    refused: Counter[str] = Counter()
    for (source_language, source), answer in translations.items():
        if answer.text is not None and normalise(answer.text):
            rows = used[source_language, source]
            found.append(Pair(source, source_language, answer.text, language, answer.score, rows))
        else:
            refused[answer.refused or "empty"] += 1
    return Pairs(found, dict(sorted(refused.items())))


def _new_row(candidate: _Candidate, language: str) -> dict[str, Any]:
    source = candidate.row
    return source | {
        "row_id": f"{source['row_id']}/t-{language}",
        "language": language,
        "query": candidate.query,
        "origin": "translation",
        "source_id": source["row_id"],
    }
