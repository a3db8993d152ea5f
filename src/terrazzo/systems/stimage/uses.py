"""Lines on what ST as images can do with a slice, for ``terrazzo info``."""

from __future__ import annotations

from terrazzo.errors import TerrazzoError
from terrazzo.models.uses import LACKS, READY, counts_problem
from terrazzo.slices import Slice
from terrazzo.slices.grids import grid_of

__all__ = ["uses"]


def uses(tissue: Slice, spot_um: float | None = None) -> dict[str, str]:
    """Return one line; see :func:`terrazzo.models.uses.uses`."""
    problem = counts_problem(tissue)
    return {"ST as images": f"{LACKS}{problem}" if problem else _grid_line(tissue)}


def _grid_line(tissue: Slice) -> str:
    try:
        grid = grid_of(tissue)
    except TerrazzoError:
        side = max(1, round(tissue.spacing))
        unit = "um" if tissue.unit == "um" else "units of the coordinates"
        return f"{READY}a vector for each cell, in bins of e.g. {side} {unit}: --bin-um {side}"
    rows, columns = grid.shape
    return f"{READY}a vector for each cell, on its {grid.layout} grid of {rows} x {columns} sites"
