"""The frame of a page without a script: head, policy, masthead; what is inside is HTML already."""

from __future__ import annotations

from collections.abc import Sequence

from talltree.report.html import sha256_source, style, text
from talltree.report.page import GENERATOR

WIDE = """
.charts.wide { grid-template-columns: repeat(auto-fill, minmax(min(460px, 100%), 1fr)); margin: 20px 0 24px; }
.claim { max-width: 46em; margin: 0 0 10px; font-size: 17px; }
.side-by-side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); }
.side-by-side { gap: 10px 16px; }
.side-by-side .card { padding: 14px 18px; border: 1px solid var(--rule); border-radius: 10px; }
.side-by-side .card { background: var(--card); }
.side-by-side h4 { margin-bottom: 6px; color: var(--muted); font-size: 13px; }
.side-by-side + .side-by-side { margin-top: 18px; }
td { min-width: 5em; }
.scroll + .scroll { margin-top: 28px; }
"""


def frame(
    title: str,
    kind: str,
    verdict: Sequence[str],
    setting: Sequence[tuple[str, str]],
    links: Sequence[tuple[str, str]],
    body: str,
) -> str:
    """The page: eyebrow "Tall Tree · kind", the title, the verdict (its first sentence large), then the body.

    title, kind, verdict, setting and the links' titles are plain text and are escaped here.
    """
    sheet = style() + WIDE
    policy = (
        f"default-src 'none'; img-src data:; style-src {sha256_source(sheet)}; base-uri 'none'; "
        "form-action 'none'"
    )
    first, *rest = verdict
    settings = "".join(f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>" for key, value in setting)
    listed = "".join(f'<a href="#{identifier}">{text(name)}</a>' for identifier, name in links)
    more = f'<p class="verdict-more">{text(" ".join(rest))}</p>' if rest else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n{GENERATOR}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(title)} · Tall Tree</title>\n<style>{sheet}</style>\n</head>\n<body>\n"
        f'<header class="masthead"><p class="eyebrow">Tall Tree · {text(kind)}</p><h1>{text(title)}</h1>'
        f'<p class="verdict">{text(first)}</p>{more}<dl class="setting">{settings}</dl>'
        f'<nav aria-label="On this page">{listed}</nav></header>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )
