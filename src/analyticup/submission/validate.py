"""Checks a submission file against its input, line by line; shares no code with the writer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from analyticup.engine.files import read_bytes
from analyticup.errors import UserError, show_value


@dataclass(frozen=True)
class Problem:
    """One fault: line from 1, what is wrong, and whether the line is the submission's or the input's."""

    line: int
    what: str
    file: str = "submission"


def validate_submission(task: str, input_file: Path, submission_file: Path) -> list[Problem]:
    """Every problem of a submission against the input it answers: those of its lines first, then missing ids.

    An input of the other task is one problem, at the first such line. Row order is judged where it breaks: a
    row that comes before its predecessor in the input. The order of fields and a missing newline at the very
    end are not judged. UserError where a file cannot be read or the input itself is broken (file:line).
    """
    target = {"QC": "category_path", "QI": "item_title"}[task]
    expected, foreign = _expected_rows(input_file, task, target)
    if foreign:
        return foreign
    content = read_bytes(submission_file)
    if form := _other_form(content):
        return [Problem(1, form)]
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


# First bytes of files that hold no line of JSON in UTF-8; that begins with a bracket, and has no NUL.
_OTHER_FORMS = {
    b"\x1f\x8b": "compressed by gzip; unpack it (gunzip)",
    b"PK\x03\x04": "a zip archive; unpack it and give the file that is in it",
    b"\xff\xfe": "in UTF-16; save it as UTF-8",
    b"\xfe\xff": "in UTF-16; save it as UTF-8",
    b"{\0": "in UTF-16; save it as UTF-8",
    b"\0{": "in UTF-16; save it as UTF-8",
}


def _other_form(content: bytes) -> str:
    """What a file is of which every line would be wrong; "" for another one."""
    if b"\n" not in content and b"\r" in content.rstrip(b"\r"):
        return "the file has lines that end in CR alone; they must end in LF"
    return next((f"the file is {form}" for begin, form in _OTHER_FORMS.items() if content.startswith(begin)), "")


class _Object(dict):  # type: ignore[type-arg]
    """A JSON object that remembers which keys it had more than once."""

    twice: Sequence[str] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    built = _Object(pairs)
    if len(built) < len(pairs):
        built.twice = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    return built


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")


# Made once: json.loads would make one for every line.
_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_json)


def _strict_object(line: bytes) -> tuple[dict[str, Any] | None, list[str]]:
    """The object on a line of the submission, or None, and what is wrong with the line as such."""

    faults = []
    if b"\r" in line:
        faults.append("carriage return in the line; it must end in only LF")
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
        return None, [*faults, f"not a JSON object: {show_value(value)}"]
    return value, faults + [f"key {show_value(key)} is given twice" for key in value.twice]


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
        return [f"wrong order: id {row_id} comes before id {previous} in the input"]
    return []


def _row_faults(found: dict[str, Any], expected: dict[int, dict[str, Any]], target: str) -> list[str]:
    known = expected.get(found["id"]) if type(found.get("id")) is int else None
    wanted = ("id", "language", "origin_query", target, "prediction")
    faults = [f"missing field {name}" for name in wanted if name not in found]
    faults += [f"extra field {show_value(name)}" for name in found if name not in wanted]
    if "id" in found and type(found["id"]) is not int:
        faults.append(f"id is {show_value(found['id'])}, not an integer")
    elif "id" in found and known is None:
        faults.append(f"unknown id {show_value(found['id'])}")
    for name in wanted[1:4]:
        if known is not None and name in found and found[name] != known[name]:
            faults.append(f"{name} was changed: {_difference(known[name], found[name])}")
    if "prediction" in found and (type(found["prediction"]) is not int or found["prediction"] not in (0, 1)):
        faults.append(f"prediction is {show_value(found['prediction'])}, not the integer 0 or 1")
    return faults


def _difference(wanted: object, found: object) -> str:
    if isinstance(wanted, str) and isinstance(found, str):
        pairs = enumerate(zip(wanted, found, strict=False))
        place = next((i for i, (one, other) in pairs if one != other), min(len(wanted), len(found)))
        start = max(0, place - 10)
        return f"{show_value(wanted[start:])} became {show_value(found[start:])}, from character {place + 1}"
    return f"{show_value(wanted)} became {show_value(found)}"


def _expected_rows(path: Path, task: str, target: str) -> tuple[dict[int, dict[str, Any]], list[Problem]]:
    """The input's rows by id, with their lines; instead of them, one problem where the task is another."""
    rows: dict[int, dict[str, Any]] = {}
    foreign: list[tuple[int, str]] = []
    content = read_bytes(path)
    if form := _other_form(content):
        raise UserError(f"{path}: {form}")
    content = content[3:] if content[:3] == b"\xef\xbb\xbf" else content
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip() == b"":
            continue
        row, faults = _strict_object(line.removesuffix(b"\r"))
        if row is None or faults:
            raise UserError(f"{path}:{number}: {faults[0]}; repair the input file")
        if row.get("task") != task:
            foreign.append((number, show_value(row.get("task"))))
            continue
        row_id = row.get("id")
        texts = {name: row.get(name) for name in ("language", "origin_query", target)}
        for name, text in texts.items():
            if not (isinstance(text, str) or (name == target and name in row and text is None)):
                raise UserError(f"{path}:{number}: no text in field {name}; repair the input file")
        if type(row_id) is not int or row_id in rows:
            fault = f"id {show_value(row_id)} is not an integer or is given twice"
            raise UserError(f"{path}:{number}: {fault}; repair the input file")
        rows[row_id] = {**texts, "line": number}
    if foreign:
        number, found = foreign[0]
        what = f"task is {found}, not {task}: the wrong input file ({len(foreign)} such rows)"
        return {}, [Problem(number, what, "input")]
    if not rows:
        raise UserError(f"{path}: the input file has no rows; give the right file")
    return rows, []
