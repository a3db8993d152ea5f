"""Views of a slice: some of its genes, some of its counts, some of its cells, and the numbers that the model reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from terrazzo.arrays import Bools, Floats, Ints, Vectors
from terrazzo.expression import log_values
from terrazzo.slices import Slice
from terrazzo.splitting import thin_counts
from terrazzo.systems.completion.panels import Panel
from terrazzo.systems.completion.recipe import ViewSettings

__all__ = [
    "N_DEPTH",
    "Draw",
    "Scaled",
    "View",
    "degraded",
    "draw_view",
    "drawn",
    "drawn_slice",
    "everything",
    "on_scale",
    "whole",
]

N_DEPTH = 3  # numbers on the depth of a cell

LIMIT = 10.0  # standard deviations at which a value is clipped

FLAT = 1e-6


@dataclass(frozen=True)
class View:
    """What the model reads of a slice.

    Attributes
    ----------
    values
        float32 ``(n_cells, m)``: log counts, each gene of mean 0 and sd 1 over the slice.
    genes
        Their numbers among the model's genes ``(m,)``.
    depth
        float32 ``(n_cells, 3)``: log10 of the median total less 3, log10 of the share of genes, log10 of the cell's
        total over the median.
    inside
        Cells that the loss counts.
    """

    values: Vectors
    genes: Ints
    depth: Vectors
    inside: Bools


def whole(panel: Panel, n_genes: int) -> View:
    """Return the view of a slice as it is."""
    everywhere = np.ones(len(panel.totals), dtype=bool)
    return _view(panel, n_genes, everywhere)


@dataclass(frozen=True)
class Draw:
    """What a view keeps, drawn once: the same counts for the network and for a base model.

    Attributes
    ----------
    kept
        Columns of the panel that are kept, ascending.
    share_genes, share_counts
        Shares that are kept; that of the genes is of the panel.
    seed
        Of the thinned counts.
    """

    kept: Ints
    share_genes: float
    share_counts: float
    seed: tuple[int, ...]


def draw_view(
    panel: Panel,
    settings: ViewSettings,
    rng: np.random.Generator,
    other_panel: Ints | None = None,
) -> Draw:
    """Draw what a view keeps.

    Parameters
    ----------
    panel
        The slice.
    settings
        How much is taken away.
    rng
        Random generator.
    other_panel
        Genes that are kept, by number; None: random ones.
    """
    share_genes, share_counts = _shares(settings, rng)
    n_genes = len(panel.genes)
    if other_panel is None:
        n_kept = max(2, round(share_genes * n_genes))
        n_kept = min(n_kept, n_genes)
        kept = np.sort(rng.choice(n_genes, n_kept, replace=False))
    else:
        kept = np.flatnonzero(np.isin(panel.genes, other_panel))
    share_genes = len(kept) / max(n_genes, 1)
    seed = tuple(rng.integers(2**32, size=4).tolist())
    return Draw(kept, share_genes, share_counts, seed)


def everything(panel: Panel) -> Draw:
    """Return the draw that keeps all genes and counts."""
    return Draw(np.arange(len(panel.genes)), 1.0, 1.0, (0,))


def drawn(panel: Panel, draw: Draw) -> Panel:
    """Return the genes and the counts of a slice that a draw keeps."""
    counts = panel.counts[:, draw.kept]
    other = panel.totals - np.asarray(panel.counts.sum(axis=1)).ravel()
    other = np.maximum(other, 0) * draw.share_genes
    if draw.share_counts < 1:
        rng = np.random.default_rng(draw.seed)
        counts, _ = thin_counts(counts, draw.share_counts, rng)
        other = rng.binomial(np.round(other).astype(np.int64), draw.share_counts)
    totals = other + np.asarray(counts.sum(axis=1)).ravel()
    return Panel(counts, panel.genes[draw.kept], totals, panel.coords)


def drawn_slice(tissue: Slice, columns: Ints, others: Ints, panel: Panel, draw: Draw) -> Slice:
    """Return a slice as a base model sees the same view.

    Parameters
    ----------
    tissue
        The slice, or the part of it that ``panel`` is of.
    columns
        One column of the slice for each gene of the panel.
    others
        Columns of genes that are not in the panel.
    panel, draw
        As for :func:`drawn`.

    Returns
    -------
    The kept genes of the panel with the same counts, and as large a share of the other genes, thinned alike.
    """
    seen = drawn(panel, draw)
    rng = np.random.default_rng([*draw.seed, 1])
    n_kept = round(draw.share_genes * len(others))
    kept_others = np.sort(rng.choice(others, n_kept, replace=False))
    rest = tissue.counts[:, kept_others]
    if draw.share_counts < 1:
        rest, _ = thin_counts(rest, draw.share_counts, rng)
    kept = np.concatenate([columns[draw.kept], kept_others])
    counts = sparse.hstack([seen.counts, rest], format="csr")
    counts.sort_indices()
    return replace(
        tissue,
        counts=counts,
        gene_ids=tissue.gene_ids[kept],
        gene_symbols=tissue.gene_symbols[kept],
    )


def degraded(seen: Panel, n_genes: int, settings: ViewSettings, rng: np.random.Generator) -> View:
    """Return the view of kept counts: on the scale of a part of the slice, with noise in the scale of each gene.

    Parameters
    ----------
    seen
        From :func:`drawn`.
    n_genes
        Genes of the model.
    settings
        How much is taken away.
    rng
        Random generator.
    """
    inside = np.ones(len(seen.totals), dtype=bool)
    if rng.random() < settings.crop:
        inside = _half_plane(seen.coords, rng)
    view = _view(seen, n_genes, inside)
    if not settings.scale_noise:
        return view
    scale = np.exp(rng.normal(0, settings.scale_noise, len(view.genes)))
    noisy = view.values * scale.astype(np.float32)
    return View(noisy, view.genes, view.depth, view.inside)


def _shares(settings: ViewSettings, rng: np.random.Generator) -> tuple[float, float]:
    """Draw the shares of genes and of counts."""
    while True:
        share_genes = 1.0
        share_counts = 1.0
        if rng.random() >= settings.all_genes:
            share_genes = float(np.exp(rng.uniform(np.log(settings.genes_low), 0)))
        if rng.random() >= settings.all_counts:
            share_counts = float(np.exp(rng.uniform(np.log(settings.counts_low), 0)))
        if share_genes * share_counts > settings.least:
            return share_genes, share_counts


def _half_plane(coords: Floats, rng: np.random.Generator) -> Bools:
    """Return 35 to 100 % of the cells, on one side of a straight line."""
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    along = coords @ direction
    share = rng.uniform(0.35, 1)
    return along <= np.quantile(along, share)


def _view(panel: Panel, n_genes: int, inside: Bools) -> View:
    """Standardize log counts by the mean and sd of some cells."""
    scaled = on_scale(panel, n_genes, inside)
    return View(scaled.rows(slice(None)), scaled.genes, scaled.depth, inside)


@dataclass(frozen=True)
class Scaled:
    """Log counts of a slice with the mean and sd of each gene over some of its cells; made dense some rows at a time.

    Attributes
    ----------
    log_counts
        CSR float32 ``(n_cells, m)``, of genes that vary.
    mean, sd
        float64 ``(m,)``.
    genes, depth
        As in :class:`View`.
    """

    log_counts: sparse.csr_matrix
    mean: Floats
    sd: Floats
    genes: Ints
    depth: Vectors

    def rows(self, rows: slice | Ints) -> Vectors:
        """Return the standardized values of some cells, float32 ``(rows, m)``."""
        values = self.log_counts[rows].toarray()
        values -= self.mean.astype(np.float32)
        values /= self.sd.astype(np.float32)
        np.clip(values, -LIMIT, LIMIT, out=values)
        return values


def on_scale(panel: Panel, n_genes: int, inside: Bools | None = None) -> Scaled:
    """Scale log counts of a slice.

    Parameters
    ----------
    panel
        The slice.
    n_genes
        Genes of the model.
    inside
        Cells whose mean and sd are taken; None: all.
    """
    totals = np.maximum(panel.totals, 1)
    median = float(np.median(totals))
    logs = log_values(panel.counts, median, totals)
    measured = logs if inside is None else logs[np.flatnonzero(inside)]
    n_measured = max(measured.shape[0], 1)
    squares = measured.multiply(measured)
    mean = np.asarray(measured.sum(axis=0, dtype=np.float64)).ravel() / n_measured
    mean_square = np.asarray(squares.sum(axis=0, dtype=np.float64)).ravel() / n_measured
    sd = np.sqrt(np.maximum(mean_square - mean**2, 0))
    varies = np.flatnonzero(sd > FLAT + 1e-5 * mean)
    share = max(len(varies), 1) / n_genes
    depth = np.empty((len(totals), N_DEPTH), dtype=np.float32)
    depth[:, 0] = np.log10(median) - 3
    depth[:, 1] = np.log10(share)
    depth[:, 2] = np.log10(totals / median)
    return Scaled(logs[:, varies], mean[varies], sd[varies], panel.genes[varies], depth)
