"""Training of one fold: LoRA from the base model by Lightning, with the held-out rows' scores as by-product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
import numpy as np
from lightning import Callback
from pandas import DataFrame
from peft import PeftModel

from analyticup.engine.graph import WHOLE, Shard
from analyticup.errors import UserError
from analyticup.model.backbone import add_adapter, fill_adapter, frozen_layers
from analyticup.model.batches import EncodedRows, batch_limits
from analyticup.model.checkpoint import StepCheckpoint, resumption
from analyticup.model.compiling import compiled
from analyticup.model.data import FoldData, batches_to_score, scoring_loader, step_loader
from analyticup.model.fused import fuse_adapters
from analyticup.model.heads import layers_of
from analyticup.model.module import LabelWordModule, decoder, recompute
from analyticup.model.packing import shares_in_training
from analyticup.model.passes import Cutter
from analyticup.model.prompt import PromptEncoder
from analyticup.settings.schema import Settings, TrainSettings
from analyticup.training.source import ModelSource
from analyticup.training.trainer import Progress, interruptible, make_trainer, quiet_lightning
from analyticup.training.vllm_scoring import VllmAdapter

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run


def encode_rows(rows: DataFrame, encoder: PromptEncoder) -> EncodedRows:
    """The rows' prompts and labels (-1 where there is none), in the order of the table. Where prompts hold
    reasoning, the table has a column of that name."""
    texts = [rows[name].tolist() for name in ("query", "target", "reasoning") if name in rows]
    return EncodedRows(
        tokens=encoder.encode(*texts),
        labels=rows["label"].fillna(-1).astype(int).tolist(),
    )


def doubts(labels: Sequence[int], taught: np.ndarray, settings: TrainSettings) -> np.ndarray:
    """How far each row's target is from its label, [rows] in 0..1: `distil` of it is the teacher's probability of 1,
    `taught` [rows], the rest the label, smoothed."""
    known = np.array(labels, dtype=float)
    smoothed = known * (1 - 2 * settings.label_smoothing) + settings.label_smoothing
    return np.abs(known - ((1 - settings.distil) * smoothed + settings.distil * taught))


def with_states(rows: EncodedRows, model: PeftModel, frozen: int, source: ModelSource, description: str) -> EncodedRows:
    """The rows with the hidden states after the model's `frozen` lower layers; unchanged where none is frozen."""
    if not frozen or not rows.tokens:
        return rows
    # Lightning would move it only later.
    model.to(source.machine.device)
    return replace(rows, states=source.frozen.of(decoder(model), frozen, rows.tokens, description))


def train_fold(
    training: DataFrame,
    held_out: DataFrame,
    settings: Settings,
    source: ModelSource,
    seed: int,
    description: str,
    tracked: Run | None,
    checkpoint: StepCheckpoint | None = None,
    start: Path | None = None,
    rank: Shard = WHOLE,
) -> tuple[PeftModel, np.ndarray]:
    """A LoRA adapter trained on `training`, and the logit margins of `held_out` after training, float32 [rows].

    Eq. 1 of the paper; the same rows, settings and seed give the same bytes on the same machine, also where an
    interrupted training resumes from its `checkpoint`. `start` is the folder of an adapter to start from. One `rank` of
    several trains with the others; each comes to the same adapter and margins. Raises UserError where the training rows
    lack one of the labels.
    """
    labels = set(training["label"].dropna().astype(int))
    if labels != {0, 1}:
        raise UserError(f"{description}: the training rows have the labels {sorted(labels)}; both 0 and 1 are needed")
    encoder = source.encoder(settings)
    lightning.seed_everything(seed, verbose=False)
    model = add_adapter(source.backbone(), settings.model.lora, seed)
    if start is not None:
        fill_adapter(model, start)
    frozen = frozen_layers(model.get_base_model(), settings.model.lora)
    rows, scored = (
        with_states(encode_rows(table, encoder), model, frozen, source, description) for table in (training, held_out)
    )
    train, packing = settings.train, source.packing
    if "taught" in training:
        rows = replace(rows, doubts=doubts(rows.labels, training["taught"].to_numpy(), train).tolist())
    limit = source.memory_limits["training"]
    cut = Cutter(rows, source.pad_id, packing, shares_in_training(settings.model), train.max_batch_tokens, limit, rank)
    to_score = Cutter(scored, source.pad_id, packing, limit=limit)
    held_out_loader = partial(scoring_loader, to_score, train.max_batch_tokens, rank)
    data = FoldData(cut, held_out_loader, seed, batch_limits(train), train.accumulate)
    steps = sum(len(data.steps(epoch)) for epoch in range(train.epochs))
    recompute(model, settings.model.gradient_checkpointing)
    if source.machine.device == "cuda" and train.compile_min_steps is None:
        fuse_adapters(model)
    module = LabelWordModule(model.train(), source.words(settings), train, steps, frozen, description, rank)
    resumed = resumption(checkpoint, module, train.accumulate, description)
    data.start = resumed.start
    shown = [Progress(description, steps, scored)] if rank.number == 0 else []
    callbacks = [*shown, *resumed.callbacks]
    if tracked is not None:
        callbacks.append(_telemetry(held_out, to_score, settings, cut, seed))
    with quiet_lightning(), compiled(layers_of(model.get_base_model())[frozen:], settings, steps, gradients=True):
        trainer = make_trainer(source.machine, tracked, callbacks, settings, resumed.plugins)
        with interruptible():
            trainer.fit(module, datamodule=data, ckpt_path=resumed.path)
    if not len(held_out):
        return model, np.zeros(0, dtype=np.float32)
    return model, module.validation_scores()[1].numpy()


def _telemetry(held_out: DataFrame, to_score: Cutter, settings: Settings, cut: Cutter, seed: int) -> Callback:
    # Only here: `bench --only gpu` runs where there may be no scikit-learn.
    from analyticup.training.telemetry import Telemetry, drawn, sample_size

    size = sample_size(settings, len(cut.lengths), len(held_out))
    if not size:
        return Telemetry(cut.lengths, None)
    sample = to_score.rows.take(drawn(held_out["row_id"].tolist(), size, seed))
    return Telemetry(cut.lengths, scoring_loader(replace(to_score, rows=sample), settings.train.max_batch_tokens))


def score_rows(
    rows: DataFrame,
    model: PeftModel | VllmAdapter,
    settings: Settings,
    source: ModelSource,
    description: str,
    shard: Shard = WHOLE,
) -> np.ndarray:
    """Logit margins of the rows under one adapter, float32 [rows]; rows with equal prompts are scored once.

    NaN for rows that are not in the `shard`. It takes whole batches, cut from all rows, so that a score comes from the
    same forward pass whatever the number of shards; vLLM makes its own.
    """
    if not len(rows):
        return np.zeros(0, dtype=np.float32)
    encoder = source.encoder(settings)
    encoded = encode_rows(rows, encoder)
    place: dict[tuple[int, ...], int] = {}
    which = np.array([place.setdefault(tuple(ids), len(place)) for ids in encoded.tokens])
    every = EncodedRows(list(place), [-1] * len(place))
    batches = shard.take(batches_to_score(every, source.packing, settings.predict.max_batch_tokens))
    own = sorted(chain.from_iterable(batches))
    if not own:
        return np.full(len(rows), np.nan, dtype=np.float32)
    number = {row: at for at, row in enumerate(own)}
    distinct = every.take(own)
    margins = np.full(len(place), np.nan, dtype=np.float32)
    if isinstance(model, VllmAdapter):
        margins[own] = model.margins(distinct.tokens, source.words(settings), description)
    else:
        mine = [[number[row] for row in batch] for batch in batches]
        margins[own] = _scored(distinct, mine, model, settings, source, description, len(place))
    return margins[which]


def _scored(
    distinct: EncodedRows,
    batches: Sequence[list[int]],
    model: PeftModel,
    settings: Settings,
    source: ModelSource,
    description: str,
    size: int,
) -> np.ndarray:
    """Margins of distinct prompts, float32 [prompts], in these batches; `size` is the number of all prompts, of which
    a shard may have some only."""
    frozen = frozen_layers(model.get_base_model(), settings.model.lora)
    distinct = with_states(distinct, model, frozen, source, description)
    if source.machine.device == "cuda" and settings.predict.compile_min_rows is None:
        fuse_adapters(model)
    cut = Cutter(distinct, source.pad_id, source.packing, limit=source.memory_limits["scoring"])
    loader = step_loader(cut, [[batch] for batch in batches])
    module = LabelWordModule(model, source.words(settings), settings.train, 1, frozen, description)
    with quiet_lightning(), compiled(layers_of(model.get_base_model())[frozen:], settings, size, gradients=False):
        trainer = make_trainer(source.machine, None, [Progress(description, 0, distinct)], settings)
        with interruptible():
            outputs = trainer.predict(module, loader)
    margins = np.empty(len(distinct.tokens), dtype=np.float32)
    for numbers, values in outputs:
        margins[numbers.numpy()] = values.numpy()
    return margins
