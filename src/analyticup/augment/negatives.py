"""Semantic negatives: a positive's target is swapped for a close but distinct one.

Section "semantic negative sampling" of arXiv 2510.21671; embedder, number of neighbours, similarity band and
volume are assumed. The band's upper end keeps out other names of the same thing, its lower end what is
negative at first sight.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from analyticup.augment import proportional_quotas, seeded_key
from analyticup.config import NegativesSettings
from analyticup.corpus.rows import COLUMNS, empty_rows, make_rows, normalise
from analyticup.embed import nearest
from analyticup.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

    from analyticup.embed import Embedder

COUNTS = (
    "positives",
    "asked",
    "below band",
    "above band",
    "same target",
    "positive for the query",
    "already a row",
    "no candidate left",
    "kept",
)


def sample_negatives(
    rows: DataFrame, settings: NegativesSettings, embedder: Embedder, seed: int
) -> tuple[DataFrame, dict[str, int]]:
    """New rows of origin "negative", label 0, from the positives whose origin is in `settings.origins`.

    round(share x positives) rows are asked for, spread over the languages in proportion; with a share above 1
    a positive is used more than once. Each takes the nearest target left after the rules (ties: by text). The
    order of `rows` changes nothing. Returns (rows table, counts): `positives`, `asked`, `no candidate left`
    and `kept` count rows (asked = no candidate left + kept), the others neighbours that a rule removed.
    Raises UserError for settings out of range, before anything is embedded.
    """
    _check(settings)
    count: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    records = rows.to_dict("records")
    positives = [row for row in records if _is_positive(row, settings)]
    asked = _choose(positives, settings.share, seed)
    count["positives"], count["asked"] = len(positives), len(asked)
    if not asked:
        return empty_rows(), dict(count)
    rules = _Rules(records, settings)
    neighbours = _neighbours(records, asked, settings, embedder)
    new_rows, made = [], Counter[str]()
    for row in asked:
        target = rules.pick(row, neighbours[row["target"]], count)
        if target is None:
            count["no candidate left"] += 1
            continue
        new_rows.append(_new_row(row, target, made[row["row_id"]]))
        made[row["row_id"]] += 1
    count["kept"] = len(new_rows)
    return make_rows({name: [row[name] for row in new_rows] for name in COLUMNS}), dict(count)


class _Rules:
    """Which targets may stand as a negative of a row; remembers what it gave away."""

    def __init__(self, records: list[dict[str, Any]], settings: NegativesSettings) -> None:
        self._low, self._high = settings.low, settings.high
        self._positive_by_query: dict[str, set[str]] = defaultdict(set)
        self._positive_by_group: dict[str, set[str]] = defaultdict(set)
        self._rows: set[tuple[str, str]] = set()
        for row in records:
            query, target = normalise(row["query"]), normalise(row["target"])
            self._rows.add((query, target))
            if _has_label(row, 1):
                self._positive_by_query[query].add(target)
                self._positive_by_group[row["group"]].add(target)

    def pick(self, row: dict[str, Any], neighbours: list[tuple[str, float]], count: Counter[str]) -> str | None:
        """The first of `neighbours` (nearest first) that no rule removes; the removed are counted."""
        for target, similarity in neighbours:
            rule = self._broken_rule(row, target, similarity)
            if not rule:
                self._rows.add((normalise(row["query"]), normalise(target)))
                return target
            count[rule] += 1
        return None

    def _broken_rule(self, row: dict[str, Any], target: str, similarity: float) -> str:
        query, other = normalise(row["query"]), normalise(target)
        if other == normalise(row["target"]):
            return "same target"
        if similarity > self._high:
            return "above band"
        if similarity < self._low:
            return "below band"
        if other in self._positive_by_query[query] or other in self._positive_by_group[row["group"]]:
            return "positive for the query"
        return "already a row" if (query, other) in self._rows else ""


def _neighbours(
    records: list[dict[str, Any]],
    asked: list[dict[str, Any]],
    settings: NegativesSettings,
    embedder: Embedder,
) -> dict[str, list[tuple[str, float]]]:
    """Target text -> its `settings.neighbours` nearest other targets with their cosines, nearest first."""
    # A dev or test row may lack its target; "" is no target to swap in.
    targets = sorted({row["target"] for row in records if normalise(row["target"])})
    vectors = embedder.passages(targets)
    place = {target: index for index, target in enumerate(targets)}
    wanted = sorted({row["target"] for row in asked})
    # One more, because the nearest of all is the target itself.
    similarity, index = nearest(vectors, vectors[[place[target] for target in wanted]], settings.neighbours + 1)
    return {
        target: [
            (targets[other], float(cosine))
            for other, cosine in zip(index[row], similarity[row], strict=True)
            if targets[other] != target
        ][: settings.neighbours]
        for row, target in enumerate(wanted)
    }


def _choose(positives: list[dict[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """round(share x positives) rows by seeded hash, each language in proportion; in rounds where share >
    1.
    """
    by_language: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(positives, key=lambda row: (row["language"], seeded_key(seed, row["row_id"]))):
        by_language[row["language"]].append(row)
    sizes = {language: len(rows) for language, rows in by_language.items()}
    quotas = proportional_quotas(sizes, round(share * len(positives)))
    return [rows[place % len(rows)] for language, rows in by_language.items() for place in range(quotas[language])]


def _new_row(source: dict[str, Any], target: str, number: int) -> dict[str, Any]:
    return source | {
        "row_id": f"{source['row_id']}/n-{number}",
        "target": target,
        "label": 0,
        "origin": "negative",
        "source_id": source["row_id"],
    }


def _is_positive(row: dict[str, Any], settings: NegativesSettings) -> bool:
    return _has_label(row, 1) and row["origin"] in settings.origins and bool(normalise(row["target"]))


def _has_label(row: dict[str, Any], label: int) -> bool:
    # A missing label is pandas' NA, which is neither equal nor unequal to anything.
    return isinstance(row["label"], int) and row["label"] == label


def _check(settings: NegativesSettings) -> None:
    if not 0 <= settings.share < math.inf:
        raise UserError(f"negatives.share is {settings.share}; it must be a number from 0")
    if settings.neighbours < 1:
        raise UserError(f"negatives.neighbours is {settings.neighbours}; it must be at least 1")
    if not -1 <= settings.low <= settings.high <= 1:
        raise UserError(
            f"negatives.low is {settings.low} and negatives.high {settings.high}; "
            "they must lie within -1..1, low not above high"
        )
    if not settings.origins:
        raise UserError("negatives.origins is empty; name at least one of original, translation")
