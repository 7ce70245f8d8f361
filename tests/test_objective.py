"""Losses and scores from the label position equal what the whole model's logits give."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from analyticup.config import LoraSettings, PromptSettings
from analyticup.model.backbone import add_adapter, random_qwen3, random_tokenizer
from analyticup.model.data import EncodedRows, collate
from analyticup.model.module import label_hidden, learning_rate_factor, output_matrix
from analyticup.model.objective import label_nll, loss_function, margins, two_way
from analyticup.model.prompt import PromptEncoder

LABELS = [1, 0, 1, 1, 0]


@pytest.fixture(scope="module")
def tokenizer():
    return random_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    """A random Qwen3 with a LoRA adapter that does something."""
    made = add_adapter(random_qwen3(len(tokenizer)), LoraSettings(r=4), seed=1).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        for name, value in made.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    return made


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
    torch.testing.assert_close(hidden, alone, atol=1e-5, rtol=0)


def test_what_stands_in_the_padding_does_not_matter(model, rows, hidden):
    batch = collate(rows, range(len(rows.tokens)), pad_id=17)
    with torch.no_grad():
        torch.testing.assert_close(label_hidden(model, batch), hidden, atol=1e-5, rtol=0)


def test_label_nll_equals_the_plain_causal_lm_loss(model, rows, words, hidden):
    found = label_nll(hidden, output_matrix(model), words, torch.tensor(LABELS))
    losses = []
    for ids, label in zip(rows.tokens, LABELS, strict=True):
        word = words.positive if label else words.negative
        targets = torch.full((1, len(ids) + 1), -100)
        targets[0, -1] = word
        with torch.no_grad():
            losses.append(model(input_ids=torch.tensor([[*ids, word]]), labels=targets).loss)
    torch.testing.assert_close(found, torch.stack(losses).mean(), atol=1e-5, rtol=0)


def test_margins_are_differences_of_the_full_logits(model, rows, words, hidden):
    logits = full_logits(model, rows)
    found = margins(hidden, output_matrix(model), words)
    assert found.dtype == torch.float32 and found.abs().max() > 1e-3
    torch.testing.assert_close(found, logits[:, words.positive] - logits[:, words.negative], atol=1e-5, rtol=0)


def test_the_sigmoid_of_a_margin_is_the_softmax_over_the_two_words(model, rows, words, hidden):
    pair = full_logits(model, rows)[:, [words.negative, words.positive]]
    found = torch.sigmoid(margins(hidden, output_matrix(model), words))
    torch.testing.assert_close(found, torch.softmax(pair, dim=1)[:, 1], atol=1e-5, rtol=0)


def test_two_way_equals_cross_entropy_over_the_two_logits(model, rows, words, hidden):
    pair = full_logits(model, rows)[:, [words.negative, words.positive]]
    found = two_way(hidden, output_matrix(model), words, torch.tensor(LABELS))
    torch.testing.assert_close(found, cross_entropy(pair, torch.tensor(LABELS)), atol=1e-5, rtol=0)


def test_the_two_objectives_differ_and_are_found_by_name():
    assert loss_function("label_nll") is label_nll and loss_function("two_way") is two_way


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
    torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0)
    assert torch.nn.functional.cosine_similarity(rounded_gradient, gradient, dim=0) > 0.99
