"""Forward passes: however a step is cut, its gradient is the same; where memory runs out, it is cut and goes on."""

from __future__ import annotations

import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from closeness import assert_same_sums
from tiny_models import fill_adapter_at_random

from analyticup.engine.graph import WHOLE, Shard
from analyticup.errors import machine_trouble, out_of_memory
from analyticup.model import drawing, module
from analyticup.model.backbone import add_adapter, random_qwen3
from analyticup.model.batches import EncodedRows
from analyticup.model.module import LabelWordModule, label_hidden
from analyticup.model.packing import enable_packing
from analyticup.model.passes import Cutter, MemoryLimit, fitting
from analyticup.model.prompt import LabelWords
from analyticup.settings.schema import LoraSettings, ModelSettings, Settings, TrainSettings
from analyticup.training.fold import score_rows, train_fold
from analyticup.training.source import Machine, ModelSource

pytestmark = pytest.mark.arithmetic

VOCABULARY = 120
# Of many lengths; some begin alike, two are the same.
PROMPTS = [[5, *range(60, 60 + 3 * number), 7 + number % 3] for number in range(11)] + [[5, 60, 61, 62, 8]] * 2
LABELS = [number % 2 for number in range(len(PROMPTS))]
# Two batches to a step, of unequal size.
STEP = [[3, 0, 9, 7, 12, 11], [1, 10, 2, 4]]


def gradient(most, packing, dropout=0.0, checkpointing=False, step=STEP, rank=WHOLE):
    """The gradient of a step in passes of at most `most` tokens, its loss, how many passes there were, and the random
    state after them."""
    base = random_qwen3(VOCABULARY)
    if packing:
        enable_packing(base)
    model = add_adapter(base, LoraSettings(r=4, dropout=dropout), seed=1).train()
    fill_adapter_at_random(model)
    if checkpointing:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    steps = LabelWordModule(model, LabelWords(negative=3, positive=4), TrainSettings(objective="two_way"), 1)
    passes = Cutter(EncodedRows(PROMPTS, LABELS), 0, packing, share=not dropout, most=most, rank=rank)(step)
    torch.manual_seed(5)
    loss = steps._gradients(passes)
    parts = [value.grad.flatten() for value in model.parameters() if value.requires_grad]
    return torch.cat(parts), loss, len(passes.parts), torch.get_rng_state()


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(("dropout", "checkpointing"), [(0.0, False), (0.3, False), (0.3, True)])
def test_a_steps_gradient_does_not_depend_on_its_passes(packing, dropout, checkpointing):
    whole, loss, count, state = gradient(1e9, packing, dropout, checkpointing)
    assert count == len(STEP) and whole.abs().max() > 1e-4
    for most in (60, 1):
        found, other_loss, passes, after = gradient(most, packing, dropout, checkpointing)
        assert passes > (len(STEP) if most > 1 else 9)
        assert_same_sums(found, whole)
        assert_same_sums(other_loss, loss)
        # The next step draws the same too.
        assert torch.equal(after, state)


# Five ranks are more than the rows of the second batch: one of them has none there.
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(("ranks", "most", "dropout"), [(2, 1e9, 0.0), (2, 1e9, 0.3), (5, 60, 0.3)])
def test_the_gradients_of_the_ranks_add_up_to_that_of_one_process(packing, ranks, most, dropout):
    whole, loss, _, state = gradient(1e9, packing, dropout)
    parts = [gradient(most, packing, dropout, rank=Shard(number, ranks)) for number in range(ranks)]
    assert_same_sums(torch.stack([part for part, *_ in parts]).sum(0), whole)
    assert_same_sums(torch.stack([part for _, part, *_ in parts]).sum(), loss)
    # The next step draws the same in all of them.
    assert all(torch.equal(after, state) for *_, after in parts)


def test_dropout_is_drawn_anew_for_each_batch_and_matters():
    one, *_ = gradient(1, True, 0.3, step=[[3, 9], [3, 9]])
    twice, *_ = gradient(1, True, 0.3, step=[[3, 9]])
    plain, *_ = gradient(1, True, 0.0, step=[[3, 9]])
    assert (one - twice).abs().max() > 1e-3 and (twice - plain).abs().max() > 1e-3


def test_passes_hold_every_row_once_within_the_limit():
    for packing in (True, False):
        cut = Cutter(EncodedRows(PROMPTS, LABELS), 0, packing, most=70)
        passes = cut(STEP)
        rows = [row for part in passes.parts for row in part.given["rows"].tolist()]
        assert sorted(rows) == sorted([*STEP[0], *STEP[1]])
        assert sum(part.weight / part.batches for part in passes.parts) == pytest.approx(1) and len(passes) == 10
        assert all(cut.tokens(part.given["rows"].tolist()) <= 70 for part in passes.parts)


def failing(at, error):
    """`label_hidden`, failing in its calls number `at`, from 0."""
    calls = iter(range(10**6))

    def hidden(*given, **named):
        found = label_hidden(*given, **named)
        if next(calls) in at:
            raise error
        return found

    return hidden


TROUBLES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
]


def settings(**changes):
    lora = LoraSettings(r=2, dropout=0.1)
    train = TrainSettings(batch_rows=8, lr=1e-3)
    return Settings(model=ModelSettings(backbone="random:qwen3", lora=lora), train=train).replace(**changes)


ROWS = pd.DataFrame(
    {
        "query": [f"{'red ' * (number % 4)}shoe {number}" for number in range(40)],
        "target": ["shoes,boots"] * 40,
        "label": [number % 2 for number in range(40)],
    }
)


def troubles(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]


def trained(source, own):
    model, margins = train_fold(ROWS, ROWS.head(8), own, source, 3, "fold", None)
    return torch.cat([value.detach().flatten() for value in model.parameters() if value.requires_grad]), margins


@pytest.mark.parametrize("trouble", TROUBLES)
def test_troubles_with_memory_are_known(trouble):
    assert out_of_memory(trouble) and "out of memory" in machine_trouble(trouble)
    assert not out_of_memory(ValueError("wrong shape"))


def test_a_training_that_runs_out_of_memory_goes_on_and_changes_nothing(tmp_path, monkeypatch, capsys):
    own = settings()
    expected = trained(ModelSource(own, tmp_path, Machine("cpu", 1)), own)
    assert troubles(capsys) == []
    source = ModelSource(own, tmp_path, Machine("cpu", 1))
    monkeypatch.setattr(module, "label_hidden", failing({3}, TROUBLES[0]))
    found = trained(source, own)
    (told,) = troubles(capsys)
    assert told.startswith("fold: out of memory with ") and "run their layers again" in told
    assert torch.equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
    # The next fold knows.
    trained(source, own)
    assert troubles(capsys) == [] and source.memory_limits["training"].kept < 1e4


def test_where_that_is_not_enough_its_passes_are_cut(tmp_path, monkeypatch, capsys):
    own = settings(**{"model.gradient_checkpointing": True, "model.dtype": "float32", "train.schedule": "constant"})
    expected = trained(ModelSource(own, tmp_path, Machine("cpu", 1)), own)
    source = ModelSource(own, tmp_path, Machine("cpu", 1))
    capsys.readouterr()
    monkeypatch.setattr(module, "label_hidden", failing({4}, TROUBLES[0]))
    found = trained(source, own)
    (told,) = troubles(capsys)
    assert "train.max_batch_tokens" in told and source.memory_limits["training"].tokens < 1e4
    # AdamW's first steps divide a rounded gradient by its own size; without dropout drawn alike they are .01 apart.
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=2e-4)


def test_scoring_that_runs_out_of_memory_goes_on(tmp_path, monkeypatch, capsys):
    own = settings()
    source = ModelSource(own, tmp_path, Machine("cpu", 1))
    model = add_adapter(source.backbone(), own.model.lora, 1).eval()
    expected = score_rows(ROWS, model, own, source, "predict")
    monkeypatch.setattr(module, "label_hidden", failing({0}, TROUBLES[0]))
    assert_same_sums(score_rows(ROWS, model, own, source, "predict"), expected)
    assert len(troubles(capsys)) == 1


def test_a_single_row_that_does_not_fit_is_an_error(tmp_path, monkeypatch):
    own = settings(**{"train.max_batch_tokens": 1})
    monkeypatch.setattr(module, "label_hidden", failing({0, 1}, TROUBLES[0]))
    with pytest.raises(torch.OutOfMemoryError):
        trained(ModelSource(own, tmp_path, Machine("cpu", 1)), own)


def test_what_a_failed_pass_made_is_gone_before_smaller_ones_are_made():
    made, alive = [], []

    def run(passes):
        big = torch.ones(3)
        made.append(weakref.ref(big))
        if len(made) == 1:
            raise TROUBLES[0]
        return "done"

    def relieve(passes):
        alive.append(made[0]() is not None)
        return passes

    assert fitting(run, ["a step"], relieve) == "done" and alive == [False]


@pytest.mark.parametrize("count", [1, 3])
def test_whole_and_cut_batches_draw_by_one_layout(monkeypatch, count):
    # On a GPU the layout decides which number of the generator a value gets.
    layouts = []
    monkeypatch.setattr(drawing, "dropout", lambda given, p: layouts.append((given.shape, given.stride())) or given)
    own, states = drawing.BatchDropout(0.1, drawing.Drawing()), torch.ones(1, 16, 8)
    drawing.dropped_copies(own, states, count)
    own.drawing.place = drawing.Place(states.shape[:2], (slice(0, 1), slice(0, 8)), (1, 8))
    drawing.dropped_copies(own, states, count)
    assert layouts[0] == layouts[1]


def test_another_error_is_no_reason_to_try_again(tmp_path, monkeypatch):
    own = settings()
    monkeypatch.setattr(module, "label_hidden", failing({2}, ValueError("wrong")))
    with pytest.raises(ValueError, match="wrong"):
        trained(ModelSource(own, tmp_path, Machine("cpu", 1)), own)


def test_a_limit_says_what_it_was_and_is(capsys):
    limit = MemoryLimit()
    limit.lower(901, "fold", "train.max_batch_tokens")
    assert limit.tokens == 450 and "with 901 tokens" in capsys.readouterr().err
