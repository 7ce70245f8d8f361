"""The rows of a finished run that are worth a person's look, the most worthwhile first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from pandas import DataFrame

from analyticup.augmentation.embedders import load_embedder
from analyticup.augmentation.neighbours import nearest
from analyticup.corpus.rows import load_rows
from analyticup.corpus.tables import load_table, training_rows
from analyticup.corpus.taxonomy import split_path
from analyticup.corpus.text import normalise
from analyticup.engine.artifacts import Artifact, Unusable, read_artifact
from analyticup.engine.files import read_json_lines
from analyticup.engine.graph import Part
from analyticup.errors import UserError
from analyticup.features.points import Points
from analyticup.features.vectors import Centred
from analyticup.features.vote import neighbour_vote
from analyticup.filtering import SUSPECTS
from analyticup.filtering.rules import label_credibility
from analyticup.metrics import sigmoid
from analyticup.results.manifest import Manifest
from analyticup.review.candidate import Candidate, spread_order
from analyticup.settings.loading import settings_from_dict, task_settings
from analyticup.settings.paths import decisions_folder, resolve
from analyticup.settings.schema import Settings
from analyticup.training.folds import tied_groups
from analyticup.training.out_of_fold import gathered
from analyticup.training.source import Machine

# Labelled neighbours that are shown with a row.
SHOWN = 3


@dataclass(frozen=True)
class Reviewed:
    """A finished run, whose original training rows of one task are reviewed; `settings` are the task's."""

    task: str
    settings: Settings
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path, task: str | None) -> Self:
        """The run in a folder of `submissions`, its first task where none is named; UserError where there is none."""
        manifest, _ = Manifest.load(folder)
        settings = settings_from_dict(manifest.config, f"{folder}: config", [])
        task = task or settings.tasks[0]
        if task not in settings.tasks:
            raise UserError(f"{folder}: the run has no task {task}; it has {', '.join(settings.tasks)}")
        return cls(task, task_settings(settings, task), manifest)

    @property
    def folder(self) -> Path:
        """Where the answers are kept."""
        folder = decisions_folder(self.settings)
        if folder is None:
            raise UserError("filter.decisions is null, so that the run uses no decisions; set it to a folder")
        return folder

    def stage(self, name: str, part: str = "", task: str | None = None) -> Artifact | None:
        """A stage's folder; None where the run has no such stage, UserError where its folder is gone."""
        entry = self.manifest.stages.get("-".join(filter(None, (name, task or self.task, part))))
        if entry is None:
            return None
        folder = resolve(self.settings.paths.artifacts) / entry.folder
        found = read_artifact(folder, entry.identity)
        if isinstance(found, Unusable):
            raise UserError(f"{folder}: {found.reason}; run again, then review")
        return found

    @cached_property
    def rows(self) -> DataFrame:
        """The original training rows with their labels as given."""
        ingested = self.stage("ingest")
        assert ingested is not None
        return load_rows(ingested.file("train.parquet"))

    @cached_property
    def scores(self) -> DataFrame:
        """p(yes) of each original row, by column: `model`, the fold that never saw it, and `judge`, the filter's."""
        folds = {f"train-fold{n}": self.stage("train", str(Part(n))) for n in range(self.settings.folds.n)}
        inputs = {name: artifact for name, artifact in folds.items() if artifact is not None}
        found = DataFrame({"model": sigmoid(gathered(self.rows, inputs, "train")["margin"].to_numpy())})
        filtered = self.filtered
        if filtered is not None:
            found["judge"] = (
                load_table(filtered.file("scores.parquet"))
                .set_index("row_id")["score"]
                .loc[self.rows["row_id"]]
                .to_numpy()
            )
        return found

    @cached_property
    def filtered(self) -> Artifact | None:
        """The last round of the filter; None where it is off."""
        own = self.settings.filter
        return self.stage("filter", str(Part(round=own.rounds))) if own.enabled else None

    @cached_property
    def doubt(self) -> np.ndarray:
        """Probability that the label is wrong, as the scores have it on average, float64 [rows] in 0..1."""
        labels = self.rows["label"].to_numpy(dtype=int)
        return np.mean([1 - label_credibility(labels, self.scores[name].to_numpy()) for name in self.scores], axis=0)

    def order(self, top: int, without: Collection[str] = ()) -> list[int]:
        """Places in `rows` of at most `top` rows, but for the row ids `without`: the largest doubt first, spread over
        languages and, for paths, their first level."""
        paths = self.task == "QC"
        category = [split_path(target)[0] if paths else "" for target in self.rows["target"]]
        wanted = ~self.rows["row_id"].isin(without).to_numpy()
        places = np.flatnonzero(wanted).tolist()
        return spread_order(self.doubt, self.rows["language"].tolist(), category, places)[:top]

    def candidates(self, places: Sequence[int]) -> list[Candidate]:
        """What a reviewer sees of the rows at these places, in their order."""
        rows, scores = self.rows.iloc[list(places)], self.scores.iloc[list(places)]
        votes, shown = self._neighbours(places)
        rules, translations = self._rules(), self._translations()
        found = []
        for at, row in enumerate(rows.to_dict("records")):
            score = scores.iloc[at]
            judge = float(score["judge"]) if "judge" in score else None
            says = {"model": float(score["model"]), "filter's judge": judge, "neighbours": float(votes[at])}
            against = [f"{who} against it" for who, p in says.items() if p is not None and (p >= 0.5) != row["label"]]
            reason = "; ".join([*rules.get(row["row_id"], []), *against]) or "nothing against it"
            found.append(
                Candidate(
                    **{name: row[name] for name in ("row_id", "language", "query", "target")},
                    label=int(row["label"]),
                    model=float(score["model"]),
                    judge=judge,
                    neighbours=float(votes[at]),
                    reason=reason,
                    nearest=shown[at],
                    translation="; ".join(translations.get(row["row_id"], [])),
                )
            )
        return found

    def points(self, rows: DataFrame) -> Points:
        """Rows as the neighbour vote sees them; a row of a query that is asked in training belongs to its group."""
        queries, targets = self._vectors
        groups = rows["query"].map(normalise).map(self._groups).fillna(-1).to_numpy(dtype=int)
        settings = self.settings.neighbours
        return Points.of(
            queries.table(rows["query"].tolist()), targets.table(rows["target"].tolist()), groups, settings
        )

    @cached_property
    def _vectors(self) -> tuple[Centred, Centred]:
        own = self.settings
        machine = Machine(own.machine.accelerator, own.machine.threads)
        embedder = load_embedder(own.embedder, resolve(own.paths.cache), machine)
        queries = Centred.on(self.rows["query"].tolist(), embedder.queries)
        return queries, Centred.on(self.rows["target"].tolist(), embedder.passages)

    @cached_property
    def _groups(self) -> dict[str, int]:
        """Number of the group of each normalised query of the training rows."""
        return dict(zip(self.rows["query"].map(normalise), tied_groups(self.rows).tolist(), strict=True))

    def _neighbours(self, places: Sequence[int]) -> tuple[np.ndarray, list[str]]:
        """(share of the neighbour vote that says yes, the nearest labelled rows of other queries as text)."""
        points = self.points(self.rows)
        asked = points.take(np.array(places, dtype=int))
        labels = self.rows["label"].to_numpy(dtype=int)
        votes, _ = neighbour_vote(asked, points, labels, self.settings.neighbours.rows, f"neighbours {self.task}")
        _, near = nearest(points.vectors(), asked.vectors(), SHOWN + int(np.bincount(points.groups).max()))
        queries, targets, texts = self.rows["query"].tolist(), self.rows["target"].tolist(), []
        for group, found in zip(asked.groups, near, strict=True):
            others = [at for at in found.tolist() if points.groups[at] != group][:SHOWN]
            texts.append("; ".join(f"{labels[at]}: {queries[at]} -> {targets[at]}" for at in others))
        return votes, texts

    def _rules(self) -> dict[str, list[str]]:
        """The filter's rules that a row broke, by row id."""
        if self.filtered is None:
            return {}
        records = read_json_lines(self.filtered.file(SUSPECTS))
        return {record["row_id"]: record["reasons"].split("; ") for record in records}

    def _translations(self) -> dict[str, list[str]]:
        """The queries that were made from a row by translation, with their language, by the row's id."""
        translated, found = self.stage("translate"), {}
        if translated is not None:
            made = training_rows(translated)
            made = made[made["origin"] == "translation"]
            for source, language, query in zip(made["source_id"], made["language"], made["query"], strict=True):
                found.setdefault(source, []).append(f"{language}: {query}")
        return found
