"""The page of a comparison: what is shown, every interval, what people said, and stories side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from talltree import checkpoint
from talltree.errors import RunError
from talltree.report.dots import dots
from talltree.report.frame import frame
from talltree.report.html import folded, section, svg_image, table, text
from talltree.report.intervals import Row, forest
from talltree.report.words import figure, number, share

COMPARISON, SAMPLES = "comparison.json", "samples.jsonl"
STORIES = 6
SPREADS = {"t": "95% t interval", "range": "range", "": "no interval"}
CLASSES = {"shown": "passed", "hinted": "noted", "not shown": ""}

Json = Mapping[str, Any]


def write(folder: Path) -> Path:
    """Writes report.html of a compare folder and gives its path. Raises RunError for no such folder."""
    source = folder / COMPARISON
    if not source.is_file():
        raise RunError(f"{folder} has no {COMPARISON}; name the output_dir that talltree compare wrote")
    content = json.loads(source.read_text(encoding="utf-8"))
    samples = folder / SAMPLES
    lines = samples.read_text(encoding="utf-8").split("\n") if samples.is_file() else []
    page = build(content, [json.loads(line) for line in lines if line], folder.resolve().name)
    target = folder / "report.html"
    checkpoint.write_file(target, page.encode())
    return target


def build(content: Json, samples: Sequence[Json], name: str) -> str:
    """The whole page as HTML from what comparison.json and samples.jsonl hold."""
    parts: list[tuple[str, str, str]] = []
    if content.get("differences"):
        parts.append(("differences", "Differences", _differences(content)))
    if content.get("items"):
        parts.append(("items", "Benchmarks", _items(content["items"])))
    if content.get("people"):
        parts.append(("people", "People", _people(content["people"])))
    if samples:
        parts.append(("stories", "Stories", _stories(content, samples)))
    notes = [
        *content.get("notes", []),
        *content.get("items", {}).get("notes", []),
        *content.get("people", {}).get("notes", []),
    ]
    reading = "".join(f'<p class="intro">{text(note)}</p>' for note in notes)
    parts.append(("reading", "How to read this", reading + _sources(content)))
    body = "\n".join(section(identifier, title, inside) for identifier, title, inside in parts)
    links = [(identifier, title) for identifier, title, _ in parts]
    return frame(name, "comparison", _verdict(content), _setting(content), links, body)


def _verdict(content: Json) -> list[str]:
    said = [sentence for sentences in content.get("verdict", {}).values() for sentence in sentences]
    # Of benchmarks the overall figures alone: sixty paradigms do not fit at the top.
    for tables in content.get("items", {}).get("against", {}).values():
        said += tables[0]["verdict"]
    said += content.get("people", {}).get("verdict", [])
    return said or ["Nothing was compared."]


def _setting(content: Json) -> list[tuple[str, str]]:
    found = [("Models", " against ".join(_names(content)))]
    several = [each for each in content.get("settings", []) if len(each["models"]) > 1]
    if several:
        listed = ", ".join(f"{each['name']} {len(each['models'])}" for each in several)
        found.append(("Training seeds", listed))
    if "prompts" in content:
        each = content["completions_per_model"]
        found.append(("Completions", f"{each:,} a model, of {_many(content['prompts'], 'prompt')}"))
        found.append(("Seeds", ", ".join(map(str, content["seeds"]))))
    for key, label in (("reference", "KL from"), ("judge", "Judge"), ("temperature", "Temperature")):
        if content.get(key) is not None:
            found.append((label, str(content[key])))
    if content.get("max_completion_length") is not None:
        found.append(("Length", f"up to {content['max_completion_length']:,} tokens"))
    if content.get("cut") is not None:
        cut = content["cut"]
        found.append(("Cut at", f"{cut['token']!r} from position {cut['after']}"))
    return [(label, value) for label, value in found if value]


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


# Differences of completions


def _names(content: Json) -> list[str]:
    """What is compared: settings, each of one model or of several."""
    return [each["name"] for each in content.get("settings") or content.get("models", [])]


def _differences(content: Json) -> str:
    first = _names(content)[0]
    parts = []
    for other, found in content["differences"].items():
        caption = f"{other} against {first}, on the same prompts and seeds; 95% intervals in brackets"
        parts.append(_table(first, other, found, caption) + _every_seed(first, other, found))
    return "".join(parts) + _small_multiples(content)


def _every_seed(first: str, other: str, found: Sequence[Json]) -> str:
    """The figure of each seed of both sides, and their difference over seeds; "" where there are none."""
    rows = []
    for each in (each for each in found if each.get("seeds") is not None):
        seeds, unit = each["seeds"], str(each["difference"]["unit"])
        apart = seeds["apart"] | {"value": seeds["apart"]["mean"], "unit": unit}
        kind = SPREADS[seeds["apart"]["kind"]]
        rows.append(
            [
                f'{text(each["label"])} <span class="unit">{text(unit)}</span>',
                *(_values(seeds[side], unit) for side in ("left", "right")),
                f'{_metric(apart, signed=True)} <span class="unit">{text(kind)}</span>',
            ]
        )
    if not rows:
        return ""
    header = ["Measure", text(first), text(other), "Difference over seeds"]
    return folded("Every seed", table(f"Every seed of {other} and {first}", header, rows))


def _values(values: Mapping[str, float], unit: str) -> str:
    write = _write(unit)
    return "<br>".join(
        f'{text(write(value))} <span class="unit">{text(name)}</span>' for name, value in values.items()
    )


def _table(first: str, other: str, found: Sequence[Json], caption: str) -> str:
    rows = [
        [
            f'{text(each["label"])} <span class="unit">{text(each["difference"]["unit"])}</span>',
            _metric(each["left"]),
            _metric(each["right"]),
            _metric(each["difference"], signed=True),
            text(_probability(each["p_holm"])),
            f'<span class="{CLASSES[each["said"]]}">{text(each["said"])}</span>',
        ]
        for each in found
    ]
    header = ["Measure", text(first), text(other), "Difference", "p, Holm", "Difference is"]
    return table(caption, header, rows)


def _small_multiples(content: Json) -> str:
    """One chart a measure: a dot for each model, with its interval."""
    first = _names(content)[0]
    measures: dict[str, dict[str, Json]] = {}
    for other, found in content["differences"].items():
        for each in found:
            of_model = measures.setdefault(each["label"], {first: each["left"]})
            of_model[other] = each["right"]
    figures = []
    for measure, of_model in measures.items():
        spans = [(metric["value"], metric["low"], metric["high"]) for metric in of_model.values()]
        if len(set(spans)) == 1 or len({end for span in spans for end in span} - {None}) == 1:
            continue  # the same on every side: a chart would show nothing
        values = [(metric["value"], metric["low"], metric["high"]) for metric in of_model.values()]
        unit = next(iter(of_model.values()))["unit"]
        svg = dots(list(of_model), values, unit, unit.startswith("share"), None)
        said = "; ".join(f"{name} {number(float(metric['value']))}" for name, metric in of_model.items())
        figures.append(_figure(measure, "", svg, f"{measure}: {said}."))
    return f'<h3>Measure by measure</h3><div class="charts">{"".join(figures)}</div>'


# Benchmarks


def _items(items: Json) -> str:
    first = items["models"][0]
    parts = []
    for other, tables in items["against"].items():
        for each in tables:
            claims = "".join(f'<p class="claim">{text(said)}</p>' for said in each["verdict"])
            caption = f"{each['title']}: {other} against {first}; 95% intervals in brackets"
            content = _table(first, other, each["differences"], caption)
            seeds = _every_seed(first, other, each["differences"])
            if len(each["differences"]) < 2:
                parts.append(claims + content + seeds)
                continue
            ordered = sorted(each["differences"], key=lambda found: -found["difference"]["value"])
            unit = ordered[0]["difference"]["unit"]
            same = all(found["difference"]["unit"] == unit for found in ordered)
            chart = ""
            if same:
                rows = [_row(found["label"], found["difference"], found["said"]) for found in ordered]
                alt = f"{each['title']}: each difference, {other} less {first}; figures in the table."
                svg = forest(rows, f"{unit}: {other} less {first}", 0.0)
                chart = f'<div class="charts wide">{_figure(each["title"], "filled: shown", svg, alt)}</div>'
            shown = content if len(ordered) < 12 else folded("Every figure", content)
            parts.append(f"<h3>{text(each['title'])}</h3>{claims}{chart}{shown}{seeds}")
    return "".join(parts)


# People


def _people(people: Json) -> str:
    claims = "".join(f'<p class="claim">{text(said)}</p>' for said in people["verdict"])
    intro = (
        f'<p class="intro">{people["judgements"]:,} judgements of {people["prompts"]:,} prompts by '
        f"{people['raters']:,} raters.</p>"
    )
    parts = [intro, claims]
    if people["win_rates"]:
        parts.append(_win_rates(people["win_rates"]))
    if people["means"]:
        parts.append(_ratings(people))
    return "".join(parts)


def _win_rates(found: Sequence[Json]) -> str:
    rows = [
        [
            text(f"{each['right']} against {each['left']}"),
            _metric(each["rate"]),
            *(text(number(each[key])) for key in ("wins", "ties", "losses")),
            text("–" if each["rater_spread"] is None else share(each["rater_spread"])),
            text(_probability(each["p_holm"])),
        ]
        for each in found
    ]
    header = ["Pair", "Win rate", "Wins", "Ties", "Losses", "Spread of raters", "p, Holm"]
    figures = []
    for each in found:
        lines = [_row("all raters", each["rate"], "shown" if _is_clear(each) else "not shown")]
        for name, own in each["raters"].items():
            lines.append(Row(f"{name} ({own['answers']})", own["rate"], None, None, False))
        title = f"{each['right']} against {each['left']}"
        alt = f"Win rate of {title}: {number(each['rate']['value'])}, and each rater's own."
        figures.append(_figure(title, "each rater below", forest(lines, "win rate", 0.5), alt))
    return table("Win rates, ties counted as half", header, rows) + (
        f'<div class="charts wide">{"".join(figures)}</div>'
    )


def _is_clear(each: Json) -> bool:
    low, high = each["rate"]["low"], each["rate"]["high"]
    return low is not None and not low <= 0.5 <= high and (each["p_holm"] or 0) <= 0.05


def _ratings(people: Json) -> str:
    sources = people["sources"]
    means = [
        [text(criterion), *(_metric(of_source[source]) if source in of_source else "–" for source in sources)]
        for criterion, of_source in people["means"].items()
    ]
    apart = [
        [
            text(f"{each['criterion']}: {each['right']} less {each['left']}"),
            _metric(each["difference"], signed=True),
            text(_probability(each["p_holm"])),
        ]
        for each in people["ratings"]
    ]
    return table("Mean ratings", ["Criterion", *map(text, sources)], means) + (
        table("Differences of ratings", ["Criterion", "Points", "p, Holm"], apart) if apart else ""
    )


# Stories and details


def _stories(content: Json, samples: Sequence[Json]) -> str:
    by_model: dict[str, list[Json]] = {}
    for row in samples:
        by_model.setdefault(row["source"], []).append(row)
    shortest = min(map(len, by_model.values()))
    places = [at * shortest // STORIES for at in range(STORIES)] if shortest >= STORIES else range(shortest)
    groups = []
    for at in places:
        cards = "".join(
            f'<div class="card"><h4>{text(name)}</h4><p class="story">'
            f'<span class="prompt">{text(rows[at]["prompt"])}</span>{text(rows[at]["completion"])}</p></div>'
            for name, rows in by_model.items()
        )
        groups.append(f'<div class="side-by-side">{cards}</div>')
    intro = (
        f'<p class="intro">{len(groups)} of {shortest:,} stories a model, evenly spread and not chosen, '
        "drawn from the same prompts and seeds. Prompts are grey.</p>"
    )
    return intro + "".join(groups)


def _sources(content: Json) -> str:
    rows = []
    for each in content.get("models", []):
        weights = each["sha256"] or "completions from a file"
        rows.append([text(each["name"]), text(each["source"]), f"<code>{text(weights)}</code>"])
    if not rows:
        return ""
    return folded("What was compared", table("Models", ["Name", "Source", "Weights SHA-256"], rows))


def _row(label: str, metric: Json, said: str) -> Row:
    return Row(label, metric["value"], metric["low"], metric["high"], said == "shown")


def _figure(title: str, caption: str, svg: str, alt: str) -> str:
    return (
        f"<figure><figcaption><strong>{text(title)}</strong> {text(caption)}</figcaption>"
        f"{svg_image(svg, alt)}</figure>"
    )


def _metric(metric: Json, signed: bool = False) -> str:
    write = _write(str(metric["unit"]))
    value = write(float(metric["value"]))
    if signed and metric["value"] > 0:
        value = f"+{value}"
    if metric["low"] is None:
        return text(value)
    spread = f"{write(float(metric['low']))} to {write(float(metric['high']))}"
    return f'{text(value)} <span class="unit">({text(spread)})</span>'


def _write(unit: str) -> Callable[[Any], str]:
    return _percent if unit.startswith("share") else figure(unit)


def _percent(value: float) -> str:
    """Three significant digits: differences of shares may be far below a tenth of a per cent."""
    return f"{number(100 * value)}%"


def _probability(p_value: float | None) -> str:
    if p_value is None:
        return "no test"
    return "<\u00a00.001" if p_value < 0.001 else f"{p_value:.3f}"
