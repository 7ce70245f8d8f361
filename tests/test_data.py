"""Batches: every row once, within bounds, decided by seed and epoch alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from analyticup.model.batches import EncodedRows, collate, cut_batches, scoring_batches, training_batches
from analyticup.model.data import FoldData, scoring_loader, step_loader
from analyticup.model.passes import Cutter


@pytest.fixture
def lengths():
    return np.random.default_rng(0).integers(5, 80, size=1000)


def padded(batch, lengths):
    return len(batch) * max(int(lengths[row]) for row in batch)


def cut(lengths, *numbers, by_beginning=False):
    rows = EncodedRows([[1] * int(length) for length in lengths], [0] * len(lengths))
    return training_batches(rows, *numbers, by_beginning)


def check(batches, lengths, max_rows, max_tokens):
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or padded(batch, lengths) <= max_tokens


@pytest.mark.parametrize("max_rows", [32, 1, 1000, 7])
def test_training_batches_hold_every_row_once_and_are_full(lengths, max_rows):
    for by_beginning in (False, True):
        batches = cut(lengths, 3, 0, max_rows, by_beginning=by_beginning)
        check(batches, lengths, max_rows, np.inf)
        # But for the last of a block.
        assert sum(len(batch) < max_rows for batch in batches) <= 1


@pytest.mark.parametrize("max_tokens", [10**9, 4096, 60, 1])
def test_scoring_batches_hold_every_row_once_longest_first(lengths, max_tokens):
    batches = scoring_batches(lengths, max_tokens)
    check(batches, lengths, len(lengths), max_tokens)
    flat = [int(lengths[row]) for batch in batches for row in batch]
    assert flat == sorted(flat, reverse=True)
    assert all(len({int(lengths[row]) for row in batch}) == 1 for batch in batches)


def test_the_bounds_are_used_up():
    assert cut_batches(range(6), np.full(6, 10), max_rows=4, max_tokens=1000) == [[0, 1, 2, 3], [4, 5]]
    assert cut_batches(range(6), np.full(6, 10), max_rows=4, max_tokens=20) == [[0, 1], [2, 3], [4, 5]]


def test_a_row_that_is_too_long_is_alone_and_does_not_count_for_the_next():
    lengths = np.array([10, 10, 500, 10, 10])
    assert cut_batches(range(5), lengths, max_rows=8, max_tokens=40) == [[0, 1], [2], [3, 4]]


def test_the_longest_row_decides_what_a_batch_costs():
    assert cut_batches(range(4), np.array([5, 5, 5, 20]), max_rows=8, max_tokens=60) == [[0, 1, 2], [3]]
    assert cut_batches(range(4), np.array([20, 5, 5, 5]), max_rows=8, max_tokens=60) == [[0, 1, 2], [3]]


def test_seed_and_epoch_alone_decide(lengths):
    one = cut(lengths, 3, 0, 32)
    np.random.seed(99)
    assert cut(lengths.copy(), 3, 0, 32) == one
    assert cut(lengths, 3, 1, 32) != one
    assert cut(lengths, 4, 0, 32) != one


def test_rows_of_like_length_share_a_batch_but_the_batches_are_in_random_order(lengths):
    batches = cut(lengths, 3, 0, 32)
    random = [list(range(start, min(start + 32, 1000))) for start in range(0, 1000, 32)]
    waste = [sum(padded(batch, lengths) for batch in cut) for cut in (batches, random)]
    assert waste[0] < 0.8 * waste[1]
    # One block, within which the rows were sorted.
    block = lengths[:500]
    longest = [max(int(block[row]) for row in batch) for batch in cut(block, 3, 0, 32)]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_packs_hold_rows_that_begin_alike():
    random = np.random.default_rng(0)
    rows = EncodedRows(
        [[int(random.integers(20)), *random.integers(100, size=7).tolist()] for _ in range(300)], [0] * 300
    )
    tokens = [
        sum(len({tuple(rows.tokens[row][:end]) for row in batch for end in range(1, 9)}) for batch in batches)
        for batches in (training_batches(rows, 3, 0, 8, by_beginning) for by_beginning in (False, True))
    ]
    # Only the first of eight tokens repeats.
    assert tokens[1] < 0.95 * tokens[0]


def test_no_rows_give_no_batches():
    empty = np.zeros(0, dtype=np.int64)
    assert cut(empty, 1, 0, 32) == scoring_batches(empty, 4096) == []


def test_a_batch_is_padded_on_the_right_and_knows_its_rows():
    rows = EncodedRows([[7, 8, 9], [5], [1, 2]], [1, -1, 0])
    batch = collate(rows, [2, 0], pad_id=0)
    assert batch["ids"].tolist() == [[1, 2, 0], [7, 8, 9]]
    assert batch["last"].tolist() == [1, 2]
    assert batch["labels"].tolist() == [0, 1]
    assert batch["rows"].tolist() == [2, 0]
    assert rows.lengths().tolist() == [3, 1, 2]


def rows_of(loader):
    """The row numbers of each pass of each step."""
    return [[part.given["rows"].tolist() for part in passes.parts] for passes in loader]


def test_the_loader_gives_the_steps_as_they_were_cut():
    cut = Cutter(EncodedRows([[7], [5, 6], [1]], [1, 0, 1]), pad_id=0, packing=False)
    assert rows_of(step_loader(cut, [[[2, 1], [0]], [[1]]])) == [[[2, 1], [0]], [[1]]]
    assert rows_of(step_loader(cut, [[[2, 1], [0]], [[1]]], first=1)) == [[[1]]]


def test_the_data_module_reshuffles_with_the_trainers_epoch():
    from types import SimpleNamespace

    rows = EncodedRows([[1] * (1 + i % 5) for i in range(60)], [i % 2 for i in range(60)])
    cut = Cutter(rows, pad_id=0, packing=False)
    data = FoldData(cut, partial(scoring_loader, cut, 100), seed=3, limits={"max_rows": 4}, accumulate=2)

    def epoch(number):
        data.trainer = SimpleNamespace(current_epoch=number)
        steps = rows_of(data.train_dataloader())
        assert {len(step) for step in steps[:-1]} == {2}
        return [batch for step in steps for batch in step]

    assert epoch(0) == training_batches(rows, 3, 0, 4)
    assert epoch(1) == training_batches(rows, 3, 1, 4) != epoch(0)
    assert [batch for (batch,) in rows_of(data.val_dataloader())] == scoring_batches(rows.lengths(), 100)
