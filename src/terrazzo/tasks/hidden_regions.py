"""A slice on its grid with a square of it hidden: what a predictor may see, and the trivial answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.utils import make_index_unique
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError, cKDTree

from terrazzo import keys
from terrazzo.arrays import Bools, Floats, Ints, Vectors
from terrazzo.errors import InputError
from terrazzo.expression import LEAST_VARIANCE, PAPER_TOTAL, log_values, variance
from terrazzo.genes.names import merge_plan, read_gene_names
from terrazzo.slices import Slice
from terrazzo.slices.counts import find_counts
from terrazzo.slices.geometry import library_of
from terrazzo.slices.grids import Grid, Layout, grid_of, observed

__all__ = ["BASELINES", "Choose", "Region", "Tissue", "dispersion", "trivial"]

NEAREST = (16, 6)  # the paper's rule for scGPT-spatial; the neighbors of a Visium spot
GENE_MEAN = "gene mean"
LINEAR = "linear interpolation"
BASELINES = (GENE_MEAN, *(f"mean of {k} nearest" for k in NEAREST), LINEAR)
LEAST_AROUND = 8  # sites around a region that interpolation looks at, at least
# of var only these: means or flags of variable genes were computed from all cells
NAMES_OF_GENES = (*keys.ENSEMBL_COLUMNS, *keys.SYMBOL_COLUMNS)
MEAN_BINS = 20  # Seurat's and scanpy's

Choose = Literal["variance", "dispersion"]


@dataclass(frozen=True, eq=False)
class Region:
    """A hidden square.

    Attributes
    ----------
    size
        Its side in sites.
    corner
        int64 ``(2,)``: row and column of its first site.
    hidden
        bool ``(n_cells,)``: cells in it.
    genes
        int64: genes that are predicted, the most variable first.
    values
        Of these genes, CSR float32 ``(n_cells, genes)``, those of hidden cells among them: for scoring.
    """

    size: int
    corner: Ints
    hidden: Bools
    genes: Ints
    values: sp.csr_matrix

    def dense(self, cells: Ints) -> Vectors:
        """Return values ``(cells, genes)``."""
        rows = self.values[cells]
        return np.asarray(rows.toarray(), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Tissue:
    """A slice on its grid.

    Attributes
    ----------
    counts
        CSR ``(n_cells, n_genes)``, one column a gene.
    names
        str ``(n_genes,)``: each gene under the name of its first column.
    place
        Number of every gene by each of its names in ``var_names``.
    coords, unit
        float64 ``(n_cells, 2)``, and what they are measured in.
    grid
        The site of each cell.
    bare
        Names, coordinates and array positions of the slice, and nothing else.
    """

    counts: sp.csr_matrix
    names: NDArray[np.str_]
    place: dict[str, int]
    coords: Floats
    unit: str
    grid: Grid
    bare: AnnData

    @classmethod
    def read(
        cls,
        data: AnnData,
        layer: str | None,
        layout: Layout,
        bin_um: float,
        slice_key: str | None = None,
    ) -> Tissue:
        """Read a slice; errors as :meth:`terrazzo.Slice.from_anndata` and :func:`terrazzo.slices.grids.grid_of`."""
        tissue = Slice.from_anndata(data, layer=layer, slice_key=slice_key)
        grid = grid_of(tissue, layout=layout, bin_um=bin_um)
        table = find_counts(data, layer, False).var
        column_of, first = merge_plan(read_gene_names(table))
        place: dict[str, int] = {}
        for name, number in zip(table.index.astype(str), column_of, strict=True):
            place.setdefault(name, int(number))
        bare = _bare(data, tissue, table.iloc[first])
        return cls(
            counts=tissue.counts,
            names=np.asarray(bare.var_names, dtype=np.str_),
            place=place,
            coords=tissue.coords,
            unit=tissue.unit,
            grid=grid,
            bare=bare,
        )

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        return self.bare.obs_names

    @cached_property
    def values(self) -> sp.csr_matrix:
        """log1p of counts scaled to 10,000, CSR float32."""
        return log_values(self.counts, PAPER_TOTAL)

    @cached_property
    def measured(self) -> Bools:
        """Cells that have counts, bool ``(n_cells,)``."""
        return np.diff(self.counts.indptr) > 0

    @cached_property
    def _rows_and_columns(self) -> tuple[Ints, Ints]:
        """Row and column of every cell's site."""
        _, n_columns = self.grid.shape
        row, column = np.divmod(self.grid.site, n_columns)
        return row, column

    def draw(self, size: int, n: int, occupancy: float, seed: int) -> Ints:
        """Draw corners of squares that are full enough and leave something visible, ``(n, 2)``, each at most once.

        Raises
        ------
        InputError
            There is none.
        """
        rows, columns = self.grid.shape
        if size > min(rows, columns):
            raise InputError(
                f"a region of {size} x {size} sites does not fit into the slice, "
                f"whose grid has {rows} x {columns}; take a smaller size."
            )
        allowed = self._full_enough(size, occupancy)
        rng = np.random.default_rng([seed, size, 107])
        n_drawn = min(n, len(allowed))
        chosen = rng.choice(len(allowed), n_drawn, replace=False)
        return allowed[chosen].astype(np.int64)

    def _full_enough(self, size: int, occupancy: float) -> Ints:
        """Return the corners of all squares that :meth:`draw` may choose, ``(n, 2)``."""
        n_sites = size**2
        occupied = self.grid.site[self.measured]
        n_occupied = len(np.unique(occupied))
        occupied_grid = Grid(self.grid.shape, occupied, self.grid.layout)
        full = observed(occupied_grid, size)
        is_full = full >= occupancy * n_sites
        leaves_some = full < n_occupied
        allowed = np.argwhere(is_full & leaves_some)
        if not len(allowed):
            fullest = full.max() / n_sites
            raise InputError(
                f"no region of {size} x {size} sites holds cells with counts in {occupancy:.0%} "
                f"of its sites (at most {fullest:.0%}) and leaves others visible; "
                "take a smaller size or occupancy."
            )
        return allowed

    def hide(
        self,
        size: int,
        corner: Ints,
        n_genes: int,
        genes: Ints | None,
        choose: Choose = "variance",
    ) -> Region:
        """Hide a square; without ``genes``, those are chosen that vary most over the visible cells."""
        hidden = self._within(corner, corner + size)
        if genes is None:
            genes = self._varying_genes(~hidden & self.measured, n_genes, choose)
        if not len(genes):
            raise InputError("no gene varies among the visible cells: there is nothing to predict.")
        values = sp.csr_matrix(self.values[:, genes])
        return Region(size, corner, hidden, genes, values)

    def _varying_genes(self, cells: Bools, n_genes: int, choose: Choose) -> Ints:
        """Return the genes that vary most over some cells, the most variable first."""
        visible = self.values[np.flatnonzero(cells)]
        spread = variance(visible)
        score = spread if choose == "variance" else dispersion(visible)
        score = np.where(spread > LEAST_VARIANCE, score, -np.inf)
        order = np.argsort(-score, kind="stable")[:n_genes]
        varies = np.isfinite(score[order])
        return order[varies].astype(np.int64)

    def around(self, region: Region, margin: int) -> Bools:
        """Return the cells of a region and of so many sites around it."""
        low = region.corner - margin
        high = region.corner + region.size + margin
        return self._within(low, high)

    def _within(self, low: Ints, high: Ints) -> Bools:
        """Return the cells whose site is between two corners, the second left out."""
        row, column = self._rows_and_columns
        in_rows = (row >= low[0]) & (row < high[0])
        in_columns = (column >= low[1]) & (column < high[1])
        return in_rows & in_columns

    def seen(self, hidden: Bools) -> AnnData:
        """Return what a predictor may see: a copy in which the hidden cells have no counts."""
        counts = self.counts
        lengths = np.diff(counts.indptr)
        visible = np.repeat(~hidden, lengths)
        ends = np.cumsum(np.where(hidden, 0, lengths))
        indptr = np.append(0, ends).astype(counts.indptr.dtype)
        parts = (counts.data[visible], counts.indices[visible], indptr)
        out = self.bare.copy()
        out.X = sp.csr_matrix(parts, shape=counts.shape)
        return out


def _bare(data: AnnData, tissue: Slice, genes: pd.DataFrame) -> AnnData:
    """Return names, coordinates and array positions of a slice, and nothing else; ``genes`` is a row a gene."""
    var = genes[[name for name in NAMES_OF_GENES if name in genes]].copy()
    var.index = make_index_unique(var.index.astype(str))
    array_position = (keys.ARRAY_ROW, keys.ARRAY_COL)
    obs = data.obs[[name for name in array_position if name in data.obs]].copy()
    obs.index = make_index_unique(obs.index.astype(str))
    uns = {}
    if keys.TECHNOLOGY in data.uns:
        uns[keys.TECHNOLOGY] = data.uns[keys.TECHNOLOGY]
    if tissue.organism != "unknown":
        uns[keys.ORGANISM] = tissue.organism
    library = library_of(data)
    if library:
        uns[keys.SPATIAL] = {"slice": library}
    return AnnData(obs=obs, var=var, obsm={keys.SPATIAL: tissue.native_coords}, uns=uns)


def dispersion(values: sp.csr_matrix) -> Floats:
    """Return how far each gene's log variance to mean ratio is above that of genes of its mean (Seurat, scanpy).

    Parameters
    ----------
    values
        log1p of scaled counts, CSR ``(cells, genes)``; ratios are those of the counts.

    Returns
    -------
    float64 ``(genes,)``: standard deviations above the mean of its bin; -inf for a gene that does not vary.
    """
    n_cells = values.shape[0]
    numbers = np.expm1(values.data.astype(np.float64))
    raw = sp.csr_matrix((numbers, values.indices, values.indptr), shape=values.shape)
    mean = np.asarray(raw.mean(axis=0)).ravel()
    degrees = max(n_cells - 1, 1)
    spread = variance(raw) * n_cells / degrees
    varies = (spread > 0) & (mean > 0)
    log_mean = pd.Series(np.log1p(mean))
    bins = pd.cut(log_mean, MEAN_BINS)
    table = pd.DataFrame({"ratio": np.nan, "bin": bins})
    ratio_of_varying = spread[varies] / mean[varies]
    table.loc[varies, "ratio"] = np.log(ratio_of_varying)
    ratio = table["ratio"]
    by_bin = table.groupby("bin", observed=True)["ratio"]
    average = by_bin.transform("mean")
    deviation = by_bin.transform("std")
    alone_in_bin = deviation.isna() & ratio.notna()  # counts as one deviation above
    score = ((ratio - average) / deviation).mask(alone_in_bin, 1.0)
    return score.fillna(-np.inf).to_numpy(dtype=np.float64)


def trivial(tissue: Tissue, region: Region) -> dict[str, Floats]:
    """Return the predictions of :data:`BASELINES` for the hidden cells, ``(hidden cells, genes)`` each."""
    visible = np.flatnonzero(~region.hidden & tissue.measured)
    targets = tissue.coords[region.hidden]
    visible_values = region.values[visible]
    mean = visible_values.astype(np.float64).mean(axis=0)
    mean = np.asarray(mean).ravel()
    n_targets = len(targets)
    answers = {GENE_MEAN: np.tile(mean, (n_targets, 1))}
    near_values = _nearest_values(tissue, region, targets, visible)
    for k in NEAREST:
        first = near_values[:, :k]
        answers[f"mean of {k} nearest"] = first.mean(axis=1)
    nearest = near_values[:, 0]
    answers[LINEAR] = _interpolated(tissue, region, targets, nearest)
    return answers


def _nearest_values(tissue: Tissue, region: Region, targets: Floats, visible: Ints) -> Floats:
    """Return the values of the visible cells nearest to each target, ``(targets, neighbors, genes)``."""
    most = min(max(NEAREST), len(visible))
    ranks = np.arange(1, most + 1)
    tree = cKDTree(tissue.coords[visible])
    _, neighbors = tree.query(targets, k=ranks)
    used, place = np.unique(neighbors, return_inverse=True)
    values = region.dense(visible[used]).astype(np.float64)
    place = place.reshape(neighbors.shape)
    return values[place]


def _interpolated(tissue: Tissue, region: Region, targets: Floats, nearest: Floats) -> Floats:
    """Interpolate linearly between the visible cells around a region; beyond their hull, the nearest one."""
    close = tissue.around(region, max(region.size, LEAST_AROUND))
    visible = np.flatnonzero(close & ~region.hidden & tissue.measured)
    values = region.dense(visible).astype(np.float64)
    try:
        plane = LinearNDInterpolator(tissue.coords[visible], values)
    except QhullError:  # fewer than three cells, or all on one line
        return nearest
    answers = plane(targets)
    beyond = np.isnan(answers).any(axis=1)
    answers[beyond] = nearest[beyond]
    return np.asarray(answers)
