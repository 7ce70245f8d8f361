"""The neighbour vote and the features as stages: each row of training, dev and test once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pandas import DataFrame
from sklearn.metrics import roc_auc_score

from analyticup.augmentation.embedders import load_embedder
from analyticup.corpus.rows import load_rows
from analyticup.corpus.tables import save_table, scored_splits, training_rows
from analyticup.corpus.text import normalise
from analyticup.engine.job import Counts, Job
from analyticup.features.bi_encoder import train_bi_encoder
from analyticup.features.pairs import Rarity, Trigrams, names_last_word, shared_numbers, words
from analyticup.features.points import Points
from analyticup.features.vectors import Centred, Cosines
from analyticup.features.vote import Scale, neighbour_vote
from analyticup.seeds import derive_seed
from analyticup.training.folds import check_no_leakage, tied_groups
from analyticup.training.stage import with_folds

# Of rows whose query is that of no training row.
_NO_GROUP = -1


def neighbours(job: Job) -> Counts:
    """Writes the vote of labelled neighbours, its weight and the logit margin that it stands for, of the training rows
    and of the dev and test rows that its input holds.

    Voters are the original training rows, of a later filter round those that the round before has left.
    """
    rows, settings = training_rows(job.inputs["rows"]), job.settings.neighbours
    left = training_rows(job.inputs["filter"]) if "filter" in job.inputs else rows
    left = left[left["origin"] == "original"]
    embedder = load_embedder(job.settings.embedder, job.cache, job.source.machine)
    queries = Centred.on(left["query"].tolist(), embedder.queries)
    targets = Centred.on(left["target"].tolist(), embedder.passages)

    def points(of: DataFrame, groups: np.ndarray) -> Points:
        return Points.of(queries.table(of["query"].tolist()), targets.table(of["target"].tolist()), groups, settings)

    def vote(of: Points, split: str) -> tuple[np.ndarray, np.ndarray]:
        return neighbour_vote(of, voters, labels, settings.rows, f"neighbours {job.title} {split}")

    groups, voting = tied_groups(rows), rows["row_id"].isin(left["row_id"]).to_numpy()
    trained = points(rows, groups)
    # In the order of `left`: a remedy drops rows and turns labels, but moves none.
    voters, labels = trained.take(voting), left["label"].to_numpy(dtype=int)
    votes, density = vote(trained, "train")
    scale = Scale.fit(votes[voting], labels)
    _save(rows, votes, density, scale, job.out / "train.parquet")
    counts: Counts = {"voters": len(labels), "scored": len(rows), "auc": float(roc_auc_score(labels, votes[voting]))}
    group_of = dict(zip(rows["query"].map(normalise), groups, strict=True))
    for split, table in scored_splits(job.inputs["rows"]).items():
        own = table["query"].map(normalise).map(group_of).fillna(_NO_GROUP).to_numpy(dtype=int)
        _save(table, *vote(points(table, own), split), scale, job.out / f"{split}.parquet")
        counts[split] = len(table)
    return {**counts, "slope": scale.slope, "intercept": scale.intercept}


def _save(rows: DataFrame, votes: np.ndarray, density: np.ndarray, scale: Scale, path: Path) -> None:
    ids = rows["row_id"].tolist()
    save_table({"row_id": ids, "vote": votes, "density": density, "margin": scale.apply(votes)}, path)


def features(job: Job) -> Counts:
    """Writes what the texts alone say of the training, dev and test rows, a column per feature.

    What has to be fitted is fitted on training texts.
    """
    training = load_rows(job.inputs["rows"].file("train.parquet"))
    embedder = load_embedder(job.settings.embedder, job.cache, job.source.machine)
    cosines, trigrams, rarity = Cosines(training, embedder), Trigrams.of(training), Rarity.of(training)
    counts: Counts = {}
    for split, rows in {"train": training, **scored_splits(job.inputs["rows"])}.items():
        columns = {
            **cosines.compare(rows),
            "trigrams": trigrams.shared(rows),
            "numbers": _of_pairs(shared_numbers, rows),
            "last_word": _of_pairs(names_last_word, rows),
            "missing_word": _of_pairs(rarity.missing, rows),
            "query_words": np.array([len(words(query)) for query in rows["query"].tolist()], dtype=float),
        }
        save_table({"row_id": rows["row_id"].tolist(), **columns}, job.out / f"{split}.parquet")
        counts[split] = len(rows)
    return counts


def bi_encoder(job: Job) -> Counts:
    """Trains a bi-encoder on the original rows outside of a fold; writes its margins of that fold's rows and of the
    dev and test rows."""
    rows, _ = with_folds(job)
    held_out, training = (
        part.reset_index(drop=True) for part in (rows[rows["fold"] == job.fold], rows[rows["fold"] != job.fold])
    )
    check_no_leakage(training, held_out, job.settings.folds.group_by)
    seed = derive_seed(job.settings.seed, "bi_encoder", job.task, str(job.part))
    job.source.machine.make_room()
    trained = train_bi_encoder(training, job.settings, job.source.machine, seed, f"bi_encoder {job.title}")
    counts: Counts = {"trained on": len(training)}
    for split, table in {"held_out": held_out, **scored_splits(job.inputs["rows"])}.items():
        margins = trained.margins(table, f"bi_encoder {job.title} {split}")
        save_table({"row_id": table["row_id"].tolist(), "margin": margins}, job.out / f"{split}.parquet")
        counts[split] = len(table)
        if split == "held_out":
            counts["auc"] = float(roc_auc_score(table["label"].astype(int), margins))
    return counts


def _of_pairs(compare: Callable[[str, str], float], rows: DataFrame) -> np.ndarray:
    pairs = zip(rows["query"].tolist(), rows["target"].tolist(), strict=True)
    return np.array([compare(query, target) for query, target in pairs])
