"""The page: what was found, through a template that escapes everything, as one file without an address in it."""

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
from terrazzo.plot.palettes import MAP, MISSING, MISSING_COLOR, color_map
from terrazzo.plot.tissue import panels
from terrazzo.report import curves
from terrazzo.report.packing import Blocks, address
from terrazzo.report.results import Result
from terrazzo.report.slices import Sheet

SCRIPTS = ("data.js", "raster.js", "plane.js", "legend.js", "viewer.js", "start.js")
STYLE = "report.css"
_STILLS = 3  # pictures of a slice for paper, and where no script runs
_SHADES = 256
_FIRST = (
    "model",
    "task",
    "trained",
    "checkpoint_sha256",
    "fitted_on",
    "use_rep",
    "terrazzo_version",
    "date",
)
_APART = ("key", "coverage")  # has a table of its own


@dataclass(frozen=True)
class Record:
    """Where one embedding or column comes from: the facts that identify it, and all the rest as JSON."""

    key: str
    facts: list[tuple[str, str]]
    rest: str


def render(
    sheets: Sequence[Sheet],
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
    sheets, runs, results
        What it shows.
    blocks
        The binary data of the sheets.
    title, about
        Headline, and a paragraph below it ("" for none).
    notes
        What was left out of all of it.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    rooms = Environment(
        loader=PackageLoader("terrazzo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = (
        '(() => {{\n"use strict";\n{}}})();\n'.format("\n".join(map(_own, SCRIPTS))),
        _own(STYLE),
    )
    stills = [still(one) for one in sheets]
    page = rooms.get_template("report.html").render(
        title=title,
        about=about,
        notes=list(notes),
        sheets=list(zip(sheets, stills, strict=True)),
        runs=runs,
        results=results,
        blocks=blocks.held,
        data=data(sheets),
        curves=curves,
        records=records,
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
        version=__version__,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return f"{page.rstrip()}\n"


def data(sheets: Sequence[Sheet]) -> dict[str, Any]:
    """Return what the script reads: the slices, and the colors that all of them share."""
    shades = (color_map(None)(range(_SHADES))[:, :3] * 255).round().astype(int)
    colors = ["#" + "".join(f"{part:02x}" for part in shade) for shade in shades.tolist()]
    shared = {"map": MAP, "shades": colors, "missing": MISSING, "missingColor": MISSING_COLOR}
    return {**shared, "slices": [one.data for one in sheets]}


def records(sheet: Sheet) -> list[Record]:
    """Return the provenance of a slice's embeddings and columns for people."""
    out = []
    for record in sheet.records:
        facts = [(name.replace("_", " "), str(record[name])) for name in _FIRST if name in record]
        rest = {name: value for name, value in record.items() if name not in (*_FIRST, *_APART)}
        out.append(
            Record(
                record["key"], facts, json.dumps(rest, indent=1, default=str, ensure_ascii=False)
            )
        )
    return out


def still(sheet: Sheet) -> str:
    """Draw a slice for paper, and for browsers that run no script: its first columns; a data address of a PNG."""
    import matplotlib.pyplot as plt

    names = list(sheet.values)[:_STILLS]
    if not names:
        return ""
    figure = panels(
        sheet.place, [sheet.values[n] for n in names], [sheet.colors[n] for n in names], names
    )
    stream = io.BytesIO()
    try:
        figure.savefig(stream, format="png", dpi=100, bbox_inches="tight")
    finally:
        plt.close(figure)
    return address(stream.getvalue(), "png")


def _own(name: str) -> str:
    """Read a file of this room, which is trusted."""
    return (resources.files("terrazzo.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return what the page's security policy calls this script or style: no other one is run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
