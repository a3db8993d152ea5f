"""The page: slices, results and runs through a template that escapes everything; one file without an address."""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from terrazzo._version import __version__
from terrazzo.plot.palettes import COLORS, MAP, MISSING, MISSING_COLOR, color_map, pattern_of
from terrazzo.plot.tissue import panels
from terrazzo.report import curves
from terrazzo.report.packing import Blocks, address
from terrazzo.report.regions import Table
from terrazzo.report.results import Result
from terrazzo.report.slices import Sheet

__all__ = ["Record", "data", "patterns", "records", "render", "still"]

SCRIPTS = (
    "data.js",
    "raster.js",
    "plane.js",
    "legend.js",
    "viewer.js",
    "overview.js",
    "start.js",
)
STYLE = "report.css"
N_STILLS = 3  # pictures of a slice for paper, and where no script runs
N_SHADES = 256
FACTS = (
    "model",
    "task",
    "trained",
    "checkpoint_sha256",
    "fitted_on",
    "use_rep",
    "terrazzo_version",
    "date",
)
SHOWN_ELSEWHERE = ("key", "coverage")


@dataclass(frozen=True)
class Record:
    """Provenance of one embedding or column: the facts that identify it, and all the rest as JSON."""

    key: str
    facts: list[tuple[str, str]]
    rest: str


def render(
    sheets: Sequence[Sheet],
    tables: Sequence[Table],
    runs: Sequence[curves.Run],
    results: Sequence[Result],
    blocks: Blocks,
    *,
    title: str,
    about: str,
    notes: Sequence[str],
) -> str:
    """Return the page.

    Parameters
    ----------
    sheets, tables, runs, results
        What it shows.
    blocks
        The binary data of the sheets.
    title, about
        Headline, and a paragraph below it ("" for none).
    notes
        What was left out.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("terrazzo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = "\n".join(_template(name) for name in SCRIPTS)
    script = '(() => {\n"use strict";\n' + scripts + "})();\n"
    style = _template(STYLE)
    stills = [still(sheet) for sheet in sheets]
    page = templates.get_template("report.html").render(
        title=title,
        about=about,
        notes=list(notes),
        sheets=list(zip(sheets, stills, strict=True)),
        tables=tables,
        runs=runs,
        results=results,
        blocks=blocks.encoded,
        data=data(sheets, tables),
        curves=curves,
        patterns=_used_patterns(tables),
        records=records,
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
        version=__version__,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return f"{page.rstrip()}\n"


def data(sheets: Sequence[Sheet], tables: Sequence[Table]) -> dict[str, Any]:
    """Return what the script reads: the slices, what was found, and the colors that all of them share."""
    shades = color_map(None)(range(N_SHADES))[:, :3]
    colors = []
    for red, green, blue in (shades * 255).round().astype(int).tolist():
        colors.append(f"#{red:02x}{green:02x}{blue:02x}")
    return {
        "map": MAP,
        "shades": colors,
        "patterns": patterns(),
        "missing": MISSING,
        "missingColor": MISSING_COLOR,
        "slices": [sheet.data for sheet in sheets],
        "found": [table.data for table in tables],
    }


def patterns() -> dict[str, int]:
    """Return the pattern of every color that has one: shades are told apart by it, not by their tone alone."""
    return {color: pattern_of(color) for color in COLORS if pattern_of(color)}


def records(sheet: Sheet) -> list[Record]:
    """Return the provenance of a slice's embeddings and columns for people."""
    out = []
    for record in sheet.records:
        facts = []
        for name in FACTS:
            if name in record:
                facts.append((name.replace("_", " "), str(record[name])))
        rest = {}
        for name, value in record.items():
            if name not in FACTS and name not in SHOWN_ELSEWHERE:
                rest[name] = value
        text = json.dumps(rest, indent=1, default=str, ensure_ascii=False)
        out.append(Record(record["key"], facts, text))
    return out


def _used_patterns(tables: Sequence[Table]) -> dict[str, int]:
    """Return the patterns of the colors that the tables of regions have."""
    used: set[str] = set()
    for table in tables:
        used.update(str(region["color"]) for region in table.regions)
        for known in table.known:
            used.update(str(label["color"]) for label in known["labels"])
    return {color: pattern for color, pattern in patterns().items() if color in used}


def still(sheet: Sheet) -> str:
    """Draw a slice for paper, and for browsers that run no script: its first columns; a data address of a PNG."""
    import matplotlib.pyplot as plt

    names = list(sheet.values)[:N_STILLS]
    if not names:
        return ""
    values = [sheet.values[name] for name in names]
    colors = [sheet.colors[name] for name in names]
    figure = panels(sheet.place, values, colors, names)
    stream = io.BytesIO()
    try:
        figure.savefig(stream, format="png", dpi=100, bbox_inches="tight")
    finally:
        plt.close(figure)
    return address(stream.getvalue(), "png")


def _template(name: str) -> str:
    """Read a template, script or style of this package, which is trusted."""
    file = resources.files("terrazzo.report") / "templates" / name
    return file.read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the name of a script or style in the page's security policy: no other one is run."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
