"""The stages in their order, written once; what is cached and what must run; the run itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyticup import stages
from analyticup.artifacts import Artifact, StageRecord, Unusable, fingerprint, read_artifact
from analyticup.corpus import tables_sha256
from analyticup.ensemble import threshold_scale
from analyticup.errors import UserError, machine_trouble
from analyticup.files import file_sha256, publish_folder
from analyticup.settings.loading import task_settings
from analyticup.settings.schema import TASKS, Settings, decisive
from analyticup.workers import Runner, make_runner

if TYPE_CHECKING:
    from analyticup.model.checkpoint import StepCheckpoint
    from analyticup.train import ModelSource

PROJECT = Path(__file__).resolve().parents[2]

# Raised when a stage's code changes what it writes, so that older artifacts are no longer used.
CODE_VERSIONS = {
    "sample": 1,
    "ingest": 1,
    "translate": 2,
    "negatives": 2,
    "folds": 1,
    "filter_model": 2,
    "filter": 2,
    "train": 2,
    "predict": 2,
    "ensemble": 1,
    "threshold": 2,
    "submit": 1,
    "report": 4,
}

# The stages that train, and so may be resumed inside.
TRAINING = ("filter_model", "train")


@dataclass(frozen=True)
class Node:
    """One stage of one task (and fold): what it depends on decides its identity, and with it its folder's name."""

    stage: str
    task: str
    part: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Node]
    raw: Mapping[str, str]
    run: Callable[[stages.Job], stages.Counts] = field(repr=False)

    @property
    def title(self) -> str:
        return "-".join(part for part in (self.stage, self.task, self.part) if part)

    @cached_property
    def identity(self) -> str:
        """sha256 over stage, code version, own settings, sha256 of raw files and the inputs' identities: no path, no
        device, no worker count."""
        return self._identity(CODE_VERSIONS[self.stage], {name: node.identity for name, node in self.inputs.items()})

    def _identity(self, code: int, inputs: Mapping[str, str]) -> str:
        own = {"stage": self.stage, "task": self.task, "part": self.part, "code": code}
        return fingerprint({**own, "settings": dict(self.settings), "raw": dict(self.raw), "inputs": dict(inputs)})

    @property
    def name(self) -> str:
        return f"{self.title}-{self.identity[:8]}"


def identities_by(nodes: Sequence[Node], code_versions: Mapping[str, int]) -> dict[str, str]:
    """Title -> the identity that other versions of the stages' code would give; `nodes` in the order of execution."""
    found: dict[str, str] = {}
    for node in nodes:
        inputs = {name: found[other.title] for name, other in node.inputs.items()}
        found[node.title] = node._identity(code_versions[node.stage], inputs)
    return found


@dataclass(frozen=True)
class Status:
    """Whether a node's artifact can be used as it is; `reason` says why not."""

    node: Node
    folder: Path
    artifact: Artifact | None
    reason: str


def resolve(path: str) -> Path:
    """A path of the settings: absolute, or relative to the project's root."""
    return (PROJECT / Path(path).expanduser()).resolve()


def raw_files(settings: Settings) -> dict[str, Path]:
    """The official files of the run's tasks that stand in `data.dir`; raises UserError where too few do."""
    folder = Path(settings.data.dir or "").expanduser()
    if not folder.is_dir():
        raise UserError(f"data.dir: {folder} is no folder; put the competition's files into it, or correct the path")
    found = {}
    for task in settings.tasks:
        for name in official_names(task):
            if (folder / name).is_file():
                found[name] = folder / name
        if f"train_{task}.txt" not in found:
            raise UserError(
                f"{folder}/train_{task}.txt: no such file; put the competition's file there, or leave the task out "
                f"with tasks=[{', '.join(other for other in TASKS if other != task)}]"
            )
        if not any(f"{split}_{task}.txt" in found for split in stages.SCORED_SPLITS):
            raise UserError(
                f"{folder}: neither dev_{task}.txt nor test_{task}.txt is there; put at least one of them there"
            )
    return found


def official_names(task: str) -> list[str]:
    """File names of a task: the competition's, plus the label files that only the report reads."""
    splits = [f"{split}_{task}" for split in ("train", *stages.SCORED_SPLITS)]
    labels = [f"{split}_{task}.labels.txt" for split in stages.SCORED_SPLITS]
    return [*(f"{name}.txt" for name in splits), *labels, f"train_{task}.truth.txt"]


def build(settings: Settings, hashes: Mapping[str, str] | None = None) -> list[Node]:
    """Every stage of the run in the order of execution; creates nothing. Raises UserError for missing files.

    `hashes`, official file name -> sha256, are taken instead of reading the files of `data.dir`.
    """
    return _Graph(settings, hashes).nodes


class _Graph:
    """Builds the nodes; the order of the calls in `__init__` and `_task` is the order of the stages."""

    def __init__(self, settings: Settings, hashes: Mapping[str, str] | None) -> None:
        self.settings = settings
        self.nodes: list[Node] = []
        self.sample = None
        self.hashes: Mapping[str, str] = {}
        if settings.data.dir is None:
            part = {"sample": decisive(settings.data.sample), "seed": settings.seed, "tables": tables_sha256()}
            self.sample = self._add("sample", "all", stages.sample, settings=part)
        else:
            if hashes is None:
                hashes = {name: file_sha256(path) for name, path in raw_files(settings).items()}
            self.hashes = hashes
        ends = {task: self._task(task, task_settings(settings, task)) for task in settings.tasks}
        inputs = {f"{name}-{task}": node for task, end in ends.items() for name, node in end.items()}
        raw = [f"{split}_{task}.txt" for task in settings.tasks for split in stages.SCORED_SPLITS]
        submit_inputs = {name: node for name, node in inputs.items() if name.split("-")[0] in ("ensemble", "threshold")}
        submit = self._add("submit", "all", stages.submit, inputs=submit_inputs, raw=raw)
        labels = [
            name
            for task in settings.tasks
            for name in official_names(task)
            if name.endswith((".labels.txt", ".truth.txt"))
        ]
        self._add("report", "all", stages.report, inputs={**inputs, "submit": submit}, raw=[*raw, *labels])

    def _task(self, task: str, own: Settings) -> dict[str, Node]:
        """ingest, translate, negatives, folds, filter, train, predict, ensemble, threshold."""
        raw = [f"{split}_{task}.txt" for split in ("train", *stages.SCORED_SPLITS)]
        data = {"max_chars": own.data.max_chars, "train_rows": own.data.train_rows}
        if own.data.flip_labels:
            data["flip_labels"] = own.data.flip_labels
        if own.data.train_rows or own.data.flip_labels:
            data["seed"] = own.seed
        ingest = rows = self._add("ingest", task, stages.ingest, settings=data, raw=raw)
        used = {"ingest": ingest}
        if own.translate.enabled:
            rows = used["translate"] = self._add(
                "translate", task, stages.translate, settings=_translate_identity(own), inputs={"rows": rows}
            )
        if own.negatives.enabled:
            rows = used["negatives"] = self._negatives(task, own, rows)
        part = {**decisive(own.folds), "seed": own.seed}
        folds = used["folds"] = self._add("folds", task, stages.folds, settings=part, inputs={"rows": rows})
        training: dict[str, Node] = {"rows": rows, "folds": folds}
        if own.filter.enabled:
            training["filter"] = used["filter"] = self._filter(task, own, training)
        parts = [f"fold{i}" for i in range(own.folds.n)]
        model = _training_identity(own)
        trained = {f"train-{p}": self._add("train", task, stages.train, p, model, training) for p in parts}
        scoring = _scoring_identity(own, "merge_adapters", "compile_min_rows")
        scored = {
            f"predict-{p}": self._add(
                "predict", task, stages.predict, p, scoring, {"rows": ingest, "train": trained[f"train-{p}"]}
            )
            for p in parts
        }
        used |= self._decision(task, own, ingest, trained, scored)
        return {**used, **trained, **scored}

    def _negatives(self, task: str, own: Settings, rows: Node) -> Node:
        """With a guard, models that are trained on the rows so far judge the candidates, each those of its fold."""
        inputs, scoring = {"rows": rows}, {}
        if own.negatives.guard_above is not None:
            scoring = _scoring_identity(own, "compile_min_rows")
            part = {**decisive(own.folds), "seed": own.seed}
            inputs["folds"] = self._add("folds", task, stages.folds, "guard", part, {"rows": rows})
            training, model = dict(inputs), _training_identity(own)
            for i in range(own.folds.n):
                inputs[f"judge-fold{i}"] = self._add(
                    "filter_model", task, stages.filter_model, f"fold{i}-guard", model, training
                )
        part = {**decisive(own.negatives), **scoring, "seed": own.seed, "embedder": _embedder_identity(own)}
        return self._add("negatives", task, stages.negatives, settings=part, inputs=inputs)

    def _decision(
        self, task: str, own: Settings, ingest: Node, trained: Mapping[str, Node], scored: Mapping[str, Node]
    ) -> dict[str, Node]:
        """ensemble and threshold; the ensemble depends on out-of-fold rows only where its method uses them."""
        method = own.ensemble.method
        chosen = {**decisive(own.threshold), "scores": threshold_scale(method)}

        def threshold() -> Node:
            return self._add("threshold", task, stages.threshold, settings=chosen, inputs={"rows": ingest, **trained})

        inputs = {"rows": ingest, **scored}
        if method == "vote":
            inputs["threshold"] = threshold()
        elif method in ("rank", "weights"):
            inputs |= trained
        ensemble = self._add("ensemble", task, stages.ensemble, settings=decisive(own.ensemble), inputs=inputs)
        return {"ensemble": ensemble, "threshold": inputs.get("threshold") or threshold()}

    def _filter(self, task: str, own: Settings, training: Mapping[str, Node]) -> Node:
        """The filter's last round; the judges of a later round are trained on what the one before has left."""
        parts = ["all"] if own.filter.scores == "in-sample" else [f"fold{i}" for i in range(own.folds.n)]
        model = _training_identity(own)
        settings = decisive(own.filter)
        rounds = settings.pop("rounds")
        filtered: dict[str, Node] = {}
        for number in range(1, rounds + 1):
            suffix = f"-round{number}" if number > 1 else ""
            judges = {
                f"filter_model-{p}": self._add(
                    "filter_model", task, stages.filter_model, p + suffix, model, {**training, **filtered}
                )
                for p in parts
            }
            inputs = {"rows": training["rows"], **judges}
            node = self._add("filter", task, stages.filter_rows, suffix.removeprefix("-"), settings, inputs)
            filtered = {"filter": node}
        return filtered["filter"]

    def _add(
        self,
        stage: str,
        task: str,
        run: Callable[[stages.Job], stages.Counts],
        part: str = "",
        settings: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Node] | None = None,
        raw: list[str] | None = None,
    ) -> Node:
        from_sample = {"sample": self.sample} if raw and self.sample else {}
        given = {name: self.hashes[name] for name in raw or [] if name in self.hashes}
        node = Node(stage, task, part, settings or {}, {**(inputs or {}), **from_sample}, given, run)
        self.nodes.append(node)
        return node


def _embedder_identity(settings: Settings) -> dict[str, Any]:
    from analyticup.embedder_identity import embedder_identity

    return {"identity": embedder_identity(settings.embedder)}


def _translate_identity(settings: Settings) -> dict[str, Any]:
    from analyticup.augment.translators import translator_identity

    own = settings.translate
    return {
        "translator": own.translator,
        "languages": own.languages,
        "rows_per_language": own.rows_per_language,
        "volumes": sorted(own.volumes),
        "source_languages": None if own.source_languages is None else sorted(own.source_languages),
        "positive_share": own.positive_share,
        "seed": settings.seed,
        **translator_identity(own, settings.embedder),
    }


def _training_identity(settings: Settings) -> dict[str, Any]:
    from analyticup.model.backbone import identity

    model = decisive(settings.model)
    # What these two name is in the weights.
    del model["backbone"], model["revision"]
    return {
        "weights": identity(settings.model),
        **model,
        "prompt": decisive(settings.prompt),
        "train": decisive(settings.train),
        "seed": settings.seed,
    }


def _scoring_identity(settings: Settings, *names: str) -> dict[str, Any]:
    """Those of the named `predict` settings that are in use: they move scores a little."""
    predict = decisive(settings.predict)
    return {name: predict[name] for name in names if predict[name]}


def inspect(nodes: list[Node], artifacts: Path) -> list[Status]:
    """For every node whether it is cached or must run, and why; hashes files, creates nothing."""
    found: dict[str, Status] = {}
    for node in nodes:
        found[node.identity] = _inspect(node, artifacts / node.name, found)
    return [found[node.identity] for node in nodes]


def _inspect(node: Node, folder: Path, found: Mapping[str, Status], ran: Collection[str] = ()) -> Status:
    inputs = {name: found[other.identity] for name, other in node.inputs.items()}
    read = read_artifact(folder, node.identity)
    if isinstance(read, Unusable):
        return Status(node, folder, None, read.reason)
    for name, status in inputs.items():
        if status.artifact is None:
            return Status(node, folder, None, f"its input {status.node.title} will run")
        if status.node.identity in ran:
            return Status(node, folder, None, f"its input {status.node.title} was made again")
        if read.record.inputs.get(name) != status.artifact.digest:
            return Status(node, folder, None, f"its input {status.node.title} has changed")
    return Status(node, folder, read, "cached")


@dataclass(frozen=True)
class Done:
    """What one node came to: its status before, its artifact, and whether it ran now."""

    status: Status
    artifact: Artifact
    ran: bool


def execute(
    settings: Settings, nodes: list[Node], environment: Mapping[str, Any], runner: Runner | None = None
) -> Iterator[Status | Done]:
    """Runs what is not cached, each node as soon as its inputs are there, those that stand first in the list first, as
    many at once as the runner has workers. Yields a Status before each node and a Done after it.

    `environment` (versions, git revision, device) goes into the records. Whatever runs again lets everything that
    follows from it run again. Several runs may share a `runner`, and with it what it has loaded.
    """
    with contextlib.ExitStack() as stack:
        runner = runner or stack.enter_context(make_runner(settings))
        yield from _Execution(settings, nodes, environment, runner).steps()


class _Execution:
    """One run: the nodes that wait, that run and that are done."""

    def __init__(self, settings: Settings, nodes: list[Node], environment: Mapping[str, Any], runner: Runner) -> None:
        self.settings, self.environment, self.runner = settings, environment, runner
        self.artifacts = resolve(settings.paths.artifacts)
        self.group = f"{settings.name}-{nodes[-1].identity[:8]}"
        self.waiting = list(nodes)
        self.running: dict[Future[Artifact], Status] = {}
        self.found: dict[str, Status] = {}
        self.ran: set[str] = set()

    def steps(self) -> Iterator[Status | Done]:
        from analyticup.model.checkpoint import tidy

        while self.waiting or self.running:
            while len(self.running) < self.runner.count and (node := self._next()) is not None:
                status = _inspect(node, self.artifacts / node.name, self.found, self.ran)
                yield status
                if status.artifact is not None:
                    yield self._done(status, status.artifact)
                else:
                    self._start(status)
            for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                status = self.running.pop(future)
                with _naming(status.node):
                    artifact = future.result()
                self.ran.add(status.node.identity)
                yield self._done(status, artifact)
        tidy(_checkpoint_folder(self.settings))

    def _next(self) -> Node | None:
        """The first node whose inputs are all there."""
        for place, node in enumerate(self.waiting):
            if all(other.identity in self.found for other in node.inputs.values()):
                return self.waiting.pop(place)
        return None

    def _start(self, status: Status) -> None:
        inputs = {name: self.found[other.identity].artifact for name, other in status.node.inputs.items()}
        call = partial(_run, status.node, status.folder, inputs, self.settings, self.group, self.environment)
        self.running[self.runner.submit(call, self.settings)] = status

    def _done(self, status: Status, artifact: Artifact) -> Done:
        from analyticup.model.checkpoint import discard

        node = status.node
        self.found[node.identity] = Status(node, status.folder, artifact, status.reason)
        if node.stage in TRAINING:
            discard(_checkpoint_path(node, self.settings))
        return Done(status, artifact, ran=status.artifact is None)


def model_source(settings: Settings) -> ModelSource:
    """The backbone of these settings, loaded when it is needed."""
    from analyticup.train import Machine, ModelSource

    machine = Machine(settings.machine.accelerator, settings.machine.threads, settings.machine.workers)
    return ModelSource(settings, resolve(settings.paths.cache), machine)


def given_files(settings: Settings, names: Collection[str], sample: Artifact | None) -> dict[str, Path]:
    """File name -> path of the official files called `names`, or of all that the sample corpus consists of."""
    if settings.data.dir is None:
        return {path.name: path for path in sample.folder.glob("*.txt")} if sample else {}
    return {name: Path(settings.data.dir).expanduser() / name for name in names}


def _step_checkpoint(
    node: Node, inputs: Mapping[str, Artifact], settings: Settings, device: str, environment: Mapping[str, Any]
) -> StepCheckpoint | None:
    """Where an interrupted training goes on: the same training, on the same device and packages. None = nowhere."""
    from analyticup.model.checkpoint import StepCheckpoint

    if not settings.machine.checkpoint_minutes:
        return None
    whose = {
        "node": node.identity,
        "inputs": {name: artifact.digest for name, artifact in inputs.items()},
        "packages": environment.get("packages", {}),
        "device": device,
    }
    path = _checkpoint_path(node, settings)
    return StepCheckpoint(path, fingerprint(whose), settings.machine.checkpoint_minutes)


def _checkpoint_folder(settings: Settings) -> Path:
    return resolve(settings.paths.artifacts) / "checkpoints"


def _checkpoint_path(node: Node, settings: Settings) -> Path:
    return _checkpoint_folder(settings) / f"{node.name}.safetensors"


def _run(
    node: Node,
    folder: Path,
    inputs: Mapping[str, Artifact],
    settings: Settings,
    group: str,
    environment: Mapping[str, Any],
    source: ModelSource,
) -> Artifact:
    started = time.monotonic()
    own = task_settings(settings, node.task) if node.task in TASKS else settings
    files = given_files(settings, node.raw, inputs.get("sample"))
    checkpoint = None
    if node.stage in TRAINING:
        checkpoint = _step_checkpoint(node, inputs, settings, source.machine.device, environment)
    with _naming(node), publish_folder(folder) as scratch:
        job = stages.Job(
            task=node.task,
            part=node.part,
            settings=own,
            inputs=inputs,
            out=scratch,
            raw=files,
            cache=resolve(settings.paths.cache),
            logs=resolve(settings.paths.artifacts),
            group=group,
            source=source,
            checkpoint=checkpoint,
        )
        counts = node.run(job)
        record = StageRecord(
            stage=node.stage,
            task=node.task,
            part=node.part,
            identity=node.identity,
            code=CODE_VERSIONS[node.stage],
            settings=dict(node.settings),
            raw=dict(node.raw),
            inputs={name: artifact.digest for name, artifact in inputs.items()},
            input_folders={name: artifact.folder.name for name, artifact in inputs.items()},
            counts=counts,
            seconds=round(time.monotonic() - started, 2),
            environment=dict(environment),
        )
        record.save(scratch)
    made = read_artifact(folder, node.identity)
    assert isinstance(made, Artifact), made
    return made


@contextlib.contextmanager
def _naming(node: Node) -> Iterator[None]:
    """Says in which stage the machine failed."""
    try:
        yield
    except Exception as error:
        trouble = machine_trouble(error)
        if trouble is None:
            raise
        raise UserError(f"{node.title}: {trouble}") from error
