"""Losses and scores from the label position equal what the whole model's logits give."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from closeness import assert_same_sums
from tiny_models import fill_adapter_at_random
from torch.nn.functional import cross_entropy

from analyticup.model.backbone import add_adapter, random_qwen3, random_tokenizer
from analyticup.model.batches import EncodedRows, collate
from analyticup.model.frozen import FrozenStates
from analyticup.model.module import (
    LabelWordModule,
    decoder,
    label_hidden,
    learning_rate_factor,
    output_matrix,
    reference_margins,
)
from analyticup.model.objective import label_nll, margins, two_way
from analyticup.model.prompt import PromptEncoder
from analyticup.settings.schema import LoraSettings, PromptSettings, TrainSettings, leaves

pytestmark = pytest.mark.arithmetic

LABELS = [1, 0, 1, 1, 0]
OBJECTIVES = [
    TrainSettings(objective="label_nll"),
    TrainSettings(objective="label_nll", label_smoothing=0.1),
    TrainSettings(objective="two_way"),
    TrainSettings(objective="two_way", label_smoothing=0.1),
    TrainSettings(objective="dpo"),
    TrainSettings(objective="dpo", dpo_beta=2.0),
    TrainSettings(objective="dpo", dpo_beta=2.0, label_smoothing=0.1),
]


@pytest.fixture(scope="module")
def tokenizer():
    return random_tokenizer()


def adapted(tokenizer, **lora):
    """A random Qwen3 with a LoRA adapter that does something."""
    made = add_adapter(random_qwen3(len(tokenizer)), LoraSettings(r=4, **lora), seed=1)
    fill_adapter_at_random(made)
    return made


@pytest.fixture(scope="module")
def model(tokenizer):
    return adapted(tokenizer).eval()


@pytest.fixture(scope="module")
def base(tokenizer):
    """The backbone of `model` that never had an adapter."""
    return random_qwen3(len(tokenizer)).eval()


@pytest.fixture(scope="module")
def words(tokenizer):
    return PromptEncoder(tokenizer, PromptSettings()).label_words()


@pytest.fixture(scope="module")
def rows(tokenizer):
    queries = ["bag", "a much longer query with many words", "", "鞄", "red shoes"]
    targets = ["bags", "x", "a title of some length, with commas", "", "shoes"]
    return EncodedRows(PromptEncoder(tokenizer, PromptSettings()).encode(queries, targets), LABELS)


@pytest.fixture(scope="module")
def batch(rows):
    return collate(rows, range(len(rows.tokens)), pad_id=0)


@pytest.fixture(scope="module")
def hidden(model, batch):
    with torch.no_grad():
        return label_hidden(model, batch)


def full_logits(model, rows):
    """Logits at the label position, each row alone, through the whole causal language model."""
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in rows.tokens])


def test_right_padding_without_a_mask_equals_each_row_alone(model, rows, hidden):
    with torch.no_grad():
        one_by_one = [collate(rows, [i], pad_id=0) for i in range(len(rows.tokens))]
        alone = torch.cat([label_hidden(model, batch) for batch in one_by_one])
    assert len({len(ids) for ids in rows.tokens}) > 3
    assert_same_sums(hidden, alone)


def test_what_stands_in_the_padding_does_not_matter(model, rows, hidden):
    batch = collate(rows, range(len(rows.tokens)), pad_id=17)
    with torch.no_grad():
        assert_same_sums(label_hidden(model, batch), hidden)


def test_label_nll_equals_the_plain_causal_lm_loss(model, rows, words, hidden):
    found = label_nll(hidden, output_matrix(model), words, torch.tensor(LABELS))
    losses = []
    for ids, label in zip(rows.tokens, LABELS, strict=True):
        word = words.positive if label else words.negative
        targets = torch.full((1, len(ids) + 1), -100)
        targets[0, -1] = word
        with torch.no_grad():
            losses.append(model(input_ids=torch.tensor([[*ids, word]]), labels=targets).loss)
    assert_same_sums(found, torch.stack(losses).mean())


def test_margins_are_differences_of_the_full_logits(model, rows, words, hidden):
    logits = full_logits(model, rows)
    found = margins(hidden, output_matrix(model), words)
    assert found.dtype == torch.float32 and found.abs().max() > 1e-3
    assert_same_sums(found, logits[:, words.positive] - logits[:, words.negative])


def test_the_sigmoid_of_a_margin_is_the_softmax_over_the_two_words(model, rows, words, hidden):
    pair = full_logits(model, rows)[:, [words.negative, words.positive]]
    found = torch.sigmoid(margins(hidden, output_matrix(model), words))
    assert_same_sums(found, torch.softmax(pair, dim=1)[:, 1])


def test_two_way_equals_cross_entropy_over_the_two_logits(model, rows, words, hidden):
    pair = full_logits(model, rows)[:, [words.negative, words.positive]]
    found = two_way(hidden, output_matrix(model), words, torch.tensor(LABELS))
    assert_same_sums(found, cross_entropy(pair, torch.tensor(LABELS)))


def plain_loss(model, base, rows, words, train):
    """The mean loss written out row by row, from the logits of whole causal language models."""
    losses = []
    for ids, label in zip(rows.tokens, LABELS, strict=True):
        pair = [words.positive, words.negative] if label else [words.negative, words.positive]
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        if train.objective == "label_nll":
            right, wrong = torch.log_softmax(logits, dim=0)[pair]
        elif train.objective == "two_way":
            right, wrong = torch.log_softmax(logits[pair], dim=0)
        else:
            with torch.no_grad():
                chosen_ref, rejected_ref = torch.log_softmax(base(input_ids=torch.tensor([ids])).logits[0, -1], dim=0)[
                    pair
                ]
            chosen, rejected = torch.log_softmax(logits, dim=0)[pair]
            probability = torch.sigmoid(train.dpo_beta * ((chosen - rejected) - (chosen_ref - rejected_ref)))
            right, wrong = probability.log(), (1 - probability).log()
        losses.append(-(1 - train.label_smoothing) * right - train.label_smoothing * wrong)
    return torch.stack(losses).mean()


def loss_and_gradient(model, loss):
    loss.backward()
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    gradient = torch.cat([trained[name].grad.flatten() for name in sorted(trained)])
    model.zero_grad()
    return loss.detach(), gradient


@pytest.mark.parametrize("train", OBJECTIVES, ids=lambda s: f"{s.objective}-{s.label_smoothing}-{s.dpo_beta}")
def test_a_training_step_equals_the_plain_loss_and_its_gradient(model, base, rows, batch, words, train):
    step = LabelWordModule(model, words, train, steps=1).loss_of(batch)
    found, gradient = loss_and_gradient(model, step)
    plain, plain_gradient = loss_and_gradient(model, plain_loss(model, base, rows, words, train))
    assert_same_sums(found, plain)
    assert plain_gradient.abs().max() > 1e-3
    assert_same_sums(gradient, plain_gradient)


def test_every_objective_that_can_be_chosen_is_tested_and_gives_another_loss(model, batch, words):
    assert {train.objective for train in OBJECTIVES} == set(leaves()["train.objective"].choices)
    with torch.no_grad():
        found = [float(LabelWordModule(model, words, train, steps=1).loss_of(batch)) for train in OBJECTIVES]
    assert all(abs(a - b) > 1e-4 for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_fresh_adapter_has_the_dpo_loss_log_2(tokenizer, batch, words, smoothing, dtype):
    model = add_adapter(random_qwen3(len(tokenizer)).to(dtype), LoraSettings(r=4, dropout=0.5), seed=1).train()
    train = TrainSettings(objective="dpo", dpo_beta=3.0, label_smoothing=smoothing)
    loss = LabelWordModule(model, words, train, steps=1).loss_of(batch)
    assert_same_sums(loss.detach(), torch.tensor(2.0).log())


def test_the_reference_knows_neither_adapter_nor_dropout_and_leaves_the_model_as_it_was(
    tokenizer, base, batch, rows, words
):
    model = adapted(tokenizer, dropout=0.5).train()
    for layer in decoder(model).layers:
        layer.self_attn.attention_dropout = 0.5
    label_hidden(model, batch).sum().backward()
    before = {name: (value.requires_grad, value.grad) for name, value in model.named_parameters()}
    state = torch.random.get_rng_state()
    found = reference_margins(model, batch, words)
    logits = full_logits(base, rows)
    assert_same_sums(found, logits[:, words.positive] - logits[:, words.negative])
    assert not found.requires_grad and all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in model.named_parameters():
        assert value.requires_grad == before[name][0] and value.grad is before[name][1]
    with torch.no_grad():
        assert (margins(label_hidden(model.eval(), batch), output_matrix(model), words) - found).abs().max() > 1e-3


def test_dpo_from_the_states_of_frozen_layers_equals_dpo_from_the_tokens(tokenizer, rows, batch, words):
    model, train = adapted(tokenizer, layers=1).eval(), TrainSettings(objective="dpo", dpo_beta=2.0)
    states = FrozenStates(packing=False).of(decoder(model), 1, rows.tokens, "test")
    upper = collate(replace(rows, states=states), range(len(rows.tokens)), pad_id=0)
    whole = loss_and_gradient(model, LabelWordModule(model, words, train, steps=1).loss_of(batch))
    split = loss_and_gradient(model, LabelWordModule(model, words, train, 1, frozen_layers=1).loss_of(upper))
    assert whole[1].abs().max() > 1e-3
    for one, other in zip(split, whole, strict=True):
        assert_same_sums(one, other)


def test_dpo_under_gradient_checkpointing_has_the_same_loss_and_gradient(tokenizer, batch, words):
    """The layers are run again in the backward pass, when the adapters must be on."""
    train, found = TrainSettings(objective="dpo", dpo_beta=2.0), []
    for checkpointing in (False, True):
        model = adapted(tokenizer).train()
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        found.append(loss_and_gradient(model, LabelWordModule(model, words, train, steps=1).loss_of(batch)))
    for one, other in zip(*found, strict=True):
        assert_same_sums(one, other)


def test_the_loss_trains_the_adapter_and_nothing_else(model, batch, words):
    loss = label_nll(label_hidden(model, batch), output_matrix(model), words, batch["labels"])
    loss.backward()
    touched = {
        name for name, value in model.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0
    }
    model.zero_grad()
    assert touched == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_bf16_states_still_give_float32_margins_and_losses(model, words, hidden):
    half, matrix = hidden.bfloat16(), output_matrix(model).bfloat16()
    assert margins(half, matrix, words).dtype == torch.float32
    assert label_nll(half, matrix, words, torch.tensor(LABELS)).dtype == torch.float32


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_learning_rate_warms_up_to_its_peak_and_falls(schedule, factors):
    found = [learning_rate_factor(step, 6, 1 / 3, schedule) for step in range(6)]
    assert found == pytest.approx(factors, abs=1e-6)


def test_a_bf16_backbone_trains_a_float32_adapter_to_the_same_loss(tokenizer, batch, words):
    """The frozen weights and the products are bf16; adapter, gradients and loss are float32."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = add_adapter(random_qwen3(len(tokenizer)).to(dtype), LoraSettings(targets="q_proj,v_proj"), seed=1)
        loss = label_nll(label_hidden(model, batch), output_matrix(model), words, batch["labels"])
        loss.backward()
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        assert all(value.dtype == value.grad.dtype == torch.float32 for value in trained.values())
        found[dtype] = (loss, torch.cat([trained[name].grad.flatten() for name in sorted(trained)]))
    (exact, gradient), (rounded, rounded_gradient) = found.values()
    assert_same_sums(rounded, exact, roundings=3, dtype=torch.bfloat16)
    assert torch.nn.functional.cosine_similarity(rounded_gradient, gradient, dim=0) > 0.99
