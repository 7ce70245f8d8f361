"""Dev and test scored through vLLM, for which a stand-in of the same API takes its place."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from stand_in_vllm import LLM, install
from test_weights import sound  # noqa: F401 (a fixture)
from tiny_models import fill_adapter_at_random
from tiny_runs import TINY, places

from analyticup.__main__ import main
from analyticup.checks import preflight
from analyticup.checks.machine import MachineFacts, device_findings
from analyticup.engine.graph import Shard
from analyticup.errors import UserError
from analyticup.model.backbone import add_adapter, load_adapter, save_adapter
from analyticup.model.vllm_engine import RANKS
from analyticup.settings.schema import LoraSettings, ModelSettings, PredictSettings, Settings
from analyticup.training.fold import score_rows
from analyticup.training.source import Machine, ModelSource
from analyticup.training.vllm_scoring import VllmAdapter, scoring_fault
from analyticup.verdict import Verdict

ROWS = pd.DataFrame(
    {
        "query": [f"{'long ' * (number % 25 % 4)}query {number % 25}" for number in range(30)],
        "target": [f"bags,{number % 25 % 3}" for number in range(30)],
        "label": pd.NA,
    }
)
# The stand-in computes in float32, whatever it is told.
TOLERANCE = 1e-5


class Gpu(Machine):
    device = "cuda"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    install(monkeypatch)


@pytest.fixture
def settings(sound):  # noqa: F811
    model = ModelSettings(backbone=str(sound), dtype="bfloat16", lora=LoraSettings(r=4))
    return Settings(model=model, predict=PredictSettings(engine="vllm"))


@pytest.fixture
def adapters(settings, tmp_path):
    """Folders of two adapters, and the margins of the rows under each by Transformers, float32."""
    plain = settings.replace(**{"predict.engine": "transformers", "model.dtype": "float32"})
    source = ModelSource(plain, tmp_path, Machine("cpu", 1))
    found = {}
    for seed in (1, 2):
        folder = tmp_path / f"adapter{seed}"
        folder.mkdir()
        model = add_adapter(source.backbone(), plain.model.lora, seed)
        fill_adapter_at_random(model)
        save_adapter(model, folder, plain.model.backbone)
        model = load_adapter(source.backbone(), folder)
        found[folder] = score_rows(ROWS, model, plain, source, "test")
    return found


def test_scores_are_those_of_transformers_by_one_engine_for_all_adapters(settings, adapters, tmp_path):
    source = ModelSource(settings, tmp_path, Gpu("gpu", 1))
    for folder, expected in [*adapters.items()] * 2:
        model = VllmAdapter(source.vllm(settings, 4), folder)
        found = score_rows(ROWS, model, settings, source, "test")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    one, other = adapters.values()
    assert np.abs(one - other).max() > 100 * TOLERANCE and len(set(one.tolist())) == 25
    (engine,) = LLM.made
    # Equal prompts are asked once.
    assert engine.asked == [25] * 4 and list(engine.loaded.values()) == [str(folder) for folder in adapters]
    assert engine.down == []
    source.release()
    assert engine.down == [True]


def test_what_vllm_is_told(settings, adapters, tmp_path):
    source = ModelSource(settings, tmp_path, Gpu("gpu", 1, devices=2))
    source.vllm(settings.replace(**{"predict.memory_share": 0.5}), 4)
    (engine,) = LLM.made
    assert engine.told == {
        "model": settings.model.backbone,
        "dtype": "bfloat16",
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.5,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "generation_config": "vllm",
        "enable_lora": True,
        "max_lora_rank": 8,
        "hf_overrides": {"head_dtype": "float32"},
        "enable_prefix_caching": True,
        "max_model_len": -1,
    }
    assert all(low < high for low, high in pairwise(RANKS))


def test_the_backbone_and_the_engine_give_way_to_each_other(settings, adapters, tmp_path):
    source = ModelSource(settings, tmp_path, Gpu("gpu", 1))
    source.vllm(settings, 4)
    source.machine.device = "cpu"
    source.backbone()
    assert LLM.made[0].down == [True]
    source.machine.device = "cuda"
    source.vllm(settings, 4)
    assert source._backbone is None and len(LLM.made) == 2


def test_an_adapter_of_a_higher_rank_gets_an_engine_that_holds_it(settings, adapters, tmp_path):
    source = ModelSource(settings, tmp_path, Gpu("gpu", 1))
    for rank in (4, 64, 16):
        source.vllm(settings, rank)
    assert [engine.told["max_lora_rank"] for engine in LLM.made] == [8, 64] and LLM.made[0].down == [True]


@pytest.mark.parametrize("of", [2, 7])
def test_shards_have_the_scores_of_the_whole(settings, adapters, tmp_path, of):
    settings = settings.replace(**{"predict.max_batch_tokens": 150})
    source = ModelSource(settings, tmp_path, Gpu("gpu", 1))
    model = VllmAdapter(source.vllm(settings, 4), next(iter(adapters)))
    whole = score_rows(ROWS, model, settings, source, "test")
    parts = [score_rows(ROWS, model, settings, source, "test", Shard(number, of)) for number in range(of)]
    assert (np.sum([~np.isnan(part) for part in parts], axis=0) == 1).all()
    assert np.nanmax(parts, axis=0).tobytes() == whole.tobytes()


def test_a_score_that_is_not_finite_is_told(settings, adapters, tmp_path, monkeypatch):
    source = ModelSource(settings, tmp_path, Gpu("gpu", 1))
    model = VllmAdapter(source.vllm(settings, 4), next(iter(adapters)))
    monkeypatch.setattr(torch.Tensor, "log_softmax", lambda scores, dim: scores * math.nan)
    said = "predict QC fold0 dev: 25 of 25 scores by vLLM are not finite; set predict.engine=transformers"
    with pytest.raises(UserError, match=said):
        score_rows(ROWS, model, settings, source, "predict QC fold0 dev")


def test_an_adapter_that_vllm_does_not_take_is_one_line(settings, adapters, tmp_path):
    source = ModelSource(settings, tmp_path, Gpu("gpu", 1))
    folder = next(iter(adapters))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["score"]}))
    with pytest.raises(UserError, match=r"predict.engine = vllm: vLLM breaks off: .*modules_to_save") as told:
        VllmAdapter(source.vllm(settings, 4), folder).margins([[1, 2]], SimpleNamespace(positive=1, negative=2), "x")
    assert "\n" not in str(told.value)


REFUSED = {
    "model.head = classifier": {"model.head": "classifier"},
    "model.backbone = random:qwen3 is neither": {"model.backbone": "random:qwen3"},
    "model.backbone = gguf:x is neither": {"model.backbone": "gguf:x"},
    "not with model.quantisation = nf4": {"model.quantisation": "nf4"},
    "not with predict.merge_adapters": {"predict.merge_adapters": True},
    "not with predict.compile_min_rows": {"predict.compile_min_rows": 5},
    "rank 512 at most, and model.lora.r = 513": {"model.lora.r": 513},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_it_cannot_do_is_one_line_of_check_and_run(settings, tmp_path, said):
    own = settings.replace(**REFUSED[said])
    (fault,) = faults(own, MachineFacts("cuda", (("Card", 1),), 1))
    assert said in fault and "\n" not in fault
    assert fault.startswith("predict.engine = vllm: ") and fault.endswith("; set predict.engine=transformers")
    with pytest.raises(UserError) as told:
        ModelSource(own, tmp_path, Gpu("gpu", 1)).vllm(own, 4)
    assert str(told.value) == fault and LLM.made == []
    assert scoring_fault(own.replace(**{"predict.engine": "transformers"}), "bfloat16", "cpu") == ""


def faults(own, facts):
    found = device_findings(own, facts)
    return [finding.text for finding in found if finding.verdict == Verdict.FAIL]


def test_check_names_a_machine_that_cannot_and_workers_that_do_not_fit(settings, monkeypatch):
    card = MachineFacts("cuda", (("Card", 1),), 1)
    assert faults(settings, card) == []
    two = settings.replace(**{"machine.workers": 2})
    (fault,) = faults(two, card)
    assert fault.startswith("predict.memory_share = 0.9: 2 processes share a GPU") and "set it to 0.45, or" in fault
    assert faults(two.replace(**{"predict.memory_share": 0.45}), card) == []
    assert faults(two, replace(card, gpus=card.gpus * 2)) == []
    (fault,) = faults(settings.replace(**{"model.dtype": "float32"}), card)
    assert "it computes adapters in bfloat16, and the weights are float32 here" in fault
    (fault,) = faults(settings, MachineFacts("cpu", (), 1))
    assert "predict.engine = vllm: it needs a GPU with CUDA" in fault
    monkeypatch.setattr("analyticup.model.vllm_engine.find_spec", lambda name: None)
    (fault,) = faults(settings, card)
    assert "the package vllm is not installed; run: " in fault and "or set it to transformers" in fault


def test_a_run_keeps_its_trainings_and_scores_dev_and_test_by_one_engine(settings, tmp_path, monkeypatch):
    off = [f"QC.{name}.enabled=false" for name in ("negatives", "translate", "filter")]
    small = ["tasks=[QC]", "folds.n=2", *off, "ensemble.method=mean_logit"]
    given = [*TINY, *small, f"model.backbone={settings.model.backbone}", "model.dtype=bfloat16", *places(tmp_path)]

    def scores(*changes):
        assert main(["run", *given, *changes]) == 0
        made = pd.read_parquet(tmp_path / "submissions" / "sample" / "scores_QC.parquet")
        return made[[name for name in made if name.startswith("score_fold")]]

    plain = scores()
    adapters = sorted((tmp_path / "artifacts").glob("train-QC-*"))
    monkeypatch.setattr(Machine, "device", "cuda")
    card = MachineFacts("cuda", (("Card", 10**12),), 10**12)
    monkeypatch.setattr(preflight, "look_at_machine", lambda _: card)
    ours = scores("predict.engine=vllm", "predict.shards=3")
    # Transformers computes in bf16 here, the stand-in in float32.
    assert 0 < np.abs(plain - ours).to_numpy().max() < 0.02
    assert sorted((tmp_path / "artifacts").glob("train-QC-*")) == adapters
    (engine,) = LLM.made
    # By fold and split, in more than one shard.
    assert len(engine.loaded) == 2 and len(engine.asked) > 2 * 2
    for folder in (tmp_path / "artifacts").glob("predict-QC-*"):
        shutil.rmtree(folder)
    again = scores("predict.engine=vllm")
    pd.testing.assert_frame_equal(again, ours, check_exact=True)
