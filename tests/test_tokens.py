"""Token ids kept on disk: as Transformers gives them, each text tokenised once."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from analyticup.model import tokens
from analyticup.model.backbone import random_tokenizer
from analyticup.model.prompt import PromptEncoder
from analyticup.model.tokens import KeptTokens
from analyticup.settings.schema import PromptSettings

TEXTS = ["", " red bag", "<pad>", " yes", " no<eos>", "\n鞄 กระเป๋า حقيبة", "\0", "a\u200b"]
FORM = {"add_special_tokens": False, "split_special_tokens": True}


@pytest.fixture
def folder(tmp_path):
    """A saved tokenizer that is called by its special tokens' names, as a converted one is."""
    random_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def calls(monkeypatch):
    """The texts of each process that would have been started."""
    made = []

    def here(function, folder, texts):
        made.append(list(texts.values()))
        return function(folder, texts)

    monkeypatch.setattr(tokens, "apart", here)
    return made


def test_the_ids_are_those_of_transformers(folder, tmp_path):
    whole = PreTrainedTokenizerFast.from_pretrained(folder)
    kept = KeptTokens(folder, tmp_path / "cache")
    assert kept(TEXTS, **FORM)["input_ids"] == whole(TEXTS, **FORM)["input_ids"]
    assert (kept.bos_token_id, kept.pad_token_id) == (whole.bos_token_id, whole.pad_token_id)
    assert kept.pad_token_id is not None


def test_a_text_is_tokenised_once_over_all_runs(folder, tmp_path, calls):
    for _ in range(2):
        kept = KeptTokens(folder, tmp_path / "cache")
        encoder = PromptEncoder(kept, PromptSettings())
        ids = encoder.encode(["red bag", "shoe"], ["bags", "bags"])
        encoder.label_words()
        assert kept.pad_token_id == 0
    assert len(calls) == 1
    encoder.encode(["red bag", "hat"], ["bags", "bags"])
    assert calls[1:] == [[" hat", "<pad>"]]
    assert ids == PromptEncoder(random_tokenizer(), PromptSettings()).encode(["red bag", "shoe"], ["bags", "bags"])
