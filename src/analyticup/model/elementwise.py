"""Norms, activations and rotations of a decoder's layers, in fewer operations and with less that goes through memory.

An RMS norm of Llama's kind is one operation each way on a GPU, and rounds once, not twice. Queries and keys are turned
by their positions together. On CPUs what is computed in float32 is computed in parts that a core's own cache holds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

# What the layers' modules call the function that turns queries and keys by their positions.
_TURNS: Final = "apply_rotary_pos_emb"
# c and d of GELU by tanh.
_SLOPE, _CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715
# Values in float32 that a core's own cache holds.
_CACHED_VALUES: Final = 262_144


def fuse_parts(decoder: nn.Module) -> None:
    """Puts the forwards of this module in the place of those of the decoder's frozen RMS norms, activations and rotary
    embedding, where they give the same. `unfuse_parts` takes them off again."""
    for part in decoder.modules():
        if (fused := _fused_norm(part) or _fused_activation(part)) is not None:
            part.forward = fused
    _fuse_rotation(decoder)


def unfuse_parts(decoder: nn.Module) -> None:
    """Takes off what `fuse_parts` put on a decoder."""
    for part in decoder.modules():
        own = vars(part).get("forward")
        if own is _gelu or isinstance(own, _Norm | _GemmaNorm | _Angles):
            del part.forward


def _fuse_rotation(decoder: nn.Module) -> None:
    """Lets the decoder's layers turn queries and keys together, where their module turns them as Llama's does.

    It does so by a function that all models of an architecture share, so the angles tell it which one asks.
    """
    module = sys.modules[type(decoder).__module__]
    plain, part = getattr(module, _TURNS, None), getattr(decoder, "rotary_emb", None)
    if plain is None or part is None:
        return
    if not isinstance(plain, _Turning):
        tried = torch.linspace(-1, 2, 24).view(1, 3, 2, 4)
        given = (tried[:, :2], tried[:, 2:], tried[:, 0, :, :].cos(), tried[:, 1, :, :].sin())
        angles = (given[2][:, None], given[3][:, None])
        try:
            found = zip(_Rotation.apply(*given[:2], *angles), plain(*given), strict=True)
        except TypeError:
            # Gemma 4 turns them one by one.
            return
        if not all(torch.allclose(one, other) for one, other in found):
            return
        setattr(module, _TURNS, _Turning(plain))
    part.forward = _Angles(part.forward)


class _Turning:
    """In the place of a module's function."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = plain

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        if not hasattr(cos, "turns_both") or unsqueeze_dim != 1:
            return self.plain(q, k, cos, sin, unsqueeze_dim)
        return _Rotation.apply(q, k, cos.unsqueeze(1), sin.unsqueeze(1))


class _Angles:
    """The forward of a rotary embedding, of a decoder whose queries and keys are turned together."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = plain

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        cos, sin = self.plain(*args, **kwargs)
        cos.turns_both = True
        return cos, sin


class _Rotation(torch.autograd.Function):
    """Queries [1, heads, tokens, width] and keys [1, key heads, tokens, width], turned by the angles whose cosines and
    sines [1, 1, tokens, width] are given: each half of the width takes some of the other one."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        context.save_for_backward(cos, sin)
        low, high = sin.chunk(2, dim=-1)
        return _turned(query, key, cos, low, high, -1)

    @staticmethod
    def backward(context: Any, of_query: Tensor, of_key: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = context.saved_tensors
        low, high = sin.chunk(2, dim=-1)
        return *_turned(of_query, of_key, cos, high, low, 1), None, None


def _turned(query: Tensor, key: Tensor, cos: Tensor, first: Tensor, second: Tensor, sign: int) -> tuple[Tensor, ...]:
    # Token by token, as the products gave them and attention gathers them.
    both = torch.cat((query.transpose(1, 2), key.transpose(1, 2)), dim=2).transpose(1, 2)
    turned, (low, high) = both * cos, both.chunk(2, dim=-1)
    into_low, into_high = turned.chunk(2, dim=-1)
    into_low.addcmul_(high, first, value=sign)
    into_high.addcmul_(low, second, value=-sign)
    return turned.split((query.shape[1], key.shape[1]), dim=1)


def _fused_norm(part: nn.Module) -> _Norm | _GemmaNorm | None:
    """The forward of a frozen RMS norm in few operations; None for another module."""
    epsilon, weight = getattr(part, "variance_epsilon", getattr(part, "eps", None)), getattr(part, "weight", None)
    if not type(part).__name__.endswith("RMSNorm") or epsilon is None or weight is None or weight.requires_grad:
        return None
    tried = torch.linspace(-1, 2, len(weight), dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        expected = part.forward(tried)
        norms = [kind(weight.detach(), epsilon) for kind in (_Norm, _GemmaNorm)]
        nearest = min(norms, key=lambda norm: float((norm(tried) - expected).abs().max()))
        return nearest if torch.allclose(nearest(tried), expected, rtol=0.05, atol=0.01) else None


class _Norm:
    """y = w x / sqrt(mean(x²) + e), as in Llama, Mistral and Qwen, by the operation that PyTorch has for it."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        self.weight, self.epsilon = weight, epsilon

    def __call__(self, states: Tensor) -> Tensor:
        # Under autocast the public function would give float32.
        return torch.ops.aten._fused_rms_norm(states, list(self.weight.shape), self.weight, self.epsilon)[0]


class _GemmaNorm:
    """y = (1 + w) x / sqrt(mean(x²) + e), rounded once: so 1 + w is kept in float32."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        self.weight, self.epsilon = 1 + weight.float(), epsilon

    def __call__(self, states: Tensor) -> Tensor:
        return _ExactNorm.apply(states, self.weight, self.epsilon)


class _ExactNorm(torch.autograd.Function):
    """States [..., width] over the root of their mean square, times a frozen weight [width] in float32."""

    @staticmethod
    def forward(context: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        context.turned = states.ndim == 4 and not states.is_contiguous()
        given = _as_it_lies(states, context.turned)
        found, factor = _empty(given), weight.new_empty((*given.shape[:-1], 1))
        for own, out, roots in _parts(given, found, factor):
            exact = own.to(weight.dtype, copy=True)
            torch.mean(exact.square(), dim=-1, keepdim=True, out=roots).add_(epsilon).rsqrt_()
            out.copy_(exact.mul_(roots).mul_(weight))
        context.save_for_backward(states, factor, weight)
        return _as_it_lies(found, context.turned)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        states, factor, weight = context.saved_tensors
        given, gradient = (_as_it_lies(one, context.turned) for one in (states, gradient))
        found = _empty(given)
        for own, out, roots, of_out in _parts(given, found, factor, gradient):
            normed = own.to(weight.dtype, copy=True).mul_(roots)
            scaled = of_out.to(weight.dtype, copy=True).mul_(weight)
            along = (scaled * normed).mean(dim=-1, keepdim=True)
            out.copy_(scaled.sub_(normed.mul_(along)).mul_(roots))
        return _as_it_lies(found, context.turned), None, None


def _as_it_lies(states: Tensor, turned: bool) -> Tensor:
    """Turns states of heads [1, heads, tokens, width] that lie in memory token by token, and back again."""
    return states.transpose(1, 2) if turned else states


def _fused_activation(part: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The forward of GELU by tanh, where that is what a module does on a CPU; None for another."""
    if "GELU" not in type(part).__name__ or next(part.parameters(), None) is not None:
        return None
    tried = torch.linspace(-6, 6, 97)
    return _gelu if torch.allclose(part(tried), gelu(tried, approximate="tanh"), atol=1e-6) else None


def _gelu(x: Tensor) -> Tensor:
    return _Gelu.apply(x) if x.device.type == "cpu" else gelu(x, approximate="tanh")


class _Gelu(torch.autograd.Function):
    """GELU by tanh, .5 x (1 + tanh(u / 2)) (Hendrycks & Gimpel 2016), as x sigmoid(u), u = c x (1 + d x²): PyTorch's
    tanh takes several times as long on CPUs. Computed in float32."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        found = _empty(x)
        for own, out in _parts(x, found):
            exact = own.to(torch.promote_types(x.dtype, torch.float32))
            out.copy_(_gate(exact, exact.square()).mul_(exact))
        return found

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        found = _empty(x)
        for own, out, of_out in _parts(x, found, gradient):
            exact = own.to(torch.promote_types(x.dtype, torch.float32))
            square = exact.square()
            gate = _gate(exact, square)
            # sigmoid(u) (1 + (1 - sigmoid(u)) x u')
            slope = square.mul_(3 * _SLOPE * _CUBIC).add_(_SLOPE).mul_(exact)
            out.copy_(slope.mul_(1 - gate).add_(1).mul_(gate).mul_(of_out))
        return found


def _gate(exact: Tensor, square: Tensor) -> Tensor:
    return (square * (_SLOPE * _CUBIC)).add_(_SLOPE).mul_(exact).sigmoid_()


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _parts(first: Tensor, *others: Tensor) -> Iterator[list[Tensor]]:
    """Parts of tensors with as many rows, [..., width] each, that a core's own cache holds: what is made of them on the
    way need not go through memory."""
    on_cpu = first.device.type == "cpu"
    rows = max(_CACHED_VALUES * torch.get_num_threads() // first.shape[-1] if on_cpu else first.numel(), 1)
    yield from map(list, zip(*(one.reshape(-1, one.shape[-1]).split(rows) for one in (first, *others)), strict=True))
