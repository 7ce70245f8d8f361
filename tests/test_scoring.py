"""Scores of rows: what they must not depend on, and what merging the adapters may change."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from closeness import assert_same_sums
from tiny_models import fill_adapter_at_random

from analyticup.model.backbone import add_adapter
from analyticup.settings.schema import LoraSettings, ModelSettings, Settings
from analyticup.training.fold import score_rows
from analyticup.training.source import Machine, ModelSource

pytestmark = pytest.mark.arithmetic

SETTINGS = Settings(model=ModelSettings(backbone="random:qwen3", dtype="float32", lora=LoraSettings(r=4, layers=1)))


@pytest.fixture
def source(tmp_path):
    return ModelSource(SETTINGS, tmp_path, Machine("cpu", None))


@pytest.fixture
def rows():
    texts = [f"{'long ' * (i % 4)}query {i}" for i in range(40)]
    return pd.DataFrame({"query": texts, "target": [f"bags,{i % 3}" for i in range(40)], "label": pd.NA})


def adapted(source):
    model = add_adapter(source.backbone(), SETTINGS.model.lora, seed=1)
    fill_adapter_at_random(model)
    return model.eval()


def score(rows, model, source, max_batch_tokens=2048, packing=True):
    settings = SETTINGS.replace(**{"predict.max_batch_tokens": max_batch_tokens, "model.packing": packing})
    return score_rows(rows, model, settings, source, "test")


def test_neither_batch_size_nor_order_nor_neighbours_change_a_score(rows, source):
    model = adapted(source)
    found = score(rows, model, source)
    assert len(set(found.tolist())) > 30

    def same(others, expected):
        # In float32 a product of one row may differ from that of many in the last bit.
        assert_same_sums(others, expected)

    for max_batch_tokens in (1, 200, 10**6):
        same(score(rows, model, source, max_batch_tokens), found)
    same(score(rows.iloc[::-1], model, source), found[::-1])
    same(score(rows.iloc[5:6], model, source), found[5:6])


def test_a_score_does_not_depend_on_what_was_scored_before(rows, tmp_path):
    # Frozen layers round otherwise before they are fused.
    scored = []
    for parts in ((rows.head(20), rows.tail(20)), (rows.tail(20),)):
        apart = ModelSource(SETTINGS, tmp_path, Machine("cpu", None))
        model = adapted(apart)
        scored.append([score(part, model, apart) for part in parts][-1])
    assert scored[0].tobytes() == scored[1].tobytes()


@pytest.mark.parametrize("max_batch_tokens", [1, 100, 2048])
def test_packing_changes_no_score(rows, source, max_batch_tokens):
    model = adapted(source)
    many = pd.concat([rows, rows.assign(target="shoes"), rows.assign(target="x" * 70)], ignore_index=True)
    plain = score(many, model, source, packing=False)
    packed = score(many, model, source, max_batch_tokens)
    assert_same_sums(packed, plain)
    assert len(set(plain.tolist())) > 100


def test_merged_adapters_score_as_they_do_beside_the_weights(rows, source):
    model = adapted(source)
    beside = score(rows, model, source)
    with torch.no_grad(), model.disable_adapter():
        without = score(rows, model, source)
    model.merge_adapter()
    merged = score(rows, model, source)
    assert np.abs(without - beside).max() > 1e-3
    assert_same_sums(merged, beside)


def test_the_encoder_is_kept_for_each_prompt(source):
    other = SETTINGS.replace(prompt=SETTINGS.prompt.replace(template="{query}: {target}?"))
    assert source.encoder(SETTINGS) is source.encoder(SETTINGS.replace(seed=5))
    assert source.encoder(other) is not source.encoder(SETTINGS)
    assert source.encoder(other).settings.template == "{query}: {target}?"
