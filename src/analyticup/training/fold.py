"""Training of one fold: LoRA from the base model by Lightning, with the held-out rows' scores as by-product."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import lightning
import numpy as np
from pandas import DataFrame
from peft import PeftModel
from wandb.sdk.wandb_run import Run

from analyticup.errors import UserError
from analyticup.model.backbone import add_adapter, frozen_layers
from analyticup.model.batches import EncodedRows, batch_limits, training_batches
from analyticup.model.checkpoint import StepCheckpoint, resumption
from analyticup.model.compiling import compiled
from analyticup.model.data import FoldData, scoring_loader
from analyticup.model.module import LabelWordModule, decoder
from analyticup.model.packing import shares_in_training
from analyticup.model.prompt import PromptEncoder
from analyticup.settings.schema import Settings
from analyticup.training.source import ModelSource
from analyticup.training.trainer import Progress, interruptible, make_trainer, quiet_lightning


def encode_rows(rows: DataFrame, encoder: PromptEncoder) -> EncodedRows:
    """The rows' prompts and labels (-1 where there is none), in the order of the table."""
    return EncodedRows(
        tokens=encoder.encode(rows["query"].tolist(), rows["target"].tolist()),
        labels=rows["label"].fillna(-1).astype(int).tolist(),
    )


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
) -> tuple[PeftModel, np.ndarray]:
    """A LoRA adapter trained on `training`, and the logit margins of `held_out` after training, float32 [rows].

    Eq. 1 of the paper; the same rows, settings and seed give the same bytes on the same machine, also where an
    interrupted training resumes from its `checkpoint`. Raises UserError where the training rows lack one of the labels.
    """
    labels = set(training["label"].dropna().astype(int))
    if labels != {0, 1}:
        raise UserError(f"{description}: the training rows have the labels {sorted(labels)}; both 0 and 1 are needed")
    encoder = source.encoder(settings)
    lightning.seed_everything(seed, verbose=False)
    model = add_adapter(source.backbone(), settings.model.lora, seed)
    frozen = frozen_layers(model.get_base_model(), settings.model.lora)
    rows, scored = (
        with_states(encode_rows(table, encoder), model, frozen, source, description) for table in (training, held_out)
    )
    train = settings.train
    cut = batch_limits(train)
    per_epoch = [len(training_batches(rows, seed, epoch, **cut)) for epoch in range(train.epochs)]
    steps = sum(-(-batches // train.accumulate) for batches in per_epoch)
    if settings.model.gradient_checkpointing:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    module = LabelWordModule(model.train(), encoder.label_words(), train, steps, frozen, description)
    resumed = resumption(checkpoint, module, description)
    packing, share = settings.model.packing, shares_in_training(settings.model)
    held_out_loader = partial(scoring_loader, scored, train.max_batch_tokens, source.pad_id, packing)
    data = FoldData(rows, held_out_loader, source.pad_id, seed, cut, packing=packing, share=share, start=resumed.start)
    progress = Progress(description, sum(per_epoch), scored)
    with quiet_lightning(), compiled(decoder(model).layers[frozen:], settings, steps, gradients=True):
        trainer = make_trainer(source.machine, tracked, [progress, *resumed.callbacks], settings, resumed.plugins)
        with interruptible():
            trainer.fit(module, datamodule=data, ckpt_path=resumed.path)
    if not len(held_out):
        return model, np.zeros(0, dtype=np.float32)
    return model, module.validation_scores()[1].numpy()


def score_rows(
    rows: DataFrame, model: PeftModel, settings: Settings, source: ModelSource, description: str
) -> np.ndarray:
    """Logit margins of the rows under one adapter, float32 [rows]; rows with equal prompts are scored once."""
    if not len(rows):
        return np.zeros(0, dtype=np.float32)
    encoder = source.encoder(settings)
    encoded = encode_rows(rows, encoder)
    place: dict[tuple[int, ...], int] = {}
    which = np.array([place.setdefault(tuple(ids), len(place)) for ids in encoded.tokens])
    distinct = EncodedRows(list(place), [-1] * len(place))
    frozen = frozen_layers(model.get_base_model(), settings.model.lora)
    distinct = with_states(distinct, model, frozen, source, description)
    loader = scoring_loader(distinct, settings.predict.max_batch_tokens, source.pad_id, settings.model.packing)
    module = LabelWordModule(model, encoder.label_words(), settings.train, 1, frozen, description)
    with quiet_lightning(), compiled(decoder(model).layers[frozen:], settings, len(place), gradients=False):
        trainer = make_trainer(source.machine, None, [Progress(description, 0, distinct)], settings)
        with interruptible():
            outputs = trainer.predict(module, loader)
    margins = np.empty(len(place), dtype=np.float32)
    for numbers, values in outputs:
        margins[numbers.numpy()] = values.numpy()
    return margins[which]
