"""What the backbone writes about a row before it is trained (`prompt.reasoning`): greedily, from query and target
alone, so that no label gets into it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig

from analyticup.augmentation.translators.generation import Halving
from analyticup.engine.artifacts import fingerprint
from analyticup.engine.cache import Cache, batches
from analyticup.engine.graph import WHOLE, Shard
from analyticup.engine.progress import track
from analyticup.model.pins import identity
from analyticup.settings.schema import Settings
from analyticup.training.source import ModelSource

# A query as the model reads it, and a target.
Pair = tuple[str, str]


class Reasoning(NamedTuple):
    """A text, and how many tokens it was."""

    text: str
    tokens: int


def reason_about(
    pairs: Iterable[Pair], settings: Settings, source: ModelSource, cache: Path, title: str, shard: Shard = WHOLE
) -> dict[Pair, Reasoning]:
    """What the backbone writes about each pair, or about those of a `shard`; each distinct prompt is answered once.

    What was written is kept in a file in `cache`, batch by batch. A shard has whole batches, so that their number
    changes no text.
    """
    asked = sorted(set(pairs))
    prompts = _prompts(asked, settings, source)
    keys = [hashlib.sha256(json.dumps(ids).encode()).hexdigest() for ids in prompts]
    ids_of = dict(zip(keys, prompts, strict=True))
    # The longest first: memory trouble shows at once.
    order = sorted(ids_of, key=lambda key: (-len(ids_of[key]), ids_of[key]))
    own = shard.take(list(batches(order, settings.prompt.reasoning.batch_size)))
    halving = Halving(settings.prompt.reasoning.batch_size, title, "prompt.reasoning.batch_size")
    writer = _Writer(settings, source)
    with closing(Cache(cache / f"reasoning-{_identity(settings)}.sqlite")) as kept:
        known = kept.read([key for batch in own for key in batch])
        with track(sum(map(len, own)), f"{title}: rows written about") as progress:
            for batch in own:
                missing = [key for key in batch if key not in known]
                texts = halving.answers([ids_of[key] for key in missing], writer.write)
                kept.write(fresh := {key: json.dumps(one) for key, one in zip(missing, texts, strict=True)})
                known |= fresh
                progress.advance(len(batch))
    return {pair: Reasoning(*json.loads(known[key])) for pair, key in zip(asked, keys, strict=True) if key in known}


def _prompts(pairs: Sequence[Pair], settings: Settings, source: ModelSource) -> list[list[int]]:
    alone = {"template": settings.prompt.reasoning.template, "reasoning.template": None}
    encoder = source.encoder(settings.replace(prompt=settings.prompt.replace(**alone)))
    return encoder.encode([query for query, _ in pairs], [target for _, target in pairs])


def _identity(settings: Settings) -> str:
    """Of all but the prompt's tokens that changes a text; the device, which may round otherwise, is left out."""
    model = settings.model
    how = {"dtype": model.dtype, "quantisation": model.quantisation, "tokens": settings.prompt.reasoning.max_tokens}
    return fingerprint({"weights": identity(model), **how})[:16]


class _Writer:
    """Loads the backbone when it is asked first."""

    def __init__(self, settings: Settings, source: ModelSource) -> None:
        self.most, self.source = settings.prompt.reasoning.max_tokens, source

    def write(self, prompts: Sequence[Sequence[int]]) -> list[Reasoning]:
        """Goes on from each prompt until the model ends or `most` tokens are written."""
        model, tokenizer = self.source.backbone(), self.source.whole_tokenizer
        known = [tokenizer.eos_token_id, model.generation_config.eos_token_id]
        ends = [end for one in known for end in (one if isinstance(one, list) else [one]) if end is not None]
        greedy = GenerationConfig(
            do_sample=False, max_new_tokens=self.most, eos_token_id=ends or None, pad_token_id=self.source.pad_id
        )
        ids, mask = _left_padded(prompts, self.source.pad_id)
        # Not in inference mode, whose tensors no training may keep.
        with torch.no_grad():
            made = model.generate(ids.to(model.device), attention_mask=mask.to(model.device), generation_config=greedy)
        written = [_until(line, ends) for line in made[:, ids.shape[1] :].tolist()]
        texts = tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [Reasoning(text.strip(), len(line)) for text, line in zip(texts, written, strict=True)]


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def _left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, [prompts, longest]: what is gone on from stands at the end of every line."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(line)) + list(line) for line in prompts])
    mask = torch.tensor([[0] * (longest - len(line)) + [1] * len(line) for line in prompts])
    return ids, mask
