"""Imputation: genes are hidden before anything is tokenized or normalized, and predicted from the others."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from terrazzo import keys
from terrazzo.arrays import Floats, Ints
from terrazzo.errors import ConfigError, InputError
from terrazzo.genes.names import merge_plan, read_gene_names
from terrazzo.slices.counts import CountsFound, find_counts, warn_found
from terrazzo.slices.parts import takes_all
from terrazzo.tasks import display, targets
from terrazzo.tasks.by_section import slices_of
from terrazzo.tasks.experiments import Plan, across, within
from terrazzo.tasks.gene_lists import check_distinct, listed_genes, nearest_name
from terrazzo.tasks.heads import HeadConfig
from terrazzo.tasks.results import TaskResult
from terrazzo.tasks.targets import Target

__all__ = ["Hidden", "hide_genes", "impute"]

N_HIDDEN = 50  # SToFM, section 4.6


@dataclass(frozen=True, eq=False)
class Hidden:
    """A slice without some of its genes, and what they were.

    Attributes
    ----------
    visible
        To be embedded: ``X`` holds the counts of the other genes. Kept: ``obs``, coordinates, and ``uns`` but what
        names a hidden gene. Left out, for hidden genes may be in them: ``raw``, layers, other ``obsm``, ``varm``,
        ``obsp``, and columns of ``obs`` that are named like a hidden gene.
    targets
        float32 ``(n_cells, hidden genes)``: ``log1p(count * median total / total)``, totals over the visible genes
        only, so that the scale is known where the hidden genes are not; NaN for a cell without visible counts.
    """

    visible: AnnData
    targets: pd.DataFrame

    def __repr__(self) -> str:
        """Return how many genes are hidden, and their names."""
        first = f"Hidden({self._in_words()})"
        return f"{first}\n  {display.line(self.genes)}"

    def _repr_html_(self) -> str:
        """Return how many genes are hidden, and their names, for notebooks."""
        names = display.fold("hidden genes", display.bullets(self.genes))
        return display.card(f"Hidden: {self._in_words()}", names)

    def _in_words(self) -> str:
        n_visible = self.visible.n_vars
        n_hidden = len(self.genes)
        return f"{n_hidden} genes of {self.visible.n_obs} cells, {n_visible} genes visible"

    @property
    def genes(self) -> tuple[str, ...]:
        """Names of the hidden genes."""
        return tuple(self.targets.columns)


@overload  # the list first: to a type checker without anndata's types an AnnData is anything
def hide_genes(
    data: Sequence[AnnData],
    n: int = ...,
    *,
    genes: Sequence[str] | None = ...,
    seed: int = ...,
    layer: str | None = ...,
    slice_key: str | None = ...,
) -> list[Hidden]: ...
@overload
def hide_genes(
    data: AnnData,
    n: int = ...,
    *,
    genes: Sequence[str] | None = ...,
    seed: int = ...,
    layer: str | None = ...,
    slice_key: str | None = ...,
) -> Hidden: ...
def hide_genes(
    data: AnnData | Sequence[AnnData],
    n: int = N_HIDDEN,
    *,
    genes: Sequence[str] | None = None,
    seed: int = 0,
    layer: str | None = None,
    slice_key: str | None = None,
) -> Hidden | list[Hidden]:
    """Take genes out of a panel; embed what is left, then :func:`impute` (SToFM, section 4.6).

    Parameters
    ----------
    data
        One slice with counts, or several, which hide the same genes. Never modified.
    n
        How many are drawn of the genes that every slice has and counts at least once.
    genes
        These instead, as in ``var_names``.
    seed
        Of the draw.
    layer
        Layer of the counts; see :meth:`terrazzo.Slice.from_anndata`.
    slice_key
        Column of ``obs`` that tells the sections of an AnnData apart, each of which is a slice; "none": all its cells
        are one, whatever tells them apart.

    Returns
    -------
    One :class:`Hidden`, or one for each slice or section. All columns of a gene (an Ensembl id twice) are hidden.

    Raises
    ------
    InputError
        No counts, a gene that is not in the panel (the nearest is named), or not as many genes.
    ConfigError
        ``n`` is below 1, or no gene or one gene twice is named.
    """
    slices = slices_of(data, slice_key)
    panels = []
    for i, adata in enumerate(slices):
        with targets.at(i, len(slices)):
            counts = find_counts(adata, layer, False)
            warn_found(counts, stacklevel=4)
            panels.append(_Panel(counts))
    chosen = _draw(panels, n, seed) if genes is None else _check_genes(panels, genes)
    hidden = []
    for adata, panel in zip(slices, panels, strict=True):
        hidden.append(_hide(adata, panel, chosen))
    is_one = isinstance(data, AnnData) and takes_all(slice_key)
    return hidden[0] if is_one else hidden


def impute(
    data: Hidden | Sequence[Hidden],
    *,
    use_rep: str,
    head: str | HeadConfig = "mlp3",
    splits: Sequence[str] = ("random", "blocked"),
    runs: int = 3,
    test: Hidden | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> TaskResult:
    """Score how well an embedding of the visible genes predicts the hidden ones (SToFM, section 4.6 and table 4).

    Parameters
    ----------
    data
        One slice of :func:`hide_genes`, its ``visible`` embedded; with ``test``, one or several that are learned from.
    use_rep
        ``obsm`` key in every ``visible``, or ``"key:block"``.
    head, splits, runs, seed, progress
        As in :func:`terrazzo.tasks.probe`.
    test
        Another slice that hides the same genes, and is scored.

    Returns
    -------
    Metrics of :func:`terrazzo.tasks.metrics.regression`, over all genes and for each (``part``), and ``rmse_mean`` and
    ``mae_mean`` of the trivial answer, each gene's mean over the training cells. Predictions: a row for each cell of
    the scored slice, columns ``"true:GENE"`` and ``"random:GENE"``, ...

    Raises
    ------
    InputError
        Slices that hide different genes, or an embedding that cannot be used.
    ConfigError
        No such head or split; several slices without ``test``.
    """
    plan = Plan("imputation", head, tuple(splits), runs, seed, progress)
    training = [data] if isinstance(data, Hidden) else list(data)
    every = training if test is None else [*training, test]
    _check_hidden(training, every)
    target = _target(training)
    settings = {"use_rep": use_rep, "n_hidden": len(every[0].genes)}
    visible = [hidden.visible for hidden in training]
    if test is None:
        return within(plan, visible, use_rep, target, settings)
    truth = _target([test])
    return across(plan, visible, test.visible, use_rep, target, truth, settings)


def _check_hidden(training: Sequence[Hidden], every: Sequence[Hidden]) -> None:
    """Refuse what does not come from :func:`hide_genes`, and slices that hide different genes."""
    if not training or not all(isinstance(hidden, Hidden) for hidden in every):
        raise InputError("impute takes what hide_genes returned, one or a list.")
    genes = set(every[0].genes)
    for i, hidden in enumerate(every):
        differing = genes ^ set(hidden.genes)
        if differing:
            shown = ", ".join(sorted(differing)[:5])
            raise InputError(
                f"slice {i + 1} of {len(every)} hides other genes than the first ({shown}); "
                "hide them alike."
            )


def _target(hidden: Sequence[Hidden]) -> Target:
    """Return the hidden genes of slices as what is to be learned."""
    visible = [one.visible for one in hidden]
    tables = [one.targets for one in hidden]
    return targets.read_values(visible, tables, "hidden genes")


class _Panel:
    """The genes of a slice: which columns are one gene, and which genes have counts."""

    def __init__(self, counts: CountsFound) -> None:
        self.matrix = counts.matrix
        self.var = counts.var
        self.gene_names = read_gene_names(counts.var)
        self.gene_of, first = merge_plan(self.gene_names)  # number of the gene in each column
        columns = counts.var.index.astype(str)
        self.names = [str(columns[i]) for i in first]  # each gene by the name of its first column
        self.place: dict[str, int] = {}
        for name, number in zip(columns, self.gene_of, strict=True):
            self.place.setdefault(name, int(number))
        totals = counts.matrix.sum(axis=0)
        totals = np.asarray(totals).ravel()
        gene_totals = np.bincount(self.gene_of, weights=totals, minlength=len(first))
        self.counted = gene_totals > 0

    def has_counts(self, name: str) -> bool:
        """Return whether a gene is in the panel and is counted at least once."""
        return name in self.place and bool(self.counted[self.place[name]])

    def columns(self, gene: str) -> Ints:
        """Return every column that is this gene."""
        return np.flatnonzero(self.gene_of == self.place[gene])

    def texts(self, columns: Ints) -> set[str]:
        """Return all names of columns: of the index, Ensembl ids and symbols."""
        texts = set()
        for names in (
            self.var.index.astype(str),
            self.gene_names.gene_ids,
            self.gene_names.gene_symbols,
        ):
            texts |= {str(names[i]) for i in columns}
        return texts - {""}


def _draw(panels: Sequence[_Panel], n: int, seed: int) -> list[str]:
    """Draw genes that every slice has and counts."""
    if n < 1:
        raise ConfigError(f"n is {n}; at least one gene must be hidden.")
    candidates = []
    for name in panels[0].names:
        if all(panel.has_counts(name) for panel in panels):
            candidates.append(name)
    n_candidates = len(candidates)
    if n_candidates <= n:
        n_slices = len(panels)
        where = "the panel has" if n_slices == 1 else f"the {n_slices} slices share"
        raise InputError(
            f"{n} genes cannot be hidden: {where} {n_candidates} genes with counts, "
            "and some must be left. Hide fewer: n= (--n-genes), or name them: genes= (--gene)."
        )
    rng = np.random.default_rng([seed, 106])
    drawn = rng.choice(n_candidates, n, replace=False)
    return [candidates[i] for i in np.sort(drawn)]


def _check_genes(panels: Sequence[_Panel], genes: Sequence[str]) -> list[str]:
    """Return genes that a user named; refuse those that a panel lacks, and all genes of a panel."""
    names = listed_genes(genes)
    for i, panel in enumerate(panels):
        with targets.at(i, len(panels)):
            for gene in names:
                if gene not in panel.place:
                    nearest = nearest_name(gene, panel.place)
                    raise InputError(
                        f"gene {gene!r} is not in the panel; the nearest name is {nearest!r}."
                    )
            check_distinct(names, panel.place)
            if len(names) >= len(panel.names):
                raise InputError(
                    f"all {len(panel.names)} genes of the panel would be hidden; some must be left."
                )
    return names


def _hide(adata: AnnData, panel: _Panel, genes: Sequence[str]) -> Hidden:
    """Take genes out of a slice."""
    groups = [panel.columns(gene) for gene in genes]
    hidden = np.concatenate(groups)
    all_columns = np.arange(panel.matrix.shape[1])
    visible = np.setdiff1d(all_columns, hidden)
    counts = sp.csr_matrix(panel.matrix[:, visible])
    var = _drop_unused_categories(panel.var.iloc[visible])
    hidden_names = panel.texts(hidden)
    obs_columns = [name for name in adata.obs if str(name) not in hidden_names]
    shown = AnnData(
        counts,
        obs=adata.obs[obs_columns].copy(),
        var=var,
        uns=_visible_uns(adata, hidden_names),
    )
    if keys.SPATIAL in adata.uns:
        shown.uns[keys.SPATIAL] = adata.uns[keys.SPATIAL]  # images: not copied
    if keys.SPATIAL in adata.obsm:
        shown.obsm[keys.SPATIAL] = np.array(adata.obsm[keys.SPATIAL])
    scale = _scale(counts)
    values = np.empty((adata.n_obs, len(genes)), dtype=np.float32)
    for i, columns in enumerate(groups):
        gene_counts = panel.matrix[:, columns].sum(axis=1)
        gene_counts = np.asarray(gene_counts).ravel()
        values[:, i] = np.log1p(gene_counts * scale)
    table = pd.DataFrame(values, index=adata.obs_names, columns=list(genes))
    return Hidden(shown, table)


def _scale(counts: sp.csr_matrix) -> Floats:
    """Return the median total over the total of each cell; NaN for a cell without counts."""
    total = counts.sum(axis=1, dtype=np.float64)
    total = np.asarray(total).ravel()
    measured = total > 0
    scale = np.full(len(total), np.nan)
    if measured.any():
        median = np.median(total[measured])
        scale[measured] = median / total[measured]
    return scale


def _visible_uns(adata: AnnData, hidden_names: set[str]) -> dict[str, Any]:
    """Return copies of the entries of ``uns`` that name no hidden gene, without images and terrazzo's records."""
    uns = {}
    for key, value in adata.uns.items():
        if key in (keys.UNS, keys.SPATIAL):
            continue
        if key not in hidden_names and hidden_names.isdisjoint(_texts(value)):
            uns[key] = copy.deepcopy(value)
    return uns


def _drop_unused_categories(var: pd.DataFrame) -> pd.DataFrame:
    """Drop categories that no visible gene is in: they may name hidden ones."""
    out = var.copy()
    for name in out.columns:
        column = out[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            out[name] = column.cat.remove_unused_categories()
    return out


def _texts(value: Any) -> Iterator[str]:
    """Yield every text that is anywhere in an entry of ``uns``."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, pd.DataFrame):
        yield from map(str, value.index)
        yield from map(str, value.columns)
        for name in value:
            column = value[name]
            if column.dtype.kind not in "biufc":
                yield from map(str, column)
    elif isinstance(value, pd.Series):
        yield from map(str, value)
        yield from map(str, value.index)
    elif isinstance(value, pd.Index):
        yield from map(str, value)
    elif isinstance(value, np.ndarray):
        yield from _texts_of_array(value)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _texts(item)


def _texts_of_array(value: np.ndarray) -> Iterator[str]:
    """Yield the texts of an array; one with named fields is scanpy's table of marker genes."""
    if value.dtype.names is not None:
        for name in value.dtype.names:
            yield name
            yield from _texts_of_array(value[name])
    elif value.dtype.kind in "OUS":
        yield from map(str, value.ravel())
