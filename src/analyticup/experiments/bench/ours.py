"""The kit's own training and scoring: `train_fold` and `score_rows` as the pipeline calls them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pandas import DataFrame

from analyticup.experiments.bench.flops import (
    Load,
    backward_flops,
    forward_flops,
    head_flops,
    packed_load,
    prompts_load,
)
from analyticup.experiments.bench.harness import Done
from analyticup.experiments.bench.work import Work
from analyticup.model.backbone import add_adapter
from analyticup.model.batches import EncodedRows, batch_limits, training_batches
from analyticup.model.frozen import BATCH_TOKENS, FrozenStates
from analyticup.model.packing import packed_batches, shares_in_training
from analyticup.training.fold import score_rows, train_fold


@dataclass
class KitTraining:
    """One epoch over the rows. `upper`: adapters only in the upper half of the layers; `kept`: what the lower half
    makes of the prompts is there already, as from the second epoch or fold on; `compiled`: as by
    `train.compile_min_steps`, the compilation left out of the time."""

    work: Work
    upper: bool = False
    kept: bool = False
    compiled: bool = False

    def warm_up(self) -> None:
        if self.compiled:
            self.work = self.work.with_compilation()
        self.shape = self.work.shape()
        self.frozen = self.shape.layers // 2 if self.upper else 0
        self.work = self.work.with_layers(self.shape.layers - self.frozen)
        self.work.source.load()
        # Rows of a new length may have to be compiled anew.
        self._train(self.work.rows if self.kept or self.compiled else self.work.few)
        encoded = self.work.encode(self.work.rows)
        batches = self._batches(encoded)
        steps = -(-len(batches) // self.work.settings.train.accumulate)
        self.done = Done(len(encoded.tokens), int(encoded.lengths().sum()), steps, self._flops(encoded, batches))

    def prepare(self) -> None:
        if not self.kept:
            self.work.source.frozen = FrozenStates(self.work.settings.model.packing)
        self.work.source.load()

    def run(self) -> Done:
        self._train(self.work.rows)
        return self.done

    def _train(self, rows: DataFrame) -> None:
        settings = self.work.settings
        train_fold(rows, rows.head(0), settings, self.work.source, settings.seed, "bench", None)

    def _batches(self, encoded: EncodedRows) -> list[list[int]]:
        settings = self.work.settings
        return training_batches(encoded, settings.seed, 0, **batch_limits(settings.train))

    def _flops(self, encoded: EncodedRows, batches: list[list[int]]) -> float:
        shape, adapted = self.shape, self.shape.layers - self.frozen
        load = _load(self.work, encoded, batches, share=shares_in_training(self.work.settings.model))
        below = 0.0
        if self.frozen and not self.kept:
            below = forward_flops(shape, _scoring_load(self.work, encoded, BATCH_TOKENS), self.frozen, 0)
        whole = self.work.settings.train.objective == "label_nll"
        head = head_flops(shape, len(encoded.tokens), shape.vocabulary if whole else 2, backward=True)
        return below + forward_flops(shape, load, adapted, adapted) + backward_flops(shape, load, adapted) + head


def _load(work: Work, encoded: EncodedRows, batches: list[list[int]], share: bool = True) -> Load:
    if work.settings.model.packing and share:
        return packed_load(encoded.tokens, batches)
    return prompts_load(encoded.lengths().tolist())


def _scoring_load(work: Work, encoded: EncodedRows, max_tokens: int) -> Load:
    return _load(work, encoded, packed_batches(encoded.tokens, max_tokens))


@dataclass
class KitScoring:
    """Scores of the rows under an adapter in all layers, `merged` with the weights as by `predict.merge_adapters`.

    `compiled`: as by `predict.compile_min_rows`, the compilation left out of the time.
    """

    work: Work
    merged: bool = False
    compiled: bool = False

    def warm_up(self) -> None:
        if self.compiled:
            self.work = self.work.with_compilation()
        self.shape = self.work.shape()
        settings = self.work.settings
        self.model = add_adapter(self.work.source.backbone(), settings.model.lora, settings.seed).eval()
        if self.merged:
            self.model.merge_adapter()
        # Prompts of a new length may have to be compiled anew.
        self._score(self.work.rows if self.compiled else self.work.few)
        encoded = self.work.encode(self.work.rows)
        load = _scoring_load(self.work, encoded, settings.predict.max_batch_tokens)
        flops = forward_flops(self.shape, load, self.shape.layers, 0 if self.merged else self.shape.layers)
        flops += head_flops(self.shape, len(encoded.tokens), 2)
        self.done = Done(len(encoded.tokens), int(encoded.lengths().sum()), flops=flops)

    def prepare(self) -> None:
        pass

    def run(self) -> Done:
        self.scores = self._score(self.work.rows)
        return self.done

    def _score(self, rows: DataFrame) -> np.ndarray:
        return score_rows(rows, self.model, self.work.settings, self.work.source, "bench")
