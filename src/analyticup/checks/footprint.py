"""How many bytes a training keeps, from a model's shape: what one token costs in each layer, adapters, logits.

Compared with what torch really keeps for three architectures in tests/test_footprint.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analyticup.model.packing import QUERIES

# A trained weight: itself, gradient and two moments of AdamW, float32.
TRAINED_BYTES = 16
_FLOAT32 = 4


@dataclass(frozen=True)
class Shape:
    """A dense decoder: `inner` is the width inside the gated layers, `queries` and `keys` are heads x width of a head,
    `norms` counts those of the full width in a layer, `head_norms` says whether queries and keys have their own."""

    layers: int
    width: int
    inner: int
    queries: int
    keys: int
    vocabulary: int
    norms: int = 2
    head_norms: bool = False

    @property
    def adapter_inputs(self) -> int:
        """Widths that go into a layer's seven linear maps, added up."""
        return 5 * self.width + self.queries + self.inner

    @property
    def adapter_outputs(self) -> int:
        return self.queries + 2 * self.keys + 2 * self.width + 2 * self.inner


def shape_of_config(config: dict[str, Any]) -> Shape | None:
    """From a model's config.json; None where it lacks a number."""
    heads, kind = config.get("num_attention_heads"), str(config.get("model_type", ""))
    numbers = [config.get(name) for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")]
    if not all(isinstance(number, int) and number > 0 for number in [*numbers, heads]):
        return None
    layers, width, inner, vocabulary = numbers
    head = config.get("head_dim") or width // heads
    keys = (config.get("num_key_value_heads") or heads) * head
    gemma = kind.startswith("gemma3")
    return Shape(layers, width, inner, heads * head, keys, vocabulary, 4 if gemma else 2, gemma or kind == "qwen3")


def kept_bytes(shape: Shape, value_bytes: int, rank: int, dropout: bool, longest: int, on_gpu: bool) -> float:
    """What one layer keeps of one token for the backward pass, adapters on all linear maps, without recomputation.

    `value_bytes` is 2 or 4, `longest` the tokens of the longest prompt.
    """
    values = 3 * shape.inner + 7 * rank + 2 * shape.queries
    # A pack's attention has rows of QUERIES tokens, each with the keys and values of its whole prompt.
    rows, seen = -(-longest // QUERIES), -(-longest // QUERIES) * QUERIES
    values += 2 * shape.keys * rows * seen / longest
    kept = values * value_bytes
    if dropout:
        # Each adapter has its own, and where it was dropped: a byte on a GPU, a value on a CPU.
        kept += shape.adapter_inputs * (value_bytes + (1 if on_gpu else value_bytes))
    else:
        kept += (2 * shape.width + shape.queries + shape.inner) * value_bytes
    # Norms are computed in float32.
    normed = shape.norms * shape.width + (shape.queries + shape.keys if shape.head_norms else 0)
    return kept + _FLOAT32 * normed


def adapters(shape: Shape, rank: int, layers: int) -> int:
    """Trained weights, adapters on all linear maps of so many layers."""
    return rank * (shape.adapter_inputs + shape.adapter_outputs) * layers


def adapter_state_bytes(shape: Shape, rank: int, layers: int) -> float:
    """Adapters with gradients and optimiser."""
    return float(TRAINED_BYTES * adapters(shape, rank, layers))


def logits_bytes(shape: Shape, rows: int, value_bytes: int) -> float:
    """Logits over the vocabulary at the label positions, their float32 copy, log-softmax and gradients."""
    return float(rows * shape.vocabulary * (2 * value_bytes + 3 * _FLOAT32))
