"""Submission files: written, validated by code that shares nothing with the writer, zipped, and scored."""

from __future__ import annotations

import json
import operator
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from analyticup.corpus.rows import MAX_ID, TARGET_FIELD, BadLine, decode_line, read_lines
from analyticup.errors import UserError
from analyticup.files import read_bytes, replace_file
from analyticup.metrics import Figures, LanguageFigures

# ---------------------------------------------------------------- writing


def write_submission(task: str, input_file: Path, predictions: Mapping[int, int], out_file: Path) -> None:
    """Writes one JSON line per row of `input_file`, in its order, values copied from it, atomically.

    `predictions` maps each id of the input to 0 or 1. UTF-8, non-ASCII as is, LF ends. Half of a surrogate
    pair, which UTF-8 cannot hold, is written as the `\\udXXX` escape that it came from: the value survives.
    Raises UserError, and leaves `out_file` as it was, for an input that cannot be trusted (file:line), a row
    without a prediction, a prediction for no row, or one other than the integers 0 and 1.
    """
    target = TARGET_FIELD[task]
    rows = _input_rows(input_file, task)
    if out_file.exists() and out_file.samefile(input_file):
        raise UserError(f"{out_file}: is the input file; give another path to write to")
    _same_ids(predictions, rows, f"predictions for {input_file}", str(input_file))
    lines, encode = [], json.JSONEncoder(ensure_ascii=False).encode
    for row_id, row in rows.items():
        record = {name: row[name] for name in ("id", "language", "origin_query", target)}
        record["prediction"] = _zero_or_one(predictions[row_id], row_id)
        lines.append(encode(record) + "\n")
    with _writing(out_file) as scratch:
        scratch.write_bytes("".join(lines).encode("utf-8", errors="backslashreplace"))


def zip_submission(files: Sequence[Path], out: Path) -> None:
    """Packs files flat into a zip, by name, with fixed dates and permissions: same files, same bytes.

    UserError where a file cannot be read or two have the same name.
    """
    names = [file.name for file in files]
    if len(set(names)) != len(names):
        raise UserError(f"{out}: two of the files have one name ({', '.join(sorted(names))}); rename one")
    with _writing(out) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        for file in sorted(files, key=lambda file: file.name):
            entry = zipfile.ZipInfo(file.name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix: the default differs by platform, and the permissions need it
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, read_bytes(file), compresslevel=9)


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """`replace_file`; UserError where the machine fails."""
    try:
        with replace_file(path) as scratch:
            yield scratch
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); check the folder and the disk") from error


def _zero_or_one(value: object, row_id: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # also takes NumPy's integers
    except TypeError:
        number = -1
    if isinstance(value, bool) or number not in (0, 1):
        raise UserError(f"prediction of id {row_id} is {value!r}; it must be the integer 0 or 1")
    return number


def _same_ids(found: Iterable[int], wanted: Iterable[int], found_in: str, wanted_in: str) -> None:
    have, want = set(found), set(wanted)
    faults = []
    for name, ids in (("missing", want - have), ("unknown", have - want)):
        if ids:
            first = ", ".join(map(str, sorted(ids)[:5]))
            faults.append(f"{len(ids)} {name} (id {first}{', ...' if len(ids) > 5 else ''})")
    if faults:
        raise UserError(f"{found_in}: ids not those of {wanted_in}: {', '.join(faults)}; give matching files")


# ---------------------------------------------------------------- reading, for writing and scoring


def _records(path: Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line; ids are checked to be whole numbers that stand once."""
    seen: set[int] = set()
    for number, raw in enumerate(read_lines(path)[0], 1):
        if not raw.strip():
            continue
        try:
            record = decode_line(raw)
            row_id = record.get("id")
            if type(row_id) is not int or not 1 <= row_id <= MAX_ID:
                raise BadLine("id is not a whole number from 1")
            if row_id in seen:
                raise BadLine("duplicate id", str(row_id))
        except BadLine as bad:
            raise UserError(f"{path}:{number}: {bad}; repair the {what}") from bad
        seen.add(row_id)
        yield number, record
    if not seen:
        raise UserError(f"{path}: the {what} has no rows; give the right file")


def _input_rows(path: Path, task: str | None = None) -> dict[int, dict[str, Any]]:
    """Rows of an input file by id, in its order; of either task where `task` is None."""
    rows: dict[int, dict[str, Any]] = {}
    for number, row in _records(path, "input file"):
        found = row.get("task")
        if not isinstance(found, str) or found not in TARGET_FIELD or (task and found != task):
            raise UserError(f"{path}:{number}: task is {_show(found)}; give a {task or 'QC or QI'} file")
        field = TARGET_FIELD[found]
        for name in ("language", "origin_query", field):
            if not (isinstance(row.get(name), str) or (name == field and row.get(name, 0) is None)):
                raise UserError(f"{path}:{number}: {name} is missing or not a text; repair the input file")
        rows[row["id"]] = row
    return rows


def _bits(path: Path, field: str, what: str) -> dict[int, int]:
    bits = {}
    for number, record in _records(path, what):
        value = record.get(field)
        if type(value) is not int or value not in (0, 1):
            raise UserError(f"{path}:{number}: {field} is not the integer 0 or 1; repair the {what}")
        bits[record["id"]] = value
    return bits


# ---------------------------------------------------------------- validating (uses nothing of the above)


@dataclass(frozen=True)
class Problem:
    """One fault: line from 1, what is wrong, and whether the line is the submission's or the input's."""

    line: int
    what: str
    file: str = "submission"


def validate_submission(task: str, input_file: Path, submission_file: Path) -> list[Problem]:
    """Every problem of a submission against the input it answers: those of its lines first, then missing ids.

    An input of the other task is one problem, at the first such line. Row order is judged where it breaks: a
    row that stands before its predecessor in the input. The order of fields and a missing newline at the very
    end are not judged. UserError where a file cannot be read or the input itself is broken (file:line).
    """
    target = {"QC": "category_path", "QI": "item_title"}[task]
    expected, foreign = _expected_rows(input_file, task, target)
    if foreign:
        return foreign
    content = read_bytes(submission_file)
    problems = [] if content else [Problem(1, "the file is empty")]
    if content[:3] == b"\xef\xbb\xbf":
        problems.append(Problem(1, "byte order mark before the first object"))
        content = content[3:]
    lines = content.split(b"\n")
    if lines[-1] == b"":
        del lines[-1]
    seen: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        found, faults = _strict_object(line)
        if found is not None:
            faults += _row_faults(found, expected, target) + _place_faults(found, expected, seen, number)
        problems += [Problem(number, fault) for fault in faults]
    for row_id, row in expected.items():
        if row_id not in seen:
            problems.append(Problem(row["line"], f"id {row_id} is missing from the submission", "input"))
    return problems


def format_problems(problems: Sequence[Problem]) -> str:
    """All problems, one a line, and their number at the end; "no problems" where there are none."""
    if not problems:
        return "no problems"
    listed = [f"{problem.file} line {problem.line}: {problem.what}" for problem in problems]
    return "\n".join([*listed, f"{len(listed)} problem{'s' if len(listed) > 1 else ''}"])


class _Object(dict):  # type: ignore[type-arg]
    """A JSON object that remembers which keys stood in it more than once."""

    twice: Sequence[str] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    built = _Object(pairs)
    if len(built) < len(pairs):
        built.twice = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    return built


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON value")


# Made once: json.loads would make one for every line.
_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_json)


def _strict_object(line: bytes) -> tuple[dict[str, Any] | None, list[str]]:
    """The object on a line of the submission, or None, and what is wrong with the line as such."""

    faults = []
    if b"\r" in line:
        faults.append("carriage return in the line; it must end in LF alone")
    if not line.strip():
        return None, [*faults, "blank line"]
    try:
        text = line.decode("utf-8", errors="strict")
        value = _STRICT.decode(text)
    except UnicodeDecodeError as error:
        return None, [*faults, f"invalid UTF-8 at byte {error.start + 1}"]
    except (ValueError, RecursionError) as error:
        return None, [*faults, f"broken JSON: {ascii(str(error))[1:-1]}"]
    if not isinstance(value, _Object):
        return None, [*faults, f"not a JSON object: {_show(value)}"]
    return value, faults + [f"key {_show(key)} stands twice" for key in value.twice]


def _place_faults(
    found: dict[str, Any], expected: dict[int, dict[str, Any]], seen: dict[int, int], number: int
) -> list[str]:
    """Ids given before and breaks of the order; adds the row's id and line to `seen`, in file order."""
    row_id = found.get("id")
    if type(row_id) is not int or row_id not in expected:
        return []
    if row_id in seen:
        return [f"duplicate id {row_id}, given before at line {seen[row_id]}"]
    previous = next(reversed(seen), row_id)
    seen[row_id] = number
    if expected[row_id]["line"] < expected[previous]["line"]:
        return [f"wrong order: id {row_id} stands before id {previous} in the input"]
    return []


def _row_faults(found: dict[str, Any], expected: dict[int, dict[str, Any]], target: str) -> list[str]:
    known = expected.get(found["id"]) if type(found.get("id")) is int else None
    wanted = ("id", "language", "origin_query", target, "prediction")
    faults = [f"missing field {name}" for name in wanted if name not in found]
    faults += [f"extra field {_show(name)}" for name in found if name not in wanted]
    if "id" in found and type(found["id"]) is not int:
        faults.append(f"id is {_show(found['id'])}, not an integer")
    elif "id" in found and known is None:
        faults.append(f"unknown id {_show(found['id'])}")
    for name in wanted[1:4]:
        if known is not None and name in found and found[name] != known[name]:
            faults.append(f"{name} was changed: {_difference(known[name], found[name])}")
    if "prediction" in found and (type(found["prediction"]) is not int or found["prediction"] not in (0, 1)):
        faults.append(f"prediction is {_show(found['prediction'])}, not the integer 0 or 1")
    return faults


def _difference(wanted: object, found: object) -> str:
    if isinstance(wanted, str) and isinstance(found, str):
        pairs = enumerate(zip(wanted, found, strict=False))
        place = next((i for i, (one, other) in pairs if one != other), min(len(wanted), len(found)))
        start = max(0, place - 10)
        return f"{_show(wanted[start:])} became {_show(found[start:])}, from character {place + 1}"
    return f"{_show(wanted)} became {_show(found)}"


def _show(value: object) -> str:
    """A value as JSON in ASCII, shortened: no control or right-to-left character disturbs a terminal."""
    try:
        text = json.dumps(value[:60] if isinstance(value, str) else value)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= 80 else text[:77] + "..."


def _expected_rows(path: Path, task: str, target: str) -> tuple[dict[int, dict[str, Any]], list[Problem]]:
    """The input's rows by id, with their lines; instead of them, one problem where the task is another."""
    rows: dict[int, dict[str, Any]] = {}
    foreign: list[tuple[int, str]] = []
    content = read_bytes(path)
    content = content[3:] if content[:3] == b"\xef\xbb\xbf" else content
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip() == b"":
            continue
        row, faults = _strict_object(line.removesuffix(b"\r"))
        if row is None or faults:
            raise UserError(f"{path}:{number}: {faults[0]}; repair the input file")
        if row.get("task") != task:
            foreign.append((number, _show(row.get("task"))))
            continue
        row_id = row.get("id")
        texts = {name: row.get(name) for name in ("language", "origin_query", target)}
        for name, text in texts.items():
            if not (isinstance(text, str) or (name == target and name in row and text is None)):
                raise UserError(f"{path}:{number}: no text in field {name}; repair the input file")
        if type(row_id) is not int or row_id in rows:
            fault = f"id {_show(row_id)} is no integer or stands twice"
            raise UserError(f"{path}:{number}: {fault}; repair the input file")
        rows[row_id] = {**texts, "line": number}
    if foreign:
        number, found = foreign[0]
        what = f"task is {found}, not {task}: the wrong input file ({len(foreign)} such rows)"
        return {}, [Problem(number, what, "input")]
    if not rows:
        raise UserError(f"{path}: the input file has no rows; give the right file")
    return rows, []


# ---------------------------------------------------------------- scoring


@dataclass(frozen=True)
class Scores:
    """Figures of `metrics.binary_metrics` per language (with "language" first) and over all rows."""

    languages: list[LanguageFigures]
    overall: Figures


def read_labels(path: Path) -> dict[int, int]:
    """Labels by id, from lines with `id` and `label` (0 or 1), others ignored. UserError with file:line."""
    return _bits(path, "label", "label file")


def read_predictions(path: Path) -> dict[int, int]:
    """Predictions by id of a submission file. UserError with file:line."""
    return _bits(path, "prediction", "submission")


def score_submission(
    input_file: Path, submission_file: Path, labels_file: Path, scores_file: Path | None = None
) -> Scores:
    """Scores a submission against labels, per language of the input; AUC and AP need `scores_file`.

    `scores_file` is Parquet with the columns id, language, score (higher = positive). UserError where a file
    cannot be read, a line is broken (file:line), or the ids of the files are not the same. The
    submission's texts are not compared with the input's: that is `validate_submission`.
    """
    from analyticup.metrics import binary_metrics, per_language

    rows = _input_rows(input_file)
    labels = read_labels(labels_file)
    predictions = read_predictions(submission_file)
    _same_ids(predictions, rows, str(submission_file), str(input_file))
    _same_ids(labels, rows, str(labels_file), str(input_file))
    scores = None if scores_file is None else _read_scores(scores_file)
    if scores is not None:
        _same_ids(scores, rows, str(scores_file), str(input_file))
    truth, guess = [labels[row_id] for row_id in rows], [predictions[row_id] for row_id in rows]
    ranking = None if scores is None else [scores[row_id] for row_id in rows]
    languages = [row["language"] for row in rows.values()]
    return Scores(per_language(truth, guess, languages, ranking), binary_metrics(truth, guess, ranking))


def _read_scores(path: Path) -> dict[int, float]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read(columns=["id", "score"])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: no readable score table; give this submission's scores Parquet") from error
    kinds = {"id": pa.types.is_integer, "score": pa.types.is_floating}
    # A name may stand twice in a Parquet file.
    if sorted(table.schema.names) != sorted(kinds) or not all(is_kind(table[n].type) for n, is_kind in kinds.items()):
        raise UserError(f"{path}: no columns id and score of numbers; give this submission's scores Parquet")
    ids, values = table["id"].to_pylist(), table["score"].to_numpy()
    if None in ids or len(set(ids)) != len(ids) or not np.isfinite(values).all():
        raise UserError(f"{path}: an id is missing or stands twice, or a score is not finite; write the scores again")
    return dict(zip(ids, values.tolist(), strict=True))
