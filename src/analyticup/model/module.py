"""The LightningModule: label-word training and scoring around a frozen backbone with a LoRA adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from peft import PeftModel
from torch import Tensor, nn

from analyticup.engine.graph import WHOLE, Shard
from analyticup.errors import UserError
from analyticup.model.drawing import draw_by_batch, random_state, set_random_state
from analyticup.model.frozen import only_layers
from analyticup.model.fused import reads_some
from analyticup.model.heads import encoder_logits, head_names, is_encoder
from analyticup.model.objective import NEEDS_REFERENCE, loss_function, margins
from analyticup.model.packing import filled_up
from analyticup.model.passes import Passes, fitting
from analyticup.model.prompt import LabelWords
from analyticup.model.ranks import added_up, gathered
from analyticup.settings.schema import TrainSettings

# Losses and norms of a training on a GPU that are looked at together.
UNSEEN = 32


def label_hidden(model: PeftModel, batch: Mapping[str, Any], frozen_layers: int = 0) -> Tensor:
    """Hidden state at the label position, [rows, width]; the output matrix is never applied elsewhere. Of a classifier
    its logits, [rows, 2].

    `batch` as from `collate`: ids [rows, tokens] right-padded, or the states [rows, tokens, width] that come out of the
    first `frozen_layers` layers; last [rows] is the index of the last prompt token. Or as from `collate_packed`.
    """
    base = model.get_base_model()
    matrix = base.get_input_embeddings().weight
    # The adapter's weights, gradients and optimiser state are float32; its products take the backbone's dtype.
    casting = torch.autocast(matrix.device.type, dtype=matrix.dtype, enabled=matrix.dtype == torch.bfloat16)
    if is_encoder(base.config):
        with casting:
            return encoder_logits(base, batch)
    run = decoder(model)
    with casting, only_layers(run, frozen_layers, len(run.layers)):
        inputs = {"inputs_embeds": batch["states"]} if frozen_layers else {"input_ids": batch["ids"]}
        some = "packed" in batch and reads_some(model)
        # Products of few tokens would round otherwise than those of many.
        read = {"read": filled_up(batch["last"])} if some else {}
        hidden = run(**inputs, **batch.get("packed", {}), **read, use_cache=False).last_hidden_state
    if "packed" in batch:
        found = hidden[0, : len(batch["last"])] if some else hidden[0, batch["last"]]
    else:
        found = hidden[torch.arange(len(hidden), device=hidden.device), batch["last"]]
    return base.score(found.float()) if head_names(base) else found


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


def recompute(model: PeftModel, wanted: bool) -> None:
    """Whether the layers are run again in the backward pass, in place of keeping what they gave."""
    base = model.get_base_model()
    if wanted and not base.is_gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    elif not wanted and base.is_gradient_checkpointing:
        base.gradient_checkpointing_disable()


def output_matrix(model: PeftModel) -> Tensor:
    """The output matrix [vocabulary, width]; of a classifier, whose hidden state is its logits, the identity [2, 2]."""
    base = model.get_base_model()
    if head_names(base):
        return torch.eye(2, device=base.device)
    return base.get_output_embeddings().weight


def learning_rate_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then constant, linear or cosine to zero."""
    warm = max(1, round(steps * warmup))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]


class LabelWordModule(LightningModule):
    """Training and scoring of `model` by its label words; `steps` is the number of optimiser steps of the whole
    training, `description` names it where memory runs out.

    With `frozen_layers` the batches bring the states that come out of that many layers. A loss, gradient or score that
    is not finite raises UserError at once; `description` names the training there. One `rank` of several trains and
    scores its part of the rows, together with the others. `scoring` names the setting that sizes the batches to score.
    """

    def __init__(
        self,
        model: PeftModel,
        words: LabelWords,
        settings: TrainSettings,
        steps: int,
        frozen_layers: int = 0,
        description: str = "training",
        rank: Shard = WHOLE,
        scoring: str = "predict.max_batch_tokens",
    ) -> None:
        super().__init__()
        # A step that runs out of memory has to be taken back and tried again, which Lightning's own loop cannot.
        self.automatic_optimization = False
        self.rank, self.scoring = rank, scoring
        self.drawing = draw_by_batch(model, own=is_encoder(model.get_base_model().config))
        self.recomputes = model.get_base_model().is_gradient_checkpointing
        self.unseen: list[tuple[int, str, Tensor]] = []
        # Of the last step, before it was clipped.
        self.norm = torch.zeros(())
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

    def loss_of(self, batch: dict[str, Any]) -> Tensor:
        """The mean loss of what one pass is given."""
        reference = self._reference(batch)
        given = {"smoothing": batch["doubts"]} if "doubts" in batch else {}
        hidden, matrix = self._hidden(batch), output_matrix(self.model)
        return self.loss(hidden, matrix, self.words, batch["labels"], reference, **given)

    def training_step(self, passes: Passes, index: int) -> None:
        """One optimiser step."""
        loss = fitting(self._gradients, passes, self._relieved)
        if self.rank.of > 1:
            loss = added_up(loss, self._trained)
        optimiser = self.optimizers()
        # Without a limit it only measures.
        limit = self.settings.clip_norm or math.inf
        self.norm = torch.nn.utils.clip_grad_norm_(self._trained, limit)
        self._watch(self.norm, "norm of the gradient")
        optimiser.step()
        self.lr_schedulers().step()
        self.log("train/loss", loss, batch_size=len(passes))

    def _relieved(self, passes: Passes) -> Passes | None:
        """First each layer is run again in the backward pass, which costs least; then passes are smaller."""
        limit = passes.cutter.limit
        if not self.recomputes and passes.largest <= limit.kept:
            limit.keep_less(passes.largest, self.description)
            return passes
        return passes.smaller(self.description, "train.max_batch_tokens")

    def _gradients(self, passes: Passes) -> Tensor:
        """Sets the gradients of the step's loss, the mean over its batches; returns it."""
        for value in self._trained:
            value.grad = None
        losses, state = [], None
        for part in passes.parts:
            if part.place is not None:
                # Every pass of a batch draws from the same state; where the first of them stands, a batch begins.
                state = random_state() if state is None or part.first else state
                set_random_state(state)
            self.drawing.place = part.place
            recompute(self.model, self.recomputes or part.tokens > passes.cutter.limit.kept)
            loss = self.loss_of(part.given) * part.weight / part.batches
            self._watch(loss.detach(), "loss")
            loss.backward()
            losses.append(loss.detach())
        self.drawing.place = None
        return torch.stack(losses).sum()

    def _watch(self, value: Tensor, what: str) -> None:
        """Raises UserError where a loss or norm is not finite: at once, but on a GPU, which would have to be waited
        for, after some steps, and before anything is kept."""
        self.unseen.append((self.trainer.global_step if self._trainer is not None else 0, what, value))
        if value.device.type != "cuda" or len(self.unseen) >= UNSEEN:
            self._look()

    def _look(self) -> None:
        unseen, self.unseen = self.unseen, []
        if not unseen or bool(torch.isfinite(torch.stack([value for _, _, value in unseen])).all()):
            return
        done, what, value = next(one for one in unseen if not torch.isfinite(one[2]))
        if done:
            clipping = f"{self.settings.clip_norm:g}" if self.settings.clip_norm else "off"
            advice = (
                f"lower train.lr ({self.settings.lr:g}) or train.clip_norm ({clipping}), or set model.dtype=float32"
            )
        else:
            advice = "no step was taken yet, so it is the model's: set model.dtype=float32, or use another model"
        raise UserError(f"{self.description}: step {done + 1} of {self.steps}: the {what} is {float(value)}; {advice}")

    def on_train_end(self) -> None:
        # Without held-out rows no validation starts.
        self._look()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._look()

    def on_validation_epoch_start(self) -> None:
        self._look()
        self.scored = {"rows": [], "margins": [], "labels": []}

    def validation_step(self, passes: Passes, index: int) -> None:
        for name, value in self.scores(passes, "train.max_batch_tokens").items():
            self.scored[name].append(value)

    def scores(self, passes: Passes, setting: str) -> dict[str, Tensor]:
        """Row numbers, margins and labels of a batch's rows."""

        def score(passes: Passes) -> dict[str, Tensor]:
            given = [part.given for part in passes.parts]
            scores = [margins(self._hidden(batch), output_matrix(self.model), self.words) for batch in given]
            found = {name: [batch[name] for batch in given] for name in ("rows", "labels")}
            return {name: torch.cat(values).cpu() for name, values in {**found, "margins": scores}.items()}

        found = fitting(score, passes, lambda passes: passes.smaller(self.description, setting))
        broken = int((~torch.isfinite(found["margins"])).sum())
        if broken:
            raise UserError(
                f"{self.description}: {broken} of {len(passes)} scores of a batch are not finite; train again with a "
                f"lower train.lr ({self.settings.lr:g}), or set model.dtype=float32"
            )
        return found

    def on_validation_epoch_end(self) -> None:
        if self.rank.of > 1:
            self.scored = gathered(self.scored)
        _, values, labels = self.validation_scores()
        known = labels >= 0
        if not known.any():
            return
        # Only here: `bench --only gpu` runs where there may be no scikit-learn.
        from analyticup.metrics import known_figures

        for name, value in known_figures(labels[known].numpy(), values[known].numpy()).items():
            self.log(f"val/{name}", value)

    def validation_scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row numbers, logit margins and labels of the last validation, in row order."""
        rows = torch.cat(self.scored["rows"])
        # A rank without any rows has scored some of the first one's.
        order = torch.from_numpy(np.unique(rows.numpy(), return_index=True)[1])
        return (
            rows[order],
            torch.cat(self.scored["margins"])[order],
            torch.cat(self.scored["labels"])[order],
        )

    def predict_step(self, passes: Passes, index: int) -> tuple[Tensor, Tensor]:
        found = self.scores(passes, self.scoring)
        return found["rows"], found["margins"]

    @cached_property
    def _trained(self) -> list[nn.Parameter]:
        return [value for value in self.model.parameters() if value.requires_grad]

    def configure_optimizers(self) -> dict[str, Any]:
        trained = self._trained
        # On the CPU the fused one gains nothing and rounds otherwise.
        fused = trained[0].device.type == "cuda"
        optimiser = torch.optim.AdamW(
            trained, lr=self.settings.lr, weight_decay=self.settings.weight_decay, fused=fused or None
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: learning_rate_factor(step, self.steps, self.settings.warmup, self.settings.schedule)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
