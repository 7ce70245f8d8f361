"""Stacked generalisation (Wolpert 1992): a logistic regression on the models' margins and on what is known of a row
without them. Which features it has is assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from pandas import DataFrame
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from analyticup.corpus.tables import load_table
from analyticup.engine.artifacts import Artifact
from analyticup.errors import CheckFailed, UserError
from analyticup.training.out_of_fold import gathered

# The feature, and the name of the stages that it comes from.
BI_ENCODER: Final = "bi_encoder"
_AGAIN: Final = "delete their folder and run again"


@dataclass(frozen=True)
class Stacked:
    """Features [rows, names]. `spread` says of those that are means over several models how far these are apart: the
    variance between them, mean over the rows."""

    table: DataFrame
    spread: Mapping[str, float]


def stack_features(
    rows: DataFrame, margins: np.ndarray, inputs: Mapping[str, Artifact], split: str, names: Sequence[str]
) -> Stacked:
    """Those of the features called `names` that the task has, for the rows of a split: from the models' `margins`
    [rows, models] and the tables of the neighbour vote and of the features. CheckFailed where those are of other
    rows."""
    neighbours, features = (load_table(inputs[name].file(f"{split}.parquet")) for name in ("neighbours", "features"))
    for table in (neighbours, features):
        if table["row_id"].tolist() != rows["row_id"].tolist():
            raise CheckFailed(f"stack: the features of {split} are not of its rows; {_AGAIN}")
    voted = {"neighbours": neighbours["margin"], "density": neighbours["density"]}
    judged = {"model": margins, **_encoded(rows, inputs, split)}
    known = {**voted, **{name: given.mean(axis=1) for name, given in judged.items()}, **features.drop(columns="row_id")}
    table = pd.DataFrame({name: np.asarray(known[name]) for name in names if name in known})
    return Stacked(table, {name: float(given.var(axis=1).mean()) for name, given in judged.items() if name in table})


def _encoded(rows: DataFrame, inputs: Mapping[str, Artifact], split: str) -> dict[str, np.ndarray]:
    """The bi-encoder's margins [rows, models], where it is trained: out of fold, for dev and test of each fold."""
    trained = [artifact for name, artifact in sorted(inputs.items()) if name.startswith(BI_ENCODER)]
    if not trained:
        return {}
    if split == "train":
        return {BI_ENCODER: gathered(rows, inputs, BI_ENCODER)[["margin"]].to_numpy()}
    tables = [load_table(artifact.file(f"{split}.parquet")) for artifact in trained]
    if any(table["row_id"].tolist() != rows["row_id"].tolist() for table in tables):
        raise CheckFailed(f"stack: the bi-encoder's scores of {split} are not of its rows; {_AGAIN}")
    return {BI_ENCODER: np.column_stack([table["margin"] for table in tables])}


def fit_stack(table: DataFrame, labels: np.ndarray) -> Pipeline:
    """The regression of `labels` [rows] (0 or 1) on the features [rows, names], each scaled to mean 0 and deviation 1;
    L2-regularised as scikit-learn does by default (C = 1), which matters for a few hundred rows only."""
    return _regression().fit(table, labels)


def for_means(fitted: Pipeline, table: DataFrame, spread: Mapping[str, float]) -> Pipeline:
    """The regression for rows whose margins are means over several models, from that on the rows of `table`, each of
    which one model scored.

    What a model got by chance makes its margin say less, and a mean has less of it: so it gets more weight, by
    regression calibration (Carroll et al. 2006, section 4): C w = (C - S) w', with the covariances C of the features
    and the `spread` S, by which a mean varies less. Assumed: models are as far apart on training rows as on those of
    `spread`; and S is at most half of what the other features do not tell of that margin. The threshold, chosen on rows
    that one model scored, is left as it is: both give probabilities.
    """
    scaler, regression = fitted
    covariance = np.atleast_2d(np.cov(scaler.transform(table), rowvar=False))
    told, less = np.diag(np.linalg.pinv(covariance)), np.zeros(len(covariance))
    for place, name in enumerate(table):
        if spread.get(name):
            less[place] = min(spread[name] / scaler.var_[place], 0.5 / told[place])
    adjusted = copy(regression)
    weights = np.linalg.lstsq(covariance - np.diag(less), covariance @ regression.coef_[0], rcond=None)[0]
    adjusted.coef_ = weights[None]
    return Pipeline([(name, adjusted if step is regression else step) for name, step in fitted.steps])


def stack_scores(fitted: Pipeline, table: DataFrame) -> np.ndarray:
    """p(yes), [rows]."""
    return fitted.predict_proba(table)[:, 1]


def coefficients(fitted: Pipeline) -> dict[str, float]:
    """Change of the log-odds by one standard deviation of each feature over the training rows, and the intercept."""
    scaled = fitted[-1]
    named = zip(fitted.feature_names_in_, scaled.coef_[0], strict=True)
    return {**{name: float(value) for name, value in named}, "intercept": float(scaled.intercept_[0])}


def cross_fitted(table: DataFrame, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """p(yes), [rows], each fold by a regression on the other folds' rows: what a threshold may be chosen on.

    Raises UserError where the rows of the other folds are all of one label.
    """
    for fold in np.unique(folds):
        if len(np.unique(labels[folds != fold])) < 2:
            raise UserError(f"ensemble.method = stack: all rows outside {fold} have one label; bring more rows")
    scored = cross_val_predict(
        _regression(), table, labels, groups=folds, cv=LeaveOneGroupOut(), method="predict_proba"
    )
    return scored[:, 1]


def _regression() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression())
