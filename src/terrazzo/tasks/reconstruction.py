"""A slice with a square of it hidden: what a predictor may see of it, and what trivial answers say."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.utils import make_index_unique
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError, cKDTree

from terrazzo import keys
from terrazzo.arrays import Bools, Floats, Ints
from terrazzo.errors import ConfigError, InputError
from terrazzo.expression import LEAST_VARIANCE, PAPER_TOTAL, log_values, variance
from terrazzo.genes.names import merge_plan, read_gene_names
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.slices.counts import find_counts
from terrazzo.slices.geometry import library_of
from terrazzo.slices.grids import Grid, Layout, grid_of, observed
from terrazzo.tasks.metrics import regression
from terrazzo.tasks.results import TaskResult, tidy

NEAREST = (16, 6)  # the paper's rule for scGPT-spatial; the neighbors of a Visium spot


GENE_MEAN, LINEAR = "gene mean", "linear interpolation"


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
        """Read a slice; errors as :meth:`terrazzo.Slice.from_anndata` and :func:`terrazzo.slices.grids.grid_of`."""
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
    def measured(self) -> Bools:
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
        full = observed(
            Grid(self.grid.shape, self.grid.site[self.measured], self.grid.layout), size
        )
        allowed = np.argwhere(
            (full >= occupancy * size**2) & (full < len(np.unique(self.grid.site[self.measured])))
        )
        if not len(allowed):
            raise InputError(
                f"no region of {size} x {size} sites holds cells with counts in {occupancy:.0%} of its sites (at most "
                f"{full.max() / size**2:.0%}) and leaves others visible; take a smaller size or occupancy."
            )
        rng = np.random.default_rng([seed, size, 107])
        return allowed[rng.choice(len(allowed), min(n, len(allowed)), replace=False)].astype(
            np.int64
        )

    def hide(
        self, size: int, corner: Ints, n_genes: int, genes: Ints | None, choose: Choose = "variance"
    ) -> Region:
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

    def around(self, region: Region, margin: int) -> Bools:
        """Return the cells of a region and of so many sites around it."""
        return self._within(region.corner - margin, region.corner + region.size + margin)

    def _within(self, low: Ints, high: Ints) -> Bools:
        row, column = self._seats
        return (row >= low[0]) & (row < high[0]) & (column >= low[1]) & (column < high[1])

    def seen(self, hidden: Bools) -> AnnData:
        """Return what a predictor may see: a copy in which the hidden cells have no counts."""
        lengths = np.diff(self.counts.indptr)
        kept = np.repeat(~hidden, lengths)
        starts = np.append(0, np.cumsum(np.where(hidden, 0, lengths))).astype(
            self.counts.indptr.dtype
        )
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
    raw = sp.csr_matrix(
        (np.expm1(values.data.astype(np.float64)), values.indices, values.indptr),
        shape=values.shape,
    )
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
        plane = LinearNDInterpolator(
            tissue.coords[visible], region.dense(visible).astype(np.float64)
        )
    except QhullError:  # fewer than three cells, or all on one line
        return nearest
    found = plane(targets)
    beyond = np.isnan(found).any(axis=1)
    found[beyond] = nearest[beyond]
    return np.asarray(found)


N_GENES, REPEATS, SIZE = 512, 20, 8


OCCUPANCY = 0.5  # least share of a region's sites that hold a cell


SHOWN = 16  # genes whose values are kept, of the first region of each size


Predictor = Callable[[AnnData, NDArray[np.bool_], list[str]], Any]


def reconstruct(
    data: AnnData,
    predictors: Mapping[str, Predictor] | None = None,
    *,
    size: int | Sequence[int] = SIZE,
    n_genes: int = N_GENES,
    choose: Choose = "variance",
    genes: Sequence[str] | None = None,
    repeats: int = REPEATS,
    occupancy: float = OCCUPANCY,
    seed: int = 0,
    layout: Layout = "auto",
    bin_um: float = 0.0,
    layer: str | None = None,
    progress: bool | None = None,
) -> TaskResult:
    """Hide squares of a slice and score who can say what was there (ST as images, table 7).

    Values are ``log1p(counts / total * 10,000)``, totals over all genes. Scored are the hidden cells that have counts.

    Parameters
    ----------
    data
        A slice with counts. Never modified.
    predictors
        By name: what is called with a slice, a mask and gene names, and returns the hidden cells' values, ``(hidden
        cells, genes)``, rows in the order of the slice. The slice is a copy of its own in which the hidden cells have
        **no counts**, one column a gene; it holds nothing else than names of cells and genes, ``array_row`` and
        ``array_col``, ``obsm["spatial"]``, and of ``uns`` organism, technology and histology.
    size
        Side of the square in sites of the slice's grid, or several sides.
    n_genes
        So many genes are predicted (paper 512): those that vary most over the *visible* cells.
    choose
        By ``"variance"`` of the values, or by ``"dispersion"`` of the counts against genes of the same mean (scanpy's
        ``highly_variable_genes``), which takes rare genes, whose errors are smaller.
    genes
        These instead.
    repeats
        Squares of each size, drawn at random; fewer where there are no more (the notes say so).
    occupancy
        Least share of a square's sites that hold a cell with counts. Some of them stay visible outside it.
    seed
        Of the draw: same seed, same squares.
    layout, bin_um
        See :func:`terrazzo.slices.grids.lay_out`; slices without a lattice need the side of a bin.
    layer
        Layer of the counts; see :meth:`terrazzo.Slice.from_anndata`.
    progress
        A bar; None: where there is a terminal.

    Returns
    -------
    Scores ``mse`` and ``mae`` of every square (``number``), over all its cells and genes, with two more columns,
    ``system`` and ``size``; ``split`` is ``"8 x 8"``. Always among the systems: the mean over visible cells, the mean
    of the 16 (the paper's rule for scGPT-spatial) and of the 6 nearest visible cells, and linear interpolation
    (nearest cell beyond the convex hull). Predictions: of the first square of each size and as much tissue around it,
    the 16 genes that vary most, columns ``"true:GENE"`` and ``"SYSTEM:GENE"``;
    :func:`terrazzo.plot.reconstruction` draws them.

    Raises
    ------
    InputError
        No counts; no lattice and no bin size; no square of this size; a gene that is not there; a predictor that
        returns anything but finite numbers of the right shape.
    ConfigError
        A size, number or share that is impossible; a predictor that has a baseline's name.
    """
    asked = dict(predictors or {})
    sizes = _sizes(size)
    if choose not in get_args(Choose):
        raise ConfigError(
            f"choose is {choose!r}; it must be one of {', '.join(map(repr, get_args(Choose)))}."
        )
    _check(asked, n_genes, repeats, occupancy, bin_um)
    tissue = Tissue.read(data, layer, layout, bin_um)
    columns = None if genes is None else _named(tissue, genes)
    corners = {side: tissue.draw(side, repeats, occupancy, seed) for side in sizes}
    rows: list[dict[str, Any]] = []
    shown: list[pd.DataFrame] = []
    fewest = n_genes
    with Progress(progress).stage(
        "reconstruction", sum(map(len, corners.values())), "regions"
    ) as advance:
        for side, drawn in corners.items():
            for number, corner in enumerate(drawn):
                region = tissue.hide(side, corner, n_genes, columns, choose)
                answers = trivial(tissue, region)
                for name, predictor in asked.items():
                    answers[name] = _answer(name, predictor, tissue, region)
                rows += _scores(tissue, region, answers, number)
                shown += [_kept(tissue, region, answers)] if number == 0 else []
                fewest = min(fewest, len(region.genes))
                advance(1)
    config = {
        "systems": [*BASELINES, *asked],
        "sizes": sizes,
        "n_genes": n_genes if columns is None else len(columns),
        "choose": choose,
        "genes": None if genes is None else list(genes),
        "repeats": repeats,
        "occupancy": occupancy,
        "seed": seed,
        "layout": tissue.grid.layout,
        "bin_um": bin_um,
        "layer": layer,
        "n_cells": int(data.n_obs),
        "grid": list(tissue.grid.shape),
        "corners": {str(side): c.tolist() for side, c in corners.items()},
    }
    notes = _notes(tissue, corners, repeats, n_genes if columns is None else 0, fewest)
    return TaskResult("reconstruction", pd.DataFrame(rows), pd.concat(shown), config, notes)


def _sizes(size: int | Sequence[int]) -> list[int]:
    given = list(size) if isinstance(size, Sequence) else [size]
    if not given or not all(isinstance(one, int | np.integer) and one >= 1 for one in given):
        raise ConfigError(
            f"size is {size}; it must be a whole number of sites, at least 1, or several of them."
        )
    return [int(one) for one in dict.fromkeys(given)]


def _check(
    asked: Mapping[str, Predictor], n_genes: int, repeats: int, occupancy: float, bin_um: float
) -> None:
    if n_genes < 1 or repeats < 1:
        raise ConfigError(f"n_genes is {n_genes} and repeats {repeats}; both must be at least 1.")
    if not 0 < occupancy <= 1:
        raise ConfigError(f"occupancy is {occupancy}; it must be above 0 and at most 1.")
    if not 0 <= bin_um < np.inf:
        raise ConfigError(f"bin_um is {bin_um}; it must be at least 0 (0: no bins).")
    if taken := [name for name in asked if name in BASELINES]:
        raise ConfigError(
            f"a predictor is called {taken[0]!r}, which is the name of a baseline; choose another."
        )


def _named(tissue: Tissue, genes: Sequence[str]) -> NDArray[np.int64]:
    wanted = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    if not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError("genes must name at least one gene, each of them once.")
    for gene in wanted:
        if gene not in tissue.place:
            near = difflib.get_close_matches(gene, tissue.place, n=1, cutoff=0.0)
            raise InputError(f"gene {gene!r} is not in the slice; the nearest name is {near[0]!r}.")
    found = np.array([tissue.place[gene] for gene in wanted], dtype=np.int64)
    if len(np.unique(found)) < len(found):
        raise ConfigError("genes names one gene twice, under two names of it.")
    return found


def _answer(name: str, predictor: Predictor, tissue: Tissue, region: Region) -> Floats:
    """Ask a predictor, which gets a slice of its own: what it does to it reaches nobody else."""
    names = tissue.names[region.genes].tolist()
    given = predictor(tissue.seen(region.hidden), region.hidden.copy(), list(names))
    given = given.toarray() if hasattr(given, "toarray") else given
    try:
        out = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} returned no numbers ({error}).") from error
    expected = (int(region.hidden.sum()), len(names))
    if out.shape != expected:
        raise InputError(
            f"{name} returned shape {out.shape}; it must be (hidden cells, genes), {expected}."
        )
    if not np.isfinite(out).all():
        bad = ~np.isfinite(out)
        raise InputError(
            f"{name} returned {int(bad.sum())} values that are not finite (first: hidden cell "
            f"{int(np.argwhere(bad)[0][0])}, gene {names[int(np.argwhere(bad)[0][1])]})."
        )
    return out


def _scores(
    tissue: Tissue, region: Region, answers: Mapping[str, Floats], number: int
) -> list[dict[str, Any]]:
    scored = tissue.measured[region.hidden]
    true = region.dense(np.flatnonzero(region.hidden)[scored])
    out = []
    for name, answer in answers.items():
        found = regression(true, answer[scored])
        kept = {metric: found[metric] for metric in ("mse", "mae")}
        out += [
            row | {"system": name, "size": region.size}
            for row in tidy(kept, _split(region.size), number)
        ]
    return out


def _split(size: int) -> str:
    return f"{size} x {size}"


def _kept(tissue: Tissue, region: Region, answers: Mapping[str, Floats]) -> pd.DataFrame:
    """Return true and predicted values of a few genes, in the region and as far around it as it is wide."""
    rows, genes = np.flatnonzero(tissue.around(region, region.size)), region.genes[:SHOWN]
    names, hidden = tissue.names[genes], region.hidden[rows]
    true = region.dense(rows)[:, :SHOWN]
    true[~tissue.measured[rows]] = np.nan
    columns: dict[str, Any] = {
        "size": region.size,
        "cell": rows,
        "x": tissue.coords[rows, 0],
        "y": tissue.coords[rows, 1],
        "hidden": hidden,
    }
    columns |= {f"true:{name}": true[:, i] for i, name in enumerate(names)}
    order = np.cumsum(region.hidden) - 1  # row of a hidden cell among the answers
    for system, answer in answers.items():
        values = np.full(true.shape, np.nan, dtype=np.float32)
        values[hidden] = answer[order[rows[hidden]]][:, : len(genes)]
        columns |= {f"{system}:{name}": values[:, i] for i, name in enumerate(names)}
    return pd.DataFrame(columns, index=tissue.obs_names[rows])


def _notes(
    tissue: Tissue,
    corners: Mapping[int, NDArray[np.int64]],
    repeats: int,
    n_genes: int,
    fewest: int,
) -> tuple[str, ...]:
    out = [
        f"{_split(side)}: there are only {len(drawn)} squares to draw, not {repeats}"
        for side, drawn in corners.items()
        if len(drawn) < repeats
    ]
    if fewest < n_genes:
        out.append(
            f"{fewest} genes are predicted, not {n_genes}: no more vary among the visible cells"
        )
    if empty := int((~tissue.measured).sum()):
        out.append(f"{empty} cells without counts are neither scored nor learned from")
    if tissue.unit != "um" and tissue.grid.layout == "bin":
        out.append(
            f"the coordinates' unit is {tissue.unit}, not micrometers: bin_um was taken in that unit"
        )
    return tuple(out)
