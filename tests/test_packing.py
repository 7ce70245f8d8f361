"""Packed prompts: every token once, and the same states, gradients and scores as each prompt alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from closeness import ROUNDINGS, assert_same_sums, distance
from tiny_models import fill_adapter_at_random, gemma, states_and_gradient
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from analyticup.errors import UserError
from analyticup.model import packing, passes
from analyticup.model.backbone import add_adapter, choose_precision, frozen_layers, random_qwen3
from analyticup.model.batches import EncodedRows, collate
from analyticup.model.frozen import FrozenStates
from analyticup.model.module import decoder, label_hidden
from analyticup.model.packing import (
    ATTENTION,
    QUERIES,
    _Attention,
    _Shared,
    collate_packed,
    enable_packing,
    make_tree,
    packed_batches,
    packed_states,
)
from analyticup.model.prompt import LabelWords
from analyticup.settings.schema import LoraSettings

pytestmark = pytest.mark.arithmetic

VOCABULARY = 120
# Common beginnings longer than the window of Gemma's local layers; a prompt that begins another; one prompt twice; one
# that has nothing in common with the rest.
PROMPTS = [
    [5, *range(60, 90), 9, 10],
    [5, *range(60, 90), 9, 11, 12],
    [5, 60, 7],
    [5, *range(60, 72)],
    [5, *range(60, 90), 9, 10],
    [8],
    [5, *range(60, 77), 3, *range(20, 39)],
]
LABELS = [1, 0, 1, 0, 1, 0, 1]


def adapted(make, layers=None):
    base = make(VOCABULARY)
    enable_packing(base)
    model = add_adapter(base, LoraSettings(r=4, layers=layers), seed=1)
    fill_adapter_at_random(model)
    return model


def test_a_tree_has_each_common_beginning_once_and_every_path_spells_its_prompt():
    tree = make_tree(PROMPTS)
    beginnings = {tuple(ids[: end + 1]) for ids in PROMPTS for end in range(len(ids))}
    assert len(tree.ids) == len(tree.positions) == len(beginnings)
    assert sorted(tree.order) == list(range(len(PROMPTS)))
    for number, path, length in zip(tree.order, tree.paths, tree.lengths, strict=True):
        assert tree.ids[path[:length]].tolist() == PROMPTS[number]
        assert tree.positions[path[:length]].tolist() == list(range(length))


def test_a_tree_without_sharing_has_all_tokens_of_every_prompt():
    tree = make_tree(PROMPTS, share=False)
    assert len(tree.ids) == sum(map(len, PROMPTS)) and not tree.first.any()
    numbers = [number for path, length in zip(tree.paths, tree.lengths, strict=True) for number in path[:length]]
    assert numbers == list(range(len(tree.ids)))


def test_training_with_dropout_shares_no_tokens(tmp_path, monkeypatch):
    from analyticup.settings.schema import ModelSettings, Settings, TrainSettings
    from analyticup.training.fold import train_fold
    from analyticup.training.source import Machine, ModelSource

    asked = []
    made = packing.collate_packed
    monkeypatch.setattr(passes, "collate_packed", lambda *given: asked.append(given[-1]) or made(*given))
    table = pd.DataFrame({"query": ["bag", "red bag"], "target": ["bags", "bags"], "label": [0, 1]})
    for dropout in (0.0, 0.1):
        lora = LoraSettings(r=2, dropout=dropout)
        model = ModelSettings(backbone="random:qwen3", dtype="float32", lora=lora)
        settings = Settings(model=model, train=TrainSettings(epochs=1))
        train_fold(table, table.head(0), settings, ModelSource(settings, tmp_path, Machine("cpu", 1)), 3, "t", None)
    assert asked == [True, False]


def test_trees_of_random_prompts():
    random = np.random.default_rng(0)
    for _ in range(300):
        prompts = [random.integers(0, 3, random.integers(1, 9)).tolist() for _ in range(random.integers(1, 12))]
        tree = make_tree(prompts)
        assert len(tree.ids) == len({tuple(ids[: end + 1]) for ids in prompts for end in range(len(ids))})
        for number, path, length in zip(tree.order, tree.paths, tree.lengths, strict=True):
            assert tree.ids[path[:length]].tolist() == prompts[number]


@pytest.mark.parametrize("states", [False, True])
def test_packs_of_many_sizes_have_few_shapes(states):
    """Each shape costs memory and time; what fills a pack up is no token of a prompt."""
    for longest in range(1, 40):
        rows = EncodedRows([[7] * longest], [1], [torch.ones(longest, 4)] if states else None)
        batch = packing.collate_packed(rows, [0])
        tokens = batch["states" if states else "ids"].shape[1]
        assert tokens % packing.TOKENS == 0 and 0 <= tokens - longest < packing.TOKENS
        assert batch["packed"]["position_ids"].shape == (1, tokens) == (1, *batch["packed"]["packing"].places.shape)
        assert batch["last"].tolist() == [longest - 1]


def padded_and_packed(model, layers=None, checkpointing=False, share=True):
    """States at the label positions and gradients: of padded prompts, then of a pack."""
    if checkpointing:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    rows = EncodedRows(PROMPTS, LABELS)
    below = frozen_layers(model.get_base_model(), LoraSettings(layers=layers))
    if below:
        rows = replace(rows, states=FrozenStates(packing=False).of(decoder(model), below, rows.tokens, "test"))
    words, everything = LabelWords(negative=3, positive=4), range(len(PROMPTS))
    batches = (collate(rows, everything, 0), packing.collate_packed(rows, everything, share))
    return [states_and_gradient(model, batch, below, words) for batch in batches]


@pytest.mark.parametrize(("make", "layers"), [(random_qwen3, None), (random_qwen3, 1), (gemma, None), (gemma, 2)])
@pytest.mark.parametrize(("checkpointing", "share"), [(False, True), (True, True), (False, False)])
def test_states_and_gradients_of_a_pack_equal_those_of_padded_prompts(make, layers, checkpointing, share):
    (plain, plain_gradient), (packed, packed_gradient) = padded_and_packed(
        adapted(make, layers), layers, checkpointing, share
    )
    assert plain_gradient.abs().max() > 1e-4
    assert_same_sums(packed, plain)
    assert_same_sums(packed_gradient, plain_gradient)


def token_left_out(tree):
    paths = tree.paths.copy()
    # One token of the longest prompt gives way to the one before it.
    prompt = tree.lengths.argmax()
    paths[prompt, 30] = paths[prompt, 29]
    return replace(tree, paths=paths)


def position_one_too_far(tree):
    positions = tree.positions.copy()
    positions[len(positions) // 2] += 1
    return replace(tree, positions=positions)


def mask_off_by_one(inputs):
    mask = inputs["attention_mask"]
    # A query no longer sees itself; the first sees itself still, or its row would be empty.
    shifted = torch.cat([mask[..., 1:], torch.zeros_like(mask[..., :1])], dim=-1)
    shifted[..., 0] = True
    return inputs | {"attention_mask": shifted}


class RoundedGradient(torch.autograd.Function):
    """The identity, whose gradient is rounded to bf16."""

    @staticmethod
    def forward(context, states):
        return states.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient.bfloat16().float()


def rounded_sum(given):
    module, query, key, value, *rest = given
    return (module, query, RoundedGradient.apply(key), RoundedGradient.apply(value), *rest)


def after(name, fault):
    """A function of packing.py with a fault in what it gives."""
    known = getattr(packing, name)
    return packing, name, lambda *given, **named: fault(known(*given, **named))


def rounded_attention():
    known = packing.packed_attention
    # Where Transformers looks it up.
    return AttentionInterface._global_mapping, ATTENTION, lambda *given, **named: known(*rounded_sum(given), **named)


FAULTS = {
    "a token left out of a path": lambda: after("make_tree", token_left_out),
    "a token at the next position": lambda: after("make_tree", position_one_too_far),
    "a mask off by one": lambda: after("packed_inputs", mask_off_by_one),
    "a sum rounded to bf16": rounded_attention,
}


@pytest.mark.parametrize("make", [random_qwen3, gemma])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_bound_for_roundings_tells_a_fault_from_another_order_of_sums(make, fault, monkeypatch):
    # `enable_packing` itself refuses a model that shows most of these faults.
    model = adapted(make)
    where, name, faulty = FAULTS[fault]()
    put = monkeypatch.setitem if isinstance(where, dict) else monkeypatch.setattr
    put(where, name, faulty)
    plain, packed = padded_and_packed(model)
    assert max(distance(*pair) for pair in zip(packed, plain, strict=True)) > 16 * ROUNDINGS


@pytest.mark.parametrize("make", [random_qwen3, gemma])
def test_no_prompt_sees_another(make):
    model = adapted(make).eval()
    before = packed_states(decoder(model), PROMPTS)
    for changed in range(len(PROMPTS)):
        others = [*PROMPTS[:changed], [*PROMPTS[changed][:-1], 99], *PROMPTS[changed + 1 :]]
        after = packed_states(decoder(model), others)
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            keep = len(one) - (number == changed)
            assert_same_sums(other[:keep], one[:keep])
        assert (before[changed][-1] - after[changed][-1]).abs().max() > 1e-3


def test_a_longer_prompt_changes_no_bit_of_attention_in_packs_of_one_size():
    # A change in the order of additions shows in one value of some ten thousand.
    short = [[number, *range(200, 239)] for number in range(48)]
    dtype, draw = getattr(torch, choose_precision("auto", "cpu").dtype), torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 2048, 256, generator=draw).to(dtype) for heads in (4, 1, 1))
    found = []
    for prompts in (short, [*short, [99, *range(200, 259)]]):
        given = packing.packed_inputs(make_tree(prompts), 2048)
        pack = (given["attention_mask"], 0.0, None, given["packing"])
        found.append(packing.packed_attention(torch.nn.Identity(), query, key, value, *pack)[0][:, : 40 * len(short)])
    assert torch.equal(*found)


def test_states_below_the_adapters_are_the_same_with_and_without_packing():
    model = adapted(gemma, 2)
    plain, packed = (FrozenStates(packing).of(decoder(model), 2, PROMPTS, "test") for packing in (False, True))
    for one, other in zip(plain, packed, strict=True):
        assert_same_sums(other, one)


def test_a_pack_in_bf16_is_as_close_to_float32_as_padded_prompts_are():
    model = adapted(gemma).eval()
    rows, everything = EncodedRows(PROMPTS, LABELS), range(len(PROMPTS))

    def states(batch):
        with torch.no_grad():
            return label_hidden(model, batch)[torch.argsort(batch["rows"])].float()

    exact = states(collate(rows, everything, 0))
    model.to(torch.bfloat16)
    plain, packed = states(collate(rows, everything, 0)), states(collate_packed(rows, everything))
    assert 0 < (packed - exact).norm() < 1.2 * (plain - exact).norm() < 0.1 * exact.norm()


def test_packed_batches_hold_every_prompt_once_within_the_bound():
    random = np.random.default_rng(1)
    tokens = [random.integers(0, 4, random.integers(1, 20)).tolist() for _ in range(200)]
    for bound in (1, 50, 10**6):
        batches = packed_batches(tokens, bound)
        assert sorted(row for batch in batches for row in batch) == list(range(200))
        longest = [max(len(tokens[row]) for row in batch) for batch in batches]
        assert longest == sorted(longest, reverse=True)
        assert all(len(batch) == 1 or most * len(batch) <= bound for batch, most in zip(batches, longest, strict=True))
    assert packed_batches([], 50) == []
    together = packed_batches([[1, 1], [2, 2], [1, 2], [2, 1]], 4)
    assert sorted(map(sorted, together)) == [[0, 2], [1, 3]]


def test_attention_has_rows_for_a_prompts_own_tokens_alone():
    packed = collate_packed(EncodedRows(PROMPTS, LABELS), range(len(PROMPTS)))["packed"]
    rows, _, own, longest = packed["attention_mask"].shape
    tree = make_tree(PROMPTS)
    assert (tree.lengths - tree.first).tolist() == [3, 11, 25, 15, 0, 2, 1]
    assert QUERIES == 16 and rows == 1 + 1 + 2 + 1 + 0 + 1 + 1
    assert own == QUERIES and longest == 48
    assert packed["packing"].queries.shape == (rows, own) and packed["packing"].keys.shape == (rows, longest)


def test_a_model_that_takes_packs_still_takes_padded_prompts_as_before():
    ids, mask = torch.tensor([[0, 5, 60, 7], [8, 9, 10, 11]]), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    model = gemma(VOCABULARY)
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits
        enable_packing(model)
        assert model.config._attn_implementation == ATTENTION
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)


def test_a_model_whose_layers_look_along_the_pack_is_refused():
    model = random_qwen3(VOCABULARY)
    original = type(model.model.layers[0]).forward

    def recurrent(self, hidden_states, *args, **kwargs):
        return original(self, hidden_states.cumsum(1), *args, **kwargs)

    model.model.layers[0].forward = recurrent.__get__(model.model.layers[0])
    with pytest.raises(UserError, match=r"Qwen3ForCausalLM cannot run on packed prompts; set model\.packing=false"):
        enable_packing(model)


def test_a_model_with_another_attention_is_refused():
    model = random_qwen3(VOCABULARY)
    model.set_attn_implementation("eager")
    with pytest.raises(UserError, match=r"set model\.packing=false"):
        enable_packing(model)


def test_a_model_that_hands_nothing_on_to_its_attention_is_refused():
    model = random_qwen3(VOCABULARY)
    original = model.model.forward

    def strict(input_ids=None, attention_mask=None, position_ids=None, use_cache=None):
        return original(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)

    model.model.forward = strict
    with pytest.raises(UserError, match=r"set model\.packing=false"):
        enable_packing(model)


def test_the_gradient_of_a_shared_token_is_not_rounded_on_the_way():
    states = torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)
    _Shared.apply(states, torch.zeros(300, 1, dtype=torch.long)).sum().backward()
    # In bf16 a sum of ones ends at 256.
    assert states.grad.dtype == torch.bfloat16 and states.grad.tolist() == [[300.0] * 3, [0.0] * 3]


def test_attention_in_parts_gives_the_same(monkeypatch):
    query, key, value = torch.randn(3, 5, 2, 16, 8)
    mask = torch.ones(5, 1, 16, 16, dtype=torch.bool).tril()
    whole = _Attention.apply(query, key, value, mask, 0.3)
    # Two rows at once, then the last one.
    monkeypatch.setattr(packing, "_PRODUCTS", 2 * 2 * 16 * 16)
    assert_same_sums(_Attention.apply(query, key, value, mask, 0.3), whole)
    assert_same_sums(whole, scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3))


def test_attention_in_bf16_is_nearly_that_in_float32_and_so_are_its_gradients():
    random = torch.Generator().manual_seed(0)
    given = [torch.randn(8, 1, 64, 256, generator=random).bfloat16() for _ in range(4)]
    mask = torch.ones(8, 1, 64, 64, dtype=torch.bool).tril()

    def gradients(dtype, attend):
        query, key, value = (one.to(dtype, copy=True).requires_grad_() for one in given[:3])
        # Products of up to 17.
        found = attend(query, key, value, mask, 0.25)
        found.backward(given[3].to(dtype))
        return found, [one.grad for one in (query, key, value)]

    def plain(query, key, value, mask, scale):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    (states, found), (exact_states, exact_gradients) = (
        gradients(*how) for how in ((torch.bfloat16, _Attention.apply), (torch.float32, plain))
    )
    for one, exact in zip((states, *found), (exact_states, *exact_gradients), strict=True):
        assert 0 < (one.float() - exact).norm() < 0.01 * exact.norm()
