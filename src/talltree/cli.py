"""The `talltree` command: finds the stage, reads its config, runs it, and turns errors into exit statuses."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from talltree import __version__
from talltree.errors import TallTreeError
from talltree.stages.table import STAGES

__all__ = ["STAGES", "main", "run_stage", "usage"]

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PIPE_CLOSED = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status: 0, 2 for a user's error, 130 when interrupted.

    Any exception but TallTreeError, KeyboardInterrupt and BrokenPipeError is a defect and propagates.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = "talltree"
    try:
        if not arguments or arguments[0] in ("--help", "-h", "help"):
            print(usage(), flush=True)
            return 0 if arguments else USER_ERROR
        if arguments[0] in ("--version", "-V"):
            print(f"talltree {__version__}", flush=True)
            return 0
        stage, *rest = arguments
        if stage not in STAGES:
            nearest = difflib.get_close_matches(stage, STAGES, 1, 0.0)[0]
            raise TallTreeError(f"no stage {stage!r}; nearest: {nearest}; stages: {', '.join(STAGES)}")
        name = f"talltree {stage}"
        run_stage(stage, rest)
        sys.stdout.flush()
    except TallTreeError as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return 0


def run_stage(stage: str, argv: Sequence[str]) -> None:
    """Imports a stage's module, parses its arguments and runs it; POSITIONAL names what bare ones fill."""
    module = importlib.import_module(STAGES[stage][0])
    from talltree.config import parse

    module.run(parse(module.Config, argv, f"talltree {stage}", getattr(module, "POSITIONAL", ())))


def usage() -> str:
    """The text of `talltree --help`: every stage with what it does."""
    width = max(map(len, STAGES))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in STAGES.items()]
    return "\n".join(
        [
            "usage: talltree STAGE [--config FILE.yaml] [--key value ...]",
            "",
            "Reinforcement learning for language models small enough to own.",
            "",
            "stages:",
            *lines,
            "",
            "talltree STAGE --help shows every option with its unit, range and default; talltree --version.",
        ]
    )
