"""The estimate of what a training keeps, against what torch keeps."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MistralConfig, MistralForCausalLM, Qwen3Config
from transformers import Qwen3ForCausalLM as Qwen3

from analyticup.checks.footprint import Shape, adapters, kept_bytes, shape_of_config
from analyticup.checks.memory import KNOWN_SHAPES
from analyticup.model.backbone import add_adapter
from analyticup.model.batches import EncodedRows
from analyticup.model.fused import fuse_adapters
from analyticup.model.module import label_hidden
from analyticup.model.packing import collate_packed, enable_packing
from analyticup.settings.schema import LoraSettings

MODELS = {
    "qwen3": (Qwen3, Qwen3Config),
    "mistral": (MistralForCausalLM, MistralConfig),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig),
}
SIZE = {
    "vocab_size": 200,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
TOKENS = 40


def measured(kind, layers, dtype, dropout):
    """Bytes that autograd keeps of a pack of eight prompts, its tokens, the model's shape and its adapters' weights."""
    make, config = MODELS[kind]
    base = make(config(**SIZE, num_hidden_layers=layers)).to(dtype)
    enable_packing(base)
    model = add_adapter(base, LoraSettings(r=8, dropout=dropout), 0).train()
    fuse_adapters(model)
    own = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
    rows = EncodedRows([[5 + row] + [9] * (TOKENS - 1) for row in range(8)], [0, 1] * 4)
    batch = collate_packed(rows, range(8), share=False)
    kept = {}

    def keep(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            # With the tensor, or another one could come to its address.
            kept[storage.data_ptr()] = (storage.nbytes(), value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        _ = label_hidden(model, batch)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    return sum(size for size, _ in kept.values()), shape_of_config(base.config.to_dict()), trained


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("dtype", "dropout"), [(torch.bfloat16, 0.1), (torch.float32, 0.0)])
def test_kept_bytes_are_within_15_percent_of_those_that_torch_keeps(kind, dtype, dropout):
    (two, shape, trained), (four, _, _) = (measured(kind, layers, dtype, dropout) for layers in (2, 4))
    found = (four - two) / 2 / (8 * TOKENS)
    estimate = kept_bytes(shape, dtype.itemsize, 8, bool(dropout), TOKENS, on_gpu=False)
    assert abs(estimate / found - 1) < 0.15
    assert adapters(shape, 8, 2) == trained


def test_the_paper_model_keeps_what_was_measured_of_it():
    """16.2 to 17.8 MB a token over 40 layers, on a CPU, and 128.5 million weights of adapters."""
    shape = KNOWN_SHAPES["Qwen/Qwen3-14B-Base"]
    assert 15e6 < 40 * kept_bytes(shape, 2, 32, True, TOKENS, on_gpu=False) < 17.8e6
    assert adapters(shape, 32, 40) == pytest.approx(128.5e6, rel=0.01)


def test_a_config_that_lacks_a_number_has_no_shape():
    assert shape_of_config({"hidden_size": 32}) is None
    config = {**SIZE, "num_hidden_layers": 3, "model_type": "llama"}
    assert shape_of_config(config) == Shape(3, 128, 320, 128, 64, 200)
