"""Length-bucketed batches of encoded rows, as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from analyticup.model.batches import EncodedRows, scoring_batches, training_batches
from analyticup.model.packing import collate_packed, packed_batches


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
        "labels": torch.tensor([rows.labels[i] for i in batch]),
        "rows": torch.tensor(list(batch)),
    }


@dataclass(frozen=True)
class _From:
    """Batch numbers first..total-1, but of length `total`: to Lightning a resumed epoch is as long as a whole one."""

    first: int
    total: int

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.total))

    def __len__(self) -> int:
        return self.total


def scoring_loader(rows: EncodedRows, max_tokens: int, pad_id: int, packing: bool) -> Any:
    """A DataLoader over the rows for scoring: see `packed_batches` or `scoring_batches`."""
    batches = packed_batches(rows.tokens, max_tokens) if packing else scoring_batches(rows.lengths(), max_tokens)
    return batch_loader(rows, batches, pad_id, packing)


def batch_loader(
    rows: EncodedRows,
    batches: Sequence[Sequence[int]],
    pad_id: int,
    packing: bool,
    share: bool = True,
    first: int = 0,
) -> Any:
    """A DataLoader over ready-made batches, from the `first` on.

    With `packing` they are packs, in which prompts `share` what they begin with.
    """
    made = partial(collate_packed, rows, share=share) if packing else partial(collate, rows, pad_id=pad_id)
    order = _From(first, len(batches)) if first else None
    return DataLoader(list(batches), batch_size=None, sampler=order, collate_fn=made)


class FoldData(LightningDataModule):
    """The data of one fold: training rows reshuffled each epoch; `cut` is from `batch_limits`, and `held_out` makes
    the loader of the rows to score.

    A training that resumes from a checkpoint gets its `start`: the epoch, and how many batches of it are done.
    """

    def __init__(
        self,
        train: EncodedRows,
        held_out: Callable[[], Any],
        pad_id: int,
        seed: int,
        cut: Mapping[str, Any],
        packing: bool,
        share: bool = True,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.rows, self.held_out, self.pad_id, self.seed = train, held_out, pad_id, seed
        self.cut, self.packing, self.share, self.start = cut, packing, share, start

    def train_dataloader(self) -> Any:
        epoch = self.trainer.current_epoch if self.trainer else 0
        batches = training_batches(self.rows, self.seed, epoch, **self.cut)
        first = self.start[1] if epoch == self.start[0] else 0
        return batch_loader(self.rows, batches, self.pad_id, self.packing, self.share, first)

    def val_dataloader(self) -> Any:
        return self.held_out()
