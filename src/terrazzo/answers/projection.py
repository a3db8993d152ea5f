"""Project regions on slices that come later: the same regions, numbers and names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo.answers.finding import Found, smoothed_agreement
from terrazzo.answers.partition import Mixture
from terrazzo.answers.space import Axes, CellSpace, RegionSpace
from terrazzo.arrays import AnyFloats, Floats, Ints
from terrazzo.errors import CheckpointError, InputError
from terrazzo.expression import gene_columns
from terrazzo.files import write_bytes, write_text
from terrazzo.models.projections import Expression
from terrazzo.models.states import States
from terrazzo.parsing import read_object
from terrazzo.slices import Slice
from terrazzo.tasks.clustering import refine_labels

__all__ = ["ARRAYS", "RECORD", "Projection"]

ARRAYS = "projection.safetensors"

RECORD = "projection.json"

FORMAT = 1

LEAST_VARIANCE = 0.5  # share of the directions' weight that the genes of a new slice must carry


@dataclass(frozen=True)
class Projection:
    """What finds the regions of a result in other slices.

    Attributes
    ----------
    kind
        ``"region"`` or ``"type"``.
    names, colors
        Of the regions.
    expression
        Components of single cells.
    axes
        States and directions for each seed; empty where components are averaged over neighbors.
    n_averaged
        Neighbors that components are averaged over.
    mixtures
        Number of the seed, the mixture, and the region of each of its components.
    neighbors, smooth_from
        As in :class:`terrazzo.answers.finding.Settings`.
    """

    kind: str
    names: tuple[str, ...]
    expression: Expression
    axes: tuple[Axes, ...]
    n_averaged: int
    mixtures: tuple[tuple[int, Mixture, Ints], ...]
    neighbors: int
    smooth_from: int

    @classmethod
    def of(
        cls, kind: str, names: Sequence[str], found: Found, neighbors: int, smooth_from: int
    ) -> Projection | None:
        """Return the projection of what was found; None where its vectors are not made of counts alone."""
        space = found.fitted.space
        if space is None:
            return None
        axes: tuple[Axes, ...] = ()
        n_averaged = 0
        if isinstance(space, RegionSpace):
            axes = space.axes
        else:
            n_averaged = space.n_neighbors
        return cls(
            kind,
            tuple(names),
            space.expression,
            axes,
            n_averaged,
            tuple(found.mixtures),
            neighbors,
            smooth_from,
        )

    def __call__(self, tissue: Slice) -> tuple[Ints, Floats, Floats]:
        """Return the region of every cell, the share of the partitions that agree, and the reproducibility.

        Raises
        ------
        InputError
            The slice lacks the genes that the regions were found by.
        """
        self._check(tissue)
        if self.axes:
            views = RegionSpace(self.expression, self.axes)(tissue)
        else:
            views = CellSpace(self.expression, self.n_averaged)(tissue)
        cells = np.arange(tissue.n_cells)
        votes = np.zeros((tissue.n_cells, len(self.names)), dtype=np.int32)
        for seed, mixture, names in self.mixtures:
            view = views[min(seed, len(views) - 1)]
            votes[cells, names[mixture(view)]] += 1
        labels = votes.argmax(axis=1).astype(np.int64)
        agreement = votes[cells, labels] / len(self.mixtures)
        if self.neighbors and tissue.n_cells >= self.smooth_from:
            labels = refine_labels(labels, tissue.coords, self.neighbors)
        certainty = smoothed_agreement(labels, agreement, tissue.coords, self.neighbors)
        return labels, agreement, certainty

    def _check(self, tissue: Slice) -> None:
        columns = gene_columns(tissue)
        weight = (self.expression.directions**2).sum(axis=1)
        present = np.array([gene in columns for gene in self.expression.genes])
        share = float(weight[present].sum() / max(weight.sum(), 1e-12))
        if share < LEAST_VARIANCE:
            n_present = int(present.sum())
            n_genes = len(present)
            raise InputError(
                f"{tissue.name} has {n_present} of the {n_genes} genes that the {self.kind}s were found by, too few "
                "to find them again: find its own, or all slices' together."
            )

    def save(self, folder: Path) -> None:
        """Write two files into a folder, each whole or not at all."""
        from safetensors.numpy import save

        arrays: dict[str, AnyFloats | Ints] = {
            "mean": self.expression.mean,
            "sd": self.expression.sd,
            "directions": self.expression.directions,
        }
        for number, axis in enumerate(self.axes):
            arrays[f"axes.{number}.states"] = axis.states.centers
            arrays[f"axes.{number}.center"] = axis.center
            arrays[f"axes.{number}.directions"] = axis.directions
        for number, (_, mixture, names) in enumerate(self.mixtures):
            arrays[f"mixtures.{number}.means"] = mixture.means
            arrays[f"mixtures.{number}.weights"] = mixture.weights
            arrays[f"mixtures.{number}.precision_root"] = mixture.precision_root
            arrays[f"mixtures.{number}.names"] = names
        record = {
            "format": FORMAT,
            "kind": self.kind,
            "names": list(self.names),
            "genes": list(self.expression.genes),
            "own_share": self.expression.own_share,
            "axes": [
                [axis.states.width, axis.component_scale, axis.state_scale] for axis in self.axes
            ],
            "n_averaged": self.n_averaged,
            "seeds": [seed for seed, _, _ in self.mixtures],
            "neighbors": self.neighbors,
            "smooth_from": self.smooth_from,
        }
        contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        write_bytes(folder / ARRAYS, save(contiguous))
        write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Projection:
        """Read what :meth:`save` wrote; nothing in it is run.

        Raises
        ------
        CheckpointError
            Not such a folder, or a damaged one.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        place = Path(folder)
        for name in (RECORD, ARRAYS):
            if not (place / name).is_file():
                raise CheckpointError(
                    f"{place} is not the result of regions or types that can be projected: it lacks {name}."
                )
        try:
            record = read_object(place / RECORD, CheckpointError)
            arrays = load((place / ARRAYS).read_bytes())
            projection = cls._from(record, arrays)
            projection._check_shapes()
        except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
            raise CheckpointError(
                f"{place} is damaged, or of another version ({error})."
            ) from error
        return projection

    @classmethod
    def _from(cls, record: dict[str, Any], arrays: dict[str, Any]) -> Projection:
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}")
        genes = tuple(str(gene) for gene in record["genes"])
        expression = Expression(
            genes, arrays["mean"], arrays["sd"], arrays["directions"], float(record["own_share"])
        )
        axes = []
        for number, (width, component_scale, state_scale) in enumerate(record["axes"]):
            states = States(arrays[f"axes.{number}.states"], float(width))
            scale = None if component_scale is None else float(component_scale)
            center = arrays[f"axes.{number}.center"]
            directions = arrays[f"axes.{number}.directions"]
            axes.append(Axes(states, scale, float(state_scale), center, directions))
        mixtures = []
        for number, seed in enumerate(record["seeds"]):
            prefix = f"mixtures.{number}."
            mixture = Mixture(
                arrays[prefix + "means"],
                arrays[prefix + "weights"],
                arrays[prefix + "precision_root"],
            )
            mixtures.append((int(seed), mixture, arrays[prefix + "names"]))
        names = tuple(str(name) for name in record["names"])
        return cls(
            str(record["kind"]),
            names,
            expression,
            tuple(axes),
            int(record["n_averaged"]),
            tuple(mixtures),
            int(record["neighbors"]),
            int(record["smooth_from"]),
        )

    def _check_shapes(self) -> None:
        """Raise ValueError where arrays do not fit each other."""
        n_genes, width = self.expression.directions.shape
        if self.expression.mean.shape != (n_genes,) or self.expression.sd.shape != (n_genes,):
            raise ValueError("mean and sd do not fit the directions")
        if n_genes != len(self.expression.genes) or not self.mixtures:
            raise ValueError("the genes do not fit the directions, or there is no mixture")
        for axis in self.axes:
            n_values = 6 * len(axis.states.centers)
            if axis.component_scale is not None:
                n_values += 6 * width
            if axis.directions.shape[0] != n_values or axis.center.shape != (n_values,):
                raise ValueError("the directions do not fit the states")
        for seed, mixture, names in self.mixtures:
            vectors = self.axes[seed].directions.shape[1] if self.axes else width
            if mixture.means.shape[1] != vectors or len(names) != len(mixture.means):
                raise ValueError("a mixture does not fit the vectors")
            if names.min() < 0 or names.max() >= len(self.names):
                raise ValueError("a mixture names a region that is not there")
        if not all(np.isfinite(value).all() for value in self._all_arrays()):
            raise ValueError("values that are not finite")

    def _all_arrays(self) -> list[AnyFloats]:
        arrays: list[AnyFloats] = [
            self.expression.mean,
            self.expression.sd,
            self.expression.directions,
        ]
        for axis in self.axes:
            arrays += [axis.states.centers, axis.center, axis.directions]
        for _, mixture, _ in self.mixtures:
            arrays += [mixture.means, mixture.weights, mixture.precision_root]
        return arrays
