"""What was found, for a person: names, tables, figures, and what projects it on other slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import records
from terrazzo.answers.finding import Found
from terrazzo.answers.projection import Projection
from terrazzo.arrays import Ints
from terrazzo.errors import ConfigError, InputError
from terrazzo.tasks import display

__all__ = [
    "AGREEMENT",
    "Answer",
    "check_names",
    "first_genes",
    "names_from_csv",
    "region_names",
    "short_name",
]

AGREEMENT = "_agreement"  # suffix of the column of reproducibility

N_IN_NAME = 2  # genes in a region's name

N_FOR_NAME = 5  # first markers that a name is chosen from


@dataclass(frozen=True)
class Answer:
    """Regions (or types) of one or more slices.

    Attributes
    ----------
    kind
        ``"region"`` or ``"type"``.
    key
        Column of ``obs`` with the names.
    slices
        The slices, with the columns.
    slice_names, donors
        Of each slice.
    names
        Of the regions, in the order of their numbers.
    found
        Labels, certainty, vectors, and what the number was chosen by.
    markers, shares
        See :func:`terrazzo.answers.markers.marker_genes` and :func:`terrazzo.answers.shares.shares_of`.
    levels
        For each slice the region of every cell when there are 1, 2, ... of them: each level splits one region of the
        level before, and the one with as many regions as were found is what was found.
    comparison
        Groups of donors; empty without groups.
    vectors
        What the regions were found in, for a person.
    notes
        What a reader must know.
    settings
        For the record.
    projection
        Finds the same in other slices; None where the vectors are a model's.
    """

    kind: str
    key: str
    slices: list[AnnData]
    slice_names: list[str]
    donors: list[str]
    names: list[str]
    found: Found
    markers: pd.DataFrame
    shares: pd.DataFrame
    levels: list[Ints]
    comparison: pd.DataFrame
    vectors: str
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    projection: Projection | None = None

    @property
    def k(self) -> int:
        """Number of regions."""
        return len(self.names)

    @property
    def headline(self) -> str:
        """What the regions were found in, and why in that."""
        why = self.settings.get("why")
        line = f"{self.kind}s from {self.vectors}"
        return f"{line} ({why})" if why else line

    @property
    def table(self) -> pd.DataFrame:
        """A row for each region: cells, share, reproducibility, slices that have it, its first genes."""
        labels = np.concatenate(self.found.labels)
        certainty = np.concatenate(self.found.reproducibility)
        sizes = np.bincount(labels, minlength=self.k)
        sums = np.bincount(labels, weights=certainty, minlength=self.k)
        n_slices = np.zeros(self.k, dtype=int)
        for own in self.found.labels:
            n_slices += np.bincount(own, minlength=self.k) > 0
        genes = []
        for region in range(self.k):
            first = first_genes(self.markers, region, 5)
            genes.append(", ".join(first))
        return pd.DataFrame(
            {
                self.kind: self.names,
                "n_cells": sizes,
                "share": sizes / max(len(labels), 1),
                "reproducibility": sums / np.maximum(sizes, 1),
                "gene_agreement": self.found.by_region,
                "n_slices": n_slices,
                "markers": genes,
            }
        )

    def renamed(self, names: Mapping[str, str]) -> Answer:
        """Return the answer with other names, also in ``obs`` of the slices.

        Parameters
        ----------
        names
            New name of each region that gets one, by its name or its short name (``"R3"``).

        Raises
        ------
        InputError
            A region that is not there, or two of one name.
        """
        short = {short_name(self.kind, number): number for number in range(self.k)}
        place = {**short, **{name: number for number, name in enumerate(self.names)}}
        new = list(self.names)
        for old, name in names.items():
            if old not in place:
                known = ", ".join(short)
                raise InputError(f"there is no {self.kind} {old!r} to name; there are {known}.")
            new[place[old]] = name
        if len(set(new)) < len(new):
            raise InputError(f"two {self.kind}s have one name; names must differ.")
        answer = replace(self, names=new, shares=self.shares.copy(), markers=self.markers.copy())
        rename = dict(zip(self.names, new, strict=True))
        answer.shares[self.kind] = answer.shares[self.kind].map(rename)
        if len(self.comparison):
            comparison = self.comparison.copy()
            comparison[self.kind] = comparison[self.kind].map(rename)
            answer = replace(answer, comparison=comparison)
        if self.projection is not None:
            projection = replace(self.projection, names=tuple(new))
            answer = replace(answer, projection=projection)
        answer.write()
        return answer

    def write(self) -> None:
        """Write names and reproducibility into ``obs`` of the slices, and what was done into ``uns``."""
        from terrazzo.plot.palettes import in_order

        colors = in_order(self.k)
        for adata, labels, certainty in zip(
            self.slices, self.found.labels, self.found.reproducibility, strict=True
        ):
            adata.obs[self.key] = pd.Categorical.from_codes(labels, categories=self.names)
            adata.obs[self.key + AGREEMENT] = certainty.astype(np.float32)
            adata.uns[f"{self.key}_colors"] = colors
            records.add_record(adata, self.key, self._record())

    def _record(self) -> dict[str, Any]:
        record = {
            "task": f"{self.kind}s",
            "vectors": self.vectors,
            "k": self.k,
            "names": list(self.names),
            "similarity_of_runs": float(self.found.similarity),
            "slices": list(self.slice_names),
            **self.settings,
        }
        return {name: value for name, value in record.items() if value is not None}

    def plot(self, **options: Any) -> Any:
        """Draw the regions of every slice on the tissue; options of :func:`terrazzo.plot.spatial`."""
        from terrazzo import plot

        data = self.slices[0] if len(self.slices) == 1 else self.slices
        return plot.spatial(data, **{"color": [self.key, self.key + AGREEMENT], **options})

    def report(self, path: str | Path, **options: Any) -> Path:
        """Write one HTML file that opens anywhere; options of :func:`terrazzo.report.write`."""
        from terrazzo.report import write

        title = f"{display.count(self.k, self.kind)} in {display.count(len(self.slices), 'slice')}"
        return write(self.slices, path, **{"answer": self, "title": title, **options})

    def cut(self, k: int) -> list[Ints]:
        """Return coarser or finer regions, ``k`` of them, for every slice; see ``levels``.

        Raises
        ------
        ConfigError
            More than there are levels, or fewer than one.
        """
        if k == self.k:
            return list(self.found.labels)
        last = self.levels[0].shape[1]
        if not 1 <= k <= last:
            raise ConfigError(f"the tree has levels of 1 to {last} {self.kind}s; {k} is none.")
        return [levels[:, k - 1].astype(np.int64) for levels in self.levels]

    def __repr__(self) -> str:
        """Return what was found in a few lines."""
        n_cells = sum(len(own) for own in self.found.labels)
        n_slices = display.count(len(self.slices), "slice")
        lines = [f"{self.k} {self.kind}s of {n_cells:,} cells in {n_slices}, from {self.vectors}"]
        for row in self.table.itertuples(index=False):
            lines.append(f"  {row[0]}: {row.share:.1%}, reproducibility {row.reproducibility:.2f}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        rows = []
        for row in self.table.itertuples(index=False):
            rows.append(
                [
                    str(row[0]),
                    f"{row.n_cells:,}",
                    f"{row.share:.1%}",
                    f"{row.reproducibility:.2f}",
                    str(row.markers),
                ]
            )
        header = [self.kind, "cells", "share", "reproducibility", "markers"]
        return display.card(
            f"{self.k} {self.kind}s, from {self.vectors}",
            display.table(header, rows),
            display.bullets(self.notes),
        )


def short_name(kind: str, number: int) -> str:
    """Return ``"R1"`` for the first region, ``"T1"`` for the first type."""
    return f"{kind[0].upper()}{number + 1}"


def first_genes(markers: pd.DataFrame, region: int, n: int) -> list[str]:
    """Return the best markers of a region against the rest."""
    own = markers[(markers["region"] == region) & (markers["against"] == "rest")]
    return [str(gene) for gene in own["gene"].head(n)]


def region_names(kind: str, k: int, markers: pd.DataFrame) -> list[str]:
    """Return names with the first marker genes: ``"R3 · MBP, PLP1"``.

    A gene that marks several regions goes into the name of the one that it marks best, if others are left there.
    """
    best = _best_region(markers)
    names = []
    for number in range(k):
        name = short_name(kind, number)
        ranked = first_genes(markers, number, N_FOR_NAME)
        own = [gene for gene in ranked if best[gene] == number]
        others = [gene for gene in ranked if best[gene] != number]
        genes = ", ".join((own + others)[:N_IN_NAME])
        names.append(f"{name} · {genes}" if genes else name)
    return names


def check_names(names: Mapping[str, str], kind: str, k: int | None) -> None:
    """Refuse, before the work, names that cannot fit.

    Parameters
    ----------
    names
        New name of each region that gets one.
    kind
        ``"region"`` or ``"type"``.
    k
        How many there will be; None: not known.

    Raises
    ------
    InputError
        One name for two; a short name (``"R9"``) of one that there will not be.
    """
    if len(set(names.values())) < len(names):
        raise InputError(f"two {kind}s have one name; names must differ.")
    if k is None:
        return
    known = [short_name(kind, number) for number in range(k)]
    letter = kind[0].upper()
    for name in names:
        if name in known or not name.startswith(letter):
            continue
        number = name.removeprefix(letter)
        if number.isdecimal():
            listed = ", ".join(known)
            raise InputError(f"there is no {kind} {name!r} to name; there are {listed}.")


def _best_region(markers: pd.DataFrame) -> dict[str, int]:
    """Return for each marker gene the region with the largest effect."""
    against_rest = markers[markers["against"] == "rest"]
    falling = against_rest.sort_values("auc", ascending=False, kind="stable")
    falling = falling.drop_duplicates("gene")
    return {str(row.gene): int(row.region) for row in falling.itertuples()}


def names_from_csv(path: str | Path) -> dict[str, str]:
    """Read a table of two columns, region and name, that a person has edited.

    Raises
    ------
    InputError
        Not such a table.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable as a table ({error}).") from error
    if table.shape[1] < 2 and ";" in str(table.columns[0]):  # as some spreadsheets save it
        table = pd.read_csv(path, dtype=str, keep_default_na=False, sep=";")
    if table.shape[1] < 2:
        raise InputError(f"{path} must have two columns: the region, and its name.")
    names: dict[str, str] = {}
    for old, new in zip(table.iloc[:, 0].str.strip(), table.iloc[:, 1].str.strip(), strict=True):
        if old in names:
            raise InputError(f"{path} names {old!r} twice.")
        if old and new:
            names[old] = new
    return names
