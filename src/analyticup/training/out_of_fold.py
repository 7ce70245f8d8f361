"""The out-of-fold scores of a task, gathered from its folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pandas as pd
from pandas import DataFrame

from analyticup.corpus.tables import load_table
from analyticup.engine.artifacts import Artifact
from analyticup.errors import CheckFailed

# What a training writes about the rows that it was not trained on.
HELD_OUT: Final = "held_out.parquet"


def gathered(rows: DataFrame, inputs: Mapping[str, Artifact], role: str) -> DataFrame:
    """The held-out `margin` of all `role` artifacts and the `part` that scored it, in the order of the rows; every row
    must be scored once."""
    names = [name for name in sorted(inputs) if name.startswith(role)]
    parts = [load_table(inputs[name].file(HELD_OUT)).assign(part=name.removeprefix(f"{role}-")) for name in names]
    return in_order(rows, parts, f"{role}: the folds' scores", "the folds do not fit the rows")[["margin", "part"]]


def in_order(rows: DataFrame, parts: Sequence[DataFrame], what: str, fault: str) -> DataFrame:
    """The scores in `parts` as one table, by row_id in the order of the rows; CheckFailed where a row has not one."""
    scored = pd.concat(parts).set_index("row_id")
    if not scored.index.is_unique or not rows["row_id"].isin(scored.index).all():
        raise CheckFailed(f"{what} do not cover every row exactly once; {fault}")
    return scored.loc[rows["row_id"]]
