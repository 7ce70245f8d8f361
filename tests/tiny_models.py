"""Random models that are built in a moment, and what tests ask of them."""

from __future__ import annotations

import torch

from analyticup.model.module import label_hidden, output_matrix
from analyticup.model.objective import two_way


def gemma(vocabulary, **further):
    """Gemma 3 in small: local and global attention in turn, each with its own rotary base."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 8,
        **further,
    }
    config = Gemma3TextConfig(vocab_size=vocabulary, num_hidden_layers=len(sizes["layer_types"]), **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Gemma3ForCausalLM(config).eval()


def wide_gemma():
    """Two layers as wide as those of Gemma 3 270M."""
    sizes = {"hidden_size": 640, "intermediate_size": 2048, "num_key_value_heads": 1, "head_dim": 256}
    return gemma(120, layer_types=["sliding_attention", "full_attention"], **sizes)


def fill_adapter_at_random(model):
    """Gives a fresh adapter, which changes nothing yet, values that matter."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)


def states_and_gradient(model, batch, frozen_layers, words):
    """Hidden states at the label positions in the order of the rows' numbers, and the gradient of a loss on them."""
    hidden = label_hidden(model, batch, frozen_layers)
    two_way(hidden, output_matrix(model), words, batch["labels"]).backward()
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    gradient = torch.cat([trained[name].grad.flatten() for name in sorted(trained)])
    model.zero_grad()
    return hidden.detach()[torch.argsort(batch["rows"])], gradient
