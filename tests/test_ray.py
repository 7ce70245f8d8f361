"""Stages on Ray: the bytes of a run without it, whatever is lost, and no process left, however it ends."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from tiny_runs import ROOT, TINY, fill, places
from worker_calls import answer, fail_beside, raise_odd, wait_for

from analyticup.engine import cluster
from analyticup.engine.cluster import Layout, Need, RayRunner, cluster_fault, layout
from analyticup.engine.environment import describe
from analyticup.engine.execution import Done, execute
from analyticup.engine.graph import Node, Part, Stage
from analyticup.engine.schedule import Slots
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

# Not imported here: that takes long, and Ray's variables must be set before.
if find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)


def given(folder: Path, *more: str) -> Settings:
    return load_settings(PROJECT / "configs" / "sample.yaml", [*FEW, *places(folder), *more])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run in this process."""
    folder = tmp_path_factory.mktemp("whole")
    run_through(given(folder))
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
    # A process that was ended is there until the first one of the machine asks about it.
    assert own and not psutil.wait_procs(own, timeout=10)[1]
    assert not made._folder.exists()


def run_through(settings: Settings, runner=None) -> list[str]:
    """Runs what is not cached; the titles of that."""
    nodes = build(settings)
    if runner is None:
        with make_runner(settings, MODELS) as own:
            return run_through(settings, own)
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
    assert sorted(run_through(settings, runner)) == sorted(titles)
    assert files(tmp_path) == files(whole)
    assert run_through(settings, runner) == []
    # Each engine goes on where the other one has stopped.
    for engine, stage in ((None, "train-QI-fold0"), (runner, "ensemble-QI")):
        (left,) = (node for node in build(settings) if node.title == stage)
        for path in (tmp_path / "artifacts" / left.name).iterdir():
            path.unlink()
        again = run_through(given(tmp_path), engine)
        assert stage in again and len(again) < len(titles)
        assert files(tmp_path) == files(whole)


# ---------------------------------------------------------------- the shared filesystem


def undo(whole: Path, folder: Path) -> None:
    """Makes of a folder one where the trainings of `whole`, and what follows, are still to be run."""
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    for path in (folder / "artifacts").glob("train-*"):
        shutil.rmtree(path)


@pytest.mark.slow
@pytest.mark.parametrize(("trouble", "says"), [("full", "the disk is full"), ("read-only", "no permission")])
def test_a_filesystem_that_fails_is_one_line_and_the_next_run_goes_on(whole, runner, small_disk, trouble, says):
    undo(whole, small_disk)
    settings, remount = given(small_disk, *RAY), ["mount", str(small_disk), "-o"]
    with pytest.raises(UserError) as caught:
        for step in execute(settings, build(settings), describe(PROJECT), runner):
            if isinstance(step, Done) or not step.node.title.startswith("train-"):
                continue
            if trouble == "full" and not (small_disk / "filling").exists():
                fill(small_disk, 0)
            if trouble == "read-only":
                subprocess.run([*remount, "remount,ro"], check=True)
    said = str(caught.value)
    assert said.startswith("train-QI-fold") and f": {says} (" in said and said.count("\n") == 0
    assert said.endswith("; finished stages are kept, and the same command resumes from there")
    # The other training fails too; a run's workers end with it, these do not.
    wait_for(lambda: not runner._waiting, 60)
    subprocess.run([*remount, "remount,rw"], check=True)
    (small_disk / "filling").unlink(missing_ok=True)
    assert not any(title.startswith(("ingest", "translate", "folds")) for title in run_through(settings, runner))
    assert files(small_disk) == files(whole)


@pytest.mark.long
def test_a_slow_filesystem_changes_nothing(whole, tmp_path):
    undo(whole, tmp_path)
    # Python imports what is called so at its start, in every process of the run and its cluster.
    (tmp_path / "sitecustomize.py").write_text((ROOT / "tests" / "slow_files.py").read_text())
    slow = {"SLOW_FOLDER": f"{tmp_path}/artifacts", "SLOW_COUNT": f"{tmp_path}/count"}
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    run = start(tmp_path, **slow, PYTHONPATH=path)
    assert run.wait(600) == 0, (tmp_path / "log").read_text()[-2000:]
    assert files(tmp_path) == files(whole) and (tmp_path / "count").stat().st_size > 100


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
    assert runner.ask("worker_calls:assigned") == {"CPU": max(1, cores() // 2)}


def test_all_that_run_sh_exports_reaches_the_workers():
    from analyticup.engine.driver import PASSED_ON

    exported = re.findall(r"\bexport (\w+)=", (ROOT / "run.sh").read_text(encoding="utf-8"))
    assert len(exported) >= 5 and set(exported) <= set(PASSED_ON)


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


GPU_NODE = {"CPU": 17.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("machine", "nodes", "found"),
    [
        ({"workers": 2}, [{"CPU": 4.0}], Layout(Slots(2), Need(2))),
        # The node with the fewest cores decides; a head without any takes no part.
        ({"workers": 2}, [{}, {"CPU": 8.0}, {"CPU": 2.0}], Layout(Slots(4), Need(1))),
        ({}, [GPU_NODE], Layout(Slots(8, plain=1), Need(2, 1))),
        ({}, [GPU_NODE, GPU_NODE, {"CPU": 64.0}], Layout(Slots(16, plain=2), Need(2, 1))),
        ({"devices": 4}, [GPU_NODE], Layout(Slots(2, plain=1), Need(8, 4))),
        ({}, [{"CPU": 2.0, "GPU": 2.0}], Layout(Slots(2), Need(1, 1))),
        ({"accelerator": "cpu"}, [GPU_NODE], Layout(Slots(1), Need(17))),
    ],
)
def test_the_workers_are_what_the_nodes_have_room_for(machine, nodes, found):
    assert layout(MachineSettings(engine="ray", **machine), nodes) == found


@pytest.mark.parametrize(
    ("machine", "nodes", "slots", "need", "less"),
    [
        # Two fit, one fits, and on the second node none.
        ({"workers": 2}, [{"CPU": 4.0, "memory": 7.5e9}], Slots(2), Need(2, 0, 3 * 10**9), 0),
        ({"workers": 2}, [{"CPU": 4.0, "memory": 5.9e9}], Slots(1), Need(4, 0, 3 * 10**9), 1),
        ({}, [{"CPU": 2.0, "memory": 4e9}, {"CPU": 4.0, "memory": 2e9}], Slots(1), Need(2, 0, 3 * 10**9), 1),
        # It fits nowhere: one on each.
        ({"workers": 2}, [{"CPU": 4.0, "memory": 2e9}], Slots(1), Need(4, 0, 2 * 10**9), 1),
        ({}, [{**GPU_NODE, "memory": 5e9}], Slots(5, plain=1), Need(3, 1, 10**9), 3),
    ],
)
def test_a_node_has_no_more_workers_than_its_memory_holds(machine, nodes, slots, need, less):
    assert layout(MachineSettings(engine="ray", **machine), nodes, (3e9, 1e9)) == Layout(slots, need, less)


def test_a_cluster_without_a_core_is_refused():
    with pytest.raises(UserError, match="no node of the Ray cluster has a core"):
        layout(MachineSettings(), [{}])


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


def start(folder: Path, *more: str, **environment: str) -> subprocess.Popen:
    """A run in a process of its own, in a session of its own; what it says goes to the folder's log."""
    arguments = ["run", *FEW, *RAY, *places(folder), "machine.checkpoint_minutes=1e-9", *more]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "analyticup", *arguments],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


@pytest.fixture
def begun(whole, tmp_path):
    """A folder where all is cached before the trainings, if these have other settings than those of `whole`."""
    shutil.copytree(whole / "artifacts", tmp_path / "artifacts")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.long)]
)
def test_no_process_outlives_a_run_that_is_interrupted_or_killed(begun, number, code):
    log = begun / "log"
    process = start(begun, "train.epochs=9", "train.batch_rows=2")
    try:
        wait_for(lambda: any((begun / "artifacts" / "checkpoints").glob("train-*")), 120)
        own = cluster.family(process.pid)
        assert any(child.name() == "raylet" for child in own)
        os.kill(process.pid, number)
        assert process.wait(60) == code
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(own, timeout=30)
    assert not alive and "Traceback" not in log.read_text()
    if number == signal.SIGINT:
        told = "interrupted; finished stages are kept, the same command resumes from there"
        assert log.read_text().splitlines()[-1] == told
        assert not list((begun / "artifacts").glob(".unfinished-*"))


# ---------------------------------------------------------------- a cluster of several nodes


class Nodes:
    """A cluster (see ray_nodes.py) whose parts can be killed."""

    def __init__(self, folder: Path, gpus: int = 0) -> None:
        self._gpus = gpus
        self.environment = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        self._folder = folder
        self.start()

    def start(self) -> None:
        own = {**self.environment, "RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "ray_nodes.py"), str(self._folder), "2", str(self._gpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **own},
        )
        self.environment["RAY_ADDRESS"] = self.process.stdout.readline().strip()
        assert self.environment["RAY_ADDRESS"]

    def add(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "added\n"

    def stop(self) -> list[psutil.Process]:
        """Ends it and gives what is left of it."""
        own = cluster.family(self.process.pid)
        self.process.communicate()
        return psutil.wait_procs(own, timeout=60)[1]

    def worker(self) -> psutil.Process:
        """One with a stage, if there is one."""
        found: dict[str, psutil.Process] = {}
        for one in cluster.family(self.process.pid):
            # Killed ones may wait for their parent.
            with contextlib.suppress(psutil.Error):
                found[one.cmdline()[0].strip()] = one
        return found.get("ray::Worker.do") or next(one for name, one in found.items() if "Worker" in name)

    def kill(self, what: str, run: subprocess.Popen) -> None:
        own = cluster.family(self.process.pid)
        if what in ("worker", "node"):
            worker = self.worker()
            (worker if what == "worker" else worker.parent()).kill()
            assert not psutil.wait_procs([worker], timeout=30)[1]
        elif what == "head":
            for one in own:
                if one.name() == "gcs_server":
                    one.kill()
        elif what == "run":
            run.kill()
        else:
            (driver,) = [one for one in cluster.family(run.pid) if "spawn_main" in " ".join(one.cmdline())]
            driver.kill()


# What is killed, and the stage that has begun then; None: the run goes on, else its exit code.
KILLS = [
    ("worker", "translate-QI", None),
    ("node", "train-QI-fold0", None),
    ("run", "train-QI-fold1", -9),
    ("driver", "train-QI-fold1", 2),
    # A run notices after a minute, and may end well before.
    ("head", "train-QI-fold1", 2),
    ("worker", "predict-QI-fold0", None),
    ("node", "predict-QI-fold1", None),
    ("worker", "threshold-QI", None),
    ("worker", "submit-all", None),
    ("node", "report-all", None),
]


@pytest.fixture
def nodes(request):
    # Ray's sockets have no room for pytest's paths.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        made = Nodes(Path(folder), getattr(request, "param", 0))
        yield made
        assert not made.stop()


@pytest.mark.long
def test_one_run_on_three_nodes_from_which_workers_nodes_heads_and_drivers_are_taken(nodes, tmp_path_factory):
    # Long enough for all that happens inside.
    long, whole, folder = ["train.epochs=2", "train.batch_rows=4"], *map(tmp_path_factory.mktemp, ("whole", "taken"))
    run_through(given(whole, *long))
    log = folder / "log"
    run: subprocess.Popen | None = None
    try:
        for what, stage, code in KILLS:
            run = run or start(folder, "machine.workers=1", *long, **nodes.environment)
            # On a fast machine the node that was left may have finished it before: "cached".
            wait_for(lambda stage=stage: f" {stage}: " in log.read_text(), 300)
            own = cluster.family(run.pid)
            nodes.kill(what, run)
            if code is not None:
                assert run.wait(120) == code, log.read_text()[-2000:]
                run = None
                assert not psutil.wait_procs(own, timeout=60)[1]
            if code == 2:
                assert "the Ray cluster has ended" in log.read_text().splitlines()[-1]
            if what == "head":
                assert not nodes.stop()
                nodes.start()
            elif what == "node":
                nodes.add()
        assert run is not None and run.wait(300) == 0, log.read_text()[-2000:]
    finally:
        if run is not None and run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert files(folder) == files(whole)


@pytest.mark.long
def test_two_runs_at_once_on_one_cluster_and_a_third_in_a_folder_of_theirs(nodes, whole, tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
    runs = [start(folder, "machine.workers=1", **nodes.environment) for folder in folders]
    try:
        wait_for(lambda: "running" in (folders[0] / "log").read_text(), 300)
        third = tmp_path_factory.mktemp("third")
        same = start(third, *places(folders[0]), "machine.workers=1", **nodes.environment)
        assert same.wait(120) == 2
        (line,) = [line for line in (third / "log").read_text().splitlines() if line.startswith("error: ")]
        assert "another run is using this artifacts folder; wait for it" in line
        assert [run.wait(600) for run in runs] == [0, 0]
    finally:
        for run in runs:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert files(folders[0]) == files(folders[1]) == files(whole)


@pytest.mark.long
@pytest.mark.parametrize("nodes", [1], indirect=True)
def test_where_workers_with_gpus_leave_no_core_they_do_all_the_work(nodes, whole, tmp_path):
    run = start(tmp_path, "machine.accelerator=auto", **nodes.environment)
    try:
        assert run.wait(600) == 0, (tmp_path / "log").read_text()[-2000:]
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert files(tmp_path) == files(whole)


# ---------------------------------------------------------------- SLURM

SLURM = {
    # Runs what it is given, on the one node that there is.
    "srun": 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": "echo 127.0.0.1\n",
}


def submitted(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    """What slurm.sh does as a batch job, with stand-ins for SLURM."""
    for name, text in SLURM.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "a", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": str(os.getpid())}
    own = {"PATH": f"{folder}:{os.environ['PATH']}", "ANALYTICUP_VENV": sys.prefix, "SLURM_SUBMIT_DIR": str(ROOT)}
    return subprocess.run(
        [ROOT / "src/analyticup/engine/slurm.sh", *arguments],
        env={**os.environ, **own, **job, **more},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_batch_job_from_another_folder_is_one_line(tmp_path):
    done = submitted(tmp_path, SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no project that was set up" in done.stderr


@pytest.mark.long
def test_a_batch_job_runs_on_a_ray_of_its_own_and_leaves_nothing(whole, tmp_path):
    if any(one.info["name"] in ("raylet", "gcs_server") for one in psutil.process_iter(["name"])):
        pytest.skip("a batch job ends every Ray of its node, and one runs on this machine that is not the test's")
    environment = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    done = submitted(tmp_path, *FEW, "machine.workers=2", *places(tmp_path), **environment)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    assert files(tmp_path) == files(whole)
    address = f"127.0.0.1:{20000 + os.getpid() % 20000}"
    assert not [one for one in psutil.process_iter(["cmdline"]) if address in " ".join(one.info["cmdline"] or ())]
