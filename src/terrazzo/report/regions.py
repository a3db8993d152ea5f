"""Tables of what was found over all slices: shares, neighbors, markers, one color for each region, known labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo.arrays import Floats
from terrazzo.plot.palettes import by_name
from terrazzo.report.found import AGREEMENT, KINDS, N_KNOWN, Part

__all__ = ["Answer", "Table", "gene_names", "joint_colors", "tables"]

LEAST_BORDER = 0.02  # share of a region's neighbors that makes another region its neighbor
N_DOTS = 3  # markers in the table
N_MARKERS = 10  # where a region is looked at
MARKER_VALUES = 3_000_000  # of all of these, that the page holds of a slice in any case


class Answer(Protocol):
    """What the page reads of an answer; see :class:`terrazzo.answers.result.Answer`."""

    @property
    def key(self) -> str:
        """Column of ``obs``."""
        ...

    @property
    def slices(self) -> list[AnnData]:
        """The slices."""
        ...

    @property
    def slice_names(self) -> list[str]:
        """Of each slice."""
        ...

    @property
    def names(self) -> list[str]:
        """Of the regions, in the order of their numbers."""
        ...

    @property
    def markers(self) -> pd.DataFrame:
        """A row for each marker gene."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        ...

    @property
    def table(self) -> pd.DataFrame:
        """A row for each region."""
        ...


@dataclass(frozen=True)
class Table:
    """One column of regions over all slices, as the page shows it.

    Attributes
    ----------
    key, kind
        Column of ``obs``; what it holds.
    title
        The column, and whether its vectors are a baseline's or an untrained model's.
    facts
        For people.
    regions, known
        A dict for each region; for each column of known labels.
    has_agreement, has_markers
        Whether reproducibility is known; whether there are marker genes.
    data
        The same for the script.
    """

    key: str
    kind: str
    title: str
    facts: list[str]
    regions: list[dict[str, Any]]
    known: list[dict[str, Any]]
    has_agreement: bool
    has_markers: bool
    data: dict[str, Any]


# ---- one legend for all slices


def joint_colors(of_slices: Sequence[Mapping[str, Mapping[str, str]]]) -> dict[str, dict[str, str]]:
    """Return the color of every label of every column: one label has one color in all slices.

    Parameters
    ----------
    of_slices
        Of each slice the colors of the labels of its columns; those of the first slice go first.
    """
    chosen: dict[str, dict[str, str]] = {}
    for columns in of_slices:
        for column, own in columns.items():
            colors = chosen.setdefault(column, {})
            used = set(colors.values())
            for name, color in own.items():
                if name not in colors:
                    colors[name] = "" if color in used else color
    out = {}
    for column, colors in chosen.items():
        kept = {name: color for name, color in colors.items() if color}
        out[column] = by_name(list(colors), kept)
    return out


# ---- all slices


def gene_names(answer: Answer | None) -> list[str]:
    """Return the best markers of an answer, which the page holds in any case: all that it lists, or the first few."""
    if answer is None or answer.markers.empty:
        return []
    n_cells = max(adata.n_obs for adata in answer.slices)
    names: list[str] = []
    for last in (N_MARKERS, N_DOTS):
        best = answer.markers[answer.markers["rank"] <= last]
        names = list(dict.fromkeys(map(str, best["gene"])))
        if len(names) * n_cells <= MARKER_VALUES:
            break
    return names


def tables(
    found: Sequence[Sequence[Part]],
    slice_names: Sequence[str],
    colors: Mapping[str, Mapping[str, str]],
    answer: Answer | None,
) -> list[Table]:
    """Return the tables of regions, those of the answer first.

    Parameters
    ----------
    found
        Of each slice what was found in it.
    slice_names
        Their names.
    colors
        See :func:`joint_colors`.
    answer
        Adds marker genes and what was agreed on over draws of genes.
    """
    order: dict[str, str] = {}
    for own in found:
        for part in own:
            order.setdefault(part.key, part.kind)
    kinds = list(KINDS.values())
    ordered = sorted(order, key=lambda key: kinds.index(order[key]))
    if answer is not None and answer.key in order:
        ordered.remove(answer.key)
        ordered.insert(0, answer.key)
    out = []
    for key in ordered:
        of_slices: list[Part | None] = []
        for own in found:
            of_slices.append(next((part for part in own if part.key == key), None))
        of_key = answer if answer is not None and answer.key == key else None
        out.append(_table(key, of_slices, slice_names, colors, of_key))
    return out


def _table(
    key: str,
    found: Sequence[Part | None],
    slice_names: Sequence[str],
    colors: Mapping[str, Mapping[str, str]],
    answer: Answer | None,
) -> Table:
    present = [part for part in found if part is not None]
    names = _names(present, answer)
    place = {name: number for number, name in enumerate(names)}
    k = len(names)
    sizes = np.zeros((len(found), k))
    sure = np.zeros(k)
    borders = np.zeros((k, k))
    for number, part in enumerate(found):
        if part is None:
            continue
        rows = np.array([place[name] for name in part.names], dtype=np.int64)
        sizes[number, rows] = part.sizes
        if part.sure is not None:
            sure[rows] += part.sure
        borders[np.ix_(rows, rows)] += part.borders
    has_agreement = all(part.sure is not None for part in present)
    own_colors = {name: colors[key].get(name, "") for name in names}
    own_colors = by_name(names, {name: color for name, color in own_colors.items() if color})
    markers = _markers(answer, k)
    regions = []
    total = max(sizes.sum(), 1.0)
    for number, name in enumerate(names):
        size = float(sizes[:, number].sum())
        regions.append(
            {
                "name": name,
                "color": own_colors[name],
                "cells": int(size),
                "share": size / total,
                "sure": sure[number] / max(size, 1.0) if has_agreement else None,
                "genesSure": _gene_agreement(answer, number),
                "slices": _shares(sizes, number),
                "markers": markers[number],
                "dots": [one for one in markers[number] if one["against"] == "rest"][:N_DOTS],
                "neighbors": _neighbors(borders, number),
            }
        )
    known = _compared(present, names, own_colors, colors)
    facts = _facts(key, found, slice_names, answer)
    caveat = present[0].caveat
    title = f"{key} ({caveat})" if caveat else key
    data = {
        "key": key,
        "title": title,
        "kind": present[0].kind,
        "agreement": key + AGREEMENT if has_agreement else None,
        "hasAnswer": answer is not None,
        "regions": regions,
        "known": known,
    }
    has_markers = any(markers)
    return Table(
        key, present[0].kind, title, facts, regions, known, has_agreement, has_markers, data
    )


def _names(present: Sequence[Part], answer: Answer | None) -> list[str]:
    """Return the names of all regions, in the order of their numbers where that is known."""
    names: list[str] = []
    if answer is not None:
        names += answer.names
    for part in present:
        names += [name for name in part.joint if name not in names]
    for part in present:
        names += [name for name in part.names if name not in names]
    is_there = {name for part in present for name in part.names}
    return [name for name in names if name in is_there]


def _shares(sizes: Floats, region: int) -> list[float | None]:
    """Return the share of a region in each slice; None where nothing was found in the slice."""
    out: list[float | None] = []
    for row in sizes:
        total = row.sum()
        out.append(float(row[region] / total) if total else None)
    return out


def _neighbors(borders: Floats, region: int) -> list[list[float]]:
    """Return the regions that touch one, and the share of its border with each, most first."""
    row = borders[region].copy()
    total = max(row.sum(), 1.0)
    row[region] = 0
    border = max(row.sum(), 1.0)
    touching = np.flatnonzero(row / total >= LEAST_BORDER)
    order = touching[np.argsort(-row[touching], kind="stable")]
    return [[int(other), float(row[other] / border)] for other in order]


def _gene_agreement(answer: Answer | None, region: int) -> float | None:
    if answer is None:
        return None
    return _finite(answer.table["gene_agreement"].iloc[_row_of(answer, region)])


def _finite(value: Any) -> float | None:
    """Return a number that JSON has; None for none."""
    number = float(value)
    return number if np.isfinite(number) else None


def _row_of(answer: Answer, region: int) -> int:
    """Return the row of the answer's table; regions without a cell are not on the page."""
    there = np.flatnonzero(answer.table["n_cells"].to_numpy() > 0)
    return int(there[region])


def _markers(answer: Answer | None, k: int) -> list[list[dict[str, Any]]]:
    """Return the best markers of each region, against the rest and against the regions that it touches."""
    if answer is None or answer.markers.empty:
        return [[] for _ in range(k)]
    out = []
    for region in range(k):
        own = answer.markers[answer.markers["region"] == _row_of(answer, region)]
        rows = []
        for row in own[own["rank"] <= N_MARKERS].itertuples(index=False):
            rows.append(
                {
                    "gene": str(row.gene),
                    "against": str(row.against),
                    "change": _finite(row.log2_fold_change),
                    "inside": _finite(row.share_in),
                    "outside": _finite(row.share_out),
                    "p": _finite(row.p_adjusted),
                }
            )
        out.append(rows)
    return out


def _compared(
    present: Sequence[Part],
    names: Sequence[str],
    own_colors: Mapping[str, str],
    colors: Mapping[str, Mapping[str, str]],
) -> list[dict[str, Any]]:
    """Return each column of known labels beside the regions: a label has the color of the region that it matches."""
    columns = list(dict.fromkeys(column for part in present for column in part.crossed))
    out = []
    for column in columns[:N_KNOWN]:
        counts = pd.DataFrame(0.0, index=list(names), columns=[])
        for part in present:
            if column in part.crossed:
                counts = counts.add(part.crossed[column], fill_value=0)
        counts = counts.reindex(list(names)).fillna(0.0)
        declared = [name for name in colors[column] if name in counts.columns]
        counts = counts[declared]
        if counts.to_numpy().sum() == 0:
            continue
        out.append(_one_compared(column, counts, own_colors))
    return out


def _one_compared(
    column: str, counts: pd.DataFrame, own_colors: Mapping[str, str]
) -> dict[str, Any]:
    from scipy.optimize import linear_sum_assignment

    values = counts.to_numpy()
    rows, columns = linear_sum_assignment(values, maximize=True)
    match: dict[str, int] = {}
    for row, place in zip(rows.tolist(), columns.tolist(), strict=True):
        if values[row, place] > 0:
            match[str(counts.columns[place])] = row
    region_colors = [own_colors[str(name)] for name in counts.index]
    matched = {label: region_colors[row] for label, row in match.items()}
    others = [str(label) for label in counts.columns if str(label) not in matched]
    # a label without a region of its own has a color that no region has
    taken = {f"\0{row}": color for row, color in enumerate(region_colors)}
    free = by_name([*taken, *others], taken)
    labels = []
    order = sorted(map(str, counts.columns), key=lambda label: match.get(label, len(region_colors)))
    for label in order:
        color = matched.get(label) or free[label]
        size = int(counts[label].sum())
        labels.append({"name": label, "color": color, "cells": size, "match": match.get(label)})
    table = counts[order].to_numpy()
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    return {
        "column": column,
        "labels": labels,
        "shares": np.round(shares, 4).tolist(),
        "ari": _rand(table),
    }


def _rand(table: Floats) -> float:
    """Return the adjusted Rand index of two labelings, from how many cells have each pair of labels."""

    def pairs(sizes: Floats) -> float:
        return float((sizes * (sizes - 1) / 2).sum())

    both = pairs(table)
    in_rows = pairs(table.sum(axis=1))
    in_columns = pairs(table.sum(axis=0))
    n = float(table.sum())
    expected = in_rows * in_columns / max(n * (n - 1) / 2, 1.0)
    most = (in_rows + in_columns) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def _is_joint(present: Sequence[Part]) -> bool:
    """Return whether one run found the regions of all slices."""
    first = present[0].joint
    return bool(first) and all(part.joint == first for part in present)


def _facts(
    key: str,
    found: Sequence[Part | None],
    slice_names: Sequence[str],
    answer: Answer | None,
) -> list[str]:
    """Return what a reader must know of a column of regions."""
    present = [part for part in found if part is not None]
    vectors = list(dict.fromkeys(part.vectors for part in present if part.vectors))
    fact = f"obs[{key!r}]"
    if vectors:
        fact = f"{fact}, found in {', '.join(vectors)}"
    if present[0].caveat:
        fact = f"{fact}: {present[0].caveat}"
    facts = [fact]
    if answer is not None:
        facts += answer.notes
    elif len(present) > 1 and not _is_joint(present):
        facts.append("found in each slice by itself: equal names need not be one region")
    without = [name for name, part in zip(slice_names, found, strict=True) if part is None]
    if without:
        facts.append(f"not in {', '.join(without)}")
    return facts
