"""Step checkpoints: an interrupted training that resumes comes to the bytes of one that was not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("lightning")
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from analyticup.engine.files import discard, tidy
from analyticup.model import checkpoint as checkpointing
from analyticup.model import module, objective
from analyticup.model.backbone import save_adapter
from analyticup.model.checkpoint import StepCheckpoint
from analyticup.settings.schema import Settings, TrainSettings
from analyticup.training.fold import train_fold
from analyticup.training.source import Machine, ModelSource

pytestmark = pytest.mark.arithmetic

EVERY_STEP = 1e-9


class Interrupted(Exception):
    pass


def rows(count: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    words = ["lamp", "red shoe", "phone case with a strap", "tv", "garden hose"]
    return pd.DataFrame(
        {
            "query": [" ".join(random.choice(words, 2)) for _ in range(count)],
            "target": [str(random.choice(words)) for _ in range(count)],
            "label": [i % 2 for i in range(count)],
        }
    )


def settings(**train: object) -> Settings:
    """Dropout draws from the random state in every step; 7 batches in each of 3 epochs."""
    model = {"model.backbone": "random:qwen3", "model.lora.r": 2, "model.lora.dropout": 0.3}
    return Settings(train=TrainSettings(**{"epochs": 3, "batch_rows": 4, "lr": 0.01, **train})).replace(**model)


class Training:
    """One training, in a folder of its own."""

    def __init__(self, folder: Path, given: Settings) -> None:
        self.folder, self.given = folder, given
        self.path = folder / "checkpoints" / "fold.safetensors"

    def run(self, identity: str = "own", minutes: float = EVERY_STEP) -> dict[str, bytes]:
        """The bytes of the adapter and of the held-out margins."""
        source = ModelSource(self.given, self.folder, Machine("cpu", 1))
        checkpoint = StepCheckpoint(self.path, identity, minutes)
        model, margins = train_fold(rows(26, 1), rows(9, 2), self.given, source, 3, "fold", None, checkpoint)
        out = self.folder / "out"
        out.mkdir(parents=True, exist_ok=True)
        save_adapter(model, out, "base")
        return {"adapter": (out / "adapter_model.safetensors").read_bytes(), "margins": margins.tobytes()}

    def interrupt(self, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            stop_at(patch, batch)
            self.run()


def stop_at(patch: pytest.MonkeyPatch, batch: int) -> None:
    """Stops a training in the loss of its batch number `batch` (from 1) of this start."""
    seen = []
    known = objective.loss_function

    def loss_function(own: object) -> object:
        loss = known(own)

        def counting(*arguments: object) -> object:
            seen.append(1)
            if len(seen) == batch:
                raise Interrupted
            return loss(*arguments)

        return counting

    patch.setattr(module, "loss_function", loss_function)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return Training(tmp_path_factory.mktemp("whole"), settings()).run(minutes=1e9)


def test_checkpoints_change_no_byte(tmp_path, whole):
    assert Training(tmp_path, settings()).run() == whole


# The middle and both ends of epochs; batch 8 is the first of the second epoch, where no checkpoint of it stands yet.
@pytest.mark.parametrize("batch", [2, 5, 7, 8, 9, 14, 15, 16, 21])
def test_an_interrupted_training_comes_to_the_same_bytes(tmp_path, monkeypatch, capsys, whole, batch):
    training = Training(tmp_path, settings())
    training.interrupt(monkeypatch, batch)
    capsys.readouterr()
    assert training.run() == whole
    # The last checkpoint lies before the batch, and not at an epoch's end.
    done = batch - 1 if (batch - 1) % 7 else batch - 2
    assert f"fold: resuming after batch {done % 7} of epoch {done // 7 + 1}\n" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_an_interrupted_compiled_training_comes_to_the_same_bytes(tmp_path, monkeypatch):
    given = settings(compile_min_steps=1)
    expected = Training(tmp_path / "whole", given).run(minutes=1e9)
    training = Training(tmp_path / "interrupted", given)
    training.interrupt(monkeypatch, 9)
    # What another process would not have.
    torch._dynamo.reset()
    assert training.run() == expected


def test_interrupted_again_and_again(tmp_path, monkeypatch, whole):
    training = Training(tmp_path, settings())
    for _ in range(6):
        training.interrupt(monkeypatch, 4)
    assert training.run() == whole


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_with_accumulated_batches_it_goes_on_between_optimiser_steps(tmp_path, monkeypatch, capsys, schedule):
    given = settings(accumulate=3, schedule=schedule, epochs=2)
    whole = Training(tmp_path / "whole", given).run(minutes=1e9)
    training = Training(tmp_path / "cut", given)
    # In the second epoch's fifth batch: two of its three are lost.
    training.interrupt(monkeypatch, 12)
    capsys.readouterr()
    assert training.run() == whole
    assert "resuming after batch 3 of epoch 2" in capsys.readouterr().err


def test_the_state_that_is_kept_is_the_state_of_that_step(tmp_path, monkeypatch):
    """Adapters, AdamW's moments, schedule and random state, against a training stopped a step later."""
    one, other = Training(tmp_path / "one", settings()), Training(tmp_path / "other", settings())
    one.interrupt(monkeypatch, 11)
    other.interrupt(monkeypatch, 4)
    other.interrupt(monkeypatch, 8)
    kept, again = load_file(one.path), load_file(other.path)
    assert {name.split("/")[0] for name in kept} == {"adapter", "optimiser", "random"}
    assert sorted({name.split("/")[1] for name in kept if name.startswith("optimiser")}) == [
        "exp_avg",
        "exp_avg_sq",
        "step",
    ]
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)
    plain = [StepCheckpoint(training.path, "own", 1).read()[1] for training in (one, other)]
    assert plain[0] == plain[1] and plain[0]["global_step"] == 10
    # Adapters alone: the frozen backbone is not in it.
    assert all("lora_" in name for name in kept if name.startswith("adapter/"))


@pytest.mark.parametrize("fault", ["foreign", "cut", "no metadata", "text"])
def test_a_checkpoint_that_cannot_be_used_is_named_and_the_training_starts_again(
    tmp_path, monkeypatch, capsys, whole, fault
):
    training = Training(tmp_path, settings())
    training.interrupt(monkeypatch, 5)
    if fault == "cut":
        training.path.write_bytes(training.path.read_bytes()[:-100])
    elif fault == "no metadata":
        save_file(load_file(training.path), training.path)
    elif fault == "text":
        training.path.write_text("hello")
    capsys.readouterr()
    assert training.run(identity="other" if fault == "foreign" else "own") == whole
    lines = [line for line in capsys.readouterr().err.splitlines() if "checkpoint" in line]
    assert len(lines) == 1 and str(training.path) in lines[0] and "is not used" in lines[0]


def test_a_failed_write_keeps_the_checkpoint_before_and_leaves_no_scratch(tmp_path, monkeypatch):
    checkpoint = StepCheckpoint(tmp_path / "checkpoints" / "fold.safetensors", "own", 1)
    checkpoint.write({"a": torch.ones(2)}, {"epoch": 1})

    def fail(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(checkpointing, "save_file", fail)
        checkpoint.write({"a": torch.zeros(2)}, {"epoch": 2})
    assert checkpoint.read()[1] == {"epoch": 1}
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["fold.safetensors"]
    discard(checkpoint.path)
    assert list(checkpoint.path.parent.iterdir()) == []


def test_leftovers_of_killed_writes_go_and_other_trainings_checkpoints_stay(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    tidy(folder)
    folder.mkdir()
    for name in (".tmpJac1bz", ".unfinished-train-QC-fold0.safetensors", "train-QC-fold1.safetensors"):
        (folder / name).touch()
    tidy(folder)
    assert [path.name for path in folder.iterdir()] == ["train-QC-fold1.safetensors"]
    discard(folder / "train-QC-fold1.safetensors")
    tidy(folder)
    assert not folder.exists()
