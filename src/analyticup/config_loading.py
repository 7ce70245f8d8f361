"""Reading config files and `key=value` overrides into settings, with all errors collected.

A config file is YAML and may name another one that it extends: `extends: other.yaml`, relative to itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from analyticup.config import CHOICES, COMMON_KEYS, RANGES, TASK_SECTIONS, TASKS, Settings
from analyticup.errors import UserError

# Neither a path nor a UTF-8 file, such as a record of the settings, takes these.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
# Keys whose value may start with ~ or ~user.
_PATHS = ("data.dir", "paths.", "model.backbone")


@dataclass(frozen=True)
class Given:
    """One setting as the user gave it, and where: a config file or the command line."""

    key: str
    value: Any
    where: str


def load_settings(config: Path, overrides: list[str], overlay: Path | None = None) -> Settings:
    """The settings of a config file with `key=value` overrides on top, and those of `overlay` over both.

    Raises UserError with ALL errors, a line each: key, file or argument, and the nearest valid key.
    """
    errors: list[str] = []
    given = _read_config(config, errors, seen=()) + _read_overrides(overrides, errors)
    given += _read_config(overlay, errors, seen=()) if overlay else []
    return _settle(given, errors)


def settings_from_dict(tree: dict[str, Any], where: str, overrides: list[str]) -> Settings:
    """The settings that `to_dict` made `tree` of, with overrides on top; `where` is named in errors as above."""
    errors: list[str] = []
    given = [Given(key, value, where) for key, value in _leaves(tree)]
    return _settle(given + _read_overrides(overrides, errors), errors)


def _settle(given: list[Given], errors: list[str]) -> Settings:
    known = _schema(Settings)
    values: dict[str, Given] = {}
    for item in given:
        problem = _check(item, known)
        if problem:
            errors.append(problem)
        elif _split_task(item.key)[1] in known:
            values[item.key] = item
    errors += _check_across(values)
    if errors:
        lines = ("".join(c if c.isprintable() else " " for c in error) for error in errors)
        raise UserError("\n".join(dict.fromkeys(lines)))
    return _build({key: item.value for key, item in values.items()}, known)


def task_settings(settings: Settings, task: str) -> Settings:
    """The settings of one task: the common sections with that task's own values on top."""
    merged = dataclasses.replace(settings, QC={}, QI={})
    return _apply(merged, getattr(settings, task), _schema(Settings))


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings object as plain dicts and lists (for fingerprints, records and YAML)."""
    return dataclasses.asdict(settings)


def _schema(cls: type, prefix: str = "") -> dict[str, Any]:
    """Every leaf key with its type, e.g. {"train.lr": float}."""
    leaves: dict[str, Any] = {}
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            leaves |= _schema(hint, f"{prefix}{item.name}.")
        elif item.name not in TASKS:
            leaves[f"{prefix}{item.name}"] = hint
    return leaves


def _read_config(path: Path, errors: list[str], seen: tuple[Path, ...]) -> list[Given]:
    from analyticup.strict_yaml import BadYaml, read_yaml

    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else None
        tree = None if text is None else read_yaml(text)
    except (BadYaml, UnicodeDecodeError) as error:
        line = getattr(error, "line", None)
        where = f"{path}:{line}" if line else str(path)
        errors.append(f"{where}: not valid YAML ({error}); mend that line")
        return []
    except OSError as error:
        errors.append(f"{path}: cannot be read ({error.strerror}); give the path of a config file")
        return []
    if text is None:
        errors.append(f"{path}: no such config file; the shipped ones are in configs/")
        return []
    resolved = path.resolve()
    if resolved in seen:
        errors.append(f"{path}: extends itself; break the circle of `extends:`")
        return []
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        errors.append(f"{path}: a config must be a mapping of `section: ...`, not a {type(tree).__name__}")
        return []
    parent = tree.pop("extends", None)
    inherited = _read_config(path.parent / str(parent), errors, (*seen, resolved)) if parent is not None else []
    return inherited + [Given(key, value, str(path)) for key, value in _leaves(tree)]


def _leaves(tree: dict[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        # An empty section (`QI:` with everything commented out) says nothing.
        if isinstance(value, dict):
            leaves += _leaves(value, f"{name}.")
        else:
            leaves.append((name, value))
    return leaves


def _read_overrides(overrides: list[str], errors: list[str]) -> list[Given]:
    from analyticup.strict_yaml import BadYaml, read_yaml

    given = []
    for text in overrides:
        key, equals, raw = text.partition("=")
        where = f"argument {_shown(text)}"
        if not equals or not key.strip():
            errors.append(f"{where}: neither a command (see --help) nor of the form key=value, e.g. train.lr=2e-4")
            continue
        try:
            value = read_yaml(raw) if raw.strip() else None
        except BadYaml:
            value = raw
        pairs = _leaves(value, f"{key.strip()}.") if isinstance(value, dict) else [(key.strip(), value)]
        given += [Given(name, item, where) for name, item in pairs]
    return given


def _split_task(key: str) -> tuple[str | None, str]:
    task, dot, rest = key.partition(".")
    return (task, rest) if dot and task in TASKS else (None, key)


def _check(item: Given, known: dict[str, Any]) -> str | None:
    task, key = _split_task(item.key)
    sections = {leaf.split(".")[0] for leaf in known}
    if key in sections | set(TASKS) and item.value is None and key not in known:
        return None
    if key not in known:
        return f"{item.where}: unknown key {_shown(item.key)}{_nearest(item.key, task, known)}"
    if task and (key.split(".")[0] not in TASK_SECTIONS or key.startswith(COMMON_KEYS)):
        return f"{item.where}: {key!r} cannot differ between tasks; set it without `{task}.`"
    try:
        value = _typed(item.value, known[key])
    except TypeError as error:
        return f"{item.where}: {item.key} = {_shown(item.value)}: {error}"
    return _check_value(item, key, value)


def _nearest(name: str, task: str | None, known: dict[str, Any]) -> str:
    spellings = [f"{task}.{key}" if task else key for key in known]
    close = difflib.get_close_matches(name, spellings, n=1, cutoff=0.5)
    if not close:
        last = name.rpartition(".")[2]
        close = [key for key in spellings if key.rpartition(".")[2] == last][:1]
    return f"; the nearest valid key is {close[0]!r}" if close else "; see src/analyticup/config.py for all keys"


def _check_value(item: Given, key: str, value: Any) -> str | None:
    choices = CHOICES.get(key)
    if choices:
        wrong = [part for part in (value if isinstance(value, list) else [value]) if part not in choices]
        if wrong:
            close = difflib.get_close_matches(str(wrong[0]), choices, n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            return f"{item.where}: {item.key} = {_shown(wrong[0])}: not one of {', '.join(choices)}{hint}"
    low, high = RANGES.get(key, (None, None))
    if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        return f"{item.where}: {item.key} = {value!r}: must be {bounds}"
    parts, told = value if isinstance(value, list) else [value], f"{item.where}: {item.key} = {_shown(value)}"
    if any(_NO_TEXT.search(part) for part in parts if isinstance(part, str)):
        return f"{told}: a NUL or half of a surrogate pair is in no file; take it out"
    if key.startswith(_PATHS) and _has_unknown_home(value):
        return f"{told}: no such user; write the path out"
    if any(_means_something_to_omegaconf(part) for part in parts):
        return f"{told}: nothing is filled in for ${{...}} and ???; write the value out"
    if key == "name" and not _is_plain_name(value):
        return f"{told}: use at most 100 letters, digits, '.', '_' and '-': it names a folder"
    if key == "tasks" and (not value or len(set(value)) != len(value)):
        return f"{item.where}: tasks = {value!r}: name QC, QI or both, each once"
    return None


def _shown(value: Any) -> str:
    """A value as Python writes it, shortened."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _has_unknown_home(value: str | None) -> bool:
    try:
        Path((value or "").removeprefix("gguf:")).expanduser()
    except RuntimeError:
        return True
    return False


def _means_something_to_omegaconf(value: Any) -> bool:
    return isinstance(value, str) and ("${" in value or value == "???")


def _is_plain_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name) is not None


def _check_across(values: dict[str, Given]) -> list[str]:
    """Rules over two settings, checked on what each task would see, defaults included."""
    errors = []
    for task in ("", *TASKS):
        errors += _translate_problems(values, task)
        for section in ("negatives", "threshold"):
            low, high = (_seen(values, task, f"{section}.{end}") for end in ("low", "high"))
            # A value from YAML may still be text here, such as 1e-4.
            if float(low.value) > float(high.value):
                where = low.where or high.where
                errors.append(
                    f"{where}: {low.key} = {low.value} is above {high.key} = {high.value}; change one of them"
                )
    return errors + _check_threshold(values) + _check_negatives(values)


def _check_threshold(values: dict[str, Given]) -> list[str]:
    """What needs a threshold that is chosen on out-of-fold rows, in the tasks that run."""
    errors = []
    running = values["tasks"].value if "tasks" in values else TASKS
    for task in (task for task in TASKS if task in running):
        method, enabled, mode, by_language = (
            _seen(values, task, key)
            for key in ("ensemble.method", "threshold.enabled", "threshold.mode", "threshold.per_language")
        )
        if by_language.value and enabled.value and mode.value == "fixed":
            errors.append(
                f"{by_language.where}: {by_language.key} = true chooses thresholds on rows, but {mode.key} = fixed for "
                f"{task}; use sweep, or leave it false"
            )
        if method.value == "rank" and not (enabled.value and mode.value == "sweep"):
            wrong = f"{enabled.key} = false" if not enabled.value else f"{mode.key} = fixed"
            errors.append(
                f"{method.where}: {method.key} = rank makes scores that are no probabilities, but {wrong} for {task} "
                f"compares them with one; use threshold.mode = sweep, or another method"
            )
    return errors


def _check_negatives(values: dict[str, Given]) -> list[str]:
    errors = []
    for task in TASKS:
        for name in ("origins", "relations"):
            given = _seen(values, task, f"negatives.{name}")
            if given.value == []:
                choices = ", ".join(CHOICES[f"negatives.{name}"])
                errors.append(f"{given.where}: {given.key} is empty; name at least one of {choices}")
    for name in ("relations", "same_leaf"):
        if given := values.get(f"QI.negatives.{name}"):
            errors.append(
                f"{given.where}: {given.key}: the targets of QI are titles, not category paths; set it for QC alone"
            )
    return errors


def _seen(values: dict[str, Given], task: str, key: str) -> Given:
    """A setting as the task sees it ("" = neither task's own): its own value, the common one, or the default."""
    from functools import reduce

    default = Given(key, reduce(getattr, key.split("."), Settings()), "")
    return (task and values.get(f"{task}.{key}")) or values.get(key) or default


def _translate_problems(values: dict[str, Given], task: str) -> list[str]:
    from analyticup.augment import read_mapping
    from analyticup.augment.translate import read_volumes

    enabled, translator, model, volumes, languages, codes = (
        _seen(values, task, f"translate.{name}")
        for name in ("enabled", "translator", "machine.model", "volumes", "languages", "machine.codes")
    )
    errors = []
    if enabled.value is True and translator.value == "marian" and not model.value:
        errors.append(
            f"{translator.where}: {translator.key} = marian: set {model.key} to a local folder, or to a hub id with "
            f"translate.machine.revision"
        )
    try:
        unused = sorted(set(read_volumes(_strings(volumes.value))) - set(_strings(languages.value)))
        if languages.value is not None and unused:
            errors.append(f"{volumes.where}: {volumes.key} names {', '.join(unused)}, which {languages.key} does not")
    except UserError as error:
        errors.append(f"{volumes.where}: {error}")
    try:
        read_mapping(_strings(codes.value), codes.key)
    except UserError as error:
        errors.append(f"{codes.where}: {error}")
    return errors


def _strings(value: Any) -> list[str]:
    """A list of texts as YAML may give it: one of them alone, or nothing."""
    parts = value if isinstance(value, list) else [] if value is None else [value]
    return [str(part) for part in parts]


def _typed(value: Any, hint: Any) -> Any:
    """The value as the schema's type; raises TypeError with what was expected."""
    from types import NoneType, UnionType
    from typing import get_args, get_origin

    if get_origin(hint) is UnionType:
        if value is None and NoneType in get_args(hint):
            return None
        hint = next(option for option in get_args(hint) if option is not NoneType)
    if get_origin(hint) is list:
        parts = value if isinstance(value, list) else [value]
        return [_typed(part, get_args(hint)[0]) for part in parts]
    return _scalar(value, hint)


def _scalar(value: Any, hint: type) -> Any:
    import math

    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float:
        # YAML 1.1 reads 1e-4 as text, as it has no dot.
        try:
            number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        # `no` and `yes` are booleans in YAML 1.1; a label word must be quoted, a number may stand bare.
        return str(value)
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text (quote it)"}
    raise TypeError(f"must be {names[hint]}")


def _build(values: dict[str, Any], known: dict[str, Any]) -> Settings:
    settings = Settings()
    plain = {key: value for key, value in values.items() if key in known}
    settings = _apply(settings, plain, known)
    for task in TASKS:
        own = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{task}.")}
        setattr(settings, task, {key: _typed(value, known[key]) for key, value in sorted(own.items())})
    return settings


def _apply(settings: Settings, values: dict[str, Any], known: dict[str, Any]) -> Settings:
    from omegaconf import OmegaConf

    merged = OmegaConf.structured(settings)
    for key, value in values.items():
        OmegaConf.update(merged, key, _typed(value, known[key]))
    result = OmegaConf.to_object(merged)
    assert isinstance(result, Settings)
    return result
