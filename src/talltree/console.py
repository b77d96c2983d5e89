"""What a person sees of a run while it goes on: a live panel in a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH = 100


class Story(NamedTuple):
    """A sample to show: prompt and completion, and the ranges of both joined that earned the reward."""

    prompt: str
    completion: str
    spans: Sequence[tuple[int, int]]


class Progress:
    """`with Progress(total) as progress`, then `progress.update(row, story)` after every step.

    `say` prints a line above the live panel. Where the stream is no terminal, every step is one plain line
    and a story follows now and then.
    """

    def __init__(self, total: int, stream: TextIO | None = None, story_every: int = 20) -> None:
        from rich.console import Console
        from rich.live import Live

        self._total = total
        self._story_every = story_every
        self._console: Console = Console(file=stream or sys.stdout, highlight=False, emoji=False)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._started = time.monotonic()
        self._done_before: int | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """One line, kept on the screen."""
        self._console.print(text, markup=False, soft_wrap=True)

    def update(self, row: Mapping[str, Any], story: Story | None) -> None:
        """Shows the metrics of a step that has just ended, and one of its samples."""
        step = int(row["step"])
        if self._done_before is None:
            # Only steps of this process tell how long the rest will take; the first one still warms up.
            self._done_before, self._started = step, time.monotonic()
        done = step - self._done_before
        rate = (time.monotonic() - self._started) / done if done else float(row["time/step"])
        left = clock(rate * (self._total - step))
        if self._console.is_terminal:
            self._live.update(self._panel(row, story, left))
            return
        self.say(plain_line(row, self._total, left))
        if story is not None and (step % self._story_every == 0 or step == 1):
            self.say("    " + printable(" ".join((story.prompt + story.completion).split())))

    def _panel(self, row: Mapping[str, Any], story: Story | None, left: str) -> RenderableType:
        from rich.columns import Columns
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar

        # As many columns as fit: in a narrow terminal, figures are not to be cut.
        cells = Columns((f"[dim]{name}[/dim] {value}" for name, value in facts(row, left)), padding=(0, 3))
        parts: list[RenderableType] = [cells, ProgressBar(total=self._total, completed=row["step"], width=60)]
        if story is not None:
            parts += ["", _marked(story)]
        title = f"step {row['step']} of {self._total}"
        return Panel(Group(*parts), title=title, width=min(WIDTH, self._console.width))


def facts(row: Mapping[str, Any], left: str) -> list[tuple[str, str]]:
    """The figures of one step, named, in the order of their importance."""
    return [
        ("reward", f"{row['reward/mean']:.2f} ± {row['reward/std']:.2f}"),
        ("KL", f"{plain(row['kl/sequence'])} nats ({round(row['kl/token'], 3) + 0.0:.3f}/token)"),
        ("entropy", f"{row['policy/entropy']:.2f} nats/token"),
        ("distinct-2", f"{row['diversity/distinct_2']:.2f}"),
        ("unique", f"{row['diversity/unique']:.0%}"),
        ("length", f"{row['completion/length']:.0f} tokens"),
        ("speed", f"{row['time/tokens_per_second']:,.0f} tokens/s"),
        ("left", left),
    ]


def plain(value: float) -> str:
    """A number with two decimals; what rounds to zero has no sign."""
    return f"{round(value, 2) + 0.0:.2f}"


def plain_line(row: Mapping[str, Any], total: int, left: str) -> str:
    """One step as one line of text."""
    return f"step {row['step']}/{total}  " + "  ".join(f"{name} {value}" for name, value in facts(row, left))


def clock(seconds: float) -> str:
    """A duration as 1:05 or 2:01:05."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def printable(text: str) -> str:
    """The text with every control character but the newline as U+FFFD, of the same length.

    A byte-level model can write escape sequences, which a terminal would obey.
    """
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text)


def _marked(story: Story) -> RenderableType:
    from rich.text import Text

    text = Text(printable(story.prompt + story.completion))
    text.stylize("dim", 0, len(story.prompt))
    for start, end in story.spans:
        text.stylize("bold green", start, end)
    return text
