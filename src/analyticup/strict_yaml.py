"""YAML as a config file or an argument may hold it: plain values, each written out where it stands."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError


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
                    raise ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.Node) -> int:
        value = super().construct_yaml_int(node)
        if not -(2**63) <= value < 2**63:
            raise ConstructorError(None, None, "a whole number beyond 64 bits; quote it as a text", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(text: str) -> Any:
    """The value of one YAML document: dicts, lists and scalars. Raises BadYaml, also for what is valid but not read
    here: aliases, a key twice, whole numbers beyond 64 bits."""
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
