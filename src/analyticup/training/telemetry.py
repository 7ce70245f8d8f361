"""What W&B shows of a training while it runs: pace, gradients, memory, and figures on a sample of held-out rows.

Nothing here changes what is trained: no random number is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from analyticup.engine.memory import peak
from analyticup.metrics import known_figures
from analyticup.model.module import LabelWordModule
from analyticup.model.passes import Passes
from analyticup.seeds import seeded_key
from analyticup.settings.schema import Settings

# How often an epoch's sample is scored.
TIMES = 4
# What scoring may cost of a training, and what a row costs to train on, in rows scored (both assumed).
SHARE, COST_OF_TRAINING = 0.02, 3
FEWEST, MOST = 32, 256


def sample_size(settings: Settings, trained_on: int, held_out: int) -> int:
    """How many held-out rows are scored at a time; 0 = none."""
    given = settings.tracking.sample_rows
    affordable = int(SHARE * COST_OF_TRAINING * trained_on / TIMES)
    size = min(affordable, MOST) if given is None else given
    return min(size, held_out) if given is not None or size >= FEWEST else 0


def drawn(row_ids: Sequence[str], size: int, seed: int) -> list[int]:
    """Places of `size` rows, drawn by seed and row id."""
    return sorted(range(len(row_ids)), key=lambda at: seeded_key(seed, "sample", row_ids[at]))[:size]


class Telemetry(Callback):
    """Logs learning rate, norm of the gradient before it is clipped, tokens per second and memory at each step; and F1,
    ROC-AUC and average precision on `sample`, a few batches of held-out rows, TIMES an epoch. `lengths` [rows] are the
    tokens of the training rows."""

    def __init__(self, lengths: np.ndarray, sample: DataLoader | None) -> None:
        self.lengths, self.sample = lengths, sample
        self.since = time.monotonic()

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.since = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Passes, index: int
    ) -> None:
        assert isinstance(module, LabelWordModule) and trainer.logger is not None
        # The norm waits for a GPU.
        norm, tokens = float(module.norm), sum(int(self.lengths[rows].sum()) for rows in batch.step)
        figures = {
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/gradient_norm": norm,
            "train/tokens_per_second": tokens / max(time.monotonic() - self.since, 1e-9),
            "train/memory_gb": _memory() / 1e9,
        }
        if self.sample is not None and _is_due(index + 1, trainer.num_training_batches):
            figures |= {f"val/sample/{name}": value for name, value in self._scored(trainer, module).items()}
        trainer.logger.log_metrics({"epoch": trainer.current_epoch, **figures}, step=trainer.global_step - 1)

    def _scored(self, trainer: Trainer, module: LabelWordModule) -> dict[str, float]:
        assert self.sample is not None
        module.model.eval()
        try:
            # Going through the loader itself would draw a random number.
            batches = map(self.sample.collate_fn, self.sample.dataset)
            with torch.no_grad():
                moved = map(trainer.strategy.batch_to_device, batches)
                parts = [module.scores(passes, "train.max_batch_tokens") for passes in moved]
        finally:
            module.model.train()
        return known_figures(*(torch.cat([part[name] for part in parts]).numpy() for name in ("labels", "margins")))


def _is_due(batches: int, of: int) -> bool:
    return any(batches == round(of * turn / TIMES) for turn in range(1, TIMES + 1))


def _memory() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak()
