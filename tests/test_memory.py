"""Peak memory of a stage and of a run."""

from __future__ import annotations

import subprocess
import sys

from worker_calls import wait_for

from analyticup.engine import memory
from analyticup.engine.memory import Watch, peak, reset_peak

MB = 2**20


def test_a_stage_does_not_count_what_an_earlier_one_took():
    reset_peak()
    before = peak()
    bytearray(b"x") * (200 * MB)
    assert peak() > before + 150 * MB
    reset_peak()
    assert peak() < before + 100 * MB


def test_a_run_is_watched_with_all_its_processes(monkeypatch):
    monkeypatch.setattr(memory, "INTERVAL", 0.05)
    takes = f"held = bytearray(b'x') * {200 * MB}; print(flush=True); input()"
    with Watch() as watch:
        wait_for(lambda: watch.peak > 0)
        alone = watch.peak
        child = subprocess.Popen([sys.executable, "-c", takes], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        wait_for(lambda: watch.peak > alone + 150 * MB)
        child.communicate(b"\n")
