"""Arguments that name models: MODEL, NAME=MODEL, and NAME=MODEL,MODEL for the seeds of one setting."""

from __future__ import annotations

from pathlib import Path

from talltree.errors import ConfigError


def named(given: str) -> tuple[str, str]:
    """NAME and MODEL of NAME=MODEL; "" and all of it for a path that has the sign itself, or no sign.

    Raises ConfigError where one of the two is empty.
    """
    name, equals, source = given.partition("=")
    if not equals or Path(given).expanduser().exists():
        return "", given
    if not name.strip() or not source.strip():
        raise ConfigError(f"{given!r} is no MODEL and no NAME=MODEL")
    return name, source


def seeds_of_one(name: str, source: str) -> list[str]:
    """The models of NAME=MODEL,MODEL; one for a path that has a comma itself, or none.

    Raises ConfigError for several without a name.
    """
    if Path(source).expanduser().exists():
        return [source]
    members = split_list(source)
    if len(members) > 1 and not name:
        raise ConfigError(
            f"{source!r} are {len(members)} models; leave the comma out, or write NAME={source} if they are "
            "training seeds of one setting"
        )
    return members or [source]


def labels_of(sources: list[str]) -> list[str]:
    """Short names of models, a run's for its final/; numbers from 1 where two would be the same."""
    found = [label_of(source) for source in sources]
    return found if len(set(found)) == len(found) else [str(at) for at in range(1, len(found) + 1)]


def label_of(source: str) -> str:
    """What a path is called: its last part, or the run's name for a final/."""
    path = Path(source).expanduser()
    if path.name == "final" and path.parent.name:
        path = path.parent
    return path.name.removesuffix(".jsonl") or source


def split_list(text: str) -> list[str]:
    """The parts of a list separated by commas, those within brackets or quotes left whole."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif depth and character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
