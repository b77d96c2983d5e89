"""`python -m bench rl | sample | scale | pretrain [--key value ...]`; --help lists the options of each."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import commands
from bench.table import show
from talltree.config import parse
from talltree.errors import ConfigError, TallTreeError

COMMANDS: dict[str, tuple[type, Callable[[Any], dict[str, Any]]]] = {
    "rl": (commands.Rl, commands.rl),
    "sample": (commands.Sample, commands.sample),
    "scale": (commands.Scale, commands.scale),
    "pretrain": (commands.Pretrain, commands.pretrain),
}
USER_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Runs one benchmark and returns its exit status: 0, 2 for a user's error, 130 when interrupted."""
    try:
        if not argv or argv[0] in ("--help", "-h", "help"):
            print("usage: python -m bench rl | sample | scale | pretrain [--key value ...]; --help: options")
            return 0 if argv else USER_ERROR
        name, *rest = argv
        if name not in COMMANDS:
            nearest = difflib.get_close_matches(name, COMMANDS, 1, 0.0)[0]
            raise ConfigError(f"no benchmark {name!r}; nearest: {nearest}; benchmarks: {', '.join(COMMANDS)}")
        config, run = COMMANDS[name]
        options: Any = parse(config, rest, f"python -m bench {name}")
        _refuse_folder(options.output)
        result = run(options)
        if options.output is not None:
            Path(options.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        show(result)
    except TallTreeError as error:
        print(f"bench: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _refuse_folder(output: str | None) -> None:
    """Before anything is measured: raises ConfigError where the JSON file could not be written afterwards."""
    if output is None:
        return
    path = Path(output)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(
            f"--output: {output!r} is a folder or lies in none; name a file in an existing folder"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
