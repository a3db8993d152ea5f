"""A slice with a square of it hidden: what a predictor may see of it, and what trivial answers say."""

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
from terrazzo.errors import InputError
from terrazzo.genes.names import merge_plan, read_gene_names
from terrazzo.slices import Slice
from terrazzo.slices.counts import find_counts
from terrazzo.slices.geometry import library_of
from terrazzo.units.grids import Grid, Layout, grid_of
from terrazzo.units.patches import observed
from terrazzo.units.site_values import LEAST_VARIANCE, PAPER_TOTAL, log_values, variance

NEAREST = (16, 6)  # the paper's rule for scGPT-spatial; the neighbours of a Visium spot
GENE_MEAN, LINEAR = "gene mean", "linear interpolation"
BASELINES = (GENE_MEAN, *(f"mean of {k} nearest" for k in NEAREST), LINEAR)
LEAST_AROUND = 8  # sites around a region that interpolation looks at, at least
# of var only these: means or flags of variable genes were computed from all cells
NAMES_OF_GENES = (*keys.ENSEMBL_COLUMNS, *keys.SYMBOL_COLUMNS)

MEAN_BINS = 20  # Seurat's and scanpy's

Choose = Literal["variance", "dispersion"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


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
    hidden: Mask
    genes: Ints
    values: sp.csr_matrix

    def dense(self, cells: Ints) -> NDArray[np.float32]:
        """Return values ``(cells, genes)``."""
        return np.asarray(self.values[cells].toarray(), dtype=np.float32)


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
        Where the cells lie on it.
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
    def read(cls, data: AnnData, layer: str | None, layout: Layout, bin_um: float) -> Tissue:
        """Read a slice; errors as :meth:`terrazzo.Slice.from_anndata` and :func:`terrazzo.units.grids.grid_of`."""
        found = Slice.from_anndata(data, layer=layer)
        grid = grid_of(found, layout=layout, bin_um=bin_um)
        table = find_counts(data, layer, False).var
        column, first = merge_plan(read_gene_names(table))
        texts = table.index.astype(str)
        place = {name: int(column[i]) for i, name in reversed(list(enumerate(texts)))}
        var = table.iloc[first][[c for c in NAMES_OF_GENES if c in table]].copy()
        var.index = make_index_unique(var.index.astype(str))
        uns = {k: data.uns[k] for k in (keys.TECHNOLOGY,) if k in data.uns}
        if found.organism != "unknown":
            uns[keys.ORGANISM] = found.organism
        if library := library_of(data):
            uns[keys.SPATIAL] = {"slice": library}
        obs = data.obs[[c for c in (keys.ARRAY_ROW, keys.ARRAY_COL) if c in data.obs]].copy()
        obs.index = make_index_unique(obs.index.astype(str))
        bare = AnnData(obs=obs, var=var, obsm={keys.SPATIAL: found.native_coords}, uns=uns)
        names = np.asarray(var.index, dtype=np.str_)
        return cls(found.counts, names, place, found.coords, found.unit, grid, bare)

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        return self.bare.obs_names

    @cached_property
    def values(self) -> sp.csr_matrix:
        """log1p of counts scaled to 10,000, CSR float32."""
        return log_values(self.counts, PAPER_TOTAL)

    @cached_property
    def measured(self) -> Mask:
        """Cells that have counts, bool ``(n_cells,)``."""
        return np.diff(self.counts.indptr) > 0

    @cached_property
    def _seats(self) -> tuple[Ints, Ints]:
        """Row and column of every cell's site."""
        row, column = np.divmod(self.grid.site, self.grid.shape[1])
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
                f"a region of {size} x {size} sites does not fit into the slice, whose grid has {rows} x {columns}; "
                "take a smaller size."
            )
        full = observed(Grid(self.grid.shape, self.grid.site[self.measured], self.grid.layout), size)
        allowed = np.argwhere((full >= occupancy * size**2) & (full < len(np.unique(self.grid.site[self.measured]))))
        if not len(allowed):
            raise InputError(
                f"no region of {size} x {size} sites holds cells with counts in {occupancy:.0%} of its sites (at most "
                f"{full.max() / size**2:.0%}) and leaves others visible; take a smaller size or occupancy."
            )
        rng = np.random.default_rng([seed, size, 107])
        return allowed[rng.choice(len(allowed), min(n, len(allowed)), replace=False)].astype(np.int64)

    def hide(self, size: int, corner: Ints, n_genes: int, genes: Ints | None, choose: Choose = "variance") -> Region:
        """Hide a square; genes that are not given are chosen by how they vary over the visible cells."""
        hidden = self._within(corner, corner + size)
        if genes is None:
            visible = self.values[np.flatnonzero(~hidden & self.measured)]
            spread = variance(visible)
            score = spread if choose == "variance" else dispersion(visible)
            score = np.where(spread > LEAST_VARIANCE, score, -np.inf)
            order = np.argsort(-score, kind="stable")[:n_genes]
            genes = order[np.isfinite(score[order])].astype(np.int64)
        if not len(genes):
            raise InputError("no gene varies among the visible cells: there is nothing to predict.")
        return Region(size, corner, hidden, genes, sp.csr_matrix(self.values[:, genes]))

    def around(self, region: Region, margin: int) -> Mask:
        """Return the cells of a region and of so many sites around it."""
        return self._within(region.corner - margin, region.corner + region.size + margin)

    def _within(self, low: Ints, high: Ints) -> Mask:
        row, column = self._seats
        return (row >= low[0]) & (row < high[0]) & (column >= low[1]) & (column < high[1])

    def seen(self, hidden: Mask) -> AnnData:
        """Return what a predictor may see: a copy in which the hidden cells have no counts."""
        lengths = np.diff(self.counts.indptr)
        kept = np.repeat(~hidden, lengths)
        starts = np.append(0, np.cumsum(np.where(hidden, 0, lengths))).astype(self.counts.indptr.dtype)
        parts = (self.counts.data[kept], self.counts.indices[kept], starts)
        out = self.bare.copy()
        out.X = sp.csr_matrix(parts, shape=self.counts.shape)
        return out


def dispersion(values: sp.csr_matrix) -> Floats:
    """Return how far each gene's log variance to mean ratio lies above that of genes of its mean (Seurat, scanpy).

    Parameters
    ----------
    values
        log1p of scaled counts, CSR ``(cells, genes)``; ratios are those of the counts.

    Returns
    -------
    float64 ``(genes,)``: standard deviations above the mean of its bin; -inf for a gene that does not vary.
    """
    raw = sp.csr_matrix((np.expm1(values.data.astype(np.float64)), values.indices, values.indptr), shape=values.shape)
    mean = np.asarray(raw.mean(axis=0)).ravel()
    spread = variance(raw) * raw.shape[0] / max(raw.shape[0] - 1, 1)
    varies = (spread > 0) & (mean > 0)
    table = pd.DataFrame({"ratio": np.nan, "bin": pd.cut(pd.Series(np.log1p(mean)), MEAN_BINS)})
    table.loc[varies, "ratio"] = np.log(spread[varies] / mean[varies])
    bins = table.groupby("bin", observed=True)["ratio"]
    average, deviation = bins.transform("mean"), bins.transform("std")
    alone = deviation.isna() & table["ratio"].notna()  # in its bin: it counts as one above
    out = ((table["ratio"] - average) / deviation).mask(alone, 1.0)
    return out.fillna(-np.inf).to_numpy(dtype=np.float64)


def trivial(tissue: Tissue, region: Region) -> dict[str, Floats]:
    """Return what :data:`BASELINES` say of the hidden cells, ``(hidden cells, genes)`` each."""
    visible = np.flatnonzero(~region.hidden & tissue.measured)
    targets = tissue.coords[region.hidden]
    mean = np.asarray(region.values[visible].astype(np.float64).mean(axis=0)).ravel()
    answers = [np.tile(mean, (len(targets), 1))]
    tree = cKDTree(tissue.coords[visible])
    near = tree.query(targets, k=np.arange(1, min(max(NEAREST), len(visible)) + 1))[1]
    used, place = np.unique(near, return_inverse=True)
    values = region.dense(visible[used]).astype(np.float64)[place.reshape(near.shape)]
    answers += [values[:, :k].mean(axis=1) for k in NEAREST]
    answers.append(_interpolated(tissue, region, targets, values[:, 0]))
    return dict(zip(BASELINES, answers, strict=True))


def _interpolated(tissue: Tissue, region: Region, targets: Floats, nearest: Floats) -> Floats:
    """Interpolate linearly between the visible cells around a region; beyond their hull, the nearest one."""
    close = tissue.around(region, max(region.size, LEAST_AROUND))
    visible = np.flatnonzero(close & ~region.hidden & tissue.measured)
    try:
        plane = LinearNDInterpolator(tissue.coords[visible], region.dense(visible).astype(np.float64))
    except QhullError:  # fewer than three cells, or all on one line
        return nearest
    found = plane(targets)
    beyond = np.isnan(found).any(axis=1)
    found[beyond] = nearest[beyond]
    return np.asarray(found)
