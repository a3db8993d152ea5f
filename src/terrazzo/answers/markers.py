"""Marker genes: each region against the others and against those that it touches.

Regions are found with the same genes that mark them, so a test on the same counts always finds something. Here every
count is split at random (count splitting): the cells' regions are those of one half, and the other half is tested.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.spatial import cKDTree

from terrazzo.arrays import Floats, Ints
from terrazzo.expression import gene_columns, log_counts
from terrazzo.slices import Slice

__all__ = ["COLUMNS", "Tested", "marker_genes", "touching"]

COLUMNS = (
    "region",
    "against",
    "gene",
    "rank",
    "auc",
    "log2_fold_change",
    "share_in",
    "share_out",
    "p_adjusted",
    "n",
)

MAX_CELLS = 3000  # of a region in one test: more tell nothing new

MAX_RANKED = 1000  # of a region in each of several slices, for the area under the curve

MIN_CELLS = 5

MIN_SHARE = 0.1  # of a region's cells that must show a gene

MAX_P = 0.05

N_TOUCHING = 6  # nearest cells that make two regions touch

LEAST_BORDER = 0.02  # share of a region's neighbors that are of another one, for the two to touch

PSEUDOCOUNT = 1e-9

PSEUDOBULK_PRIOR = 10.0  # counts per million that are added before the logarithm

MIN_SAMPLES = 3  # slices or donors from which on a test over them is made


@dataclass(frozen=True)
class Tested:
    """One slice with what is tested.

    Attributes
    ----------
    tissue
        Counts that were not used to find the regions (or all of them, where that could not be).
    labels
        Region of every cell.
    sample
        Slice or donor that it counts for.
    """

    tissue: Slice
    labels: Ints
    sample: str


def touching(slices: Sequence[Slice], labels: Sequence[Ints], k: int) -> list[Ints]:
    """Return for each region the others that it touches: at least 2 % of its cells' six nearest are theirs."""
    borders = np.zeros((k, k))
    for tissue, own in zip(slices, labels, strict=True):
        n_nearest = min(N_TOUCHING + 1, tissue.n_cells)
        if n_nearest < 2:
            continue
        _, index = cKDTree(tissue.coords).query(tissue.coords, k=n_nearest)
        rows = np.repeat(own, n_nearest - 1)
        np.add.at(borders, (rows, own[index[:, 1:]].ravel()), 1)
    share = borders / np.maximum(borders.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(share, 0)
    return [np.flatnonzero(row >= LEAST_BORDER) for row in share]


def marker_genes(
    tested: Sequence[Tested], k: int, n_genes: int | None = 25, *, only_markers: bool = True
) -> pd.DataFrame:
    """Rank the genes of each region by effect size among those that differ.

    The effect is the area under the ROC curve, so that a gene that most cells show goes before one that few do.
    With one sample: Wilcoxon's test of cells (scanpy), which takes cells for replicates although neighbors are alike:
    the p-values are too small. With several: counts summed by sample and region, and a paired t-test over the samples
    from three on, with two there is no test; the area is the mean of the slices' own. A region that is in one sample
    only is tested as with one.

    Parameters
    ----------
    tested
        Slices.
    k
        Number of regions.
    n_genes
        Genes kept for each region and comparison; None: all.
    only_markers
        Leave out genes that are not higher in the region, shown by too few of its cells, or within chance.

    Returns
    -------
    Columns ``region`` (0 .. k-1), ``against`` (``"rest"`` or ``"touching"``), ``gene``, ``rank`` (1 is best),
    ``auc`` (how often a cell of the region shows more of the gene than one outside; over samples NaN if it does not),
    ``log2_fold_change``, ``share_in`` and ``share_out`` (of the cells that show the gene), ``p_adjusted``
    (Benjamini-Hochberg; NaN without a test), ``n`` (cells, or samples where there are several).
    """
    names = _common_genes([one.tissue for one in tested])
    neighbors = touching([one.tissue for one in tested], [one.labels for one in tested], k)
    samples = sorted({one.sample for one in tested})
    tables = []
    for region in range(k):
        others = np.setdiff1d(np.arange(k), [region])
        comparisons = {"rest": others}
        if 0 < len(neighbors[region]) < len(others):
            comparisons["touching"] = neighbors[region]
        for against, reference in comparisons.items():
            if len(samples) > 1:
                table = _by_sample(tested, names, region, reference)
            else:
                table = _by_cell(tested, names, region, reference)
            if table is None:
                continue
            if only_markers:
                table = table[_is_marker(table)]
            ranked = table.sort_values("auc", ascending=False, kind="stable")
            best = ranked.head(len(ranked) if n_genes is None else n_genes).copy()
            best.insert(0, "against", against)
            best.insert(0, "region", region)
            best["rank"] = np.arange(1, len(best) + 1)
            tables.append(best)
    if not tables:
        return pd.DataFrame({name: [] for name in COLUMNS})
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]


def _common_genes(slices: Sequence[Slice]) -> list[str]:
    tables = [gene_columns(tissue) for tissue in slices]
    return [gene for gene in tables[0] if all(gene in table for table in tables[1:])]


def _is_marker(table: pd.DataFrame) -> pd.Series:
    """Return which genes are higher in the region, in enough of its cells and beyond chance."""
    is_higher = table["log2_fold_change"] > 0
    is_shown = table["share_in"] >= MIN_SHARE
    is_sure = ~(table["p_adjusted"] > MAX_P)  # NaN: no test was made
    return is_higher & is_shown & is_sure


def _by_cell(
    tested: Sequence[Tested],
    names: Sequence[str],
    region: int,
    reference: Ints,
    most: int = MAX_CELLS,
) -> pd.DataFrame | None:
    """Test the cells of one sample, at most so many of each slice in the region and outside."""
    values = []
    inside = []
    rng = np.random.default_rng(region)
    for one in tested:
        rows_in = _some(np.flatnonzero(one.labels == region), rng, most)
        rows_out = _some(np.flatnonzero(np.isin(one.labels, reference)), rng, most)
        rows = np.concatenate([rows_in, rows_out])
        values.append(log_counts(one.tissue, names, rows))
        inside.append(np.arange(len(rows)) < len(rows_in))
    is_in = np.concatenate(inside)
    if is_in.sum() < MIN_CELLS or (~is_in).sum() < MIN_CELLS:
        return None
    stacked = sparse.vstack(values, format="csr")
    return _wilcoxon(stacked, is_in, names)


def _some(rows: Ints, rng: np.random.Generator, most: int) -> Ints:
    if len(rows) <= most:
        return rows
    return np.sort(rng.choice(rows, most, replace=False))


def _wilcoxon(values: sparse.csr_matrix, is_in: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Run scanpy's Wilcoxon test of two groups of cells."""
    import scanpy as sc

    group = pd.Categorical(np.where(is_in, "in", "out"))
    adata = AnnData(values, obs=pd.DataFrame({"group": group}, index=_numbered(len(is_in))))
    adata.var_names = list(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of genes that no cell shows
        sc.tl.rank_genes_groups(adata, "group", groups=["in"], reference="out", method="wilcoxon")
        result = sc.get.rank_genes_groups_df(adata, "in").set_index("names").loc[list(names)]
    mean_in = _mean_of_counts(values[is_in])
    mean_out = _mean_of_counts(values[~is_in])
    fold = np.log2((mean_in + PSEUDOCOUNT) / (mean_out + PSEUDOCOUNT))
    return pd.DataFrame(
        {
            "gene": list(names),
            "auc": _auc(result["scores"].to_numpy(), int(is_in.sum()), int((~is_in).sum())),
            "log2_fold_change": fold,
            "share_in": _share_shown(values[is_in]),
            "share_out": _share_shown(values[~is_in]),
            "p_adjusted": result["pvals_adj"].to_numpy(),
            "n": int(is_in.sum()),
        }
    )


def _auc(scores: Floats, n_in: int, n_out: int) -> Floats:
    """Return the area under the ROC curve that belongs to Wilcoxon's normal scores."""
    spread = np.sqrt((n_in + n_out + 1) / (12 * n_in * n_out))
    return 0.5 + scores * spread


def _numbered(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def _mean_of_counts(values: sparse.csr_matrix) -> Floats:
    """Return the mean of scaled counts, from their logarithms, with a little of the mean of all genes added."""
    scaled = values.copy()
    scaled.data = np.expm1(scaled.data.astype(np.float64))
    mean = np.asarray(scaled.mean(axis=0)).ravel()
    return mean + 0.05 * float(mean.mean())


def _share_shown(values: sparse.csr_matrix) -> Floats:
    return np.asarray((values > 0).mean(axis=0)).ravel()


def _by_sample(
    tested: Sequence[Tested], names: Sequence[str], region: int, reference: Ints
) -> pd.DataFrame | None:
    """Compare sums of counts within each sample, and test the differences over the samples.

    A region that is in one sample alone has none to be compared over: its cells are tested.
    """
    usable = [one for one in tested if _has_both(one, region, reference)]
    samples = {one.sample for one in usable}
    if len(samples) < 2:
        return _by_cell(usable, names, region, reference) if usable else None
    sums_in: dict[str, Floats] = {}
    sums_out: dict[str, Floats] = {}
    shown_in = np.zeros(len(names))
    shown_out = np.zeros(len(names))
    n_in = 0
    n_out = 0
    for one in usable:
        columns = gene_columns(one.tissue)
        counts = one.tissue.counts[:, [columns[name] for name in names]]
        inside = counts[one.labels == region]
        outside = counts[np.isin(one.labels, reference)]
        n_in += inside.shape[0]
        n_out += outside.shape[0]
        shown_in += np.asarray((inside > 0).sum(axis=0)).ravel()
        shown_out += np.asarray((outside > 0).sum(axis=0)).ravel()
        if one.sample not in sums_in:
            sums_in[one.sample] = np.zeros(len(names))
            sums_out[one.sample] = np.zeros(len(names))
        sums_in[one.sample] += _sum_of_rows(inside)
        sums_out[one.sample] += _sum_of_rows(outside)
    differences = []
    for sample, inside_sum in sums_in.items():
        level_in = _log_per_million(inside_sum)
        level_out = _log_per_million(sums_out[sample])
        differences.append(level_in - level_out)
    changes = np.stack(differences)
    change = changes.mean(axis=0)
    share_in = shown_in / max(n_in, 1)
    is_candidate = (change > 0) & (share_in >= MIN_SHARE)
    auc = np.full(len(names), np.nan)
    if is_candidate.any():
        candidates = np.array(names)[is_candidate]
        auc[is_candidate] = _mean_auc(usable, list(candidates), region, reference)
    return pd.DataFrame(
        {
            "gene": list(names),
            "auc": auc,
            "log2_fold_change": change,
            "share_in": share_in,
            "share_out": shown_out / max(n_out, 1),
            "p_adjusted": _p_over_samples(changes),
            "n": len(changes),
        }
    )


def _has_both(one: Tested, region: int, reference: Ints) -> bool:
    """Return True where a slice has enough cells in the region and outside."""
    n_in = int((one.labels == region).sum())
    n_out = int(np.isin(one.labels, reference).sum())
    return min(n_in, n_out) >= MIN_CELLS


def _p_over_samples(changes: Floats) -> Floats:
    """Return adjusted p-values of a t-test over samples; NaN for fewer than three."""
    from scipy import stats

    if len(changes) < MIN_SAMPLES:
        return np.full(changes.shape[1], np.nan)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p_values = stats.ttest_1samp(changes, 0.0).pvalue
    adjusted: Floats = stats.false_discovery_control(np.nan_to_num(p_values, nan=1.0))
    return adjusted


def _mean_auc(
    tested: Sequence[Tested], names: Sequence[str], region: int, reference: Ints
) -> Floats:
    """Return the area under the ROC curve of each gene within a slice, on average over the slices."""
    areas = []
    for one in tested:
        table = _by_cell([one], names, region, reference, MAX_RANKED)
        if table is not None:
            areas.append(table["auc"].to_numpy())
    return np.mean(areas, axis=0)


def _sum_of_rows(counts: sparse.csr_matrix) -> Floats:
    return np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()


def _log_per_million(sums: Floats) -> Floats:
    per_million = sums / max(float(sums.sum()), 1.0) * 1e6
    return np.log2(per_million + PSEUDOBULK_PRIOR)
