"""The LightningModule: label-word training and scoring around a frozen backbone with a LoRA adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule
from peft import PeftModel
from torch import Tensor

from analyticup.errors import UserError
from analyticup.metrics import binary_metrics
from analyticup.model.frozen import only_layers
from analyticup.model.objective import NEEDS_REFERENCE, loss_function, margins
from analyticup.model.prompt import LabelWords
from analyticup.settings.schema import TrainSettings


def label_hidden(model: PeftModel, batch: Mapping[str, Any], frozen_layers: int = 0) -> Tensor:
    """Hidden state at the label position, [rows, width]; the output matrix is never applied elsewhere.

    `batch` as from `collate`: ids [rows, tokens] right-padded, or the states [rows, tokens, width] that come out of the
    first `frozen_layers` layers; last [rows] is the index of the last prompt token. Or as from `collate_packed`.
    """
    matrix, run = output_matrix(model), decoder(model)
    # The adapter's weights, gradients and optimiser state are float32; its products take the backbone's dtype.
    casting = torch.autocast(matrix.device.type, dtype=matrix.dtype, enabled=matrix.dtype == torch.bfloat16)
    with casting, only_layers(run, frozen_layers, len(run.layers)):
        inputs = {"inputs_embeds": batch["states"]} if frozen_layers else {"input_ids": batch["ids"]}
        hidden = run(**inputs, **batch.get("packed", {}), use_cache=False).last_hidden_state
    if "packed" in batch:
        return hidden[0, batch["last"]]
    return hidden[torch.arange(len(hidden), device=hidden.device), batch["last"]]


def reference_margins(model: PeftModel, batch: Mapping[str, Any], words: LabelWords, frozen_layers: int = 0) -> Tensor:
    """Logit margins of the backbone without its adapters, float32 [rows]: no gradient, no dropout, nothing kept.

    Arguments as for `label_hidden`. Call it before the pass that is trained: PEFT switches the gradients of the
    adapters off and on again.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            return margins(label_hidden(model, batch, frozen_layers), output_matrix(model), words)
    finally:
        model.train(training)


def decoder(model: PeftModel) -> Any:
    """The transformer under the output matrix, adapters included."""
    return model.get_base_model().get_decoder()


def output_matrix(model: PeftModel) -> Tensor:
    """The output matrix [vocabulary, width]."""
    return model.get_base_model().get_output_embeddings().weight


def learning_rate_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then constant, linear or cosine to zero."""
    warm = max(1, round(steps * warmup))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]


class LabelWordModule(LightningModule):
    """Training and scoring of `model` by its label words; `steps` is the number of optimiser steps of the whole
    training.

    With `frozen_layers` the batches bring the states that come out of that many layers. A loss, gradient or score that
    is not finite raises UserError at once; `description` names the training there.
    """

    def __init__(
        self,
        model: PeftModel,
        words: LabelWords,
        settings: TrainSettings,
        steps: int,
        frozen_layers: int = 0,
        description: str = "training",
    ) -> None:
        super().__init__()
        self.model = model
        self.words = words
        self.settings = settings
        self.steps = steps
        self.frozen_layers = frozen_layers
        self.description = description
        self.loss = loss_function(settings)
        self.scored: dict[str, list[Tensor]] = {}

    def _hidden(self, batch: dict[str, Any]) -> Tensor:
        return label_hidden(self.model, batch, self.frozen_layers)

    def _reference(self, batch: dict[str, Any]) -> Tensor | None:
        if self.settings.objective not in NEEDS_REFERENCE:
            return None
        return reference_margins(self.model, batch, self.words, self.frozen_layers)

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        reference = self._reference(batch)
        loss = self.loss(self._hidden(batch), output_matrix(self.model), self.words, batch["labels"], reference)
        self._refuse_unless_finite(loss, "loss")
        self.log("train/loss", loss, batch_size=len(batch["labels"]))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [value.grad for value in self.model.parameters() if value.grad is not None]
        # A norm that overflows would end training at the next step anyway.
        self._refuse_unless_finite(torch.stack(torch._foreach_norm(gradients)).sum(), "norm of the gradient")

    def _refuse_unless_finite(self, value: Tensor, what: str) -> None:
        if torch.isfinite(value):
            return
        done = self.trainer.global_step if self._trainer is not None else 0
        if done:
            clipping = f"{self.settings.clip_norm:g}" if self.settings.clip_norm else "off"
            advice = (
                f"lower train.lr ({self.settings.lr:g}) or train.clip_norm ({clipping}), or set model.dtype=float32"
            )
        else:
            advice = "no step was taken yet, so it is the model's: set model.dtype=float32, or use another model"
        raise UserError(f"{self.description}: step {done + 1} of {self.steps}: the {what} is {float(value)}; {advice}")

    def on_validation_epoch_start(self) -> None:
        self.scored = {"rows": [], "margins": [], "labels": []}

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        scores = self._margins(batch)
        for name, value in (("rows", batch["rows"]), ("margins", scores), ("labels", batch["labels"])):
            self.scored[name].append(value.cpu())

    def on_validation_epoch_end(self) -> None:
        _, values, labels = self.validation_scores()
        known = labels >= 0
        if not known.any():
            return
        scores = 1 / (1 + torch.exp(-values[known].double()))
        figures = binary_metrics(labels[known].numpy(), (scores >= 0.5).long().numpy(), scores.numpy())
        for name in ("f1", "auc"):
            if figures[name] is not None:
                self.log(f"val/{name}", float(figures[name]))

    def validation_scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row numbers, logit margins and labels of the last validation, in row order."""
        rows = torch.cat(self.scored["rows"])
        order = torch.argsort(rows)
        return (
            rows[order],
            torch.cat(self.scored["margins"])[order],
            torch.cat(self.scored["labels"])[order],
        )

    def predict_step(self, batch: dict[str, Any], index: int) -> tuple[Tensor, Tensor]:
        return batch["rows"].cpu(), self._margins(batch).cpu()

    def _margins(self, batch: dict[str, Any]) -> Tensor:
        found = margins(self._hidden(batch), output_matrix(self.model), self.words)
        broken = int((~torch.isfinite(found)).sum())
        if broken:
            raise UserError(
                f"{self.description}: {broken} of {len(found)} scores of a batch are not finite; train again with a "
                f"lower train.lr ({self.settings.lr:g}), or set model.dtype=float32"
            )
        return found

    def configure_optimizers(self) -> dict[str, Any]:
        trained = [value for value in self.model.parameters() if value.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=self.settings.lr, weight_decay=self.settings.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: learning_rate_factor(step, self.steps, self.settings.warmup, self.settings.schedule)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
