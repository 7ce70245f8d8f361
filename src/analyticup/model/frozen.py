"""The layers below the lowest adapter: frozen, so their output for a prompt is computed once and reused.

With `model.lora.layers` the adapters are only in the upper layers. Every fold, epoch and score of a prompt then starts
from the same hidden states; the backward pass ends there too. They are on disk, 1.3 kB per token for 270M parameters in
bf16: the workers of a run share them, and memory holds those of one batch.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyticup.engine.cache import Cache
from analyticup.engine.progress import track
from analyticup.errors import UserError
from analyticup.model.backbone import sums_vary_with_rows
from analyticup.model.batches import scoring_batches
from analyticup.model.fused import is_fused
from analyticup.model.packing import TOKENS, packed_batches, packed_states

BATCH_TOKENS = 2048
# Raised when states come to be computed otherwise: what a killed run leaves is taken up again.
_VERSION = 3


class FrozenStates:
    """Hidden states below the adapters, by prompt, in the sqlite file `path`; without one, in memory.

    The file is for one backbone in one dtype on one device. Several processes may fill it at once.
    """

    def __init__(self, packing: bool, path: Path | None = None) -> None:
        self._packing = packing
        self._path = path or Path(":memory:")

    @cached_property
    def kept(self) -> Cache:
        return Cache(self._path)

    def of(self, decoder: Any, layers: int, tokens: Sequence[Sequence[int]], description: str) -> Sequence[Tensor]:
        """The output of the first `layers` layers for each prompt, [tokens, width] each, in the backbone's dtype.

        On CPUs that this was measured on, the bits do not depend on which prompts share a batch: where they would, each
        batch is filled up to one size.
        """
        keys = [_key(layers, is_fused(decoder), ids) for ids in tokens]
        prompts = dict(zip(keys, tokens, strict=True))
        absent = self.kept.absent(list(prompts))
        with track(len(absent), f"{description}: frozen layers, rows") as progress:
            # Two folds start on nearly the same prompts at once: first each takes those that the other has not, then
            # what an interrupted process left.
            for claims in (True, False):
                for batch in self._batches(prompts, self.kept.absent(absent)):
                    mine = self.kept.claim(batch) if claims else batch
                    if mine:
                        states = self._states(decoder, layers, [prompts[key] for key in mine])
                        self.kept.write({key: _to_bytes(one) for key, one in zip(mine, states, strict=True)})
                    progress.advance(len(batch) if claims else 0)
        return _Kept(self.kept, keys, decoder.config.hidden_size, next(decoder.parameters()).dtype)

    def _batches(self, prompts: dict[str, Sequence[int]], keys: Sequence[str]) -> list[list[str]]:
        if self._packing:
            batches = packed_batches([prompts[key] for key in keys], BATCH_TOKENS)
        else:
            # Prompts of one length, so that none is padded.
            batches = scoring_batches(np.array([len(prompts[key]) for key in keys]), BATCH_TOKENS)
        return [[keys[row] for row in batch] for batch in batches]

    def _states(self, decoder: Any, layers: int, batch: Sequence[Sequence[int]]) -> Sequence[Tensor]:
        weights = next(decoder.parameters())
        fills = sums_vary_with_rows(weights.device.type, weights.dtype)
        # no_grad and not inference_mode: the states become inputs of a training step.
        with torch.no_grad(), only_layers(decoder, 0, layers):
            if self._packing:
                return packed_states(decoder, batch, BATCH_TOKENS if fills else TOKENS)
            rows = max(1, BATCH_TOKENS // len(batch[0])) if fills else len(batch)
            tokens = torch.tensor([*batch, *batch[:1] * (rows - len(batch))], device=weights.device)
            return list(decoder(input_ids=tokens, use_cache=False).last_hidden_state[: len(batch)].cpu())


class _Kept(Sequence[Tensor]):
    """States that are read when they are asked for."""

    def __init__(self, kept: Cache, keys: Sequence[str], width: int, dtype: torch.dtype) -> None:
        self._kept, self._keys, self._width, self._dtype = kept, keys, width, dtype

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, row: int) -> Tensor:
        found = self._kept.read([self._keys[row]])
        if not found:
            raise UserError(f"{self._kept.path}: a prompt's states are damaged; delete the file and run again")
        (value,) = found.values()
        return torch.frombuffer(bytearray(value), dtype=self._dtype).view(-1, self._width)


def _key(layers: int, fused: bool, ids: Sequence[int]) -> str:
    return f"v{_VERSION}:{layers}{'+' * fused}:{hashlib.sha256(np.array(ids, dtype=np.int32).tobytes()).hexdigest()}"


def _to_bytes(states: Tensor) -> bytes:
    # NumPy has no bfloat16.
    return states.contiguous().view(torch.uint8).numpy().tobytes()


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
