"""Stages side by side in worker processes: the same bytes, and no process or half-made folder left, however it ends."""

from __future__ import annotations

import functools
import gc
import os
import queue
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import worker_calls
from tiny_runs import ROOT, TINY, places
from worker_calls import MODELS, answer, end_in_a_finaliser, end_itself, fail_beside, wait_for, work_long

from analyticup.__main__ import main
from analyticup.engine import execution, progress, workers
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.engine.graph import Node, Part, Stage, Status
from analyticup.engine.progress import relay_to, track
from analyticup.engine.schedule import Slots
from analyticup.engine.workers import InProcess, apart, cores, make_runner
from analyticup.errors import UserError
from analyticup.settings.schema import MachineSettings, PathSettings, Settings

# Trainings that are long enough to be interrupted inside.
LONG = [
    *(*TINY, "machine.workers=2", "tasks=[QI]", "QI.filter.enabled=false"),
    *("model.lora.layers=1", "train.batch_rows=2", "train.epochs=5"),
]


def settings(count=2, **machine):
    return Settings(machine=MachineSettings(accelerator="cpu", workers=count, **machine))


# ---------------------------------------------------------------- runners


def test_one_worker_is_this_process(tmp_path):
    with make_runner(settings(1), MODELS) as runner:
        assert isinstance(runner, InProcess) and runner.slots == Slots(1)
        record = runner.submit(functools.partial(answer, tmp_path), settings(1)).result().record.counts
    assert record["pid"] == os.getpid() and record["threads"] is None


def test_what_was_imported_before_the_first_stage_is_no_work_for_the_collector(tmp_path):
    gc.unfreeze()
    with make_runner(settings(1), MODELS) as runner:
        runner.submit(functools.partial(answer, tmp_path), settings(1))
    assert gc.get_freeze_count() > 10_000


def test_what_workers_import_stays_with_them(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with make_runner(settings(2), "colorsys:rgb_to_hsv") as runner:
        assert runner.ask("os:getpid") != os.getpid()
    assert "colorsys" not in sys.modules


def test_workers_are_processes_with_their_share_of_the_cores(tmp_path):
    given = settings(2)
    with make_runner(given, MODELS) as runner:
        call = functools.partial(answer, tmp_path, processes=2)
        records = [future.result().record.counts for future in [runner.submit(call, given) for _ in range(2)]]
        # Ctrl-C reaches idle workers too.
        for record in records:
            os.kill(record["pid"], signal.SIGINT)
        own = settings(2, threads=3)
        assert runner.submit(functools.partial(answer, tmp_path), own).result().record.counts["threads"] == 3
    assert len({os.getpid(), *(record["pid"] for record in records)}) == 3
    assert {record["threads"] for record in records} == {max(1, cores() // 2)}
    wait_for(lambda: not any(psutil.pid_exists(record["pid"]) for record in records), 10)


def test_what_was_loaded_is_kept_until_other_models_are_asked_for(monkeypatch):
    gone = []
    monkeypatch.setattr(worker_calls, "no_models", lambda given: SimpleNamespace(release=lambda: gone.append(given)))
    sources = workers.Sources(MODELS)
    first = sources.of(settings())
    assert sources.of(Settings(name="other", seed=4, machine=settings().machine)) is first
    # Tasks that share the backbone may have other adapters.
    assert sources.of(settings().replace(**{"model.lora.layers": 3})) is first
    assert sources.of(settings().replace(**{"model.dtype": "float32"})) is not first
    # Two backbones may be more than a GPU holds.
    assert [given.model.dtype for given in gone] == [settings().model.dtype]
    assert sources.of(Settings(paths=PathSettings(cache="elsewhere"), machine=settings().machine)) is not first


@pytest.mark.parametrize(
    ("given", "number", "seen"), [(None, 0, "0"), (None, 3, "1"), ("5,7", 1, "7"), ("GPU-a,GPU-b", 2, "GPU-a")]
)
def test_each_worker_sees_one_gpu_in_turn(monkeypatch, given, number, seen):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    # What the function sets is taken back.
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(workers, "_gpus", 0)
    workers._take_gpu(number)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
    assert workers.gpus_of_all(1) == 2


def test_an_error_comes_through_and_stops_the_others_without_leftovers(tmp_path):
    with pytest.raises(UserError, match="rows are wrong"), make_runner(settings(), MODELS) as runner:
        runner.submit(functools.partial(work_long, tmp_path / "stage"), settings())
        runner.submit(functools.partial(fail_beside, tmp_path), settings()).result()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_is_stopped_within_a_finaliser_ends_all_the_same(tmp_path, capfd):
    with pytest.raises(UserError, match="ended from outside"), make_runner(settings(), MODELS) as runner:
        runner.submit(functools.partial(end_in_a_finaliser, tmp_path), settings()).result()
    # A worker that is starting meanwhile may say that nobody is there any more.
    assert "finaliser" not in (told := capfd.readouterr().err) and "Exception ignored" not in told


def test_ctrl_c_while_workers_start_is_no_affair_of_theirs(tmp_path):
    with make_runner(settings(), MODELS) as runner:
        done = runner.submit(functools.partial(answer, tmp_path), settings())
        for process in runner._pool._processes.values():
            os.kill(process.pid, signal.SIGINT)
        assert done.result().record.counts["pid"] in runner._pool._processes


def test_a_worker_that_is_ended_from_outside_is_said(tmp_path):
    told = "a worker process was ended from outside; finished stages are kept"
    with pytest.raises(UserError, match=told), make_runner(settings(), MODELS) as runner:
        runner.submit(functools.partial(end_itself, tmp_path / "stage"), settings()).result()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_is_killed_is_told_as_out_of_memory(tmp_path):
    node = Node(Stage("train", 1, "worker_calls:die"), "QC", Part(0), {}, {}, {})
    given = Settings(machine=settings().machine, paths=PathSettings(artifacts=str(tmp_path)))
    told = r"^train-QC-fold0: out of memory .* lower train\.max_batch_tokens"
    with pytest.raises(UserError, match=told), make_runner(given, MODELS) as runner:
        list(execution.execute(given, [node], {}, runner))


# ---------------------------------------------------------------- order


class Scripted:
    """A runner whose calls end in the order that the test gives; a title with "!" ends in an error."""

    def __init__(self, count, ends, monkeypatch):
        self.slots, self.running, self.ends = Slots(count), {}, iter(ends)
        monkeypatch.setattr(execution, "wait", self.wait)

    def submit(self, call, settings, node):
        return self.running.setdefault(call.args[0].title, Future())

    def wait(self, running, return_when):
        title, failed, _ = next(self.ends).partition("!")
        future = self.running.pop(title)
        if failed:
            future.set_exception(UserError(f"{title} failed"))
        else:
            future.set_result(Artifact(Path(title), StageRecord(digest=title)))
        return SimpleNamespace(done={future})


DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b"], "e": ["c", "d"]}


def events(tmp_path, monkeypatch, count, ends):
    """ "+" for a start, "-" for an end."""
    made = {}
    for name, needed in DIAMOND.items():
        inputs = {other: made[other] for other in needed}
        made[name] = Node(Stage(name, 1, "worker_calls:answer"), "", Part(), {}, inputs, {})
    given = Settings(paths=PathSettings(artifacts=str(tmp_path)))
    steps = execution.execute(given, list(made.values()), {}, Scripted(count, ends, monkeypatch))
    for step in steps:
        yield f"+{step.node.title}" if isinstance(step, Status) else f"-{step.status.node.title}"


def test_what_runs_apart_gives_back_its_result_or_its_error(tmp_path):
    found = apart(answer, tmp_path, SimpleNamespace(machine=MachineSettings()))
    assert found.record.counts["pid"] != os.getpid() and not psutil.pid_exists(found.record.counts["pid"])
    with pytest.raises(UserError, match="rows are wrong"):
        apart(fail_beside, tmp_path, None)
    with pytest.raises(MemoryError, match="the process of die was ended"):
        apart(worker_calls.die, None)


def test_what_runs_apart_ends_with_the_process_that_started_it(tmp_path):
    script = (
        "from pathlib import Path\nimport worker_calls\nfrom analyticup.engine.workers import apart\n"
        f"if __name__ == '__main__':\n    apart(worker_calls.work_long, Path({str(tmp_path / 'out')!r}), None)\n"
    )
    (tmp_path / "script.py").write_text(script)
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    run = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], env={**os.environ, "PYTHONPATH": path})
    wait_for(lambda: any(tmp_path.glob(".unfinished-*")))
    others = psutil.Process(run.pid).children(recursive=True)
    assert others
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(others, timeout=10)
    assert not alive


@pytest.mark.parametrize(
    ("count", "ends", "expected"),
    [
        (1, "abcde", "+a -a +b -b +c -c +d -d +e -e"),
        (2, "abcde", "+a -a +b +c -b +d -c -d +e -e"),
        (2, "abdce", "+a -a +b +c -b +d -d -c +e -e"),
        (9, "acbde", "+a -a +b +c -c -b +d -d +e -e"),
    ],
)
def test_a_stage_starts_when_its_inputs_are_there_and_a_worker_is_free(tmp_path, monkeypatch, count, ends, expected):
    assert list(events(tmp_path, monkeypatch, count, ends)) == expected.split()


def test_nothing_starts_after_a_failure(tmp_path, monkeypatch):
    seen = []
    with pytest.raises(UserError, match="b failed"):
        for event in events(tmp_path, monkeypatch, 1, ["a", "b!"]):
            seen.append(event)
    # c was ready.
    assert seen == ["+a", "-a", "+b"]


# ---------------------------------------------------------------- whole runs


def command(folder, *more):
    return [sys.executable, "-P", "-m", "analyticup", "run", *LONG, *places(folder), *more]


def start(folder):
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            command(folder, "machine.checkpoint_minutes=1e-9"),
            stdout=log,
            stderr=log,
            env=environment(),
            start_new_session=True,
            cwd=folder,
            # A shell starts what it puts into the background deaf to Ctrl-C, these tests maybe too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def interrupt(folder, both_inside, how):
    """Starts a run, interrupts it when both trainings are inside, and gives its exit code; no process may be left."""
    run = start(folder)
    try:
        wait_for(both_inside, 120)
        children = psutil.Process(run.pid).children(recursive=True)
        assert len(children) >= 2
        how(run.pid)
        code = run.wait(30)
        wait_for(lambda: not any(child.is_running() for child in children), 5)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    return code


@pytest.mark.slow
def test_no_worker_outlives_an_interrupted_run_and_the_next_one_goes_on(tmp_path):
    def written():
        return len(list((tmp_path / "artifacts" / "checkpoints").glob("train-*.safetensors"))) == 2

    def said():
        return (tmp_path / "log").read_text()

    # What is before the trainings is cached then, so that both start at once, each in a worker that is new.
    few_steps = ["train.epochs=1", "train.batch_rows=32", "machine.workers=1"]
    assert main(["run", *LONG, *few_steps, *places(tmp_path)]) == 0
    # As Ctrl-C does, to every process of the terminal.
    assert interrupt(tmp_path, written, lambda pid: os.killpg(pid, signal.SIGINT)) == 130
    assert said().endswith("interrupted; finished stages are kept, the same command resumes from there\n")
    assert "Traceback" not in said() and not list((tmp_path / "artifacts").glob(".unfinished-*"))
    resumed = [f"train QI fold{number}: resuming after batch " for number in (0, 1)]

    def both_resumed():
        return all(said().count(line) == 1 for line in resumed)

    assert interrupt(tmp_path, both_resumed, lambda pid: os.kill(pid, signal.SIGKILL)) == -signal.SIGKILL
    assert "Traceback" not in said()
    done = subprocess.run(
        command(tmp_path), env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and all(done.stderr.count(line) == 1 for line in resumed)
    assert not (tmp_path / "artifacts" / "checkpoints").exists()


# ---------------------------------------------------------------- what is shown


def test_a_worker_hands_on_its_bars_and_what_it_prints(monkeypatch):
    told = queue.Queue()
    monkeypatch.setattr(progress, "_relay", None)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    relay_to(told.put)
    with track(4, "train QC fold0") as bar:
        for _ in range(3):
            time.sleep(0.75)
            bar.advance()
        print("converting")
        time.sleep(0.5)
        bar.advance()
    said = [told.get_nowait() for _ in range(told.qsize())]
    name = said[0][0]
    assert name[0] == os.getpid()
    assert said == [(name, "train QC fold0", 3, 4), "converting", (name, "train QC fold0", 4, 4), (name,)]


def test_a_process_apart_hands_on_what_it_shows(monkeypatch):
    told = []
    monkeypatch.setattr(progress, "_relay", told.append)
    assert apart(worker_calls.slow_and_loud, 3) == 9
    assert [said for said in told if isinstance(said, str)] == ["half way"]
    (name, *_), *_ = bars = [said for said in told if not isinstance(said, str)]
    assert bars == [(name, "loop", 2, 3), (name, "loop", 3, 3), (name,)] and name[0] != os.getpid()
