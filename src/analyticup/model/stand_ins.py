"""Tiny random models of known architectures, with a tokenizer, for tests of the code path: no download, no file."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from analyticup.model.pins import random_kind

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
_DECODER: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2, "pad_token_id": 0}
_PAIRS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
# What each architecture has besides the number of words, as in its authors' configs but for the sizes.
_CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {**_DECODER, "tie_word_embeddings": False},
    "qwen3": {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False},
    "gemma3_text": {
        **_DECODER,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 8,
    },
    "xlm-roberta": {**_SIZES, **_PAIRS, "type_vocab_size": 1},
    "deberta-v2": {
        **_SIZES,
        **_PAIRS,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "pooler_hidden_size": 32,
    },
}


def random_model(backbone: str, vocabulary: int, auto_class: Any) -> PreTrainedModel:
    """A random model of two layers; `backbone` is one of `pins.RANDOM_MODELS`, the numbers of words are 0 to
    `vocabulary` - 1."""
    kind = random_kind(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return auto_class.from_config(AutoConfig.for_model(kind, vocab_size=vocabulary, **_CONFIGS[kind]))


def random_tokenizer(pairs: bool = False) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer that knows the two label words as single tokens; with `pairs` one that joins two texts as
    XLM-RoBERTa's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "<pad>", "</s>"] if pairs else ["<pad>", "<eos>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in ("Ġyes", "Ġno"):
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocabulary.setdefault(word[:end], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if not pairs:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    known = [("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=known
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", **names)
