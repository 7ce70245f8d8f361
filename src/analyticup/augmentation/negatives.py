"""Semantic negatives: a positive's target is swapped for a distinct one, as a rule a close one.

Section "semantic negative sampling" of arXiv 2510.21671; embedder, number of neighbours, similarity band and
volume are assumed. The band's upper end keeps out other names of the same thing, its lower end what is
negative at first sight. One rival reports that easy negatives helped and hard ones hurt, so how near they are
is a setting. The rules over the category tree, the guard and the target for the positives' share are assumed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from pandas import DataFrame

from analyticup.augmentation.embedders import Embedder
from analyticup.augmentation.negative_rules import BAND, EASY, Ask, Rules, has_label
from analyticup.augmentation.neighbours import nearest
from analyticup.corpus.rows import COLUMNS, empty_rows, make_rows
from analyticup.corpus.text import normalise
from analyticup.errors import UserError
from analyticup.seeds import proportional_quotas, seeded_key
from analyticup.settings.schema import NegativesSettings

COUNTS = (
    "positives",
    "asked",
    "no source",
    "below band",
    "above band",
    "not below low",
    "same target",
    "positive for the query",
    "ancestor or descendant",
    "same leaf",
    "relation",
    "already a row",
    "guard",
    "no candidate left",
    "kept",
    "kept easy",
)
# Those that count candidates.
REMOVED = COUNTS[COUNTS.index("below band") : COUNTS.index("no candidate left")]
Candidate = tuple[str, float]


"""(target, cosine to the target it would replace)"""


Scorer = Callable[[list[tuple[str, str]]], Sequence[float]]


"""(query, target) pairs -> p(yes) of each, 0..1"""


def sample_negatives(
    rows: DataFrame,
    settings: NegativesSettings,
    embedder: Embedder,
    seed: int,
    scorer: Scorer | None = None,
) -> tuple[DataFrame, dict[str, int]]:
    """New rows of origin "negative", label 0, from the positives whose origin is in `settings.origins`.

    Asked for are round(share x positives) rows, spread over the languages in proportion, or per language what
    `wanted_by_language` says; where that is more than its positives, a positive is used more than once. Each takes
    the first candidate left after the rules. Candidates by `settings.hardness`: "band" = the `neighbours` nearest
    other targets (nearest first, ties by text) with low <= cosine <= high, where percentiles have been turned into
    cosines; "hard" = the same without the lower
    bound; "easy" = any target of the rows with cosine < low, in an order drawn from the seed, each distinct target
    as likely (assumed); "mix" = band and easy in turn, neither replacing the other.

    With `guard_above`, a candidate with p(yes) >= guard_above by `scorer` is refused and the row's next one tried,
    all rows at once, in at most `neighbours` rounds. The order of `rows` changes nothing. Returns (rows table,
    counts): `positives`, `asked`, `no source`, `no candidate left`, `kept` and `kept easy` count rows (asked =
    no source + no candidate left + kept), the others candidates that a rule removed. Raises UserError for a guard
    without a scorer, before anything is embedded; ValueError for scores that are not numbers in 0..1.
    """
    if settings.guard_above is not None and scorer is None:
        raise UserError(
            f"negatives.guard_above is {settings.guard_above}, but no model scores the candidates; set it to null"
        )
    count: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    records = rows.to_dict("records")
    positives = [row for row in records if _is_positive(row, settings)]
    quotas = _quotas(records, positives, settings)
    asks = _choose(positives, quotas, settings.hardness, seed)
    count["positives"], count["asked"] = len(positives), sum(quotas.values())
    count["no source"] = count["asked"] - len(asks)
    if not asks:
        return empty_rows(), dict(count)
    candidates, settings = _candidates(records, asks, settings, embedder, seed)
    targets = _fill(asks, candidates, Rules(records, settings), settings, scorer, count)
    new_rows, made = [], Counter[str]()
    for ask, target in zip(asks, targets, strict=True):
        if target is None:
            count["no candidate left"] += 1
            continue
        new_rows.append(_new_row(ask.row, target, made[ask.row["row_id"]]))
        made[ask.row["row_id"]] += 1
        count["kept easy"] += ask.kind == EASY
    count["kept"] = len(new_rows)
    return make_rows({name: [row[name] for row in new_rows] for name in COLUMNS}), dict(count)


def wanted_by_language(records: list[dict[str, Any]], positive_share: float) -> dict[str, int]:
    """Language -> fewest negatives with which its share of positives is not above `positive_share` (0 < share <= 1).

    All labelled rows of the language count, derived ones included; one without any labelled row needs none.
    """
    positive, labelled = Counter[str](), Counter[str]()
    for row in records:
        positive[row["language"]] += has_label(row, 1)
        labelled[row["language"]] += has_label(row, 1) or has_label(row, 0)
    # The decimal number as it was written: in binary, 0.7 and the like would cost or save a row.
    share = Fraction(str(positive_share))
    return {
        language: max(0, math.ceil(positive[language] / share) - labelled[language]) for language in sorted(labelled)
    }


def _quotas(
    records: list[dict[str, Any]], positives: list[dict[str, Any]], settings: NegativesSettings
) -> dict[str, int]:
    if settings.positive_share is not None:
        return wanted_by_language(records, settings.positive_share)
    return proportional_quotas(Counter(row["language"] for row in positives), round(settings.share * len(positives)))


def _choose(positives: list[dict[str, Any]], quotas: dict[str, int], hardness: str, seed: int) -> list[Ask]:
    """The quota of each language by seeded hash, in rounds over its positives; none where it has no positive."""
    by_language: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(positives, key=lambda row: (row["language"], seeded_key(seed, row["row_id"]))):
        by_language[row["language"]].append(row)
    chosen = [rows[place % len(rows)] for language, rows in by_language.items() for place in range(quotas[language])]
    # In turn along the seeded order, so that the halves differ by at most one row in every language.
    kinds = (BAND, EASY) if hardness == "mix" else (hardness,)
    return [Ask(row, kinds[place % len(kinds)]) for place, row in enumerate(chosen)]


def _fill(
    asks: list[Ask],
    candidates: list[Iterator[Candidate]],
    rules: Rules,
    settings: NegativesSettings,
    scorer: Scorer | None,
    count: Counter[str],
) -> list[str | None]:
    """The target of every ask, None where no candidate is left."""
    targets: list[str | None] = [None] * len(asks)
    waiting = list(range(len(asks)))
    for _ in range(settings.neighbours):
        for place in waiting:
            targets[place] = rules.pick(asks[place], candidates[place], count)
        picked = [place for place in waiting if targets[place] is not None]
        waiting = _too_likely(picked, asks, targets, settings.guard_above, scorer)
        for place in waiting:
            rules.refuse(asks[place], targets[place] or "")
            targets[place] = None
        count["guard"] += len(waiting)
        if not waiting:
            break
    return targets


def _too_likely(
    places: list[int],
    asks: list[Ask],
    targets: list[str | None],
    guard_above: float | None,
    scorer: Scorer | None,
) -> list[int]:
    """Those of `places` whose new row the scorer takes for a positive."""
    if guard_above is None or scorer is None or not places:
        return []
    scores = scorer([(asks[place].row["query"], targets[place] or "") for place in places])
    for score in scores:
        if not 0 <= score <= 1:
            raise ValueError(f"the guard's scorer gave {score}; p(yes) is within 0..1")
    return [place for place, score in zip(places, scores, strict=True) if score >= guard_above]


def _candidates(
    records: list[dict[str, Any]],
    asks: list[Ask],
    settings: NegativesSettings,
    embedder: Embedder,
    seed: int,
) -> tuple[list[Iterator[Candidate]], NegativesSettings]:
    """For every ask the targets to try, in this order; and the settings with the band in cosines."""
    # A dev or test row may lack its target; "" is not a target to swap in.
    targets = sorted({row["target"] for row in records if normalise(row["target"])})
    pool = _Targets(targets, embedder)
    ranked = settings.band == "percentile"
    near = pool.neighbours({ask.row["target"] for ask in asks if ranked or ask.kind != EASY}, settings.neighbours)
    tried = [
        pool.anywhere(ask.row["target"], seeded_key(seed, EASY, ask.row["row_id"]))
        if ask.kind == EASY
        else iter(near[ask.row["target"]])
        for ask in asks
    ]
    return tried, _in_cosines(settings, near) if ranked else settings


def _in_cosines(settings: NegativesSettings, near: Mapping[str, list[Candidate]]) -> NegativesSettings:
    """The settings with their percentiles as cosines, by the neighbours of each target, which count alike."""
    cosines = [cosine for candidates in near.values() for _, cosine in candidates]
    low, high = np.quantile(cosines, [settings.low, settings.high]) if cosines else (settings.low, settings.high)
    return settings.replace(band="cosine", low=float(low), high=float(high))


class _Targets:
    """All distinct targets of the rows, embedded."""

    def __init__(self, targets: list[str], embedder: Embedder) -> None:
        self._targets = targets
        self._vectors = embedder.passages(targets)
        self._place = {target: index for index, target in enumerate(targets)}

    def neighbours(self, texts: set[str], k: int) -> dict[str, list[Candidate]]:
        """Target text -> its k nearest other targets with their cosines, nearest first."""
        wanted = sorted(texts)
        own = self._vectors[[self._place[text] for text in wanted]]
        # One more, because the nearest of all is the target itself.
        similarity, index = nearest(self._vectors, own, k + 1)
        return {
            text: [
                (self._targets[other], float(cosine))
                for other, cosine in zip(index[row], similarity[row], strict=True)
                if self._targets[other] != text
            ][:k]
            for row, text in enumerate(wanted)
        }

    def anywhere(self, text: str, key: str, block: int = 256) -> Iterator[Candidate]:
        """Every other target once, in an order drawn from `key` (hex digits).

        Start and step are drawn, the step without a common divisor with the number of targets: to shuffle or score
        all of them for every row would cost rows x targets, where mostly the first few are looked at.
        """
        size = len(self._targets)
        start, step = int(key[:16], 16) % size, int(key[16:32], 16) % size or 1
        while math.gcd(step, size) > 1:
            step += 1
        own = self._vectors[self._place[text]].astype(np.float64)
        for begin in range(0, size, block):
            places = (start + step * np.arange(begin, min(begin + block, size))) % size
            # In double precision and rounded, as `nearest` does it, so that both see the same cosine.
            cosines = np.einsum("d,kd->k", own, self._vectors[places].astype(np.float64)).astype(np.float32)
            for place, cosine in zip(places, cosines, strict=True):
                if self._targets[place] != text:
                    yield self._targets[place], float(cosine)


def _new_row(source: dict[str, Any], target: str, number: int) -> dict[str, Any]:
    return source | {
        "row_id": f"{source['row_id']}/n-{number}",
        "target": target,
        "label": 0,
        "origin": "negative",
        "source_id": source["row_id"],
    }


def _is_positive(row: dict[str, Any], settings: NegativesSettings) -> bool:
    return has_label(row, 1) and row["origin"] in settings.origins and bool(normalise(row["target"]))
