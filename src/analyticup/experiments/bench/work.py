"""What all variants with a model share: the rows, the settings, the prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pandas import DataFrame

from analyticup.corpus.rows import load_rows
from analyticup.experiments.bench.flops import Shape, shape_of
from analyticup.experiments.bench.harness import Unavailable
from analyticup.model.batches import EncodedRows
from analyticup.model.compiling import compiler_fault
from analyticup.settings.schema import Settings
from analyticup.training.fold import encode_rows
from analyticup.training.source import Machine, ModelSource


class LoadedSource(ModelSource):
    """Hands out a backbone that was loaded before, so that a round times the work and not the disk."""

    def load(self) -> None:
        # The one of the round before goes first, so that two are never in memory; what rivals made of it is not known.
        self._loaded = None
        self.release()
        self._loaded = super().backbone()

    def backbone(self) -> Any:
        loaded, self._loaded = self._loaded, None
        return loaded


@dataclass(frozen=True)
class Work:
    """Rows (a rows table on disk), the settings of their task and the cache of converted models."""

    settings: Settings
    table: Path
    cache: Path

    @cached_property
    def rows(self) -> DataFrame:
        return load_rows(self.table)

    @cached_property
    def few(self) -> DataFrame:
        """Rows to warm up on: two batches, where labels are known with both of them."""
        size = 2 * self.settings.train.batch_rows
        if self.rows["label"].isna().any():
            return self.rows.head(size)
        return self.rows.groupby("label").head(max(1, size // 2))

    @cached_property
    def source(self) -> LoadedSource:
        machine = self.settings.machine
        return LoadedSource(self.settings, self.cache, Machine(machine.accelerator, machine.threads))

    def encode(self, rows: DataFrame) -> EncodedRows:
        """The kit's prompts: the rivals get them token for token."""
        return encode_rows(rows, self.source.encoder(self.settings))

    def shape(self) -> Shape:
        """The backbone's shape; loads it, and leaves one loaded."""
        self.source.load()
        model = self.source.backbone()
        self.source._loaded = model
        return shape_of(model, self.settings.model.lora)

    def with_layers(self, layers: int | None) -> Work:
        """The same work with adapters in that many upper layers, None = in all."""
        return replace(self, settings=self.settings.replace(**{"model.lora.layers": layers}))

    def without_packing(self) -> Work:
        """The same work with padded prompts, on the backbone as Transformers loads it."""
        return replace(self, settings=self.settings.replace(**{"model.packing": False}))

    def with_compilation(self) -> Work:
        """The same work with every training and scoring compiled; raises Unavailable without a compiler."""
        settings = self.settings.replace(**{"train.compile_min_steps": 1, "predict.compile_min_rows": 1})
        if fault := compiler_fault(settings):
            raise Unavailable(fault)
        return replace(self, settings=settings)

    @property
    def dtype(self) -> str:
        return self.source.dtype
