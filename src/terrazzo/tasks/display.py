"""Short texts and HTML of results, for a console and for notebooks. All HTML is escaped here."""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["bullets", "card", "count", "fold", "line", "number", "settings_table", "table"]

WIDTH = 100  # letters of a line
MAX_ROWS = 30  # of a table
MAX_TEXT = 300  # letters of one setting
_CELL = "text-align:left;padding:0 1em 0 0"


def line(texts: Iterable[str]) -> str:
    """Return texts, one after the other, as one line; what does not fit is left out."""
    joined = ", ".join(texts)
    return textwrap.shorten(joined, WIDTH, placeholder=" ...")


def count(n: int, noun: str) -> str:
    """Return a number with its noun."""
    ending = "" if n == 1 else "s"
    return f"{n} {noun}{ending}"


def number(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.3g}"


def card(title: str, *parts: str) -> str:
    """Return HTML with a title and parts, which are HTML already."""
    heading = html.escape(title)
    content = "".join(parts)
    return f"<div><b>{heading}</b>{content}</div>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table; "" without rows; of many rows the first, and how many more there are."""
    if not rows:
        return ""
    lines = []
    if header:
        lines.append(_row(header, "th"))
    lines += [_row(row, "td") for row in rows[:MAX_ROWS]]
    body = f"<table>{''.join(lines)}</table>"
    n_more = len(rows) - MAX_ROWS
    if n_more > 0:
        body += f"<p>and {n_more} more rows</p>"
    return body


def bullets(texts: Iterable[str]) -> str:
    """Return an HTML list; "" without texts."""
    items = ""
    for text in texts:
        items += f"<li>{html.escape(text)}</li>"
    return f"<ul>{items}</ul>" if items else ""


def settings_table(settings: Mapping[str, Any]) -> str:
    """Return an HTML table of settings."""
    rows = []
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        shortened = textwrap.shorten(text, MAX_TEXT, placeholder=" ...")
        rows.append((str(name), shortened))
    return table((), rows)


def fold(title: str, content: str) -> str:
    """Return HTML that is shown on a click; "" without content."""
    if not content:
        return ""
    heading = html.escape(title)
    return f"<details><summary>{heading}</summary>{content}</details>"


def _row(texts: Sequence[str], tag: str) -> str:
    """Return one row of a table."""
    cells = ""
    for text in texts:
        content = html.escape(text)
        cells += f'<{tag} style="{_CELL}">{content}</{tag}>'
    return f"<tr>{cells}</tr>"
