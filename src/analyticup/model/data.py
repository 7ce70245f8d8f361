"""Length-bucketed batches of encoded rows, as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from lightning import LightningDataModule
    from torch import Tensor

# Rows are shuffled, then sorted by length inside blocks of this many batches: little padding, still random batches.
BATCHES_PER_BLOCK = 16


@dataclass(frozen=True)
class EncodedRows:
    """Prompts as token ids with their labels (-1 where there is none), in the order of the rows."""

    tokens: Sequence[Sequence[int]]
    labels: Sequence[int]
    # Hidden states [tokens, width] of each prompt below the adapters (see frozen.py); None = start from the tokens.
    states: Sequence[Tensor] | None = None

    def lengths(self) -> np.ndarray:
        import numpy as np

        return np.fromiter((len(ids) for ids in self.tokens), dtype=np.int64, count=len(self.tokens))


def cut_batches(order: Sequence[int], lengths: np.ndarray, max_rows: int, max_tokens: int) -> list[list[int]]:
    """Cuts rows in the given order into batches of at most max_rows rows and max_tokens padded tokens.

    A single row that is longer than max_tokens makes a batch of its own: no row is ever left out.
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


def training_batches(lengths: np.ndarray, seed: int, epoch: int, max_rows: int, max_tokens: int) -> list[list[int]]:
    """Batches of one epoch: a function of seed and epoch alone; every row once."""
    import numpy as np

    random = np.random.default_rng([seed, epoch])
    shuffled = random.permutation(len(lengths))
    block = max_rows * BATCHES_PER_BLOCK
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), block):
        rows = shuffled[start : start + block]
        ordered = rows[np.argsort(lengths[rows], kind="stable")]
        batches += cut_batches(ordered, lengths, max_rows, max_tokens)
    return [batches[i] for i in random.permutation(len(batches))]


def scoring_batches(lengths: np.ndarray, max_tokens: int) -> list[list[int]]:
    """Batches for scoring: rows of one length, longest first (memory trouble shows at once), every row once.

    At most max_tokens tokens each, but at least one row. Nothing is padded: on the CPU that this was measured on, the
    bits of a score then do not depend on the rows beside it.
    """
    import numpy as np

    batches: list[list[int]] = []
    for length in np.unique(lengths)[::-1]:
        batches += cut_batches(np.flatnonzero(lengths == length), lengths, len(lengths), max_tokens)
    return batches


def collate(rows: EncodedRows, batch: Sequence[int], pad_id: int) -> dict[str, Any]:
    """Right-padded ids [rows, longest], position of the last prompt token [rows], labels [rows], row numbers [rows].

    Rows that bring states get them, [rows, longest, width] padded with zeros, in place of the ids.

    Right padding with causal attention needs no attention mask: no real token can see a pad.
    """
    import torch

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
    """A DataLoader over the rows for scoring: see `packed_batches` (packing.py), or `scoring_batches`."""
    from analyticup.model.packing import packed_batches

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
    from torch.utils.data import DataLoader

    from analyticup.model.packing import collate_packed

    made = partial(collate_packed, rows, share=share) if packing else partial(collate, rows, pad_id=pad_id)
    order = _From(first, len(batches)) if first else None
    return DataLoader(list(batches), batch_size=None, sampler=order, collate_fn=made)


def make_data_module(
    train: EncodedRows,
    held_out: Callable[[], Any],
    pad_id: int,
    seed: int,
    max_rows: int,
    max_tokens: int,
    packing: bool,
    share: bool = True,
    start: tuple[int, int] = (0, 0),
) -> LightningDataModule:
    """The data of one fold: training rows reshuffled each epoch; `held_out` makes the loader of the rows to score.

    A training that goes on from a checkpoint gets its `start`: the epoch, and how many batches of it are done.
    """
    from lightning import LightningDataModule

    class FoldData(LightningDataModule):
        def train_dataloader(self) -> Any:
            epoch = self.trainer.current_epoch if self.trainer else 0
            batches = training_batches(train.lengths(), seed, epoch, max_rows, max_tokens)
            return batch_loader(train, batches, pad_id, packing, share, first=start[1] if epoch == start[0] else 0)

        def val_dataloader(self) -> Any:
            return held_out()

    return FoldData()
