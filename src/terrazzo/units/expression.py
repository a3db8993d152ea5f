"""Log expression of named genes of a slice, on its own totals, and which genes vary most over several slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from terrazzo.errors import InputError
from terrazzo.slices.panel import Panel
from terrazzo.units.site_values import LEAST_VARIANCE, PAPER_TOTAL, Scale, log_values, total_of, variance


def expression(panel: Panel, genes: Sequence[str], scale: Scale = PAPER_TOTAL) -> pd.DataFrame:
    """Return ``log1p(counts / total * scale)``, float32 ``(n_cells, genes)``; rows of NaN for cells without counts.

    Totals are over all genes of the slice.

    Parameters
    ----------
    panel
        The slice.
    genes
        By any of their names; the columns are called as here.
    scale
        Total that every cell is brought to: a number, the same on all slices, or ``"median"``, that of this slice.

    Raises
    ------
    InputError
        A gene that is not in the panel.
    """
    if gone := [gene for gene in genes if gene not in panel.place]:
        raise InputError(f"gene {gone[0]!r} is not among the {len(panel.names)} genes of the slice.")
    totals, columns = panel.totals, [panel.place[gene] for gene in genes]
    values = log_values(panel.counts[:, columns], total_of(totals, scale), totals).toarray()
    values[totals == 0] = np.nan
    return pd.DataFrame(values, columns=list(genes))


def most_variable(panels: Sequence[Panel], n: int, scale: Scale = PAPER_TOTAL) -> list[str]:
    """Return the genes that vary most within a slice, on the average over slices, the most variable first.

    Candidates are the genes that all of these slices have. What differs between slices counts for nothing, nor do
    cells without counts.

    Parameters
    ----------
    panels
        Slices, at least one; what is not among them has no say.
    n
        How many; fewer where no more vary.
    scale
        As in :func:`expression`.

    Raises
    ------
    InputError
        No gene that all slices have varies.
    """
    first, *others = panels
    common = [name for name in dict.fromkeys(first.names) if all(name in other.place for other in others)]
    spread = np.zeros(len(common))
    for panel in panels:
        totals = panel.totals
        seen = np.flatnonzero(totals > 0)
        values = log_values(panel.counts[seen], total_of(totals, scale), totals[seen])
        spread += variance(values)[[panel.place[name] for name in common]] / len(panels)
    order = [i for i in np.argsort(-spread, kind="stable")[:n] if spread[i] > LEAST_VARIANCE]
    if not order:
        raise InputError("no gene that all of these slices have varies: there is nothing to predict.")
    return [common[i] for i in order]
