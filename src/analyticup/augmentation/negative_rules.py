"""Which targets may become a negative of a row: similarity, known positives, category tree, rows there already."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from pandas import DataFrame

from analyticup.corpus.taxonomy import RELATIONS, Levels, on_one_line, path_levels, relation, same_leaf
from analyticup.corpus.text import normalise
from analyticup.settings.schema import NegativesSettings

BAND, HARD, EASY = "band", "hard", "easy"
# The task whose targets are category paths; titles have commas too, but no levels.
PATH_TASK = "QC"


@dataclass(frozen=True)
class Ask:
    """One negative asked for: from which positive row, and how near (BAND, HARD or EASY)."""

    row: dict[str, Any]
    kind: str


def has_label(row: dict[str, Any], label: int) -> bool:
    # A missing label is pandas' NA, which is neither equal nor unequal to anything.
    return isinstance(row["label"], int) and row["label"] == label


class Rules:
    """The rules over all given rows; remembers what it gave away, so that no two new rows are equal."""

    def __init__(self, records: list[dict[str, Any]], settings: NegativesSettings) -> None:
        self._settings = settings
        self._key, self._levels = cache(normalise), cache(path_levels)
        self._positive_by_query: dict[str, set[str]] = defaultdict(set)
        self._positive_by_group: dict[str, set[str]] = defaultdict(set)
        self._paths_by_query: dict[str, set[Levels]] = defaultdict(set)
        self._paths_by_group: dict[str, set[Levels]] = defaultdict(set)
        self._rows: set[tuple[str, str]] = set()
        self._refused: set[tuple[str, str]] = set()
        for row in records:
            query, target = self._key(row["query"]), self._key(row["target"])
            self._rows.add((query, target))
            if has_label(row, 1):
                self._positive_by_query[query].add(target)
                self._positive_by_group[row["group"]].add(target)
                if row["task"] == PATH_TASK:
                    self._paths_by_query[query].add(self._levels(row["target"]))
                    self._paths_by_group[row["group"]].add(self._levels(row["target"]))

    def pick(self, ask: Ask, candidates: Iterable[tuple[str, float]], count: Counter[str]) -> str | None:
        """The first of `candidates` (target, cosine to the row's own) that no rule removes; the removed are counted.

        A target that is picked is not picked again for the same query.
        """
        for target, similarity in candidates:
            rule = self._broken_rule(ask, target, similarity)
            if not rule:
                self._rows.add(self._pair(ask, target))
                return target
            count[rule] += 1
        return None

    def refuse(self, ask: Ask, target: str) -> None:
        """Takes a picked target back for good, for every row of that query."""
        self._refused.add(self._pair(ask, target))

    def _pair(self, ask: Ask, target: str) -> tuple[str, str]:
        return self._key(ask.row["query"]), self._key(target)

    def _broken_rule(self, ask: Ask, target: str, similarity: float) -> str:
        query, other = pair = self._pair(ask, target)
        if other == self._key(ask.row["target"]):
            return "same target"
        if rule := self._wrong_distance(ask.kind, similarity):
            return rule
        if other in self._positive_by_query[query] or other in self._positive_by_group[ask.row["group"]]:
            return "positive for the query"
        if ask.row["task"] == PATH_TASK and (rule := self._wrong_path(ask.row, query, target)):
            return rule
        if pair in self._refused:
            return "guard"
        return "already a row" if pair in self._rows else ""

    def _wrong_distance(self, kind: str, similarity: float) -> str:
        if kind == EASY:
            return "not below low" if similarity >= self._settings.low else ""
        if similarity > self._settings.high:
            return "above band"
        return "below band" if kind == BAND and similarity < self._settings.low else ""

    def _wrong_path(self, row: dict[str, Any], query: str, target: str) -> str:
        path = self._levels(target)
        positives = self._paths_by_query[query] | self._paths_by_group[row["group"]]
        if path in positives:
            return "positive for the query"
        if any(on_one_line(path, positive) for positive in positives):
            return "ancestor or descendant"
        if self._settings.same_leaf == "exclude" and any(same_leaf(path, positive) for positive in positives):
            return "same leaf"
        return "" if relation(path, self._levels(row["target"])) in self._settings.relations else "relation"


def relation_counts(rows: DataFrame, new_rows: DataFrame) -> dict[str, int]:
    """How many negatives have each of RELATIONS to the target they replaced; only rows with paths (QC).

    `rows` holds the source rows of `new_rows`. Raises KeyError where one is not there.
    """
    target_of = dict(zip(rows["row_id"], rows["target"], strict=True))
    count = Counter(dict.fromkeys(RELATIONS, 0))
    for task, source, target in zip(new_rows["task"], new_rows["source_id"], new_rows["target"], strict=True):
        if task == PATH_TASK:
            count[relation(path_levels(target_of[source]), path_levels(target))] += 1
    return dict(count)
