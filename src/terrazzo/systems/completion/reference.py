"""Clean components of the training slices: genes, directions, states, and the targets made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from terrazzo.arrays import Floats, Int32s, Ints, Vectors
from terrazzo.errors import CorpusError
from terrazzo.expression import log_values, principal_directions, spatial_autocorrelation, total_of
from terrazzo.models.states import States, nearest_in_rings, ring_means
from terrazzo.systems.completion.config import CompletionConfig
from terrazzo.systems.completion.network import CompletionNetwork
from terrazzo.systems.completion.views import Panel, whole

__all__ = [
    "Counted",
    "Targets",
    "clean_targets",
    "fit_reference",
    "home_basis",
    "numbered",
    "panel_of",
]

MAX_CELLS = 4000  # of a slice that directions and states are fitted on

LEAST_VARIANCE = 1e-6  # of a component

LARGEST = 10.0  # standard deviations of a target

LEAST_KNOWN = 0.5  # share of a foreign basis' variance that a slice's genes must tell

OTHER_WEIGHT = 0.2  # of the components in the basis of another study


@dataclass(frozen=True)
class Counted:
    """One slice, its genes by token.

    Attributes
    ----------
    counts
        CSR ``(n_cells, m)``.
    tokens
        Of each column, distinct, ascending ``(m,)``.
    totals
        Counts of every cell over all genes of the slice ``(n_cells,)``.
    coords
        ``(n_cells, 2)``.
    study
        Slices of one study weigh together as much as those of another.
    """

    counts: sparse.csr_matrix
    tokens: Int32s
    totals: Floats
    coords: Floats
    study: str = ""


def numbered(counts: sparse.csr_matrix, column_token: Int32s) -> tuple[sparse.csr_matrix, Int32s]:
    """Return the counts of matched genes, columns of one token summed, and the token of each column."""
    matched = np.flatnonzero(column_token >= 0)
    tokens, place = np.unique(column_token[matched], return_inverse=True)
    ones = np.ones(len(matched), dtype=counts.dtype)
    shape = (counts.shape[1], len(tokens))
    summed = sparse.csr_matrix((ones, (matched, place)), shape=shape)
    return (counts @ summed).tocsr(), tokens.astype(np.int32)


def panel_of(one: Counted, model_tokens: Ints) -> Panel:
    """Return the counts of the model's genes in a slice; ``model_tokens`` ascending."""
    place = np.searchsorted(model_tokens, one.tokens)
    place = np.minimum(place, len(model_tokens) - 1)
    columns = np.flatnonzero(model_tokens[place] == one.tokens)
    genes = place[columns].astype(np.int64)
    return Panel(one.counts[:, columns], genes, one.totals, one.coords)


@dataclass(frozen=True)
class Targets:
    """What a view is to be completed to.

    Attributes
    ----------
    own
        float32 ``(n, n_bases n_smoothed)``: clean components in each basis in units of their sd.
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


def fit_reference(
    network: CompletionNetwork, slices: Callable[[], Iterable[Counted]], seed: int
) -> dict[str, int]:
    """Choose genes, and fit a basis a study on the training slices; set them in the network.

    Of more studies than there are bases, those with the most cells have one. A basis has the principal directions of
    the genes of a study with most spatial autocorrelation. Components of all studies together would not do: what tells
    the layers of a cortex apart is lost among those of ten other tissues.

    Parameters
    ----------
    network
        Its buffers are set, and its projection of genes starts from the directions.
    slices
        Returns the training slices, one at a time; called twice.
    seed
        Of the sample of cells and of the states.

    Returns
    -------
    The number of the basis of each study.

    Raises
    ------
    CorpusError
        Too few genes.
    """
    config = network.config
    rankings = _rankings(slices(), config.n_bases)
    tokens = _chosen_tokens(rankings, config)
    if len(tokens) < 2:
        raise CorpusError("the training slices have fewer than two genes that vary.")
    network.tokens[: len(tokens)] = torch.from_numpy(tokens)
    padded = network.tokens.numpy()
    studies: dict[str, list[Panel]] = {}
    for one in slices():
        if one.study in rankings:
            panel = _sampled(panel_of(one, padded), seed)
            studies.setdefault(one.study, []).append(panel)
    for basis, (study, panels) in enumerate(studies.items()):
        chosen = rankings[study][: config.basis_genes]
        genes = np.flatnonzero(np.isin(padded, chosen))
        _fit_basis(network, basis, panels, genes)
        _fit_states(network, basis, panels, seed)
    _start_projection(network)
    return {study: basis for basis, study in enumerate(studies)}


def _rankings(slices: Iterable[Counted], n_bases: int) -> dict[str, Ints]:
    """Return for each study its genes' tokens by falling mean spatial autocorrelation."""
    scores: dict[str, dict[int, float]] = {}
    n_cells: dict[str, int] = {}
    for one in slices:
        of_study = scores.setdefault(one.study, {})
        n_cells[one.study] = n_cells.get(one.study, 0) + len(one.totals)
        scale = total_of(one.totals, "median")
        values = log_values(one.counts, scale, one.totals)
        found = np.nan_to_num(spatial_autocorrelation(values, one.coords))
        for token, score in zip(one.tokens.tolist(), found.tolist(), strict=True):
            of_study[token] = of_study.get(token, 0.0) + score
    largest = sorted(scores, key=lambda study: (-n_cells[study], study))[:n_bases]
    rankings = {}
    for study in sorted(largest):
        of_study = scores[study]
        falling = sorted(of_study, key=lambda token: (-of_study[token], token))
        rankings[study] = np.array(falling, dtype=np.int64)
    return rankings


def _chosen_tokens(rankings: dict[str, Ints], config: CompletionConfig) -> Ints:
    """Return the tokens of the genes of all bases; of too many, each study's best in turn."""
    places: dict[int, int] = {}  # best place of each gene in the order of a study
    for falling in rankings.values():
        for place, token in enumerate(falling[: config.basis_genes].tolist()):
            places[token] = min(place, places.get(token, place))
    first = sorted(places, key=lambda token: (places[token], token))[: config.n_genes]
    return np.array(sorted(first), dtype=np.int64)


def _fit_basis(
    network: CompletionNetwork, basis: int, panels: Sequence[Panel], genes: Ints
) -> None:
    """Set directions, variances and the variance of the rest per gene of one basis."""
    config = network.config
    place = np.full(config.n_genes, -1)
    place[genes] = np.arange(len(genes))
    moment = np.zeros((len(genes), len(genes)))
    n_both = np.zeros_like(moment)
    for panel in panels:
        view = whole(panel, config.n_genes)
        columns = np.flatnonzero(place[view.genes] >= 0)
        values = view.values[:, columns].astype(np.float64)
        at = np.ix_(place[view.genes[columns]], place[view.genes[columns]])
        moment[at] += values.T @ values / len(values)
        n_both[at] += 1
    covariance = moment / np.maximum(n_both, 1)
    found, variances = principal_directions(covariance, config.n_components)
    n_found = len(variances)
    network.basis_genes[basis] = -1
    network.basis_genes[basis, : len(genes)] = torch.from_numpy(genes)
    network.directions[basis] = 0
    network.directions[basis, : len(genes), :n_found] = torch.from_numpy(found).float()
    network.variances[basis] = LEAST_VARIANCE
    network.variances[basis, :n_found] = torch.from_numpy(np.maximum(variances, LEAST_VARIANCE))
    rest = max(float(np.trace(covariance) - variances.sum()), 1e-3)
    network.noise[basis] = rest / max(len(genes), 1)


def _start_projection(network: CompletionNetwork) -> None:
    """Start the learned projections of genes from the first directions of the bases, one basis after the other."""
    is_used = (network.basis_genes >= 0).any(dim=1)
    used = is_used.nonzero().flatten()
    if not len(used):
        return
    with torch.no_grad():
        for column in range(network.config.n_projected):
            number = column // len(used)
            if number == network.config.n_components:
                return
            basis = int(used[column % len(used)])
            genes = network.basis_genes[basis]
            rows = (genes >= 0).nonzero().flatten()
            direction = network.directions[basis, rows, number]
            network.projection[:, column] = 0
            network.projection[genes[rows], column] = direction * len(rows) ** 0.5


def _fit_states(network: CompletionNetwork, basis: int, panels: Sequence[Panel], seed: int) -> None:
    """Set states and scales of ring means of one basis."""
    config = network.config
    per_slice = [clean_components(network, panel, basis) for panel in panels]
    states = States.fit(np.concatenate(per_slice), n_states=config.n_states, seed=seed)
    centers = np.full((config.n_states, config.n_smoothed), 1e3, dtype=np.float32)
    centers[: len(states.centers)] = states.centers
    network.centers[basis] = torch.from_numpy(centers)
    network.width[basis] = states.width
    spreads = []
    for own, panel in zip(per_slice, panels, strict=True):
        spreads.append(_rings(own, panel.coords).std(axis=0))
    scale = np.maximum(np.mean(spreads, axis=0), 1e-3)
    network.ring_scale[basis] = torch.from_numpy(scale.astype(np.float32))


def _sampled(panel: Panel, seed: int) -> Panel:
    """Return a slice, or the part of a large one nearest to a random cell, so that its rings are whole."""
    n_cells = len(panel.totals)
    if n_cells <= MAX_CELLS:
        return panel
    rng = np.random.default_rng(seed)
    center = panel.coords[rng.integers(n_cells)]
    distance = ((panel.coords - center) ** 2).sum(axis=1)
    return panel.take(np.sort(np.argsort(distance, kind="stable")[:MAX_CELLS]))


def clean_components(network: CompletionNetwork, panel: Panel, basis: int | None = None) -> Vectors:
    """Return the first components of every cell in units of their sd, ``(n_cells, n_smoothed)``; None: of all bases."""
    view = whole(panel, network.config.n_genes)
    with torch.no_grad():
        values = torch.from_numpy(view.values)
        estimate = network.estimate(values, torch.from_numpy(view.genes)).numpy()
    if basis is None:
        return estimate
    first = basis * network.config.n_smoothed
    return estimate[:, first : first + network.config.n_smoothed]


def _rings(values: Vectors, coords: Floats) -> Vectors:
    parts = [ring_means(values, index) for _, index in nearest_in_rings(coords)]
    return np.concatenate(parts)


def home_basis(network: CompletionNetwork, panel: Panel) -> int:
    """Return the basis that explains most of a slice: for a training slice, as a rule that of its study."""
    view = whole(panel, network.config.n_genes)
    with torch.no_grad():
        explained = network.explained(torch.from_numpy(view.values), torch.from_numpy(view.genes))
    return int(explained.argmax())


def clean_targets(network: CompletionNetwork, panel: Panel) -> Targets:
    """Return the targets of a slice: components, ring means and states of all of its genes and counts."""
    config = network.config
    basis = home_basis(network, panel)
    every = np.clip(clean_components(network, panel), -LARGEST, LARGEST)
    first = basis * config.n_smoothed
    own = every[:, first : first + config.n_smoothed]
    states = network.states_of(basis)
    rings = _rings(own, panel.coords) / network.ring_scale[basis].numpy()
    shares = _rings(states(own), panel.coords)
    with torch.no_grad():
        known = network.known_share(torch.from_numpy(panel.genes)).numpy()
    weight = np.where(known >= LEAST_KNOWN, OTHER_WEIGHT, 0.0).astype(np.float32)
    weight[basis] = 1.0
    return Targets(every, weight, rings, shares.reshape(len(own), -1, config.n_states), basis)
