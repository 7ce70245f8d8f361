"""The stages without a model, on generated rows up to the competition's size.

Vectors are random, so what an embedder costs is left out; all else is the stages' own code.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analyticup.augmentation.negatives import sample_negatives
from analyticup.augmentation.translate import translate_rows
from analyticup.augmentation.translators.mined import MinedTranslator
from analyticup.corpus import INGEST
from analyticup.corpus.languages import LANGUAGES
from analyticup.corpus.sample import load_concepts
from analyticup.corpus.tables import save_table, save_with_new_rows, training_rows
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.engine.files import write_json_lines
from analyticup.engine.graph import Part
from analyticup.engine.job import Job
from analyticup.engine.workers import imported
from analyticup.ensembling.threshold import DECISION, Decision
from analyticup.experiments.bench.harness import Done
from analyticup.metrics import binary_metrics
from analyticup.settings.schema import MinedSettings, NegativesSettings, Settings, TranslateSettings
from analyticup.submission import SUBMIT
from analyticup.training import FOLDS

TASK = "QC"
SEED = 13
TARGETS_PER_QUERY = 3
TRAINED_LANGUAGES = tuple(LANGUAGES)[:7]
MINED_LANGUAGE = "de"
# As multilingual-e5-small has them.
VECTOR_WIDTH = 384
WARM_UP_ROWS = 390
# Top level, second level, leaves: 4,320 category paths, whatever the number of rows.
TREE = (12, 18, 20)


def generated_rows(split: str, count: int) -> Iterator[dict[str, Any]]:
    """`count` rows of one split in the competition's form; row i is the same for every count.

    Three targets a query. Training rows are in seven languages, the others in all thirteen; names of products come
    from the sample corpus, with two syllable words that make the query its own.
    """
    names = [concept.names for concept in load_concepts()]
    languages = TRAINED_LANGUAGES if split == "train" else tuple(LANGUAGES)
    for number in range(count):
        query, place = divmod(number, TARGETS_PER_QUERY)
        language = languages[query % len(languages)]
        name = names[query * 31 % len(names)][language]
        row: dict[str, Any] = {
            "id": number + 1,
            "task": TASK,
            "language": language,
            "origin_query": f"{name} {_word(2 * query + (split == 'train'))}",
            "category_path": _path(query * 7919 + place * 1013),
        }
        if split == "train":
            # Five of eight positive, as in the competition's files.
            row["label"] = int((query + 3 * place) % 8 < 5)
        yield row


def _word(number: int) -> str:
    """A word of syllables, another one for every number."""
    syllables = []
    while number or len(syllables) < 2:
        number, part = divmod(number, 75)
        syllables.append("bdfghklmnprstvz"[part % 15] + "aeiou"[part // 15])
    return "".join(syllables)


def _path(number: int) -> str:
    leaf = number % (TREE[0] * TREE[1] * TREE[2])
    second = leaf // TREE[2]
    return f"{_word(second // TREE[1])} & more,{_word(100 + second)},{_word(1000 + leaf)}"


def write_generated(folder: Path, count: int) -> None:
    """train_QC.txt and test_QC.txt with `count` rows each, and scores for the latter as from the ensemble stage."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        write_json_lines(folder / f"{split}_{TASK}.txt", generated_rows(split, count))
    draw = random.Random(SEED)
    (folder / "ensemble").mkdir(exist_ok=True)
    languages = [row["language"] for row in generated_rows("test", count)]
    columns = {"id": list(range(1, count + 1)), "language": languages, "score": [draw.random() for _ in languages]}
    save_table(columns, folder / "ensemble" / "test.parquet")
    figures = binary_metrics([0, 1], [0, 1])
    Decision(value=0.5, out_of_fold=figures, out_of_fold_at_half=figures).save(folder / DECISION)


class RandomEmbedder:
    """Unit vectors drawn from a seed, in place of an embedder."""

    identity = "random"

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._draw(len(texts), 1)

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        return self._draw(len(texts), 2)

    def _draw(self, count: int, side: int) -> np.ndarray:
        vectors = np.random.default_rng([SEED, side, count]).standard_normal((count, VECTOR_WIDTH), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclass(frozen=True)
class DataStage:
    """One stage on the rows generated in `folder`; a later stage reads what an earlier one wrote there."""

    stage: str
    folder: Path
    rows: int

    def warm_up(self) -> None:
        """Everything up to this stage on a few rows, so that no import is timed."""
        few = self.folder / f"warm-{self.stage}"
        write_generated(few, WARM_UP_ROWS)
        for name in dict.fromkeys(("ingest", self.stage)):
            replace(self, stage=name, folder=few, rows=WARM_UP_ROWS).run()

    def prepare(self) -> None:
        pass

    def run(self) -> Done:
        out = self.folder / self.stage
        (out / "test").mkdir(parents=True, exist_ok=True)
        STAGES[self.stage](self.folder, out)
        return Done(rows=self.rows)


def _job(folder: Path, out: Path, split: str = "train") -> Job:
    name = f"{split}_{TASK}.txt"
    inputs = {
        "rows": Artifact(folder / "ingest", StageRecord()),
        f"ensemble-{TASK}": Artifact(folder / "ensemble", StageRecord()),
        f"threshold-{TASK}": Artifact(folder, StageRecord()),
    }
    return Job(
        task=TASK,
        part=Part(),
        settings=Settings(tasks=[TASK]),
        inputs=inputs,
        out=out,
        files={name: folder / name},
        cache=folder,
        logs=folder,
        group="bench",
        resume_file=folder / "none",
        resume_identity="",
        source=None,
    )


def _negatives(folder: Path, out: Path) -> None:
    rows = training_rows(Artifact(folder / "ingest", StageRecord()))
    # Random vectors know no band; each ask takes the nearest path that the rules leave.
    new_rows, _ = sample_negatives(rows, NegativesSettings(low=-1, high=1), RandomEmbedder(), SEED)
    save_with_new_rows(rows, new_rows, out)


def _mined(folder: Path, out: Path) -> None:
    rows = training_rows(Artifact(folder / "ingest", StageRecord()))
    found = set()
    with (folder / f"test_{TASK}.txt").open("rb") as stream:
        for line in stream:
            row = json.loads(line)
            if row["language"] == MINED_LANGUAGE:
                found.add(row["origin_query"])
    settings = MinedSettings(min_similarity=-1)
    translator = MinedTranslator({MINED_LANGUAGE: sorted(found)}, RandomEmbedder(), settings)
    new_rows, _, _ = translate_rows(rows, TranslateSettings(), translator, [MINED_LANGUAGE], SEED)
    save_with_new_rows(rows, new_rows, out)


STAGES = {
    "ingest": lambda folder, out: imported(INGEST.run)(_job(folder, out)),
    "folds": lambda folder, out: imported(FOLDS.run)(_job(folder, out)),
    "negatives": _negatives,
    "mined": _mined,
    "submit": lambda folder, out: imported(SUBMIT.run)(_job(folder, out, "test")),
}
# What the competition's own files cannot do without; the others need an embedder, whose time dwarfs theirs.
OFFICIAL = ("ingest", "folds", "submit")
