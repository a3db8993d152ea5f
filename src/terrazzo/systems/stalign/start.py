"""What ST-Align takes from training slices without gradient: which genes it reads, components, means and spreads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.arrays import Floats, Ints
from terrazzo.errors import InputError
from terrazzo.expression import DIGITS, principal_directions, spatial_autocorrelation, variance
from terrazzo.genes import Vocabulary
from terrazzo.slices import Slice
from terrazzo.slices.niches import find_niches
from terrazzo.systems.stalign.config import STAlignConfig
from terrazzo.systems.stalign.features import Features, Rows
from terrazzo.systems.stalign.gene_encoders import GenePCA, known_genes, scaled_values
from terrazzo.systems.stalign.network import AlignNet, FrozenFeatures
from terrazzo.systems.stalign.value_encoder import ValueEncoder

Choice = Literal["autocorrelation", "variance"]


SAMPLE = 6000  # spots of a slice that are looked at: those nearest to its middle


ROWS = 2048  # of a slice that are dense at a time


@dataclass
class Moments:
    """Sums over rows of several slices: number, values and products of values of ``m`` genes."""

    m: int
    n: Floats = field(init=False)
    first: Floats = field(init=False)
    second: Floats = field(init=False)
    products: Floats | None = None

    def __post_init__(self) -> None:
        self.n, self.first, self.second = np.zeros(self.m), np.zeros(self.m), np.zeros(self.m)

    def add(self, block: NDArray[Any], known: NDArray[np.bool_] | None = None) -> None:
        """Add rows ``(k, m)``; genes that are not known are left out."""
        wide = block.astype(np.float64)
        self.n += len(wide) * (np.ones(self.m) if known is None else known)
        self.first += wide.sum(axis=0)
        self.second += (wide**2).sum(axis=0)
        if self.products is not None:
            self.products += wide.T @ wide

    @property
    def mean(self) -> Floats:
        """Mean of each column."""
        return self.first / np.maximum(self.n, 1)

    @property
    def deviation(self) -> Floats:
        """Standard deviation of each column."""
        return np.sqrt(np.maximum(self.second / np.maximum(self.n, 1) - self.mean**2, 0))


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
    tokens, count = vocabulary.token.astype(np.int64), 0
    total = np.zeros(len(tokens))
    for tissue in slices:
        match = vocabulary.match(tissue)
        here = np.flatnonzero(known_genes(match, tokens))
        rows = middle(tissue)
        values = scaled_values(tissue.counts[rows], match, tokens[here], config.normalize)[0]
        if choose == "variance":
            total[here] += variance(values)
        else:
            total[here] += spatial_autocorrelation(values, tissue.coords[rows])
        count += 1
    if not count:
        raise InputError("ST-Align needs at least one slice to choose its genes from.")
    best = np.argsort(-(total / count).round(DIGITS), kind="stable")[
        : config.net.niche_genes.n_genes
    ]
    return np.sort(tokens[best])


def fit_genes(
    slices: Iterable[Slice],
    vocabulary: Vocabulary,
    config: STAlignConfig,
    genes: Ints,
    pca: GenePCA | None,
) -> Moments:
    """Fit components in the chosen genes; returns the moments of niche values, for AE-Gene."""
    niche, spot, own = Moments(len(genes)), Moments(len(genes)), Moments(len(genes))
    own.products = np.zeros((len(genes), len(genes)))
    for tissue in slices:
        match, rows = vocabulary.match(tissue), middle(tissue)
        known = known_genes(match, genes)
        values, scale = scaled_values(tissue.counts[rows], match, genes, config.normalize)
        average = find_niches(tissue.coords[rows], config.neighbors).averaging()
        for block in _dense(sparse.csr_matrix(average @ values)):
            niche.add(block, known)
        if pca is None:
            continue
        slicewise = pca.config.standardize == "slice"
        for block in _dense(values):
            spot.add(block, known)
            own.add(scale.standardize(block, np.arange(len(genes))) if slicewise else block)
    if pca is not None:
        _fit_components(pca, genes, spot, own)
    return niche


def _fit_components(pca: GenePCA, genes: Ints, spot: Moments, own: Moments) -> None:
    n, mean, sd = max(float(own.n.max(initial=0)), 1), spot.mean, spot.deviation
    moment = (own.products if own.products is not None else np.zeros((0, 0))) / n
    if pca.config.standardize == "training":
        stretch = np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 0)
        overall = own.first / n
        moment = (moment - np.outer(overall, overall)) * np.outer(stretch, stretch)
    loadings, _ = principal_directions(moment, pca.config.output_dim)
    pca.fit(genes, loadings, mean.round(DIGITS), sd.round(DIGITS))


def fit_standards(net: AlignNet, features: Iterable[Features]) -> None:
    """Set means and deviations of frozen features over training slices; of those read with ``standardize="training"``.

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
        maps |= {"spot_image": net.ae_image, "niche_genes": net.ae_genes}
    sums = {name: Moments(part.proj.in_features) for name, part in maps.items()}
    for held in features:
        for name, total in sums.items():
            for block in _parts(getattr(held, name)):
                total.add(block)
    for name, total in sums.items():
        maps[name].fit(_float(total.mean), _float(total.deviation))


def fit_values(net: AlignNet, niche: Moments) -> None:
    """Set means and deviations of AE-Gene's values over the training slices."""
    if isinstance(net.ae_genes, ValueEncoder):
        net.ae_genes.fit(_float(niche.mean), _float(niche.deviation))


def middle(tissue: Slice) -> Ints:
    """Return the rows of at most so many spots as are looked at: those nearest to the middle, ascending."""
    if tissue.n_cells <= SAMPLE:
        return np.arange(tissue.n_cells)
    far = np.linalg.norm(tissue.coords - np.median(tissue.coords, axis=0), axis=1)
    return np.sort(np.argsort(far, kind="stable")[:SAMPLE])


def _dense(values: sparse.csr_matrix) -> Iterator[NDArray[np.float32]]:
    for start in range(0, values.shape[0], ROWS):
        yield values[start : start + ROWS].toarray()


def _parts(rows: Rows) -> Iterator[NDArray[Any]]:
    for start in range(0, len(rows), ROWS):
        yield rows[np.arange(start, min(start + ROWS, len(rows)))]


def _float(values: Floats) -> torch.Tensor:
    return torch.from_numpy(values.round(DIGITS).astype(np.float32))
