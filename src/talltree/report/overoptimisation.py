"""The page of an overoptimisation measurement: gold and proxy over sqrt(KL), the fits, and where to stop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talltree import checkpoint
from talltree.errors import RunError
from talltree.report.frame import frame
from talltree.report.html import section, svg_image, table, text
from talltree.report.intervals import Series, rewards
from talltree.report.words import number

RESULT = "overopt.json"
NAMES = {"bon": "best-of-n", "rl": "reinforcement learning"}

Json = Mapping[str, Any]


def write(folder: Path) -> Path:
    """Writes report.html of an overopt folder and gives its path. Raises RunError for no such folder."""
    source = folder / RESULT
    if not source.is_file():
        raise RunError(f"{folder} has no {RESULT}; name the output_dir that talltree overopt wrote")
    page = build(json.loads(source.read_text(encoding="utf-8")), folder.resolve().name)
    target = folder / "report.html"
    checkpoint.write_file(target, page.encode())
    return target


def build(content: Json, name: str) -> str:
    """The whole page as HTML from what overopt.json holds."""
    curves = content["curves"]
    parts = [
        (f"curve-{number_}", str(curve["name"]), _curve(curve)) for number_, curve in enumerate(curves, 1)
    ]
    notes = "".join(f'<p class="intro">{text(note)}</p>' for note in content["notes"])
    parts.append(("reading", "How to read this", notes + _explanation()))
    body = "\n".join(section(identifier, text(title), inside) for identifier, title, inside in parts)
    setting = [
        ("Proxy", str(content["proxy"])),
        ("Gold", str(content["gold"])),
        ("Reference", str(content["reference"])),
        ("Prompts", number(content["prompts"])),
        ("Samples", f"{sum(content['samples'].values()):,}"),
    ]
    if content.get("cut") is not None:
        setting.append(("Cut at", f"{content['cut']['token']!r} from position {content['cut']['after']}"))
    if content.get("missing_eos_penalty") is not None:
        setting.append(("Without an end", number(content["missing_eos_penalty"])))
    verdict = [sentence for curve in curves for sentence in curve["advice"]] or ["Nothing was measured."]
    links = [(identifier, title) for identifier, title, _ in parts]
    return frame(name, "overoptimisation", verdict, setting, links, body)


def _curve(curve: Json) -> str:
    advice = "".join(f'<p class="claim">{text(said)}</p>' for said in curve["advice"])
    svg = rewards(_series(curve, "gold"), _series(curve, "proxy"), _fitted(curve), _peak(curve))
    alt = f"Gold and proxy reward of {curve['name']} over the square root of KL. {' '.join(curve['advice'])}"
    figure = (
        f'<div class="charts wide"><figure><figcaption><strong>{text(curve["name"])}</strong> '
        f"gold on the left axis, proxy on the right</figcaption>{svg_image(svg, alt)}</figure></div>"
    )
    return advice + figure + _fit_table(curve) + _points_table(curve)


def _series(curve: Json, key: str) -> Series:
    points = curve["points"]
    return Series(
        [point["d"] for point in points],
        [point[key]["value"] for point in points],
        [point[key]["low"] for point in points],
        [point[key]["high"] for point in points],
    )


def _fitted(curve: Json) -> tuple[list[float], list[float]] | None:
    return None if curve["fit"] is None else (curve["fit"]["line"]["d"], curve["fit"]["line"]["gold"])


def _peak(curve: Json) -> float | None:
    fit = curve["fit"]
    return None if fit is None or fit["peak_d"] is None else float(fit["peak_d"]["value"])


def _fit_table(curve: Json) -> str:
    fit = curve["fit"]
    if fit is None:
        return ""
    none = "none within the range"
    rows = [
        ["alpha", _metric(fit["alpha"])],
        ["beta", _metric(fit["beta"])],
        ["R², over the reference’s gold", text(number(fit["r_squared"]))],
        ["peak, d", text(none) if fit["peak_d"] is None else _metric(fit["peak_d"])],
        ["gain at the peak", text(none) if fit["peak_gain"] is None else _metric(fit["peak_gain"])],
        ["fall from the peak to the end", text(none) if fit["fall"] is None else _metric(fit["fall"])],
        ["resamples with a peak in the range", text(f"{100 * fit['peak_share']:.0f}%")],
    ]
    caption = f"Fit of gold over the reference’s: {fit['formula']} ({NAMES[curve['kind']]}); 95% intervals"
    return table(caption, ["Figure", "Value"], rows)


def _points_table(curve: Json) -> str:
    rows = [
        [
            text(point["label"]),
            text(number(point["d"])),
            *(_metric(point[key]) for key in ("kl", "proxy", "gold")),
        ]
        for point in curve["points"]
    ]
    base = ["reference", "0", "0", "–", _metric(curve["base_gold"])]
    header = ["Where", "d", "KL, nats", "Proxy", "Gold"]
    return table("What was measured; 95% intervals in brackets", header, [base, *rows])


def _metric(metric: Json) -> str:
    value = text(number(float(metric["value"])))
    if metric["low"] is None or metric["low"] == metric["high"]:
        return value
    unit = metric["unit"] if metric["unit"] not in ("gold", "proxy", "nats / sequence") else ""
    spread = f"({number(float(metric['low']))} to {number(float(metric['high']))}) {unit}".strip()
    return f'{value} <span class="unit">{text(spread)}</span>'


def _explanation() -> str:
    return (
        '<p class="intro">The proxy is what was optimised, the gold reward what was meant. As a policy moves '
        "away from its reference, gold rises with the proxy and then falls: overoptimisation. The curves are "
        "those of Gao et al. 2022 (arXiv:2210.10760), fitted by least squares to the gold gained over the "
        "reference.</p>"
    )
