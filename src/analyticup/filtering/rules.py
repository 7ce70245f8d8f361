"""Self-validation filtering: rows whose label the models themselves doubt, and what is done with them."""

from __future__ import annotations

import numpy as np
from cleanlab.filter import find_label_issues
from pandas import DataFrame

from analyticup.corpus.rows import COLUMNS
from analyticup.settings.schema import FilterSettings


def label_credibility(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Probability that the models give to the label a row has, [rows], 0..1."""
    return np.where(labels == 1, scores, 1 - scores)


def _disagreement(labels: np.ndarray, scores: np.ndarray, settings: FilterSettings) -> np.ndarray:
    return label_credibility(labels, scores) < settings.disagreement_below


def _ambiguity(labels: np.ndarray, scores: np.ndarray, settings: FilterSettings) -> np.ndarray:
    return np.abs(scores - 0.5) < settings.ambiguity_band


def _confident_learning(labels: np.ndarray, scores: np.ndarray, settings: FilterSettings) -> np.ndarray:
    if len(np.unique(labels)) < 2:
        return np.zeros(len(labels), dtype=bool)
    probabilities = np.column_stack([1 - scores, scores])
    return np.asarray(find_label_issues(labels, probabilities, n_jobs=1), dtype=bool)


# A new rule is a function and its name here and in `filter.rules`.
RULES = {"disagreement": _disagreement, "ambiguity": _ambiguity, "confident-learning": _confident_learning}


def find_suspects(labels: np.ndarray, scores: np.ndarray, settings: FilterSettings) -> list[list[str]]:
    """The rules that each row breaks (an empty list = no suspect), in the order of `settings.rules`.

    labels [rows] of 0/1; scores [rows] = p(yes) in 0..1, out-of-fold or in-sample. The paper names disagreement and
    ambiguous boundaries; cut-offs, confident learning (Northcutt et al. 2021, by cleanlab) and the cap on the share of
    suspects are assumed.
    """
    credibility = label_credibility(labels, scores)
    by_rule = {rule: RULES[rule](labels, scores, settings) for rule in settings.rules}
    suspect = np.any([*by_rule.values(), np.zeros(len(labels), dtype=bool)], axis=0)
    # 0.29 * 100 is a hair below 29 in floating point.
    allowed = int(settings.max_share * len(labels) + 1e-9)
    order = np.argsort(np.where(suspect, credibility, np.inf), kind="stable")
    suspect[order[allowed:]] = False
    return [[rule for rule in by_rule if suspect[i] and by_rule[rule][i]] for i in range(len(labels))]


def apply_remedy(
    rows: DataFrame, scores: np.ndarray, reasons: list[list[str]], remedy: str
) -> tuple[DataFrame, DataFrame]:
    """(rows to train on, suspects). The suspects carry score, reasons and what was done: dropped, relabelled or kept.

    drop removes the suspects; relabel flips a label that the models find less likely than its opposite (an ambiguous
    row whose label is the likelier one stays as it is); review changes nothing and leaves the decision to a person.
    """
    suspect = np.array([bool(rules) for rules in reasons], dtype=bool)
    labels = rows["label"].to_numpy(dtype=int)
    flipped = suspect & (label_credibility(labels, scores) < 0.5)
    if remedy == "drop":
        kept, action = rows[~suspect], np.full(len(rows), "dropped")
    elif remedy == "relabel":
        kept = rows.copy()
        kept["label"] = kept["label"].where(~flipped, 1 - kept["label"])
        action = np.where(flipped, "relabelled", "kept")
    else:
        kept, action = rows, np.full(len(rows), "kept")
    suspects = rows.loc[suspect, list(COLUMNS)].assign(
        score=scores[suspect],
        reasons=["; ".join(rules) for rules in reasons if rules],
        action=action[suspect],
    )
    return kept.reset_index(drop=True), suspects.reset_index(drop=True)
