"""How many floating-point operations a method needs, and how many the machine can do.

Counted, a multiplication and an addition as two, only on real tokens (padding is waste; a beginning that a pack has
once counts once), for dense decoders:
- forward: 2 x weights of the layers' linear maps per token, embeddings and norms left out;
- backward through frozen weights: the same again, for the gradients of the activations (those of the weights are not
  computed); none below the lowest adapter;
- LoRA: 2 x its weights forward, 4 x backward;
- attention: scores and weighted sum over the tokens before, 4 x width per pair of tokens forward, twice that backward;
- the last layer as any other, though a pack leaves out there, after attention, what no score reads;
- the output matrix or classification head: 2 x hidden x outputs per position where it is applied, and again backward.
Left out: norms, activations, softmax, optimiser, tokenisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from analyticup.experiments.bench.harness import Done
from analyticup.model.packing import make_tree
from analyticup.settings.schema import LoraSettings


@dataclass(frozen=True)
class Shape:
    """A decoder: `weights` and `adapter` are numbers of weights per layer; `attention` is heads x width of a head."""

    layers: int
    weights: int
    adapter: int
    attention: int
    hidden: int
    vocabulary: int


def shape_of(model: Any, lora: LoraSettings) -> Shape:
    """The shape of a causal or classifying model without adapters. `adapter` counts those of a layer that has them."""
    decoder, config = model.get_decoder(), model.config.get_text_config()
    linear = [
        (name.rpartition(".")[2], part)
        for name, part in decoder.layers.named_modules()
        if isinstance(part, torch.nn.Linear)
    ]
    targets = None if lora.targets == "all-linear" else {part.strip() for part in lora.targets.split(",")}
    adapter = sum(
        lora.r * (part.in_features + part.out_features) for name, part in linear if targets is None or name in targets
    )
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = len(decoder.layers)
    return Shape(
        layers=layers,
        weights=sum(part.weight.numel() for _, part in linear) // layers,
        adapter=adapter // layers,
        attention=heads * width,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
    )


@dataclass(frozen=True)
class Load:
    """What goes through the layers: tokens, and pairs of a token and one that it may attend to, itself included."""

    tokens: int
    pairs: int


def prompts_load(lengths: Sequence[int]) -> Load:
    """Prompts of these lengths, each whole."""
    return Load(sum(lengths), sum(length * (length + 1) // 2 for length in lengths))


def packed_load(prompts: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]) -> Load:
    """The prompts in packs of these rows, which share what they begin with (see `make_tree`)."""
    trees = [make_tree([prompts[row] for row in batch]) for batch in batches]
    return Load(sum(len(tree.ids) for tree in trees), sum(int((tree.positions + 1).sum()) for tree in trees))


def forward_flops(shape: Shape, load: Load, layers: int, adapted: int) -> float:
    """Forward pass through `layers` layers, of which `adapted` have adapters."""
    per_token = 2 * (shape.weights * layers + shape.adapter * adapted)
    return float(per_token * load.tokens + 4 * shape.attention * layers * load.pairs)


def backward_flops(shape: Shape, load: Load, adapted: int) -> float:
    """Backward pass through the `adapted` upper layers, weights frozen, adapters trained."""
    per_token = (2 * shape.weights + 4 * shape.adapter) * adapted
    return float(per_token * load.tokens + 8 * shape.attention * adapted * load.pairs)


def head_flops(shape: Shape, positions: int, outputs: int, backward: bool = False) -> float:
    """The output matrix, or `outputs` rows of it, at so many positions."""
    return float(2 * shape.hidden * outputs * positions * (2 if backward else 1))


@dataclass
class MatrixMultiply:
    """The machine's rate: products of square matrices of `size` in the models' dtype, `repeats` to a round."""

    dtype: str
    device: str
    size: int
    repeats: int
    threads: int | None = None

    def warm_up(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)
        dtype = getattr(torch, self.dtype)
        generator = torch.Generator().manual_seed(0)
        shape = (self.size, self.size)
        self._pair = [torch.randn(shape, generator=generator).to(self.device, dtype) for _ in range(2)]
        _ = self._pair[0] @ self._pair[1]

    def prepare(self) -> None:
        pass

    def run(self) -> Done:
        for _ in range(self.repeats):
            _ = self._pair[0] @ self._pair[1]
        return Done(rows=0, flops=2.0 * self.size**3 * self.repeats)
