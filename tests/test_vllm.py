"""Seed-X through vLLM, for which a stand-in of the same API takes its place: what it is told, and the same texts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from stand_in_vllm import LLM, install
from test_seedx import CPU, no_embedder, random_model, scripted_model, tokenizer  # noqa: F401

from analyticup.augmentation.translators import build_translator, engine_fault
from analyticup.augmentation.translators.base import Tools, Translation
from analyticup.augmentation.translators.seedx import SeedXTranslator, build_prompt
from analyticup.checks.machine import MachineFacts, device_findings
from analyticup.errors import UserError
from analyticup.settings.schema import Settings, TranslateSettings
from analyticup.verdict import Verdict

GPU = SimpleNamespace(device="cuda", devices=2, make_room=lambda: None)
TEXTS = ["red dress", "a", "Damen", "red dress for women and men", "for", "Kleid", "two words", "red"]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    install(monkeypatch)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_texts_are_those_of_transformers(random_model, beams):  # noqa: F811
    plain = random_model.replace(beams=beams, max_new_tokens=12)
    prompts = [build_prompt(text, "de") for text in TEXTS]
    answers = SeedXTranslator(plain.replace(engine="vllm"), GPU)._complete(prompts)
    assert answers == SeedXTranslator(plain, CPU)._complete(prompts)
    # Random weights end some answers early.
    assert len(set(answers)) > 4


def test_an_answer_ends_at_the_end_token_and_is_cleaned_and_judged(tokenizer, tmp_path):  # noqa: F811
    settings = scripted_model(tokenizer, tmp_path, " rotKle\nmü").replace(engine="vllm")
    translator = SeedXTranslator(settings, GPU)
    assert translator.translate(["red dress", "a longer one"], "de") == [Translation("rotKle")] * 2
    settings = scripted_model(tokenizer, tmp_path / "other", "赤").replace(engine="vllm")
    refused = [one.refused for one in SeedXTranslator(settings, GPU).translate(["赤", "red"], "de")]
    assert refused == ["unchanged", "foreign letters"]


def test_what_vllm_is_told(random_model, monkeypatch):  # noqa: F811
    import os

    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    settings = random_model.replace(engine="vllm", beams=None, memory_share=0.5)
    SeedXTranslator(settings, GPU).translate(["bag"], "de")
    (engine,) = LLM.made
    assert engine.told == {
        "model": random_model.model,
        "dtype": "bfloat16",
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.5,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "generation_config": "vllm",
        "max_logprobs": 20,
    }
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1" and os.environ["VLLM_LOGGING_LEVEL"] == "INFO"
    # Greedy where no number of beams is given.
    assert engine.asked == [1]


def test_it_gets_many_texts_at_once_and_goes_with_the_translator(random_model, tmp_path):  # noqa: F811
    settings = TranslateSettings(translator="seedx", seedx=random_model.replace(engine="vllm", max_new_tokens=1))
    translator = build_translator(settings, Tools(tmp_path, GPU, {}, no_embedder))
    assert LLM.made == []
    translator.translate(TEXTS, "de")
    translator.translate(["one more"], "fr")
    (engine,) = LLM.made
    assert engine.asked == [len(TEXTS), 1] and engine.down == []
    del translator
    assert engine.down == [True]


def test_another_engine_is_another_translator(random_model):  # noqa: F811
    def identity(**change):
        return SeedXTranslator(random_model.replace(**change), GPU).identity

    assert identity(engine="vllm", beams=1) == identity(engine="vllm", beams=None) != identity(engine="vllm", beams=4)
    assert identity(beams=None) == identity(beams=4) != identity(engine="vllm", beams=4)
    assert identity(engine="vllm", memory_share=0.5, batch_size=1) == identity(engine="vllm")


def test_without_vllm_or_a_gpu_one_line_says_so_to_check_too(random_model, monkeypatch):  # noqa: F811
    own = TranslateSettings(enabled=True, translator="seedx", seedx=random_model.replace(engine="vllm"))
    assert engine_fault(own, "cuda") == ""
    with pytest.raises(UserError, match="engine = vllm: it needs a GPU with CUDA, and models run on cpu here"):
        SeedXTranslator(own.seedx, CPU).translate(["bag"], "de")
    monkeypatch.setattr("analyticup.model.vllm_engine.find_spec", lambda name: None)
    fault = "translate.seedx.engine = vllm: the package vllm is not installed; run: "
    with pytest.raises(UserError, match=fault):
        SeedXTranslator(own.seedx, GPU).translate(["bag"], "de")
    facts = MachineFacts("cuda", (("Card", 1),), 1)
    found = device_findings(Settings(translate=own), facts)
    (text,) = [finding.text for finding in found if finding.verdict == Verdict.FAIL]
    assert text.startswith(fault) and "requirements-gpu.lock" in text and "\n" not in text
    for change in ({"enabled": False}, {"translator": "lexicon"}, {"seedx": random_model}):
        found = device_findings(Settings(translate=own.replace(**change)), facts)
        assert all(finding.verdict != Verdict.FAIL for finding in found)


def test_an_engine_that_breaks_off_is_one_line(random_model, monkeypatch):  # noqa: F811
    def fail(*_, **__):
        raise Exception("EngineCore encountered an issue.\nSee above")

    monkeypatch.setattr(LLM, "generate", fail)
    with pytest.raises(UserError) as told:
        SeedXTranslator(random_model.replace(engine="vllm"), GPU).translate(["bag"], "de")
    assert "translate.seedx.engine = vllm: vLLM breaks off: EngineCore encountered an issue.; its" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("error", [RuntimeError("Engine core initialization failed.\nSee above"), ValueError("")])
def test_a_start_that_fails_is_one_line(random_model, monkeypatch, error):  # noqa: F811
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(LLM, "__init__", fail)
    with pytest.raises(UserError) as told:
        SeedXTranslator(random_model.replace(engine="vllm"), GPU).translate(["bag"], "de")
    what = "Engine core initialization failed." if str(error) else "ValueError"
    assert f"vLLM does not start with {random_model.model} on 2 GPU(s): {what}; its log" in str(told.value)
    assert "\n" not in str(told.value) and "memory_share" in str(told.value)
