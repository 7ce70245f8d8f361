"""torch.compile in training and scoring: the same numbers within rounding, only where it was asked for."""

from __future__ import annotations

import re
import shutil

import pytest

pytest.importorskip("lightning")
import pandas as pd
import torch
from closeness import assert_same_sums
from safetensors.torch import load_file

from analyticup.errors import UserError
from analyticup.model.backbone import add_adapter, random_qwen3, save_adapter
from analyticup.model.compiling import compiled
from analyticup.model.module import decoder, label_hidden
from analyticup.settings.schema import LoraSettings, ModelSettings, PredictSettings, Settings, TrainSettings
from analyticup.training import fold
from analyticup.training.fold import score_rows, train_fold
from analyticup.training.source import Machine, ModelSource

pytestmark = pytest.mark.arithmetic

STEPS = 14


def rows(count: int) -> pd.DataFrame:
    words = ["lamp", "red shoe", "phone case with a strap", "tv", "garden hose"]
    return pd.DataFrame(
        {
            "query": [" ".join(words[: 1 + i % 3]) for i in range(count)],
            "target": [words[i % 5] for i in range(count)],
            "label": [i % 2 for i in range(count)],
        }
    )


def settings(layers=None, compile_min_steps=None, compile_min_rows=None, **model):
    lora = LoraSettings(r=2, layers=layers)
    return Settings(
        model=ModelSettings(backbone="random:qwen3", dtype="float32", lora=lora, **model),
        train=TrainSettings(epochs=2, batch_rows=4, lr=0.01, compile_min_steps=compile_min_steps),
        predict=PredictSettings(compile_min_rows=compile_min_rows),
    )


def train(folder, compile_min_steps, **model):
    given = settings(compile_min_steps=compile_min_steps, **model)
    source = ModelSource(given, folder, Machine("cpu", 1))
    adapted, margins = train_fold(rows(26), rows(9), given, source, 3, "fold", None, None)
    folder.mkdir(exist_ok=True)
    save_adapter(adapted, folder, "base")
    return adapted, margins, load_file(folder / "adapter_model.safetensors")


def same(one, other):
    assert_same_sums(one[1], other[1])
    assert one[2].keys() == other[2].keys()
    for name, value in one[2].items():
        assert_same_sums(other[2][name], value)


@pytest.fixture
def traced(monkeypatch):
    """What torch.compile was given, with a backend that needs no compiler, and how often its result was called."""
    known, calls = torch.compile, []

    def compile(function, dynamic=None):
        fast = known(function, backend="eager", dynamic=dynamic)

        def counted(*args, **kwargs):
            calls.append(torch.is_grad_enabled())
            return fast(*args, **kwargs)

        return counted

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    return calls


@pytest.mark.parametrize("model", [{}, {"layers": 1}, {"gradient_checkpointing": True}])
def test_a_compiled_training_comes_to_the_same_adapter(tmp_path, traced, model, monkeypatch):
    # Compiled are PEFT's layers, and over some steps another rounding comes to another adapter.
    monkeypatch.setattr(fold, "fuse_adapters", lambda model: None)
    plain = train(tmp_path / "plain", None, **model)
    assert not traced
    fast = train(tmp_path / "fast", STEPS, **model)
    same(plain, fast)
    # Each adapted layer in each step; checkpointing computes it a second time. Scoring the held-out rows is not in it.
    layers = model.get("layers") or len(fast[0].get_base_model().get_decoder().layers)
    assert len(traced) == STEPS * layers * (2 if "gradient_checkpointing" in model else 1)
    assert all(traced)
    assert not any("forward" in vars(layer) for layer in fast[0].modules())


@pytest.mark.parametrize("layers", [None, 1])
def test_rows_are_scored_alike_by_compiled_layers(tmp_path, traced, layers):
    plain, fast, few = (settings(layers, compile_min_rows=smallest) for smallest in (None, 15, 16))
    source = ModelSource(plain, tmp_path, Machine("cpu", 1))
    model = add_adapter(source.backbone(), plain.model.lora, 3).eval()
    # 15 of them are distinct.
    table = rows(20)
    expected = score_rows(table, model, plain, source, "test")
    assert score_rows(table, model, few, source, "test").tobytes() == expected.tobytes()
    assert not traced
    assert_same_sums(score_rows(table, model, fast, source, "test"), expected)
    assert traced and not any(traced)


def test_a_training_of_fewer_steps_is_not_compiled(tmp_path, traced):
    train(tmp_path, STEPS + 1)
    assert not traced


def test_without_a_compiler_the_error_names_the_settings(monkeypatch):
    monkeypatch.setenv("CXX", "my-compiler")
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "my-compiler" else name)
    layers, asked = [torch.nn.Linear(2, 2)], settings(compile_min_steps=3, compile_min_rows=4)
    with compiled(layers, asked, 2, gradients=True), compiled(layers, asked, 3, gradients=False):
        pass
    told = (
        "train.compile_min_steps and predict.compile_min_rows: torch.compile needs a C++ compiler, and there is no "
        "my-compiler; install it or set to null"
    )
    with pytest.raises(UserError, match=re.escape(told)), compiled(layers, asked, 3, gradients=True):
        pass


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_compiled_for_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    model = add_adapter(random_qwen3(300), LoraSettings(r=2), 3).train()
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(len(name)))

    asked = settings(compile_min_steps=1)

    def step(length, wanted):
        batch = {
            "ids": torch.arange(5, 5 + 3 * length).reshape(3, length) % 300,
            "last": torch.tensor([length - 1] * 3),
        }
        with compiled(decoder(model).layers, asked, int(wanted), gradients=True):
            hidden = label_hidden(model, batch)
            hidden[:, ::3].sum().backward()
        found = [hidden.detach(), *(value.grad for value in model.parameters() if value.requires_grad)]
        model.zero_grad()
        return found

    for length in (7, 12):
        plain, fast, again = step(length, False), step(length, True), step(length, True)
        assert_same_sums(fast[0], plain[0])
        # The plain path's own gradients are up to 6e-4 away from those in float64.
        for one, other in zip(fast, plain, strict=True):
            assert_same_sums(one, other, roundings=8400)
        assert any(not torch.equal(one, other) for one, other in zip(fast, plain, strict=True))
        assert all(torch.equal(one, other) for one, other in zip(fast, again, strict=True))
