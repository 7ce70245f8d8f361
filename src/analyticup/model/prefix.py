"""Prompts that begin alike: keys and values of the common beginning are computed once, then the short tails.

Every target of a query begins with the query, or every query of a category path with the path (`prompt.target_first`).
In a causal model nothing of a prefix depends on what follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analyticup.model.data import cut_equal

if TYPE_CHECKING:
    from torch import Tensor

    from analyticup.model.data import EncodedRows

# Tokens of prefixes whose keys and values are kept at a time. Reckoned from the models' shapes, in bf16: 2.7 GB for 14B
# parameters (164 kB a token), 0.3 GB for 270M (18 kB); twice that while passes are joined.
KEPT_TOKENS = 16_384


@dataclass(frozen=True)
class PrefixBatch:
    """Rows whose prompts begin with one of a few prefixes, which are `length` tokens long each.

    `prefixes`: passes over the prefixes, each by row numbers: the row begins with that prefix. `tails`: passes over
    the rest of the prompts, all of one length in a pass: row numbers, and the place of each row's prefix in the order
    of `prefixes`.
    """

    length: int
    prefixes: list[list[int]]
    tails: list[tuple[list[int], list[int]]]


def prefix_batches(rows: EncodedRows, max_tokens: int) -> list[PrefixBatch]:
    """Every row once; a pass holds at most max_tokens tokens (a tail's prefix counts, as its keys and values are copied
    for it), but at least one row. Nothing is padded."""
    having: dict[int, dict[tuple[int, ...], list[int]]] = {}
    for row, (ids, length) in enumerate(zip(rows.tokens, rows.prefix_lengths or (), strict=True)):
        having.setdefault(length, {}).setdefault(tuple(ids[:length]), []).append(row)
    batches = []
    for length, found in sorted(having.items(), reverse=True):
        for groups in cut_equal(list(found.values()), length, KEPT_TOKENS):
            batches.append(_batch(rows, length, groups, max_tokens))
    return batches


def _batch(rows: EncodedRows, length: int, groups: Sequence[Sequence[int]], max_tokens: int) -> PrefixBatch:
    by_tail: dict[int, list[tuple[int, int]]] = {}
    for place, members in enumerate(groups):
        for row in members:
            by_tail.setdefault(len(rows.tokens[row]) - length, []).append((row, place))
    tails = [
        part
        for tail, members in sorted(by_tail.items(), reverse=True)
        for part in cut_equal(members, length + tail, max_tokens)
    ]
    return PrefixBatch(
        length=length,
        prefixes=cut_equal([members[0] for members in groups], length, max_tokens),
        tails=[([row for row, _ in part], [place for _, place in part]) for part in tails],
    )


def collate_prefixes(rows: EncodedRows, batch: PrefixBatch) -> dict[str, Any]:
    """Inputs of every pass (ids [n, tokens], or states [n, tokens, width] where the rows bring them), the place of each
    tail's prefix, and labels and row numbers in the order of the tails."""
    import torch

    order = [row for members, _ in batch.tails for row in members]
    return {
        "prefixes": [_inputs(rows, members, 0, batch.length) for members in batch.prefixes],
        "tails": [_inputs(rows, members, batch.length, None) for members, _ in batch.tails],
        "places": [torch.tensor(places) for _, places in batch.tails],
        "labels": torch.tensor([rows.labels[row] for row in order]),
        "rows": torch.tensor(order),
    }


def _inputs(rows: EncodedRows, members: Sequence[int], first: int, last: int | None) -> Tensor:
    import torch

    if rows.states is None:
        return torch.tensor([list(rows.tokens[row][first:last]) for row in members])
    return torch.stack([rows.states[row][first:last] for row in members])


def last_states(run: Any, batch: Mapping[str, Any], first_layer: int) -> Tensor:
    """Hidden state of the last token of every prompt, [rows, width], in the order of the tails.

    `run` is the decoder, in which the layers from `first_layer` on are in place (see frozen.only_layers).
    """
    import torch

    name = "inputs_embeds" if first_layer else "input_ids"
    caches = []
    for inputs in batch["prefixes"]:
        caches.append(_cache(first_layer))
        run(**{name: inputs}, past_key_values=caches[-1], use_cache=True)
    kept = [
        tuple(torch.cat([getattr(cache.layers[layer], part) for cache in caches]) for part in ("keys", "values"))
        for layer in range(len(caches[0].layers))
    ]
    last = []
    for inputs, places in zip(batch["tails"], batch["places"], strict=True):
        cache = _cache(first_layer)
        for layer, (keys, values) in enumerate(kept):
            cache.update(keys[places], values[places], first_layer + layer)
        found = run(**{name: inputs}, past_key_values=cache, use_cache=True).last_hidden_state
        last.append(found[:, -1])
    return torch.cat(last)


def _cache(first_layer: int) -> Any:
    """An empty cache for the layers from `first_layer` on, which keep their numbers while the cache counts from 0."""
    from transformers import DynamicCache

    class UpperLayers(DynamicCache):
        def update(self, keys: Tensor, values: Tensor, layer_idx: int, *rest: Any, **more: Any) -> Any:
            return super().update(keys, values, layer_idx - first_layer, *rest, **more)

    return UpperLayers()
