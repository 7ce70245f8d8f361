"""The kit's own training and scoring: `train_fold` and `score_rows` as the pipeline calls them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analyticup.bench.flops import backward_flops, forward_flops, head_flops
from analyticup.bench.harness import Done
from analyticup.bench.work import Work

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame


@dataclass
class KitTraining:
    """One epoch over the rows. `upper`: adapters in the upper half of the layers alone; `kept`: what the lower half
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
        lengths = self.work.encode(self.work.rows).lengths().tolist()
        self.done = Done(len(lengths), sum(lengths), self._steps(lengths), self._flops(lengths))

    def prepare(self) -> None:
        from analyticup.model.frozen import FrozenStates

        if not self.kept:
            self.work.source.frozen = FrozenStates()
        self.work.source.load()

    def run(self) -> Done:
        self._train(self.work.rows)
        return self.done

    def _train(self, rows: DataFrame) -> None:
        from analyticup.train import train_fold

        settings = self.work.settings
        train_fold(rows, rows.head(0), settings, self.work.source, settings.seed, "bench", None)

    def _steps(self, lengths: list[int]) -> int:
        import numpy as np

        from analyticup.model.data import training_batches

        settings = self.work.settings
        limits = {"max_rows": settings.train.batch_rows, "max_tokens": settings.train.max_batch_tokens}
        batches = len(training_batches(np.array(lengths), settings.seed, 0, **limits))
        return -(-batches // settings.train.accumulate)

    def _flops(self, lengths: list[int]) -> float:
        shape, adapted = self.shape, self.shape.layers - self.frozen
        whole = self.work.settings.train.objective == "label_nll"
        head = head_flops(shape, len(lengths), shape.vocabulary if whole else 2, backward=True)
        layers = adapted if self.kept else shape.layers
        return forward_flops(shape, lengths, layers, adapted) + backward_flops(shape, lengths, adapted) + head


@dataclass
class KitScoring:
    """Scores of the rows under an adapter in all layers, `merged` with the weights as by `predict.merge_adapters`.

    `shared`: beginnings that prompts have in common are computed once, as by `predict.share_prefixes`; its operations
    are not counted. `compiled`: as by `predict.compile_min_rows`, the compilation left out of the time.
    """

    work: Work
    merged: bool = False
    shared: bool = False
    compiled: bool = False

    def warm_up(self) -> None:
        from analyticup.model.backbone import add_adapter

        if self.compiled:
            self.work = self.work.with_compilation()
        self.shape = self.work.shape()
        settings = self.work.settings
        self.settings = replace(settings, predict=replace(settings.predict, share_prefixes=self.shared))
        self.model = add_adapter(self.work.source.backbone(), settings.model.lora, settings.seed).eval()
        if self.merged:
            self.model.merge_adapter()
        # Prompts of a new length may have to be compiled anew.
        self._score(self.work.rows if self.compiled else self.work.few)
        lengths = self.work.encode(self.work.rows).lengths().tolist()
        flops = forward_flops(self.shape, lengths, self.shape.layers, 0 if self.merged else self.shape.layers)
        flops += head_flops(self.shape, len(lengths), 2)
        self.done = Done(len(lengths), sum(lengths), flops=None if self.shared else flops)

    def prepare(self) -> None:
        pass

    def run(self) -> Done:
        self.scores = self._score(self.work.rows)
        return self.done

    def _score(self, rows: DataFrame) -> np.ndarray:
        from analyticup.train import score_rows

        return score_rows(rows, self.model, self.settings, self.work.source, "bench")
