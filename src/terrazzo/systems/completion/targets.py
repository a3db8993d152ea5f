"""What a view is completed to: clean components, their ring means, and the states around each cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from terrazzo.arrays import Floats, Vectors
from terrazzo.models.states import at_scales, in_rings
from terrazzo.systems.completion.network import CompletionNetwork
from terrazzo.systems.completion.panels import Panel
from terrazzo.systems.completion.views import Scaled, on_scale, whole

__all__ = ["Targets", "clean_components", "clean_targets", "home_basis"]

MAX_CELLS = 4000  # of a slice that its basis is chosen by

LARGEST = 10.0  # standard deviations of a target

LEAST_KNOWN = 0.5  # share of a foreign basis' variance that a slice's genes must tell

OTHER_WEIGHT = 0.2  # of the components in the basis of another study


@dataclass(frozen=True)
class Targets:
    """What a view is to be completed to.

    Attributes
    ----------
    own
        float32 ``(n, n_bases n_components)``: clean components in each basis in units of their sd.
    weight
        float32 ``(n_bases,)``: 1 for the basis of the slice's study, less for another, 0 where its genes do not tell
        it.
    rings
        float32 ``(n, 6 n_smoothed)``: means over rings in the basis of the study, in units of the ring means' sd.
    states
        float32 ``(n, 6, n_states)``: shares of its states in each ring; rows sum to 1, or to 0 for an empty ring.
    basis
        That basis.
    """

    own: Vectors
    weight: Vectors
    rings: Vectors
    states: Vectors
    basis: int


def clean_components(network: CompletionNetwork, panel: Panel) -> Vectors:
    """Return the components of every cell in all bases in units of their sd, ``(n_cells, n_bases n_components)``."""
    view = whole(panel, network.config.n_genes)
    with torch.no_grad():
        values = torch.from_numpy(view.values)
        return network.estimate(values, torch.from_numpy(view.genes)).numpy()


def home_basis(network: CompletionNetwork, scaled: Scaled, coords: Floats) -> int:
    """Return the basis that explains most of a slice, or of 4,000 cells spread over it.

    For a training slice that is, as a rule, the basis of its study.
    """
    rows = np.arange(len(coords))
    if len(rows) > MAX_CELLS:
        across = np.lexsort(coords.T)  # whatever the order of the rows
        steps = np.linspace(0, len(rows) - 1, MAX_CELLS)
        rows = across[steps.astype(np.int64)]
    values = torch.from_numpy(scaled.rows(rows)).to(network.directions.device)
    genes = torch.from_numpy(scaled.genes).to(network.directions.device)
    with torch.no_grad():
        explained = network.explained(values, genes)
    return int(explained.argmax())


def clean_targets(network: CompletionNetwork, panel: Panel) -> Targets:
    """Return the targets of a slice: components, ring means and states of all of its genes and counts."""
    config = network.config
    basis = home_basis(network, on_scale(panel, config.n_genes), panel.coords)
    every = np.clip(clean_components(network, panel), -LARGEST, LARGEST)
    own = network.of_basis(torch.from_numpy(every), basis).numpy()
    rings = in_rings(own[:, : config.n_smoothed], panel.coords)
    scaled_rings = rings / network.ring_scale[basis].numpy()
    cells = at_scales(own[:, : config.n_smoothed], panel.coords)[0]
    shares = in_rings(network.states_of(basis, 0)(cells), panel.coords)
    with torch.no_grad():
        known = network.known_share(torch.from_numpy(panel.genes)).numpy()
    weight = np.where(known >= LEAST_KNOWN, OTHER_WEIGHT, 0.0).astype(np.float32)
    weight[basis] = 1.0
    return Targets(
        every, weight, scaled_rings, shares.reshape(len(own), -1, config.n_states), basis
    )
