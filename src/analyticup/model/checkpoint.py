"""Step checkpoints inside a training: an interrupted one resumes from the last and ends in the same bytes.

Lightning says what to keep and puts it back; this module keeps it without pickle. A checkpoint is one safetensors file:
adapters, optimiser state and the random state as tensors, the rest (schedule, loop positions) as JSON in its metadata.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from analyticup.engine.files import discard, replace_file
from analyticup.model.drawing import random_state, set_random_state

# Tensors by name, and plain values.
Kept = tuple[dict[str, Tensor], dict[str, Any]]
# From this size on a checkpoint is written every so many minutes at most: the paper's is 1.5 GB.
LARGE_BYTES, LARGE_MINUTES = 1e9, 10.0
# What Lightning puts back besides tensors; the version is that of the format of its loops.
PLAIN_PARTS = ("epoch", "global_step", "pytorch-lightning_version", "loops", "lr_schedulers")


@dataclass(frozen=True)
class StepCheckpoint:
    """The checkpoint file of one training. `identity` names all that decides the training's bytes; a file with another
    one is never used. Written every `minutes` (> 0) of training, by the process that `writes`."""

    path: Path
    identity: str
    minutes: float
    writes: bool = True

    def write(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Replaces the file in one step; on any error the one before stays."""
        ready = {name: value.detach().contiguous() for name, value in tensors.items()}
        with replace_file(self.path) as scratch:
            save_file(ready, scratch, metadata={"identity": self.identity, "plain": json.dumps(plain)})

    def read(self) -> Kept | None:
        """What `write` was given, or None; a file that cannot be used is named on stderr."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as stream:
                given = stream.metadata() or {}
                if given.get("identity") != self.identity:
                    return self._ignore("it belongs to another training")
                return {name: stream.get_tensor(name) for name in stream.keys()}, json.loads(given["plain"])  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError):
            return self._ignore("it is broken")

    def _ignore(self, reason: str) -> None:
        print(f"{self.path}: this step checkpoint is not used, {reason}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Resumption:
    """What a Trainer needs to write step checkpoints and to start from one; empty where step checkpoints are off."""

    # (epoch, optimiser steps of it that are done)
    start: tuple[int, int] = (0, 0)
    path: str | None = None
    callbacks: list[Callback] = field(default_factory=list)
    plugins: list[CheckpointIO] = field(default_factory=list)


def resumption(
    checkpoint: StepCheckpoint | None, module: LightningModule, accumulate: int, description: str
) -> Resumption:
    """How the training of `module` resumes: from its checkpoint, or from the start where there is no usable one.

    A step has `accumulate` batches.
    """
    if checkpoint is None:
        return Resumption()
    names = [name for name, value in module.named_parameters() if value.requires_grad]
    # The backbone's frozen weights are not in the file.
    module.strict_loading = False
    found = checkpoint.read()
    callbacks, plugins = [Saver(checkpoint, found)], [StepCheckpointIO(checkpoint, found, names)]
    if found is None:
        return Resumption(callbacks=callbacks, plugins=plugins)
    epoch = found[1]["epoch"]
    steps = found[1]["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
    batches = steps * accumulate
    if checkpoint.writes:
        print(f"{description}: resuming after batch {batches} of epoch {epoch + 1}", file=sys.stderr, flush=True)
    return Resumption((epoch, steps), str(checkpoint.path), callbacks, plugins)


class Saver(Callback):
    """Writes a step checkpoint every so many minutes; puts back the random state of the one that a training resumes
    from."""

    def __init__(self, checkpoint: StepCheckpoint, found: Kept | None) -> None:
        self.checkpoint = checkpoint
        self.minutes = checkpoint.minutes
        self.written = time.monotonic()
        self.random = found and {
            name.removeprefix("random/"): value for name, value in found[0].items() if name.startswith("random/")
        }

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Weights and AdamW's two moments; what takes long to write is written less often.
        size = 3 * sum(value.nbytes for value in module.parameters() if value.requires_grad)
        if size > LARGE_BYTES:
            self.minutes = max(self.minutes, LARGE_MINUTES)
        self.written = time.monotonic()

    def on_train_batch_start(self, *arguments: Any) -> None:
        # Here and not earlier: a loader draws a random number when its iteration begins.
        if self.random is not None:
            set_random_state(self.random)
        self.random = None

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        # Not at an epoch's end, where the next loader has yet to be made.
        within = self.checkpoint.writes and index + 1 < trainer.num_training_batches
        if within and time.monotonic() - self.written >= 60 * self.minutes:
            trainer.save_checkpoint(self.checkpoint.path)
            self.written = time.monotonic()


class StepCheckpointIO(CheckpointIO):
    """What Lightning writes and reads its checkpoints with, in place of torch.save."""

    def __init__(self, checkpoint: StepCheckpoint, found: Kept | None, names: Sequence[str]) -> None:
        self.checkpoint, self.found, self.names = checkpoint, found, names

    def save_checkpoint(self, state: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.checkpoint.write(*_pack(state, self.names))

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        assert self.found is not None
        return _unpack(*self.found, self.names)

    def remove_checkpoint(self, path: Any) -> None:
        discard(self.checkpoint.path)


def _pack(state: Mapping[str, Any], names: Sequence[str]) -> Kept:
    """Lightning's checkpoint as (tensors by name, plain values); `names` are the trained parameters."""
    (optimiser,) = state["optimizer_states"]
    tensors = {f"adapter/{name}": state["state_dict"][name] for name in names}
    for number, name in enumerate(names):
        tensors |= {f"optimiser/{key}/{name}": value for key, value in optimiser["state"].get(number, {}).items()}
    tensors |= {f"random/{device}": value for device, value in random_state().items()}
    return tensors, {**{part: state[part] for part in PLAIN_PARTS}, "param_groups": optimiser["param_groups"]}


def _unpack(tensors: Mapping[str, Tensor], plain: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The inverse of `_pack`, less the random state."""
    moments: dict[int, dict[str, Tensor]] = {}
    place = {name: number for number, name in enumerate(names)}
    for full, value in tensors.items():
        kind, _, rest = full.partition("/")
        if kind == "optimiser":
            key, _, name = rest.partition("/")
            moments.setdefault(place[name], {})[key] = value
    return {
        **{part: plain[part] for part in PLAIN_PARTS},
        "state_dict": {name: tensors[f"adapter/{name}"] for name in names},
        "optimizer_states": [{"state": moments, "param_groups": plain["param_groups"]}],
        "callbacks": {},
    }
