"""An encoder's own dropout: drawn for a batch however that is cut into passes, besides the adapters'."""

from __future__ import annotations

import pytest
import test_checkpoint as checkpoints
import torch
from closeness import assert_same_sums
from pandas import DataFrame
from test_heads import ENCODERS, changed
from transformers import AutoModelForSequenceClassification

from analyticup.engine.graph import WHOLE, Shard
from analyticup.errors import UserError
from analyticup.model.backbone import add_adapter, load_backbone
from analyticup.model.batches import EncodedRows, collate
from analyticup.model.drawing import draw_by_batch, drawn_attention
from analyticup.model.heads import CLASSES, encoder_logits
from analyticup.model.module import LabelWordModule
from analyticup.model.passes import Cutter
from analyticup.model.stand_ins import random_model
from analyticup.settings.schema import LoraSettings, ModelSettings, Settings, TrainSettings
from analyticup.training import training_settings
from analyticup.training.fold import score_rows
from analyticup.training.source import Machine, ModelSource

pytestmark = pytest.mark.arithmetic

PROMPTS = [[0, *range(5, 5 + number), 2, 2, *range(40, 42 + number % 5), 2] for number in (1, 3, 25, 8)]
PROMPTS = [*PROMPTS, *([[0, 5, 2, 2, number + 9, 2] for number in range(36)])]
LABELS = [number % 2 for number in range(len(PROMPTS))]
STEP = [[0, 1, 2, 3], list(range(4, 40))]
# The first makes a pass of as many rows as the tiny DeBERTa has relative positions; by the second some have one row.
LIMITS = (192, 40)


def settings(backbone, own=True, **lora):
    lora = {"r": 4, "dropout": 0.3, **lora}
    return ModelSettings(
        backbone=backbone, head="classifier", dtype="float32", own_dropout=own, lora=LoraSettings(**lora)
    )


def gradient(folder, model, most=1e9, step=STEP, rank=WHOLE):
    """The gradient of a step in passes of at most `most` tokens, its loss, and the random state after them."""
    trained = add_adapter(load_backbone(model, folder, torch.float32), model.lora, seed=1)
    steps = LabelWordModule(changed(trained).train(), CLASSES, TrainSettings(), 1)
    torch.manual_seed(5)
    loss = steps._gradients(Cutter(EncodedRows(PROMPTS, LABELS), 1, packing=False, most=most, rank=rank)(step))
    parts = [value.grad.flatten() for value in trained.parameters() if value.requires_grad and value.grad is not None]
    return torch.cat(parts), loss, torch.get_rng_state()


@pytest.mark.parametrize("backbone", ENCODERS)
@pytest.mark.parametrize(("own", "lora"), [(True, {}), (True, {"enabled": False}), (False, {})])
def test_a_steps_gradient_does_not_depend_on_its_passes(tmp_path, backbone, own, lora):
    model = settings(backbone, own, **lora)
    whole, loss, state = gradient(tmp_path, model)
    for most in LIMITS:
        found, other, after = gradient(tmp_path, model, most)
        assert_same_sums(found, whole)
        assert_same_sums(other, loss)
        assert torch.equal(after, state)
    parts = [gradient(tmp_path, model, 100, rank=Shard(number, 2)) for number in (0, 1)]
    assert_same_sums(torch.stack([part for part, *_ in parts]).sum(0), whole)
    assert all(torch.equal(after, state) for *_, after in parts)


@pytest.mark.parametrize("backbone", ENCODERS)
def test_in_one_pass_it_draws_what_plain_transformers_draw(tmp_path, backbone):
    model = load_backbone(settings(backbone), tmp_path, torch.float32).train()
    draw_by_batch(model, own=True)
    plain = random_model(backbone, model.config.vocab_size, AutoModelForSequenceClassification).train()
    plain.set_attn_implementation("eager")
    plain.load_state_dict(model.state_dict())
    batch, logits = collate(EncodedRows(PROMPTS, LABELS), range(4), 1), []
    for one in (model, plain, model):
        torch.manual_seed(4 if len(logits) < 2 else 5)
        with torch.no_grad():
            logits.append(encoder_logits(one, batch))
    torch.testing.assert_close(logits[0], logits[1])
    assert (logits[0] - logits[2]).abs().max() > 1e-3


def test_it_is_off_by_default_and_where_rows_are_scored(tmp_path):
    rows = DataFrame({"query": ["red shoe", "a"], "target": ["shoes", "b"], "label": [1, 0]})
    found = []
    for own in (True, False):
        source = ModelSource(Settings(model=settings(ENCODERS[0], own)), tmp_path, Machine("cpu", None))
        trained = changed(add_adapter(source.backbone(), LoraSettings(r=2), seed=1))
        found.append(torch.tensor(score_rows(rows, trained, Settings(model=source.settings), source, "test")))
    torch.testing.assert_close(*found)
    assert "own_dropout" not in training_settings(Settings(model=ModelSettings(backbone="random:qwen3")))


def test_an_interrupted_training_comes_to_the_same_bytes(tmp_path, monkeypatch):
    given = {"own_dropout": True, "backbone": ENCODERS[0], "head": "classifier", "lora.dropout": 0.0}
    own = checkpoints.settings(epochs=1).replace(**{f"model.{name}": value for name, value in given.items()})
    whole = checkpoints.Training(tmp_path / "whole", own).run(minutes=1e9)
    training = checkpoints.Training(tmp_path / "cut", own)
    training.interrupt(monkeypatch, 4)
    assert training.path.exists() and training.run() == whole
    plain = checkpoints.Training(tmp_path / "plain", own.replace(**{"model.own_dropout": False}))
    assert plain.run() != whole


def test_what_has_none_or_one_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model\.own_dropout = true: only for encoders, and random:qwen3 is none"):
        load_backbone(settings("random:qwen3"), tmp_path, torch.float32)
    states = torch.ones(1, 1, 2, 4)
    with pytest.raises(UserError, match=r"Identity drops attention in a way of its own; set it to false"):
        drawn_attention(torch.nn.Identity(), states, states, states, None)
