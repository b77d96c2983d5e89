"""Stage options: frozen dataclasses filled from YAML files and the command line, through jsonargparse.

A stage's config class is a frozen dataclass whose fields are made by `option`; a field that is itself such
a class gives dotted keys (`kl.coef`). jsonargparse converts every value to the field's type; this module adds
what its messages lack: the file and line, the unit and range, the nearest known key, all in one line.
Precedence: default < --config files in the order given < command line.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from yaml import MappingNode

from talltree import yaml_text
from talltree.errors import ConfigError
from talltree.options import Option, groups, option, options, union_parts

if typing.TYPE_CHECKING:
    import jsonargparse

__all__ = ["Option", "flaws", "from_dict", "option", "options", "parse", "resumed", "to_dict", "to_yaml"]

T = TypeVar("T")


class Given(NamedTuple):
    """A value as somebody gave it: `where` names the place, `is_text` is True on the command line."""

    key: str
    value: Any
    where: str
    is_text: bool


def parse(config_class: type[T], argv: Sequence[str], prog: str, positional: str | Sequence[str] = ()) -> T:
    """The config that arguments ask for: --config FILE.yaml (repeatable), --key value, --key=value, --flag.

    An option that is a mapping takes --key.inner value too, and what is given for it adds up key by key.
    `positional` names the options that bare arguments fill in turn; one that is a list takes all the rest.
    Raises ConfigError in one line for whatever is refused; --help prints and raises SystemExit(0).
    """
    positional = (positional,) if isinstance(positional, str) else tuple(positional)
    known = {each.key: each for each in options(config_class)}
    arguments = list(_split(argv, known, positional))
    if any(each.key == "help" for each in arguments):
        print(_help_parser(config_class, prog, positional).format_help(), end="")
        raise SystemExit(0)
    given: list[Given] = []
    for each in arguments:
        if each.key == "config":
            given += _read_file(each.value, known)
    given += [each for each in arguments if each.key != "config"]
    return _build(config_class, known, given)


def from_dict(config_class: type[T], mapping: Mapping[str, Any]) -> T:
    """The config of a nested or dotted mapping, checked like a file; absent keys take their defaults."""
    known = {each.key: each for each in options(config_class)}
    return _build(config_class, known, list(_flatten(mapping, known, "")))


def resumed(asked: T, kept: Mapping[str, Any], folder: Path, may_change: Sequence[str] = ()) -> T:
    """The config `kept` of the run in `folder`, which `asked` continues.

    What `may_change` names, dotted within a group, is taken from `asked` where it is not the default there.
    Raises ConfigError where `asked` wants anything else that is neither the default nor the run's own.
    """
    config_class = type(asked)
    config = from_dict(config_class, kept)
    defaults, given, old = (
        {each.key: each.default for each in options(config_class, defaults=source)}
        for source in (None, asked, config)
    )
    for key, value in given.items():
        here = key == "output_dir" and Path(value) == folder
        if key == "resume" or key in may_change or value in (defaults[key], old[key]) or here:
            continue
        raise ConfigError(
            f"--resume continues {folder} with its own config, where {key} is {old[key]}, but "
            f"{value} is asked for; leave it out, or start a new run"
        )
    for key in may_change:
        if given[key] != defaults[key]:
            config = _replaced(config, key, given[key])
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dicts of plain values: tuples become lists and paths text."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def to_yaml(config: Any) -> str:
    """A config as YAML that `parse` reads back to an equal config, floats to the last bit."""
    return yaml_text.dump(to_dict(config))


def flaws(config_class: type) -> list[str]:
    """What is wrong with the class itself: options without help, and defaults that its own rules refuse."""
    found = [f"{key}: no help" for key, help_ in groups(config_class) if not help_.strip()]
    for each in options(config_class):
        if not each.help.strip():
            found.append(f"{each.key}: no help")
        if each.default is not dataclasses.MISSING:
            try:
                _convert(_leaf_parser([each]), each, Given(each.key, _plain(each.default), each.key, False))
            except ConfigError as error:
                found.append(f"default of {error}")
    return found


# --- reading -----------------------------------------------------------------------------------------------


def _split(argv: Sequence[str], known: Mapping[str, Option], positional: Sequence[str]) -> Iterator[Given]:
    tokens = list(argv)
    to_fill = list(positional)
    listed: list[str] = []
    while tokens:
        token = tokens.pop(0)
        if token in ("--help", "-h"):
            yield Given("help", "", token, True)
            continue
        if not token.startswith("--"):
            if not to_fill or token.startswith("-"):
                raise ConfigError(
                    f"{token!r} is not an option; options are written --key value or --key=value"
                )
            if typing.get_origin(known[to_fill[0]].type) is list:
                listed.append(token)
            else:
                filled = to_fill.pop(0)
                yield Given(filled, token, f"--{filled}", True)
            continue
        key, equals, value = token[2:].partition("=")
        where = f"--{key}"
        is_last = not tokens or tokens[0].startswith("--") or tokens[0] == "-h"
        holder = _mapping_above(key, known)
        if holder and (equals or not is_last):
            inner = yaml_text.value_of(value if equals else tokens.pop(0))
            yield Given(holder, _nested(key[len(holder) + 1 :], inner), where, False)
            continue
        if key != "config" and key not in known:
            shown = value if equals or is_last else tokens[0]
            raise _unknown(key, shown, where, known, "--")
        if not equals and is_last:
            if key == "config":
                raise ConfigError("--config needs a value; allowed: a YAML file")
            if known[key].type is not bool:
                raise ConfigError(f"{where} needs a value; allowed: {known[key].allowed}")
            value = "true"
        elif not equals:
            value = tokens.pop(0)
        yield Given(key, value, where, True)
    if listed:
        yield Given(to_fill[0], listed, f"--{to_fill[0]}", False)


def _read_file(path: str, known: Mapping[str, Option]) -> list[Given]:
    with yaml_text.one_line_errors(path):
        loader, root = yaml_text.open_mapping(path)
        return [] if root is None else list(_walk(loader, root, path, "", known, set()))


def _walk(
    loader: yaml_text.Loader,
    root: MappingNode,
    path: str,
    prefix: str,
    known: Mapping[str, Option],
    seen: set[str],
) -> Iterator[Given]:
    for name, node in root.value:
        key = f"{prefix}{name.value}"
        where = f"{path}, line {yaml_text.line(name)}: {key}"
        if key in seen:
            raise ConfigError(f"{where}: given twice in this file; remove one")
        if key in known:
            seen.add(key)
            yield Given(key, loader.construct_document(node), where, False)
        elif _is_group(key, known):
            if not isinstance(node, MappingNode):
                raise _not_a_group(key, node.value, where, known, "")
            yield from _walk(loader, node, path, f"{key}.", known, seen)
        else:
            raise _unknown(key, loader.construct_document(node), where, known, "")


def _flatten(mapping: Mapping[str, Any], known: Mapping[str, Option], prefix: str) -> Iterator[Given]:
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        if key in known:
            yield Given(key, _plain(value), key, False)
        elif not _is_group(key, known):
            raise _unknown(key, value, key, known, "")
        elif not isinstance(value, Mapping):
            raise _not_a_group(key, value, key, known, "")
        else:
            yield from _flatten(value, known, f"{key}.")


# --- checking and building ---------------------------------------------------------------------------------


def _build(config_class: type[T], known: Mapping[str, Option], given: Sequence[Given]) -> T:
    parser = _leaf_parser([known[key] for key in dict.fromkeys(each.key for each in given)])
    values = {key: each.default for key, each in known.items()}
    for each in given:
        value = _convert(parser, known[each.key], each)
        is_mapping = typing.get_origin(known[each.key].type) is dict
        values[each.key] = _merged(values[each.key], value) if is_mapping else value
    for key, value in values.items():
        if value is dataclasses.MISSING:
            raise ConfigError(f"--{key} is required; allowed: {known[key].allowed}: {known[key].help}")
    return _construct(config_class, values, "")


def _construct(config_class: type[T], values: Mapping[str, Any], prefix: str) -> T:
    hints = typing.get_type_hints(config_class)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, config_class)):
        key = prefix + field.name
        is_group = dataclasses.is_dataclass(hints[field.name])
        arguments[field.name] = _construct(hints[field.name], values, f"{key}.") if is_group else values[key]
    config = config_class(**arguments)
    check = getattr(config, "check", None)
    if check is not None:
        check()
    return config


def _leaf_parser(leaves: Sequence[Option]) -> jsonargparse.ArgumentParser:
    from jsonargparse import ArgumentParser  # 0.15 s, which --help need not pay

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    for each in leaves:
        parser.add_argument(f"--{each.key}", type=each.type)
    return parser


def _convert(parser: jsonargparse.ArgumentParser, target: Option, given: Given) -> Any:
    try:
        if given.is_text:
            parsed = parser.parse_args([f"--{target.key}={given.value}"], defaults=False)
        else:
            parsed = parser.parse_object({target.key: copy.deepcopy(given.value)}, defaults=False)
    except (argparse.ArgumentError, OverflowError):
        raise _refused(target, given) from None
    value = parsed[target.key]
    takes = union_parts(target.type)
    if value is None and type(None) not in takes and target.type is not Any:
        raise _refused(target, given)
    if isinstance(given.value, str) and not given.is_text and str in takes:
        # jsonargparse reads the text "null" or "3" of a union as None or 3; a quoted YAML value is text.
        value = given.value
    for scalar in _scalars(value):
        if not _is_within(target, scalar):
            raise _refused(target, given)
    return value


def _is_within(target: Option, scalar: Any) -> bool:
    if scalar is None:
        return True
    if isinstance(scalar, float) and not math.isfinite(scalar):
        return False
    if isinstance(scalar, (int, float)) and not isinstance(scalar, bool):
        above_low = target.low is None or scalar >= target.low
        below_high = target.high is None or scalar <= target.high
        if not (above_low and below_high and (target.above is None or scalar > target.above)):
            return False
    return target.choices is None or scalar in target.choices


def _refused(target: Option, given: Given) -> ConfigError:
    line = f"{given.where}: {_show(given.value)} is not allowed; allowed: {target.allowed}"
    if target.choices and isinstance(given.value, str):
        names = {str(choice): choice for choice in target.choices}
        line += f"; nearest: {difflib.get_close_matches(given.value, names, 1, 0.0)[0]}"
    elif not given.is_text and str in union_parts(target.type) and not isinstance(given.value, str):
        line += "; put quotes around it to make it text"
    return ConfigError(line)


def _unknown(key: str, value: Any, where: str, known: Mapping[str, Option], dashes: str) -> ConfigError:
    if dashes and _is_group(key, known):
        return _not_a_group(key, value, where, known, dashes)
    # A tail of a dotted key counts too, so that `coef` finds `kl.coef`.
    spellings = {tail: full for full in known for tail in (full.rpartition(".")[2], full)}
    nearest = spellings[difflib.get_close_matches(key, spellings, 1, 0.0)[0]] if spellings else ""
    return ConfigError(f"{where}: unknown option (value {_show(value)}); nearest known: {dashes}{nearest}")


def _not_a_group(key: str, value: Any, where: str, known: Mapping[str, Option], dashes: str) -> ConfigError:
    inner = ", ".join(f"{dashes}{each}" for each in known if each.startswith(f"{key}."))
    return ConfigError(f"{where}: {_show(value)} is not allowed for a group of options; its options: {inner}")


# --- help --------------------------------------------------------------------------------------------------


def _help_parser(config_class: type, prog: str, positional: Sequence[str]) -> argparse.ArgumentParser:
    bare = "".join(f"[{each.upper()}] " for each in positional)
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"%(prog)s {bare}[--config FILE.yaml] [--key value ...]",
        description=((config_class.__doc__ or "").strip().splitlines() or [""])[0],
    )
    text = "Options from a YAML file; may be repeated, and the command line overrides it."
    parser.add_argument("--config", metavar="FILE", help=text)
    sections: dict[str, Any] = {"": parser}
    sections |= {key: parser.add_argument_group(key, help_) for key, help_ in groups(config_class)}
    for each in options(config_class):
        is_required = each.default is dataclasses.MISSING
        shown = "required" if is_required else f"default: {yaml_text.word(_plain(each.default))}"
        text = f"{each.help.rstrip()} [{each.allowed}; {shown}]".replace("%", "%%")
        section = sections[each.key.rpartition(".")[0]]
        section.add_argument(f"--{each.key}", metavar="VALUE", help=text)
    return parser


# --- small pieces ------------------------------------------------------------------------------------------


def _is_group(key: str, known: Mapping[str, Option]) -> bool:
    return any(each.startswith(f"{key}.") for each in known)


def _mapping_above(key: str, known: Mapping[str, Option]) -> str:
    """The option that is a mapping and holds the dotted key, or an empty text."""
    parts = key.split(".")
    prefixes = (".".join(parts[:size]) for size in range(1, len(parts)))
    return next(
        (each for each in prefixes if each in known and typing.get_origin(known[each].type) is dict), ""
    )


def _nested(key: str, value: Any) -> Any:
    """{"a": {"b": value}} for the dotted key a.b."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _replaced(config: Any, key: str, value: Any) -> Any:
    """A config with one option changed, dotted within a group."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(
        config, **{name: _replaced(getattr(config, name), rest, value) if rest else value}
    )


def _merged(below: Any, above: Any) -> Any:
    """Two mappings as one, level by level; where both have a value, that of `above`."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    both = {key: _merged(below[key], above[key]) for key in below if key in above}
    return {**below, **above, **both}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _scalars(each)
    else:
        yield value


def _show(value: Any) -> str:
    shown = " ".join((value if isinstance(value, str) else yaml_text.word(_plain(value))).split())
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return repr(shown) if isinstance(value, str) else shown
