"""A hidden square of the tissue: what was measured there, what was shown, and what each system predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from terrazzo.errors import InputError
from terrazzo.plot.figures import legend_width, scale_of
from terrazzo.plot.tissue import Place, draw, inches_of, touching_distance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["reconstruction"]

TRUE = "true"
_SMALLER = 0.55  # a panel, of a figure with one panel


def reconstruction(
    result: Any,
    *,
    gene: str | None = None,
    size: int | None = None,
    systems: Sequence[str] | None = None,
) -> Figure:
    """Draw one gene in and around the first hidden square of a size: measured, as it was shown, and as predicted.

    Parameters
    ----------
    result
        Of :func:`terrazzo.tasks.reconstruct`, or its ``predictions``.
    gene
        One of those in it; None: the one that varies most.
    size
        Side of the square; None: the largest.
    systems
        Whose answers, in this order; None: all of them.

    Returns
    -------
    The figure, all panels on one scale; see :func:`terrazzo.plot.save`.

    Raises
    ------
    InputError
        No such gene, size or system; not a result of that task.
    """
    import matplotlib.pyplot as plt

    table = _table(result)
    sizes = [int(one) for one in dict.fromkeys(table["size"])]
    side = _pick(size, sizes, max(sizes, default=None), "size")
    of_size = table[table["size"] == side].dropna(axis=1, how="all")
    genes = _genes(of_size)
    gene_name = _pick(gene, genes, genes[0] if genes else None, "gene")
    panels = _panels(of_size, gene_name, systems)
    place = _place(of_size)
    width, height = inches_of(place)
    panel_width = _SMALLER * width + 0.2
    panel_height = _SMALLER * height
    n_panels = len(panels)
    beside = legend_width((), panel_height)
    figure, axes = plt.subplots(
        1,
        n_panels,
        squeeze=False,
        layout="constrained",
        figsize=(n_panels * panel_width + beside, panel_height + 0.5),
    )
    measured = panels["measured"].dropna()
    norm = scale_of(measured.to_numpy(dtype=float))
    last = list(panels)[-1]
    for ax, (title, values) in zip(axes[0], panels.items(), strict=True):
        draw(ax, place, values, {}, None, legend=title == last, norm=norm)
        ax.set_title(title, fontsize="medium")
    figure.suptitle(
        f"{gene_name}, log1p of counts per 10,000; {side} x {side} sites hidden",
        fontsize="medium",
    )
    return figure


def _table(result: Any) -> pd.DataFrame:
    """Return the predictions of a result of reconstruction."""
    table = getattr(result, "predictions", result)
    is_table = isinstance(table, pd.DataFrame)
    if not is_table or not {"size", "x", "y", "hidden"} <= set(table):
        raise InputError(
            "reconstruction draws what terrazzo.tasks.reconstruct returned, or its predictions."
        )
    return table.rename(columns=str)


def _genes(table: pd.DataFrame) -> list[str]:
    """Return the genes whose true values a table holds."""
    prefix = f"{TRUE}:"
    return [name.removeprefix(prefix) for name in table if name.startswith(prefix)]


def _panels(table: pd.DataFrame, gene: str, systems: Sequence[str] | None) -> dict[str, pd.Series]:
    """Return the values of each panel by its title."""
    true = table[f"{TRUE}:{gene}"]
    hidden = table["hidden"].to_numpy(dtype=bool)
    predicted = _predicted(table, gene)
    panels = {"measured": true, "shown": true.mask(hidden)}
    known = list(predicted)
    for name in known if systems is None else systems:
        system = _pick(name, known, None, "system")
        panels[system] = predicted[system].where(hidden, true)
    return panels


def _predicted(table: pd.DataFrame, gene: str) -> dict[str, pd.Series]:
    """Return the predictions of a gene by system."""
    ending = f":{gene}"
    columns = {}
    for name in table:
        system = name.removesuffix(ending)
        if name.endswith(ending) and system != TRUE:
            columns[system] = table[name]
    return columns


def _place(table: pd.DataFrame) -> Place:
    """Return where the cells of a table are drawn."""
    coords = table[["x", "y"]].to_numpy(dtype=float)
    touching = touching_distance(coords)
    low = coords.min(axis=0) - touching
    high = coords.max(axis=0) + touching
    return Place(coords, touching, low, high)


def _pick(value: Any, known: Sequence[Any], default: Any, what: str) -> Any:
    """Return a value that is known; the default where it is None."""
    if not known:
        raise InputError(f"the predictions hold no {what}.")
    if value is None:
        return default
    if value not in known:
        names = ", ".join(map(str, known))
        raise InputError(f"the predictions hold no {what} {value!r}; they hold: {names}.")
    return value
