"""Lightning's trainer as every training and scoring uses it: quiet, and with the kit's own progress display."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy

from analyticup.engine.progress import Track, track
from analyticup.model.backbone import numbered
from analyticup.model.batches import EncodedRows
from analyticup.settings.schema import Settings
from analyticup.training.source import Machine

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run


class StayingStrategy(SingleDeviceStrategy):
    """Leaves the model where it is: Lightning would move it to the CPU after each training and each scoring."""

    def teardown(self) -> None:
        module, self._lightning_module, self.optimizers = self._lightning_module, None, []
        super().teardown()
        self._lightning_module = module


def make_trainer(
    machine: Machine,
    tracked: Run | None,
    callbacks: list[Callback],
    settings: Settings,
    plugins: Sequence[CheckpointIO] = (),
) -> Trainer:
    return Trainer(
        accelerator="cpu" if machine.device == "cpu" else "gpu",
        strategy=StayingStrategy(numbered(machine.device)),
        devices=1,
        max_epochs=settings.train.epochs,
        # Weights keep the dtype they were loaded in; Lightning must not cast them.
        precision=None,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        # The held-out rows are scored once, after the last epoch; scoring them each time would cost half an epoch more.
        check_val_every_n_epoch=settings.train.epochs,
        log_every_n_steps=1,
        logger=False if tracked is None else WandbLogger(experiment=tracked, log_model=False),
        callbacks=callbacks,
        # Under srun Lightning would take this process for one of several.
        plugins=[*plugins, LightningEnvironment()],
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


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C within Lightning stays a KeyboardInterrupt: it would end the process with code 1, deaf to further ones."""
    heard = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, heard)
        raise KeyboardInterrupt from None


class Progress(Callback):
    """Shows optimiser steps, then scored rows, through the kit's own progress display."""

    def __init__(self, description: str, steps: int, scored: EncodedRows) -> None:
        self.description = description
        self.steps = steps
        self.scored = scored
        self.shown: Track[Any] | None = None

    def _open(self, total: int, what: str) -> None:
        self._close()
        self.shown = track(total, f"{self.description}: {what}").__enter__()

    def _close(self) -> None:
        if self.shown is not None:
            self.shown.__exit__(None, None, None)
        self.shown = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._open(self.steps, "training steps")
        # A resumed training has some behind it.
        self.shown.advance(trainer.fit_loop.total_batch_idx + 1)

    def on_train_batch_end(self, *arguments: Any) -> None:
        if self.shown is not None:
            self.shown.advance()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._open(len(self.scored.tokens), "rows scored")

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, *rest: Any
    ) -> None:
        if self.shown is not None:
            self.shown.advance(len(batch))

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._close()

    on_predict_start = on_validation_start
    on_predict_batch_end = on_validation_batch_end

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        self._close()
