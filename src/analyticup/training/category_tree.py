"""Rows that the category tree gives without a label: a category's name as the query, its path as what fits it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import numpy as np
from pandas import DataFrame

from analyticup.corpus.rows import make_rows
from analyticup.corpus.taxonomy import leaf, on_one_line, path_levels, same_leaf
from analyticup.errors import UserError

# Of the made rows, and of the negatives those from the same first level (assumed).
_POSITIVE, _NEAR = 0.5, 0.6
# Draws for one row before the tree is taken for one that has no negatives.
_TRIES: Final = 100


def tree_rows(paths: Iterable[str], count: int, seed: int) -> DataFrame:
    """A rows table, shape (count, 9), of QC: the last level of one of the category `paths`, drawn at random, with its
    path (label 1) or with another one (label 0).

    A negative neither lies above or below that path nor ends in the same name. The form and the shares are assumed.
    Raises UserError where the paths are all so alike that none is left.
    """
    known = sorted(path for path in set(paths) if leaf(path))
    levels = [path_levels(path) for path in known]
    near = defaultdict(list)
    for at, names in enumerate(levels):
        near[names[0]].append(at)
    draw = np.random.default_rng(seed)

    def other(of: int) -> int:
        for _ in range(_TRIES):
            among = near[levels[of][0]] if draw.random() < _NEAR else range(len(known))
            at = among[draw.integers(len(among))]
            if not on_one_line(levels[of], levels[at]) and not same_leaf(levels[of], levels[at]):
                return at
        raise UserError(
            f"train.start_from = category_tree: {known[of]!r} has no other category beside it that could be a "
            "negative; set train.start_from to base"
        )

    made = []
    for at in draw.integers(len(known), size=count).tolist() if known else []:
        fits = draw.random() < _POSITIVE
        made.append((leaf(known[at]), known[at if fits else other(at)], int(fits)))
    queries, targets, labels = zip(*made, strict=True) if made else ((), (), ())
    ids = [f"tree-{number}" for number in range(1, len(made) + 1)]
    same = {"task": "QC", "language": "en", "origin": "tree", "source_id": None}
    constant = {name: [value] * len(made) for name, value in same.items()}
    return make_rows({"row_id": ids, "query": queries, "target": targets, "label": labels, "group": ids, **constant})
