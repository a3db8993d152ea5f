"""Clean components of the training slices: genes, directions, states, and the targets made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from terrazzo.arrays import Ints
from terrazzo.errors import ConfigError, CorpusError
from terrazzo.expression import log_values, principal_directions, spatial_autocorrelation, total_of
from terrazzo.models.states import in_rings
from terrazzo.systems.completion.network import NO_GENE, NO_TOKEN, CompletionNetwork
from terrazzo.systems.completion.panels import Counted, Panel, panel_of
from terrazzo.systems.completion.states import fit_states
from terrazzo.systems.completion.targets import clean_components
from terrazzo.systems.completion.views import whole

__all__ = ["fit_reference"]

MAX_CELLS = 4000  # of a slice that directions and states are fitted on

LEAST_VARIANCE = 1e-6  # of a component

LEAST_REST = 1e-3  # variance that components leave

LEAST_SPREAD = 1e-3  # sd of ring means


def fit_reference(
    network: CompletionNetwork, slices: Callable[[], Iterable[Counted]], seed: int
) -> dict[str, int]:
    """Choose genes, and fit a basis a study on slices; set them in the network, beside those that it has.

    Of more studies than there are free bases, those with the most cells have one. A basis has the principal directions
    of the genes of a study with most spatial autocorrelation. Components of all studies together would not do: what
    tells the layers of a cortex apart is lost among those of ten other tissues.

    Parameters
    ----------
    network
        Its buffers are set. Where it has no basis yet, its projection of genes starts from the directions.
    slices
        Returns the slices, one at a time; called twice.
    seed
        Of the sample of cells and of the states.

    Returns
    -------
    The number of the basis of each study.

    Raises
    ------
    ConfigError
        There is no free basis.
    CorpusError
        Too few genes.
    """
    config = network.config
    has_gene = network.basis_genes != NO_GENE
    is_used = has_gene.any(dim=1)
    is_free = ~is_used
    free = is_free.nonzero().flatten().tolist()
    if not free:
        raise ConfigError(
            f"all {config.n_bases} bases of the model are taken: train one with a larger model.sizes.n_bases."
        )
    rankings = _rankings(slices(), len(free))
    _add_genes(network, _chosen_tokens(rankings, config.basis_genes))
    tokens = network.tokens.numpy()
    if (tokens != NO_TOKEN).sum() < 2:
        raise CorpusError("the training slices have fewer than two genes that vary.")
    studies: dict[str, list[Panel]] = {}
    for one in slices():
        if one.study in rankings:
            panel = _sampled(panel_of(one, tokens), seed)
            studies.setdefault(one.study, []).append(panel)
    numbers = {}
    for basis, (study, panels) in zip(free, studies.items(), strict=False):
        chosen = rankings[study][: config.basis_genes]
        genes = np.flatnonzero(np.isin(tokens, chosen))
        _fit_basis(network, basis, panels, genes)
        _fit_states(network, basis, panels, seed)
        numbers[study] = basis
    if not is_used.any():
        _start_projection(network)
    return numbers


def _add_genes(network: CompletionNetwork, wanted: Sequence[int]) -> None:
    """Give genes a place among those of the network, as many as there is room for; tokens stay ascending."""
    tokens = network.tokens.numpy()
    before = tokens[tokens != NO_TOKEN]
    known = set(before.tolist())
    new = [token for token in wanted if token not in known]
    n_room = network.config.n_genes - len(before)
    added = np.array(new[:n_room], dtype=np.int64)
    after = np.union1d(before, added)
    place = np.searchsorted(after, before)
    network.tokens.fill_(NO_TOKEN)
    n_after = len(after)
    network.tokens[:n_after] = torch.from_numpy(after)
    moved = torch.from_numpy(place)
    is_gene = network.basis_genes != NO_GENE
    network.basis_genes[is_gene] = moved[network.basis_genes[is_gene]]
    every = np.arange(network.config.n_genes)
    others = np.setdiff1d(every, place)
    rest = torch.from_numpy(others)
    n_before = len(before)
    with torch.no_grad():
        rows = network.projection.clone()
        network.projection[moved] = rows[:n_before]
        network.projection[rest] = rows[n_before:]


def _rankings(slices: Iterable[Counted], n_bases: int) -> dict[str, Ints]:
    """Return for each study its genes' tokens by falling mean spatial autocorrelation."""
    scores: dict[str, dict[int, float]] = {}
    n_cells: dict[str, int] = {}
    for one in slices:
        of_study = scores.setdefault(one.study, {})
        n_before = n_cells.get(one.study, 0)
        n_cells[one.study] = n_before + len(one.totals)
        for token, score in _autocorrelation(one).items():
            before = of_study.get(token, 0.0)
            of_study[token] = before + score
    by_size = sorted(n_cells.items(), key=_falling)
    chosen = [study for study, _ in by_size[:n_bases]]
    rankings = {}
    for study in sorted(chosen):
        of_study = scores[study]
        falling = sorted(of_study.items(), key=_falling)
        tokens = [token for token, _ in falling]
        rankings[study] = np.array(tokens, dtype=np.int64)
    return rankings


def _falling(item: tuple[Any, float]) -> tuple[float, Any]:
    """Sort names by falling number, ties by name."""
    name, number = item
    return -number, name


def _autocorrelation(one: Counted) -> dict[int, float]:
    """Return the spatial autocorrelation of each gene of a slice, by token."""
    scale = total_of(one.totals, "median")
    values = log_values(one.counts, scale, one.totals)
    correlation = spatial_autocorrelation(values, one.coords)
    found = np.nan_to_num(correlation)
    return dict(zip(one.tokens.tolist(), found.tolist(), strict=True))


def _chosen_tokens(rankings: dict[str, Ints], n_genes: int) -> list[int]:
    """Return the tokens of the genes of all bases, of ``n_genes`` each, each study's best in turn."""
    places: dict[int, int] = {}  # best place of each gene in the order of a study
    for falling in rankings.values():
        of_basis = falling[:n_genes]
        for place, token in enumerate(of_basis.tolist()):
            other = places.get(token, place)
            places[token] = min(place, other)
    return sorted(places, key=lambda token: (places[token], token))


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
        place_of_column = place[view.genes]
        columns = np.flatnonzero(place_of_column >= 0)
        values = view.values[:, columns].astype(np.float64)
        rows = place_of_column[columns]
        at = np.ix_(rows, rows)
        squares = values.T @ values
        moment[at] += squares / len(values)
        n_both[at] += 1
    n_slices = np.maximum(n_both, 1)
    covariance = moment / n_slices
    found, variances = principal_directions(covariance, config.n_components)
    n_found = len(variances)
    n_rows = len(genes)
    network.basis_genes[basis] = NO_GENE
    network.basis_genes[basis, :n_rows] = torch.from_numpy(genes)
    network.directions[basis] = 0
    network.directions[basis, :n_rows, :n_found] = torch.from_numpy(found).float()
    network.variances[basis] = LEAST_VARIANCE
    large = np.maximum(variances, LEAST_VARIANCE)
    network.variances[basis, :n_found] = torch.from_numpy(large)
    whole_variance = np.trace(covariance)
    rest = whole_variance - variances.sum()
    network.noise[basis] = max(float(rest), LEAST_REST) / max(n_rows, 1)


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
            is_gene = genes >= 0
            rows = is_gene.nonzero().flatten()
            direction = network.directions[basis, rows, number]
            length = len(rows) ** 0.5
            network.projection[:, column] = 0
            network.projection[genes[rows], column] = direction * length


def _fit_states(network: CompletionNetwork, basis: int, panels: Sequence[Panel], seed: int) -> None:
    """Set states, and scales of ring means, of one basis."""
    per_slice = []
    for panel in panels:
        every = clean_components(network, panel)
        own = network.of_basis(torch.from_numpy(every), basis).numpy()
        per_slice.append((own, panel.coords))
    fit_states(network, basis, per_slice, seed)
    n_smoothed = network.config.n_smoothed
    spreads = []
    for own, coords in per_slice:
        means = in_rings(own[:, :n_smoothed], coords)
        spreads.append(means.std(axis=0))
    mean_spread = np.mean(spreads, axis=0)
    scale = np.maximum(mean_spread, LEAST_SPREAD)
    network.ring_scale[basis] = torch.from_numpy(scale.astype(np.float32))


def _sampled(panel: Panel, seed: int) -> Panel:
    """Return a slice, or the part of a large one nearest to a random cell, so that its rings are whole."""
    n_cells = len(panel.totals)
    if n_cells <= MAX_CELLS:
        return panel
    rng = np.random.default_rng(seed)
    center = panel.coords[rng.integers(n_cells)]
    gap = panel.coords - center
    distance = (gap**2).sum(axis=1)
    nearest = np.argsort(distance, kind="stable")
    rows = np.sort(nearest[:MAX_CELLS])
    return panel.take(rows)
