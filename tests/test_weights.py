"""A model is what its files say, whole; each fault is refused in one line that names the tensors or modules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from analyticup.checks.models import needed_models
from analyticup.checks.weights import weight_findings
from analyticup.errors import UserError
from analyticup.model.backbone import add_adapter, load_adapter, random_qwen3, random_tokenizer, save_adapter
from analyticup.settings.loading import settings_from_dict
from analyticup.settings.schema import LoraSettings
from analyticup.training.source import Machine, ModelSource
from analyticup.verdict import Verdict

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sound"
    tokenizer = random_tokenizer()
    random_qwen3(len(tokenizer)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def change_weights(folder: Path, change: Callable[[Weights], object]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(share: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: int(len(content) * share)])

    return change


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, lambda weights: [weights.pop(name) for name in names])


def with_tensor(name: str, *shape: int) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, lambda weights: weights.update({name: torch.zeros(shape)}))


def with_value(name: str, value: float) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, lambda weights: weights[name].view(-1)[7:8].fill_(value))


def sharded(*, lose: bool) -> Callable[[Path], None]:
    """In two files by an index; one of them may lack what the index says."""

    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(weights)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, own in parts.items():
            save_file({name: weights[name] for name in own[lose:]}, folder / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def linked(folder: Path) -> None:
    for path in list(folder.iterdir()):
        blob = folder.parent / "blobs" / path.name
        blob.parent.mkdir(exist_ok=True)
        path.rename(blob)
        path.symlink_to(blob)


def configured(**values: object) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **values)


def longer_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["farther"] = len(content["model"]["vocab"]) + 40
    path.write_text(json.dumps(content))


def an_adapter(folder: Path) -> None:
    """Beside what is there; Transformers would load its base model, from wherever it says, in place of that."""
    model = add_adapter(random_qwen3(len(random_tokenizer())), LoraSettings(r=2), 0)
    model.peft_config["default"].base_model_name_or_path = str(folder.parent / "elsewhere")
    model.save_pretrained(folder)


def only_an_adapter(folder: Path) -> None:
    an_adapter(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()


MLP = "model.layers.1.mlp.up_proj.weight"
# Fault -> (what is done to a sound model, what the line names).
SEEN_BY_CHECK = {
    "tensor missing": (without(MLP), f"1 missing: {MLP}"),
    "a layer's MLP missing": (
        without(*(f"model.layers.1.mlp.{name}_proj.weight" for name in ("up", "gate", "down"))),
        "3 missing: model.layers.1.mlp.down_proj.weight",
    ),
    "norm missing": (without("model.norm.weight"), "1 missing: model.norm.weight"),
    "embedding missing": (without("model.embed_tokens.weight"), "model.embed_tokens.weight"),
    "output matrix missing": (without("lm_head.weight"), "1 missing: lm_head.weight"),
    "layers missing": (configured(num_hidden_layers=4, layer_types=["full_attention"] * 4), "missing: model.layers.2"),
    "layers left over": (
        configured(num_hidden_layers=1, layer_types=["full_attention"]),
        "not part of the model: model.layers.1.",
    ),
    "tensor left over": (
        with_tensor("model.layers.1.extra.weight", 4, 4),
        "1 not part of the model: model.layers.1",
    ),
    "head of another task": (with_tensor("score.weight", 2, 32), "1 not part of the model: score.weight"),
    "another width": (configured(intermediate_size=48), "of another shape than in config.json: model.layers.0.mlp."),
    "another vocabulary": (configured(vocab_size=300), "of another shape than in config.json: lm_head.weight"),
    "one tensor transposed": (
        lambda folder: change_weights(folder, lambda weights: weights.update({MLP: weights[MLP].T.contiguous()})),
        f"1 of another shape than in config.json: {MLP}",
    ),
    "embedding smaller than the tokenizer": (longer_tokenizer, "its tokenizer has words up to number"),
    "half a file": (cut(0.5), "cannot be read"),
    "a file without its last byte": (cut(0.99999), "cannot be read"),
    "header cut off": (cut(0.001), "cannot be read"),
    "empty file": (write("model.safetensors", b""), "cannot be read"),
    "Git LFS pointer": (
        write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        "cannot be read",
    ),
    "web page": (write("model.safetensors", b"<!DOCTYPE html><html>Not found</html>"), "cannot be read"),
    "pickle under another name": (write("model.safetensors", b"\x80\x02}q\x00."), "cannot be read"),
    "shard lacks a tensor": (sharded(lose=True), "missing"),
    "config of another kind": (configured(model_type="no-such-model"), "cannot be loaded"),
    "config without a kind": (write("config.json", b"{}"), "cannot be loaded"),
    "adapter in place of a model": (only_an_adapter, "an adapter"),
    "adapter beside the weights": (an_adapter, "an adapter"),
    "quantised by another program": (
        configured(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}),
        "cannot be loaded",
    ),
    "heads that do not divide": (configured(num_key_value_heads=3), "another shape"),
}
ONLY_WHEN_LOADED = {
    "NaN": (with_value(MLP, float("nan")), f"not all weights are finite numbers: {MLP}"),
    "infinite": (with_value("lm_head.weight", float("inf")), "not all weights are finite numbers: lm_head.weight"),
    "minus infinite": (with_value("model.norm.weight", float("-inf")), "model.norm.weight"),
}


def loaded(folder: Path) -> object:
    settings = settings_from_dict({}, "test", [f"model.backbone={folder}"])
    return ModelSource(settings, folder.parent / "cache", Machine("cpu", None)).backbone()


def found(folder: Path, *more: str) -> list:
    settings = settings_from_dict({}, "test", [f"model.backbone={folder}", "negatives.enabled=false", *more])
    return list(weight_findings(settings, needed_models(settings, folder.parent / "cache")))


@pytest.mark.parametrize(("change", "names"), SEEN_BY_CHECK.values(), ids=SEEN_BY_CHECK)
def test_files_that_are_not_the_whole_model_are_refused_by_check_and_by_the_run(model: Path, change, names) -> None:
    change(model)
    (finding,) = found(model)
    assert finding.verdict == Verdict.FAIL and names in finding.text and "\n" not in finding.text
    with pytest.raises(UserError) as refused:
        loaded(model)
    assert names in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("change", "names"), ONLY_WHEN_LOADED.values(), ids=ONLY_WHEN_LOADED)
def test_weights_that_are_no_numbers_are_refused_when_they_are_loaded(model: Path, change, names) -> None:
    change(model)
    with pytest.raises(UserError) as refused:
        loaded(model)
    assert names in str(refused.value)


SOUND = {
    "as saved": lambda folder: None,
    "in two files": sharded(lose=False),
    "largest values": with_value("lm_head.weight", 3e38),
    "left by a training": lambda folder: [
        (folder / name).write_bytes(b"\x80\x02}q\0.") for name in ("optimizer.pt", "training_args.bin", "rng_state.pth")
    ],
    "with a pickle of other weights": write("pytorch_model.bin", b"\x80\x02}q\0."),
    "with code of its own, which is not run": configured(auto_map={"AutoModelForCausalLM": "modeling.Model"}),
    "by links, as the hub's cache has it": linked,
    "rotary frequencies, as older files have them": with_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", 4),
}


@pytest.mark.parametrize("change", SOUND.values(), ids=SOUND)
def test_a_sound_model_is_loaded_as_it_is(sound: Path, model: Path, change) -> None:
    weights = load_file(model / "model.safetensors")
    change(model)
    (finding,) = found(model)
    assert finding.verdict == Verdict.OK, finding.text
    state = loaded(model).state_dict()
    changed = [name for name, value in weights.items() if not torch.equal(value, state[name].to(value.dtype))]
    assert changed == (["lm_head.weight"] if change is SOUND["largest values"] else [])


TARGETS = {
    "one of two": ("q_proj,v_prj", "'v_prj'"),
    "none": ("foo", "'foo'"),
    "blank": ("q_proj,", "''"),
    "another family's": ("query_key_value", "'query_key_value'"),
    "not linear": ("input_layernorm", "'input_layernorm'"),
    "part of a name": ("_proj", "'_proj'"),
    "upper case": ("Q_proj,k_proj", "'Q_proj'"),
    "a layer that is not there": ("layers.7.self_attn.q_proj", "'layers.7.self_attn.q_proj'"),
}


@pytest.mark.parametrize("layers", ["null", "1"])
@pytest.mark.parametrize(("targets", "names"), TARGETS.values(), ids=TARGETS)
def test_lora_targets_that_match_nothing_are_refused(sound: Path, targets: str, names: str, layers: str) -> None:
    more = (f"model.lora.targets={targets}", f"model.lora.layers={layers}")
    (finding,) = found(sound, *more)
    assert finding.verdict == Verdict.FAIL and names in finding.text
    assert finding.text.endswith("there are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj")
    settings = LoraSettings(targets=targets, layers=None if layers == "null" else 1)
    with pytest.raises(UserError, match=r"model\.lora\.targets"):
        add_adapter(random_qwen3(64), settings, 0)


@pytest.mark.parametrize("targets", ["q_proj", "self_attn.q_proj", "q_proj, down_proj", "all-linear"])
def test_an_adapter_is_in_all_its_targets(targets: str) -> None:
    adapted = add_adapter(random_qwen3(64), LoraSettings(targets=targets), 0)
    names = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert len(names) == {"q_proj": 1, "self_attn.q_proj": 1, "q_proj, down_proj": 2, "all-linear": 7}[targets]


def adapter_of(folder: Path, change: Callable[[Weights], object]) -> None:
    save_adapter(add_adapter(random_qwen3(64), LoraSettings(r=2), 0), folder, "random:qwen3")
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


ADAPTERS = {
    "tensor missing": lambda weights: weights.pop(min(weights)),
    "tensor left over": lambda weights: weights.update(
        {"base_model.model.model.layers.9.q.lora_A.weight": torch.ones(2)}
    ),
    "another base": lambda weights: weights.update({min(weights): torch.ones(2, 48)}),
    "NaN": lambda weights: weights[min(weights)].view(-1)[0:1].fill_(float("nan")),
}


@pytest.mark.parametrize("change", ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_that_is_not_whole_is_refused(tmp_path: Path, change) -> None:
    adapter_of(tmp_path, change)
    with pytest.raises(UserError, match="adapter"):
        load_adapter(random_qwen3(64), tmp_path)


def test_an_adapter_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    adapter_of(tmp_path, lambda weights: None)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="adapter cannot be read"):
        load_adapter(random_qwen3(64), tmp_path)
