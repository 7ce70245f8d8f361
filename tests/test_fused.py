"""Adapters in few operations give what PEFT's give, but for rounding."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from closeness import assert_same_sums
from tiny_models import fill_adapter_at_random, gemma, states_and_gradient, wide_gemma
from torch import nn
from torch.nn.functional import gelu
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen3 import modeling_qwen3

from analyticup.model import elementwise
from analyticup.model.backbone import add_adapter, bare, load_backbone, random_qwen3
from analyticup.model.batches import EncodedRows
from analyticup.model.drawing import BatchDropout, Drawing, Place, dropped_copies
from analyticup.model.elementwise import _Angles, _fused_activation, _fused_norm, _gelu, _GemmaNorm, _Norm, _Turning
from analyticup.model.fused import fuse_adapters, reads_some
from analyticup.model.module import label_hidden, output_matrix, recompute, reference_margins
from analyticup.model.objective import two_way
from analyticup.model.packing import TOKENS, collate_packed, enable_packing
from analyticup.model.prompt import LabelWords
from analyticup.settings.schema import LoraSettings, ModelSettings

pytestmark = pytest.mark.arithmetic

WORDS = LabelWords(negative=3, positive=4)
ROWS = EncodedRows([[5, *range(60, 70 + number), 7] for number in range(6)], [0, 1] * 3)


def adapted(make, fused, dropout=0.0, dtype=torch.float32):
    base = make(120).to(dtype)
    enable_packing(base)
    model = add_adapter(base, LoraSettings(r=4, dropout=dropout), seed=1).train()
    fill_adapter_at_random(model)
    if fused:
        fuse_adapters(model)
    return model


def batch(dropout=0.0):
    return collate_packed(ROWS, range(6), share=not dropout)


class NumberedDropout:
    """Draws what the number of the drawing says, one after the other for several copies."""

    def __init__(self):
        self.number = 0

    def __call__(self, states, p=0.5, training=True, inplace=False):
        copies = list(states) if states.dim() == 4 else [states]
        found = torch.stack([one * self.drawn(one, p) for one in copies])
        return found if states.dim() == 4 else found[0]

    def drawn(self, states, p):
        self.number += 1
        generator = torch.Generator().manual_seed(self.number)
        return (torch.rand(states.shape, generator=generator) >= p) / (1 - p)


@pytest.mark.parametrize(
    ("make", "dropout", "recomputed"),
    [(random_qwen3, 0.0, False), (random_qwen3, 0.3, False), (gemma, 0.3, False), (gemma, 0.0, True)],
)
def test_states_and_gradients_are_those_of_peft(make, dropout, recomputed, monkeypatch):
    found = []
    for fused in (False, True):
        model = adapted(make, fused, dropout)
        recompute(model, recomputed)
        # One drawing of three copies need not give what three drawings give.
        drawing = NumberedDropout()
        monkeypatch.setattr(torch.nn.functional, "dropout", drawing)
        monkeypatch.setattr("analyticup.model.drawing.dropout", drawing)
        found.append(states_and_gradient(model, batch(dropout), 0, WORDS))
    (states, gradient), (fused_states, fused_gradient) = found
    assert gradient.abs().max() > 1e-4
    assert_same_sums(fused_states, states)
    assert_same_sums(fused_gradient, gradient)


def test_run_again_they_draw_the_same():
    found = []
    for recomputed in (False, True):
        model = adapted(random_qwen3, True, 0.3)
        recompute(model, recomputed)
        torch.manual_seed(3)
        found.append(states_and_gradient(model, batch(0.3), 0, WORDS))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_passes_draw_their_part_of_the_batch():
    states = torch.randn(1, 12, 4)
    torch.manual_seed(3)
    whole = dropped_copies(nn.Dropout(0.5), states, 3)
    drop = BatchDropout(0.5, Drawing(Place((1, 12), (slice(0, 1), slice(4, 9)), (1, 6))))
    torch.manual_seed(3)
    # The sixth token fills the pack up.
    part = dropped_copies(drop, states[:, 4:10], 3)
    assert torch.equal(part[:, :, :5], whole[:, :, 4:9]) and not part[:, :, 5].any()
    assert len({str(copy) for copy in whole}) == 3


def test_another_model_turns_as_before():
    plain = adapted(random_qwen3, False, dtype=torch.bfloat16)
    before = label_hidden(plain, batch())
    fused = adapted(random_qwen3, True)
    assert isinstance(modeling_qwen3.apply_rotary_pos_emb, _Turning)
    assert isinstance(fused.get_base_model().get_decoder().rotary_emb.forward, _Angles)
    assert torch.equal(label_hidden(plain, batch()), before)


def test_a_function_that_turns_otherwise_stays(monkeypatch):
    monkeypatch.setattr(modeling_qwen3, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k))
    assert "forward" not in vars(adapted(random_qwen3, True).get_base_model().get_decoder().rotary_emb)


def test_a_layer_that_reads_something_else_gives_what_that_makes():
    model = adapted(random_qwen3, True).eval()
    attention = model.get_base_model().get_decoder().layers[0].self_attn
    one, other = torch.randn(2, 1, 7, 32)
    label_hidden(model, batch())
    with torch.no_grad():
        attention.q_proj(one)
        assert_same_sums(attention.k_proj(other), attention.k_proj.forward.plain(other))
        assert_same_sums(attention.k_proj(one), attention.k_proj.forward.plain(one))


def test_in_bf16_they_are_as_close_to_float32_as_those_of_peft_are():
    exact, *rounded = [
        states_and_gradient(adapted(random_qwen3, fused, dtype=dtype), batch(), 0, WORDS)
        for fused, dtype in ((False, torch.float32), (False, torch.bfloat16), (True, torch.bfloat16))
    ]
    for part in (0, 1):
        plain, fused = (float((one[part].float() - exact[part]).norm() / exact[part].norm()) for one in rounded)
        assert 0 < fused < 1.5 * plain < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_gives_what_transformers_gives(dtype):
    model = adapted(random_qwen3, True, dtype=dtype)
    norms = [part for part in model.modules() if type(part).__name__ == "Qwen3RMSNorm"]
    assert len(norms) > 8 and all(isinstance(norm.forward, _Norm) for norm in norms)
    states = torch.randn(3, 5, len(norms[0].weight)).to(dtype)
    with torch.no_grad():
        norms[0].weight.normal_(mean=1.0)
    # As the label's states are taken: the result stays in the backbone's dtype.
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found, plain = norms[0](states), type(norms[0]).forward(norms[0], states)
    assert found.dtype == plain.dtype == dtype
    torch.testing.assert_close(found, plain, rtol=1e-5 if dtype == torch.float32 else 0.02, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_that_adds_one_to_its_weights_gives_what_transformers_gives(dtype):
    model = adapted(gemma, True, dtype=dtype)
    norms = [part for part in model.modules() if type(part).__name__ == "Gemma3RMSNorm"]
    assert norms and all(isinstance(norm.forward, _GemmaNorm) for norm in norms)
    norm = norms[0]
    with torch.no_grad():
        norm.weight.normal_()
    states, gradient = torch.randn(2, 3, 5, len(norm.weight)).to(dtype)
    found = []
    for forward in (_GemmaNorm(norm.weight, norm.eps), type(norm).forward.__get__(norm)):
        given = states.clone().requires_grad_()
        result = forward(given)
        result.backward(gradient)
        found.append((result, given.grad))
    assert found[0][0].dtype == dtype and torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5 if dtype == torch.float32 else 0.02, atol=1e-5)


def test_a_norm_of_heads_gives_the_same_in_parts(monkeypatch):
    monkeypatch.setattr(elementwise, "_CACHED_VALUES", 30)
    norm = next(part for part in gemma(120).modules() if type(part).__name__ == "Gemma3RMSNorm")
    with torch.no_grad():
        norm.weight.normal_()
    # [1, heads, tokens, width], of which the products give token after token.
    states, gradient = torch.randn(2, 1, 7, 3, len(norm.weight)).bfloat16().transpose(2, 3)
    found = []
    for forward in (_GemmaNorm(norm.weight, norm.eps), norm):
        given = states.detach().requires_grad_()
        result = forward(given)
        result.backward(gradient)
        found.append((result, given.grad))
    assert not states.is_contiguous() and found[0][0].stride() == states.stride()
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0.02, atol=1e-5)


def test_gelu_by_tanh_gives_what_pytorch_gives(monkeypatch):
    monkeypatch.setattr(elementwise, "_CACHED_VALUES", 100)
    assert torch.autograd.gradcheck(_gelu, torch.linspace(-6, 6, 40, dtype=torch.float64).view(4, 10).requires_grad_())
    states, gradient = 4 * torch.randn(2, 1, 30, 64)
    found = []
    for forward in (_gelu, partial(gelu, approximate="tanh")):
        given = states.detach().requires_grad_()
        result = forward(given)
        result.backward(gradient)
        found.append((result, given.grad))
    for one, other in zip(*found, strict=True):
        assert_same_sums(one, other)
    rounded = states.bfloat16()
    torch.testing.assert_close(_gelu(rounded), gelu(rounded, approximate="tanh"))


def test_gelu_by_tanh_alone_is_replaced():
    forwards = [vars(part).get("forward") for part in adapted(gemma, True).modules()]
    assert forwards.count(_gelu) == 4
    assert _fused_activation(nn.GELU(approximate="tanh")) is _gelu
    assert _fused_activation(nn.GELU()) is None and _fused_activation(nn.SiLU()) is None


def test_the_last_layer_goes_on_with_the_tokens_that_are_read():
    seen = []
    for dropout, training in ((0.0, True), (0.3, True), (0.3, False)):
        model = adapted(gemma, True, dropout).train(training)
        *_, before, last = model.get_base_model().get_decoder().layers
        with torch.no_grad():
            hooks = [
                layer.mlp.register_forward_hook(lambda _, given, found: seen.append(found.shape[1]))
                for layer in (before, last)
            ]
            label_hidden(model, batch(dropout))
            [hook.remove() for hook in hooks]
    every, drawn = (batch(dropout)["packed"]["position_ids"].shape[1] for dropout in (0, 0.3))
    # Of six prompts, filled up. Dropout is drawn for each token, so in training all of them go on.
    assert TOKENS == 16 and min(every, drawn) > TOKENS
    assert seen == [every, TOKENS, drawn, drawn, drawn, TOKENS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_hangs_on_how_many_are_no_more_than_all_tokens_do(dtype, monkeypatch):
    # Products of the widths that models have: of small ones all bits are the same.
    base = wide_gemma().to(dtype)
    enable_packing(base)
    model = add_adapter(base, LoraSettings(r=4), seed=1).eval()
    fill_adapter_at_random(model)
    fuse_adapters(model)
    prompts = [[5, *range(60, 70), number] for number in range(20, 60)]
    rows = EncodedRows(prompts, [0] * 40)

    def states(count):
        given = collate_packed(rows, range(count))
        with torch.no_grad():
            return label_hidden(model, given)[torch.argsort(given["rows"])]

    def alike():
        every = states(40)
        return [torch.equal(states(count), every[:count]) for count in (1, 2, 3, 16)]

    assert reads_some(model)
    some = alike()
    monkeypatch.setattr("analyticup.model.module.reads_some", lambda model: False)
    assert some == alike()


def test_a_failed_pass_leaves_the_last_layer_as_it_was(monkeypatch):
    model = adapted(gemma, True)
    expected = label_hidden(model, batch())
    last = model.get_base_model().get_decoder().layers[-1]
    with monkeypatch.context() as broken, pytest.raises(MemoryError):
        broken.setattr(last.mlp, "forward", lambda states: (_ for _ in ()).throw(MemoryError))
        label_hidden(model, batch())
    assert "forward" not in vars(last.self_attn)
    assert torch.equal(label_hidden(model, batch()), expected)


def test_a_last_layer_that_is_given_something_of_each_token_takes_them_all(monkeypatch):
    model = adapted(gemma, False)
    last = model.get_base_model().get_decoder().layers[-1]
    plain, seen = last.forward, torch.linspace(1, 2, 500)

    def takes_all(hidden_states, position_embeddings=None, **kwargs):
        scale = seen[: position_embeddings[0].shape[1], None]
        return plain(hidden_states, position_embeddings=position_embeddings, **kwargs) * scale

    monkeypatch.setattr(last, "forward", takes_all)
    before = label_hidden(model, batch())
    fuse_adapters(model)
    assert not reads_some(model) and last.forward is takes_all
    assert_same_sums(label_hidden(model, batch()), before)


def test_another_norm_stays_as_it_is():
    norm = nn.RMSNorm(8, eps=1e-6).requires_grad_(False)
    assert _fused_norm(norm) is not None
    norm.forward = lambda states: 2 * states
    assert _fused_norm(norm) is None and _fused_norm(norm.requires_grad_()) is None
    assert _fused_norm(nn.LayerNorm(8).requires_grad_(False)) is None
    assert _fused_norm(nn.RMSNorm(8, eps=1e-6, elementwise_affine=False)) is None


def test_a_norm_with_large_weights_is_not_taken_for_the_other_kind():
    model = adapted(gemma, False)
    norm = next(part for part in model.modules() if type(part).__name__ == "Gemma3RMSNorm").requires_grad_(False)
    with torch.no_grad():
        norm.weight.fill_(40)
    assert isinstance(_fused_norm(norm), _GemmaNorm)


def test_an_encoder_stays_as_it_is():
    settings = ModelSettings(backbone="random:deberta-v2", head="classifier", dtype="float32")
    model = add_adapter(load_backbone(settings, Path("unused"), torch.float32), LoraSettings(r=4), seed=1)
    fuse_adapters(model)
    assert not any("forward" in vars(part) for part in model.modules())


def test_gradients_of_several_passes_add_up():
    model = adapted(random_qwen3, True, dtype=torch.bfloat16)
    halves = [collate_packed(ROWS, range(3)), collate_packed(ROWS, range(3, 6))]
    apart = [states_and_gradient(model, half, 0, WORDS)[1] for half in halves]
    for half in halves:
        two_way(label_hidden(model, half), output_matrix(model), WORDS, half["labels"]).backward()
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    together = torch.cat([trained[name].grad.flatten() for name in sorted(trained)])
    assert together.dtype == torch.float32 and torch.equal(together, apart[0] + apart[1])


def test_changed_adapters_are_seen_and_switched_off_ones_are_not():
    model = adapted(random_qwen3, True).eval()
    with torch.no_grad():
        before, reference = label_hidden(model, batch()), reference_margins(model, batch(), WORDS)
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.mul_(2)
        assert (label_hidden(model, batch()) - before).abs().max() > 1e-3
        assert torch.equal(reference_margins(model, batch(), WORDS), reference)
        model.merge_adapter()
        merged = label_hidden(model, batch())
        model.unmerge_adapter()
        assert_same_sums(merged, label_hidden(model, batch()))


def test_nothing_stays_on_a_bare_model():
    model = adapted(random_qwen3, True)
    label_hidden(model, batch())
    base = bare(model.get_base_model())
    assert not base.get_decoder()._forward_pre_hooks
    assert not any("forward" in vars(part) for part in base.modules())
    fuse_adapters(add_adapter(base, LoraSettings(r=4), seed=1))
    assert len(base.get_decoder()._forward_pre_hooks) == 1


class Operations(TorchDispatchMode):
    """Counts what is computed; views and empty tensors cost nothing."""

    count = 0
    free = (
        *("view", "t", "transpose", "permute", "expand", "slice", "select", "squeeze", "unsqueeze", "detach", "alias"),
        *("split", "split_with_sizes", "unbind"),
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::").removeprefix("_unsafe_")
        self.count += name not in self.free and not name.startswith(("empty", "new_empty"))
        return function(*args, **(kwargs or {}))


def test_they_take_fewer_operations():
    counts = []
    for fused in (False, True):
        model = adapted(random_qwen3, fused, dtype=torch.bfloat16)
        # To take some of the tokens is an operation too.
        vars(model.get_base_model().get_decoder().layers[-1]).pop("forward", None)
        with Operations() as found:
            states_and_gradient(model, batch(), 0, WORDS)
        counts.append(found.count)
    # In each of two layers.
    assert counts[0] - counts[1] >= 2 * 80
