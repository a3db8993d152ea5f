"""Statistics of training slices: what starting weights are made of, and what trivial answers cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

from terrazzo.arrays import Floats, Int32s, Ints, Vectors
from terrazzo.corpus.genes import Match
from terrazzo.corpus.store import Corpus
from terrazzo.expression import DIGITS, LEAST_VALUE
from terrazzo.models.sequences import Tokens
from terrazzo.systems.stofm.masking import MaskedSubSlices
from terrazzo.systems.stofm.subslices import CELL, SubSliceConfig, length_unit
from terrazzo.systems.stofm.tokens import rank_tokens

__all__ = [
    "COMPONENTS",
    "References",
    "composition",
    "fit_references",
    "gene_loadings",
    "head_radii",
    "sample_tokens",
    "with_constant",
]

COMPONENTS = 50

SAMPLE = 20_000  # cells that a composition or the SVD is made of
LEAST_SAMPLE = 50  # of a slice, for the SVD
N_STRETCHES = 8  # stretches of rows, spread over a slice, that a sample of it is taken from

PSEUDOCOUNT = 0.5
LEAST_SD = 0.01  # a token of almost no cell is not blown up

NEAREST_RADIUS = 0.7  # of the heads, in spacings
FARTHEST_RADIUS = 6


def composition(corpus: Corpus, id: str, token: Int32s, n_tokens: int) -> Vectors:
    """Return the log mean composition of a slice, ``(n_tokens,)``; minus infinity where it measured no gene.

    Parameters
    ----------
    corpus, id
        A slice; of a large one, a sample is read.
    token
        Token of each of its genes, -1 for none.
    n_tokens
        Size of the vocabulary.
    """
    known = token >= 0
    known_tokens = token[known]
    n_cells = _n_cells(corpus, id)
    total = np.zeros(n_tokens)
    for rows in _stretches(n_cells, SAMPLE):
        counts = corpus.take(id, rows)
        by_gene = np.asarray(counts.sum(axis=0))
        by_gene = by_gene.ravel()
        np.add.at(total, known_tokens, by_gene[known])
    measured = np.zeros(n_tokens, dtype=bool)
    measured[known_tokens] = True
    denominator = total.sum() + PSEUDOCOUNT * measured.sum()
    share = (total + PSEUDOCOUNT) / denominator
    log_share = np.where(measured, np.log(share), -np.inf)
    return log_share.astype(np.float32)


def gene_loadings(
    corpus: Corpus,
    ids: list[str],
    match: Match,
    *,
    n_tokens: int,
    max_length: int,
    components: int,
    seed: int,
) -> Vectors:
    """Return right singular vectors of ranked-token bags of a sample of these slices' cells.

    Each cell is the row of its tokens with weights ``1 / sqrt(rank)``, standardized within its slice, so that what
    differs between slices does not lead.

    Parameters
    ----------
    corpus, ids
        The slices.
    match
        From :func:`terrazzo.corpus.genes.member_match`.
    n_tokens, max_length
        Size of the vocabulary, and longest sequence, ``<cls>`` counted.
    components
        How many vectors; those that the sample is too small for are zeros.
    seed
        Of the solver's start.

    Returns
    -------
    ``(n_tokens, components)``: loadings divided by each token's standard deviation; 0 for tokens of no sampled cell.
    The sum of a cell's rows, weighted the same way, is its vector of component scores up to a constant.
    """
    samples = _sampled(corpus, ids, match, max_length, SAMPLE, LEAST_SAMPLE)
    bags = [_bag(tokens, n_tokens) for tokens in samples]
    operator = _Standardized(bags)
    most_vectors = min(operator.shape) - 1
    n_vectors = min(components, most_vectors)
    rng = np.random.default_rng(seed)
    _, values, right = svds(operator, k=n_vectors, random_state=rng, solver="arpack")
    skewness = (right**3).sum(axis=1, keepdims=True)
    right *= np.sign(skewness)  # the solver's sign is arbitrary
    is_noise = values < LEAST_VALUE * values.max()
    right[is_noise] = 0
    largest_first = right[::-1].round(DIGITS)
    loadings = np.zeros((n_tokens, components), dtype=np.float32)
    loadings[:, :n_vectors] = (largest_first * operator.scale).T
    return loadings


def sample_tokens(
    corpus: Corpus, ids: list[str], match: Match, max_length: int, cells: int = 1000
) -> Tokens:
    """Return the ranked genes of some cells of some slices, spread evenly."""
    samples = _sampled(corpus, ids, match, max_length, cells, 20)
    return Tokens.join(list(samples))


def _sampled(
    corpus: Corpus, ids: list[str], match: Match, max_length: int, cells: int, least: int
) -> Iterator[Tokens]:
    """Yield the ranked genes of each slice's share of some cells, of at least so many."""
    sizes = [_n_cells(corpus, id) for id in ids]
    total = sum(sizes)
    for id, size in zip(ids, sizes, strict=True):
        share = int(cells * size / total)
        stretches = _stretches(size, max(least, share))
        counts = corpus.take(id, np.concatenate(stretches))
        token, median = match(id)
        yield rank_tokens(counts, token, median, max_length)


def _n_cells(corpus: Corpus, id: str) -> int:
    row = corpus.row(id)
    return int(row["n_cells"])


def head_radii(corpus: Corpus, ids: list[str], config: SubSliceConfig, heads: int) -> Floats:
    """Return radii for all heads but one: from below the spacing of the densest slice to 6 spacings of the sparsest."""
    table = corpus.manifest.set_index("id").loc[ids]
    spacings = []
    for unit, spacing in zip(table["unit"], table["spacing"], strict=True):
        length = length_unit(str(unit), float(spacing), config)
        spacings.append(float(spacing) / length)
    nearest = NEAREST_RADIUS * min(spacings)
    farthest = FARTHEST_RADIUS * max(spacings)
    return np.geomspace(nearest, farthest, heads - 1)


class _Standardized(LinearOperator):
    """Bags of several slices as one matrix, ``(bag - mean of its slice) / sd``, without making it dense.

    Attributes
    ----------
    scale
        Inverse standard deviation of each token within slices, ``(n_tokens,)``; 0 for tokens that do not vary.
    """

    def __init__(self, bags: list[sparse.csr_matrix]) -> None:
        self._bag = sparse.vstack(bags, format="csr")
        super().__init__(np.float64, self._bag.shape)
        sizes = [bag.shape[0] for bag in bags]
        self._slice = np.repeat(np.arange(len(bags)), sizes)
        mean = np.stack([_column_means(bag) for bag in bags])
        square = _column_means(self._bag.multiply(self._bag))
        weight = np.bincount(self._slice) / len(self._slice)
        variance = square - weight @ mean**2
        sd = np.sqrt(np.maximum(variance, 0))
        inverse = 1 / np.maximum(sd, LEAST_SD)
        self.scale = np.where(sd > 0, inverse, 0.0)
        self._mean = mean * self.scale

    def _matvec(self, x: Floats) -> Floats:
        x = x.ravel()
        slice_means = self._mean @ x
        scaled = self.scale * x
        return self._bag @ scaled - slice_means[self._slice]

    def _rmatvec(self, y: Floats) -> Floats:
        y = y.ravel()
        sums = np.bincount(self._slice, weights=y, minlength=len(self._mean))
        by_token = self._bag.T @ y
        return self.scale * by_token - self._mean.T @ sums


def _column_means(matrix: sparse.csr_matrix) -> Floats:
    return np.asarray(matrix.mean(axis=0)).ravel()


def _bag(tokens: Tokens, n_tokens: int) -> sparse.csr_matrix:
    """Return the tokens of each cell with weights that fall with their rank, ``(n_cells, n_tokens)``."""
    first = np.repeat(tokens.offsets[:-1], tokens.lengths)
    rank = np.arange(len(tokens.flat)) - first
    weight = 1 / np.sqrt(1.0 + rank)
    shape = (len(tokens), n_tokens)
    return sparse.csr_matrix((weight, tokens.flat, tokens.offsets), shape=shape)


def _stretches(n: int, wanted: int) -> list[Ints]:
    """Return stretches of rows, spread evenly, that hold about ``wanted`` of ``n`` rows."""
    if wanted >= n:
        return [np.arange(n)]
    length = -(-wanted // N_STRETCHES)
    starts = np.linspace(0, n - length, N_STRETCHES).astype(np.int64)
    apart = np.diff(starts) >= length
    starts = starts[np.append(True, apart)]
    return [np.arange(start, start + length) for start in starts]


RIDGE = 1e-3  # of the mean variance of the rings
MOST_CELLS = 50_000  # hidden cells that the regression is fitted on


@dataclass(frozen=True)
class References:
    """Answers that need no SE(2) Transformer, from training slices.

    Attributes
    ----------
    ridge
        ``(rings * d + 1, d)``: weights that predict a hidden cell's vector from the rings around it; the last row is
        the constant.
    mean_cell
        ``(d,)``: mean vector of hidden cells.
    mean_distance
        Mean of the distances to be recovered; 0 where none are.
    mean, covariance
        Of the vectors of all cells, ``(d,)`` and ``(d, d)``.
    """

    ridge: Tensor
    mean_cell: Tensor
    mean_distance: float
    mean: Tensor
    covariance: Tensor


def fit_references(packs: Iterable[MaskedSubSlices]) -> References:
    """Fit the answers in one pass over training sub-slices, as they are masked in training."""
    moments: Tensor | None = None
    products: Tensor | None = None
    n_cells = 0
    total_distance = 0.0
    n_distances = 0
    for pack in packs:
        is_cell = pack.types == CELL
        cells = with_constant(pack.features[is_cell]).double()
        moments = _plus(moments, cells.T @ cells)
        predictors = with_constant(pack.rings).double()
        target = pack.features[pack.predicted].double()
        gram = predictors.T @ predictors
        cross = predictors.T @ target
        products = _plus(products, torch.cat([gram, cross], dim=1))
        total_distance += sum(float(part.double().sum()) for part in pack.true_distance)
        n_distances += sum(part.numel() for part in pack.true_distance)
        n_cells += len(predictors)
        if n_cells >= MOST_CELLS:
            break
    if moments is None or products is None:
        raise ValueError("no sub-slices to learn from")
    size = len(products)
    target_sum = products[-1, size:]  # the last predictor is the constant
    mean_cell = (target_sum / max(n_cells, 1)).float()
    mean_distance = total_distance / max(n_distances, 1)
    moments = moments / moments[-1, -1]
    mean = moments[-1, :-1]
    covariance = moments[:-1, :-1] - torch.outer(mean, mean)
    return References(_ridge(products), mean_cell, mean_distance, mean.float(), covariance.float())


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total + part


def _ridge(products: Tensor) -> Tensor:
    """Return the weights of a ridge regression from products of predictors with themselves and with targets."""
    size = len(products)
    gram = products[:, :size]
    identity = torch.eye(size, dtype=torch.float64)
    penalty = RIDGE * products.diagonal().mean() * identity
    return torch.linalg.solve(gram + penalty, products[:, size:]).float()


def with_constant(rings: Tensor) -> Tensor:
    """Append a column of ones."""
    return torch.cat([rings, rings.new_ones(len(rings), 1)], dim=1)
