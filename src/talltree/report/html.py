"""Small pieces of HTML; every text from a run goes through `text`."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def style() -> str:
    """The style sheet of a page: the palette, which the page for judging has as well, and report.css."""
    package = resources.files("talltree")
    files = (package / "palette.css", package / "report" / "report.css")
    return "".join(each.read_text(encoding="utf-8") for each in files)


def text(value: Any) -> str:
    """Any value as HTML text, quotes escaped too; characters that HTML does not allow become U+FFFD."""
    return html.escape(_CONTROL.sub("\ufffd", str(value)))


def sha256_source(content: str) -> str:
    """The Content-Security-Policy source that lets exactly this inline script or style through."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def svg_image(svg: str, alt: str) -> str:
    """An SVG as an <img> with a data: URI, so that nothing in it can run."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{text(alt)}" width="400" height="250" src="data:image/svg+xml;base64,{data}">'


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML already; it scrolls inside its own box where it is too wide."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{text(caption)}" tabindex="0"><table>'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def folded(title: str, content: str) -> str:
    """A <details> with HTML content."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"


def section(identifier: str, title: str, content: str) -> str:
    """A <section> under its heading, with HTML content."""
    return (
        f'<section id="{identifier}" aria-labelledby="{identifier}-title">'
        f'<h2 id="{identifier}-title">{title}</h2>{content}</section>'
    )
