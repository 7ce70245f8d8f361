"""The layers below the lowest adapter: frozen, so their output for a prompt is computed once and reused.

With `model.lora.layers` the adapters are only in the upper layers. Every fold, epoch and score of a prompt then starts
from the same hidden states; the backward pass ends there too.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyticup.engine.progress import track
from analyticup.model.batches import scoring_batches
from analyticup.model.packing import packed_batches, packed_states

# States beyond this are computed again each time; 270M parameters need about 1.3 kB per token.
KEPT_BYTES = 6 * 2**30
BATCH_TOKENS = 4096


class FrozenStates:
    """Hidden states below the adapters, by prompt; `room` bytes of them are kept in memory for the whole run."""

    def __init__(self, packing: bool, room: int = KEPT_BYTES) -> None:
        self._packing = packing
        self._room = room
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._bytes = 0

    def of(self, decoder: Any, layers: int, tokens: Sequence[Sequence[int]], description: str) -> list[Tensor]:
        """The output of the first `layers` layers for each prompt, [tokens, width] each, in the backbone's dtype.

        On the CPU that this was measured on, the bits do not depend on which prompts share a batch.
        """
        keys = [tuple(ids) for ids in tokens]
        missing = [key for key in dict.fromkeys(keys) if key not in self._kept]
        made: dict[tuple[int, ...], Tensor] = {}
        with track(len(missing), f"{description}: frozen layers, rows") as progress:
            for batch in self._batches(missing):
                made.update(zip(batch, self._states(decoder, layers, batch), strict=True))
                progress.advance(len(batch))
        found = [self._kept[key] if key in self._kept else made[key] for key in keys]
        for key, states in made.items():
            if self._bytes < self._room:
                self._kept[key] = states
                self._bytes += states.nbytes
        return found

    def _batches(self, prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        if self._packing:
            batches = packed_batches(prompts, BATCH_TOKENS)
        else:
            # Prompts of one length, so that none is padded.
            batches = scoring_batches(np.array([len(ids) for ids in prompts]), BATCH_TOKENS)
        return [[prompts[row] for row in batch] for batch in batches]

    def _states(self, decoder: Any, layers: int, batch: Sequence[tuple[int, ...]]) -> list[Tensor]:
        # no_grad and not inference_mode: the states become inputs of a training step.
        with torch.no_grad(), only_layers(decoder, 0, layers):
            if self._packing:
                return packed_states(decoder, batch)
            tokens = torch.tensor(batch, device=next(decoder.parameters()).device)
            states = decoder(input_ids=tokens, use_cache=False).last_hidden_state.cpu()
        # Copies, as a view would keep the whole batch in memory.
        return [row.clone() for row in states]


@contextlib.contextmanager
def only_layers(decoder: Any, first: int, last: int) -> Iterator[None]:
    """Within, the decoder's forward pass runs the layers first..last-1, and its final norm only after the last of all.

    Without the first layer it takes the states that come out of layer first-1 as `inputs_embeds`.
    """
    layers, norm, config = decoder.layers, decoder.norm, decoder.config
    if last - first == len(layers):
        yield
        return
    part = copy.copy(config)
    part.num_hidden_layers = last - first
    if getattr(config, "layer_types", None):
        part.layer_types = config.layer_types[first:last]
    decoder.layers, decoder.config = layers[first:last], part
    if last < len(layers):
        decoder.norm = torch.nn.Identity()
    try:
        yield
    finally:
        decoder.layers, decoder.norm, decoder.config = layers, norm, config
