"""How far apart two computations of the same numbers may be: one rule for every test that compares a model's floats.

Another instruction set, thread count, batch or kernel adds the same terms in another order. Each addition rounds by up
to half an eps of the sum so far, so the difference grows with the dtype's eps, with the size of the terms and with the
number of roundings on the way; where large terms cancel, the small result keeps the error of the large terms. Hence one
bound for a whole tensor: a number of eps of its dtype, times its largest absolute value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# The tests that use it come to at most 101 (a gradient over four layers, SSE; 76 with AVX2, 69 with AVX-512; one and
# four threads). The faults that test_packing.py puts into packing come to 13,000 and more.
ROUNDINGS = 512


def distance(found: Any, expected: Any, dtype: torch.dtype | None = None) -> float:
    """The largest difference, in eps of `dtype` (None: the values' own) times the largest absolute value of
    `expected`."""
    one, other = _tensor(found), _tensor(expected)
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    if torch.equal(one, other):
        return 0.0
    unit = torch.finfo(dtype or other.dtype).eps * float(other.abs().max())
    return float((one.double() - other.double()).abs().max()) / unit


def assert_same_sums(found: Any, expected: Any, roundings: float = ROUNDINGS, dtype: torch.dtype | None = None) -> None:
    """Fails unless both hold the same sums, added in whatever order. Tensors or arrays of one dtype and shape; `dtype`
    is the one that the products were rounded to, where it is not the values' own."""
    apart = distance(found, expected, dtype)
    # Not `>`: nan must fail.
    assert apart <= roundings, f"{apart:.0f} roundings apart, {roundings} are allowed"


def _tensor(values: Any) -> torch.Tensor:
    return values.detach() if torch.is_tensor(values) else torch.from_numpy(np.ascontiguousarray(values))
