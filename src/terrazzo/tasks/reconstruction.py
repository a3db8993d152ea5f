"""Reconstruction: squares of a slice are hidden, and predictors are scored on what was in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo.arrays import Bools, Floats, Ints
from terrazzo.errors import ConfigError, InputError
from terrazzo.progress import Progress
from terrazzo.slices.grids import Layout
from terrazzo.slices.parts import takes_all
from terrazzo.tasks.by_section import scored_by_section
from terrazzo.tasks.gene_lists import check_distinct, listed_genes, nearest_name
from terrazzo.tasks.hidden_regions import BASELINES, Choose, Region, Tissue, trivial
from terrazzo.tasks.metrics import regression
from terrazzo.tasks.results import TaskResult, tidy

__all__ = ["BASELINES", "Choose", "Predictor", "reconstruct"]

N_GENES = 512
REPEATS = 20
SIZE = 8
OCCUPANCY = 0.5  # least share of a region's sites that hold a cell
SHOWN = 16  # genes whose values are in the result, of the first region of each size
SCORES = ("mse", "mae")

Predictor = Callable[[AnnData, Bools, list[str]], Any]


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
    slice_key: str | None = None,
) -> TaskResult:
    """Hide squares of a slice and score how well their values are predicted (ST as images, table 7).

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
        Show a bar; None: on a terminal.
    slice_key
        Column of ``obs`` that tells sections apart; each is scored by itself, and scores and predictions have
        a column ``slice``. "none": all cells are one slice, whatever tells them apart.

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
        No counts; no lattice and no bin size; no square of this size; a gene that the slice lacks; a predictor that
        returns anything but finite numbers of the right shape.
    ConfigError
        A size, number or share that is impossible; a predictor that has a baseline's name.
    """
    if not takes_all(slice_key):
        options: dict[str, Any] = {
            "size": size,
            "n_genes": n_genes,
            "choose": choose,
            "genes": genes,
            "repeats": repeats,
            "occupancy": occupancy,
            "seed": seed,
            "layout": layout,
            "bin_um": bin_um,
            "layer": layer,
            "progress": progress,
        }
        return scored_by_section(
            lambda one, _: reconstruct(one[0], predictors, **options), data, None, str(slice_key)
        )
    systems = dict(predictors or {})
    sizes = _sizes(size)
    plan = _Plan(sizes, n_genes, choose, repeats, occupancy, seed)
    plan.check(systems, bin_um)
    tissue = Tissue.read(data, layer, layout, bin_um, slice_key)
    gene_numbers = None if genes is None else _numbers_of(tissue, genes)
    corners = {}
    for side in sizes:
        corners[side] = tissue.draw(side, repeats, occupancy, seed)
    scored = _score_all(tissue, systems, corners, plan, gene_numbers, progress)
    config = {
        "systems": [*BASELINES, *systems],
        "sizes": sizes,
        "n_genes": n_genes if gene_numbers is None else len(gene_numbers),
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
        "corners": {str(side): drawn.tolist() for side, drawn in corners.items()},
    }
    notes = _notes_on_corners(corners, repeats)
    if gene_numbers is None and scored.fewest_genes < n_genes:
        notes.append(
            f"{scored.fewest_genes} genes are predicted, not {n_genes}: "
            "no more vary among the visible cells"
        )
    notes += _notes_on_tissue(tissue)
    return TaskResult(
        "reconstruction",
        pd.DataFrame(scored.rows),
        pd.concat(scored.shown),
        config,
        tuple(notes),
    )


@dataclass(frozen=True)
class _Plan:
    """What is hidden; see :func:`reconstruct`."""

    sizes: list[int]
    n_genes: int
    choose: Choose
    repeats: int
    occupancy: float
    seed: int

    def check(self, systems: Mapping[str, Predictor], bin_um: float) -> None:
        """Refuse impossible settings."""
        choices = get_args(Choose)
        if self.choose not in choices:
            known = ", ".join(map(repr, choices))
            raise ConfigError(f"choose is {self.choose!r}; it must be one of {known}.")
        if self.n_genes < 1 or self.repeats < 1:
            raise ConfigError(
                f"n_genes is {self.n_genes} and repeats {self.repeats}; both must be at least 1."
            )
        if not 0 < self.occupancy <= 1:
            raise ConfigError(f"occupancy is {self.occupancy}; it must be above 0 and at most 1.")
        if not 0 <= bin_um < np.inf:
            raise ConfigError(f"bin_um is {bin_um}; it must be at least 0 (0: no bins).")
        for name in systems:
            if name in BASELINES:
                raise ConfigError(
                    f"a predictor is called {name!r}, which is the name of a baseline; "
                    "choose another."
                )


@dataclass(frozen=True)
class _Scored:
    """Scores of all squares, values of the first of each size, and the fewest genes that were predicted."""

    rows: list[dict[str, Any]]
    shown: list[pd.DataFrame]
    fewest_genes: int


def _score_all(
    tissue: Tissue,
    systems: Mapping[str, Predictor],
    corners: Mapping[int, Ints],
    plan: _Plan,
    gene_numbers: Ints | None,
    progress: bool | None,
) -> _Scored:
    """Hide each square, and score all predictions of it."""
    rows: list[dict[str, Any]] = []
    shown: list[pd.DataFrame] = []
    fewest_genes = plan.n_genes
    n_regions = sum(len(drawn) for drawn in corners.values())
    with Progress(progress).stage("reconstruction", n_regions, "regions") as advance:
        for number, region in _regions(tissue, corners, plan, gene_numbers):
            answers = trivial(tissue, region)
            for name, predictor in systems.items():
                answers[name] = _answer(name, predictor, tissue, region)
            rows += _scores(tissue, region, answers, number)
            if number == 0:
                shown.append(_shown_values(tissue, region, answers))
            fewest_genes = min(fewest_genes, len(region.genes))
            advance(1)
    return _Scored(rows, shown, fewest_genes)


def _regions(
    tissue: Tissue,
    corners: Mapping[int, Ints],
    plan: _Plan,
    gene_numbers: Ints | None,
) -> Iterator[tuple[int, Region]]:
    """Yield every hidden square, with its number among those of its size."""
    for side, drawn in corners.items():
        for number, corner in enumerate(drawn):
            yield number, tissue.hide(side, corner, plan.n_genes, gene_numbers, plan.choose)


def _sizes(size: int | Sequence[int]) -> list[int]:
    """Return the sides of the squares, checked, each once."""
    sides = list(size) if isinstance(size, Sequence) else [size]
    are_whole = all(isinstance(side, int | np.integer) for side in sides)
    if not sides or not are_whole or min(sides) < 1:
        raise ConfigError(
            f"size is {size}; it must be a whole number of sites, at least 1, or several of them."
        )
    return [int(side) for side in dict.fromkeys(sides)]


def _numbers_of(tissue: Tissue, genes: Sequence[str]) -> Ints:
    """Return the numbers of genes that a user named."""
    names = listed_genes(genes)
    for gene in names:
        if gene not in tissue.place:
            nearest = nearest_name(gene, tissue.place)
            raise InputError(f"gene {gene!r} is not in the slice; the nearest name is {nearest!r}.")
    check_distinct(names, tissue.place)
    numbers = [tissue.place[gene] for gene in names]
    return np.array(numbers, dtype=np.int64)


def _answer(name: str, predictor: Predictor, tissue: Tissue, region: Region) -> Floats:
    """Return what a predictor predicts; it gets copies, so that what it does to them reaches nobody else."""
    genes = tissue.names[region.genes].tolist()
    hidden = region.hidden
    returned = predictor(tissue.seen(hidden), hidden.copy(), list(genes))
    dense = returned.toarray() if hasattr(returned, "toarray") else returned
    try:
        values = np.asarray(dense, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} returned no numbers ({error}).") from error
    expected = (int(hidden.sum()), len(genes))
    if values.shape != expected:
        raise InputError(
            f"{name} returned shape {values.shape}; it must be (hidden cells, genes), {expected}."
        )
    not_finite = np.argwhere(~np.isfinite(values))
    n_bad = len(not_finite)
    if n_bad:
        cell, gene = not_finite[0]
        raise InputError(
            f"{name} returned {n_bad} values that are not finite "
            f"(first: hidden cell {cell}, gene {genes[gene]})."
        )
    return values


def _scores(
    tissue: Tissue,
    region: Region,
    answers: Mapping[str, Floats],
    number: int,
) -> list[dict[str, Any]]:
    """Return the rows of the scores of every system on one square."""
    scored = tissue.measured[region.hidden]
    cells = np.flatnonzero(region.hidden)[scored]
    true = region.dense(cells)
    rows = []
    for name, answer in answers.items():
        values = regression(true, answer[scored])
        scores = {metric: values[metric] for metric in SCORES}
        for row in tidy(scores, _split_name(region.size), number):
            row["system"] = name
            row["size"] = region.size
            rows.append(row)
    return rows


def _split_name(size: int) -> str:
    """Return how scores of squares of a size are labeled."""
    return f"{size} x {size}"


def _shown_values(tissue: Tissue, region: Region, answers: Mapping[str, Floats]) -> pd.DataFrame:
    """Return true and predicted values of a few genes, in the region and as far around it as it is wide."""
    cells = np.flatnonzero(tissue.around(region, region.size))
    genes = region.genes[:SHOWN]
    names = tissue.names[genes]
    hidden = region.hidden[cells]
    true = region.dense(cells)[:, :SHOWN]
    true[~tissue.measured[cells]] = np.nan
    columns: dict[str, Any] = {
        "size": region.size,
        "cell": cells,
        "x": tissue.coords[cells, 0],
        "y": tissue.coords[cells, 1],
        "hidden": hidden,
    }
    for i, name in enumerate(names):
        columns[f"true:{name}"] = true[:, i]
    answer_row = np.cumsum(region.hidden) - 1  # of a hidden cell
    rows = answer_row[cells[hidden]]
    for system, answer in answers.items():
        values = np.full(true.shape, np.nan, dtype=np.float32)
        values[hidden] = answer[rows, : len(genes)]
        for i, name in enumerate(names):
            columns[f"{system}:{name}"] = values[:, i]
    return pd.DataFrame(columns, index=tissue.obs_names[cells])


def _notes_on_corners(corners: Mapping[int, Ints], repeats: int) -> list[str]:
    """Return a note for every size of which there are fewer squares than repeats."""
    notes = []
    for side, drawn in corners.items():
        n_drawn = len(drawn)
        if n_drawn < repeats:
            name = _split_name(side)
            notes.append(f"{name}: there are only {n_drawn} squares to draw, not {repeats}")
    return notes


def _notes_on_tissue(tissue: Tissue) -> list[str]:
    """Return notes about empty cells and the unit of bins."""
    notes = []
    n_empty = int((~tissue.measured).sum())
    if n_empty:
        notes.append(f"{n_empty} cells without counts are neither scored nor learned from")
    if tissue.unit != "um" and tissue.grid.layout == "bin":
        notes.append(
            f"the coordinates' unit is {tissue.unit}, not micrometers: "
            "bin_um was taken in that unit"
        )
    return notes
