"""New training rows made from the given ones, and what their makers share: seeded order and proportional quotas."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def seeded_key(seed: int, *parts: str) -> str:
    """A sort key drawn from the seed and the content alone, so that the order of the input never matters."""
    text = "\x1f".join((str(seed), *parts))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def proportional_quotas(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Split `total` over the keys in proportion to their sizes (largest remainder; ties by key).

    Where `total` is at most the sum of the sizes, no quota exceeds its size.
    """
    everything = sum(sizes.values())
    if everything == 0 or total <= 0:
        return dict.fromkeys(sorted(sizes), 0)
    quotas = {key: total * sizes[key] // everything for key in sorted(sizes)}
    left = total - sum(quotas.values())
    by_remainder = sorted(quotas, key=lambda key: (-(total * sizes[key] % everything), key))
    for key in by_remainder[:left]:
        quotas[key] += 1
    return quotas
