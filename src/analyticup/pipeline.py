"""The pipeline: the stages in their order, as in Figure 1 of the paper, and what each of them is given.

What a stage does, which settings decide its bytes and which version its code has is in its room.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from analyticup.augmentation import NEGATIVES, TRANSLATE
from analyticup.corpus import INGEST, SAMPLE
from analyticup.corpus.official import hash_files, label_names, row_names
from analyticup.engine.graph import Graph, Node, Part, Stage
from analyticup.ensembling import ENSEMBLE, THRESHOLD
from analyticup.features import FEATURES, NEIGHBOURS
from analyticup.filtering import FILTER, JUDGE
from analyticup.report import REPORT
from analyticup.settings.loading import task_settings
from analyticup.settings.schema import Settings
from analyticup.submission import SUBMIT
from analyticup.training import FOLDS, PREDICT, TRAIN

# What loads the models of a run, for the processes that its stages run in.
MODELS = "analyticup.training.source:model_source"


def build(settings: Settings, hashes: Mapping[str, str] | None = None) -> list[Node]:
    """Every stage of the run in the order of execution; creates nothing. Raises UserError for missing files.

    `hashes`, official file name -> sha256, are taken instead of reading the files of `data.dir`.
    """
    graph, sample = Graph({}), {}
    if settings.data.dir is None:
        sample = {"sample": graph.add(SAMPLE, settings, "all")}
    else:
        graph.hashes = hash_files(settings) if hashes is None else hashes
    ends: dict[str, Node] = {}
    for task in settings.tasks:
        stages = TaskStages(graph, task, task_settings(settings, task), sample).all()
        ends |= {f"{name}-{task}": node for name, node in stages.items()}
    asked = [name for task in settings.tasks for name in row_names(task)[1:]]
    known = [name for task in settings.tasks for name in label_names(task)]
    decided = {name: node for name, node in ends.items() if name.split("-")[0] in ("ensemble", "threshold")}
    submit = graph.add(SUBMIT, settings, "all", {**decided, **sample}, files=asked)
    graph.add(REPORT, settings, "all", {**ends, "submit": submit, **sample}, files=[*asked, *known])
    return graph.nodes


class TaskStages:
    """The stages of one task."""

    def __init__(self, graph: Graph, task: str, own: Settings, sample: Mapping[str, Node]) -> None:
        self.graph, self.task, self.own, self.sample = graph, task, own, sample
        self.folds = range(own.folds.n)

    def add(
        self, stage: Stage, inputs: Mapping[str, Node], part: Part | None = None, files: Collection[str] = ()
    ) -> Node:
        return self.graph.add(stage, self.own, self.task, inputs, part, files)

    def all(self) -> dict[str, Node]:
        own, used = self.own, {}
        ingest = rows = used["ingest"] = self.add(INGEST, self.sample, files=row_names(self.task))
        if own.translate.enabled:
            rows = used["translate"] = self.add(TRANSLATE, {"rows": rows})
        if own.negatives.enabled:
            rows = used["negatives"] = self.add(NEGATIVES, {"rows": rows, **self.guard(rows)})
        folds = used["folds"] = self.add(FOLDS, {"rows": rows})
        training = {"rows": rows, "folds": folds}
        if own.filter.enabled:
            training["filter"] = used["filter"] = self.filtered(training)
        trained = {f"train-fold{n}": self.add(TRAIN, training, Part(n)) for n in self.folds}
        scored = {
            f"predict-fold{n}": self.add(PREDICT, {"rows": ingest, "train": trained[f"train-fold{n}"]}, Part(n))
            for n in self.folds
        }
        return {**used, **self.decided(ingest, trained, scored), **trained, **scored}

    def guard(self, rows: Node) -> dict[str, Node]:
        """Models trained on the rows so far, which refuse a candidate negative that they take for a positive."""
        if self.own.negatives.guard_above is None:
            return {}
        training = {"rows": rows, "folds": self.add(FOLDS, {"rows": rows}, Part(purpose="guard"))}
        judges = {f"judge-fold{n}": self.add(JUDGE, training, Part(n, "guard")) for n in self.folds}
        return {"folds": training["folds"], **judges}

    def filtered(self, training: Mapping[str, Node]) -> Node:
        """The last round's rows; each round's judges, or voters, know only what the round before has left."""
        last: dict[str, Node] = {}
        for turn in range(1, self.own.filter.rounds + 1):
            judges = self.judges({**training, **last}, turn)
            last = {"filter": self.add(FILTER, {"rows": training["rows"], **judges}, Part(round=turn))}
        return last["filter"]

    def judges(self, given: Mapping[str, Node], turn: int) -> dict[str, Node]:
        scores = self.own.filter.scores
        if scores == "neighbours":
            voters = {name: node for name, node in given.items() if name != "folds"}
            return {"neighbours": self.add(NEIGHBOURS, voters, Part(purpose="filter", round=turn))}
        by_fold = {f"fold{n}": Part(n, round=turn) for n in self.folds}
        parts = {"all": Part(purpose="all", round=turn)} if scores == "in-sample" else by_fold
        return {f"filter_model-{n}": self.add(JUDGE, given, part) for n, part in parts.items()}

    def decided(self, ingest: Node, trained: Mapping[str, Node], scored: Mapping[str, Node]) -> dict[str, Node]:
        """Ensemble and threshold; an ensemble depends on out-of-fold rows only where its method uses them."""
        inputs, held_out = {"rows": ingest, **scored}, {"rows": ingest, **trained}
        if self.own.ensemble.method == "vote":
            threshold = inputs["threshold"] = self.add(THRESHOLD, held_out)
            return {"threshold": threshold, "ensemble": self.add(ENSEMBLE, inputs)}
        if self.own.ensemble.method == "stack":
            known = {stage.name: self.add(stage, {"rows": ingest}) for stage in (NEIGHBOURS, FEATURES)}
            inputs |= {**trained, **known}
            held_out |= known
        if self.own.ensemble.method in ("rank", "weights"):
            inputs |= trained
        return {"ensemble": self.add(ENSEMBLE, inputs), "threshold": self.add(THRESHOLD, held_out)}
