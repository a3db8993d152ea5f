"""A cell as genes with binned values (scGPT's input): straight from sparse counts, never a dense matrix."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.errors import ConfigError
from terrazzo.models.sequences import Tokens, merge_tokens


@dataclass(frozen=True)
class Binned:
    """Genes of many cells and the bin of each, without ``<cls>``.

    Attributes
    ----------
    tokens
        The genes, by ascending token.
    values
        float32, aligned with ``tokens.flat``: whole numbers from 1.
    sampled
        bool ``(n_cells,)``: cells with more genes than fit, of which a part was drawn.
    """

    tokens: Tokens
    values: NDArray[np.float32]
    sampled: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, cells: NDArray[np.int64]) -> Binned:
        """Return these cells, in this order."""
        tokens = self.tokens.take(cells)
        source = np.repeat(self.tokens.offsets[cells] - tokens.offsets[:-1], tokens.lengths)
        return Binned(tokens, self.values[source + np.arange(len(source))], self.sampled[cells])


def bin_cells(
    counts: sparse.csr_matrix,
    column_token: NDArray[np.int32],
    n_bins: int = 51,
    max_length: int = 1200,
    seed: int = 0,
) -> Binned:
    """Bin each cell's expressed genes by the cell's own quantiles, and draw some of them where they are too many.

    As in scGPT's published path to cell embeddings: only the order of values within a cell counts; bin 0 is left to
    genes that are not expressed, which are left out. Equal values whose quantiles span several bins are dealt out among
    these at random, one by one; and where more genes are expressed than fit, a random part of them is kept. What is
    random depends on ``seed`` and on the cell's own counts, not on other cells nor on the order of cells or genes.

    Parameters
    ----------
    counts
        CSR ``(n_cells, n_genes)``, non-negative.
    column_token
        int32 ``(n_genes,)``: token of each column, -1 for none. Columns that share a token are summed.
    n_bins
        Bins, the one of 0 included.
    max_length
        Longest sequence with ``<cls>`` in front, so that at most ``max_length - 1`` genes are kept.
    seed
        Of what is random.

    Raises
    ------
    ConfigError
        Fewer than 2 bins, or a sequence without a place for a gene.
    """
    if n_bins < 2 or max_length < 2:
        raise ConfigError(f"n_bins ({n_bins}) and max_length ({max_length}) must be at least 2.")
    counts, column_token = merge_tokens(counts, column_token)
    known = np.flatnonzero(column_token >= 0)
    known = known[np.argsort(column_token[known], kind="stable")]
    counts, token = sparse.csr_matrix(counts[:, known]), column_token[known].astype(np.int32)
    counts.sort_indices()
    genes, values, sampled = [], [], np.zeros(counts.shape[0], dtype=np.bool_)
    for cell, (start, stop) in enumerate(
        zip(counts.indptr[:-1].tolist(), counts.indptr[1:].tolist(), strict=True)
    ):
        own, held = token[counts.indices[start:stop]], counts.data[start:stop]
        own, held = own[held > 0], held[held > 0]
        if len(own):
            rng = _generator(seed, own, held)
            held = _bins(held, n_bins, rng)
            sampled[cell] = len(own) > max_length - 1
            if sampled[cell]:
                kept = np.sort(rng.permutation(len(own))[: max_length - 1])
                own, held = own[kept], held[kept]
        genes.append(own)
        values.append(held.astype(np.float32))
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in genes])]).astype(np.int64)
    flat = np.concatenate([np.zeros(0, dtype=np.int32), *genes])
    return Binned(
        Tokens(flat, offsets), np.concatenate([np.zeros(0, dtype=np.float32), *values]), sampled
    )


def _generator(
    seed: int, genes: NDArray[np.int32], values: NDArray[np.floating]
) -> np.random.Generator:
    """Return the cell's own generator: equal cells, equal draws, in any slice."""
    content = genes.tobytes() + values.astype(np.float64).tobytes()
    return np.random.default_rng(
        [seed, int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")]
    )


def _bins(
    values: NDArray[np.floating], n_bins: int, rng: np.random.Generator
) -> NDArray[np.floating]:
    """Return each value's bin, from 1 to ``n_bins - 1``; a value on several edges gets one of the bins between."""
    edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
    most, least = (
        np.searchsorted(edges, values, side="right"),
        np.searchsorted(edges, values, side="left"),
    )
    return np.ceil(rng.random(len(values)) * (least - most) + most)
