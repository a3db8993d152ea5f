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

from terrazzo.arrays import Floats, Int32s, Ints, Vectors
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.slices import Slice

__all__ = ["Grid", "Layout", "grid_of", "lay_out", "observed"]

Layout = Literal["auto", "hex", "square", "rank", "bin"]

_MAX_SITES = (
    2**28
)  # counting the cells of windows then takes 3 GB; a million cells in bins of their spacing have 2**21
_HEX_ROW = np.sqrt(3) / 2  # distance between rows of a hexagonal lattice, in pitches
_MIN_ORDERLY = 0.8  # share of neighbors that must be at the lattice's distance
_SPREAD = 0.3  # what counts as that distance, as a share of it
_FIT_DISTANCE = 0.25  # from their lattice points, in pitches: as near must be ...
_FIT_SHARE = 0.9  # ... this share of the positions
_FIT_ROUNDS = 12


@dataclass(frozen=True)
class Grid:
    """Where the cells of a slice are on a dense grid.

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
        sites = self.site[order]
        is_first = np.append(True, np.diff(sites) > 0)
        starts = np.flatnonzero(is_first)
        ends = np.append(starts[1:], len(order))
        counts = ends - starts
        first_of_site = np.repeat(starts, counts)
        numbers = np.empty_like(self.site)
        numbers[order] = np.arange(len(order)) - first_of_site
        return numbers

    @cached_property
    def occupied(self) -> Ints:
        """Sites with a cell, ascending."""
        return np.unique(self.site)

    @cached_property
    def _by_site(self) -> tuple[Ints, Ints]:
        """Cells in the order of their sites, and where those of each occupied site begin."""
        order = np.argsort(self.site, kind="stable").astype(np.int64)
        sites = self.site[order]
        starts = np.searchsorted(sites, self.occupied)
        starts = np.append(starts, len(order))
        return order, starts.astype(np.int64)

    def cells(self, sites: Ints) -> tuple[Ints, Ints]:
        """Return the cells of some sites and, for each, which of ``sites`` it is on; -1 is a site beyond the edge."""
        order, starts = self._by_site
        last = len(self.occupied) - 1
        position = np.searchsorted(self.occupied, sites)
        position = np.minimum(position, last)
        is_occupied = self.occupied[position] == sites
        occupied = np.flatnonzero(is_occupied)
        position = position[occupied]
        first = starts[position]
        counts = starts[position + 1] - first
        ends = np.cumsum(counts)
        n_cells = ends[-1] if len(ends) else 0
        begins = np.repeat(ends - counts, counts)
        number = np.arange(n_cells) - begins  # of a cell within its site
        cells = order[np.repeat(first, counts) + number]
        sites_of_cells = np.repeat(occupied, counts)
        return cells, sites_of_cells.astype(np.int64)

    def places(self, sites: Ints) -> Floats:
        """Return where sites are, ``(n, 2)`` x and y in pitches; on a hexagonal grid every other row is shifted."""
        row, column = np.divmod(sites, self.shape[1])
        if self.layout != "hex":
            return np.stack([column, row], axis=1).astype(np.float64)
        x = column + 0.5 * (row % 2)
        y = row * _HEX_ROW
        return np.stack([x, y], axis=1)

    def window_places(self, sites: Ints) -> Vectors:
        """Return where the sites of a window are, ``(n, 2)``, from its own corner; 0 for -1, beyond the edge."""
        is_inside = sites >= 0
        places = self.places(sites)
        if is_inside.any():  # sines count from the corner: padding must not move a window
            places = places - places[is_inside].min(axis=0)
        return np.where(is_inside[:, None], places, 0.0).astype(np.float32)


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
    uses_bins = layout == "bin" or (layout == "auto" and tissue.lattice_kind is None)
    if bin_um > 0 and uses_bins and tissue.unit != "um":
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
        given; else the lattice that the coordinates are on, turned by whatever angle.
    bin_size
        In the unit of ``coords``; not used with ``"hex"``, ``"square"`` and ``"rank"``.
    name
        Of the slice, for messages.

    Raises
    ------
    InputError
        There is no lattice and no bin size is given; the grid would be too large.
    ConfigError
        Bins without a size.
    """
    if layout == "bin" and not bin_size > 0:
        raise ConfigError(
            "layout 'bin' needs the side of a bin in micrometers, e.g. bin_um=20 (--bin-um 20)."
        )
    if layout == "bin" or (layout == "auto" and bin_size > 0 and lattice_kind is None):
        from_corner = coords - coords.min(axis=0)
        bins = np.minimum(from_corner / bin_size, _MAX_SITES)
        columns, rows = np.floor(bins).T
        kind = "bin"
    elif layout == "rank":
        x, y = (coords if lattice is None else lattice[:, ::-1]).T
        _, rows = np.unique(y, return_inverse=True)
        _, columns = np.unique(x, return_inverse=True)
        kind = "rank"
    else:
        rows, columns, kind = _on_lattice(coords, lattice, lattice_kind, layout, name)
    return _grid(np.asarray(rows, np.int64), np.asarray(columns, np.int64), kind, name)


def _on_lattice(
    coords: Floats, lattice: Ints | None, lattice_kind: str | None, layout: Layout, name: str
) -> tuple[Ints, Ints, str]:
    """Return row, column and kind from the array's own numbers, or from the lattice that the coordinates are on."""
    if lattice is not None:
        return _on_array(lattice, lattice_kind, layout, name)
    kinds = ("hex", "square") if layout == "auto" else (layout,)
    recovered = _recover_lattice(coords, kinds)
    if recovered is None:
        wanted = "a lattice" if layout == "auto" else f"a {layout} lattice"
        raise InputError(
            f"{name}: the coordinates are not on {wanted}, and obs has no array_row and array_col. For single-cell "
            "platforms give the side of a bin in micrometers, bin_um=20 (--bin-um 20), in a recipe "
            "model.windows.bin_um: 20; about the distance between neighboring cells puts one or two into a bin."
        )
    return recovered


def _on_array(
    lattice: Ints, lattice_kind: str | None, layout: str, name: str
) -> tuple[Ints, Ints, str]:
    """Return row, column and kind from the array's own numbers."""
    rows, columns = lattice.T
    parity = (rows + columns) % 2
    is_staggered = len(lattice) > 1 and len(np.unique(parity)) == 1
    is_hex = layout == "hex"
    if layout == "auto":
        is_hex = is_staggered and lattice_kind != "st"
    if not is_hex and not is_staggered:
        return rows, columns, "square"
    if not is_hex:  # a dense ST array has every second site: a square lattice on its tip
        diagonal = (rows + columns) // 2
        other_diagonal = (columns - rows) // 2
        return diagonal, other_diagonal, "square"
    if not is_staggered and len(lattice) > 1:
        raise InputError(
            f"{name}: layout 'hex' is for staggered arrays, where every second position is left out (Visium); here "
            "array_row + array_col is even on some spots and odd on others. Take layout 'square' or 'auto'."
        )
    first = rows.min()
    first_column = columns[rows == first].min()
    first -= first_column % 2  # even rows are the ones that are not shifted
    return rows - first, columns // 2, "hex"


def _grid(rows: Ints, columns: Ints, kind: str, name: str) -> Grid:
    first_row = rows.min()
    if kind == "hex":
        first_row -= first_row % 2  # whether a row is shifted must stay as it is
    rows = rows - first_row
    columns = columns - columns.min()
    n_rows = int(rows.max()) + 1
    n_columns = int(columns.max()) + 1
    if n_rows * n_columns > _MAX_SITES:
        fix = "take layout 'bin' with a size" if kind == "rank" else "take larger bins"
        raise InputError(
            f"{name}: a grid of {n_rows:,} x {n_columns:,} sites for {len(rows):,} cells is too large; {fix} "
            "(bin_um, --bin-um), or check the coordinates for outliers."
        )
    grid = Grid((n_rows, n_columns), rows * n_columns + columns, kind)
    n_sharing = len(rows) - len(grid.occupied)
    if kind != "bin" and n_sharing:
        warnings.warn(
            f"{name}: {n_sharing:,} cells share their lattice position with another; their counts "
            "are summed there, and they get the same vector.",
            TerrazzoWarning,
            stacklevel=4,
        )
    return grid


def _recover_lattice(coords: Floats, kinds: tuple[str, ...]) -> tuple[Ints, Ints, str] | None:
    """Recover row and column of cells that are on a lattice turned by any angle; None where they are on none."""
    places, cells = np.unique(coords, axis=0, return_inverse=True)
    if len(places) < 4:
        return None
    tree = cKDTree(places)
    for kind in kinds:
        n_neighbors = 6 if kind == "hex" else 4
        distance, index = tree.query(places, k=min(n_neighbors + 1, len(places)))
        distance = distance[:, 1:]  # without the place itself
        index = index[:, 1:]
        pitch = float(np.median(distance[:, 0]))
        deviation = np.abs(distance - pitch)
        is_near = deviation < _SPREAD * pitch
        nearest_is_near = is_near[:, 0]
        if nearest_is_near.mean() < _MIN_ORDERLY:
            continue
        steps = places[index] - places[:, None]
        dx, dy = steps[is_near].T
        angle = np.arctan2(dy, dx)
        phase = 1j * n_neighbors * angle
        order = np.exp(phase).mean()
        if abs(order) < _MIN_ORDERLY:
            continue
        turn = float(np.angle(order)) / n_neighbors  # of the direction nearest to x
        fitted = _fit_lattice(places, _basis(kind, turn, pitch))
        if fitted is not None:
            columns, rows = fitted.T
            if kind == "hex":  # from slanted axes to staggered rows
                shift = (rows - rows % 2) // 2
                columns = columns + shift
            return rows[cells], columns[cells], kind
    return None


def _basis(kind: str, turn: float, pitch: float) -> Floats:
    """Return the steps to the next column and to the next row, ``(2, 2)``; of a hexagonal lattice 60 degrees apart."""
    between = np.pi / 3 if kind == "hex" else np.pi / 2
    second = turn + between
    next_column = [np.cos(turn), np.sin(turn)]
    next_row = [np.cos(second), np.sin(second)]
    return pitch * np.array([next_column, next_row])


def _fit_lattice(places: Floats, basis: Floats) -> Ints | None:
    """Return whole-number coordinates in a basis, which is fitted from the middle of the slice outwards."""
    from_median = places - np.median(places, axis=0)
    middle = np.argmin(np.linalg.norm(from_median, axis=1))
    offset = places - places[middle]
    radius = np.linalg.norm(offset, axis=1)
    pitch = np.linalg.norm(basis[0])
    last = max(radius.max(), 8 * pitch)
    reaches = np.geomspace(4 * pitch, last, _FIT_ROUNDS)
    start = np.zeros(2)
    # an error of the pitch adds up with distance: it is removed before it reaches half a step
    for reach in reaches:
        inside = offset[radius <= reach]
        inverse = np.linalg.inv(basis)
        whole = np.rint((inside - start) @ inverse)
        constant = np.ones((len(whole), 1))
        design = np.hstack([whole, constant])
        if np.linalg.matrix_rank(design) < 3:
            continue
        solution, *_ = np.linalg.lstsq(design, inside, rcond=None)
        basis = solution[:2]
        start = solution[2]
    inverse = np.linalg.inv(basis)
    exact = (offset - start) @ inverse
    whole = np.rint(exact)
    deviation = np.abs(exact - whole)
    deviation = deviation.max(axis=1)
    if not np.quantile(deviation, _FIT_SHARE) < _FIT_DISTANCE:
        return None
    return whole.astype(np.int64)


def observed(grid: Grid, window: int) -> Int32s:
    """Return how many occupied sites every window holds, by its top-left corner, ``(rows - h + 1, columns - w + 1)``.

    A grid smaller than a window has one corner in that direction: the window is padded with empty sites.
    """
    n_rows, n_columns = grid.shape
    total = np.zeros(
        (n_rows + 1, n_columns + 1), dtype=np.int32
    )  # sums over all sites above and left
    rows, columns = np.divmod(grid.occupied, n_columns)
    total[rows + 1, columns + 1] = 1
    for axis in (0, 1):
        np.cumsum(total, axis=axis, out=total)
    height = min(window, n_rows)
    width = min(window, n_columns)
    below = total[height:]
    above = total[:-height]
    counts = below[:, width:] - above[:, width:]
    counts -= below[:, :-width]
    counts += above[:, :-width]
    return counts
