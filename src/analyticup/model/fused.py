"""Adapters in fewer and larger operations, to start which costs more than small ones take; and nothing that no score
needs.

A layer's y = W x + s B A d(x), d dropout, is three matrix products forward and five backward, scale and sums inside.
Layers that read the same x share dropout's operation, A x and the sums of what x gets back. Adapters are rounded to the
backbone's dtype, and their gradients are taken back from it, once a pass and not layer by layer. PEFT's own forward
takes twice as many operations. Both give the same but for rounding: here B A x is added before the sum is rounded,
there after. Of the last layer's tokens, those go on after attention whose states are asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn

from analyticup.model.drawing import dropped_copies
from analyticup.model.elementwise import fuse_parts, unfuse_parts
from analyticup.model.heads import is_encoder
from analyticup.model.packing import ATTENTION, make_tree, prepared_mask, run_pack

_ADAPTER: Final = "default"
# A and B.
_MATRICES: Final = ("lora_A", "lora_B")
# What a layer must have whose tokens part after attention.
_ATTENDS: Final = ("self_attn", "input_layernorm")
_READ_THE_SAME: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


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
    elementwise.py and of the last layer in the place of Transformers'. `bare` takes them off again.

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
    base = model.get_base_model()
    decoder = base.get_decoder()
    fuse_parts(decoder)
    before = _Pass(joints, dtype, base.config.get_text_config())
    decoder.before_pass = decoder.register_forward_pre_hook(before, with_kwargs=True)
    _read_some(decoder)


class _LastLayer:
    """The forward of a decoder's last layer: where it is told which tokens are `read`, numbers [n], it gives the states
    of these alone. Only its attention looks at other tokens, so that for all that follows it n are enough."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.plain = layer, layer.forward

    def __call__(self, hidden_states: Tensor, *args: Any, read: Tensor | None = None, **kwargs: Any) -> Tensor:
        if read is None:
            return self.plain(hidden_states, *args, **kwargs)
        attention = self.layer.self_attn
        before, attends = vars(attention).get("forward"), attention.forward

        def attended(*args: Any, hidden_states: Tensor, **kwargs: Any) -> tuple[Any, ...]:
            # What it is given are the normed states of the tokens that are read alone.
            found, *rest = attends(*args, hidden_states=self.layer.input_layernorm(every), **kwargs)
            return found[:, read], *rest

        every, attention.forward = hidden_states, attended
        try:
            return self.plain(every[:, read], *args, **kwargs)
        finally:
            _put_back(attention, before)


def _read_some(decoder: nn.Module) -> None:
    """Lets the decoder take `read`, where its last layer is of the kind that this changes nothing for."""
    if "takes_read" not in vars(decoder):
        decoder.takes_read = _takes_read(decoder)
    if decoder.takes_read:
        decoder.layers[-1].forward = _LastLayer(decoder.layers[-1])


def _takes_read(decoder: nn.Module) -> bool:
    last = decoder.layers[-1]
    if decoder.config._attn_implementation != ATTENTION or not all(hasattr(last, name) for name in _ATTENDS):
        return False
    before, training = vars(last).get("forward"), decoder.training
    tree, read = make_tree([[1, 2, 3], [1, 2, 4, 5]]), torch.tensor([2, 4])
    last.forward = _LastLayer(last)
    try:
        # A layer that is also given something of each token cannot take fewer.
        with torch.no_grad(), contextlib.suppress(IndexError, RuntimeError, TypeError):
            whole, some = (run_pack(decoder.eval(), tree, **given) for given in ({}, {"read": read}))
            expected = whole[:, read]
            return some.shape == expected.shape and bool((some - expected).norm() < 0.05 * expected.norm())
        return False
    finally:
        decoder.train(training)
        _put_back(last, before)


def _put_back(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    """The forward that a module had of its own, or its class's."""
    del module.forward
    if forward is not None:
        module.forward = forward


def reads_some(model: PeftModel) -> bool:
    """Whether the decoder takes `read`, the tokens whose states are wanted. Dropout is drawn for every token."""
    last = model.get_base_model().get_decoder().layers[-1]
    drops = model.training and bool(model.peft_config[_ADAPTER].lora_dropout)
    return isinstance(vars(last).get("forward"), _LastLayer) and not drops


def is_fused(decoder: nn.Module) -> bool:
    """Whether `fuse_adapters` was at the decoder's layers, so that they round otherwise."""
    return "before_pass" in vars(decoder)


def unfuse(model: nn.Module) -> None:
    """Takes off what `fuse_adapters` put on a model, but for its adapters' layers."""
    decoder = model.get_decoder()
    if (hook := vars(decoder).pop("before_pass", None)) is not None:
        hook.remove()
        unfuse_parts(decoder)
        last = decoder.layers[-1]
        if isinstance(vars(last).get("forward"), _LastLayer):
            del last.forward


class _Forward:
    """The forward of one layer; PEFT's own where it is merged or switched off."""

    def __init__(self, layer: Linear, joint: _Joint, place: int) -> None:
        self.layer, self.joint, self.place, self.plain = layer, joint, place, layer.forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.layer.disable_adapters or self.layer.merged:
            return self.plain(x, *args, **kwargs)
        return self.joint.given(self.place, x)
