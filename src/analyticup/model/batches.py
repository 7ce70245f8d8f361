"""Rows as token ids, and how they are cut into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyticup.settings.schema import TrainSettings

# Rows are shuffled, then sorted inside blocks of this many batches: what is cheap in one batch is together, and batches
# are still random.
BATCHES_PER_BLOCK = 16


@dataclass(frozen=True)
class EncodedRows:
    """Prompts as token ids with their labels (-1 where there is none), in the order of the rows."""

    tokens: Sequence[Sequence[int]]
    labels: Sequence[int]
    # Hidden states [tokens, width] of each prompt below the adapters (see `frozen`); None = start from the tokens.
    states: Sequence[Tensor] | None = None
    # What each row's target gives to the other class, in the place of `train.label_smoothing`; None = that.
    doubts: Sequence[float] | None = None

    def lengths(self) -> np.ndarray:
        return np.fromiter((len(ids) for ids in self.tokens), dtype=np.int64, count=len(self.tokens))

    def take(self, places: Sequence[int]) -> EncodedRows:
        """The rows at these places, in their order."""
        states = None if self.states is None else [self.states[at] for at in places]
        doubts = None if self.doubts is None else [self.doubts[at] for at in places]
        return EncodedRows([self.tokens[at] for at in places], [self.labels[at] for at in places], states, doubts)

    def known(self, batch: Sequence[int]) -> dict[str, Tensor]:
        """Labels and row numbers of the batch's rows, [rows] each, and `doubts` where there are some."""
        found = {"labels": torch.tensor([self.labels[row] for row in batch]), "rows": torch.tensor(list(batch))}
        if self.doubts is not None:
            found["doubts"] = torch.tensor([self.doubts[row] for row in batch])
        return found

    @cached_property
    def ranks(self) -> np.ndarray:
        """Each prompt's place among all in the order of their ids, int64 [rows]: what begins alike is adjacent."""
        ranks = np.empty(len(self.tokens), dtype=np.int64)
        ranks[sorted(range(len(self.tokens)), key=self.tokens.__getitem__)] = np.arange(len(self.tokens))
        return ranks


def collate(rows: EncodedRows, batch: Sequence[int], pad_id: int) -> dict[str, Any]:
    """Right-padded ids [rows, longest], position of the last prompt token [rows], labels [rows], row numbers [rows].

    Rows that bring states get them, [rows, longest, width] padded with zeros, in place of the ids.

    Right padding with causal attention needs no attention mask: no real token can see a pad.
    """
    longest = max(len(rows.tokens[i]) for i in batch)
    if rows.states is None:
        given = {"ids": torch.full((len(batch), longest), pad_id, dtype=torch.long)}
        for line, i in enumerate(batch):
            given["ids"][line, : len(rows.tokens[i])] = torch.tensor(rows.tokens[i], dtype=torch.long)
    else:
        given = {"states": torch.nn.utils.rnn.pad_sequence([rows.states[i] for i in batch], batch_first=True)}
    return {
        **given,
        "last": torch.tensor([len(rows.tokens[i]) - 1 for i in batch]),
        **rows.known(batch),
    }


def cut_batches(order: Sequence[int], lengths: np.ndarray, max_rows: int, max_tokens: int) -> list[list[int]]:
    """Cuts rows in the given order into batches of at most max_rows rows and max_tokens padded tokens.

    A single row that is longer than max_tokens gets its own batch: no row is ever left out.
    """
    batches: list[list[int]] = []
    longest = 0
    for row in order:
        longest = max(longest, int(lengths[row]))
        full = not batches or len(batches[-1]) >= max_rows or longest * (len(batches[-1]) + 1) > max_tokens
        if full:
            batches.append([])
            longest = int(lengths[row])
        batches[-1].append(int(row))
    return batches


def batch_limits(settings: TrainSettings) -> dict[str, Any]:
    """How `training_batches` cuts and sorts rows."""
    return {"max_rows": settings.batch_rows, "by_beginning": settings.sort == "prompt"}


def training_batches(
    rows: EncodedRows, seed: int, epoch: int, max_rows: int, by_beginning: bool = False
) -> list[list[int]]:
    """Batches of one epoch, of `max_rows` rows but for the last of a block: a function of only rows, seed and epoch;
    every row once. How many tokens fit into memory changes none: see `passes`.

    Rows of one length are together, so that there is little padding; or, `by_beginning`, rows that begin alike, so that
    packs are small.
    """
    lengths = rows.lengths()
    keys = rows.ranks if by_beginning else lengths
    random = np.random.default_rng([seed, epoch])
    shuffled = random.permutation(len(lengths))
    block = max_rows * BATCHES_PER_BLOCK
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), block):
        part = shuffled[start : start + block]
        ordered = part[np.argsort(keys[part], kind="stable")]
        batches += [ordered[first : first + max_rows].tolist() for first in range(0, len(ordered), max_rows)]
    return [batches[i] for i in random.permutation(len(batches))]


def scoring_batches(lengths: np.ndarray, max_tokens: int) -> list[list[int]]:
    """Batches for scoring: rows of one length, longest first (memory trouble shows at once), every row once.

    At most max_tokens tokens each, but at least one row. Nothing is padded: on CPUs without matrix tiles the bits of a
    score then do not depend on the other rows.
    """
    batches: list[list[int]] = []
    for length in np.unique(lengths)[::-1]:
        batches += cut_batches(np.flatnonzero(lengths == length), lengths, len(lengths), max_tokens)
    return batches
