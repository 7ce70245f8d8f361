"""Peak memory of a stage and of a run."""

from __future__ import annotations

import subprocess
import sys

import psutil
from tiny_runs import TINY, places
from worker_calls import wait_for

from analyticup.engine import memory
from analyticup.engine.execution import execute
from analyticup.engine.graph import Node, Part, Stage
from analyticup.engine.memory import Watch, peak, reset_peak
from analyticup.engine.workers import InProcess
from analyticup.settings.schema import Settings

MB = 2**20


def test_a_stage_does_not_count_what_an_earlier_one_took():
    reset_peak()
    before = peak()
    bytearray(b"x") * (200 * MB)
    assert peak() > before + 150 * MB
    reset_peak()
    assert peak() < before + 100 * MB


def test_a_stage_counts_what_the_processes_took_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "INTERVAL", 0.02)
    node = Node(Stage("greedy", 1, "test_memory:greedy"), "all", Part(), {}, {}, {})
    settings = Settings(paths={"artifacts": str(tmp_path)})
    with InProcess("test_memory:no_models") as runner:
        *_, done = execute(settings, [node], {}, runner)
    assert done.artifact.record.memory > psutil.Process().memory_info().rss + 150 * MB


def greedy(job):
    """A stage whose child takes 200 MB for a while."""
    takes = f"import time; held = bytearray(b'x') * {200 * MB}; time.sleep(0.3)"
    subprocess.run([sys.executable, "-c", takes], check=True)
    return {}


def no_models(settings):
    return None


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


STOPPED_BEFORE_THE_STAGES = """
import sys
from analyticup import commands
from analyticup.__main__ import main

def instead_of_stages(*given):
    sys.exit(f"torch: {'torch' in sys.modules}")

commands.run_stages = instead_of_stages
main(sys.argv[1:])
"""


def test_the_process_that_shows_a_run_of_workers_goes_without_torch(tmp_path):
    """Some 300 MB, beside workers that have it."""
    told = [sys.executable, "-c", STOPPED_BEFORE_THE_STAGES, "run", *TINY, *places(tmp_path), "machine.workers=2"]
    made = subprocess.run(told, capture_output=True, text=True)
    assert made.stderr.splitlines()[-1] == "torch: False"
