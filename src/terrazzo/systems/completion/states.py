"""States of predicted components at three scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from terrazzo.arrays import Floats, Vectors
from terrazzo.models.projections import standardized
from terrazzo.models.states import States, nearest_in_rings
from terrazzo.systems.completion.network import SCALES, CompletionNetwork

__all__ = ["fit_states", "scaled_components", "standardized_alone"]

FAR = 1e3  # of a center that is not used


def fit_states(
    network: CompletionNetwork,
    basis: int,
    per_slice: Sequence[tuple[Vectors, Floats]],
    seed: int,
) -> None:
    """Set the states of one basis at all scales.

    Parameters
    ----------
    network
        Its centers and widths are set.
    basis
        Number of the basis.
    per_slice
        Components ``(n, n_components)`` and positions ``(n, 2)`` of the cells of each slice.
    seed
        Of k-means.
    """
    n_states = network.config.n_states
    smoothed = [scaled_components(network, own, coords) for own, coords in per_slice]
    for scale in range(len(SCALES)):
        cells = np.concatenate([of_slice[scale] for of_slice in smoothed])
        states = States.fit(cells, n_states=n_states, seed=seed)
        centers = np.full((n_states, network.config.n_smoothed), FAR, dtype=np.float32)
        centers[: len(states.centers)] = states.centers
        network.centers[basis, scale] = torch.from_numpy(centers)
        network.width[basis, scale] = states.width


def scaled_components(
    network: CompletionNetwork, own: Vectors, coords: Floats
) -> tuple[Vectors, ...]:
    """Return the first components of cells as states are made of: means over 1, 7 and 19 cells, standardized by slice.

    Parameters
    ----------
    network
        Says how many components.
    own, coords
        Components ``(n, n_components)`` and positions ``(n, 2)`` of all cells of a slice.

    Returns
    -------
    One float32 ``(n, n_smoothed)`` a scale.
    """
    first = np.ascontiguousarray(own[:, : network.config.n_smoothed])
    parts: list[list[Vectors]] = [[] for _ in SCALES]
    for _, index in nearest_in_rings(coords):
        for scale, n_cells in enumerate(SCALES):
            parts[scale].append(first[index[:, :n_cells]].mean(axis=1))
    return tuple(standardized_alone(np.concatenate(part)) for part in parts)


def standardized_alone(values: Vectors) -> Vectors:
    """Return values whose columns have mean 0 and sd 1; 0 where they do not vary."""
    return standardized(values, values.mean(axis=0), values.std(axis=0))
