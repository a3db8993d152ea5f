"""Quality control of a corpus: how many expressed genes a cell needs, by the panel, and how many cells a slice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from terrazzo.arrays import Bools
from terrazzo.errors import ConfigError
from terrazzo.slices import Slice

__all__ = ["MIN_GENES", "PANEL_SHARE", "GeneFloor", "QualityControl"]

MIN_GENES = 100  # of a whole transcriptome (SToFM, section 4.1)
PANEL_SHARE = 0.05  # of the genes of a panel, where that is less: 19 of 380, 9 of 166


@dataclass(frozen=True)
class QualityControl:
    """Which cells and slices are kept.

    Attributes
    ----------
    min_genes
        Expressed genes that a cell needs, before ortholog mapping. None: 100 (SToFM, section 4.1), or 5 % of the genes
        that the slice expresses where that is less: a panel of 166 genes needs 9.
    min_cells
        Cells that a slice needs after that.
    """

    min_genes: int | None = None
    min_cells: int = 1

    def __post_init__(self) -> None:
        too_few_genes = self.min_genes is not None and self.min_genes < 0
        if too_few_genes or self.min_cells < 1:
            raise ConfigError(
                "quality control: min_genes must be at least 0, and min_cells at least 1."
            )

    def floor(self, piece: Slice) -> GeneFloor:
        """Return how many expressed genes a cell of a slice needs."""
        n_panel = len(np.unique(piece.counts.indices))
        if self.min_genes is not None:
            return GeneFloor(self.min_genes, n_panel, is_derived=False)
        n_genes = max(1, min(MIN_GENES, math.ceil(PANEL_SHARE * n_panel)))
        return GeneFloor(n_genes, n_panel, is_derived=True)

    def reason(self, n_kept: int, n_cells: int, floor: GeneFloor) -> str:
        """Return why a slice of which so many cells stay is left out, "" if it is not."""
        if n_kept >= self.min_cells:
            return ""
        return f"{n_kept:,} of {n_cells:,} cells have at least {floor}; a slice needs {self.min_cells:,}"


@dataclass(frozen=True)
class GeneFloor:
    """Expressed genes that a cell of a slice needs.

    Attributes
    ----------
    n_genes
        How many.
    n_panel
        Genes with counts in the slice.
    is_derived
        From the panel, not set.
    """

    n_genes: int
    n_panel: int
    is_derived: bool

    def keep(self, piece: Slice) -> Bools:
        """Return which cells stay, bool (n_cells,)."""
        n_expressed = np.diff(piece.counts.indptr)
        return n_expressed >= self.n_genes

    @property
    def is_lowered(self) -> bool:
        """Whether a small panel made it less than for whole transcriptomes."""
        return self.is_derived and self.n_genes < MIN_GENES

    def note(self) -> str:
        """Say that the floor was lowered for a small panel, "" if it was not."""
        if not self.is_lowered:
            return ""
        return (
            f"a panel of {self.n_panel:,} genes: cells need {self.n_genes:,} expressed ones, {PANEL_SHARE:.0%} of the "
            f"panel instead of {MIN_GENES} (--min-genes sets another number)"
        )

    def __str__(self) -> str:
        return f"{self.n_genes:,} expressed genes (of {self.n_panel:,} that the slice has)"
