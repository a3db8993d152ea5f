"""Reconstruction: a square of the tissue is hidden, and its expression predicted (ST as images, section 4, table 7)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo.errors import ConfigError, InputError
from terrazzo.progress import Progress
from terrazzo.tasks.hidden_regions import BASELINES, Choose, Floats, Region, Tissue, trivial
from terrazzo.tasks.metrics import regression
from terrazzo.tasks.results import TaskResult, tidy
from terrazzo.units.grids import Layout

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
        See :func:`terrazzo.units.grids.lay_out`; slices without a lattice need the side of a bin.
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
        raise ConfigError(f"choose is {choose!r}; it must be one of {', '.join(map(repr, get_args(Choose)))}.")
    _check(asked, n_genes, repeats, occupancy, bin_um)
    tissue = Tissue.read(data, layer, layout, bin_um)
    columns = None if genes is None else _named(tissue, genes)
    corners = {side: tissue.draw(side, repeats, occupancy, seed) for side in sizes}
    rows: list[dict[str, Any]] = []
    shown: list[pd.DataFrame] = []
    fewest = n_genes
    with Progress(progress).stage("reconstruction", sum(map(len, corners.values())), "regions") as advance:
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
        "systems": [*BASELINES, *asked], "sizes": sizes, "n_genes": n_genes if columns is None else len(columns),
        "choose": choose, "genes": None if genes is None else list(genes), "repeats": repeats,
        "occupancy": occupancy, "seed": seed, "layout": tissue.grid.layout, "bin_um": bin_um, "layer": layer,
        "n_cells": int(data.n_obs),
        "grid": list(tissue.grid.shape), "corners": {str(side): c.tolist() for side, c in corners.items()},
    }  # fmt: skip
    notes = _notes(tissue, corners, repeats, n_genes if columns is None else 0, fewest)
    return TaskResult("reconstruction", pd.DataFrame(rows), pd.concat(shown), config, notes)


def _sizes(size: int | Sequence[int]) -> list[int]:
    given = list(size) if isinstance(size, Sequence) else [size]
    if not given or not all(isinstance(one, int | np.integer) and one >= 1 for one in given):
        raise ConfigError(f"size is {size}; it must be a whole number of sites, at least 1, or several of them.")
    return [int(one) for one in dict.fromkeys(given)]


def _check(asked: Mapping[str, Predictor], n_genes: int, repeats: int, occupancy: float, bin_um: float) -> None:
    if n_genes < 1 or repeats < 1:
        raise ConfigError(f"n_genes is {n_genes} and repeats {repeats}; both must be at least 1.")
    if not 0 < occupancy <= 1:
        raise ConfigError(f"occupancy is {occupancy}; it must be above 0 and at most 1.")
    if not 0 <= bin_um < np.inf:
        raise ConfigError(f"bin_um is {bin_um}; it must be at least 0 (0: no bins).")
    if taken := [name for name in asked if name in BASELINES]:
        raise ConfigError(f"a predictor is called {taken[0]!r}, which is the name of a baseline; choose another.")


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
        raise InputError(f"{name} returned shape {out.shape}; it must be (hidden cells, genes), {expected}.")
    if not np.isfinite(out).all():
        bad = ~np.isfinite(out)
        raise InputError(
            f"{name} returned {int(bad.sum())} values that are not finite (first: hidden cell "
            f"{int(np.argwhere(bad)[0][0])}, gene {names[int(np.argwhere(bad)[0][1])]})."
        )
    return out


def _scores(tissue: Tissue, region: Region, answers: Mapping[str, Floats], number: int) -> list[dict[str, Any]]:
    scored = tissue.measured[region.hidden]
    true = region.dense(np.flatnonzero(region.hidden)[scored])
    out = []
    for name, answer in answers.items():
        found = regression(true, answer[scored])
        kept = {metric: found[metric] for metric in ("mse", "mae")}
        out += [row | {"system": name, "size": region.size} for row in tidy(kept, _split(region.size), number)]
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
        "size": region.size, "cell": rows, "x": tissue.coords[rows, 0], "y": tissue.coords[rows, 1], "hidden": hidden
    }  # fmt: skip
    columns |= {f"true:{name}": true[:, i] for i, name in enumerate(names)}
    order = np.cumsum(region.hidden) - 1  # row of a hidden cell among the answers
    for system, answer in answers.items():
        values = np.full(true.shape, np.nan, dtype=np.float32)
        values[hidden] = answer[order[rows[hidden]]][:, : len(genes)]
        columns |= {f"{system}:{name}": values[:, i] for i, name in enumerate(names)}
    return pd.DataFrame(columns, index=tissue.obs_names[rows])


def _notes(
    tissue: Tissue, corners: Mapping[int, NDArray[np.int64]], repeats: int, n_genes: int, fewest: int
) -> tuple[str, ...]:
    out = [
        f"{_split(side)}: there are only {len(drawn)} squares to draw, not {repeats}"
        for side, drawn in corners.items()
        if len(drawn) < repeats
    ]
    if fewest < n_genes:
        out.append(f"{fewest} genes are predicted, not {n_genes}: no more vary among the visible cells")
    if empty := int((~tissue.measured).sum()):
        out.append(f"{empty} cells without counts are neither scored nor learnt from")
    if tissue.unit != "um" and tissue.grid.layout == "bin":
        out.append(f"the coordinates' unit is {tissue.unit}, not micrometres: bin_um was taken in that unit")
    return tuple(out)
