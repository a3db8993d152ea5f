"""Shares of regions by slice and donor, and a comparison of groups of donors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from terrazzo.arrays import Ints
from terrazzo.errors import InputError

__all__ = ["compare_groups", "shares_of"]

LEAST_SHARE = 1e-3  # added before the log odds, so that an absent region is not infinitely rare


def shares_of(
    labels: Sequence[Ints],
    names: Sequence[str],
    slices: Sequence[str],
    donors: Sequence[str],
    kind: str = "region",
) -> pd.DataFrame:
    """Return how much of each slice each region is.

    Parameters
    ----------
    labels
        Region of every cell of each slice.
    names
        Of the regions.
    slices, donors
        Name of each slice, and whose it is.
    kind
        ``"region"`` or ``"type"``: the column of the names.

    Returns
    -------
    Columns ``slice``, ``donor``, ``region`` (or ``type``), ``n_cells``, ``share``: a row for each slice and region.
    """
    rows = []
    for own, name, donor in zip(labels, slices, donors, strict=True):
        sizes = np.bincount(own, minlength=len(names))
        for region, size in zip(names, sizes, strict=True):
            rows.append(
                {
                    "slice": name,
                    "donor": donor,
                    kind: region,
                    "n_cells": int(size),
                    "share": size / max(len(own), 1),
                }
            )
    return pd.DataFrame(rows)


def compare_groups(
    shares: pd.DataFrame, groups: dict[str, str], kind: str = "region"
) -> pd.DataFrame:
    """Compare the shares of regions between two or more groups of donors.

    Each donor counts once, with the share of all its cells; log odds are compared by a Kruskal-Wallis test, which for
    two groups is Wilcoxon's. Shares of one slice add up to 1: where one region grows, others shrink.

    Parameters
    ----------
    shares
        From :func:`shares_of`.
    groups
        Group of each donor.
    kind
        As of :func:`shares_of`.

    Returns
    -------
    Columns ``region`` (or ``type``), ``group``, ``n_donors``, ``mean_share``, ``p_value``, ``p_adjusted``
    (NaN where a group has one donor, for then nothing can be tested).

    Raises
    ------
    InputError
        Only one group.
    """
    from scipy import stats

    known = sorted(set(groups.values()))
    if len(known) < 2:
        raise InputError(f"all donors are of the group {known[0]!r}; there is nothing to compare.")
    by_donor = shares.groupby([kind, "donor"], sort=False)["n_cells"].sum().reset_index()
    total = by_donor.groupby("donor")["n_cells"].transform("sum")
    by_donor["share"] = by_donor["n_cells"] / total
    by_donor["group"] = by_donor["donor"].map(groups)
    rows = []
    p_values = []
    for region, part in by_donor.groupby(kind, sort=False):
        odds = np.log((part["share"] + LEAST_SHARE) / (1 - part["share"] + LEAST_SHARE))
        values = [odds[part["group"] == group].to_numpy() for group in known]
        p_value = np.nan
        if min(len(one) for one in values) > 1 and np.ptp(odds) > 0:
            p_value = float(stats.kruskal(*values).pvalue)
        p_values.append(p_value)
        for group, own in zip(known, values, strict=True):
            share = part.loc[part["group"] == group, "share"]
            rows.append(
                {
                    kind: region,
                    "group": group,
                    "n_donors": len(own),
                    "mean_share": float(share.mean()),
                    "p_value": p_value,
                }
            )
    table = pd.DataFrame(rows)
    adjusted = np.array(p_values)
    is_known = np.isfinite(adjusted)
    if is_known.any():
        adjusted[is_known] = stats.false_discovery_control(adjusted[is_known])
    table["p_adjusted"] = np.repeat(adjusted, len(known))
    return table
