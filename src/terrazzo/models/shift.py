"""Shift from labeled slices to the slices that labels go to: other genes, other depth; and slices cut and thinned."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from anndata import AnnData
from scipy import sparse

from terrazzo.arrays import Bools, Floats, Ints
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.expression import median_depth
from terrazzo.genes import Vocabulary
from terrazzo.genes.matching import match_genes
from terrazzo.genes.names import read_gene_names
from terrazzo.models.baselines import Baseline
from terrazzo.slices import Slice
from terrazzo.slices.counts import find_counts
from terrazzo.splitting import thin_counts

__all__ = [
    "AUTO",
    "FEWEST_SHARED",
    "LEAST_DEPTH",
    "LEAST_SHARE",
    "CommonGenes",
    "Panels",
    "Shift",
    "check_common_genes",
    "compare",
    "compare_anndata",
]

FEWEST_SHARED = 50  # genes; with other panels and fewer than these nothing is carried over

# Measured with T1 and T3 from one slice of DLPFC to another (benchmarks/results/panel-shift.md): what is above costs
# about .02 of accuracy or less when nothing is done, what is below more
LEAST_SHARE = 0.8  # of the counts of a slice, on the genes that all slices have
LEAST_DEPTH = 0.5  # of the median total counts

CommonGenes = bool | Literal["auto"]
AUTO: Final = "auto"

AS_THEY_ARE = "as they are"
CUT = "cut to the shared genes"
THINNED = "thinned to the target's depth"

_UNMATCHED = -1


def check_common_genes(value: Any) -> None:
    """Refuse anything but True, False and "auto".

    Raises
    ------
    ConfigError
        Something else.
    """
    if value != AUTO and not isinstance(value, bool):
        raise ConfigError(f"common_genes is {value!r}; it must be True, False or 'auto'.")


@dataclass(frozen=True)
class Panels:
    """How the genes and the depth of labeled slices and of targets differ.

    Attributes
    ----------
    n_labeled, n_target, n_shared
        Genes that the model uses: of any labeled slice, of any target, of all slices.
    share_labeled, share_target
        Share of the counts on used genes that is on shared ones.
    depth_labeled, depth_target
        Median total counts over the shared genes, of the cells that have any; of several targets the least.
    """

    n_labeled: int
    n_target: int
    n_shared: int
    share_labeled: float
    share_target: float
    depth_labeled: float
    depth_target: float

    @property
    def other_genes(self) -> bool:
        """Whether more than a fifth of the counts, of either side, is on genes that not all slices have."""
        return min(self.share_labeled, self.share_target) < LEAST_SHARE

    @property
    def loses_genes(self) -> bool:
        """Whether the labeled slices lose more than a fifth of their counts when cut to the shared genes."""
        return self.share_labeled < LEAST_SHARE

    @property
    def depth_ratio(self) -> float:
        """Depth of the targets over that of the labeled slices; 1 where either has no counts."""
        if min(self.depth_labeled, self.depth_target) <= 0:
            return 1.0
        return self.depth_target / self.depth_labeled

    @property
    def other_depth(self) -> bool:
        """Whether one side is more than twice as deep as the other."""
        return self.depth_ratio < LEAST_DEPTH or self.depth_ratio > 1 / LEAST_DEPTH

    @property
    def is_shallower(self) -> bool:
        """Whether the targets have less than half of the depth."""
        return self.depth_ratio < LEAST_DEPTH

    @property
    def differs(self) -> bool:
        """Whether genes or depth differ enough to matter."""
        return self.other_genes or self.other_depth

    @property
    def text(self) -> str:
        """The numbers in one sentence."""
        return (
            f"the labeled slices have {self.n_labeled:,} genes that are used and the target {self.n_target:,}; "
            f"{self.n_shared:,} in common hold {self.share_labeled:.0%} of the labeled slices' counts and "
            f"{self.share_target:.0%} of the target's; median total counts over these are {self.depth_labeled:,.0f} "
            f"and {self.depth_target:,.0f} (x {self.depth_ratio:.2g})"
        )

    def warn(self, advice: str) -> None:
        """Warn with the numbers where they differ enough to matter."""
        if self.differs:
            message = f"panels or depth differ: {self.text}. {advice}"
            warnings.warn(message, TerrazzoWarning, stacklevel=3)

    def refuse_too_few(self) -> None:
        """Refuse other panels with too few genes in common.

        Raises
        ------
        InputError
            Fewer than 50, and a side has more.
        """
        if self.n_shared >= FEWEST_SHARED:
            return
        if self.n_shared == self.n_labeled == self.n_target:
            return
        noun = "gene" if self.n_shared == 1 else "genes"
        raise InputError(
            f"labeled slices and targets have {self.n_shared} {noun} in common that can be used, and it takes at "
            f"least {FEWEST_SHARED} where panels differ: are both of one species, and named alike (ids or symbols)?"
        )

    def record(self) -> dict[str, Any]:
        """Return the numbers, JSON-able."""
        return {
            "n_genes_labeled": self.n_labeled,
            "n_genes_target": self.n_target,
            "n_genes_shared": self.n_shared,
            "share_of_labeled_counts": round(self.share_labeled, 4),
            "share_of_target_counts": round(self.share_target, 4),
            "depth_labeled": self.depth_labeled,
            "depth_target": self.depth_target,
        }


@dataclass(frozen=True, eq=False)
class Shift:
    """Labeled slices and targets with what differs between them.

    Attributes
    ----------
    labeled, targets
        The slices as they are.
    panels
        The numbers.
    labeled_columns, target_columns
        Of each slice the columns of the shared genes.
    """

    labeled: tuple[Slice, ...]
    targets: tuple[Slice, ...]
    panels: Panels
    labeled_columns: tuple[Ints, ...]
    target_columns: tuple[Ints, ...]

    @cached_property
    def cut_labeled(self) -> tuple[Slice, ...]:
        """The labeled slices with the shared genes alone."""
        return _cut_each(self.labeled, self.labeled_columns)

    @cached_property
    def cut_targets(self) -> tuple[Slice, ...]:
        """The targets with the shared genes alone."""
        return _cut_each(self.targets, self.target_columns)

    @property
    def can_thin(self) -> bool:
        """Whether the labeled slices can be thinned to the depth of the targets: these are shallower."""
        return self.panels.is_shallower and all(tissue.is_counts for tissue in self.labeled)

    def arms(self, common_genes: CommonGenes) -> list[bool]:
        """Return whether all slices are cut to the shared genes; both answers where that is to be chosen."""
        if common_genes != AUTO:
            return [bool(common_genes)]
        if self.panels.other_genes:
            return [True, False]
        return [False]

    def copies(self, common: bool) -> dict[str, tuple[Slice, ...]]:
        """Return the labeled slices as they are, and copies of them; the last is the most like the targets.

        Parameters
        ----------
        common
            All slices are cut to the shared genes.

        Returns
        -------
        By what was done to them: one, two or four versions, according to what differs.
        """
        if common:
            out = {AS_THEY_ARE: self.cut_labeled}
            if self.can_thin:
                out[THINNED] = self._cut_and_thinned
            return out
        out = {AS_THEY_ARE: self.labeled}
        if self.panels.loses_genes:
            out[CUT] = self.cut_labeled
        if self.can_thin:
            out[THINNED] = self._thinned
        if self.panels.loses_genes and self.can_thin:
            out[f"{CUT} and {THINNED}"] = self._cut_and_thinned
        return out

    @cached_property
    def _thinned(self) -> tuple[Slice, ...]:
        return self._thin(self.labeled, 1)

    @cached_property
    def _cut_and_thinned(self) -> tuple[Slice, ...]:
        return self._thin(self.cut_labeled, 2)

    def _thin(self, slices: Sequence[Slice], draw: int) -> tuple[Slice, ...]:
        rate = min(1.0, self.panels.depth_ratio)
        out = []
        for number, tissue in enumerate(slices):
            rng = np.random.default_rng([number, draw, 106])
            part, _ = thin_counts(tissue.counts, rate, rng)
            out.append(replace(tissue, counts=part))
        return tuple(out)


def _cut_each(slices: Sequence[Slice], columns: Sequence[Ints]) -> tuple[Slice, ...]:
    """Return each slice with some columns alone."""
    out = []
    for tissue, some in zip(slices, columns, strict=True):
        cut = replace(
            tissue,
            counts=tissue.counts[:, some],
            gene_ids=tissue.gene_ids[some],
            gene_symbols=tissue.gene_symbols[some],
        )
        out.append(cut)
    return tuple(out)


@dataclass(frozen=True, eq=False)
class _Genes:
    """The columns of a slice: a name that means the same in all slices, whether the model uses it, and the counts."""

    names: tuple[str, ...]
    used: Bools
    counts: sparse.csr_matrix

    def columns_in(self, shared: set[str]) -> Ints:
        """Return the columns of shared genes."""
        return np.flatnonzero([name in shared for name in self.names])

    def limited(self, usable: set[str]) -> _Genes:
        """Return the same with some genes used alone."""
        return replace(self, used=np.array([name in usable for name in self.names], dtype=bool))

    def used_names(self) -> set[str]:
        """Return the names of the genes that are used."""
        return {name for name, is_used in zip(self.names, self.used, strict=True) if is_used}


def compare(labeled: Sequence[Slice], targets: Sequence[Slice], model: Any = None) -> Shift:
    """Compare the genes and the depth of labeled slices and targets.

    Parameters
    ----------
    labeled, targets
        Slices, at least one of each.
    model
        A foundation model: genes are matched to its vocabulary, and those that it does not know do not count. A fitted
        :class:`~terrazzo.models.baselines.Baseline`: those that it was fitted on count. None, or another: those that
        all labeled slices have, for a baseline can be fitted on no others. Names are ids, or symbols where there is no
        id.
    """
    vocabulary = getattr(model, "vocabulary", None)
    if vocabulary is not None:
        of_labeled = [_known(tissue, vocabulary) for tissue in labeled]
        of_targets = [_known(tissue, vocabulary) for tissue in targets]
    else:
        of_labeled = [_genes_of(tissue) for tissue in labeled]
        of_targets = [_genes_of(tissue) for tissue in targets]
        usable = set(model.genes) if isinstance(model, Baseline) else set()
        usable = usable or _shared_names(of_labeled)
        of_labeled = [genes.limited(usable) for genes in of_labeled]
        of_targets = [genes.limited(usable) for genes in of_targets]
    shared = _shared_names([*of_labeled, *of_targets])
    return Shift(
        labeled=tuple(labeled),
        targets=tuple(targets),
        panels=_numbers(of_labeled, of_targets, shared),
        labeled_columns=tuple(genes.columns_in(shared) for genes in of_labeled),
        target_columns=tuple(genes.columns_in(shared) for genes in of_targets),
    )


def compare_anndata(
    labeled: Sequence[AnnData], targets: Sequence[AnnData], *, of_baseline: bool = False
) -> Panels | None:
    """Compare slices that are embedded already; None where one has no counts, or names them in another way.

    Names are ids, or symbols where there is no id: of ids here and symbols there nothing can be said. The vectors of a
    baseline (``of_baseline``) are of genes that all labeled slices have; of a model all genes are taken for used.
    """
    try:
        of_labeled = [_genes_of_anndata(adata) for adata in labeled]
        of_targets = [_genes_of_anndata(adata) for adata in targets]
    except InputError:
        return None
    shared = _shared_names([*of_labeled, *of_targets])
    if not shared:
        return None
    if of_baseline:
        usable = _shared_names(of_labeled)
        of_labeled = [genes.limited(usable) for genes in of_labeled]
        of_targets = [genes.limited(usable) for genes in of_targets]
    return _numbers(of_labeled, of_targets, shared)


def _shared_names(every: Sequence[_Genes]) -> set[str]:
    """Return the names that all slices have."""
    return set.intersection(*(set(genes.names) for genes in every))


def _genes_of_anndata(adata: AnnData) -> _Genes:
    """Return the genes of an AnnData; errors as :func:`terrazzo.slices.counts.find_counts`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = find_counts(adata, None, False)
    genes = read_gene_names(found.var)
    names = np.where(genes.gene_ids != "", genes.gene_ids, genes.gene_symbols)
    used = np.ones(len(names), dtype=bool)
    return _Genes(tuple(map(str, names)), used, found.matrix)


def _genes_of(tissue: Slice) -> _Genes:
    """Return the genes of a slice, all of them used."""
    names = np.where(tissue.gene_ids != "", tissue.gene_ids, tissue.gene_symbols)
    used = np.ones(len(names), dtype=bool)
    return _Genes(tuple(map(str, names)), used, tissue.counts)


def _known(tissue: Slice, vocabulary: Vocabulary) -> _Genes:
    """Return the genes of a slice, those that a vocabulary knows by their tokens; the others are not used."""
    own = _genes_of(tissue)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TerrazzoWarning)  # embedding will say so
        match = match_genes(vocabulary, tissue, None, None)
    used = match.column_token != _UNMATCHED
    names = list(own.names)
    for column in np.flatnonzero(used):
        names[column] = f"token {match.column_token[column]}"
    return _Genes(tuple(names), used, tissue.counts)


def _numbers(labeled: Sequence[_Genes], targets: Sequence[_Genes], shared: set[str]) -> Panels:
    """Return the numbers of a comparison."""
    labeled_names = set.union(*(genes.used_names() for genes in labeled))
    target_names = set.union(*(genes.used_names() for genes in targets))
    used_shared = shared & (labeled_names | target_names)
    labeled_shares = [_share_of_counts(genes, used_shared) for genes in labeled]
    target_shares = [_share_of_counts(genes, used_shared) for genes in targets]
    labeled_totals = [_totals(genes, used_shared) for genes in labeled]
    target_depths = [median_depth(_totals(genes, used_shared)) for genes in targets]
    return Panels(
        n_labeled=len(labeled_names),
        n_target=len(target_names),
        n_shared=len(used_shared),
        share_labeled=float(np.mean(labeled_shares)),
        share_target=float(np.min(target_shares)),
        depth_labeled=median_depth(np.concatenate(labeled_totals)),
        depth_target=min(target_depths),
    )


def _totals(genes: _Genes, names: set[str]) -> Floats:
    """Return the counts of every cell on some genes."""
    part = genes.counts[:, genes.columns_in(names)]
    return np.asarray(part.sum(axis=1, dtype=np.float64)).ravel()


def _share_of_counts(genes: _Genes, names: set[str]) -> float:
    """Return the share of the counts on used genes that is on some of them; 1 where there are no counts."""
    total = float(genes.counts[:, np.flatnonzero(genes.used)].sum(dtype=np.float64))
    if total <= 0:
        return 1.0
    return float(_totals(genes, names).sum() / total)
