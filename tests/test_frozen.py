"""Upper-layer adapters on states computed once equal the whole model run from the tokens."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest
import torch
from closeness import assert_same_sums
from tiny_models import fill_adapter_at_random, gemma, states_and_gradient, wide_gemma

from analyticup.errors import UserError
from analyticup.model import frozen
from analyticup.model.backbone import (
    add_adapter,
    choose_precision,
    frozen_layers,
    load_adapter,
    random_qwen3,
    random_tokenizer,
    save_adapter,
)
from analyticup.model.batches import EncodedRows, collate
from analyticup.model.frozen import FrozenStates
from analyticup.model.module import decoder, label_hidden
from analyticup.model.packing import enable_packing
from analyticup.model.prompt import PromptEncoder
from analyticup.settings.schema import LoraSettings, PromptSettings, Settings
from analyticup.training.fold import with_states
from analyticup.training.source import Machine, ModelSource

pytestmark = pytest.mark.arithmetic


@pytest.fixture(scope="module")
def rows():
    encoder = PromptEncoder(random_tokenizer(), PromptSettings())
    return EncodedRows(encoder.encode(["bag", "a longer query", "鞄"], ["bags", "x, y and z", "shoes"]), [1, 0, 1])


@pytest.fixture(scope="module")
def words():
    return PromptEncoder(random_tokenizer(), PromptSettings()).label_words()


def adapted(make, layers):
    model = add_adapter(make(len(random_tokenizer())), LoraSettings(r=4, layers=layers), seed=1)
    fill_adapter_at_random(model)
    return model


@pytest.mark.parametrize(("make", "layers"), [(random_qwen3, 1), (gemma, 1), (gemma, 2), (gemma, 3)])
def test_states_and_gradients_equal_the_whole_model(make, layers, rows, words):
    model = adapted(make, layers)
    below = frozen_layers(model.get_base_model(), LoraSettings(layers=layers))
    states = FrozenStates(packing=False).of(decoder(model), below, rows.tokens, "test")
    found = []
    for batch, start in ((collate(rows, range(3), 0), 0), (collate(replace(rows, states=states), range(3), 0), below)):
        found.append(states_and_gradient(model, batch, start, words))
    (whole, whole_gradient), (split, split_gradient) = found
    assert whole_gradient.abs().max() > 1e-4
    assert_same_sums(split, whole)
    assert_same_sums(split_gradient, whole_gradient)


@pytest.mark.parametrize("packing", [False, True])
def test_a_prompt_is_computed_once_and_depends_on_no_other(rows, monkeypatch, packing):
    model = adapted(random_qwen3, 1)
    computed = []
    original = FrozenStates._states
    monkeypatch.setattr(FrozenStates, "_states", lambda *given: computed.extend(given[3]) or original(*given))
    enable_packing(model.get_base_model())
    states = FrozenStates(packing)
    same_length = [token + 1 for token in rows.tokens[0]]
    together = states.of(decoder(model), 1, [*rows.tokens, rows.tokens[0], same_length], "test")
    assert len(computed) == 4 and torch.equal(together[0], together[3])
    again = states.of(decoder(model), 1, list(reversed(rows.tokens)), "test")
    assert len(computed) == 4
    assert all(torch.equal(a, b) for a, b in zip(again, reversed(list(together)[:3]), strict=True))
    alone = FrozenStates(packing).of(decoder(model), 1, [same_length], "test")[0]
    assert_same_sums(together[4], alone)
    assert not torch.equal(together[4], together[0])


@pytest.mark.parametrize("packing", [False, True])
def test_the_bits_of_real_widths_do_not_depend_on_the_other_prompts(packing):
    model = wide_gemma().to(getattr(torch, choose_precision("auto", "cpu").dtype))
    enable_packing(model)
    draw = torch.Generator().manual_seed(0)
    # Those that go together have other longest ones than all of them.
    prompts = [torch.randint(5, 120, (5 + row,), generator=draw).tolist() for row in range(40)]
    sizes = (len(prompts), 15, 4)
    by_size = [
        [
            states
            for first in range(0, len(prompts), size)
            for states in FrozenStates(packing).of(model.get_decoder(), 1, prompts[first : first + size], "test")
        ]
        for size in sizes
    ]
    for size, found in zip(sizes[1:], by_size[1:], strict=True):
        changed = [not torch.equal(one, other) for one, other in zip(by_size[0], found, strict=True)]
        assert not any(changed), f"{sum(changed)} prompts have other bits in batches of {size}"


@pytest.mark.parametrize("packing", [False, True])
def test_processes_share_what_one_of_them_made(rows, tmp_path, monkeypatch, packing):
    model = adapted(random_qwen3, 1)
    enable_packing(model.get_base_model())
    free = FrozenStates(packing).of(decoder(model), 1, rows.tokens, "test")
    one, two = (FrozenStates(packing, tmp_path / "states.sqlite") for _ in range(2))
    computed = []
    original = FrozenStates._states

    def states(self, run, layers, batch):
        computed.append(self)
        # The other one comes in between, and leaves alone what this one is at.
        if len(computed) == 1:
            two.of(run, 1, rows.tokens[1:], "test")
        return original(self, run, layers, batch)

    monkeypatch.setattr(FrozenStates, "_states", states)
    monkeypatch.setattr(frozen, "BATCH_TOKENS", 1)
    for shared in (one, two):
        found = shared.of(decoder(model), 1, rows.tokens, "test")
        assert all(torch.equal(a, b) for a, b in zip(found, free, strict=True))
    assert two in computed and len(computed) == len(rows.tokens) + 1


def test_what_an_interrupted_process_claimed_is_computed_all_the_same(rows, tmp_path):
    model = adapted(random_qwen3, 1)
    shared = FrozenStates(False, tmp_path / "states.sqlite")
    keys = [frozen._key(1, False, ids) for ids in rows.tokens]
    assert shared.kept.claim(keys) == keys and shared.kept.claim(keys) == []
    assert len(shared.of(decoder(model), 1, rows.tokens, "test")[0]) == len(rows.tokens[0])


def test_damaged_states_are_refused_in_one_line(rows, tmp_path):
    model = adapted(random_qwen3, 1)
    shared = FrozenStates(False, tmp_path / "states.sqlite")
    found = shared.of(decoder(model), 1, rows.tokens, "test")
    with sqlite3.connect(tmp_path / "states.sqlite") as database:
        database.execute("UPDATE entries SET value = x'00'")
    with pytest.raises(
        UserError, match=r"states\.sqlite: a prompt's states are damaged; delete the file and run again"
    ):
        found[0]


def test_the_adapter_sits_in_the_upper_layers_and_survives_a_save(tmp_path, rows):
    model = adapted(gemma, 1).eval()
    assert all(".layers.3." in name for name, value in model.named_parameters() if value.requires_grad)
    save_adapter(model, tmp_path, "base")
    loaded = load_adapter(gemma(len(random_tokenizer())), tmp_path)
    batch = collate(rows, range(3), 0)
    with torch.no_grad():
        assert torch.equal(label_hidden(loaded, batch), label_hidden(model, batch))


@pytest.mark.parametrize(("layers", "below"), [(None, 0), (1, 1), (2, 0), (99, 0)])
def test_layers_counts_from_the_top(layers, below):
    assert frozen_layers(random_qwen3(300), LoraSettings(layers=layers)) == below


def test_the_model_is_as_it_was_afterwards(rows):
    model = adapted(gemma, 1)
    before = (decoder(model).layers, decoder(model).norm, decoder(model).config)
    with pytest.raises(RuntimeError), frozen.only_layers(decoder(model), 0, 1):
        raise RuntimeError
    after = (decoder(model).layers, decoder(model).norm, decoder(model).config)
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_states_are_computed_on_the_machines_device(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(Machine, "device", "meta")
    source = ModelSource(Settings(), tmp_path, Machine("auto", None))
    seen = []
    monkeypatch.setattr(source.frozen, "of", lambda run, *rest: seen.append(next(run.parameters()).device.type))
    with_states(rows, adapted(random_qwen3, 1), 1, source, "test")
    assert seen == ["meta"]
