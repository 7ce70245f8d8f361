"""Token ids on disk, for tokenizers that take as much memory as a model's layers.

The tokenizer of a converted GGUF backbone (Gemma's has 262,000 words: .4 GB, and .7 GB as Transformers loads it) is
needed only for texts that no earlier stage or run has met. It is loaded in a process of its own, which then ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from analyticup.engine.cache import Cache, text_key
from analyticup.engine.files import file_sha256, lock
from analyticup.engine.workers import apart

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"


class KeptTokens:
    """Stands for the tokenizer in `folder`, as far as prompts need it; the ids are kept in one sqlite file in `cache`.

    Gives the ids that Transformers gives with `add_special_tokens=False, split_special_tokens=True`: no text becomes a
    special token.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        self._folder, self._cache = folder, cache
        self._special = json.loads((folder / CONFIG).read_text(encoding="utf-8"))

    def __call__(self, texts: Sequence[str], **form: bool) -> dict[str, list[list[int]]]:
        assert form == {"add_special_tokens": False, "split_special_tokens": True}, form
        keys = [text_key("text", text) for text in texts]
        found = self._ids(dict(zip(keys, texts, strict=True)))
        return {"input_ids": [found[key] for key in keys]}

    @cached_property
    def bos_token_id(self) -> int | None:
        return self._special_id("bos_token")

    @cached_property
    def pad_token_id(self) -> int | None:
        return self._special_id("pad_token")

    def _special_id(self, name: str) -> int | None:
        token = self._special.get(name)
        return None if token is None else self._ids({text_key("special", token): token})[text_key("special", token)][0]

    def _ids(self, texts: Mapping[str, str]) -> dict[str, list[int]]:
        """Key -> ids of its text."""
        with closing(Cache(self._path)) as kept:
            found = kept.read(list(texts))
            if len(found) < len(texts):
                # Two folds meet the same texts at once; the second waits and finds them.
                with lock(self._cache, waits=True):
                    found = kept.read(list(texts))
                    missing = {key: text for key, text in texts.items() if key not in found}
                    if missing:
                        # Those of the first call to come are nearly free here, and cost a process later.
                        missing |= self._specials()
                        found |= (fresh := apart(_tokenise, self._folder, missing))
                        kept.write(fresh)
        return {key: np.frombuffer(found[key], dtype=np.int32).tolist() for key in texts}

    def _specials(self) -> dict[str, str]:
        tokens = [token for name in ("bos_token", "pad_token") if (token := self._special.get(name)) is not None]
        return {text_key("special", token): token for token in tokens}

    @cached_property
    def _path(self) -> Path:
        return self._cache / f"tokens-{file_sha256(self._folder / FILE)[:16]}.sqlite"


def _tokenise(folder: Path, texts: Mapping[str, str]) -> dict[str, bytes]:
    """Key -> its text's ids, int32; that of a special token is its id."""
    tokenizer = Tokenizer.from_file(str(folder / FILE))
    tokenizer.encode_special_tokens = True
    plain = {key: text for key, text in texts.items() if key.startswith("text:")}
    found = {key: [tokenizer.token_to_id(text)] for key, text in texts.items() if key not in plain}
    encoded = tokenizer.encode_batch_fast(list(plain.values()), add_special_tokens=False)
    found |= {key: one.ids for key, one in zip(plain, encoded, strict=True)}
    return {key: np.array(ids, dtype=np.int32).tobytes() for key, ids in found.items()}
