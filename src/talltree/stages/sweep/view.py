"""What a person sees of a study while it goes on: a live table in a terminal, a line a change elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from talltree.console import clock, plain, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

ROWS = 24
ORDER = ("running", "failed", "interrupted", "stopped", "finished", "waiting")
STYLES = {"running": "bold green", "failed": "bold red", "stopped": "yellow", "waiting": "dim"}
MEASURES = (
    ("reward/mean", "reward"),
    ("kl/sequence", "KL, nats"),
    ("loss/train", "loss"),
    ("loss/validation", "held-out loss"),
)


class Line(NamedTuple):
    """A trial as it stands: its link, that link's last row of metrics.jsonl, and how many steps it has."""

    name: str
    status: str
    link: str
    row: Mapping[str, Any]
    steps: int | None
    seconds: float


class View:
    """`with View() as view`, `view.say` for a line that stays, `view.show` for the table of a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console: Console = Console(file=stream or sys.stdout, highlight=False, emoji=False)
        self._live = Live(console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> View:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    @property
    def is_live(self) -> bool:
        """Whether a table is shown, so that lines are worth making."""
        return self._console.is_terminal

    def say(self, text: str) -> None:
        """One line, kept on the screen."""
        self._console.print(printable(text), markup=False, soft_wrap=True)

    def show(self, lines: Sequence[Line]) -> None:
        """Replaces the table."""
        self._live.update(panel(lines))


def panel(lines: Sequence[Line]) -> RenderableType:
    """The table: running trials first, as many as fit, then how many there are of each state."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    ranked = sorted(lines, key=lambda line: ORDER.index(line.status))
    shown = ranked[:ROWS]
    measures = [(key, title) for key, title in MEASURES if any(key in line.row for line in shown)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("trial", "state", "step"):
        table.add_column(title, no_wrap=title != "trial")
    for title in (*(title for _, title in measures), "time"):
        table.add_column(title, justify="right", no_wrap=True)
    for line in shown:
        step = f"{line.link} {line.row['step']}" if "step" in line.row else line.link
        step += f" of {line.steps}" if line.steps is not None and "step" in line.row else ""
        figures = [_figure(line.row.get(key)) for key, _ in measures]
        time = clock(line.seconds) if line.seconds else ""
        style = STYLES.get(line.status, "")
        rest = (Text(printable(cell)) for cell in (step, *figures, time))
        table.add_row(Text(printable(line.name)), Text(line.status, style=style), *rest)
    return Group("", table, Text(counts([line.status for line in lines]), style="dim"))


def counts(statuses: Sequence[str]) -> str:
    """Such as: 12 trials: 2 running, 3 finished, 7 waiting."""
    found = Counter(statuses)
    parts = [f"{found[status]} {status}" for status in ORDER if found[status]]
    return f"{len(statuses)} trial{'' if len(statuses) == 1 else 's'}: {', '.join(parts)}"


def _figure(value: Any) -> str:
    return plain(value) if isinstance(value, int | float) else ""
