"""F1 and the other figures of a submission file whose labels are known."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from analyticup.corpus.languages import LANGUAGES
from analyticup.errors import UserError
from analyticup.metrics import Figures, LanguageFigures, binary_metrics, finite_scores
from analyticup.submission.records import input_rows, read_bits, same_ids


def per_language(
    labels: ArrayLike,
    predictions: ArrayLike,
    languages: Sequence[str],
    scores: ArrayLike | None = None,
    *,
    seed: int = 0,
) -> list[LanguageFigures]:
    """`binary_metrics` for each language present, with its code first under "language".

    The competition's languages come in its order, others after them by code. Errors as in `binary_metrics`.
    """
    codes = np.asarray(languages, dtype=object)
    truth, guess = np.asarray(labels), np.asarray(predictions)
    if not len(codes) == len(truth) == len(guess):
        raise ValueError(f"{len(truth)} labels, {len(guess)} predictions, {len(codes)} languages")
    ranking = None if scores is None else finite_scores(scores, len(truth))
    present = set(languages)
    ordered = [code for code in LANGUAGES if code in present] + sorted(present - set(LANGUAGES))
    table = []
    for code in ordered:
        own = codes == code
        figures = binary_metrics(truth[own], guess[own], None if ranking is None else ranking[own], seed=seed)
        table.append({"language": code, **figures})
    return table


@dataclass(frozen=True)
class Scores:
    """Figures of `metrics.binary_metrics` per language (with "language" first) and over all rows."""

    languages: list[LanguageFigures]
    overall: Figures


def read_labels(path: Path, task: str | None = None) -> dict[int, int]:
    """Labels by id, from lines with `id` and `label` (0 or 1); of other fields, `task` must be this one where it is
    given. UserError with file:line."""
    return read_bits(path, "label", "label file", task)


def labels_of(path: Path, rows: Collection[int], rows_name: str, task: str | None = None) -> dict[int, int]:
    """The labels of those of `rows` (ids) that have one in the file; labels of other ids are left out. UserError as
    `read_labels`, and where no id is common to both."""
    labels = read_labels(path, task)
    known = {row_id: labels[row_id] for row_id in rows if row_id in labels}
    if rows and not known:
        raise UserError(f"{path}: none of its {len(labels)} ids is one of {rows_name}; give the labels of that file")
    return known


def read_predictions(path: Path) -> dict[int, int]:
    """Predictions by id of a submission file. UserError with file:line."""
    return read_bits(path, "prediction", "submission")


def score_submission(
    input_file: Path, submission_file: Path, labels_file: Path, scores_file: Path | None = None
) -> Scores:
    """Scores a submission against labels, per language of the input; AUC and AP need `scores_file`.

    `scores_file` is Parquet with the columns id, language, score (higher = positive). UserError where a file
    cannot be read, a line is broken (file:line), or the ids of the files are not the same. The
    submission's texts are not compared with the input's: that is `validate_submission`.
    """
    rows = input_rows(input_file)
    labels = read_labels(labels_file)
    predictions = read_predictions(submission_file)
    same_ids(predictions, rows, str(submission_file), str(input_file))
    same_ids(labels, rows, str(labels_file), str(input_file))
    scores = None if scores_file is None else _read_scores(scores_file)
    if scores is not None:
        same_ids(scores, rows, str(scores_file), str(input_file))
    truth, guess = [labels[row_id] for row_id in rows], [predictions[row_id] for row_id in rows]
    ranking = None if scores is None else [scores[row_id] for row_id in rows]
    languages = [row["language"] for row in rows.values()]
    return Scores(per_language(truth, guess, languages, ranking), binary_metrics(truth, guess, ranking))


def _read_scores(path: Path) -> dict[int, float]:
    try:
        table = pq.ParquetFile(path).read(columns=["id", "score"])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: no readable score table; give this submission's scores Parquet") from error
    kinds = {"id": pa.types.is_integer, "score": pa.types.is_floating}
    # A Parquet file may have a name twice.
    if sorted(table.schema.names) != sorted(kinds) or not all(is_kind(table[n].type) for n, is_kind in kinds.items()):
        raise UserError(f"{path}: no columns id and score of numbers; give this submission's scores Parquet")
    ids, values = table["id"].to_pylist(), table["score"].to_numpy()
    if None in ids or len(set(ids)) != len(ids) or not np.isfinite(values).all():
        raise UserError(f"{path}: an id is missing or given twice, or a score is not finite; write the scores again")
    return dict(zip(ids, values.tolist(), strict=True))
