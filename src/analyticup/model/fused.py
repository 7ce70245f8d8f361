"""Adapters and norms in fewer and larger operations: to start one costs more than small ones take.

A layer's y = W x + s B A d(x), d dropout, is three matrix products forward and five backward, scale and sums inside.
Layers that read the same x share dropout's operation, A x and the sums of what x gets back. Adapters are rounded to the
backbone's dtype, and their gradients are taken back from it, once a pass and not layer by layer. PEFT's own forward
takes twice as many operations. Both give the same but for rounding: here B A x is added before the sum is rounded,
there after. An RMS norm of Llama's kind is one operation each way on a GPU, and rounds once, not twice. Queries and
keys are turned by their positions together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn

from analyticup.model.drawing import dropped_copies
from analyticup.model.heads import is_encoder
from analyticup.model.packing import prepared_mask

_ADAPTER: Final = "default"
# A and B.
_MATRICES: Final = ("lora_A", "lora_B")
_READ_THE_SAME: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# What the layers' modules call the function that turns queries and keys by their positions.
_TURNS: Final = "apply_rotary_pos_emb"


class _Products(torch.autograd.Function):
    """What `count` layers give that read the same states, [tokens, outputs] each: of x [tokens, inputs], its copies
    after dropout [count, tokens, inputs] or None, and all matrices A [count, r, inputs]; then of each layer weight
    [outputs, inputs], bias, A and B [outputs, r]. All are of one dtype."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, dropped: Tensor | None, downs: Tensor, scale: float, *parts: Tensor | None
    ) -> tuple[Tensor, ...]:
        count = len(downs)
        weights, biases, ups = parts[:count], parts[count : 2 * count], parts[3 * count :]
        if dropped is None:
            inner = (x @ downs.flatten(0, 1).T).unflatten(1, downs.shape[:2]).transpose(0, 1)
        else:
            inner = torch.bmm(dropped, downs.transpose(1, 2))
        context.save_for_backward(x if dropped is None else dropped, inner, downs, *weights, *ups)
        context.scale, context.drops = scale, dropped is not None
        found = []
        for own, weight, bias, up in zip(inner, weights, biases, ups, strict=True):
            plain = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
            found.append(plain.addmm_(own, up.T, alpha=scale))
        return tuple(found)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        read, inner, downs, *matrices = context.saved_tensors
        count, scale = len(downs), context.scale
        weights, ups = matrices[:count], matrices[count:]
        of_inner, of_ups = torch.empty_like(inner), []
        for number, (gradient, up) in enumerate(zip(gradients, ups, strict=True)):
            torch.addmm(inner[number], gradient, up, beta=0, alpha=scale, out=of_inner[number])
            of_ups.append(torch.addmm(up, gradient.T, inner[number], beta=0, alpha=scale))
        of_x, of_dropped, side = None, None, of_inner.transpose(0, 1)
        if context.needs_input_grad[0]:
            of_x = gradients[0] @ weights[0]
            for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
                of_x.addmm_(gradient, weight)
        if context.drops:
            of_downs = torch.bmm(of_inner.transpose(1, 2), read)
            of_dropped = torch.bmm(of_inner, downs) if context.needs_input_grad[1] else None
        else:
            of_downs = (side.flatten(1).T @ read).unflatten(0, downs.shape[:2])
            if of_x is not None:
                of_x.addmm_(side.flatten(1), downs.flatten(0, 1))
        none = (None,) * count
        return of_x, of_dropped, None, None, *none, *none, *of_downs, *of_ups


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


class _Joint:
    """Adapted layers that read the same states: when the first is asked, it finds what all of them give."""

    def __init__(self, layers: Sequence[Linear], dtype: torch.dtype) -> None:
        self.layers = layers
        downs, self.trained_ups = ([getattr(one, name)[_ADAPTER].weight for one in layers] for name in _MATRICES)
        self.trained = [*downs, *self.trained_ups]
        self.downs = torch.stack([value.detach().to(dtype) for value in downs])
        self.kept = [*self.downs, *(value.detach().to(dtype) for value in self.trained_ups)]
        # As autograd knows them, from before each pass.
        self.rounded: Sequence[Tensor] = ()
        self.forget()

    def forget(self) -> None:
        self.read: Tensor | None = None
        self.found: dict[int, Tensor] = {}

    def given(self, place: int, x: Tensor) -> Tensor:
        """What the layer at this place gives."""
        if x is not self.read or place not in self.found:
            self.read, self.found = x, dict(enumerate(self._products(x)))
        found = self.found.pop(place)
        if not self.found:
            self.forget()
        return found

    def _products(self, x: Tensor) -> list[Tensor]:
        first, bases = self.layers[0], [layer.get_base_layer() for layer in self.layers]
        # Under autocast some norms give float32.
        x = x.to(self.downs.dtype)
        drop, dropped = first.lora_dropout[_ADAPTER], None
        if first.training and isinstance(drop, nn.Dropout):
            dropped = dropped_copies(drop, x, len(bases)).flatten(1, -2)
        parts = [*(base.weight for base in bases), *(base.bias for base in bases), *self.rounded]
        found = _Products.apply(x.flatten(0, -2), dropped, self.downs, first.scaling[_ADAPTER], *parts)
        return [one.unflatten(0, x.shape[:-1]) for one in found]


def _joined(model: nn.Module, layers: Sequence[Linear]) -> list[list[Linear]]:
    """The layers by what they read, as their names tell."""
    left = dict.fromkeys(layers)
    found = []
    for parent in model.modules():
        for names in _READ_THE_SAME:
            own = [getattr(parent, name, None) for name in names]
            if all(one in left for one in own):
                found.append(own)
                left = {one: None for one in left if one not in own}
    return [*found, *([one] for one in left)]


class _Pass:
    """What is done once before each pass: the adapters' weights are rounded to the backbone's dtype, and the mask of a
    pack is made as attention uses it."""

    def __init__(self, joints: Sequence[_Joint], dtype: torch.dtype, config: Any) -> None:
        self.joints, self.dtype = joints, dtype
        self.kept = [value for joint in joints for value in joint.kept]
        self.trained = [value for joint in joints for value in joint.trained]
        # With a window each layer may see something else.
        self.prepares = getattr(config, "sliding_window", None) is None
        heads = config.num_attention_heads
        self.groups = heads // getattr(config, "num_key_value_heads", heads)

    def __call__(self, decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        values = iter(_Rounding.apply(self.kept, *self.trained))
        for joint in self.joints:
            joint.forget()
            joint.rounded = [next(values) for _ in joint.kept]
        if self.prepares and "packing" in kwargs:
            mask = prepared_mask(kwargs["attention_mask"], self.groups, self.dtype)
            kwargs = {**kwargs, "attention_mask": mask}
        return args, kwargs


def fuse_adapters(model: PeftModel) -> None:
    """Puts the fused forward in the place of PEFT's, for every adapted linear layer with plain weights, and those of
    the frozen RMS norms and of the rotary embedding in the place of Transformers'. `bare` takes them off again.

    An encoder stays as it is: DeBERTa's adapters also read what belongs to no row."""
    if is_encoder(model.get_base_model().config):
        return
    layers = [part for part in model.modules() if isinstance(part, Linear) and type(part.get_base_layer()) is nn.Linear]
    if not layers or isinstance(layers[0].forward, _Forward):
        return
    dtype = layers[0].get_base_layer().weight.dtype
    joints = [_Joint(own, dtype) for own in _joined(model, layers)]
    for joint in joints:
        for place, layer in enumerate(joint.layers):
            layer.forward = _Forward(layer, joint, place)
    for part in model.modules():
        if (norm := _fused_norm(part)) is not None:
            part.forward = norm
    base = model.get_base_model()
    decoder = base.get_decoder()
    fuse_rotation(decoder)
    before = _Pass(joints, dtype, base.config.get_text_config())
    decoder.before_pass = decoder.register_forward_pre_hook(before, with_kwargs=True)


def fuse_rotation(decoder: nn.Module) -> None:
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
        found = zip(_Rotation.apply(*given[:2], *angles), plain(*given), strict=True)
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


def is_fused(decoder: nn.Module) -> bool:
    """Whether `fuse_adapters` was at the decoder's layers, so that they round otherwise."""
    return "before_pass" in vars(decoder)


def unfuse(model: nn.Module) -> None:
    """Takes off what `fuse_adapters` put on a model, but for its adapters' layers."""
    if (hook := vars(model.get_decoder()).pop("before_pass", None)) is not None:
        hook.remove()
    for part in model.modules():
        if isinstance(vars(part).get("forward"), _Norm | _GemmaNorm | _Angles):
            del part.forward


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
        exact = states.float()
        factor = torch.rsqrt(exact.square().mean(dim=-1, keepdim=True).add_(epsilon))
        context.save_for_backward(states, factor, weight)
        return (exact * factor).mul_(weight).to(states.dtype)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        states, factor, weight = context.saved_tensors
        normed, scaled = states.float() * factor, gradient.float() * weight
        along = (scaled * normed).mean(dim=-1, keepdim=True)
        return scaled.sub_(normed.mul_(along)).mul_(factor).to(states.dtype), None, None


class _Forward:
    """The forward of one layer; PEFT's own where it is merged or switched off."""

    def __init__(self, layer: Linear, joint: _Joint, place: int) -> None:
        self.layer, self.joint, self.place, self.plain = layer, joint, place, layer.forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.layer.disable_adapters or self.layer.merged:
            return self.plain(x, *args, **kwargs)
        return self.joint.given(self.place, x)
