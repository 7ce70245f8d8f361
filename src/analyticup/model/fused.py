"""Adapters in fewer and larger operations, for GPUs, where starting an operation costs more than small ones take.

A layer's y = W x + s B A d(x), d dropout, is three matrix products forward and five backward, scale and sums inside;
adapters are rounded to the backbone's dtype once a pass and not layer by layer. PEFT's own forward takes twice as many
operations. Both give the same but for rounding: here B A x is added before the sum is rounded, there after.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn

_ADAPTER = "default"


class _Products(torch.autograd.Function):
    """y [tokens, outputs] of x and dropped x [tokens, inputs], weight [outputs, inputs], down [r, inputs] and up
    [outputs, r] in the weight's dtype, and the trained down and up that these were rounded from."""

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        dropped: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        trained_down: Tensor,
        trained_up: Tensor,
        scale: float,
    ) -> Tensor:
        inner = dropped @ down.T
        found = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
        context.save_for_backward(dropped, inner, weight, down, up)
        context.scale, context.dtype, context.drops = scale, trained_up.dtype, dropped is not x
        return found.addmm_(inner, up.T, alpha=scale)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dropped, inner, weight, down, up = context.saved_tensors
        scale = context.scale
        of_inner = torch.addmm(inner, gradient, up, beta=0, alpha=scale)
        of_up = torch.addmm(up, gradient.T, inner, beta=0, alpha=scale).to(context.dtype)
        of_down = (of_inner.T @ dropped).to(context.dtype)
        of_x, of_dropped = None, None
        if context.needs_input_grad[0]:
            of_x = gradient @ weight
            if context.drops:
                of_dropped = of_inner @ down
            else:
                of_x.addmm_(of_inner, down)
        return of_x, of_dropped, None, None, None, None, of_down, of_up, None


class _Rounded:
    """The adapters' weights in the backbone's dtype; filled anew before each pass."""

    def __init__(self, layers: list[Linear], dtype: torch.dtype) -> None:
        self.trained = [value for layer in layers for value in _weights(layer)]
        self.values = [value.detach().to(dtype) for value in self.trained]

    def fill(self, *_: Any) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.values, self.trained)


def _weights(layer: Linear) -> tuple[Tensor, Tensor]:
    return layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight


def fuse_adapters(model: PeftModel) -> None:
    """Puts the fused forward in the place of PEFT's, for every adapted linear layer with plain weights."""
    layers = [part for part in model.modules() if isinstance(part, Linear) and type(part.get_base_layer()) is nn.Linear]
    if not layers or isinstance(layers[0].forward, _Forward):
        return
    rounded = _Rounded(layers, layers[0].get_base_layer().weight.dtype)
    for number, layer in enumerate(layers):
        layer.forward = _Forward(layer, *rounded.values[2 * number : 2 * number + 2])
    decoder = model.get_base_model().get_decoder()
    decoder.fills_adapters = decoder.register_forward_pre_hook(rounded.fill)


class _Forward:
    """The forward of one layer; PEFT's own where it is merged or switched off."""

    def __init__(self, layer: Linear, down: Tensor, up: Tensor) -> None:
        self.layer, self.plain, self.down, self.up = layer, layer.forward, down, up

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.layer
        if layer.disable_adapters or layer.merged:
            return self.plain(x, *args, **kwargs)
        base = layer.get_base_layer()
        flat = x.flatten(0, -2)
        drop = layer.lora_dropout[_ADAPTER]
        dropped = drop(x).flatten(0, -2) if layer.training and isinstance(drop, nn.Dropout) else flat
        scale = layer.scaling[_ADAPTER]
        found = _Products.apply(flat, dropped, base.weight, base.bias, self.down, self.up, *_weights(layer), scale)
        return found.unflatten(0, x.shape[:-1])
