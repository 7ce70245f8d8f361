"""People's decisions on training rows, as the filter reads them, and what they do to the rows.

The file of a task is JSON lines, in the order of the row ids. `./run.sh review` writes it. It holds no text of a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pandas import DataFrame, Series

from analyticup.engine.files import read_bytes, write_atomically
from analyticup.errors import UserError

# What a person says of a row's label; unsure decides nothing, so that the remedy's word holds.
KEEP, FLIP, DROP, UNSURE = ANSWERS = ("keep", "flip", "drop", "unsure")
Counts = dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """`answer` is keep, flip or drop, of the row's `label` (0 or 1) as the person saw it; `text` is `text_digest`."""

    row_id: str
    text: str
    label: int
    answer: str

    @property
    def truth(self) -> int:
        """The label that the person takes for right."""
        return 1 - self.label if self.answer == FLIP else self.label


def text_digest(query: str, target: str) -> str:
    """Tells whether a row still has the texts that a person saw: 16 hexadecimal digits of a sha256."""
    return hashlib.sha256(f"{query}\x1f{target}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_decisions(decisions: Iterable[Decision], path: Path) -> None:
    """Writes a task's file, in the order of the row ids; where there is no decision, there is no file."""
    lines = [json.dumps(asdict(one)) + "\n" for one in sorted(decisions, key=lambda one: one.row_id)]
    if lines:
        write_atomically(path, "".join(lines))
    else:
        path.unlink(missing_ok=True)


def read_decisions(path: Path) -> list[Decision]:
    """What `write_decisions` wrote; UserError with file:line for anything else."""
    found: dict[str, Decision] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        try:
            decision = Decision(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            decision = None
        if decision is None or decision.answer not in (KEEP, FLIP, DROP) or decision.label not in (0, 1):
            raise UserError(f"{path}:{number}: no decision on a row; write the file with ./run.sh review import")
        if decision.row_id in found:
            raise UserError(f"{path}:{number}: {decision.row_id} is decided twice; keep one of the two lines")
        found[decision.row_id] = decision
    return list(found.values())


def fitting(rows: DataFrame, decisions: Iterable[Decision]) -> dict[str, Decision]:
    """The decisions by row id, without those on rows that are not there or have other texts."""
    texts = {
        row_id: (query, target)
        for row_id, query, target in zip(rows["row_id"], rows["query"], rows["target"], strict=True)
    }
    return {one.row_id: one for one in decisions if one.row_id in texts and one.text == text_digest(*texts[one.row_id])}


def apply_decisions(rows: DataFrame, left: DataFrame, decided: Mapping[str, Decision]) -> tuple[DataFrame, Counts]:
    """(rows to train on, counts): of the `rows` those that the remedy has `left`, and what people `decided` instead.

    keep and flip bring a row back that the remedy dropped, with the label that the person takes for right; drop removes
    it. Translations follow a flip and a drop of the row that they were made from. Negatives made from it stay, but one
    with the texts of a row that people take for a positive is dropped.
    """
    followed = {**decided, **_followers(rows, decided)}
    label = rows["label"].to_numpy(dtype=int, copy=True)
    stays = rows["row_id"].isin(left["row_id"]).to_numpy(copy=True)
    label[stays] = left["label"].to_numpy(dtype=int)
    place = {row_id: at for at, row_id in enumerate(rows["row_id"])}
    texts = list(zip(rows["query"], rows["target"], strict=True))
    positives = set()
    for row_id, one in followed.items():
        at = place[row_id]
        stays[at], label[at] = one.answer != DROP, one.truth
        if stays[at] and label[at]:
            positives.add(texts[at])
    refuted = (rows["origin"] == "negative").to_numpy() & np.array([pair in positives for pair in texts], dtype=bool)
    counts: Counts = {answer: sum(one.answer == answer for one in decided.values()) for answer in (KEEP, FLIP, DROP)}
    counts |= {"translations that follow": len(followed) - len(decided), "negatives that are none": int(refuted.sum())}
    kept = rows.assign(label=Series(label, index=rows.index, dtype=rows["label"].dtype))
    return kept[stays & ~refuted].reset_index(drop=True), counts


def _followers(rows: DataFrame, decided: Mapping[str, Decision]) -> dict[str, Decision]:
    """Translations of rows that are flipped or dropped, by row id: the decision on the row that they were made from."""
    made = rows[(rows["origin"] == "translation") & ~rows["row_id"].isin(decided)]
    pairs = zip(made["row_id"], made["source_id"], strict=True)
    return {row_id: decided[source] for row_id, source in pairs if source in decided and decided[source].answer != KEEP}
