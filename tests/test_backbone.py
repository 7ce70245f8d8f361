"""Backbones and adapters, on the random Qwen3 alone; the real model is not loaded here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import fill_adapter_at_random

from analyticup.errors import UserError
from analyticup.model import backbone
from analyticup.model.backbone import (
    add_adapter,
    choose_precision,
    load_adapter,
    load_backbone,
    load_tokenizer,
    local_folder,
    random_qwen3,
    random_tokenizer,
    save_adapter,
)
from analyticup.model.module import label_hidden, output_matrix
from analyticup.model.objective import margins
from analyticup.model.pins import identity, source_kind
from analyticup.model.prompt import PromptEncoder
from analyticup.settings.schema import LoraSettings, ModelSettings, PromptSettings

pytestmark = pytest.mark.arithmetic

SRC = Path(__file__).resolve().parents[1] / "src"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def tokenizer():
    return random_tokenizer()


def trained(tokenizer, targets="all-linear"):
    """An adapter whose every tensor matters."""
    model = add_adapter(random_qwen3(len(tokenizer)), LoraSettings(r=4, alpha=8, targets=targets), seed=1).eval()
    fill_adapter_at_random(model)
    return model


def score(model, tokenizer):
    encoder = PromptEncoder(tokenizer, PromptSettings())
    ids = torch.tensor(encoder.encode(["red bag"], ["bags"]))
    with torch.no_grad():
        hidden = label_hidden(model, {"ids": ids, "last": torch.tensor([ids.shape[1] - 1])})
        return margins(hidden, output_matrix(model), encoder.label_words())


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("targets", ["all-linear", "q_proj, v_proj"])
def test_a_saved_adapter_gives_the_same_scores(tmp_path, tokenizer, targets):
    model = trained(tokenizer, targets)
    save_adapter(model, tmp_path, "random:qwen3")
    loaded = load_adapter(random_qwen3(len(tokenizer)), tmp_path)
    assert torch.equal(score(loaded, tokenizer), score(model, tokenizer))
    assert not loaded.training
    with loaded.disable_adapter():
        assert not torch.allclose(score(loaded, tokenizer), score(model, tokenizer), atol=1e-4)


def test_the_adapter_loads_with_peft_itself(tmp_path, tokenizer):
    model = trained(tokenizer)
    save_adapter(model, tmp_path, "random:qwen3")
    loaded = PeftModel.from_pretrained(random_qwen3(len(tokenizer)), tmp_path).eval()
    assert torch.equal(score(loaded, tokenizer), score(model, tokenizer))


def test_two_saves_give_the_same_bytes_and_no_path(tmp_path, tokenizer):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_adapter(trained(tokenizer), tmp_path / name, "random:qwen3")
    names = ["adapter_config.json", "adapter_model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    assert [sha256(tmp_path / "one" / name) for name in names] == [sha256(tmp_path / "two" / name) for name in names]
    config = json.loads((tmp_path / "one" / names[0]).read_text())
    assert config["base_model_name_or_path"] == "random:qwen3"
    assert {"r": 4, "lora_alpha": 8, "peft_type": "LORA", "task_type": "CAUSAL_LM"}.items() <= config.items()


def test_the_bytes_do_not_depend_on_the_process(tmp_path):
    code = """
import sys; from pathlib import Path
from analyticup.settings.schema import LoraSettings
from analyticup.model.backbone import add_adapter, random_qwen3, save_adapter
save_adapter(add_adapter(random_qwen3(64), LoraSettings(targets=sys.argv[2]), 5), Path(sys.argv[1]), "b")
"""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    # PEFT keeps them as a set; seven names hardly come in the same order twice.
    targets = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    save_adapter(add_adapter(random_qwen3(64), LoraSettings(targets=targets), 5), tmp_path / "here", "b")
    environment = {**os.environ, "PYTHONPATH": str(SRC), "PYTHONHASHSEED": "3"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there"), targets], env=environment, check=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert sha256(tmp_path / "here" / name) == sha256(tmp_path / "there" / name)


def test_the_seed_alone_decides_the_start_values(tokenizer):
    def start(seed):
        model = add_adapter(random_qwen3(len(tokenizer)), LoraSettings(r=2), seed)
        return torch.cat([value.flatten() for name, value in model.named_parameters() if "lora_A" in name])

    torch.manual_seed(1)
    one, following = start(5), torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(start(5), one) and not torch.equal(start(6), one)
    # And the surrounding random state is left alone.
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), following)


def test_only_the_adapter_is_trained_and_it_stays_in_float32(tokenizer):
    model = add_adapter(random_qwen3(len(tokenizer)).to(torch.bfloat16), LoraSettings(r=2), 1)
    for name, value in model.named_parameters():
        assert value.requires_grad == ("lora_" in name)
        assert value.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)


def edit(folder, change):
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def test_a_missing_or_unknown_tensor_is_refused(tmp_path, tokenizer):
    save_adapter(trained(tokenizer), tmp_path, "random:qwen3")
    edit(tmp_path, lambda state: state.pop(sorted(state)[3]))
    with pytest.raises(UserError, match=r"does not fit the backbone \(1 tensors missing, 0 unknown\)"):
        load_adapter(random_qwen3(len(tokenizer)), tmp_path)
    save_adapter(trained(tokenizer), tmp_path, "random:qwen3")
    edit(tmp_path, lambda state: state.update({"base_model.model.other.lora_A.weight": torch.zeros(2)}))
    with pytest.raises(UserError, match=r"0 tensors missing, 1 unknown"):
        load_adapter(random_qwen3(len(tokenizer)), tmp_path)


def test_an_adapter_of_another_shape_is_refused(tmp_path, tokenizer):
    save_adapter(trained(tokenizer), tmp_path, "random:qwen3")
    edit(tmp_path, lambda state: state.update({sorted(state)[0]: torch.zeros(3, 3)}))
    with pytest.raises(UserError, match="does not fit the backbone"):
        load_adapter(random_qwen3(len(tokenizer)), tmp_path)


def test_the_random_model_is_the_same_each_time_and_of_the_papers_architecture(tokenizer, tmp_path):
    settings = ModelSettings(backbone="random:qwen3")
    one = load_backbone(settings, tmp_path, torch.float32)
    two = load_backbone(settings, tmp_path, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.config.model_type == "qwen3" and not one.training
    assert load_backbone(settings, tmp_path, torch.bfloat16).dtype == torch.bfloat16
    assert list(tmp_path.iterdir()) == []


def test_a_local_folder_is_loaded_and_its_bytes_are_its_identity(tmp_path, tokenizer):
    folder = tmp_path / "model"
    random_qwen3(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = ModelSettings(backbone=str(folder))
    assert source_kind(settings) == "local"
    model = load_backbone(settings, tmp_path / "cache", torch.float32)
    assert len(load_tokenizer(settings, tmp_path / "cache")) == model.config.vocab_size
    before = identity(settings)
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert identity(ModelSettings(backbone=str(moved))) == before
    edit_file = moved / "config.json"
    edit_file.write_text(edit_file.read_text() + "\n")
    assert identity(ModelSettings(backbone=str(moved))) != before


def test_a_pickled_model_is_not_loaded(tmp_path, tokenizer):
    model = random_qwen3(len(tokenizer))
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_backbone(ModelSettings(backbone=str(tmp_path)), tmp_path, torch.float32)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gguf:/nowhere/model.gguf", "no file /nowhere/model.gguf; give the path of a .gguf file"),
        ("gguf:no_such_package_here", "names neither a .gguf file nor an installed package"),
        ("gguf:json", "names neither a .gguf file nor an installed package"),
        ("gguf:..", "names neither a .gguf file nor an installed package"),
        ("gguf:", "names neither a .gguf file nor an installed package"),
        ("random:gpt9", "random:gpt9 is not known; there is random:qwen3"),
        ("./nowhere/model", "./nowhere/model is neither a folder nor a hub id"),
    ],
)
def test_a_backbone_that_is_not_there_is_named(tmp_path, name, told):
    with pytest.raises(UserError, match=r"model\.backbone") as caught:
        identity(ModelSettings(backbone=name))
    assert told in str(caught.value)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12]])
def test_a_hub_model_needs_a_commit(tmp_path, revision):
    settings = ModelSettings(backbone="Qwen/Qwen3-14B-Base", revision=revision)
    assert source_kind(settings) == "hub"
    with pytest.raises(UserError, match=r"model\.revision: .*Qwen/Qwen3-14B-Base needs a pinned commit"):
        local_folder(settings, tmp_path)


def test_a_pinned_hub_model_is_known_by_its_commit(tmp_path, monkeypatch):
    settings = ModelSettings(backbone="Qwen/Qwen3-14B-Base", revision=COMMIT)
    assert identity(settings) == {"backbone": "Qwen/Qwen3-14B-Base", "revision": COMMIT}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, revision, **_: f"{name}/{revision}")
    assert local_folder(settings, tmp_path) == f"Qwen/Qwen3-14B-Base/{COMMIT}"


def test_weights_go_to_the_gpu_of_their_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert backbone.numbered("cuda") == torch.device("cuda", 3) and backbone.numbered("cpu") == torch.device("cpu")
    asked = []
    monkeypatch.setattr(backbone, "local_folder", lambda *_: "somewhere")
    monkeypatch.setattr(backbone, "load_whole", lambda *_, **options: asked.append(options) or torch.nn.Module())
    backbone._loaded(ModelSettings(backbone="somewhere"), Path("none"), torch.bfloat16, False, "cuda")
    assert asked[0]["device_map"] == {"": torch.device("cuda", 3)}


def test_the_precision_says_why(monkeypatch):
    assert choose_precision("float32", "cpu") == backbone.Precision("float32", "model.dtype says so")
    monkeypatch.setattr(backbone, "cpu_has_bf16", lambda: True)
    assert choose_precision("auto", "cpu").dtype == "bfloat16"
    monkeypatch.setattr(backbone, "cpu_has_bf16", lambda: False)
    assert choose_precision("auto", "cpu") == backbone.Precision("float32", "no bf16 instructions found on cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_precision("auto", "cuda") == backbone.Precision("float32", "this GPU lacks bf16")
    assert choose_precision("auto", "mps").dtype == "float32"
