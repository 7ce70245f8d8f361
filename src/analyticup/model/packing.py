"""Packs a batch without padding; a prefix that several prompts share is computed once.

In a causal model nothing of a token depends on what follows it. So the prompts of a batch form a tree, the layers run
once over the tree's tokens, and in attention each prompt sees only its path from the root. Categories, titles and
the prompt's fixed words repeat, so a tree has far fewer tokens than its prompts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn.functional import embedding, pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from analyticup.errors import UserError
from analyticup.model.batches import EncodedRows, cut_batches
from analyticup.settings.schema import ModelSettings

ATTENTION = "packed_prompts"
# Attention's rows have so many queries, and a multiple of it as keys. On CPUs without matrix tiles the bits of a
# prompt's states then do not depend on the other prompts (with rows cut to the longest, 139 of 150 changed).
QUERIES = 16
# A pack is filled up to a multiple of so many tokens: oneDNN makes and keeps code for every shape that it meets, some
# 8 MB for each number of tokens.
TOKENS = 16
# With matrix tiles it adds up over keys by so many.
_TILE = 32
# Products of queries and keys that are there at once: 16 MB in float32.
_PRODUCTS = 4_000_000


@dataclass(frozen=True)
class Tree:
    """The tokens of a batch of prompts. Prompts are ordered by their ids; tokens are numbered prompt by prompt, each
    where it first occurs.

    `order` [prompts]: the prompts' numbers in the batch. `ids`, `positions` [tokens]. `paths` [prompts, longest]: the
    numbers of each prompt's tokens, 0 beyond its end. `first` and `lengths` [prompts]: the position of the first token
    that a prompt does not share with the one before it, and the number of its tokens.
    """

    order: np.ndarray
    ids: np.ndarray
    positions: np.ndarray
    paths: np.ndarray
    first: np.ndarray
    lengths: np.ndarray


class Packing(NamedTuple):
    """Where attention finds the tokens of its rows, of which a prompt has one for every QUERIES tokens of its own:
    `queries` [rows, QUERIES] and `keys` [rows, longest] are token numbers, `places` [tokens] is where each token is
    in `queries`, read row by row."""

    queries: Tensor
    keys: Tensor
    places: Tensor


def packed_batches(tokens: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """Batches for scoring: prompts that begin alike together, the batch with the longest first (memory trouble shows at
    once), every prompt once.

    A batch holds at most max_tokens tokens as attention sees them (each prompt whole, padded), but at least one prompt.
    """
    lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
    order = sorted(range(len(tokens)), key=tokens.__getitem__)
    batches = cut_batches(order, lengths, len(tokens), max_tokens)
    return sorted(batches, key=lambda batch: int(lengths[batch].max()), reverse=True)


def make_tree(prompts: Sequence[Sequence[int]], share: bool = True) -> Tree:
    """The tree of one prompt or more, each of one token or more; ids are 0 or higher.

    Without `share` every prompt has all its tokens to itself.
    """
    lengths = np.array([len(ids) for ids in prompts])
    table = np.full((len(prompts), lengths.max()), -1)
    for row, ids in enumerate(prompts):
        table[row, : len(ids)] = ids
    order = np.lexsort(table.T[::-1])
    table, lengths = table[order], lengths[order]
    shared = np.zeros(table.shape, dtype=bool)
    if share:
        shared[1:] = np.logical_and.accumulate((table[1:] == table[:-1]) & (table[1:] >= 0), axis=1)
    own = (table >= 0) & ~shared
    numbers = np.where(own, np.cumsum(own).reshape(own.shape) - 1, 0)
    return Tree(
        order=order,
        ids=table[own],
        positions=np.nonzero(own)[1],
        # A shared token is the last new one of its column, as numbers grow from prompt to prompt.
        paths=np.where(table >= 0, np.maximum.accumulate(numbers, axis=0), 0),
        first=shared.sum(axis=1),
        lengths=lengths,
    )


def packed_inputs(tree: Tree, multiple: int = TOKENS) -> dict[str, Any]:
    """What a decoder needs besides ids or states to run on the filled tree: `position_ids` [1, tokens],
    `attention_mask` [rows, 1, QUERIES, longest] (who sees whom; Transformers passes on a mask with four dimensions
    unchanged), and `packing`. A larger `multiple` is for states that depend on no other prompt with matrix tiles
    either."""
    counts = -(-(tree.lengths - tree.first) // QUERIES)
    prompts = np.repeat(np.arange(len(counts)), counts)
    # Numbers the rows of each prompt.
    turns = np.arange(len(prompts)) - np.repeat(np.cumsum(counts) - counts, counts)
    positions = (tree.first[prompts] + turns * QUERIES)[:, None] + np.arange(QUERIES)
    used = positions < tree.lengths[prompts, None]
    # Unused places see the prompt's first token, and nothing reads them.
    positions = np.where(used, positions, 0)
    missing = -tree.paths.shape[1] % (_TILE if multiple > TOKENS else QUERIES)
    keys = np.pad(tree.paths[prompts], ((0, 0), (0, missing)))
    mask = np.arange(keys.shape[1]) <= positions[:, :, None]
    queries = np.take_along_axis(keys, positions, axis=1)
    filler = (0, _filler(len(tree.ids), multiple))
    packing = Packing(*map(torch.from_numpy, (queries, keys, np.pad(np.flatnonzero(used), filler))))
    return {
        "position_ids": torch.from_numpy(np.pad(tree.positions, filler))[None],
        "attention_mask": torch.from_numpy(mask[:, None]),
        "packing": packing,
    }


def filled(tokens: int, multiple: int = TOKENS) -> int:
    """How many a pack of so many tokens has when it is filled up; no prompt sees the rest."""
    return -(-tokens // multiple) * multiple


def _filler(tokens: int, multiple: int = TOKENS) -> int:
    return filled(tokens, multiple) - tokens


def shares_in_training(settings: ModelSettings) -> bool:
    """Whether prompts of a training pack share tokens: dropout is drawn token by token, so each needs its own."""
    return not settings.lora.dropout


def filled_up(numbers: Tensor) -> Tensor:
    """Token numbers [n], with the first token for each that is missing to a multiple of TOKENS."""
    return pad(numbers, (0, _filler(len(numbers))))


def _filled_ids(tree: Tree, multiple: int = TOKENS) -> Tensor:
    return torch.from_numpy(np.pad(tree.ids, (0, _filler(len(tree.ids), multiple))))[None]


def collate_packed(rows: EncodedRows, batch: Sequence[int], share: bool = True) -> dict[str, Any]:
    """The batch's tree, filled up: its ids [1, tokens], or states [1, tokens, width] where the rows bring them;
    `packed`, the rest of a decoder's inputs; and last token's number [rows], labels [rows] and row numbers [rows] in
    the tree's order."""
    tree = make_tree([rows.tokens[row] for row in batch], share)
    order = [batch[number] for number in tree.order]
    if rows.states is None:
        given = {"ids": _filled_ids(tree)}
    else:
        own = [rows.states[row][first:] for row, first in zip(order, tree.first, strict=True)]
        given = {"states": torch.cat([*own, own[0].new_zeros(_filler(len(tree.ids)), own[0].shape[1])])[None]}
    return {
        **given,
        "packed": packed_inputs(tree),
        "last": torch.from_numpy(tree.paths[np.arange(len(order)), tree.lengths - 1]),
        **rows.known(order),
    }


class _Shared(torch.autograd.Function):
    """States [rows, longest, width] of those by token [tokens, width] and `numbers` [rows, longest]. The gradient of a
    shared token is a sum over prompts, which is not rounded on the way."""

    @staticmethod
    def forward(context: Any, states: Tensor, numbers: Tensor) -> Tensor:
        context.save_for_backward(numbers)
        context.tokens = len(states)
        return embedding(numbers, states)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (numbers,) = context.saved_tensors
        found = torch.ops.aten.embedding_dense_backward(gradient.float(), numbers, context.tokens, -1, False)
        return found.to(gradient.dtype), None


class _Attention(torch.autograd.Function):
    """Scaled dot-product attention by plain matrix products, as Transformers' own `eager` has it. On CPUs, in bf16 and
    for rows as short as these, PyTorch's takes four times as long both ways; in float32 they take the same. Products
    are rounded before the softmax: with products of up to 17, states are .6 and gradients .7 % off, where PyTorch's are
    .2 and .4 % off. Shares are found again in the backward pass, as they would take the most memory."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        context.save_for_backward(query, key, value, mask)
        context.scale = scale
        _, heads, queries, _ = query.shape
        rows = max(_PRODUCTS // (heads * queries * key.shape[-2]), 1)
        parts = zip(*(one.split(rows) for one in (query, key, value, mask)), strict=True)
        found = [_shares(query, key, mask, scale).to(value.dtype) @ value for query, key, value, mask in parts]
        return found[0] if len(found) == 1 else torch.cat(found)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = context.saved_tensors
        shares = _shares(query, key, mask, context.scale)
        of_shares = (gradient @ value.transpose(-1, -2)).to(shares.dtype)
        of_products = shares * (of_shares - (of_shares * shares).sum(dim=-1, keepdim=True)) * context.scale
        of_products = of_products.to(query.dtype)
        of_value = shares.to(value.dtype).transpose(-1, -2) @ gradient
        return of_products @ key, of_products.transpose(-1, -2) @ query, of_value, None, None


def _shares(query: Tensor, key: Tensor, mask: Tensor, scale: float) -> Tensor:
    """How much of each key a query takes, [rows, key heads, queries, keys], in float32 or more."""
    products = (query @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32)).mul_(scale)
    products = products.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else products.add_(mask)
    return products.softmax(dim=-1)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function for Transformers: scaled dot-product attention over the rows of a pack.

    query [1, heads, tokens, width], key and value [1, key heads, tokens, width]; gives [1, tokens, heads, width].
    Without `packing` it is the one of Transformers.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **kwargs
        )

    def by_token(states: Tensor) -> Tensor:
        # Of `squeeze`, unlike of an index, the gradient is a view.
        return states.squeeze(0).transpose(0, 1).flatten(1)

    def shared(states: Tensor) -> Tensor:
        return _Shared.apply(by_token(states), packing.keys).unflatten(2, (states.shape[1], -1)).transpose(1, 2)

    groups = query.shape[1] // key.shape[1]
    if sliding_window is not None and sliding_window < attention_mask.shape[3]:
        # Who is seen from `sliding_window` tokens on is too far away.
        attention_mask = attention_mask & ~pad(attention_mask[..., sliding_window:], (0, sliding_window))
    if attention_mask.dtype == torch.bool:
        attention_mask = attention_mask.repeat(1, 1, groups, 1)
    # Heads that share their keys are adjacent: [rows, key heads, heads to a key head * QUERIES, width].
    asked = embedding(packing.queries, by_token(query)).unflatten(2, (key.shape[1], groups, -1))
    asked = asked.permute(0, 2, 3, 1, 4).flatten(2, 3)
    if asked.device.type == "cpu" and not dropout:
        scaling = asked.shape[-1] ** -0.5 if scaling is None else scaling
        found = _Attention.apply(asked, shared(key), shared(value), attention_mask, scaling)
    else:
        found = scaled_dot_product_attention(
            asked, shared(key), shared(value), attn_mask=attention_mask, dropout_p=dropout, scale=scaling
        )
    found = found.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return embedding(packing.places, found.flatten(0, 1).flatten(1)).unflatten(1, found.shape[2:])[None], None


def prepared_mask(mask: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """A pack's mask, bool [rows, 1, QUERIES, longest], as attention adds it to its products, [rows, 1, groups *
    QUERIES, longest]: made once for all layers, where none has a window. `groups` are the heads to a key head."""
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    return added.repeat(1, 1, groups, 1)


def enable_packing(model: PreTrainedModel) -> None:
    """Lets the model take packs, and everything else as before.

    Raises UserError where it gives a pack other states than its prompts one by one, as one with recurrent layers would.
    """
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)
        decoder, device = model.get_decoder(), model.device
        prompts = [[1, 2, 3], [1, 2, 4, 5]]
        # A decoder that passes no arguments on to its attention takes no `packing`.
        with torch.no_grad(), contextlib.suppress(TypeError):
            inputs = [torch.tensor([ids], device=device) for ids in prompts]
            alone = torch.cat([decoder(input_ids=ids).last_hidden_state[0] for ids in inputs]).cpu()
            found = torch.cat(packed_states(decoder, prompts))
            if (found - alone).norm() < 0.05 * alone.norm():
                return
    raise UserError(
        f"model.packing: {type(model).__name__} cannot run on packed prompts; set model.packing=false, which is slower"
    )


def packed_states(decoder: Any, prompts: Sequence[Sequence[int]], multiple: int = TOKENS) -> list[Tensor]:
    """The decoder's last hidden states of each prompt, [tokens, width] each, from one pack of them all, filled up to a
    multiple of so many tokens."""
    tree = make_tree(prompts)
    states = run_pack(decoder, tree, multiple)[0].cpu()
    found: list[Tensor] = [states] * len(prompts)
    for number, path, length in zip(tree.order, tree.paths, tree.lengths, strict=True):
        found[number] = states[torch.from_numpy(path[:length])]
    return found


def run_pack(decoder: Any, tree: Tree, multiple: int = TOKENS, **further: Any) -> Tensor:
    """The decoder's last hidden states of a tree's tokens, [1, tokens, width]."""
    inputs = {"input_ids": _filled_ids(tree, multiple), **packed_inputs(tree, multiple), **further}
    moved = move_data_to_device(inputs, next(decoder.parameters()).device)
    return decoder(**moved, use_cache=False).last_hidden_state
