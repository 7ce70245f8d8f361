"""After the set-up nothing is fetched: whole runs in a network namespace that has no way out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT, TINY, places

# A namespace of its own, with loopback (processes of one run talk over it) and nothing else.
ALONE = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
REACHES_OUT = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"


def alone(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HOME": str(cwd / "huggingface")}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run([*ALONE, *command], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def namespace(tmp_path: Path) -> None:
    try:
        permitted = alone("true", cwd=tmp_path)
    except FileNotFoundError:
        pytest.skip("no `unshare` here to run without a network")
    if permitted.returncode:
        pytest.skip(f"a namespace without a network is not permitted here: {permitted.stderr.strip()}")
    refused = alone(sys.executable, "-c", REACHES_OUT, cwd=tmp_path)
    assert "Network is unreachable" in refused.stderr


def sample_run(folder: Path, *settings: str) -> None:
    command = [sys.executable, "-P", "-m", "analyticup", "run", *settings, *places(folder)]
    done = alone(*command, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "submissions" / "sample" / "submit.zip").is_file()


@pytest.mark.slow
def test_a_run_of_a_tiny_model_needs_no_network(tmp_path: Path) -> None:
    # Tracking stays on: offline, it must ask nothing of the network either.
    sample_run(tmp_path, *TINY, "tasks=[QC]", "tracking.mode=offline")


@pytest.mark.long
def test_the_sample_run_needs_no_network(tmp_path: Path) -> None:
    sample_run(tmp_path, "machine.accelerator=cpu")
