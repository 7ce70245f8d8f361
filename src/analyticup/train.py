"""Training of one fold: LoRA from the base model by Lightning, with the held-out rows' scores as by-product."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyticup.errors import UserError
from analyticup.model.frozen import KEPT_BYTES, FrozenStates
from analyticup.settings.schema import ModelSettings, Settings

if TYPE_CHECKING:
    import numpy as np
    from lightning import Callback, Trainer
    from lightning.pytorch.loggers import WandbLogger
    from lightning.pytorch.plugins import CheckpointIO
    from pandas import DataFrame
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from analyticup.model.checkpoint import StepCheckpoint
    from analyticup.model.data import EncodedRows
    from analyticup.model.prompt import PromptEncoder


@dataclass(frozen=True)
class Machine:
    """What the models run on. `threads` None leaves it to torch; `workers` processes share the machine."""

    accelerator: str
    threads: int | None
    workers: int = 1

    @cached_property
    def device(self) -> str:
        """cpu, cuda or mps."""
        import torch

        if self.accelerator == "cpu":
            return "cpu"
        if torch.cuda.is_available():
            return "cuda"
        if self.accelerator == "gpu" and not torch.backends.mps.is_available():
            raise UserError("machine.accelerator = gpu: torch sees no GPU here; use auto or cpu, or mend the driver")
        return "mps" if torch.backends.mps.is_available() else "cpu"


class ModelSource:
    """Loads the backbone of a run's settings; the tokenizer, which takes seconds, is loaded once, a distinct text is
    tokenised once, and a converted copy of the weights is hashed once."""

    def __init__(self, settings: Settings, cache: Path, machine: Machine) -> None:
        self.settings = settings.model
        self.cache = cache
        self.machine = machine
        self._encoders: dict[tuple[Any, ...], PromptEncoder] = {}
        self.frozen = FrozenStates(self.settings.packing, KEPT_BYTES // machine.workers)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from analyticup.model.backbone import load_tokenizer

        return load_tokenizer(self._located, self.cache)

    @cached_property
    def _located(self) -> ModelSettings:
        from analyticup.model.backbone import local_folder, source_kind

        if source_kind(self.settings) != "gguf":
            return self.settings
        return replace(self.settings, backbone=local_folder(self.settings, self.cache))

    def encoder(self, settings: Settings) -> PromptEncoder:
        from analyticup.model.prompt import PromptEncoder

        key = astuple(settings.prompt)
        if key not in self._encoders:
            self._encoders[key] = PromptEncoder(self.tokenizer, settings.prompt)
        return self._encoders[key]

    def backbone(self) -> Any:
        import torch

        from analyticup.model.backbone import choose_precision, load_backbone
        from analyticup.model.packing import enable_packing

        if self.machine.threads:
            torch.set_num_threads(self.machine.threads)
        precision = choose_precision(self.settings.dtype, self.machine.device)
        model = load_backbone(self._located, self.cache, getattr(torch, precision.dtype))
        if self.settings.packing:
            enable_packing(model)
        return model

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0


def encode_rows(rows: DataFrame, encoder: PromptEncoder) -> EncodedRows:
    """The rows' prompts and labels (-1 where there is none), in the order of the table."""
    from analyticup.model.data import EncodedRows

    return EncodedRows(
        tokens=encoder.encode(rows["query"].tolist(), rows["target"].tolist()),
        labels=rows["label"].fillna(-1).astype(int).tolist(),
    )


def with_states(rows: EncodedRows, model: PeftModel, frozen: int, source: ModelSource, description: str) -> EncodedRows:
    """The rows with what the model's `frozen` lower layers make of them; as they are where none is frozen."""
    from analyticup.model.module import decoder

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
    logger: WandbLogger | None,
    checkpoint: StepCheckpoint | None = None,
) -> tuple[PeftModel, np.ndarray]:
    """A LoRA adapter trained on `training`, and the logit margins of `held_out` after training, float32 [rows].

    Eq. 1 of the paper; the same rows, settings and seed give the same bytes on the same machine, also where an
    interrupted training goes on from its `checkpoint`. Raises UserError where the training rows lack one of the labels.
    """
    import lightning
    import numpy as np

    from analyticup.model.backbone import add_adapter, frozen_layers
    from analyticup.model.checkpoint import resumption
    from analyticup.model.compiling import compiled
    from analyticup.model.data import make_data_module, scoring_loader, training_batches
    from analyticup.model.module import decoder, make_module
    from analyticup.model.packing import shares_in_training

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
    limits = {"max_rows": train.batch_rows, "max_tokens": train.max_batch_tokens}
    per_epoch = [len(training_batches(rows.lengths(), seed, epoch, **limits)) for epoch in range(train.epochs)]
    steps = sum(-(-batches // train.accumulate) for batches in per_epoch)
    if settings.model.gradient_checkpointing:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    module = make_module(model.train(), encoder.label_words(), train, steps, frozen)
    resumed = resumption(checkpoint, module, description)
    packing = settings.model.packing
    held_out_loader = partial(scoring_loader, scored, train.max_batch_tokens, source.pad_id, packing)
    share = shares_in_training(settings.model)
    data = make_data_module(
        rows, held_out_loader, source.pad_id, seed, **limits, packing=packing, share=share, start=resumed.start
    )
    progress = progress_callback(description, sum(per_epoch), scored)
    with quiet_lightning(), compiled(decoder(model).layers[frozen:], settings, steps, gradients=True):
        trainer = make_trainer(source.machine, logger, [progress, *resumed.callbacks], settings, resumed.plugins)
        trainer.fit(module, datamodule=data, ckpt_path=resumed.path)
    if not len(held_out):
        return model, np.zeros(0, dtype=np.float32)
    return model, module.validation_scores()[1].numpy()


def score_rows(
    rows: DataFrame, model: PeftModel, settings: Settings, source: ModelSource, description: str
) -> np.ndarray:
    """Logit margins of the rows under one adapter, float32 [rows]; rows with equal prompts are scored once."""
    import numpy as np

    from analyticup.model.backbone import frozen_layers
    from analyticup.model.compiling import compiled
    from analyticup.model.data import EncodedRows, scoring_loader
    from analyticup.model.module import decoder, make_module

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
    module = make_module(model, encoder.label_words(), settings.train, steps=1, frozen_layers=frozen)
    with quiet_lightning(), compiled(decoder(model).layers[frozen:], settings, len(place), gradients=False):
        trainer = make_trainer(source.machine, None, [progress_callback(description, 0, distinct)], settings)
        outputs = trainer.predict(module, loader)
    margins = np.empty(len(place), dtype=np.float32)
    for numbers, values in outputs:
        margins[numbers.numpy()] = values.numpy()
    return margins[which]


def make_trainer(
    machine: Machine,
    logger: WandbLogger | None,
    callbacks: list[Callback],
    settings: Settings,
    plugins: Sequence[CheckpointIO] = (),
) -> Trainer:
    from lightning import Trainer

    return Trainer(
        accelerator="cpu" if machine.device == "cpu" else "gpu",
        devices=1,
        max_epochs=settings.train.epochs,
        accumulate_grad_batches=settings.train.accumulate,
        gradient_clip_val=settings.train.clip_norm or None,
        # Weights keep the dtype they were loaded in; Lightning must not cast them.
        precision=None,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        # The held-out rows are scored once, after the last epoch; scoring them each time would cost half an epoch more.
        check_val_every_n_epoch=settings.train.epochs,
        log_every_n_steps=1,
        logger=logger or False,
        callbacks=callbacks,
        plugins=list(plugins),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silences Lightning's advice on data loader workers and its device lines; errors still come through."""
    loggers = [
        logging.getLogger(name)
        for name in (
            "lightning.pytorch",
            "lightning.pytorch.utilities.rank_zero",
            "lightning.fabric",
            "lightning.fabric.utilities.rank_zero",
        )
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def progress_callback(description: str, training_batches: int, scored: EncodedRows) -> Callback:
    """Shows training batches, then scored rows, through the kit's own progress display."""
    from lightning import Callback, LightningModule

    from analyticup.progress import Track, track

    class Progress(Callback):
        def __init__(self) -> None:
            self.shown: Track[Any] | None = None

        def _open(self, total: int, what: str) -> None:
            self._close()
            self.shown = track(total, f"{description}: {what}").__enter__()

        def _close(self) -> None:
            if self.shown is not None:
                self.shown.__exit__(None, None, None)
            self.shown = None

        def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
            self._open(training_batches, "training batches")
            # A resumed training has some behind it.
            self.shown.advance(trainer.fit_loop.total_batch_idx + 1)

        def on_train_batch_end(self, *arguments: Any) -> None:
            if self.shown is not None:
                self.shown.advance()

        def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
            self._open(len(scored.tokens), "rows scored")

        def on_validation_batch_end(
            self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, *rest: Any
        ) -> None:
            if self.shown is not None:
                self.shown.advance(len(batch["rows"]))

        def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
            self._close()

        on_predict_start = on_validation_start
        on_predict_batch_end = on_validation_batch_end

        def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
            self._close()

        def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
            self._close()

    return Progress()
