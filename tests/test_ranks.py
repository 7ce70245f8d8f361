"""Processes that train one adapter together: they come to what one comes to, but for rounding, and end together."""

from __future__ import annotations

import threading

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import make_job
from worker_calls import wait_for

from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.engine.graph import FIRST, WHOLE, Part, Shard
from analyticup.errors import machine_trouble
from analyticup.model.batches import EncodedRows
from analyticup.model.data import scoring_loader
from analyticup.model.passes import Cutter
from analyticup.model.ranks import devices_fault
from analyticup.settings.schema import Settings
from analyticup.training.source import model_source
from analyticup.training.stage import train_adapter

pytestmark = pytest.mark.arithmetic


def rows(count, seed):
    random = np.random.default_rng(seed)
    words = ["lamp", "red shoe", "phone case with a strap", "tv", "garden hose"]
    texts = {name: [" ".join(random.choice(words, 2)) for _ in range(count)] for name in ("query", "target")}
    return pd.DataFrame({"row_id": [f"r{i}" for i in range(count)], **texts, "label": [i % 2 for i in range(count)]})


def trained(folder, devices, minutes=0.0, shard=WHOLE, inputs=None):
    """The adapter, the margins of the held-out rows and what was counted. The last batch of an epoch has one row."""
    folder.mkdir(exist_ok=True)
    settings = Settings().replace(
        **{"model.backbone": "random:qwen3", "model.lora.r": 4, "model.lora.dropout": 0.2, "model.dtype": "float32"},
        **{"train.epochs": 3, "train.batch_rows": 4, "train.accumulate": 2, "train.lr": 1e-3},
        **{"machine.accelerator": "cpu", "machine.threads": 1, "machine.devices": devices},
        **{"machine.checkpoint_minutes": minutes, "tracking.mode": "disabled"},
        **{"paths.artifacts": str(folder / "artifacts"), "paths.cache": str(folder)},
    )
    given = {"settings": settings, "source": model_source(settings), "resume_file": folder / "kept"}
    job = make_job(folder, part=Part(0, shard=shard), inputs=inputs or {}, **given)
    counts = train_adapter(job, rows(33, 1), rows(21, 2), "train", check=False)
    if shard != WHOLE:
        return counts
    margins = pd.read_parquet(folder / "held_out.parquet")
    assert margins["row_id"].tolist() == rows(21, 2)["row_id"].tolist()
    return load_file(folder / "adapter_model.safetensors"), margins["margin"].to_numpy(), counts


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("two"), 2)


def test_two_processes_come_to_what_one_comes_to(tmp_path, two):
    adapter, margins, counts = trained(tmp_path, 1)
    assert adapter.keys() == two[0].keys()
    moved = max(float(value.abs().max()) for name, value in adapter.items() if "lora_B" in name)
    apart = max(float((value - two[0][name]).abs().max()) for name, value in adapter.items())
    print(f"adapters {apart:.1e} apart, moved {moved:.1e}; margins {np.abs(margins - two[1]).max():.1e} apart")
    # AdamW divides a gradient by its own size, and with it what was rounded.
    assert apart < 1e-3 * moved and np.abs(margins - two[1]).max() < 1e-4
    assert counts.keys() == two[2].keys() and counts["trained on"] == two[2]["trained on"] == 33


@pytest.mark.long
def test_their_held_out_rows_scored_in_shards_have_the_same_bytes(tmp_path, two):
    trained(tmp_path / "first", 2, shard=FIRST)
    adapter = load_file(tmp_path / "first" / "adapter_model.safetensors")
    assert all(torch.equal(value, two[0][name]) for name, value in adapter.items())
    parts = []
    for number in range(2):
        folder = tmp_path / str(number)
        trained(folder, 2, shard=Shard(number, 2), inputs={"trained": Artifact(tmp_path / "first", StageRecord())})
        parts.append(pd.read_parquet(folder / "held_out.parquet"))
    margins = pd.concat(parts).set_index("row_id").loc[rows(21, 2)["row_id"], "margin"]
    assert margins.to_numpy().tobytes() == two[1].tobytes()


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_is_killed_all_end_and_the_next_run_resumes_to_the_same_bytes(tmp_path, two, victim, capfd):
    def kill():
        wait_for(lambda: (tmp_path / "kept").exists(), 120)
        ranks = [one for one in psutil.Process().children() if "resource_tracker" not in " ".join(one.cmdline())]
        sorted(ranks, key=lambda one: one.create_time())[victim].kill()

    before = set(psutil.Process().children())
    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(MemoryError) as failure:
        trained(tmp_path, 2, minutes=1e-9)
    killer.join()
    assert f"process {victim + 1} of 2 of joint_training was ended" in machine_trouble(failure.value)
    assert all("resource_tracker" in " ".join(one.cmdline()) for one in set(psutil.Process().children()) - before)
    assert "Traceback" not in capfd.readouterr().err
    adapter, margins, counts = trained(tmp_path, 2, minutes=1e-9)
    assert capfd.readouterr().err.count("resuming after batch") == 1
    assert all(torch.equal(value, two[0][name]) for name, value in adapter.items())
    assert margins.tobytes() == two[1].tobytes() and counts == two[2]


def test_ranks_score_the_batches_of_one_process():
    prompts = [[5, *range(60, 60 + number % 7)] for number in range(40)]
    cut = Cutter(EncodedRows(prompts, [0] * 40), 0, packing=True)

    def scored(rank):
        return [passes.step for passes in scoring_loader(cut, 60, rank)]

    whole = scored(Shard(0, 1))
    parts = [step for number in range(3) for step in scored(Shard(number, 3))]
    assert len(whole) > 3 and sorted(parts) == sorted(whole)
    # All of them have to score something; what comes twice counts once.
    assert scored(Shard(90, 91)) == whole[:1]


def test_what_cannot_train_together_is_said():
    assert devices_fault(2, "cpu", 0) == devices_fault(2, "cuda", 2) == devices_fault(1, "mps", 0) == ""
    assert devices_fault(4, "cuda", 2) == (
        "machine.devices = 4: GPUs that torch sees here: 2; lower it, or see CUDA_VISIBLE_DEVICES"
    )
    assert "machine.devices = 2" in devices_fault(2, "mps", 1)
