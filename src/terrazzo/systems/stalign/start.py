"""Fits before ST-Align's training, on training slices without gradient: genes, components, means and deviations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.arrays import Bools, Floats, Ints, Vectors
from terrazzo.errors import InputError
from terrazzo.expression import DIGITS, principal_directions, spatial_autocorrelation, variance
from terrazzo.genes import Vocabulary
from terrazzo.slices import Slice
from terrazzo.slices.niches import find_niches
from terrazzo.systems.stalign.config import STAlignConfig
from terrazzo.systems.stalign.features import Features, Rows, batches
from terrazzo.systems.stalign.gene_encoders import GenePCA, known_genes, scaled_values
from terrazzo.systems.stalign.network import AlignNet, FrozenFeatures
from terrazzo.systems.stalign.value_encoder import ValueEncoder

__all__ = [
    "Choice",
    "Moments",
    "choose_genes",
    "fit_genes",
    "fit_standards",
    "fit_values",
    "middle",
]

Choice = Literal["autocorrelation", "variance"]

SAMPLE = 6000  # spots of a slice that are read: those nearest to its middle

ROWS = 2048  # of a slice that are dense at a time


class Moments:
    """Sums over rows of several slices, for ``n_columns`` genes or features.

    Parameters
    ----------
    n_columns
        Columns of the rows.
    products
        Sum the products of all pairs of columns, too.

    Attributes
    ----------
    n, total, square_total
        Rows, sum of the values and of their squares, by column, ``(n_columns,)``.
    products
        Sums of products, ``(n_columns, n_columns)``; None where they are not summed.
    """

    def __init__(self, n_columns: int, *, products: bool = False) -> None:
        self.n: Floats = np.zeros(n_columns)
        self.total: Floats = np.zeros(n_columns)
        self.square_total: Floats = np.zeros(n_columns)
        self.products: Floats | None = None
        if products:
            self.products = np.zeros((n_columns, n_columns))

    def add(self, block: NDArray[Any], known: Bools | None = None) -> None:
        """Add rows ``(k, n_columns)``; of columns that are not ``known`` no row is counted."""
        exact = block.astype(np.float64)
        counted = np.ones(len(self.n)) if known is None else known
        self.n += len(exact) * counted
        self.total += exact.sum(axis=0)
        self.square_total += (exact**2).sum(axis=0)
        if self.products is not None:
            self.products += exact.T @ exact

    @property
    def mean(self) -> Floats:
        """Mean of each column."""
        return self.total / np.maximum(self.n, 1)

    @property
    def moment(self) -> Floats:
        """Mean product of each pair of columns, ``(n_columns, n_columns)``."""
        if self.products is None:
            raise ValueError("these moments were made without products=True")
        n = max(float(self.n.max(initial=0)), 1)
        return self.products / n

    @property
    def deviation(self) -> Floats:
        """Standard deviation of each column."""
        mean_square = self.square_total / np.maximum(self.n, 1)
        variance = np.maximum(mean_square - self.mean**2, 0)
        return np.sqrt(variance)


def choose_genes(
    slices: Iterable[Slice], vocabulary: Vocabulary, config: STAlignConfig, choose: Choice
) -> Ints:
    """Return the tokens of the genes that AE-Gene reads, ascending.

    Those of the highest spatial autocorrelation, or variance, of log values: the mean over the slices, where a slice
    that has not measured a gene counts as 0.

    Raises
    ------
    InputError
        No slice.
    """
    tokens = vocabulary.token.astype(np.int64)
    n_slices = 0
    total = np.zeros(len(tokens))
    for tissue in slices:
        match = vocabulary.match(tissue)
        measured = np.flatnonzero(known_genes(match, tokens))
        rows = middle(tissue)
        values, _ = scaled_values(tissue.counts[rows], match, tokens[measured], config.normalize)
        if choose == "variance":
            total[measured] += variance(values)
        else:
            total[measured] += spatial_autocorrelation(values, tissue.coords[rows])
        n_slices += 1
    if not n_slices:
        raise InputError("ST-Align needs at least one slice to choose its genes from.")
    score = (total / n_slices).round(DIGITS)
    best_first = np.argsort(-score, kind="stable")
    n_genes = config.net.niche_genes.n_genes
    return np.sort(tokens[best_first[:n_genes]])


def fit_genes(
    slices: Iterable[Slice],
    vocabulary: Vocabulary,
    config: STAlignConfig,
    genes: Ints,
    pca: GenePCA | None,
) -> Moments:
    """Fit components in the chosen genes; return the moments of niche values, for AE-Gene."""
    n_genes = len(genes)
    all_genes = np.arange(n_genes)
    niche = Moments(n_genes)
    spot = Moments(n_genes)
    scaled = Moments(n_genes, products=True)
    for tissue in slices:
        match = vocabulary.match(tissue)
        rows = middle(tissue)
        known = known_genes(match, genes)
        values, scale = scaled_values(tissue.counts[rows], match, genes, config.normalize)
        average = find_niches(tissue.coords[rows], config.neighbors).averaging()
        niche_values = sparse.csr_matrix(average @ values)
        for block in _dense(niche_values):
            niche.add(block, known)
        if pca is None:
            continue
        for block in _dense(values):
            spot.add(block, known)
            if pca.config.standardize == "slice":
                block = scale.standardize(block, all_genes)
            scaled.add(block)
    if pca is not None:
        _fit_components(pca, genes, spot, scaled)
    return niche


def _fit_components(pca: GenePCA, genes: Ints, spot: Moments, scaled: Moments) -> None:
    """Fit components on the products of ``scaled`` values; ``spot`` has the moments of the log values."""
    sd = spot.deviation
    moment = scaled.moment
    if pca.config.standardize == "training":
        stretch = np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 0)
        mean = scaled.total / max(float(scaled.n.max(initial=0)), 1)
        moment = (moment - np.outer(mean, mean)) * np.outer(stretch, stretch)
    loadings, _ = principal_directions(moment, pca.config.output_dim)
    pca.fit(genes, loadings, spot.mean.round(DIGITS), sd.round(DIGITS))


def fit_standards(net: AlignNet, features: Iterable[Features]) -> None:
    """Set means and deviations of frozen features over training slices, for ``standardize="training"``.

    Parameters
    ----------
    net
        Changed in place.
    features
        Of training slices, all parts.
    """
    maps: dict[str, FrozenFeatures] = {
        "niche_image": net.niche_image_map,
        "spot_genes": net.spot_gene_map,
    }
    if isinstance(net.ae_image, FrozenFeatures) and isinstance(net.ae_genes, FrozenFeatures):
        maps["spot_image"] = net.ae_image
        maps["niche_genes"] = net.ae_genes
    moments = {name: Moments(part.proj.in_features) for name, part in maps.items()}
    for of_slice in features:
        for name, sums in moments.items():
            for block in _blocks(getattr(of_slice, name)):
                sums.add(block)
    for name, sums in moments.items():
        maps[name].fit(_float(sums.mean), _float(sums.deviation))


def fit_values(net: AlignNet, niche: Moments) -> None:
    """Set means and deviations of AE-Gene's values over the training slices."""
    if isinstance(net.ae_genes, ValueEncoder):
        net.ae_genes.fit(_float(niche.mean), _float(niche.deviation))


def middle(tissue: Slice) -> Ints:
    """Return the rows of the spots nearest to a slice's middle, ``SAMPLE`` at most, ascending."""
    if tissue.n_cells <= SAMPLE:
        return np.arange(tissue.n_cells)
    center = np.median(tissue.coords, axis=0)
    distance = np.linalg.norm(tissue.coords - center, axis=1)
    nearest_first = np.argsort(distance, kind="stable")
    return np.sort(nearest_first[:SAMPLE])


def _dense(values: sparse.csr_matrix) -> Iterator[Vectors]:
    for start in range(0, values.shape[0], ROWS):
        yield values[start : start + ROWS].toarray()


def _blocks(rows: Rows) -> Iterator[NDArray[Any]]:
    for numbers in batches(len(rows), ROWS):
        yield rows[numbers]


def _float(values: Floats) -> torch.Tensor:
    rounded = values.round(DIGITS)
    return torch.from_numpy(rounded.astype(np.float32))
