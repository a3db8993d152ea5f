"""Verb ``models``: the weights that come with this version."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from terrazzo.cli.options import FIRST, say

__all__ = ["register"]

NONE = (
    "No weights come with this version of terrazzo. Train your own (terrazzo pretrain), convert published ones "
    "(terrazzo convert), or use what needs none: terrazzo regions, terrazzo embed --model t4."
)


def register(app: App) -> None:
    """Add the verb to the command line."""
    app.command(models, group=FIRST)


def models(
    *,
    as_json: Annotated[
        bool, Parameter(name="--json", negative=(), help="Print a JSON list, for programs.")
    ] = False,
) -> None:
    """List the weights that come with terrazzo: what they are for, how good, how large.

    Example: terrazzo models
    Example: terrazzo models --json
    """
    import terrazzo as tz

    table = tz.list_models()
    if as_json:
        say(table.to_json(orient="records", indent=2))
        return
    if table.empty:
        say(NONE)
        return
    for row in table.to_dict("records"):
        for line in _lines(row):
            say(line)
    say(f"Use: terrazzo embed SLICE --model {table['name'].iloc[0]} --out DIR")


def _lines(row: dict[str, Any]) -> list[str]:
    """Return the lines of one model."""
    size = f"{row['size_mb']:g} MB, {row['parameters']:,} parameters"
    return [
        f"{row['name']}  {row['system']}, {size}, {row['genes']:,} genes ({row['organism']})",
        f"  what for: {row['purpose']}",
        f"  how good: {row['quality']}",
        f"  trained on: {row['data']} (licenses: {row['licenses']})",
    ]
