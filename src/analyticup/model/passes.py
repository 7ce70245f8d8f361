"""Cuts batches into forward passes that fit into memory. How they are cut decides no figure: the losses of a step's
passes are weighted by their rows, and dropout is drawn as for the whole batch.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data._utils.pin_memory import pin_memory

from analyticup.engine.graph import WHOLE, Shard
from analyticup.engine.memory import let_go
from analyticup.errors import out_of_memory
from analyticup.model.batches import EncodedRows, collate, cut_batches
from analyticup.model.drawing import Place, random_state, set_random_state
from analyticup.model.packing import collate_packed, filled


@dataclass
class MemoryLimit:
    """The most padded tokens that a forward pass may have, and those up to which a training keeps what its layers give
    for the backward pass; above, each layer is run again there. Lowered where memory ran out, for the rest of a
    process."""

    tokens: float = math.inf
    kept: float = math.inf

    def lower(self, tokens: int, description: str, setting: str) -> None:
        """To half of `tokens`, with which memory ran out; says so on stderr."""
        self.tokens = max(1, tokens // 2)
        limit = f"at most {self.tokens} of them from here on ({setting} sets that from the start)"
        _say(f"{description}: out of memory with {tokens} tokens in a forward pass; goes on with {limit}")

    def keep_less(self, tokens: int, description: str) -> None:
        """Keeps nothing from 4/5 of `tokens` on, with which memory ran out; says so on stderr."""
        self.kept = tokens * 4 // 5
        how = f"passes of more than {self.kept} run their layers again in the backward pass (as with"
        how += " model.gradient_checkpointing=true), which takes longer and changes no figure"
        _say(f"{description}: out of memory with {tokens} tokens in a forward pass; from here on {how}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Cutter:
    """Makes the forward passes of a batch: packs that `share` what their prompts begin with, or padded rows.

    A pass has at most `most` and at most `limit.tokens` padded tokens, or one row. Of a batch only the part of `rank`
    gets into passes, consecutive rows: all the parts together have the batch's gradient, and draw what it would draw.
    """

    rows: EncodedRows
    pad_id: int
    packing: bool
    share: bool = True
    most: float = math.inf
    limit: MemoryLimit = field(default_factory=MemoryLimit)
    rank: Shard = WHOLE

    def __call__(self, step: Sequence[Sequence[int]]) -> Passes:
        """The passes of an optimiser step, of one batch or several that are accumulated; or of a batch to score."""
        return Passes([part for batch in step for part in self._parts(batch, len(step))], step, self)

    @cached_property
    def lengths(self) -> np.ndarray:
        return self.rows.lengths()

    def tokens(self, batch: Sequence[int]) -> int:
        return len(batch) * int(self.lengths[batch].max())

    def _parts(self, batch: Sequence[int], batches: int) -> Iterator[Pass]:
        most = min(self.most, self.limit.tokens)
        if self.rank.of == 1 and self.tokens(batch) <= most:
            yield Pass(self._collated(batch), self.tokens(batch), 1.0, batches)
            return
        # As a tree orders them, so that a pass keeps what it can of what is shared.
        order = sorted(batch, key=self.rows.tokens.__getitem__) if self.packing else list(batch)
        first, last = (len(order) * number // self.rank.of for number in (self.rank.number, self.rank.number + 1))
        share = 1 / len(batch)
        if first == last:
            # Too few rows for all: what it runs counts nothing, but it draws as the others do.
            first, last, share = len(order) - 1, len(order), 0.0
        done = self._extent(order[:first])
        for number, part in enumerate(cut_batches(order[first:last], self.lengths, len(batch), most)):
            place = self._place(batch, part, done)
            done += self._extent(part)
            yield Pass(self._collated(part), self.tokens(part), len(part) * share, batches, place, number == 0)

    def _extent(self, rows: Sequence[int]) -> int:
        """The places that rows take up side by side: tokens of a pack, lines of a padded batch."""
        return int(self.lengths[list(rows)].sum()) if self.packing else len(rows)

    def _collated(self, batch: Sequence[int]) -> dict[str, Any]:
        if self.packing:
            return collate_packed(self.rows, batch, self.share)
        return collate(self.rows, batch, self.pad_id)

    def _place(self, batch: Sequence[int], part: Sequence[int], done: int) -> Place | None:
        if not self.packing:
            whole = len(batch), int(self.lengths[batch].max())
            longest = int(self.lengths[part].max())
            return Place(whole, (slice(done, done + len(part)), slice(0, longest)), (len(part), longest))
        if self.share:
            # Then nothing is drawn.
            return None
        tokens = int(self.lengths[part].sum())
        index = slice(0, 1), slice(done, done + tokens)
        return Place((1, filled(int(self.lengths[batch].sum()))), index, (1, filled(tokens)))


@dataclass
class Pass:
    """One forward pass: what `collate` or `collate_packed` makes of its rows, its padded tokens, the weight of its mean
    loss in its batch, the number of batches in the step, its place in its batch where it is a part of it, and whether
    it is the first of its batch in this process."""

    given: dict[str, Any]
    tokens: int
    weight: float
    batches: int
    place: Place | None = None
    first: bool = True


@dataclass
class Passes:
    """The passes of one `step`: batches of row numbers. Lightning and the DataLoader move it as they move a tensor."""

    parts: list[Pass]
    step: Sequence[Sequence[int]]
    cutter: Cutter
    device: torch.device | None = None

    def __len__(self) -> int:
        """Rows."""
        return sum(map(len, self.step))

    @property
    def largest(self) -> int:
        """The tokens of the largest pass."""
        return max(part.tokens for part in self.parts)

    def to(self, device: torch.device) -> Passes:
        return self._each(partial(move_data_to_device, device=device), device)

    def pin_memory(self) -> Passes:
        return self._each(pin_memory, self.device)

    def smaller(self, description: str, setting: str) -> Passes | None:
        """The same step in smaller passes; None where each is a row already."""
        sizes = [part.tokens for part in self.parts if len(part.given["rows"]) > 1]
        if not sizes:
            return None
        self.cutter.limit.lower(max(sizes), description, setting)
        made = self.cutter(self.step)
        return made if self.device is None else made.to(self.device)

    def _each(self, change: Callable[[Any], Any], device: torch.device | None) -> Passes:
        parts = [replace(part, given=change(part.given)) for part in self.parts]
        return Passes(parts, self.step, self.cutter, device)


def fitting(run: Callable[[Passes], Any], passes: Passes, relieve: Callable[[Passes], Passes | None]) -> Any:
    """run(passes); where memory runs out, again with what `relieve` makes of them, None = nothing would help. What
    `run` draws is drawn anew, the same."""
    state = random_state()
    while True:
        try:
            return run(passes)
        except Exception as error:
            if not out_of_memory(error):
                raise
            # What the failed pass has made, which the smaller ones may not fit beside.
            traceback.clear_frames(error.__traceback__)
            less = relieve(passes)
            if less is None:
                raise
        # Here and not above: until its handler ends, the error holds the failed pass in memory.
        passes = less
        let_go()
        set_random_state(state)
