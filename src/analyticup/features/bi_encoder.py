"""A bi-encoder: the embedder's own model, trained on labelled pairs until its vectors tell what fits.

The head reads |u - v| as Sentence-BERT does for labelled pairs (Reimers & Gurevych 2019), the products u * v of Conneau
et al. 2017, and the cosine. It starts as the cosine alone. Its settings are assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import torch
from lightning import LightningModule, seed_everything
from pandas import DataFrame, Series
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize
from torch.utils.data import DataLoader

from analyticup.augmentation.e5 import E5Encoder, one_thread
from analyticup.augmentation.embedders import PASSAGE, QUERY
from analyticup.engine.cache import batches
from analyticup.engine.progress import track
from analyticup.errors import UserError
from analyticup.model.batches import BATCHES_PER_BLOCK, EncodedRows
from analyticup.settings.schema import BiEncoderSettings, Settings
from analyticup.training.source import Machine
from analyticup.training.trainer import Progress, interruptible, make_trainer, quiet_lightning

# The cosines of e5 lie around .8: moved and stretched like this they begin as margins of a useful size.
_MIDDLE, _STRETCH = 0.8, 20.0
# Tokens of a text that training reads; real queries have 10, titles 30 (assumed).
_LONGEST = 96
# What a row's two texts are to the embedder.
SIDES = {"query": QUERY, "target": PASSAGE}
# Rows of a step that a CPU takes at once: what all of them leave for the backward pass is a gigabyte, and two of these
# trainings run side by side.
_ROWS_AT_ONCE = 8
# Rows or texts that are scored together, to bound the memory.
_BLOCK = 4096
# The head is new, the encoder is not (assumed).
_HEAD_RATE = 10
# Of the matrices, and share of the steps in which the rate rises before it falls to 0 (assumed).
_WEIGHT_DECAY, _WARMUP = 0.01, 0.1


@dataclass(frozen=True)
class Pairs:
    """Token ids of queries and targets, and labels 0 or 1, of the same rows."""

    queries: Sequence[Sequence[int]]
    targets: Sequence[Sequence[int]]
    labels: np.ndarray

    @classmethod
    def of(cls, rows: DataFrame, encoder: E5Encoder) -> Self:
        """From labelled rows."""
        read = [
            [ids[:_LONGEST] for ids in encoder.tokens([f"{side}: {text}" for text in rows[name]])]
            for name, side in SIDES.items()
        ]
        return cls(*read, rows["label"].to_numpy(dtype=int))

    def batch(self, places: Sequence[int]) -> tuple[list[Sequence[int]], list[Sequence[int]], Tensor]:
        labels = torch.tensor(self.labels[list(places)], dtype=torch.float32)
        return [self.queries[at] for at in places], [self.targets[at] for at in places], labels

    def drawn(self, size: int, seed: np.random.Generator) -> Iterator[list[int]]:
        """The rows of one epoch in batches of `size`, rows of like length together."""
        lengths = np.array([len(query) + len(target) for query, target in zip(self.queries, self.targets, strict=True)])
        found = []
        for block in batches(seed.permutation(len(lengths)), size * BATCHES_PER_BLOCK):
            found += batches(block[np.argsort(lengths[block], kind="stable")].tolist(), size)
        return (found[at] for at in seed.permutation(len(found)))


class BiEncoder(LightningModule):
    """The embedder's layers, and a head on the vectors of query and target; the embeddings of words and places stay."""

    def __init__(self, encoder: E5Encoder, settings: BiEncoderSettings, steps: int, description: str) -> None:
        super().__init__()
        self.settings, self.steps, self.embedder, self.description = settings, steps, encoder, description
        self.model = encoder.trainable()
        # Lightning's own loop takes all rows of a step at once.
        self.automatic_optimization = False
        self.head = nn.Linear(2 * self.model.config.hidden_size + 1, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        nn.init.ones_(self.head.weight[:, -1])

    def margins(self, queries: Tensor, targets: Tensor) -> Tensor:
        """Logit margins [rows] of vectors [rows, width] of length 1."""
        width = queries.shape[1]
        products = queries * targets
        cosine = (products.sum(dim=1, keepdim=True) - _MIDDLE) * _STRETCH
        # Each part about as large as the others: values of a vector of length 1 are small.
        parts = [products * width - 1, (queries - targets).abs() * width**0.5, cosine]
        return self.head(torch.cat(parts, dim=1))[:, 0]

    def training_step(self, batch: tuple[list[Sequence[int]], list[Sequence[int]], Tensor]) -> None:
        """One optimiser step."""
        queries, targets, labels = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        for part in batches(range(len(labels)), _ROWS_AT_ONCE if self.device.type == "cpu" else len(labels)):
            rows = slice(part.start, part.stop)
            vectors = [normalize(self.embedder.means(self.model, side[rows])) for side in (queries, targets)]
            margins = self.margins(*vectors)
            losses = binary_cross_entropy_with_logits(margins, labels[rows].to(margins.device), reduction="sum")
            if not torch.isfinite(losses):
                place = f"{self.description}: step {self.global_step + 1} of {self.steps}"
                raise UserError(f"{place}: the loss is {float(losses)}; lower bi_encoder.lr ({self.settings.lr:g})")
            self.manual_backward(losses / len(labels))
        optimizer.step()
        self.lr_schedulers().step()

    def configure_optimizers(self) -> dict[str, object]:
        rate = self.settings.lr
        named = [one for one in self.model.parameters() if one.requires_grad]
        groups = [
            {"params": [one for one in named if one.ndim > 1], "weight_decay": _WEIGHT_DECAY},
            {"params": [one for one in named if one.ndim < 2], "weight_decay": 0.0},
            {"params": list(self.head.parameters()), "weight_decay": 0.0, "lr": _HEAD_RATE * rate},
        ]
        optimizer = torch.optim.AdamW(groups, lr=rate)
        rising = max(1.0, _WARMUP * self.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / rising) * max(0.0, 1 - step / self.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_bi_encoder(
    rows: DataFrame, settings: Settings, machine: Machine, seed: int, description: str
) -> TrainedBiEncoder:
    """Trained on labelled `rows`, on a CPU by one thread, so that their number changes no bit.

    Raises UserError where the loss is not finite.
    """
    own, draw = settings.bi_encoder, np.random.default_rng(seed)
    embedder = E5Encoder(machine)
    pairs = Pairs.of(rows, embedder)
    steps = [batch for _ in range(own.epochs) for batch in pairs.drawn(own.batch_rows, draw)]
    seed_everything(seed, verbose=False)
    module = BiEncoder(embedder, own, len(steps), description)
    loader = DataLoader(steps, batch_size=None, collate_fn=pairs.batch)
    shown = Progress(description, len(steps), EncodedRows([], []))
    with one_thread(), quiet_lightning(), interruptible():
        make_trainer(machine, None, [shown], settings.replace(**{"train.epochs": 1})).fit(module, loader)
    return TrainedBiEncoder(module)


class TrainedBiEncoder:
    """Scores rows."""

    def __init__(self, module: BiEncoder) -> None:
        self._module, self._embedder = module.eval(), module.embedder.with_model(module.model)

    @torch.inference_mode()
    def margins(self, rows: DataFrame, description: str) -> np.ndarray:
        """Logit margins, float32 [rows]; each distinct text is embedded once."""
        sides = [self._vectors(rows[name], side, description) for name, side in SIDES.items()]
        found = np.empty(len(rows), dtype=np.float32)
        for block in batches(np.arange(len(rows)), _BLOCK):
            vectors = [torch.from_numpy(table[place[block]]).to(self._module.device) for table, place in sides]
            found[block] = self._module.margins(*vectors).cpu().numpy()
        return found

    def _vectors(self, texts: Series, side: str, description: str) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the distinct texts [texts, width], and the place of each row's among them [rows]."""
        place, distinct = pd.factorize(texts, sort=True)
        with track(len(distinct), f"{description}: embed ({side})") as progress:
            vectors = [np.empty((0, self._module.model.config.hidden_size), dtype=np.float32)]
            for block in batches([f"{side}: {text}" for text in distinct], _BLOCK):
                vectors.append(self._embedder.encode(block))
                progress.advance(len(block))
        return np.concatenate(vectors), place
