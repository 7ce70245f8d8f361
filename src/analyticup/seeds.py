"""Seeds from settings and content, never from the clock."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def seeded_key(seed: int, *parts: str) -> str:
    """A sort key drawn only from the seed and the content, so that the order of the input never matters."""
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


def derive_seed(*parts: str | int) -> int:
    """A seed in 0..2^31-1 from the sha256 of its parts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:4], "big") >> 1
