"""The Parquet tables that stages hand to each other: rows by stage, and score tables with a row per scored row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas import DataFrame

from analyticup.corpus.official import SCORED_SPLITS
from analyticup.corpus.rows import load_rows, save_rows
from analyticup.engine.artifacts import Artifact
from analyticup.errors import CheckFailed

ROWS = "rows.parquet"
FOLDS = "folds.parquet"
# What the model reads in the place of a query, by language and query.
PIVOT_TABLE = "pivot.parquet"
# What the model has written about a row, by the query as it is read and the target.
REASONING_TABLE = "reasoning.parquet"


def scored_splits(ingested: Artifact) -> dict[str, DataFrame]:
    """Split -> rows, for those of dev and test that an ingest artifact holds."""
    paths = {split: ingested.file(f"{split}.parquet") for split in SCORED_SPLITS}
    return {split: load_rows(path) for split, path in paths.items() if path.exists()}


def save_with_new_rows(rows: DataFrame, new_rows: DataFrame, folder: Path) -> None:
    """Writes the rows, then the new ones, as the training rows of a stage's folder."""
    save_rows(pd.concat([rows, new_rows], ignore_index=True), folder / ROWS)


def training_rows(artifact: Artifact) -> DataFrame:
    """The training rows that an ingest, translate, negatives or filter artifact holds."""
    path = artifact.file(ROWS)
    return load_rows(path if path.exists() else artifact.file("train.parquet"))


def as_read(rows: DataFrame, inputs: Mapping[str, Artifact]) -> DataFrame:
    """The rows as the model reads them, by those artifacts that are among the inputs: `pivot` has other queries,
    `reasoning` a column `reasoning`. CheckFailed where it has none about a row."""
    if "pivot" in inputs:
        table = load_table(inputs["pivot"].file(PIVOT_TABLE))
        read = dict(zip(zip(table["language"], table["query"], strict=True), table["read"], strict=True))
        pairs = zip(rows["language"], rows["query"], strict=True)
        rows = rows.assign(query=[read.get(pair, pair[1]) for pair in pairs])
    if "reasoning" in inputs:
        table = load_table(path := inputs["reasoning"].file(REASONING_TABLE))
        about = dict(zip(zip(table["query"], table["target"], strict=True), table["reasoning"], strict=True))
        found = [about.get(pair) for pair in zip(rows["query"], rows["target"], strict=True)]
        if None in found:
            raise CheckFailed(f"{path}: {found.count(None)} rows have no reasoning; delete its folder and run again")
        rows = rows.assign(reasoning=found)
    return rows


def save_table(columns: Mapping[str, Any], path: Path) -> None:
    """Writes columns of equal length as Parquet, with NumPy's types."""
    pq.write_table(pa.table(dict(columns)), path)


def load_table(path: Path) -> DataFrame:
    return pq.ParquetFile(path).read().to_pandas()
