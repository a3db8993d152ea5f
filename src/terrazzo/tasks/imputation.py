"""Imputation: genes are hidden before anything is tokenized or normalized, and predicted from what is left."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import keys
from terrazzo.errors import ConfigError, InputError
from terrazzo.genes.names import merge_plan, read_gene_names
from terrazzo.slices.counts import CountsFound, find_counts
from terrazzo.tasks import targets
from terrazzo.tasks.experiments import Plan, across, within
from terrazzo.tasks.readouts import HeadConfig
from terrazzo.tasks.results import TaskResult
from terrazzo.tasks.targets import Target

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
) -> list[Hidden]: ...
@overload
def hide_genes(
    data: AnnData,
    n: int = ...,
    *,
    genes: Sequence[str] | None = ...,
    seed: int = ...,
    layer: str | None = ...,
) -> Hidden: ...
def hide_genes(
    data: AnnData | Sequence[AnnData],
    n: int = N_HIDDEN,
    *,
    genes: Sequence[str] | None = None,
    seed: int = 0,
    layer: str | None = None,
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

    Returns
    -------
    One :class:`Hidden`, or one for each slice. All columns that are the same gene (an Ensembl id twice) are hidden.

    Raises
    ------
    InputError
        No counts, a gene that is not in the panel (the nearest is named), or not as many genes.
    ConfigError
        ``n`` is below 1, or no gene or one gene twice is named.
    """
    slices = targets.as_list(data)
    panels = []
    for i, one in enumerate(slices):
        with targets.at(i, len(slices)):
            panels.append(_Panel(find_counts(one, layer, False)))
    chosen = _draw(panels, n, seed) if genes is None else _named(panels, genes)
    found = [_hide(one, panel, chosen) for one, panel in zip(slices, panels, strict=True)]
    return found[0] if isinstance(data, AnnData) else found


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
    learned = [data] if isinstance(data, Hidden) else list(data)
    every = [*learned, *([] if test is None else [test])]
    if not learned or not all(isinstance(one, Hidden) for one in every):
        raise InputError("impute takes what hide_genes returned, one or a list.")
    for i, one in enumerate(every):
        if set(one.genes) != set(every[0].genes):
            odd = ", ".join(sorted(set(one.genes) ^ set(every[0].genes))[:5])
            raise InputError(
                f"slice {i + 1} of {len(every)} hides other genes than the first ({odd}); hide them alike."
            )
    target, settings = _target(learned), {"use_rep": use_rep, "n_hidden": len(every[0].genes)}
    visible = [one.visible for one in learned]
    if test is None:
        return within(plan, visible, use_rep, target, settings)
    return across(plan, visible, test.visible, use_rep, target, _target([test]), settings)


def _target(hidden: Sequence[Hidden]) -> Target:
    return targets.read_values(
        [one.visible for one in hidden], [one.targets for one in hidden], "hidden genes"
    )


class _Panel:
    """The genes of a slice: which columns are one gene, and which genes have counts."""

    def __init__(self, found: CountsFound) -> None:
        self.found, self.read = found, read_gene_names(found.var)
        self.gene, first = merge_plan(self.read)
        names = found.var.index.astype(str)
        self.place = {name: int(self.gene[i]) for i, name in reversed(list(enumerate(names)))}
        self.names = [str(names[i]) for i in first]  # each gene under the name of its first column
        totals = np.asarray(found.matrix.sum(axis=0)).ravel()
        self.counted = np.bincount(self.gene, weights=totals, minlength=len(first)) > 0

    def columns(self, gene: str) -> NDArray[np.int64]:
        """Return every column that is this gene."""
        return np.flatnonzero(self.gene == self.place[gene])

    def texts(self, columns: NDArray[np.int64]) -> set[str]:
        """Return all names of columns: of the index, Ensembl ids and symbols."""
        found = (self.found.var.index.astype(str), self.read.gene_ids, self.read.gene_symbols)
        return {str(names[i]) for names in found for i in columns} - {""}


def _draw(panels: Sequence[_Panel], n: int, seed: int) -> list[str]:
    if n < 1:
        raise ConfigError(f"n is {n}; at least one gene must be hidden.")
    able = [
        name
        for name in panels[0].names
        if all(name in panel.place and panel.counted[panel.place[name]] for panel in panels)
    ]
    if len(able) <= n:
        where = "the panel has" if len(panels) == 1 else f"the {len(panels)} slices share"
        raise InputError(
            f"{n} genes cannot be hidden: {where} {len(able)} genes with counts, and some must be left."
        )
    drawn = np.random.default_rng([seed, 106]).choice(len(able), n, replace=False)
    return [able[i] for i in np.sort(drawn)]


def _named(panels: Sequence[_Panel], genes: Sequence[str]) -> list[str]:
    wanted = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    if not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError("genes must name at least one gene, each of them once.")
    for i, panel in enumerate(panels):
        with targets.at(i, len(panels)):
            for gene in wanted:
                if gene not in panel.place:
                    near = difflib.get_close_matches(gene, panel.place, n=1, cutoff=0.0)
                    raise InputError(
                        f"gene {gene!r} is not in the panel; the nearest name is {near[0]!r}."
                    )
            if len({panel.place[gene] for gene in wanted}) < len(wanted):
                raise ConfigError("genes names one gene twice, under two names of it.")
            if len(wanted) >= len(panel.names):
                raise InputError(
                    f"all {len(panel.names)} genes of the panel would be hidden; some must be left."
                )
    return wanted


def _hide(adata: AnnData, panel: _Panel, genes: Sequence[str]) -> Hidden:
    matrix, var = panel.found.matrix, panel.found.var
    columns = [panel.columns(gene) for gene in genes]
    hidden = np.concatenate(columns)
    kept, gone = np.setdiff1d(np.arange(matrix.shape[1]), hidden), panel.texts(hidden)
    shown = sp.csr_matrix(matrix[:, kept])
    visible = AnnData(
        shown,
        obs=adata.obs[[c for c in adata.obs if str(c) not in gone]].copy(),
        var=_without(var.iloc[kept]),
        uns={
            k: copy.deepcopy(v)
            for k, v in adata.uns.items()
            if k not in (keys.UNS, keys.SPATIAL) and not _names(k, v, gone)
        },
    )
    if keys.SPATIAL in adata.uns:
        visible.uns[keys.SPATIAL] = adata.uns[keys.SPATIAL]  # images: not copied
    if keys.SPATIAL in adata.obsm:
        visible.obsm[keys.SPATIAL] = np.array(adata.obsm[keys.SPATIAL])
    total = np.asarray(shown.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.full(len(total), np.nan)
    scale[total > 0] = (
        np.median(total[total > 0]) / total[total > 0] if (total > 0).any() else np.nan
    )
    counts = np.stack(
        [np.asarray(matrix[:, group].sum(axis=1)).ravel() for group in columns], axis=1
    )
    values = np.log1p(counts * scale[:, None]).astype(np.float32)
    return Hidden(visible, pd.DataFrame(values, index=adata.obs_names, columns=list(genes)))


def _without(var: pd.DataFrame) -> pd.DataFrame:
    """Forget categories that no visible gene is in: they may name hidden ones."""
    out = var.copy()
    for name in out.columns:
        if isinstance(out[name].dtype, pd.CategoricalDtype):
            out[name] = out[name].cat.remove_unused_categories()
    return out


def _names(key: str, value: Any, genes: set[str]) -> bool:
    """Say whether a hidden gene is named anywhere in an entry of ``uns``."""
    return key in genes or any(text in genes for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, held in value.items():
            yield str(key)
            yield from _texts(held)
    elif isinstance(value, pd.DataFrame):
        for axis in (
            value.index,
            value.columns,
            *(value[c] for c in value if value[c].dtype.kind not in "biufc"),
        ):
            yield from (str(one) for one in axis)
    elif isinstance(value, pd.Series | pd.Index):
        yield from (str(one) for one in value)
        yield from _texts(value.index) if isinstance(value, pd.Series) else ()
    elif (
        isinstance(value, np.ndarray) and value.dtype.names is not None
    ):  # as scanpy's tables of marker genes
        for name in value.dtype.names:
            yield name
            yield from _texts(value[name])
    elif isinstance(value, np.ndarray) and value.dtype.kind in "OUS":
        yield from (str(one) for one in value.ravel())
    elif isinstance(value, list | tuple | set | frozenset):
        for held in value:
            yield from _texts(held)
