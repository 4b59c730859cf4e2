"""The skeleton of the report page: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of the page.

    Args:
        anchor: its id, for links.
        title: its heading, plain text.
        body: HTML.
    """

    anchor: str
    title: str
    body: str


def render_page(*, title: str, header: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page.

    Args:
        title: plain text.
        header: HTML below the title.
        sections: in order; each gets a link at the top.
        footer: HTML.
    """
    here = resources.files("wamkit.evaluation")
    style = here.joinpath("report.css").read_text(encoding="utf-8")
    script = here.joinpath("report.js").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    bodies = "".join(
        f'<section aria-labelledby="{section.anchor}"><h2 id="{section.anchor}">{escape(section.title)}</h2>'
        f"{section.body}</section>\n"
        for section in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # An empty icon, so that no browser asks a server for one.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header><p class="eyebrow">wamkit report</p><h1>{escape(title)}</h1>{header}\n'
        f'<nav aria-label="Sections">{links}</nav></header>\n'
        f"<main>{bodies}</main>\n<footer>{footer}</footer>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A list of named facts; values are HTML."""
    return '<dl class="facts">' + "".join(f"<div><dt>{escape(k)}</dt><dd>{v}</dd></div>" for k, v in pairs) + "</dl>"


def badge(is_success: bool) -> str:
    """Solved or not, in words, shape and colour."""
    return (
        '<span class="badge solved">✓ solved</span>' if is_success else '<span class="badge failed">✗ not solved</span>'
    )


def percent(fraction: float) -> str:
    """A fraction as whole per cent, with a space that does not break."""
    return f"{fraction * 100:.0f}\u202f%"


def empty(reason: str) -> str:
    """Why a section has nothing to show; plain text."""
    return f'<p class="empty">{escape(reason)}</p>'


def card(media: str, caption: str) -> str:
    """A picture, film or chart with its caption, both HTML."""
    return f'<figure class="card">{media}<figcaption>{caption}</figcaption></figure>'


def cards(items: Sequence[str]) -> str:
    """Cards in as many columns as fit."""
    return '<div class="cards">' + "".join(items) + "</div>"


def folded(summary: str, body: str, *, is_open: bool = False) -> str:
    """Something to open; both HTML."""
    return f'<details{" open" if is_open else ""}><summary>{summary}</summary><div class="body">{body}</div></details>'
