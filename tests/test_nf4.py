"""Weights of 4 bits: what is refused, and, where bitsandbytes is, that training and scoring run on them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_models import fill_adapter_at_random, states_and_gradient
from transformers import Qwen3Config, Qwen3ForCausalLM

from analyticup import training
from analyticup.errors import UserError
from analyticup.model.backbone import (
    add_adapter,
    bare,
    load_backbone,
    merge_into_copies,
    random_tokenizer,
)
from analyticup.model.batches import EncodedRows
from analyticup.model.packing import collate_packed, enable_packing
from analyticup.model.prompt import LabelWords
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import LoraSettings, ModelSettings, Settings, run_only
from analyticup.training.fold import score_rows, train_fold
from analyticup.training.source import Machine, ModelSource

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
HERE = find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not HERE, reason="needs bitsandbytes")


def test_only_files_are_quantised(tmp_path):
    with pytest.raises(UserError, match=r"model\.quantisation = nf4: only for a local folder or a hub id"):
        load_backbone(ModelSettings(backbone="random:qwen3", quantisation="nf4"), tmp_path, torch.float32)


@pytest.mark.skipif(HERE, reason="bitsandbytes is installed")
def test_without_bitsandbytes_one_line_says_so(saved, tmp_path):
    with pytest.raises(UserError, match="bitsandbytes is not installed; run: pip install bitsandbytes"):
        load_backbone(ModelSettings(backbone=str(saved), quantisation="nf4"), tmp_path, torch.bfloat16)


def test_plain_weights_keep_the_identity_that_they_had(monkeypatch):
    monkeypatch.setattr(training, "identity", lambda model: "weights")
    plain, small = (
        training.training_settings(Settings(model=ModelSettings(quantisation=how))) for how in ("none", "nf4")
    )
    assert "quantisation" not in plain and small == {**plain, "quantisation": "nf4"}


@pytest.mark.parametrize("name", ["24gb", "48gb", "80gb"])
def test_hardware_changes_the_recipe_by_nothing_but_the_quantised_weights(name):
    def flat(tree, prefix=""):
        for key, value in tree.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    paper, own = (
        dict(flat(load_settings(CONFIGS / file, []).model_dump())) for file in ("paper.yaml", f"hardware/{name}.yaml")
    )
    changed = {key for key in paper if paper[key] != own[key] and not run_only(key)}
    assert changed == ({"model.quantisation"} if name == "24gb" else set())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("model"), random_tokenizer()
    # Of the least width that bitsandbytes has blocks for.
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@needs_bitsandbytes
def test_states_and_gradients_are_those_of_the_weights_that_it_stands_for(saved, tmp_path):
    from bitsandbytes.functional import dequantize_4bit

    settings = ModelSettings(backbone=str(saved), quantisation="nf4")
    small = load_backbone(settings, tmp_path, torch.bfloat16)
    plain = load_backbone(settings.replace(quantisation="none"), tmp_path, torch.bfloat16)
    for name, layer in small.named_modules():
        if type(layer).__name__ == "Linear4bit":
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain.get_submodule(name).weight.data.copy_(weight.view_as(plain.get_submodule(name).weight))
    rows = EncodedRows([[5, *range(60, 70 + number), 7] for number in range(6)], [0, 1] * 3)
    found = []
    for base in (plain, small):
        enable_packing(base)
        model = add_adapter(base, LoraSettings(r=4), 1).train()
        fill_adapter_at_random(model)
        found.append(states_and_gradient(model, collate_packed(rows, range(6)), 0, LabelWords(3, 4)))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 0.02 * one.norm()


@needs_bitsandbytes
def test_a_training_on_them_runs_and_leaves_them_as_they_were(saved, tmp_path):
    model = {"model.backbone": str(saved), "model.quantisation": "nf4", "model.dtype": "bfloat16", "model.lora.r": 2}
    own = Settings().replace(**model, **{"train.batch_rows": 8})
    source = ModelSource(own, tmp_path, Machine("cpu", 1))
    rows = pd.DataFrame({"query": [f"shoe {n}" for n in range(16)], "target": "shoes", "label": [0, 1] * 8})
    before = {name: value.clone() for name, value in source.backbone().state_dict().items()}
    model, margins = train_fold(rows, rows.head(4), own, source, 1, "fold", None)
    assert len(margins) == 4 and len(score_rows(rows, model.eval(), own, source, "predict")) == 16
    with pytest.raises(UserError, match="weights of 4 bits take no adapters"):
        merge_into_copies(model)
    after = bare(model.get_base_model()).state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
