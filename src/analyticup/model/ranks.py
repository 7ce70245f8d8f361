"""Processes that train one adapter together: each runs its part of every batch, and their gradients are added up.

Lightning's DDP strategy does not fit. It averages inside each backward pass, but a step has as many passes as memory
asks for, which may differ between processes, and one that runs out of memory is tried again. So all of it would have to
be switched off (`no_sync`); and it starts processes by running the command again or by pickling the model.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from analyticup.engine.graph import Shard
from analyticup.errors import UserError

# Who starts them notices at once where one ends; a slow one is waited for.
PATIENCE = timedelta(days=2)


def devices_fault(devices: int, device: str, gpus: int) -> str:
    """Why so many processes cannot train together on cpu, cuda (with so many GPUs) or mps, or ""."""
    given = f"machine.devices = {devices}"
    if device == "mps" and devices > 1:
        return f"{given}: there is one GPU of this kind; set it to 1, or machine.accelerator=cpu"
    if device == "cuda" and devices > gpus:
        return f"{given}: GPUs that torch sees here: {gpus}; lower it, or see CUDA_VISIBLE_DEVICES"
    return ""


@contextlib.contextmanager
def joined(rank: Shard, meeting: Path, device: str) -> Iterator[None]:
    """Within, this process is one `rank` of those that train together; they find each other by the file `meeting`,
    which is not there before. On GPUs it takes the one of its number. Raises UserError where it has none."""
    if fault := devices_fault(rank.of, device, torch.cuda.device_count()):
        raise UserError(fault)
    if device == "cuda":
        torch.cuda.set_device(rank.number)
    elif sys.platform == "linux":
        # They are all on this machine; no other could reach their port.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend, store = "nccl" if device == "cuda" else "gloo", dist.FileStore(str(meeting), rank.of)
    with _peers():
        dist.init_process_group(backend, store=store, rank=rank.number, world_size=rank.of, timeout=PATIENCE)
    yield
    # After an error the others may be gone, and it would wait for them; this process ends anyway.
    dist.destroy_process_group()


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """ConnectionError where another process is gone: its own error is the one to show."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(f"another process of the training is gone ({str(error).splitlines()[0]})") from error


def added_up(loss: Tensor, trained: Sequence[nn.Parameter]) -> Tensor:
    """Puts the sum over all processes into the gradients; returns the sum of the losses. The same bits everywhere."""
    gradients = [value.grad for value in trained if value.grad is not None]
    # One message is faster than some hundred.
    flat = torch.cat([loss.reshape(1).float(), *(one.flatten() for one in gradients)])
    with _peers():
        dist.all_reduce(flat)
    sums = flat[1:].split([one.numel() for one in gradients])
    for one, sum_ in zip(gradients, sums, strict=True):
        one.copy_(sum_.view_as(one))
    return flat[0]


def gathered(scored: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
    """What each process has scored, in all of them."""
    parts: list[Any] = [None] * dist.get_world_size()
    with _peers():
        dist.all_gather_object(parts, {name: torch.cat(list(values)) for name, values in scored.items()})
    return {name: [part[name] for part in parts] for name in scored}
