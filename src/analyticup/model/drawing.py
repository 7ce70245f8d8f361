"""What a training draws while it runs: dropout, the same however a batch is cut into forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad


@dataclass(frozen=True)
class Place:
    """Where the tokens of a pass are among those of its whole batch: the batch's `shape` less the width, and an index
    into it."""

    shape: tuple[int, int]
    index: tuple[slice, slice]


@dataclass
class Drawing:
    """The place of the pass that runs now; None where it is its whole batch."""

    place: Place | None = None


class BatchDropout(nn.Dropout):
    """Dropout that is drawn for the whole batch, of which a pass takes its part.

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
        own = dropout(states.new_ones(*place.shape, states.shape[-1]), self.p)[place.index]
        # What fills a pack up is read by nobody.
        return states * pad(own, (0, 0, 0, states.shape[1] - own.shape[1]))


def draw_by_batch(model: nn.Module) -> Drawing:
    """Puts BatchDropout in the place of the adapters' dropout; what it gives is told which pass runs."""
    drawing = Drawing()
    for part in list(model.modules()):
        # Where PEFT keeps that of an adapter.
        for name, found in getattr(part, "lora_dropout", {}).items():
            if isinstance(found, nn.Dropout):
                part.lora_dropout[name] = BatchDropout(found.p, drawing)
    return drawing


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
