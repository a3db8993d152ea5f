"""Cells as genes with binned values (scGPT's input): straight from sparse counts, never a dense matrix."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from terrazzo.arrays import AnyFloats, Bools, Int32s, Ints, Vectors
from terrazzo.errors import ConfigError
from terrazzo.models.sequences import Tokens, merge_tokens

__all__ = ["Binned", "bin_cells"]


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
    values: Vectors
    sampled: Bools

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, cells: Ints) -> Binned:
        """Return these cells, in this order."""
        tokens = self.tokens.take(cells)
        shift = self.tokens.offsets[cells] - tokens.offsets[:-1]
        places = np.arange(len(tokens.flat)) + np.repeat(shift, tokens.lengths)
        return Binned(tokens, self.values[places], self.sampled[cells])


def bin_cells(
    counts: sparse.csr_matrix,
    column_token: Int32s,
    n_bins: int = 51,
    max_length: int = 1200,
    seed: int = 0,
) -> Binned:
    """Bin each cell's expressed genes by the cell's own quantiles, and draw some of them where they are too many.

    As in scGPT's published path to cell embeddings: only the order of values within a cell counts; bin 0 is left to
    genes that are not expressed, which are left out. Equal values whose quantiles span several bins are dealt out among
    these at random, one by one; and where more genes are expressed than fit, a random part of them is used. What is
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
        Longest sequence with ``<cls>`` in front, so that at most ``max_length - 1`` genes are used.
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
    counts, column_token = _known_by_token(counts, column_token)
    most_genes = max_length - 1
    n_cells = counts.shape[0]
    sampled = np.zeros(n_cells, dtype=bool)
    lengths = np.zeros(n_cells + 1, dtype=np.int64)
    all_genes = [np.zeros(0, dtype=np.int32)]
    all_bins = [np.zeros(0, dtype=np.float32)]
    for cell in range(n_cells):
        start, stop = counts.indptr[cell : cell + 2]
        values = counts.data[start:stop]
        expressed = values > 0
        values = values[expressed]
        if len(values) == 0:
            continue
        genes = column_token[counts.indices[start:stop]]
        genes = genes[expressed]
        rng = _generator(seed, genes, values)
        bins = _bins(values, n_bins, rng)
        if len(genes) > most_genes:
            sampled[cell] = True
            drawn = rng.permutation(len(genes))[:most_genes]
            drawn.sort()
            genes = genes[drawn]
            bins = bins[drawn]
        lengths[cell + 1] = len(genes)
        all_genes.append(genes)
        all_bins.append(bins.astype(np.float32))
    tokens = Tokens(np.concatenate(all_genes), np.cumsum(lengths))
    return Binned(tokens, np.concatenate(all_bins), sampled)


def _known_by_token(
    counts: sparse.csr_matrix, column_token: Int32s
) -> tuple[sparse.csr_matrix, Int32s]:
    """Return the columns that have a token, by ascending token, and these tokens."""
    known = np.flatnonzero(column_token >= 0)
    order = np.argsort(column_token[known], kind="stable")
    columns = known[order]
    counts = sparse.csr_matrix(counts[:, columns])
    counts.sort_indices()
    return counts, column_token[columns].astype(np.int32)


def _generator(seed: int, genes: Int32s, values: AnyFloats) -> np.random.Generator:
    """Return the cell's own generator: equal cells, equal draws, in any slice."""
    content = genes.tobytes() + values.astype(np.float64).tobytes()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    return np.random.default_rng([seed, number])


def _bins(values: AnyFloats, n_bins: int, rng: np.random.Generator) -> AnyFloats:
    """Return each value's bin, from 1 to ``n_bins - 1``; a value on several edges gets one of the bins between."""
    shares = np.linspace(0, 1, n_bins - 1)
    edges = np.quantile(values, shares)
    largest = np.searchsorted(edges, values, side="right")
    smallest = np.searchsorted(edges, values, side="left")
    position = rng.random(len(values))
    return np.ceil(position * (smallest - largest) + largest)
