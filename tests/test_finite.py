"""Numbers that are not finite stop a training at once, with step, value and advice; scores that collapsed are told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pandas import DataFrame

from analyticup.errors import UserError
from analyticup.model import module
from analyticup.model.module import LabelWordModule
from analyticup.model.prompt import LabelWords
from analyticup.settings.loading import settings_from_dict
from analyticup.training.fold import score_rows, train_fold
from analyticup.training.source import Machine, ModelSource
from analyticup.training.stage import _alike, _unmoved

ROWS = DataFrame(
    {
        "query": [f"bag {number}" for number in range(12)],
        "target": [f"red bag {number % 5}" for number in range(12)],
        "label": [number % 2 for number in range(12)],
    }
)


def settings(*more):
    tiny = ["model.backbone=random:qwen3", "model.lora.r=2", "train.batch_rows=4", "train.warmup=0"]
    return settings_from_dict({}, "test", [*tiny, *more])


def trained(tmp_path, *more):
    own = settings(*more)
    source = ModelSource(own, tmp_path, Machine("cpu", 1))
    return source, train_fold(ROWS[:8], ROWS[8:], own, source, 0, "train QC fold0", None)


RATES = {
    "rate explodes": ("train.lr=1e30", "train.clip_norm=0"),
    "rate explodes, clipped": ("train.lr=1e30",),
    "with the upper layer only": ("train.lr=1e30", "train.clip_norm=0", "model.lora.layers=1"),
    "without packing": ("train.lr=1e30", "train.clip_norm=0", "model.packing=false"),
    "two label words": ("train.lr=1e30", "train.clip_norm=0", "train.objective=two_way"),
    "DPO": ("train.lr=1e30", "train.clip_norm=0", "train.objective=dpo"),
    "smoothed": ("train.lr=1e30", "train.clip_norm=0", "train.label_smoothing=0.1"),
    "gathered over batches": ("train.lr=1e30", "train.clip_norm=0", "train.accumulate=2", "train.epochs=3"),
    "bfloat16": ("train.lr=1e30", "train.clip_norm=0", "model.dtype=bfloat16"),
}


@pytest.mark.parametrize("more", RATES.values(), ids=RATES)
def test_a_rate_that_explodes_stops_at_the_next_step(tmp_path, more):
    with pytest.raises(UserError) as stopped:
        trained(tmp_path, *more)
    said = str(stopped.value)
    assert said.startswith("train QC fold0: step 2 of ") and "the loss is " in said
    assert "lower train.lr (1e+3" in said and "train.clip_norm (" in said and "model.dtype=float32" in said


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("step", "advice"), [(0, "it is the model's"), (2, "lower train.lr")])
def test_the_first_loss_that_is_not_finite_is_named(tmp_path, monkeypatch, value, step, advice):
    known, calls = module.margins, []

    def broken(*arguments):
        calls.append(1)
        found = known(*arguments)
        return found + value if len(calls) == step + 1 else found

    # The two-way loss is made of the margins.
    monkeypatch.setattr(module, "margins", broken)
    monkeypatch.setitem(module.loss_function.__globals__, "margins", broken)
    with pytest.raises(UserError) as stopped:
        trained(tmp_path, "train.objective=two_way", "train.epochs=2")
    said = str(stopped.value)
    assert f"step {step + 1} of " in said and advice in said


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path, monkeypatch):
    known = module.LabelWordModule._gradients

    def broken(self, passes):
        loss = known(self, passes)
        if self.trainer.global_step == 1:
            next(value for value in self.model.parameters() if value.grad is not None).grad[0, 0] = math.inf
        return loss

    monkeypatch.setattr(module.LabelWordModule, "_gradients", broken)
    with pytest.raises(UserError, match=r"step 2 of .*: the norm of the gradient is inf; lower train\.lr"):
        trained(tmp_path)


def test_an_adapter_that_breaks_at_the_last_step_does_not_pass(tmp_path):
    with pytest.raises(UserError, match="of 4 scores of a batch are not finite"):
        trained(tmp_path, "train.lr=1e30", "train.clip_norm=0", "train.batch_rows=8", "train.epochs=1")


def test_without_held_out_rows_the_last_losses_are_looked_at_too(tmp_path):
    _, (model, _) = trained(tmp_path, "train.epochs=1")
    steps = LabelWordModule(model, LabelWords(negative=3, positive=4), settings().train, 8)
    # A GPU is not waited for after each step.
    steps.unseen.append((7, "loss", torch.tensor(math.nan)))
    with pytest.raises(UserError, match="step 8 of 8: the loss is nan"):
        steps.on_train_end()


def test_scores_under_a_broken_adapter_are_refused(tmp_path):
    source, (model, _) = trained(tmp_path, "train.epochs=1")
    with torch.no_grad():
        next(value for name, value in model.named_parameters() if "lora_B" in name).fill_(math.nan)
    with pytest.raises(UserError, match=r"predict QC fold0 dev: .* are not finite"):
        score_rows(ROWS, model, settings(), source, "predict QC fold0 dev")


def test_a_training_that_led_nowhere_is_told(tmp_path):
    _, (model, margins) = trained(tmp_path, "train.epochs=1")
    assert _unmoved(model) == _alike(margins) == {}
    assert _alike(np.full(4, 0.25)) == {"collapsed": "all held-out rows have the same score"}
    assert _alike(np.zeros(0)) == _alike(np.ones(1)) == {}
    _, (untouched, margins) = trained(tmp_path, "train.epochs=1", "train.lr=0")
    assert _unmoved(untouched) == {"collapsed": "the adapter is as it was before training"}
