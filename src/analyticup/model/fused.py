"""Adapters and norms in fewer and larger operations, for GPUs, where starting an operation costs more than small ones
take.

A layer's y = W x + s B A d(x), d dropout, is three matrix products forward and five backward, scale and sums inside;
adapters are rounded to the backbone's dtype, and their gradients are taken back from it, once a pass and not layer by
layer. PEFT's own forward takes twice as many operations. Both give the same but for rounding: here B A x is added
before the sum is rounded, there after. An RMS norm is one operation each way on a GPU, and rounds once, not twice.
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
    [outputs, r], all of one dtype."""

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        dropped: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        inner = dropped @ down.T
        found = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
        context.save_for_backward(dropped, inner, weight, down, up)
        context.scale, context.drops = scale, dropped is not x
        return found.addmm_(inner, up.T, alpha=scale)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dropped, inner, weight, down, up = context.saved_tensors
        scale = context.scale
        of_inner = torch.addmm(inner, gradient, up, beta=0, alpha=scale)
        of_up = torch.addmm(up, gradient.T, inner, beta=0, alpha=scale)
        of_down = of_inner.T @ dropped
        of_x, of_dropped = None, None
        if context.needs_input_grad[0]:
            of_x = gradient @ weight
            if context.drops:
                of_dropped = of_inner @ down
            else:
                of_x.addmm_(of_inner, down)
        return of_x, of_dropped, None, None, of_down, of_up, None


class _Rounding(torch.autograd.Function):
    """Copies all trained weights into `kept`, tensors of the backbone's dtype, and gives these."""

    @staticmethod
    def forward(context: Any, kept: list[Tensor], *trained: Tensor) -> tuple[Tensor, ...]:
        context.dtype = trained[0].dtype
        torch._foreach_copy_(kept, trained)
        return tuple(value.detach() for value in kept)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if gradients[0].dtype == context.dtype:
            return None, *gradients
        found = [torch.empty_like(gradient, dtype=context.dtype) for gradient in gradients]
        torch._foreach_copy_(found, gradients)
        return None, *found


class _Rounded:
    """The adapters' weights in the backbone's dtype; each layer gets them anew before each pass."""

    def __init__(self, layers: list[Linear], dtype: torch.dtype) -> None:
        self.layers = layers
        self.trained = [part[_ADAPTER].weight for layer in layers for part in (layer.lora_A, layer.lora_B)]
        self.kept = [value.detach().to(dtype) for value in self.trained]

    def fill(self, *_: Any) -> None:
        values = iter(_Rounding.apply(self.kept, *self.trained))
        for layer in self.layers:
            layer.forward.down, layer.forward.up = next(values), next(values)


def fuse_adapters(model: PeftModel) -> None:
    """Puts the fused forward in the place of PEFT's, for every adapted linear layer with plain weights, and that of the
    frozen RMS norms in the place of Transformers'. `bare` takes them off again."""
    layers = [part for part in model.modules() if isinstance(part, Linear) and type(part.get_base_layer()) is nn.Linear]
    if not layers or isinstance(layers[0].forward, _Forward):
        return
    for layer in layers:
        layer.forward = _Forward(layer)
    for part in model.modules():
        if _is_plain_norm(part):
            part.forward = _Norm(part)
    decoder = model.get_base_model().get_decoder()
    rounded = _Rounded(layers, layers[0].get_base_layer().weight.dtype)
    decoder.fills_adapters = decoder.register_forward_pre_hook(rounded.fill)


def unfuse(model: nn.Module) -> None:
    """Takes off what `fuse_adapters` put on a model, but for its adapters' layers."""
    if (hook := vars(model.get_decoder()).pop("fills_adapters", None)) is not None:
        hook.remove()
    for part in model.modules():
        if isinstance(vars(part).get("forward"), _Norm):
            del part.forward


def _is_plain_norm(part: nn.Module) -> bool:
    """Whether a frozen module is y = w x / sqrt(mean(x²) + e), as in Llama, Mistral and Qwen; others add one to w."""
    if not type(part).__name__.endswith("RMSNorm") or not hasattr(part, "variance_epsilon"):
        return False
    if part.weight.requires_grad:
        return False
    tried = torch.linspace(-1, 2, len(part.weight), dtype=part.weight.dtype, device=part.weight.device)
    with torch.no_grad():
        return torch.allclose(_Norm(part)(tried), part.forward(tried), rtol=0.05, atol=0.01)


class _Norm:
    """The forward of one norm, by the operation that PyTorch has for it."""

    def __init__(self, part: nn.Module) -> None:
        self.weight, self.epsilon = part.weight, part.variance_epsilon

    def __call__(self, states: Tensor) -> Tensor:
        # Under autocast the public function would give float32.
        return torch.ops.aten._fused_rms_norm(states, list(self.weight.shape), self.weight, self.epsilon)[0]


class _Forward:
    """The forward of one layer; PEFT's own where it is merged or switched off."""

    down: Tensor
    up: Tensor

    def __init__(self, layer: Linear) -> None:
        self.layer, self.plain = layer, layer.forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.layer
        if layer.disable_adapters or layer.merged:
            return self.plain(x, *args, **kwargs)
        base = layer.get_base_layer()
        flat = x.flatten(0, -2)
        drop = layer.lora_dropout[_ADAPTER]
        dropped = drop(x).flatten(0, -2) if layer.training and isinstance(drop, nn.Dropout) else flat
        scale = layer.scaling[_ADAPTER]
        found = _Products.apply(flat, dropped, base.weight, base.bias, self.down, self.up, scale)
        return found.unflatten(0, x.shape[:-1])
