"""States of predicted components at three scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from terrazzo.arrays import Floats, Vectors
from terrazzo.models.states import SCALES, States, at_scales
from terrazzo.systems.completion.network import CompletionNetwork

__all__ = ["fit_states"]

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
    smoothed = [at_scales(own[:, : network.config.n_smoothed], coords) for own, coords in per_slice]
    for scale in range(len(SCALES)):
        cells = np.concatenate([of_slice[scale] for of_slice in smoothed])
        states = States.fit(cells, n_states=n_states, seed=seed)
        centers = np.full((n_states, network.config.n_smoothed), FAR, dtype=np.float32)
        centers[: len(states.centers)] = states.centers
        network.centers[basis, scale] = torch.from_numpy(centers)
        network.width[basis, scale] = states.width
