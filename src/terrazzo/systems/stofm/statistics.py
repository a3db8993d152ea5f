"""What starting weights are made of, read from training slices: compositions, gene loadings, samples, spacings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

from terrazzo.corpus.genes import Match
from terrazzo.corpus.store import Corpus
from terrazzo.expression import DIGITS, LEAST_VALUE
from terrazzo.models.sequences import Tokens
from terrazzo.systems.stofm.masking import MaskedSubSlices
from terrazzo.systems.stofm.se2 import CELL
from terrazzo.systems.stofm.subslices import SubSliceConfig, length_unit
from terrazzo.systems.stofm.tokens import rank_tokens

SAMPLE = 20_000  # cells that the SVD is made of


PIECES = 8  # stretches of rows, spread over a slice, that a sample of it is taken from


COMPONENTS = 50


LEAST_SD = 0.01  # a token seen in almost no cell is not blown up


def composition(
    corpus: Corpus, id: str, token: NDArray[np.int32], n_tokens: int
) -> NDArray[np.float32]:
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
    total = np.zeros(n_tokens)
    for rows in _pieces(int(corpus.row(id)["n_cells"]), SAMPLE):
        np.add.at(total, token[known], np.asarray(corpus.take(id, rows).sum(axis=0)).ravel()[known])
    measured = np.zeros(n_tokens, dtype=bool)
    measured[token[known]] = True
    share = (total + 0.5) / (total.sum() + 0.5 * measured.sum())
    return np.where(measured, np.log(share), -np.inf).astype(np.float32)


def gene_loadings(
    corpus: Corpus,
    ids: list[str],
    match: Match,
    n_tokens: int,
    max_length: int,
    components: int,
    seed: int,
) -> NDArray[np.float32]:
    """Return right singular vectors of ranked-token bags of a sample of these slices' cells.

    Each cell is the row of its tokens with weights ``1 / sqrt(rank)``, standardized within its slice, so that what
    differs between slices does not lead.

    Returns
    -------
    ``(n_tokens, components)``: loadings divided by each token's standard deviation; 0 for tokens not seen. The sum of
    a cell's rows, weighted the same way, is its vector of component scores up to a constant.
    """
    blocks = [
        _bag(found, n_tokens) for found in _sampled(corpus, ids, match, max_length, SAMPLE, 50)
    ]
    bag = sparse.vstack(blocks, format="csr")
    mean = np.stack([np.asarray(b.mean(axis=0)).ravel() for b in blocks])
    of_slice = np.repeat(np.arange(len(blocks)), [b.shape[0] for b in blocks])
    square = np.asarray(bag.multiply(bag).mean(axis=0)).ravel()
    weight = np.bincount(of_slice) / len(of_slice)
    sd = np.sqrt(np.maximum(square - weight @ mean**2, 0))
    scale = np.where(sd > 0, 1 / np.maximum(sd, LEAST_SD), 0.0)
    operator = _Centered(bag, mean * scale, scale, of_slice)
    k = min(components, min(bag.shape) - 1)
    _, values, right = svds(
        operator, k=k, random_state=np.random.default_rng(seed), solver="arpack"
    )
    right *= np.sign((right**3).sum(axis=1, keepdims=True))  # the solver's sign is chance
    right[values < LEAST_VALUE * values.max()] = 0
    out = np.zeros((n_tokens, components), dtype=np.float32)
    out[:, :k] = (right[::-1].round(DIGITS) * scale).T
    return out


def sample_tokens(
    corpus: Corpus, ids: list[str], match: Match, max_length: int, cells: int = 1000
) -> Tokens:
    """Return the ranked genes of some cells of some slices, spread evenly."""
    found = list(_sampled(corpus, ids, match, max_length, cells, 20))
    ends = np.cumsum(np.concatenate([tokens.lengths for tokens in found])).astype(np.int64)
    return Tokens(
        np.concatenate([tokens.flat for tokens in found]),
        np.concatenate([np.zeros(1, np.int64), ends]),
    )


def _sampled(
    corpus: Corpus, ids: list[str], match: Match, max_length: int, cells: int, least: int
) -> Iterator[Tokens]:
    """Yield the ranked genes of each slice's share of some cells, of at least so many."""
    sizes = np.array([int(corpus.row(i)["n_cells"]) for i in ids])
    for name, size in zip(ids, sizes, strict=True):
        rows = np.concatenate(_pieces(int(size), max(least, int(cells * size / sizes.sum()))))
        yield rank_tokens(corpus.take(name, rows), *match(name), max_length)


def head_radii(
    corpus: Corpus, ids: list[str], config: SubSliceConfig, heads: int
) -> NDArray[np.float64]:
    """Return radii for all heads but one: from below the spacing of the densest slice to 6 spacings of the sparsest."""
    table = corpus.manifest.set_index("id").loc[ids]
    spacing = [
        float(s) / length_unit(str(u), float(s), config)
        for u, s in zip(table["unit"], table["spacing"], strict=True)
    ]
    return np.geomspace(0.7 * min(spacing), 6 * max(spacing), heads - 1)


class _Centered(LinearOperator):
    """``(bag - mean of its slice) / sd`` without making it dense."""

    def __init__(
        self,
        bag: sparse.csr_matrix,
        mean: NDArray[np.float64],
        scale: NDArray[np.float64],
        of_slice: NDArray[np.int64],
    ) -> None:
        super().__init__(np.float64, bag.shape)
        self._bag, self._mean, self._scale, self._of = bag, mean, scale, of_slice

    def _matvec(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        x = x.ravel()
        return self._bag @ (self._scale * x) - (self._mean @ x)[self._of]

    def _rmatvec(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        y = y.ravel()
        sums = np.bincount(self._of, weights=y, minlength=len(self._mean))
        return self._scale * (self._bag.T @ y) - self._mean.T @ sums


def _bag(tokens: Tokens, n_tokens: int) -> sparse.csr_matrix:
    rank = np.arange(len(tokens.flat)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
    return sparse.csr_matrix(
        (1 / np.sqrt(1.0 + rank), tokens.flat, tokens.offsets), shape=(len(tokens), n_tokens)
    )


def _pieces(n: int, wanted: int) -> list[NDArray[np.int64]]:
    """Return stretches of rows, spread evenly, that hold about ``wanted`` of ``n`` rows."""
    if wanted >= n:
        return [np.arange(n)]
    length = -(-wanted // PIECES)
    starts = np.linspace(0, n - length, PIECES).astype(np.int64)
    return [np.arange(a, a + length) for a in starts[np.append(True, np.diff(starts) >= length)]]


RIDGE = 1e-3  # of the mean variance of the rings


MOST = 50_000  # hidden cells that the regression is fitted on


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


def references(packs: Iterable[MaskedSubSlices]) -> References:
    """Collect the answers on one pass over training sub-slices, as they are masked in training."""
    gram: Tensor | None = None
    n, total, pairs, moments = 0, 0.0, 0, torch.zeros(0)
    for pack in packs:
        cells = with_constant(pack.features[pack.types == CELL]).double()
        moments = cells.T @ cells if not len(moments) else moments + cells.T @ cells
        x = with_constant(pack.rings).double()
        y = pack.features[pack.predicted].double()
        parts = torch.cat([x.T @ x, x.T @ y], dim=1)
        gram = parts if gram is None else gram + parts
        total += sum(float(d.double().sum()) for d in pack.true_distance)
        pairs += sum(d.numel() for d in pack.true_distance)
        n += len(x)
        if n >= MOST:
            break
    if gram is None:
        raise ValueError("no sub-slices to learn from")
    size = len(gram)
    left = gram[:, :size] + RIDGE * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    weights = torch.linalg.solve(left, gram[:, size:]).float()
    moments = moments / moments[-1, -1]
    mean = moments[-1, :-1]
    covariance = moments[:-1, :-1] - torch.outer(mean, mean)
    mean_cell = (gram[-1, size:] / max(n, 1)).float()
    return References(weights, mean_cell, total / max(pairs, 1), mean.float(), covariance.float())


def with_constant(rings: Tensor) -> Tensor:
    """Append a column of ones."""
    return torch.cat([rings, rings.new_ones(len(rings), 1)], dim=1)
