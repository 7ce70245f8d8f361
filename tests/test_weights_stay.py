"""The backbone is loaded once, stays where it is, and is the same after every training and scoring."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from tiny_models import fill_adapter_at_random
from torch import nn

from analyticup.model.backbone import add_adapter, bare, merge_into_copies, random_qwen3
from analyticup.model.packing import enable_packing
from analyticup.settings.schema import LoraSettings, ModelSettings, Settings, TrainSettings
from analyticup.training import source as sources
from analyticup.training.fold import score_rows, train_fold
from analyticup.training.source import Machine, ModelSource
from analyticup.training.trainer import make_trainer

SETTINGS = Settings(
    model=ModelSettings(backbone="random:qwen3", lora=LoraSettings(r=2, dropout=0.1), gradient_checkpointing=True),
    train=TrainSettings(batch_rows=8),
)
ROWS = pd.DataFrame(
    {"query": [f"shoe {number}" for number in range(16)], "target": "shoes", "label": [0, 1] * 8},
)


@pytest.fixture
def counted(monkeypatch):
    """How often weights were loaded, and how often a model was moved to the CPU as Lightning does it."""
    counts = {"loads": 0, "to cpu": 0}

    def load(*given):
        counts["loads"] += 1
        return known(*given)

    def cpu(module):
        counts["to cpu"] += 1
        return module

    known = sources.load_backbone
    monkeypatch.setattr(sources, "load_backbone", load)
    monkeypatch.setattr(nn.Module, "cpu", cpu)
    return counts


def trained(source, seed):
    model, margins = train_fold(ROWS, ROWS.head(4), SETTINGS, source, seed, "fold", None)
    scores = score_rows(ROWS, model.eval(), SETTINGS, source, "predict")
    return torch.cat([value.detach().flatten() for value in model.parameters() if value.requires_grad]), margins, scores


def test_folds_share_one_backbone_and_come_to_the_bytes_of_their_own(tmp_path, counted):
    shared = ModelSource(SETTINGS, tmp_path, Machine("cpu", 1))
    folds = [trained(shared, seed) for seed in (1, 2)]
    assert counted == {"loads": 1, "to cpu": 0}
    alone = trained(ModelSource(SETTINGS, tmp_path, Machine("cpu", 1)), 2)
    for one, other in zip(folds[1], alone, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert not torch.equal(folds[0][0], folds[1][0])


def test_another_large_model_makes_it_go(tmp_path, counted):
    machine = Machine("cpu", 1)
    source = ModelSource(SETTINGS, tmp_path, machine)
    first = source.backbone()
    assert source.backbone() is first
    machine.make_room()
    assert source.backbone() is not first and counted["loads"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_adapters_go_and_leave_every_bit_as_it_was(dtype):
    base = random_qwen3(120).to(dtype).eval()
    enable_packing(base)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    names = [name for name, _ in base.named_modules()]
    model = add_adapter(base, LoraSettings(r=4), 1)
    fill_adapter_at_random(model)
    merge_into_copies(model)
    assert not torch.equal(base.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"])
    again = bare(base)
    assert again is base and [name for name, _ in base.named_modules()] == names
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not hasattr(base, "peft_config")


def test_a_task_of_slurm_trains_alone(monkeypatch):
    for name, value in {"NTASKS": "4", "JOB_NAME": "fold", "PROCID": "2", "LOCALID": "2", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    trainer = make_trainer(Machine("cpu", 1), None, [], SETTINGS)
    assert trainer.world_size == 1 and trainer.is_global_zero
    assert isinstance(trainer._accelerator_connector.cluster_environment, LightningEnvironment)
