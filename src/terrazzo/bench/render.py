"""A table on paper: Markdown, HTML, one figure and JSON."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from terrazzo import plot
from terrazzo.bench import printed
from terrazzo.bench.figure import PUBLISHED_COLOR, figure, has_figure
from terrazzo.bench.protocols import Protocol
from terrazzo.bench.run import ABSENCES, COLUMNS, Table
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import ConfigError, InputError, OutputError
from terrazzo.files import hash_json, write_text
from terrazzo.marks import KEY, Mark, guard
from terrazzo.parsing import parse_json

__all__ = ["check_free", "from_record", "to_html", "to_markdown", "to_record", "write"]

PUBLISHED = "Published"
_NAME = r"\w[\w.+-]{0,150}"
STYLE = (
    "body{font-family:system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:.9rem}th,td{padding:.3rem .6rem;text-align:left;"
    "border-bottom:1px solid #ddd}th{border-bottom:2px solid #888}td+td{font-variant-numeric:tabular-nums}"
    f".published{{background:{PUBLISHED_COLOR}}}img{{max-width:100%}}"
)


def write(
    table: Table,
    out: str | Path,
    *,
    command: str,
    mark: Mark | None = None,
    overwrite: bool = False,
) -> Path:
    """Write ``<name>.md``, ``.html``, ``.png`` and ``.json`` (the scores too) into a folder.

    Parameters
    ----------
    table
        From :func:`terrazzo.bench.run.run`.
    out
        Folder.
    command
        That made it; printed in all of them.
    mark
        What it was made from; None: the table's settings.
    overwrite
        Replace files that are not of the same table.

    Returns
    -------
    The Markdown file.

    Raises
    ------
    OutputError
        The folder cannot be written, or has other files of these names.
    """
    folder = Path(out)
    name = table.protocol.name
    mark = mark or _mark(table.protocol)
    check_free(name, folder, mark, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if has_figure(table):
            plot.save(figure(table), folder / f"{name}.png", mark=mark, overwrite=overwrite)
        record = json.dumps({KEY: mark.text(), **to_record(table, command)}, indent=1)
        write_text(folder / f"{name}.json", record + "\n")
        write_text(folder / f"{name}.html", to_html(table, command))
        target = folder / f"{name}.md"
        write_text(target, to_markdown(table, command))
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder} could not be written ({error.strerror or error}).") from error
    return target


def _mark(protocol: Protocol) -> Mark:
    """Return the mark of a table that a script made."""
    digest = hash_json(to_dict(protocol))[:16]
    return Mark("bench", digest, digest, protocol.name)


def check_free(name: str, folder: Path, mark: Mark, *, overwrite: bool = False) -> None:
    """Check that the files of a table can be written to a folder, before any work.

    The record has the mark; beside it the page and the Markdown file are results, too.

    Raises
    ------
    ConfigError
        A name that is not one of a file.
    OutputError
        There are other files of these names.
    """
    if re.fullmatch(_NAME, name) is None:
        raise ConfigError(
            f"the name of the table, {name[:60]!r}, names its files: use letters, digits and . _ + - only."
        )
    record = folder / f"{name}.json"
    guard(record, mark, overwrite=overwrite)
    guard(folder / f"{name}.png", mark, overwrite=overwrite)
    if not record.exists():
        for ending in (".md", ".html"):
            guard(folder / f"{name}{ending}", mark, overwrite=overwrite)


def to_markdown(table: Table, command: str) -> str:
    """Return the table as Markdown."""
    protocol = table.protocol
    lines = [f"# {protocol.title}", ""]
    lines += [f"- {fact}" for fact in printed.facts(table, command)]
    lines.append("")
    if protocol.note:
        lines += [protocol.note.strip(), ""]
    for section in printed.sections(table):
        lines += [f"## {section.heading}", ""]
        lines += _markdown_rows(section.frame)
        lines.append("")
    published = printed.published(table)
    if not published.empty:
        lines += [f"## {PUBLISHED}", ""]
        if protocol.published.data:
            lines += [protocol.published.data.strip(), ""]
        lines += _markdown_rows(published)
        lines.append("")
    lines += printed.remarks(table)
    return "\n".join(lines).rstrip() + "\n"


def _markdown_rows(frame: pd.DataFrame) -> list[str]:
    columns = [str(column) for column in frame.columns]
    lines = [_markdown_row(columns), "|" + "---|" * len(columns)]
    for row in frame.itertuples(index=False):
        cells = [str(value).replace("|", "/") for value in row]
        lines.append(_markdown_row(cells))
    return lines


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def to_html(table: Table, command: str) -> str:
    """Return the table as one HTML page, with a link to the figure beside it."""
    protocol = table.protocol
    title = html.escape(protocol.title)
    facts = [_tag("li", fact) for fact in printed.facts(table, command)]
    body = [_tag("h1", protocol.title), "<ul>", *facts, "</ul>", _tag("p", protocol.note)]
    if has_figure(table):
        file = html.escape(f"{protocol.name}.png")
        body.append(f'<img src="{file}" alt="{title}">')
    for section in printed.sections(table):
        body.append(_tag("h2", section.heading))
        body.append(_html_table(section.frame))
    published = printed.published(table)
    if not published.empty:
        body.append(_tag("h2", PUBLISHED))
        body.append(_tag("p", protocol.published.data))
        body.append(f'<div class="published">{_html_table(published)}</div>')
    for line in printed.remarks(table):
        if line:
            body.append(_tag("p", line))
    page = "\n".join(body)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>{page}</body></html>\n"
    )


def _tag(name: str, text: str) -> str:
    return f"<{name}>{html.escape(text)}</{name}>"


def _html_table(frame: pd.DataFrame) -> str:
    return frame.to_html(index=False, border=0, escape=True)


def to_record(table: Table, command: str) -> dict[str, Any]:
    """Return everything, JSON-able."""
    summary = [] if table.scores.empty else _rows(table.summary())
    seconds = {title: round(spent, 1) for title, spent in table.seconds.items()}
    return {
        "table": table.protocol.name,
        "command": command,
        "date": table.date,
        "machine": printed.machine(),
        "terrazzo_version": table.version,
        "protocol": to_dict(table.protocol),
        "summary": summary,
        "scores": _rows(table.scores),
        "by_gene": _rows(table.by_gene),
        "not_available": table.absent.to_dict(orient="records"),
        "seconds": seconds,
        "notes": list(table.notes),
    }


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    text = str(frame.round(5).to_json(orient="records"))
    rows: list[dict[str, Any]] = parse_json(text, "the table", finite=False)
    return rows


def from_record(record: Any, where: str) -> Table:
    """Return the table that :func:`to_record` made a record of.

    Parameters
    ----------
    record
        From JSON.
    where
        Name of the place, for error messages.

    Raises
    ------
    ConfigError, InputError
        A protocol that this version does not know; no such record, or a damaged one.
    """
    try:
        protocol = from_dict(Protocol, record["protocol"], f"{where}: protocol")
        scores = pd.DataFrame(record["scores"], columns=COLUMNS)
        seconds = {str(title): float(spent) for title, spent in record["seconds"].items()}
        return Table(
            protocol,
            scores.astype({"value": float}),
            pd.DataFrame(record["not_available"], columns=ABSENCES),
            seconds,
            tuple(map(str, record["notes"])),
            str(record["date"]),
            str(record["terrazzo_version"]),
        )
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where} is not a table of terrazzo bench ({type(error).__name__}: {error})."
        ) from error
