"""YAML in which a value keeps its type: 1e-05 is a number; no, 12:30 and 2026-01-02 are text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from talltree.errors import ConfigError


class Loader(yaml.SafeLoader):
    """The safe loader with the scalar types of YAML 1.2, which people expect, in place of those of 1.1."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Refuses aliases: a value that repeats or contains itself is not a setting."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", mark)
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """The safe dumper, which quotes whatever any YAML version would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Writes a repeated list or mapping in full."""
        return True


_FLOAT = re.compile(
    r"([-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)
_SCALARS = {
    "bool": re.compile(r"(true|True|TRUE|false|False|FALSE)$"),
    "null": re.compile(r"(~|null|Null|NULL|)$"),
    "int": re.compile(r"[-+]?(0|[1-9][0-9]*)$"),
    "float": _FLOAT,
}
for _name, _pattern in _SCALARS.items():
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, None)
Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def dump(value: Any) -> str:
    """Plain dicts, lists and scalars as YAML, keys in their order."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def word(value: Any) -> str:
    """A value as YAML on one line, for messages."""
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def value_of(text: str) -> Any:
    """The value of a text on the command line: 3 is a number, [a, b] a list; what is no YAML is text."""
    try:
        return Loader(text).get_single_data()
    except yaml.YAMLError:
        return text


def open_mapping(path: str) -> tuple[Loader, yaml.MappingNode | None]:
    """A loader and the file's top-level mapping as nodes, which know their lines; None for an empty file."""
    try:
        loader = Loader(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}; give a YAML file") from None
    root = loader.get_single_node()
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}, line {line(root)}: must hold `key: value` lines, not a {root.id}")
    return loader, root


@contextmanager
def one_line_errors(path: str) -> Iterator[None]:
    """Turns what the YAML library raises inside into ConfigError: file, line, reason."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {reason}") from None


def line(node: yaml.Node) -> int:
    """The line of the file where a node starts, counted from 1."""
    return int(node.start_mark.line) + 1
