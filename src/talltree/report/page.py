"""The page: one HTML file that holds everything, runs only its own script, and trusts no model's text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from talltree import checkpoint, metrics
from talltree.errors import RunError
from talltree.report import charts, facts, gallery, words
from talltree.report.facts import Facts
from talltree.report.html import folded, section, sha256_source, style, svg_image, table, text

GENERATOR = '<meta name="generator" content="Tall Tree report">'
SIDES = ("before", "after")
STATUS = {"ok": "passed", "note": "noted", "breach": "failed"}
"""CSS class of each status of a preflight row."""
MEASURES = (
    ("reward", "Reward", "a story"),
    ("kl", "KL", "nats / sequence"),
    ("kl_per_token", "KL per token", "nats / token"),
    ("length", "Length", "tokens"),
)
SHARES = (
    ("distinct_1", "distinct-1", "words that differ"),
    ("distinct_2", "distinct-2", "word pairs that differ"),
    ("unique", "Unique", "stories that differ"),
)


class Written(NamedTuple):
    """The page that was written: its path, size and how many stories it holds."""

    path: Path
    bytes: int
    samples: int


def write(folder: str | Path, output: str | Path | None, max_samples: int | None) -> Written:
    """Writes the page of the run in `folder`, by default to its report.html, in place of an older report.

    Raises RunError if there is no run, or `output` is a folder, lies in none, or is a file but no report.
    """
    run = facts.read(folder)
    target = Path(output) if output is not None else run.folder / "report.html"
    require_free(target)
    shown = run._replace(samples=gallery.thin(run.samples, max_samples))
    content = build(shown, run.samples.num_rows).encode()
    checkpoint.write_file(target, content)
    return Written(target, len(content), shown.samples.num_rows)


def require_free(target: Path) -> None:
    """Raises RunError unless a page can be written to `target`."""
    if target.is_dir():
        raise RunError(f"output {target} is a folder; name a file, such as {target / 'report.html'}")
    if not target.parent.is_dir():
        raise RunError(f"output {target}: folder {target.parent} does not exist; create it first")
    if target.exists() and GENERATOR.encode() not in target.read_bytes()[:1000]:
        raise RunError(f"output {target} exists and is no report, and is not overwritten; name another file")


def build(run: Facts, stored: int) -> str:
    """The whole page as HTML; `stored` is how many samples the run has, of which `run.samples` are shown."""
    sheet, script = style(), _asset("report.js")
    stories = gallery.columns(run.samples) | {"best_step": run.best_step}
    data = gallery.script_json(stories | {"comparison": gallery.comparison(run)})
    policy = (
        f"default-src 'none'; img-src data:; script-src {sha256_source(script)}; "
        f"style-src {sha256_source(sheet)}; base-uri 'none'; form-action 'none'"
    )
    body = "\n".join(
        (
            _masthead(run),
            "<main>",
            _result(run),
            _curves(run),
            _stories(run, stored),
            _preflight(run),
            _details(run),
            "</main>",
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n{GENERATOR}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(run.name)} · Tall Tree</title>\n<style>{sheet}</style>\n</head>\n<body>\n{body}\n"
        f'<script type="application/json" id="samples">{data}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return (resources.files("talltree.report") / name).read_text(encoding="utf-8")


def _masthead(run: Facts) -> str:
    setting = "".join(
        f"<div><dt>{text(label)}</dt><dd>{text(given)}</dd></div>" for label, given in words.setting(run)
    )
    first, *rest = words.verdict(run)
    links = "".join(
        f'<a href="#{identifier}">{title}</a>'
        for identifier, title in (
            ("result", "Result"), ("curves", "Curves"), ("stories", "Stories"),
            ("preflight", "Preflight"), ("details", "Details"),
        )
    )  # fmt: skip
    return (
        '<header class="masthead"><p class="eyebrow">Tall Tree · report of a run</p>'
        f"<h1>{text(run.name)}</h1>"
        f'<p class="verdict">{text(first)}</p><p class="verdict-more">{text(" ".join(rest))}</p>'
        f'<dl class="setting">{setting}</dl><nav aria-label="On this page">{links}</nav></header>'
    )


# The result


def _result(run: Facts) -> str:
    cards = "".join(
        f'<div class="figure"><dt>{text(label)}</dt><dd>{text(figure)}</dd>'
        f'<dd class="note">{text(note)}</dd></div>'
        for label, figure, note in (
            _final_figures(run.summary) if run.summary and run.has_ended else _latest_figures(run)
        )
    )
    figures = f'<dl class="figures">{cards}</dl>' if cards else ""
    comparison = _comparison(run, run.summary) if run.summary else ""
    if not figures and not comparison:
        figures = '<p class="missing">There is nothing to show yet: the run has no finished step.</p>'
    return section("result", "Result", figures + comparison)


def _final_figures(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    before, after = (summary.get(side) or {} for side in SIDES)
    found = []
    for key, label, unit in MEASURES:
        if key != "kl_per_token" and words.mean(after.get(key)) is not None:
            figure = words.figure(unit)
            note = f"{unit}; before {figure(words.mean(before.get(key)))}"
            found.append((label, figure(words.mean(after[key])), note))
    for key, label, unit in SHARES[1:]:
        if isinstance(after.get(key), int | float):
            found.append((label, words.share(after[key]), f"{unit}; before {words.share(before.get(key))}"))
    if isinstance(summary.get("wall_time_seconds"), int | float):
        note = f"{words.number(summary['steps'])} steps" if summary.get("steps") is not None else ""
        found.append(("Wall time", words.duration(summary["wall_time_seconds"]), note))
    return found


def _latest_figures(run: Facts) -> list[tuple[str, str, str]]:
    if not run.rows:
        return []
    row, note = run.rows[-1], "mean of the last step"
    found = [("Steps", words.number(run.last_step), "finished so far")]
    for key, label in (
        ("reward/mean", "Reward"),
        ("kl/sequence", "KL, nats"),
        ("completion/length", "Tokens"),
    ):
        if isinstance(row.get(key), int | float):
            found.append((label, words.figure(label)(float(row[key])), note))
    for key, label in (("diversity/distinct_2", "distinct-2"), ("diversity/unique", "Unique")):
        if isinstance(row.get(key), int | float):
            found.append((label, words.share(row[key]), note))
    return found


def _comparison(run: Facts, summary: Mapping[str, Any]) -> str:
    before, after = (summary.get(side) or {} for side in SIDES)
    rows = []
    for key, label, unit in MEASURES:
        if key in before or key in after:
            rows.append([_named(label, unit), *(_measured(side.get(key), unit) for side in (before, after))])
    for key, label, unit in SHARES:
        if key in before or key in after:
            rows.append(
                [_named(label, unit), *(text(words.share(side.get(key))) for side in (before, after))]
            )
    if not rows:
        return ""
    counts = (text(words.number(side.get("samples"))) for side in (before, after))
    rows.append([_named("Samples", "fresh stories"), *counts])
    prompts = ""
    if run.fresh is not None:
        prompts = " from held-out prompts" if run.fresh.is_held_out else " from the prompts of the training"
    caption = f"Before and after on fresh samples{prompts}; 95% intervals in brackets"
    return table(caption, ["Measure", "Before", "After"], rows)


def _measured(given: Any, unit: str) -> str:
    mean, bracket, interval = words.interval(given, words.figure(unit)).partition(" (")
    return f'{text(mean)} <span class="unit">({text(interval)}</span>' if bracket else text(mean)


def _named(label: str, unit: str) -> str:
    return f'{text(label)} <span class="unit">{text(unit)}</span>'


# Curves


def _curves(run: Facts) -> str:
    path = charts.path(run)
    drawn = [*charts.curves(run), *([path] if path else []), *charts.histograms(run)]
    if not drawn:
        return section("curves", "Curves", '<p class="missing">No step has been measured yet.</p>')
    figures = "".join(
        f"<figure><figcaption><strong>{text(chart.title)}</strong> {text(chart.caption)}</figcaption>"
        f"{svg_image(chart.svg, chart.alt)}</figure>"
        for chart in drawn
    )
    absent = charts.missing(run)
    note = f'<p class="missing">Not measured in this run: {text(", ".join(absent))}.</p>' if absent else ""
    return section("curves", "Curves", f'{_legend(run)}<div class="charts">{figures}</div>{note}')


def _legend(run: Facts) -> str:
    parts = []
    if run.best_step is not None:
        parts.append(f'<span class="key best">best checkpoint, step {text(run.best_step)}</span>')
    if run.has_ended and run.last_step is not None:
        parts.append(f'<span class="key stop">stop, step {text(run.last_step)}</span>')
    window = charts.smoothing(len(run.rows))
    if window > 1:
        parts.append(
            f"<span>Thick lines are means over {window} neighbouring steps, faint ones single steps.</span>"
        )
    return f'<p class="legend">{" ".join(parts)}</p>' if parts else ""


# Stories


def _stories(run: Facts, stored: int) -> str:
    shown = run.samples.num_rows
    if not shown:
        return section("stories", "Stories", '<p class="missing">This run has stored no samples.</p>')
    share = f"all {stored:,} stored samples" if shown == stored else f"{shown:,} of {stored:,} stored samples"
    even = "" if shown == stored else ", evenly spread over the run"
    note = (
        f'<p class="intro">These are {share}{even}. Prompts are grey; '
        "<mark>marked words</mark> earned the reward. KL is the sum over the story in nats.</p>"
    )
    return section("stories", "Stories", note + _asset("gallery.html"))


# Preflight and details


def _preflight(run: Facts) -> str:
    checks = words.preflight(run)
    if not checks:
        missing = '<p class="missing">No preflight is stored with this run.</p>'
        return section("preflight", "Preflight", missing)
    names = list(dict.fromkeys(name for row in checks for name in row))
    header = [text(name.replace("_", " ")) for name in names]
    rows = [[_cell(row.get(name)) for name in names] for row in checks]
    caption = "The numeric contract, measured on this model and reward before the first update"
    return section("preflight", "Preflight", table(caption, header, rows))


def _cell(given: Any) -> str:
    if isinstance(given, str) and given in STATUS:
        return f'<span class="{STATUS[given]}">{text(given)}</span>'
    if given is None:
        return "–"
    return text(words.number(given) if isinstance(given, float) else given)


def _details(run: Facts) -> str:
    keys = list(dict.fromkeys(key for row in run.rows for key in row))
    rows = [[f"<code>{text(key)}</code>", *(text(part) for part in _definition(key))] for key in keys]
    definitions = table("Every key of metrics.jsonl", ["Key", "Unit", "Formula"], rows) if rows else ""
    environment = json.dumps(run.environment, indent=2, ensure_ascii=False)
    content = folded(
        "Resolved config: feeding it back repeats the run", f"<pre>{text(run.config_text)}</pre>"
    )
    if run.environment:
        content += folded("Environment", f"<pre>{text(environment)}</pre>")
    if definitions:
        content += folded("What every metric means", definitions)
    return section("details", "Details", content)


def _definition(key: str) -> tuple[str, str]:
    try:
        metric = metrics.describe(key)
    except KeyError:
        return "", "not documented in this version"
    return metric.unit, metric.formula
