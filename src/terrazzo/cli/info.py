"""What ``terrazzo info`` says of a slice: what it was recognized as, facts with their units, what it is good for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from terrazzo.cli.options import out_console, say, working

if TYPE_CHECKING:
    from anndata import AnnData

    from terrazzo import Slice


SHOWN = 8  # names of one kind


def say_fact(name: str, value: object) -> None:
    """Print a fact and its name."""
    say(f"  {name.replace('_', ' '):<22}{value}")


def say_slice(path: Path, spot_um: float | None, options: dict[str, Any]) -> Slice:
    """Read a slice and print all about it; ``options`` as of :func:`terrazzo.read`."""
    from terrazzo.errors import InputError
    from terrazzo.models.uses import uses
    from terrazzo.slices import open_slice, split_choices

    choices, rest = split_choices(options)
    with working(f"read {path.name}"):
        opened = open_slice(path, choices)
        try:
            tissue = opened.to_slice(allow_normalized=True, **rest)
        except InputError as error:
            raise type(error)(f"{path}: {error}") from error
    out_console().print(f"[bold]{escape(str(path))}[/bold]")
    for name, value in tissue.describe().items():
        say_fact(name, _in_words(name, value, tissue.unit))
    for name, value in _tables(opened.adata).items():
        say_fact(name, value)
    for name, line in uses(tissue, spot_um).items():
        say_fact(name, line)
    return tissue


def _in_words(name: str, value: Any, unit: str) -> str:
    """Give a fact its unit, and no more digits than say something."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no: normalized values"
    of = f" {unit}" if name in ("extent", "spacing") and unit in ("um", "pixel") else ""
    if isinstance(value, list):
        return " x ".join(_number(one) for one in value) + (" pixels" if name == "image" else of)
    return (_number(value) if isinstance(value, int | float) else str(value)) + of


def _number(value: float) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.4g}"
        if abs(value) < 1000
        else f"{value:,.0f}"
    )


def _tables(adata: AnnData) -> dict[str, str]:
    """Name what tasks may be asked of: embeddings (``--use-rep``) and labels (``--label``)."""
    labels = [str(name) for name in adata.obs if adata.obs[name].dtype.kind not in "fiu"]
    reps = [str(name) for name in adata.obsm if str(name).startswith("X_")]
    return {"embeddings": _some(reps), "labels": _some(labels)}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more
