"""A slice as an image: each cell's site on a dense grid of rows and columns (ST as images, section 3.2, step 1).

Sites without a cell stay empty: they are never imputed. A cell knows its site, and a site its cells.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from terrazzo.arrays import Floats, Ints
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.slices import Slice

Layout = Literal["auto", "hex", "square", "rank", "bin"]


MOST_SITES = (
    2**28
)  # to count what windows hold then takes 3 GB; a million cells in bins of their spacing have 2**21


HEX_ROW = np.sqrt(3) / 2  # distance between rows of a hexagonal lattice, in pitches


ORDERLY, SPREAD = (
    0.8,
    0.3,
)  # share of neighbors at the lattice's distance, and what counts as that distance


FITS, MOST = (
    0.25,
    0.9,
)  # distance from their lattice points, in pitches, within which this share of places must lie


FIT_ROUNDS = 12


@dataclass(frozen=True)
class Grid:
    """Where the cells of a slice lie on a dense grid.

    Attributes
    ----------
    shape
        Rows and columns.
    site
        int64 ``(n_cells,)``: ``row * columns + column`` of each cell.
    layout
        ``"hex"``, ``"square"``, ``"rank"`` or ``"bin"``.
    """

    shape: tuple[int, int]
    site: Ints
    layout: str

    @cached_property
    def layer(self) -> Ints:
        """Number of each cell among those of its site, by row, from 0: (site, layer) is one cell and no other."""
        return self.ranked()

    def ranked(self, *keys: NDArray[np.generic]) -> Ints:
        """Return the number of each cell in its site, from 0, by some keys, the first of them first, then by row."""
        order = np.lexsort((*reversed(keys), self.site))
        starts = np.flatnonzero(np.append(True, np.diff(self.site[order]) > 0))
        out = np.empty_like(self.site)
        out[order] = np.arange(len(order)) - np.repeat(
            starts, np.diff(np.append(starts, len(order)))
        )
        return out

    @cached_property
    def occupied(self) -> Ints:
        """Sites with a cell, ascending."""
        return np.unique(self.site)

    @cached_property
    def _by_site(self) -> tuple[Ints, Ints]:
        """Cells in the order of their sites, and where each occupied site's begin."""
        order = np.argsort(self.site, kind="stable").astype(np.int64)
        return order, np.append(
            np.searchsorted(self.site[order], self.occupied), len(order)
        ).astype(np.int64)

    def cells(self, sites: Ints) -> tuple[Ints, Ints]:
        """Return the cells of some sites and, for each, which of ``sites`` it lies on; -1 is a site beyond the edge."""
        order, starts = self._by_site
        at = np.minimum(np.searchsorted(self.occupied, sites), len(self.occupied) - 1)
        here = np.flatnonzero(self.occupied[at] == sites)
        first, counts = starts[at[here]], starts[at[here] + 1] - starts[at[here]]
        ends = np.cumsum(counts)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        return order[np.repeat(first, counts) + within], np.repeat(here, counts).astype(np.int64)

    def places(self, sites: Ints) -> Floats:
        """Return where sites lie, ``(n, 2)`` x and y in pitches; on a hexagonal grid every other row is shifted."""
        row, column = np.divmod(sites, self.shape[1])
        if self.layout != "hex":
            return np.stack([column, row], axis=1).astype(np.float64)
        return np.stack([column + 0.5 * (row % 2), row * HEX_ROW], axis=1)

    def window_places(self, sites: Ints) -> NDArray[np.float32]:
        """Return where the sites of a window lie, ``(n, 2)``, from its own corner; 0 for -1, beyond the edge."""
        inside, there = sites >= 0, self.places(sites)
        if (
            inside.any()
        ):  # sines count from the corner: a padded window must not seem to lie elsewhere
            there = there - there[inside].min(axis=0)
        return np.where(inside[:, None], there, 0.0).astype(np.float32)


def grid_of(tissue: Slice, *, layout: Layout = "auto", bin_um: float = 0.0) -> Grid:
    """Lay a slice out; where micrometers are unknown, a bin's side is in the unit of the coordinates, with a warning.

    Parameters
    ----------
    tissue
        The slice.
    layout, bin_um
        See :func:`lay_out`; 0: no bins.

    Raises
    ------
    InputError, ConfigError
        As :func:`lay_out`.
    """
    if (
        bin_um > 0
        and tissue.unit != "um"
        and (layout == "bin" or (layout == "auto" and tissue.lattice_kind is None))
    ):
        warnings.warn(
            f"{tissue.name}: micrometers are not known, so the bin's side, {bin_um:g}, is in units of the coordinates; "
            "pass technology= (--technology) or microns_per_unit= (--microns-per-unit), or write uns['technology'], if "
            "you know one.",
            TerrazzoWarning,
            stacklevel=3,
        )
    return lay_out(
        tissue.coords,
        lattice=tissue.lattice,
        lattice_kind=tissue.lattice_kind,
        layout=layout,
        bin_size=bin_um,
        name=tissue.name,
    )


def lay_out(
    coords: Floats,
    *,
    lattice: Ints | None = None,
    lattice_kind: str | None = None,
    layout: Layout = "auto",
    bin_size: float = 0.0,
    name: str = "the slice",
) -> Grid:
    """Lay a slice's cells out on a grid.

    Parameters
    ----------
    coords
        ``(n_cells, 2)`` x and y.
    lattice, lattice_kind
        (row, column) on the array and its kind (``"visium"``, ``"st"``, None), where the platform has them.
    layout
        ``"hex"``: Visium's staggered array, columns halved, so that the grid is dense. ``"square"``: arrays whose rows
        and columns are the grid's. ``"rank"``: rank of each distinct x and y (eq 5), which closes gaps. ``"bin"``:
        squares of side ``bin_size``. ``"auto"``: a Visium or ST array's own grid; else bins where ``bin_size`` is
        given; else the lattice that the coordinates lie on, turned by whatever angle.
    bin_size
        In the unit of ``coords``; not looked at with ``"hex"``, ``"square"`` and ``"rank"``.
    name
        Of the slice, for messages.

    Raises
    ------
    InputError
        No lattice is there and no bin size is given; the grid would be too large.
    ConfigError
        Bins without a size.
    """
    if layout == "bin" and not bin_size > 0:
        raise ConfigError(
            "layout 'bin' needs the side of a bin in micrometers, e.g. bin_um=20 (--bin-um 20)."
        )
    if layout == "bin" or (layout == "auto" and bin_size > 0 and lattice_kind is None):
        columns, rows = np.floor(np.minimum((coords - coords.min(axis=0)) / bin_size, MOST_SITES)).T
        kind = "bin"
    elif layout == "rank":
        x, y = (coords if lattice is None else lattice[:, ::-1]).T
        rows, columns, kind = (
            np.unique(y, return_inverse=True)[1],
            np.unique(x, return_inverse=True)[1],
            "rank",
        )
    else:
        rows, columns, kind = _on_lattice(coords, lattice, lattice_kind, layout, name)
    return _grid(np.asarray(rows, np.int64), np.asarray(columns, np.int64), kind, name)


def _on_lattice(
    coords: Floats, lattice: Ints | None, lattice_kind: str | None, layout: Layout, name: str
) -> tuple[Ints, Ints, str]:
    """Return row, column and kind from the array's own numbers, or from the lattice that the coordinates lie on."""
    if lattice is not None:
        staggered = len(np.unique(lattice.sum(axis=1) % 2)) == 1 and len(lattice) > 1
        kind = (
            layout
            if layout != "auto"
            else ("hex" if staggered and lattice_kind != "st" else "square")
        )
        rows, columns = lattice.T
        if (
            kind != "hex"
        ):  # every second site of a dense ST array is left out: a square lattice that stands on its tip
            return (
                (*((rows + columns) // 2, (columns - rows) // 2), "square")
                if staggered
                else (rows, columns, "square")
            )
        if not staggered and len(lattice) > 1:
            raise InputError(
                f"{name}: layout 'hex' is for staggered arrays, where every second position is left out (Visium); here "
                "array_row + array_col is even on some spots and odd on others. Take layout 'square' or 'auto'."
            )
        first = rows.min()
        first -= columns[rows == first].min() % 2  # even rows are the ones that are not shifted
        return rows - first, columns // 2, "hex"
    found = _recovered(coords, ("hex", "square") if layout == "auto" else (layout,))
    if found is None:
        asked = "a lattice" if layout == "auto" else f"a {layout} lattice"
        raise InputError(
            f"{name}: the coordinates do not lie on {asked}, and obs has no array_row and array_col. For single-cell "
            "platforms give the side of a bin in micrometers, bin_um=20 (--bin-um 20), in a recipe "
            "model.windows.bin_um: 20; about the distance between neighboring cells puts one or two into a bin."
        )
    return found


def _grid(rows: Ints, columns: Ints, kind: str, name: str) -> Grid:
    low = rows.min()
    low -= low % 2 if kind == "hex" else 0  # whether a row is shifted must stay as it is
    rows, columns = rows - low, columns - columns.min()
    shape = int(rows.max()) + 1, int(columns.max()) + 1
    if shape[0] * shape[1] > MOST_SITES:
        mend = "take layout 'bin' with a size" if kind == "rank" else "take larger bins"
        raise InputError(
            f"{name}: a grid of {shape[0]:,} x {shape[1]:,} sites for {len(rows):,} cells is too large; {mend} "
            "(bin_um, --bin-um), or check the coordinates for outliers."
        )
    grid = Grid(shape, rows * shape[1] + columns, kind)
    if kind != "bin" and len(grid.occupied) < len(rows):
        warnings.warn(
            f"{name}: {len(rows) - len(grid.occupied):,} cells share their lattice position with another; their counts "
            "are summed there, and they get the same vector.",
            TerrazzoWarning,
            stacklevel=4,
        )
    return grid


def _recovered(coords: Floats, kinds: tuple[str, ...]) -> tuple[Ints, Ints, str] | None:
    """Recover row and column of cells that lie on a lattice turned by any angle; None where they lie on none."""
    places, back = np.unique(coords, axis=0, return_inverse=True)
    if len(places) < 4:
        return None
    tree = cKDTree(places)
    for kind in kinds:
        neighbors = 6 if kind == "hex" else 4
        distance, index = tree.query(places, k=min(neighbors + 1, len(places)))
        pitch = float(np.median(distance[:, 1]))
        near = np.abs(distance[:, 1:] - pitch) < SPREAD * pitch
        step = (places[index[:, 1:]] - places[:, None])[near]
        angle = np.arctan2(step[:, 1], step[:, 0])
        order = np.exp(1j * neighbors * angle).mean() if len(angle) else 0.0
        if near[:, 0].mean() < ORDERLY or abs(order) < ORDERLY:
            continue
        turn = float(np.angle(order)) / neighbors  # of the direction that lies nearest to x
        basis = _basis(kind, turn, pitch)
        found = _fitted(places, basis)
        if found is not None:
            rows, columns = found[:, 1], found[:, 0]
            if kind == "hex":
                columns = columns + (rows - rows % 2) // 2  # from slanted axes to staggered rows
            return rows[back], columns[back], kind
    return None


def _basis(kind: str, turn: float, pitch: float) -> Floats:
    """Return the steps to the next column and to the next row, ``(2, 2)``; of a hexagonal lattice 60 degrees apart."""
    second = turn + (np.pi / 3 if kind == "hex" else np.pi / 2)
    return pitch * np.array([[np.cos(turn), np.sin(turn)], [np.cos(second), np.sin(second)]])


def _fitted(places: Floats, basis: Floats) -> Ints | None:
    """Return whole-number coordinates in a basis, which is fitted from the middle of the slice outwards."""
    center = places[np.argmin(np.linalg.norm(places - np.median(places, axis=0), axis=1))]
    offset = places - center
    radius = np.linalg.norm(offset, axis=1)
    reach = np.geomspace(
        4 * np.linalg.norm(basis[0]), max(radius.max(), 8 * np.linalg.norm(basis[0])), FIT_ROUNDS
    )
    start = np.zeros(2)
    for most in (
        reach
    ):  # an error of the pitch adds up with distance: it is taken out before it reaches half a step
        inside = radius <= most
        whole = np.rint((offset[inside] - start) @ np.linalg.inv(basis))
        design = np.hstack([whole, np.ones((len(whole), 1))])
        if np.linalg.matrix_rank(design) < 3:
            continue
        solved = np.linalg.lstsq(design, offset[inside], rcond=None)[0]
        basis, start = solved[:2], solved[2]
    exact = (offset - start) @ np.linalg.inv(basis)
    whole = np.rint(exact)
    return (
        whole.astype(np.int64)
        if np.quantile(np.abs(exact - whole).max(axis=1), MOST) < FITS
        else None
    )


def observed(grid: Grid, window: int) -> NDArray[np.int32]:
    """Return how many occupied sites every window holds, by its top-left corner, ``(rows - h + 1, columns - w + 1)``.

    A grid smaller than a window has one corner in that direction: the window is padded with empty sites.
    """
    total = np.zeros(
        (grid.shape[0] + 1, grid.shape[1] + 1), dtype=np.int32
    )  # of a huge grid, hardly more than itself
    rows, columns = np.divmod(grid.occupied, grid.shape[1])
    total[rows + 1, columns + 1] = 1
    for axis in (0, 1):
        np.cumsum(total, axis=axis, out=total)
    h, w = min(window, grid.shape[0]), min(window, grid.shape[1])
    out = total[h:, w:] - total[:-h, w:]
    out -= total[h:, :-w]
    out += total[:-h, :-w]
    return out
