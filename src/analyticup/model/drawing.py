"""What a training draws while it runs: dropout, the same however a batch is cut into forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from analyticup.errors import UserError

ATTENTION = "drawn_by_batch"


@dataclass(frozen=True)
class Place:
    """Where the tokens of a pass are among those of its whole batch: the batch's `shape` less the width, an index into
    it, and the pass's `own` shape."""

    shape: tuple[int, int]
    index: tuple[slice, slice]
    own: tuple[int, int]


@dataclass
class Drawing:
    """The place of the pass that runs now; None where it is its whole batch."""

    place: Place | None = None


class BatchDropout(nn.Dropout):
    """Dropout that is drawn for the whole batch, of which a pass takes its part: states [rows, tokens, width], those of
    the first token [rows, width], or attention [rows, heads, tokens, tokens].

    From one random state the passes of a batch then get what the batch in one pass would get, on a GPU but for the
    rounding of the scale. That costs a drawing of the batch for each of them.
    """

    def __init__(self, p: float, drawing: Drawing) -> None:
        super().__init__(p)
        self.drawing = drawing

    def forward(self, states: Tensor) -> Tensor:
        place = self.drawing.place
        if place is None or not self.training:
            return super().forward(states)
        (rows, tokens), (own_rows, own_tokens) = place.shape, place.index
        # By the number of dimensions: the batch's shape and an index into it, and what a pass has in the same places.
        shape, index, own = {
            2: ((rows, *states.shape[1:]), (own_rows,), (place.own[0],)),
            3: ((rows, tokens, *states.shape[2:]), (own_rows, own_tokens), place.own),
            4: (
                (rows, states.shape[1], tokens, tokens),
                (own_rows, slice(None), own_tokens, own_tokens),
                (place.own[0], states.shape[1], place.own[1], place.own[1]),
            ),
        }[states.dim()]
        if tuple(states.shape[: len(own)]) != own:
            # Of no row: what DeBERTa's adapters make of its embeddings of positions, which every pass has alike. (A
            # single row as long as those would be taken for them: 512 tokens of DeBERTa-v3.)
            return super().forward(states)
        drawn = dropout(states.new_ones(shape), self.p)[index]
        # What fills a pack up is read by nobody.
        return states * (pad(drawn, (0, 0, 0, states.shape[1] - drawn.shape[1])) if states.dim() == 3 else drawn)


def dropped_copies(drop: nn.Dropout, states: Tensor, count: int) -> Tensor:
    """So many copies of states [rows, tokens, width], [count, rows, tokens, width], each with a drawing of its own; for
    a BatchDropout drawn for the whole batch."""
    place = drop.drawing.place if isinstance(drop, BatchDropout) else None
    if place is None:
        return dropout(_copies(states, count), drop.p)
    ones = states.new_ones((*place.shape, states.shape[-1]))
    drawn = dropout(_copies(ones, count), drop.p)[(slice(None), *place.index)]
    # What fills a pack up is read by nobody.
    return states * pad(drawn, (0, 0, 0, states.shape[1] - drawn.shape[2]))


def _copies(states: Tensor, count: int) -> Tensor:
    """[count, *states.shape], in one layout for whole batches and for cut ones: a GPU draws by it."""
    # Of `unsqueeze`, unlike of `expand`, the gradient is a view.
    copies = states.unsqueeze(0)
    return copies if count == 1 else copies.expand(count, *states.shape)


def draw_by_batch(model: nn.Module, own: bool = False) -> Drawing:
    """Puts BatchDropout in the place of the adapters' dropout, and of the model's `own`; what it gives is told which
    pass runs."""
    drawing = Drawing()
    for part in list(model.modules()):
        # Where PEFT keeps that of an adapter.
        for name, found in getattr(part, "lora_dropout", {}).items():
            if isinstance(found, nn.Dropout):
                part.lora_dropout[name] = BatchDropout(found.p, drawing)
        for name, found in list(part.named_children()) if own else []:
            # DeBERTa's embeddings of relative positions are no row's.
            if isinstance(found, nn.Dropout) and found.p and name != "pos_dropout":
                setattr(part, name, BatchDropout(found.p, drawing))
    return drawing


def enable_dropout(model: PreTrainedModel) -> None:
    """Lets an encoder drop attention by a module, which `draw_by_batch` can replace; PyTorch's own attention draws by
    itself."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, drawn_attention)
        AttentionMaskInterface.register(ATTENTION, eager_mask)
        model.set_attn_implementation(ATTENTION)


def drawn_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function for Transformers, whose dropout is the module's: query, key and value [rows, heads, tokens,
    width], `attention_mask` is added to their products; gives [rows, tokens, heads, width]. UserError where the module
    has no dropout of its own."""
    drop = getattr(module, "dropout", None)
    if not isinstance(drop, nn.Dropout):
        raise UserError(
            f"model.own_dropout: {type(module).__name__} drops attention in a way of its own; set it to false"
        )
    products = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        products = products + attention_mask
    return (drop(products.softmax(dim=-1)) @ value).transpose(1, 2).contiguous(), None


def random_state() -> dict[str, Tensor]:
    """Those of torch's generators, by device: only dropout draws during training."""
    return dict(_states())


def _states() -> Iterator[tuple[str, Tensor]]:
    yield "cpu", torch.get_rng_state()
    if torch.cuda.is_available():
        yield "cuda", torch.cuda.get_rng_state()
    elif torch.backends.mps.is_available():
        yield "mps", torch.mps.get_rng_state()


def set_random_state(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    elif "mps" in states:
        torch.mps.set_rng_state(states["mps"])
