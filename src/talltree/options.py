"""How a config class describes its fields: default, help, unit, range and choices."""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple


class Option(NamedTuple):
    """One leaf of a config class; `key` is dotted, `default` is dataclasses.MISSING where one is required."""

    key: str
    type: Any
    default: Any
    help: str
    unit: str
    low: float | None
    high: float | None
    above: float | None
    choices: tuple[Any, ...] | None

    @property
    def allowed(self) -> str:
        """What the option takes, in words: type, range or choices, unit."""
        words = _type_words(self.type)
        if self.choices is not None and _literals(self.type) is None:
            words += " out of " + _join(self.choices)
        bounds = [f"above {self.above:g}"] if self.above is not None else []
        if self.low is not None:
            bounds.append(f"at least {self.low:g}")
        if self.high is not None:
            bounds.append(f"at most {self.high:g}")
        words += (", " + " and ".join(bounds)) if bounds else ""
        return words + (f" ({self.unit})" if self.unit else "")


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field with its description; low and high are inclusive bounds, above is an exclusive one.

    Bounds and choices hold for each element of a list, tuple or mapping; NaN and infinity are always refused.
    `dataclasses.MISSING` as default makes the option required (the class then needs kw_only=True).
    """
    metadata = {
        "help": help,
        "unit": unit,
        "low": low,
        "high": high,
        "above": above,
        "choices": None if choices is None else tuple(choices),
    }
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def options(config_class: type, prefix: str = "", defaults: Any = None) -> list[Option]:
    """Every leaf of a config class in the order of its fields; `defaults` is an instance to take them from.

    Raises TypeError for a group of options that may be None.
    """
    found: list[Option] = []
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        default = _default(field) if defaults is None else getattr(defaults, field.name)
        if dataclasses.is_dataclass(hint):
            inner = None if default is dataclasses.MISSING else default
            found += options(typing.cast(type, hint), f"{prefix}{field.name}.", inner)
            continue
        if any(dataclasses.is_dataclass(part) for part in typing.get_args(hint)):
            raise TypeError(
                f"{config_class.__name__}.{field.name}: an optional group of options is not supported"
            )
        names = ("help", "unit", "low", "high", "above", "choices")
        help_, unit, low, high, above, choices = (field.metadata.get(name) for name in names)
        if choices is None:
            choices = _literals(hint)
        found.append(
            Option(prefix + field.name, hint, default, help_ or "", unit or "", low, high, above, choices)
        )
    return found


def groups(config_class: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted name and the help of every nested config class, outer before inner."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[field.name]):
            yield prefix + field.name, field.metadata.get("help", "")
            yield from groups(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")


def _type_words(hint: Any) -> str:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is Literal:
        return "one of " + _join(inside)
    if _is_union(hint):
        return " or ".join(_type_words(part) for part in inside)
    if origin is tuple and inside[-1:] != (Ellipsis,):
        return "list of " + _join(_type_words(part) for part in inside)
    if origin in (tuple, list):
        return f"list of {_type_words(inside[0])}"
    if origin is dict:
        return f"mapping of {_type_words(inside[0])} to {_type_words(inside[1])}"
    names = {str: "text", bool: "true or false", Path: "path", Any: "anything"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def union_parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a type that is no union is its own only member."""
    return typing.get_args(hint) if _is_union(hint) else (hint,)


def _literals(hint: Any) -> tuple[Any, ...] | None:
    """The choices of a Literal or an optional Literal; None for any other type."""
    parts = [part for part in union_parts(hint) if part is not type(None)]
    if parts and all(typing.get_origin(part) is Literal for part in parts):
        return tuple(value for part in parts for value in typing.get_args(part))
    return None


def _join(values: Any) -> str:
    return ", ".join(map(str, values))
