"""The border to the user's own code: whatever it raises becomes one RewardError line that says where."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

from talltree.errors import RewardError, TallTreeError


class blamed_on:
    """Turns what is raised inside into RewardError "WHO raised TYPE: text (file:line)", the cause kept.

    The place is the innermost line of the file given; without a file, the innermost line of all. A context
    manager, named for how it reads: `with blamed_on("reward f"):`. TallTreeErrors and KeyboardInterrupt pass
    as they are; sys.exit() counts as the user's mistake.
    """

    def __init__(self, who: str, file: str | None = None) -> None:
        self.who, self.file = who, file

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception | SystemExit) and not isinstance(error, TallTreeError):
            said = one_line(f"{type(error).__name__}: {_text(error)}".removesuffix(": "))
            raise RewardError(f"{self.who} raised {said} ({_place(error, trace, self.file)})") from error


def one_line(text: str, limit: int = 200) -> str:
    """The text on one printable line: white space joined, control characters escaped, cut at limit."""
    joined = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return joined if len(joined) <= limit else joined[:limit] + "..."


def beginning(text: str, limit: int = 60) -> str:
    """The first characters of a text as it would stand in code: quoted, line ends and controls escaped."""
    return repr(text[:limit]) + ("..." if len(text) > limit else "")


def _text(error: BaseException) -> str:
    return str(error.msg) if isinstance(error, SyntaxError) else str(error)


def _place(error: BaseException, trace: TracebackType | None, file: str | None) -> str:
    # A SyntaxError of the user's file itself has no frame there: it never began to run.
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{Path(str(error.filename)).name}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(trace) if file is None or f.filename == file]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else Path(str(file)).name
