"""A hidden square of the tissue: what was measured there, what was shown, and what each system said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from terrazzo.errors import InputError
from terrazzo.plot.figures import legend_width, scale_of
from terrazzo.plot.tissue import Place, draw, inches_of, touching_distance

if TYPE_CHECKING:
    from matplotlib.figure import Figure


TRUE = "true"


_PANEL = 0.55  # of a figure with one panel


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
        One of those kept in it; None: the one that varies most.
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

    table: pd.DataFrame = getattr(result, "predictions", result)
    if not isinstance(table, pd.DataFrame) or not {"size", "x", "y", "hidden"} <= set(table):
        raise InputError(
            "reconstruction draws what terrazzo.tasks.reconstruct returned, or its predictions."
        )
    side = _one(size, [int(one) for one in dict.fromkeys(table["size"])], "size")
    here = table[table["size"] == side].dropna(axis=1, how="all")
    name = _one(
        gene, [c.removeprefix(f"{TRUE}:") for c in here if str(c).startswith(f"{TRUE}:")], "gene"
    )
    columns = {str(c)[: -len(name) - 1]: here[c] for c in here if str(c).endswith(f":{name}")}
    true, hidden = columns.pop(TRUE), here["hidden"].to_numpy(dtype=bool)
    chosen = [
        _one(one, list(columns), "system") for one in (columns if systems is None else systems)
    ]
    panels = {"measured": true, "shown": true.mask(hidden)}
    panels |= {one: columns[one].where(hidden, true) for one in chosen}
    coords = here[["x", "y"]].to_numpy(dtype=float)
    touching = touching_distance(coords)
    place = Place(coords, touching, coords.min(axis=0) - touching, coords.max(axis=0) + touching)
    width, height = (_PANEL * inch for inch in inches_of(place))
    inches = (len(panels) * (width + 0.2) + legend_width((), height), height + 0.5)
    figure, axes = plt.subplots(1, len(panels), squeeze=False, layout="constrained", figsize=inches)
    norm = scale_of(true.dropna().to_numpy(dtype=float))
    for ax, (title, values) in zip(axes[0], panels.items(), strict=True):
        draw(ax, place, values, {}, None, legend=title == list(panels)[-1], norm=norm)
        ax.set_title(title, fontsize="medium")
    figure.suptitle(
        f"{name}, log1p of counts per 10,000; {side} x {side} sites hidden", fontsize="medium"
    )
    return figure


def _one(given: Any, known: Sequence[Any], what: str) -> Any:
    """Return what was asked for; where nothing was, the largest size, the first of anything else."""
    if not known:
        raise InputError(f"the predictions hold no {what}.")
    if given is None:
        return max(known) if what == "size" else known[0]
    if given not in known:
        raise InputError(
            f"the predictions hold no {what} {given!r}; they hold: {', '.join(map(str, known))}."
        )
    return given
