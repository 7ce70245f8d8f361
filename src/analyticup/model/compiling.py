"""torch.compile for the layers of a backbone (`train.compile_min_steps`, `predict.compile_min_rows`)."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from analyticup.errors import UserError
from analyticup.settings.schema import Settings


def compiler_fault(settings: Settings) -> str:
    """Why the compilation that a task's settings ask for cannot work here, or ""."""
    asked = {
        "train.compile_min_steps": settings.train.compile_min_steps,
        "predict.compile_min_rows": settings.predict.compile_min_rows,
    }
    keys = [key for key, smallest in asked.items() if smallest is not None]
    # The one that torch.compile would call.
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if not keys or shutil.which(compiler):
        return ""
    asking = " and ".join(keys)
    return f"{asking}: torch.compile needs a C++ compiler, and there is no {compiler}; install it or set to null"


@contextlib.contextmanager
def compiled(layers: Iterable[nn.Module], settings: Settings, size: int, gradients: bool) -> Iterator[None]:
    """Within, the layers run compiled where gradients are on (training) or off (scoring), and plainly where not.

    `size`, the number of steps or of rows, must reach what the setting asks for; below, nothing is compiled. Layers of
    one shape are compiled once, whatever the length of their rows. Raises UserError without a compiler.
    """
    smallest = settings.train.compile_min_steps if gradients else settings.predict.compile_min_rows
    layers = [] if smallest is None or size < smallest else list(layers)
    if layers and (fault := compiler_fault(settings)):
        raise UserError(fault)
    for layer in layers:
        layer.forward = _compiled_where(gradients, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            # The class's own method comes back.
            del layer.forward


def _compiled_where(gradients: bool, plain: Callable[..., Any]) -> Callable[..., Any]:
    fast = torch.compile(plain, dynamic=True)

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (fast if torch.is_grad_enabled() == gradients else plain)(*args, **kwargs)

    return forward
