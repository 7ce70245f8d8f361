"""The pipeline: the stages in their order, as in Figure 1 of the paper, and what each of them is given.

What a stage does, which settings decide its bytes and which version its code has is in its room.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from analyticup.augmentation import NEGATIVES, PIVOT, REASON, TRANSLATE
from analyticup.corpus import INGEST, SAMPLE
from analyticup.corpus.official import hash_files, label_names, row_names
from analyticup.engine.files import file_sha256
from analyticup.engine.graph import Graph, Node, Part, Stage
from analyticup.ensembling import ENSEMBLE, THRESHOLD
from analyticup.features import BI_ENCODER, FEATURES, NEIGHBOURS
from analyticup.filtering import FILTER, JUDGE, decision_files
from analyticup.report import REPORT
from analyticup.settings.loading import task_settings
from analyticup.settings.paths import decisions_name
from analyticup.settings.schema import TASKS, Settings
from analyticup.submission import SUBMIT
from analyticup.training import ADOPT, FOLDS, PREDICT, PRETRAIN, TEACH, TRAIN, models, predicting

# What loads the models of a run, for the processes that its stages run in.
MODELS = "analyticup.training.source:model_source"
# What a stack knows of a row without the models.
KNOWN = (NEIGHBOURS, FEATURES)


def build(settings: Settings, hashes: Mapping[str, str] | None = None) -> list[Node]:
    """Every stage of the run in the order of execution; creates nothing. Raises UserError for missing files.

    `hashes`, file name -> sha256, are taken instead of reading the files of `data.dir` and people's decisions.
    """
    whole = _Whole.start(settings, hashes)
    ends = whole.by_task(TaskStages.all)
    known = [name for task in settings.tasks for name in label_names(task)]
    inputs = {**ends, "submit": whole.submitted(ends), **whole.sample}
    whole.graph.add(REPORT, settings, "all", inputs, files=[*whole.asked, *known])
    return whole.graph.nodes


def build_from_scores(settings: Settings, hashes: Mapping[str, str]) -> list[Node]:
    """The stages from the folds' scores to the submission. Their inputs that are not among them must be given: rows,
    held-out scores, scores of dev and test, what the stack knows of a row."""
    whole = _Whole.start(settings, hashes)
    whole.submitted(whole.by_task(TaskStages.from_scores))
    return whole.graph.nodes


@dataclass(frozen=True)
class _Whole:
    """What is built of both tasks; `sample` is the node of the embedded corpus, if that is used."""

    settings: Settings
    graph: Graph
    sample: dict[str, Node]

    @classmethod
    def start(cls, settings: Settings, hashes: Mapping[str, str] | None) -> Self:
        if hashes is None:
            hashes = {name: file_sha256(path) for name, path in decision_files(settings).items()}
            hashes |= hash_files(settings) if settings.data.dir is not None else {}
        if settings.data.dir is not None:
            return cls(settings, Graph(hashes), {})
        graph = Graph({name: hashes[name] for name in map(decisions_name, TASKS) if name in hashes})
        return cls(settings, graph, {"sample": graph.add(SAMPLE, settings, "all")})

    @property
    def asked(self) -> list[str]:
        """The files that a submission answers."""
        return [name for task in self.settings.tasks for name in row_names(task)[1:]]

    def by_task(self, stages: Callable[[TaskStages], dict[str, Node]]) -> dict[str, Node]:
        ends: dict[str, Node] = {}
        tasks: dict[str, TaskStages] = {}
        for task in self.settings.tasks:
            tasks[task] = TaskStages(self.graph, task, task_settings(self.settings, task), self.sample, tasks)
        for task, own in tasks.items():
            ends |= {f"{name}-{task}": node for name, node in stages(own).items()}
        return ends

    def submitted(self, ends: Mapping[str, Node]) -> Node:
        decided = {name: node for name, node in ends.items() if name.split("-")[0] in ("ensemble", "threshold")}
        return self.graph.add(SUBMIT, self.settings, "all", {**decided, **self.sample}, files=self.asked)


class TaskStages:
    """The stages of one task; `tasks` are those of all tasks of the run."""

    def __init__(
        self, graph: Graph, task: str, own: Settings, sample: Mapping[str, Node], tasks: Mapping[str, TaskStages]
    ) -> None:
        self.graph, self.task, self.own, self.sample, self.tasks = graph, task, own, sample, tasks
        self.folds = range(own.folds.n)
        self.models, self.predicting = models(own), predicting(own)

    def add(
        self, stage: Stage, inputs: Mapping[str, Node], part: Part | None = None, files: Collection[str] = ()
    ) -> Node:
        return self.graph.add(stage, self.own, self.task, inputs, part, files)

    @cached_property
    def ingest(self) -> Node:
        return self.add(INGEST, self.sample, files=row_names(self.task))

    @cached_property
    def translated(self) -> Node:
        """The original rows, and those that are translated."""
        if not self.own.translate.enabled or self.own.model.adapters is not None:
            return self.ingest
        return self.add(TRANSLATE, {"rows": self.ingest})

    @cached_property
    def pivot(self) -> dict[str, Node]:
        """What the models read in the place of queries, where that is not the query; negatives bring no new ones."""
        if self.own.prompt.pivot == "none":
            return {}
        return {"pivot": self.add(PIVOT, {"rows": self.translated, "ingest": self.ingest})}

    @cached_property
    def augmented(self) -> Node:
        """All rows that a training may see."""
        rows = self.translated
        if not self.own.negatives.enabled or self.own.model.adapters is not None:
            return rows
        return self.add(NEGATIVES, {"rows": rows, **self.guard(rows)})

    @cached_property
    def read(self) -> dict[str, Node]:
        """What decides how the models read a row, besides its texts."""
        if self.own.prompt.reasoning.template is None:
            return self.pivot
        rows = {"rows": self.augmented} if self.own.model.adapters is None else {}
        return {**self.pivot, "reasoning": self.add(REASON, {**rows, "ingest": self.ingest, **self.pivot})}

    def all(self) -> dict[str, Node]:
        ingest = self.ingest
        used = {"ingest": ingest}
        trained = self.trained(used)
        scored = {
            f"predict-{name}": self.add(PREDICT, {"rows": ingest, "train": trained[f"train-{name}"], **self.read}, part)
            for name, part in self.predicting.items()
        }
        known = self.known() if self.own.ensemble.method == "stack" else {}
        folds = {name: trained[name] for name in (f"train-fold{n}" for n in self.folds)}
        return {**used, **self.decided(ingest, folds, scored, known), **trained, **scored}

    def known(self) -> dict[str, Node]:
        """What a stack knows of a row without the models; its own folds, as these may hold derived rows too."""
        found = {stage.name: self.add(stage, {"rows": self.ingest}) for stage in KNOWN}
        if self.own.bi_encoder.enabled:
            given = {"rows": self.ingest, "folds": self.add(FOLDS, {"rows": self.ingest}, Part(purpose="bi_encoder"))}
            found |= {f"{BI_ENCODER.name}-fold{n}": self.add(BI_ENCODER, given, Part(n)) for n in self.folds}
        return found

    def from_scores(self) -> dict[str, Node]:
        """The ends, from what earlier stages have given."""
        trained = {f"train-fold{n}": self.given(TRAIN, Part(n)) for n in self.folds}
        scored = {f"predict-{name}": self.given(PREDICT, part) for name, part in self.predicting.items()}
        known = {stage.name: self.given(stage) for stage in KNOWN}
        if self.own.bi_encoder.enabled:
            known |= {f"{BI_ENCODER.name}-fold{n}": self.given(BI_ENCODER, Part(n)) for n in self.folds}
        return self.decided(self.given(INGEST), trained, scored, known)

    def given(self, stage: Stage, part: Part | None = None) -> Node:
        """Stands for what a stage wrote, in the place of that stage."""
        return Node(stage, self.task, part or Part(), {}, {}, {})

    def trained(self, used: dict[str, Node]) -> dict[str, Node]:
        """The adapters of all models; what their training rows are made of goes into `used`."""
        own = self.own
        if own.model.adapters is not None:
            return {f"train-{name}": self.add(ADOPT, {}, part) for name, part in self.models.items()}
        rows = self.translated
        if own.translate.enabled:
            used["translate"] = rows
        used |= self.pivot
        if own.negatives.enabled:
            rows = used["negatives"] = self.augmented
        used |= self.read
        folds = used["folds"] = self.add(FOLDS, {"rows": rows})
        training = {"rows": rows, "folds": folds, **self.read}
        if own.filter.enabled or decisions_name(self.task) in self.graph.hashes:
            training["filter"] = used["filter"] = self.filtered(training)
        given = {part: {**training, **self.start(part.fold, rows, folds)} for part in self.models.values()}
        if own.train.distil:
            given = {part: {**inputs, "teacher": self.add(TEACH, inputs, part)} for part, inputs in given.items()}
        return {f"train-{part}": self.add(TRAIN, inputs, part) for part, inputs in given.items()}

    def start(self, fold: int | None, rows: Node, folds: Node) -> dict[str, Node]:
        """What a fold's training starts from, where that is not the base: the other task's original rows."""
        if self.own.train.start_from == "base":
            return {}
        (other,) = (stages for task, stages in self.tasks.items() if task != self.task)
        inputs = {"rows": other.ingest, "other_rows": rows, "folds": folds, **other.read}
        return {"start": other.add(PRETRAIN, inputs, Part(fold, f"before-{self.task}"))}

    def guard(self, rows: Node) -> dict[str, Node]:
        """Models trained on the rows so far, which refuse a candidate negative that they take for a positive."""
        if self.own.negatives.guard_above is None:
            return {}
        folds = self.add(FOLDS, {"rows": rows}, Part(purpose="guard"))
        training = {"rows": rows, "folds": folds, **self.pivot}
        judges = {f"judge-fold{n}": self.add(JUDGE, training, Part(n, "guard")) for n in self.folds}
        return {"folds": folds, **self.pivot, **judges}

    def filtered(self, training: Mapping[str, Node]) -> Node:
        """The last round's rows; each round's judges, or voters, know only what the round before has left.

        Without judges there are people's decisions only.
        """
        last: dict[str, Node] = {}
        for turn in range(1, self.own.filter.rounds + 1 if self.own.filter.enabled else 2):
            judges = self.judges({**training, **last}, turn)
            inputs, decided = {"rows": training["rows"], **judges}, [decisions_name(self.task)]
            last = {"filter": self.add(FILTER, inputs, Part(round=turn), files=decided)}
        return last["filter"]

    def judges(self, given: Mapping[str, Node], turn: int) -> dict[str, Node]:
        scores = self.own.filter.scores
        if not self.own.filter.enabled:
            return {}
        if scores == "neighbours":
            voters = {name: node for name, node in given.items() if name not in ("folds", *self.read)}
            return {"neighbours": self.add(NEIGHBOURS, voters, Part(purpose="filter", round=turn))}
        by_fold = {f"fold{n}": Part(n, round=turn) for n in self.folds}
        parts = {"all": Part(purpose="all", round=turn)} if scores == "in-sample" else by_fold
        return {f"filter_model-{n}": self.add(JUDGE, given, part) for n, part in parts.items()}

    def decided(
        self, ingest: Node, trained: Mapping[str, Node], scored: Mapping[str, Node], known: Mapping[str, Node]
    ) -> dict[str, Node]:
        """Ensemble and threshold; `trained` are the folds, on whose out-of-fold rows an ensemble depends only where its
        method uses them."""
        inputs, held_out = {"rows": ingest, **scored}, {"rows": ingest, **trained}
        if self.own.ensemble.method == "vote":
            threshold = inputs["threshold"] = self.add(THRESHOLD, held_out)
            return {"threshold": threshold, "ensemble": self.add(ENSEMBLE, inputs)}
        if self.own.ensemble.method == "stack":
            inputs |= {**trained, **known}
            held_out |= known
        if self.own.ensemble.method in ("rank", "weights"):
            inputs |= trained
        return {"ensemble": self.add(ENSEMBLE, inputs), "threshold": self.add(THRESHOLD, held_out)}
