"""The whole pipeline on generated files of the competition's form and a share of its size, with a tiny model: each
stage in a process of its own. What would take hours is bounded or replaced: see stand_ins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from analyticup.corpus.rows import SPLITS
from analyticup.engine.artifacts import Artifact, read_artifact
from analyticup.engine.environment import describe
from analyticup.engine.execution import execute
from analyticup.engine.graph import Node, Status, inspect
from analyticup.engine.schedule import Slots
from analyticup.engine.workers import Call, InProcess, imported
from analyticup.errors import CheckFailed
from analyticup.experiments.bench.generated import official_rows, write_official
from analyticup.experiments.bench.harness import Done, Entry, Result, measure
from analyticup.experiments.bench.stand_ins import put_in
from analyticup.pipeline import MODELS, build
from analyticup.results.publish import publish
from analyticup.results.verify import verify_run
from analyticup.settings.paths import PROJECT
from analyticup.settings.schema import TASKS, Settings
from analyticup.verdict import Verdict

PART = "pipeline"
# Stages whose work is bounded by a stand-in, and what is no stage of a run.
APART = ("train", "filter_model", "predict", "generate")
# What a forked process finds imported, as a process that has run other stages does.
PRELOADED = (
    "analyticup.experiments.bench.pipeline",
    "analyticup.corpus.stage",
    "analyticup.ensembling.stage",
    "analyticup.filtering.stage",
    "analyticup.report.stage",
    "analyticup.submission.stage",
)


def percent(share: float) -> str:
    """1% for 0.01."""
    return f"{100 * share:g}%"


def pipeline_settings(settings: Settings, folder: Path) -> Settings:
    """The given ones with a tiny model, all rows, and everything below one folder."""
    own: dict[str, Any] = {"model.backbone": "random:qwen3", "model.lora.layers": None, "train.epochs": 1}
    own |= {f"paths.{name}": str(folder / name) for name in ("artifacts", "submissions", "cache")}
    own |= {
        "data.dir": str(folder / "data"),
        "data.train_rows": None,
        # A training that would take hours.
        "bi_encoder.enabled": False,
        "machine.workers": 1,
        "tracking.mode": "disabled",
    }
    # What is measured are whole stages.
    sections = ("translate", "prompt.reasoning", "predict")
    own |= dict.fromkeys([*(f"{name}.shards" for name in sections), "train.held_out_shards"], 1)
    for task in TASKS:
        own[task] = {key: value for key, value in getattr(settings, task).items() if key not in own}
    return settings.replace(**own)


@dataclass(frozen=True)
class Step:
    """A variant that does its work once. `rows` are those of the files that it works on."""

    work: Callable[[], Any]
    rows: int

    def warm_up(self) -> None:
        put_in()

    def prepare(self) -> None:
        pass

    def run(self) -> Done:
        self.work()
        return Done(rows=self.rows)


class _Measuring:
    """A runner that measures each stage in a process of its own. `status` is the stage's, `result` the last one's."""

    slots = Slots(1)
    status: Status
    result: Result

    def __init__(self, run: Callable[[str, str, Callable[[], Any]], Result]) -> None:
        self._run = run

    def submit(self, call: Call, settings: Settings, node: Node | None = None) -> Future[Artifact]:
        node, done = self.status.node, Future[Artifact]()
        self.result = self._run(node.title, node.task, partial(_stage, call, settings))
        made = read_artifact(self.status.folder, node.identity)
        if isinstance(made, Artifact):
            done.set_result(made)
        else:
            done.set_exception(CheckFailed(f"{node.title}: {self.result.note or made.reason}"))
        return done

    def __enter__(self) -> _Measuring:
        return self

    def __exit__(self, *error: Any) -> None:
        return None


def _stage(call: Call, settings: Settings) -> None:
    call(imported(MODELS)(settings))


def measure_pipeline(
    settings: Settings, share: float, scratch: Path, say: Callable[[str], None] = lambda text: None
) -> Iterator[Result]:
    """A result for each step in turn: the files, each stage, and what a finished run is asked for.

    Raises CheckFailed where a step fails.
    """
    folder = scratch / percent(share)
    own = pipeline_settings(settings, folder)

    def run(name: str, task: str, work: Callable[[], Any]) -> Result:
        tasks = [task] if task in TASKS else own.tasks
        rows = sum(official_rows(task, split, share) for task in tasks for split in SPLITS)
        (result,) = measure([Entry(PART, f"{name}, {percent(share)}", Step(work, rows))], 1, say, preload=PRELOADED)
        return result

    yield _sound(run("generate", "", partial(write_official, folder / "data", own.tasks, share, own.seed)))
    nodes, runner = build(own), _Measuring(run)
    artifacts: dict[str, Artifact] = {}
    for event in execute(own, nodes, describe(PROJECT), runner):
        if isinstance(event, Status):
            runner.status = event
        else:
            artifacts[event.status.node.title] = event.artifact
            yield runner.result
    published = folder / "submissions" / own.name
    yield _sound(run("publish", "", partial(publish, published, own, artifacts, InProcess(MODELS))))
    yield _sound(run("plan", "", partial(_plan, own)))
    yield _sound(run("verify", "", partial(_verify, published)))


def _sound(result: Result) -> Result:
    if result.failed:
        raise CheckFailed(f"{result.entry.name}: {result.note}")
    return result


def _plan(settings: Settings) -> None:
    inspect(build(settings), Path(settings.paths.artifacts))


def _verify(folder: Path) -> None:
    faults = [item for item in verify_run(folder, []) if item.verdict == Verdict.FAIL]
    if faults:
        raise CheckFailed(f"{faults[0].what}: {faults[0].text}")


def growth(records: Sequence[dict[str, Any]], shares: Sequence[float]) -> list[str]:
    """What the stages take together at each share, and which of them grow faster than the rows.

    Below a second a stage is mostly what it takes for any number of rows, so growth is told from there on.
    """
    by_share = {
        share: {
            one["what"].removesuffix(f", {percent(share)}"): one
            for one in records
            if one["what"].endswith(f", {percent(share)}") and one["seconds"]
        }
        for share in shares
    }
    told = []
    for share, steps in by_share.items():
        own = [one for name, one in steps.items() if name.split("-")[0] not in APART]
        seconds, cpu = (sum(one[key]["median"] for one in own) for key in ("seconds", "cpu_seconds"))
        peak = max(own, key=lambda one: one["peak_bytes"])
        told.append(
            f"At {percent(share)}, all but {', '.join(APART)}: {seconds:.1f} s, {cpu:.1f} s of CPU, at most "
            f"{peak['peak_bytes'] / 1e9:.2f} GB ({peak['what']})."
        )
    for low, high in pairwise(shares):
        faster = [
            f"{name} {times:.1f}"
            for name, one in by_share[high].items()
            if name in by_share[low] and one["cpu_seconds"]["median"] >= 1
            if (times := one["cpu_seconds"]["median"] / by_share[low][name]["cpu_seconds"]["median"]) > high / low
        ]
        told.append(
            f"From {percent(low)} to {percent(high)} ({high / low:.0f} times the rows) CPU time grew by more in: "
            f"{', '.join(faster) or 'none'}."
        )
    return told
