"""Training of one fold: LoRA from the base model by Lightning, with the held-out rows' scores as by-product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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


def _fuse(model: PeftModel, source: ModelSource, compiles_from: int | None) -> None:
    """Before the states of frozen layers are computed, so that these are the same whoever asks first. The backward pass
    of the fused norm has no operation on Apple's GPUs (not tried)."""
    if compiles_from is None and source.machine.device != "mps":
        fuse_adapters(model)


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
    scores: bool = True,
) -> tuple[PeftModel, np.ndarray]:
    """A LoRA adapter trained on `training`, and the logit margins of `held_out` after training, float32 [rows]; without
    `scores` none, as `score_held_out` gives them.

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
    recompute(model, settings.model.gradient_checkpointing)
    _fuse(model, source, settings.train.compile_min_steps)
    frozen = frozen_layers(model.get_base_model(), settings.model.lora)
    if not scores and tracked is None:
        held_out = held_out.head(0)
    rows, scored = (
        with_states(encode_rows(table, encoder), model, frozen, source, description) for table in (training, held_out)
    )
    train, packing = settings.train, source.packing
    if "taught" in training:
        rows = replace(rows, doubts=doubts(rows.labels, training["taught"].to_numpy(), train).tolist())
    limit = source.memory_limits["training"]
    cut = Cutter(rows, source.pad_id, packing, shares_in_training(settings.model), train.max_batch_tokens, limit, rank)
    to_score = Cutter(scored, source.pad_id, packing, limit=limit)
    last = to_score if scores else replace(to_score, rows=scored.take([]))
    held_out_loader = partial(scoring_loader, last, train.max_batch_tokens, rank)
    data = FoldData(cut, held_out_loader, seed, batch_limits(train), train.accumulate)
    steps = sum(len(data.steps(epoch)) for epoch in range(train.epochs))
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
    if not len(held_out) or not scores:
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
    return _scored(every, model, settings, source, description, shard, "predict")[which]


def score_held_out(
    rows: DataFrame, model: PeftModel, settings: Settings, source: ModelSource, description: str, shard: Shard
) -> np.ndarray:
    """What `train_fold` gives for held-out rows, by the adapter that it made, float32 [rows]; NaN for rows that are not
    in the `shard`, as in `score_rows`."""
    return _scored(encode_rows(rows, source.encoder(settings)), model, settings, source, description, shard, "train")


def _scored(
    rows: EncodedRows,
    model: PeftModel | VllmAdapter,
    settings: Settings,
    source: ModelSource,
    description: str,
    shard: Shard,
    section: Literal["train", "predict"],
) -> np.ndarray:
    """The margins of the shard's batches, as the settings of that section cut them."""
    if section == "train":
        size, compiles, limit = settings.train.max_batch_tokens, settings.train.compile_min_steps, "training"
    else:
        size, compiles, limit = settings.predict.max_batch_tokens, settings.predict.compile_min_rows, "scoring"
    margins = np.full(len(rows.tokens), np.nan, dtype=np.float32)
    batches = shard.take(batches_to_score(rows, source.packing, size)) if rows.tokens else []
    own = sorted(chain.from_iterable(batches))
    if not own:
        return margins
    words = source.words(settings)
    if isinstance(model, VllmAdapter):
        margins[own] = model.margins(rows.take(own).tokens, words, description)
        return margins
    number = {row: at for at, row in enumerate(own)}
    _fuse(model, source, compiles)
    frozen = frozen_layers(model.get_base_model(), settings.model.lora)
    taken = with_states(rows.take(own), model, frozen, source, description)
    cut = Cutter(taken, source.pad_id, source.packing, limit=source.memory_limits[limit])
    loader = step_loader(cut, [[[number[row] for row in batch]] for batch in batches])
    name = f"{section}.max_batch_tokens"
    module = LabelWordModule(model, words, settings.train, 1, frozen, description, scoring=name)
    # A training scores uncompiled.
    layers, large = layers_of(model.get_base_model())[frozen:], len(rows.tokens) if section == "predict" else 0
    with quiet_lightning(), compiled(layers, settings, large, gradients=False):
        trainer = make_trainer(source.machine, None, [Progress(description, 0, taken)], settings)
        with interruptible():
            outputs = trainer.predict(module, loader)
    for numbers, values in outputs:
        margins[np.array(own)[numbers.numpy()]] = values.numpy()
    return margins
