"""Length-bucketed batches of encoded rows, as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from analyticup.engine.graph import WHOLE, Shard
from analyticup.model.batches import EncodedRows, scoring_batches, training_batches
from analyticup.model.packing import packed_batches
from analyticup.model.passes import Cutter


@dataclass(frozen=True)
class _From:
    """Batch numbers first..total-1, but of length `total`: to Lightning a resumed epoch is as long as a whole one."""

    first: int
    total: int

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.total))

    def __len__(self) -> int:
        return self.total


def batches_to_score(rows: EncodedRows, packing: bool, max_tokens: int) -> list[list[int]]:
    """See `packed_batches` or `scoring_batches`."""
    return packed_batches(rows.tokens, max_tokens) if packing else scoring_batches(rows.lengths(), max_tokens)


def scoring_loader(cut: Cutter, max_tokens: int, rank: Shard = WHOLE) -> Any:
    """A DataLoader over all rows for scoring, or over the batches of a `rank`; one without any gets the first."""
    batches = batches_to_score(cut.rows, cut.packing, max_tokens)
    return step_loader(cut, [[batch] for batch in rank.take(batches) or batches[:1]])


def step_loader(cut: Cutter, steps: Sequence[Sequence[Sequence[int]]], first: int = 0) -> Any:
    """A DataLoader over the passes of ready-made steps, from the `first` on. Pinned where there is a GPU, so that
    copies to it need not wait."""
    order = _From(first, len(steps)) if first else None
    pinned = torch.cuda.is_available()
    return DataLoader(list(steps), batch_size=None, sampler=order, collate_fn=cut, pin_memory=pinned)


class FoldData(LightningDataModule):
    """The data of one fold: training rows reshuffled each epoch, cut by `cut` into the passes of a step of
    `accumulate` batches; `limits` is from `batch_limits`, and `held_out` makes the loader of the rows to score.

    A training that resumes from a checkpoint gets its `start`: the epoch, and how many steps of it are done.
    """

    def __init__(
        self,
        cut: Cutter,
        held_out: Callable[[], Any],
        seed: int,
        limits: Mapping[str, Any],
        accumulate: int = 1,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.cut, self.held_out, self.seed = cut, held_out, seed
        self.limits, self.accumulate, self.start = limits, accumulate, start

    def steps(self, epoch: int) -> list[list[list[int]]]:
        """The batches of each optimiser step of an epoch; the last step may have fewer."""
        batches = training_batches(self.cut.rows, self.seed, epoch, **self.limits)
        return [batches[first : first + self.accumulate] for first in range(0, len(batches), self.accumulate)]

    def train_dataloader(self) -> Any:
        epoch = self.trainer.current_epoch if self.trainer else 0
        return step_loader(self.cut, self.steps(epoch), self.start[1] if epoch == self.start[0] else 0)

    def val_dataloader(self) -> Any:
        return self.held_out()
