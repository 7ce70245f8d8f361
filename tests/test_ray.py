"""Stages on Ray: the bytes of a run without it, whatever is lost, and no process left, however it ends."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tiny_runs import ROOT, TINY, places
from worker_calls import answer, fail_beside, raise_odd, wait_for

from analyticup.engine import cluster
from analyticup.engine.cluster import RayRunner, cluster_fault
from analyticup.engine.environment import describe
from analyticup.engine.execution import Done, execute
from analyticup.engine.graph import Node, Part, Stage
from analyticup.engine.workers import cores, make_runner
from analyticup.errors import UserError
from analyticup.pipeline import MODELS, build
from analyticup.settings.loading import load_settings
from analyticup.settings.paths import PROJECT
from analyticup.settings.schema import MachineSettings, Settings

RAY = ["machine.engine=ray", "machine.workers=2"]
# One task, without filter and negatives: nine stages.
FEW = [*TINY, "tasks=[QI]", "QI.filter.enabled=false", "model.lora.layers=1", "data.sample.train_queries=30"]
# They hold seconds.
TIMED = ("record.json", "report.html", "report.json")

pytest.importorskip("ray")


def given(folder: Path, *more: str) -> Settings:
    return load_settings(PROJECT / "configs" / "sample.yaml", [*FEW, *places(folder), *more])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run in this process."""
    folder = tmp_path_factory.mktemp("whole")
    run(given(folder))
    return folder


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """Two workers on a cluster of their own; environment variables reach them, as run.sh sets some."""
    settings = given(tmp_path_factory.mktemp("runner"), *RAY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_TRIM_THRESHOLD_", "123456789")
        patch.setenv("OMP_NUM_THREADS", "1")
        with make_runner(settings, MODELS) as made:
            assert isinstance(made, RayRunner)
            yield made
            own = cluster.family(made._process.pid)
    assert own and not [process for process in own if process.is_running()]
    assert not made._folder.exists()


def run(settings: Settings, runner=None) -> list[str]:
    """Runs what is not cached; the titles of that."""
    nodes = build(settings)
    if runner is None:
        with make_runner(settings, MODELS) as own:
            return run(settings, own)
    steps = list(execute(settings, nodes, describe(PROJECT), runner))
    return [step.status.node.title for step in steps if isinstance(step, Done) and step.ran]


def files(folder: Path) -> dict[str, bytes]:
    found = {path for path in (folder / "artifacts").glob("[!.]*-*/**/*") if path.is_file()}
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.name not in TIMED}


# ---------------------------------------------------------------- the same bytes


@pytest.mark.slow
def test_a_run_on_ray_writes_the_bytes_of_one_without_cold_cached_and_taken_over(whole, runner, tmp_path):
    settings = given(tmp_path, *RAY)
    titles = [node.title for node in build(settings)]
    assert sorted(run(settings, runner)) == sorted(titles)
    assert files(tmp_path) == files(whole)
    assert run(settings, runner) == []
    # Each engine goes on where the other one has stopped.
    for engine, stage in ((None, "train-QI-fold0"), (runner, "ensemble-QI")):
        (left,) = (node for node in build(settings) if node.title == stage)
        for path in (tmp_path / "artifacts" / left.name).iterdir():
            path.unlink()
        again = run(given(tmp_path), engine)
        assert stage in again and len(again) < len(titles)
        assert files(tmp_path) == files(whole)


# ---------------------------------------------------------------- workers


def submit(runner: RayRunner, call, title: str = "train"):
    node = Node(Stage(title, 1, "worker_calls:answer"), "QC", Part(0), {}, {}, {})
    return runner.submit(call, runner._settings, node)


def test_workers_have_their_share_of_the_cores_and_the_environment_of_the_run(runner, tmp_path):
    call = functools.partial(answer, tmp_path, processes=2)
    records = [future.result(60).record.counts for future in [submit(runner, call) for _ in range(2)]]
    assert len({os.getpid(), *(record["pid"] for record in records)}) == 3
    assert {record["threads"] for record in records} == {max(1, cores() // 2)}
    for record in records:
        worker = psutil.Process(record["pid"])
        assert worker.cwd() == os.getcwd() and worker.nice() == psutil.Process().nice()
        # As it was when the process began: the C library reads it then.
        assert runner.ask("worker_calls:began_with", "MALLOC_TRIM_THRESHOLD_") == "123456789"
    assert runner.ask("os:getenv", "OMP_NUM_THREADS") == "1"


def test_only_this_machine_can_reach_an_own_cluster(runner):
    ports = [
        connection.laddr.ip
        for process in [psutil.Process(runner._process.pid), *cluster.family(runner._process.pid)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert ports and {ip.removeprefix("::ffff:") for ip in ports} == {"127.0.0.1"}


def test_errors_come_through_and_what_is_printed_too(runner, tmp_path, capsys):
    (tmp_path / "begun").touch()
    with pytest.raises(UserError, match=r"^rows are wrong"):
        submit(runner, functools.partial(fail_beside, tmp_path)).result(60)
    with pytest.raises(Exception, match="Odd"):
        submit(runner, raise_odd).result(60)
    wait_for(lambda: "printed by a worker\n" in capsys.readouterr().err, 10)


def test_what_a_lost_worker_leaves_runs_again_but_not_for_ever(runner, tmp_path, capsys):
    def lives(name: str, deaths: int):
        # As a stage is called, but without its models.
        given = ("worker_calls:die_once", (tmp_path / name, deaths, None))
        return runner._send(name, True, functools.partial(cluster._asked, *given)).result(60)

    assert lives("once", 1).record.counts == {"lives": 2}
    assert "once: its worker on 127.0.0.1 was lost; it runs again\n" in capsys.readouterr().err
    with pytest.raises(MemoryError, match="its worker was ended 3 times"):
        lives("often", 9)
    assert len((tmp_path / "often").read_text()) == 3


# ---------------------------------------------------------------- before and after


def test_what_speaks_against_ray_is_one_line(monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ray is not installed; run: .*-r .*requirements-ray\.lock$"):
        make_runner(Settings(machine=MachineSettings(engine="ray")), MODELS)
    monkeypatch.undo()
    for address, fault in [("127.0.0.1:9", "no cluster answers there"), ("ray://a:1", "give HOST:PORT")]:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert fault in (cluster_fault() or "")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster_fault() is None


def start(folder: Path) -> subprocess.Popen:
    arguments = ["run", *FEW, *RAY, *places(folder), "train.epochs=9", "train.batch_rows=2"]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "analyticup", *arguments],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])},
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


@pytest.mark.slow
def test_no_process_outlives_a_run_that_is_interrupted_or_killed(tmp_path):
    def said() -> str:
        return (tmp_path / "log").read_text()

    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(tmp_path)
        try:
            wait_for(lambda: "train-QI-fold0: running" in said(), 120)
            own = cluster.family(process.pid)
            assert any(child.name() == "raylet" for child in own)
            os.kill(process.pid, number)
            assert process.wait(60) == code
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(own, timeout=30)
        assert not alive and "Traceback" not in said()
        if number == signal.SIGINT:
            assert said().endswith("interrupted; finished stages are kept, the same command resumes from there\n")
            assert not list((tmp_path / "artifacts").glob(".unfinished-*"))
