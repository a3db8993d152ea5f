"""Attention with a bias, in blocks of query rows: small scores stay in a core's cache, large ones within memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from terrazzo.systems.stofm.pair_bias import SparseBias

__all__ = ["BiasSource", "Workspace", "attend", "attend_for_inference"]

FLOAT_BYTES = 4

DENSE_BIAS_BYTES = 2**28  # a bias up to this size is built once and kept for all layers
BLOCK_BIAS_BYTES = 2**27  # a larger one is built a block of rows at a time, again in every layer

GRADIENT_BYTES = 2**26  # scores of one block of query rows in training
DEVICE_BYTES = 2**30  # in inference on a GPU
SCORE_BYTES = 3 * 2**20  # in inference on a CPU, of one head: kept within a core's cache
MIN_ROWS = 128  # fewer rows would starve the matrix product


class Workspace:
    """A buffer of zeros for biases, used by one sub-slice after the other: fresh memory is what costs time."""

    def __init__(self) -> None:
        self._zeros: Tensor | None = None

    def zeros(self, size: int, like: Tensor) -> Tensor:
        """Return at least ``size`` zeros, flat; whoever writes into them puts the zeros back."""
        zeros = self._zeros
        if zeros is None or len(zeros) < size or zeros.device != like.device:
            zeros = like.new_zeros(size)
            self._zeros = zeros
        return zeros


class BiasSource:
    """Rows of a bias: built once where it is small, anew for each block where the context is large.

    Parameters
    ----------
    sparse
        The bias.
    workspace
        Used where no gradient is wanted.
    """

    def __init__(self, sparse: SparseBias, workspace: Workspace) -> None:
        self.sparse = sparse
        self.n = sparse.n
        self.workspace = workspace
        self.block_rows = self.n
        row_bytes = FLOAT_BYTES * sparse.heads * self.n
        if row_bytes * self.n > DENSE_BIAS_BYTES:
            self.block_rows = max(1, BLOCK_BIAS_BYTES // row_bytes)
        self.dense: Tensor | None = None
        if self.block_rows != self.n:
            return
        if torch.is_grad_enabled():
            self.dense = sparse.rows(0, self.n)
        else:
            self.dense = self._write(0, self.n)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return ``(heads, stop - start, n)``, with gradient."""
        if self.dense is None:
            return self.sparse.rows(start, stop)
        return self.dense[:, start:stop]

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield ``(start, stop, bias)`` over all rows, without gradient; a block is valid until the next is taken."""
        for start in range(0, self.n, self.block_rows):
            stop = min(start + self.block_rows, self.n)
            if self.dense is not None:
                yield start, stop, self.dense
                continue
            yield start, stop, self._write(start, stop)
            self._clear(start, stop)

    def release(self) -> None:
        """Put the workspace's zeros back."""
        if self.dense is not None and not torch.is_grad_enabled():
            self._clear(0, self.n)

    def _write(self, start: int, stop: int) -> Tensor:
        return self.sparse.write(start, stop, self._buffer())

    def _clear(self, start: int, stop: int) -> None:
        self.sparse.clear(start, stop, self._buffer())

    def _buffer(self) -> Tensor:
        size = self.sparse.heads * self.block_rows * self.n
        return self.workspace.zeros(size, self.sparse.far_bias)


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: BiasSource, *, scale: float, dropout: float
) -> Tensor:
    """Attend with gradient; large scores are computed again in the backward pass, which costs time but no memory.

    Parameters
    ----------
    query, key, value
        Of one sub-slice, ``(heads, n, width)``.
    bias
        Added to the scores.
    scale
        Of the products of queries and keys.
    dropout
        Of the attention weights.

    Returns
    -------
    ``(heads, n, width of value)``.
    """
    heads, n, _ = query.shape
    rows = max(1, GRADIENT_BYTES // (FLOAT_BYTES * n * heads))
    recomputes = n > rows
    blocks = []
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        inputs = (query[:, start:stop], key, value, bias.rows(start, stop), scale, dropout)
        if recomputes:
            block = checkpoint(_attend_block, *inputs, use_reentrant=False)
        else:
            block = _attend_block(*inputs)
        blocks.append(block)
    return torch.cat(blocks, dim=1)


def attend_for_inference(
    query: Tensor, key: Tensor, value: Tensor, bias: BiasSource, *, scale: float, dropout: float
) -> Tensor:
    """Attend without gradient; on the CPU one head at a time, so that scores stay in the cache.

    Parameters and value are those of :func:`attend`.
    """
    heads, n, _ = query.shape
    out = query.new_empty((heads, n, value.shape[-1]))
    by_head = query.device.type == "cpu" and not dropout
    for start, stop, block in bias.blocks():
        block_query = query[:, start:stop]
        block_out = out[:, start:stop]
        if by_head:
            _attend_by_head(block_query, key, value, block, scale, block_out)
        else:
            _attend_by_rows(block_query, key, value, block, scale, dropout, block_out)
    return out


def _attend_by_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scale: float,
    dropout: float,
    out: Tensor,
) -> None:
    """Attend with all heads at once, some query rows at a time."""
    heads, n_rows, _ = query.shape
    n = key.shape[1]
    rows = max(1, DEVICE_BYTES // (FLOAT_BYTES * n * heads))
    for start in range(0, n_rows, rows):
        part = slice(start, start + rows)
        out[:, part] = _attend_block(query[:, part], key, value, bias[:, part], scale, dropout)


def _attend_by_head(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float, out: Tensor
) -> None:
    """Attend with one head after the other, some query rows at a time, in one buffer."""
    heads, n_rows, _ = query.shape
    n = key.shape[1]
    n_parts = max(1, -(-FLOAT_BYTES * n * n_rows // SCORE_BYTES))
    # equal parts: a short last one would be slow
    rows = max(MIN_ROWS, -(-n_rows // n_parts))
    buffer = query.new_empty((rows, n))
    for head in range(heads):
        for start in range(0, n_rows, rows):
            stop = min(start + rows, n_rows)
            part = slice(start, stop)
            scores = buffer[: stop - start]
            torch.addmm(bias[head, part], query[head, part], key[head].T, alpha=scale, out=scores)
            torch.softmax(scores, -1, out=scores)
            torch.mm(scores, value[head], out=out[head, part])


def _attend_block(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float, dropout: float
) -> Tensor:
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale)
    weights = scores.softmax(-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights @ value
