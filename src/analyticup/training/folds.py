"""Cross-validation folds in which no query, and nothing derived from it, is on both sides."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from pandas import DataFrame, Series
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from analyticup.corpus.taxonomy import path_levels
from analyticup.corpus.text import normalise
from analyticup.errors import CheckFailed, UserError
from analyticup.settings.schema import PATH_PREFIX


def assign_folds(rows: DataFrame, n: int, seed: int, group_by: str = "query") -> np.ndarray:
    """Fold 0..n-1 of each row, int64 [rows]; scikit-learn's StratifiedGroupKFold over tied queries.

    Groups are what `tied_groups` ties together; strata are language x label of the original rows. `group_by`
    "path_prefix:K" groups by the first K levels of the category path instead, with the top level in the strata, as the
    competition's winner did; a query may then be in several folds. Derived rows go with their group, so that they are
    trained on only where their source is. Where that leaves a fold without rows, or puts all rows of a label into one
    fold, whole groups are moved. Raises UserError where no division can help, CheckFailed where the result would leak.
    """
    groups = divisible_groups(rows, n, group_by)
    original = (rows["origin"] == "original").to_numpy()
    # Sorted by content, so that the order of the input file changes nothing but the order of the output.
    order = np.argsort(rows["row_id"].to_numpy(dtype=str)[original], kind="stable")
    strata = _strata(rows[original], n, group_by != "query")[order]
    splitter = StratifiedGroupKFold(n_splits=n, shuffle=True, random_state=seed)
    fold_of_group: dict[int, int] = {}
    with warnings.catch_warnings():
        # A language with few rows cannot be in every fold; that is nothing new to the user.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(strata, strata, groups[original][order])):
            fold_of_group |= dict.fromkeys(groups[original][order][held_out].tolist(), fold)
    _mend(fold_of_group, groups, original, rows["label"].to_numpy(dtype=int), n)
    folds = np.array([fold_of_group[group] for group in groups.tolist()], dtype=np.int64)
    for fold in range(n):
        check_no_leakage(rows[folds != fold], rows[folds == fold], group_by)
    return folds


def divisible_groups(rows: DataFrame, n: int, group_by: str = "query") -> np.ndarray:
    """`tied_groups`, or the groups of `group_by`; raises UserError where they cannot be divided into n folds, both
    labels outside of each, whatever the sizes of the groups."""
    by_query, labels = group_by == "query", rows["label"].to_numpy(dtype=int)
    groups = tied_groups(rows) if by_query else _prefix_groups(rows, group_by)
    one, many = ("query", "queries") if by_query else ("path prefix", "path prefixes")
    distinct = len(np.unique(groups[(rows["origin"] == "original").to_numpy()]))
    if distinct < n:
        raise UserError(f"folds.n = {n}: only {distinct} distinct {many} to divide; lower folds.n or bring more rows")
    for label in (0, 1):
        having = len(np.unique(groups[labels == label]))
        if having < 2:
            raise UserError(
                f"folds: {'only' if having else 'no'} {'one ' * having}{one} has training rows with label {label}, so "
                f"that a fold's training would have none; bring rows of both labels, of two {many} or more each"
            )
    return groups


def _prefix_groups(rows: DataFrame, group_by: str) -> np.ndarray:
    """Group number of each row: the first levels of its path, of a derived row those of the original row it comes
    from."""
    prefixes = _prefixes(rows["target"], group_by)
    own = dict(zip(rows["row_id"], prefixes, strict=True))
    found, _ = pd.factorize(np.array([own[_root(name)] for name in rows["row_id"]], dtype=object), sort=True)
    return found


def _prefixes(paths: Iterable[str], group_by: str) -> list[str]:
    levels = int(group_by.removeprefix(PATH_PREFIX))
    return ["\x1f".join(path_levels(path)[:levels]) for path in paths]


def _root(row_id: str) -> str:
    """The original row that a row is, or was made from."""
    return row_id.partition("/")[0]


def _mend(fold_of_group: dict[int, int], groups: np.ndarray, original: np.ndarray, labels: np.ndarray, n: int) -> None:
    """Moves as few groups as are needed for every fold to have original rows, and every training rows of both labels,
    original or derived."""
    names, place = np.unique(groups, return_inverse=True)
    size, fold = np.bincount(place[original]), np.array([fold_of_group[name] for name in names.tolist()])
    holders = {label: np.unique(place[labels == label]) for label in (0, 1)}
    for empty in sorted(set(range(n)) - set(fold.tolist())):
        donor = np.bincount(fold, minlength=n).argmax()
        smallest = min(np.flatnonzero(fold == donor), key=lambda group: size[group])
        fold[smallest] = empty
    if not _divides(fold, holders, n):
        fold = _moved(fold, size, holders, n)
    fold_of_group |= dict(zip(names.tolist(), fold.tolist(), strict=True))


def _divides(fold: np.ndarray, holders: Mapping[int, np.ndarray], n: int) -> bool:
    """Whether every fold has groups, and every label is outside of every fold; `fold` is that of each group."""
    return len(set(fold.tolist())) == n and all(len(set(fold[having].tolist())) > 1 for having in holders.values())


def _moved(fold: np.ndarray, size: np.ndarray, holders: Mapping[int, np.ndarray], n: int) -> np.ndarray:
    """`fold` with the smallest group moved, or else the two smallest swapped, that make it `_divides`."""
    order = np.argsort(size, kind="stable").tolist()
    for group in order:
        for target in range(n):
            changed = fold.copy()
            changed[group] = target
            if _divides(changed, holders, n):
                return changed
    for group, other in combinations(order, 2):
        changed = fold.copy()
        changed[[group, other]] = fold[[other, group]]
        if _divides(changed, holders, n):
            return changed
    raise UserError(
        f"folds.n = {n}: no division leaves both labels to every training; lower folds.n or bring more rows"
    )


def _strata(rows: DataFrame, n: int, by_top: bool = False) -> np.ndarray:
    """Language x label of each row, `by_top` x the path's top level; coarser where no such stratum has n rows, which
    the splitter would refuse."""
    labels = rows["label"].astype(str)
    finest = [rows["language"] + "/" + labels + "/" + _prefixes(rows["target"], f"{PATH_PREFIX}1")] if by_top else []
    for strata in (*finest, rows["language"] + "/" + labels, labels):
        if strata.value_counts().max() >= n:
            return strata.to_numpy(dtype=str)
    return np.zeros(len(rows), dtype=int)


def tied_groups(rows: DataFrame) -> np.ndarray:
    """Group number of each row, int [rows]: rows that share a `group` or a normalised query, directly or by a chain.

    A translation may equal a query of another group (brand names do), which would leak across folds.
    """
    by_group, _ = pd.factorize(rows["group"], sort=True)
    by_query, queries = pd.factorize(_keys(rows["query"]), sort=True)
    offset = int(by_group.max(initial=-1)) + 1
    size = offset + len(queries)
    edges = coo_array((np.ones(len(rows), dtype=np.int8), (by_group, offset + by_query)), shape=(size, size))
    _, component = connected_components(edges, directed=False)
    return component[by_group]


def _keys(queries: Series) -> np.ndarray:
    """The normalised form of each query, object [rows]; each distinct text is normalised once."""
    place, distinct = pd.factorize(queries)
    return np.array([normalise(text) for text in distinct], dtype=object)[place]


def check_no_leakage(training: DataFrame, scored: DataFrame, group_by: str = "query") -> None:
    """Raises CheckFailed where the two share a group or a normalised query, naming the first; with folds by path
    prefix, where their original rows share a prefix, or a row comes from one that is scored."""
    if group_by == "query":
        looked_at = [
            ("groups", set(training["group"]), set(scored["group"])),
            ("queries", set(map(normalise, set(training["query"]))), set(map(normalise, set(scored["query"])))),
        ]
    else:
        sides = [rows[rows["origin"] == "original"] for rows in (training, scored)]
        prefixes = [set(_prefixes(rows["target"], group_by)) for rows in sides]
        roots = [set(map(_root, rows["row_id"])) for rows in (training, scored)]
        looked_at = [("path prefixes", *prefixes), ("source rows", *roots)]
    for what, ours, theirs in looked_at:
        shared = sorted(ours & theirs)
        if shared:
            raise CheckFailed(
                f"leakage: {len(shared)} {what} are both in the training rows and in the rows they are scored on, "
                f"e.g. {shared[0]!r}; the folds must not be used"
            )
