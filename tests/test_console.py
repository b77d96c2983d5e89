"""The live panel and the plain lines."""

import io

import pytest
from rich.console import Console

from talltree import console
from talltree.console import Progress, Story, clock, facts, plain_line, printable

ESCAPE = "\x1b"


def row(step, seconds=2.0):
    return {
        "step": step,
        "reward/mean": 5.678,
        "reward/std": 1.234,
        "kl/sequence": 12.25,
        "kl/token": 0.12345,
        "policy/entropy": 1.5,
        "diversity/distinct_2": 0.678,
        "diversity/unique": 0.99,
        "completion/length": 61.4,
        "time/tokens_per_second": 12345.6,
        "time/step": seconds,
    }


@pytest.fixture(autouse=True)
def no_forced_colours(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_facts_have_names_and_units():
    assert facts(row(3), "1:05") == [
        ("reward", "5.68 ± 1.23"),
        ("KL", "12.25 nats (0.123/token)"),
        ("entropy", "1.50 nats/token"),
        ("distinct-2", "0.68"),
        ("unique", "99%"),
        ("length", "61 tokens"),
        ("speed", "12,346 tokens/s"),
        ("left", "1:05"),
    ]


def test_plain_line_is_one_line():
    line = plain_line(row(3), 10, "0:14")
    assert line.startswith("step 3/10  reward 5.68 ± 1.23  KL 12.25 nats (0.123/token)  ")
    assert line.endswith("left 0:14")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (65, "1:05"), (59.6, "1:00"), (3599, "59:59"), (7265, "2:01:05"), (-3, "0:00")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_what_is_no_terminal_gets_plain_lines():
    stream = io.StringIO()
    with Progress(40, stream, story_every=2) as progress:
        progress.say("preflight [ok] :tree:")
        for step in (1, 2, 3, 4):
            progress.update(
                row(step), Story("Once", f" there\nwas [bold]{ESCAPE}[31m a :smile: tree", [(0, 4)])
            )
    text = stream.getvalue()
    assert ESCAPE not in text
    lines = text.splitlines()
    assert lines[0] == "preflight [ok] :tree:"
    assert [line.split("  ")[0] for line in lines[1:] if line.startswith("step")] == [
        "step 1/40", "step 2/40", "step 3/40", "step 4/40",
    ]  # fmt: skip
    # A story after the first step and after every second one, on one line, as it was written.
    assert [index for index, line in enumerate(lines) if line.startswith("    ")] == [2, 4, 7]
    assert lines[2] == "    Once there was [bold]\ufffd[31m a :smile: tree"


def test_plain_lines_are_not_wrapped():
    stream = io.StringIO()
    with Progress(2, stream) as progress:
        progress.say("x" * 500)
    assert stream.getvalue() == "x" * 500 + "\n"


def test_time_left_comes_from_the_steps_of_this_process(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Progress(10, stream) as progress:
        progress.update(row(4, seconds=7.0), None)  # resumed: 6 steps left at 7 seconds each
        now[0] += 6.0
        progress.update(row(6), None)  # two steps in 6 seconds: 4 left at 3 seconds each
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("left 0:42")
    assert lines[1].endswith("left 0:12")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_terminal_gets_a_live_panel(monkeypatch, width):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Terminal()
    with Progress(40, stream) as progress:
        progress.update(row(1), Story("Once", " a tall tree", [(5, 6), (7, 11)]))
    text = stream.getvalue()
    assert ESCAPE in text
    assert "step 1 of 40" in text
    for _, value in facts(row(1), "1:18"):
        assert value in text  # no figure is cut, however narrow the terminal is
    assert "step 1/40" not in text  # no plain lines beside the panel


def panel_segments(story):
    """What the panel's story consists of: (text, style) in order."""
    return [
        (segment.text, str(segment.style)) for segment in Console(width=80).render(console._marked(story))
    ]


def test_spans_are_marked_in_prompt_and_completion():
    segments = panel_segments(Story("Tall tall", " trees grew", [(0, 4), (10, 15)]))
    marked = [text for text, style in segments if "green" in style]
    assert marked == ["Tall", "trees"]
    assert [text for text, style in segments if "dim" in style] == ["Tall", " tall"]
    assert "".join(text for text, _ in segments).strip() == "Tall tall trees grew"


def test_markup_and_control_characters_of_a_story_are_shown_as_text():
    story = Story("[red]x[/red]", f" a\r{ESCAPE}[2Jtree", [(16, 23)])
    joined = story.prompt + story.completion
    segments = panel_segments(story)
    text = "".join(part for part, _ in segments)
    assert "[red]x[/red] a\ufffd\ufffd[2Jtree" in text
    assert [part for part, style in segments if "green" in style] == [joined[16:23]]


def test_printable_keeps_length_and_newlines():
    text = f"a\nb\t{ESCAPE}\x00\x7f\x9b é 🌳"
    assert printable(text) == "a\nb\ufffd\ufffd\ufffd\ufffd\ufffd é 🌳"
    assert len(printable(text)) == len(text)


def test_a_run_that_fails_closes_the_panel(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with pytest.raises(ZeroDivisionError), Progress(2, stream) as progress:
        progress.update(row(1), None)
        raise ZeroDivisionError
    assert (
        stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1
    )  # the cursor is back
