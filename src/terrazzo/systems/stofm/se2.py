"""The SE(2) Transformer: one fast and exact implementation, one plain for the tests, and their attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from terrazzo.config import HEADS, LAYERS, SHARE, SIZE, within
from terrazzo.systems.stofm.pair_bias import GaussianBias, Pairs, SparseBias
from terrazzo.systems.stofm.subslices import PAD

__all__ = [
    "BiasSource",
    "SE2Config",
    "SE2Output",
    "SE2Transformer",
    "Workspace",
    "attend",
    "attend_for_inference",
    "reference_forward",
]

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


@dataclass(frozen=True)
class SE2Config:
    """Sizes of the SE(2) Transformer (SToFM table A.8; it does not give the feed-forward width: 256 is a guess)."""

    input_dim: int = 256
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 8
    ffn_size: int = 256
    num_kernels: int = 128
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    far_distance: float = 100.0

    def __post_init__(self) -> None:
        within(self, input_dim=SIZE, hidden_size=SIZE, num_layers=LAYERS, num_heads=HEADS)
        within(self, ffn_size=SIZE, num_kernels=SIZE, far_distance=(0, 1e6))
        within(self, dropout=SHARE, attention_dropout=SHARE, activation_dropout=SHARE)


@dataclass(frozen=True)
class SE2Output:
    """Result of a forward pass.

    Attributes
    ----------
    hidden
        ``(tokens, hidden_size)``, the sub-slices one after the other.
    pair
        One ``(rows, n, heads)`` tensor a sub-slice: the wanted rows of ``R[L]``; empty where none are wanted.
    hidden_states
        The input and every layer's output, where they are wanted; else empty.
    """

    hidden: Tensor
    pair: list[Tensor]
    hidden_states: list[Tensor]


class _Layer(nn.Module):
    """One post-LN layer: the projections; the attention itself is done by the two implementations."""

    def __init__(self, config: SE2Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.out = nn.Linear(size, size)
        self.attention_norm = nn.LayerNorm(size)
        self.final_norm = nn.LayerNorm(size)
        self.fc1 = nn.Linear(size, config.ffn_size)
        self.fc2 = nn.Linear(config.ffn_size, size)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add and normalize the attention's output, then the feed-forward block."""
        update = self.dropout(self.out(attended))
        x = self.attention_norm(x + update)
        inner = F.gelu(self.fc1(x))
        inner = self.activation_dropout(inner)
        update = self.dropout(self.fc2(inner))
        return self.final_norm(x + update)


class SE2Transformer(nn.Module):
    """Transformer over the tokens of sub-slices, with distances as attention bias (SToFM sections 3.2, A.2).

    Sub-slices are packed one after the other, so that there is no padding. A token's vector depends on positions only
    through distances: rotation, reflection and translation change nothing.

    Parameters
    ----------
    config
        Sizes.
    """

    def __init__(self, config: SE2Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Linear(config.input_dim, config.hidden_size)
        self.token_types = nn.Embedding(4, config.hidden_size)
        self.gaussian = GaussianBias(config.num_kernels, config.num_heads)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))

    def blocks(self) -> list[_Layer]:
        """Return the layers, typed."""
        return cast("list[_Layer]", list(self.layers))

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.config.hidden_size // self.config.num_heads

    @property
    def scale(self) -> float:
        """Of the products of queries and keys."""
        return self.head_dim**-0.5

    def forward(
        self,
        features: Tensor,
        types: Tensor,
        pairs: list[Pairs],
        *,
        pair_rows: list[Tensor] | None = None,
        hidden_states: bool = False,
        workspace: Workspace | None = None,
    ) -> SE2Output:
        """Encode packed sub-slices.

        Parameters
        ----------
        features
            ``(tokens, input_dim)``: graph token (zeros), virtual cells and cells of each sub-slice, packed.
        types
            int64 ``(tokens,)``: 0 cell, 1 graph token, 2 virtual cell.
        pairs
            One :class:`Pairs` a sub-slice; their ``n`` add up to ``tokens``.
        pair_rows
            Tokens (within each sub-slice) whose rows of the pair representation ``R[L]`` are wanted.
        hidden_states
            Also return every layer's output.
        workspace
            Buffer to reuse from call to call (inference).
        """
        x = self.embedding(features) + self.token_types(types)
        far = self.config.far_distance
        sparse_biases = [SparseBias(self.gaussian, one, far) for one in pairs]
        if workspace is None or len(pairs) > 1:
            biases = [BiasSource(sparse, Workspace()) for sparse in sparse_biases]
        else:
            biases = [BiasSource(sparse, workspace) for sparse in sparse_biases]
        states = [x]
        queries: list[Tensor] = []
        keys: list[Tensor] = []
        for layer in self.blocks():
            queries.append(self._heads(layer.query(x)))
            keys.append(self._heads(layer.key(x)))
            value = self._heads(layer.value(x))
            query = torch.cat(queries, dim=-1)
            key = torch.cat(keys, dim=-1)
            attended = self._attend(query, key, value, biases)
            x = layer.finish(x, attended)
            states.append(x)
        pair: list[Tensor] = []
        if pair_rows is not None:
            query = torch.cat(queries, dim=-1)
            key = torch.cat(keys, dim=-1)
            pair = self._pair_rows(query, key, sparse_biases, pair_rows)
        for bias in biases:
            bias.release()
        return SE2Output(x, pair, states if hidden_states else [])

    @torch.no_grad()
    def typical_norm(self) -> float:
        """Return the root mean square length of an output vector, as the last LayerNorm's weights set it."""
        norm = self.blocks()[-1].final_norm
        squared = norm.weight.square().sum() + norm.bias.square().sum()
        return float(squared.sqrt())

    def flops(self, tokens: int) -> float:
        """Return the operations of one forward pass over a sub-slice of this many tokens."""
        config = self.config
        n = float(tokens)
        size = config.hidden_size
        dense = 2 * n * (4 * size**2 + 2 * size * config.ffn_size)
        # queries and keys of all layers so far, side by side
        depth = sum(range(1, config.num_layers + 1))
        attention = 2 * n**2 * size * (depth + config.num_layers)
        bias = 2 * n * 65 * config.num_kernels**2
        return config.num_layers * dense + attention + bias

    def _heads(self, x: Tensor) -> Tensor:
        """``(tokens, hidden)`` to ``(heads, tokens, head_dim)``."""
        by_head = x.view(len(x), self.config.num_heads, self.head_dim)
        return by_head.transpose(0, 1)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, biases: list[BiasSource]
    ) -> Tensor:
        """Attend within each sub-slice, ``(tokens, hidden)``."""
        method = attend if torch.is_grad_enabled() else attend_for_inference
        dropout = self.config.attention_dropout if self.training else 0.0
        lengths = [bias.n for bias in biases]
        queries = query.split(lengths, dim=1)
        keys = key.split(lengths, dim=1)
        values = value.split(lengths, dim=1)
        outputs = []
        for q, k, v, bias in zip(queries, keys, values, biases, strict=True):
            output = method(q, k, v, bias, scale=self.scale, dropout=dropout)
            outputs.append(output)
        attended = torch.cat(outputs, dim=1).transpose(0, 1)
        return attended.reshape(len(attended), -1)

    def _pair_rows(
        self, query: Tensor, key: Tensor, biases: list[SparseBias], rows: list[Tensor]
    ) -> list[Tensor]:
        """Return rows of ``R[L]``: the summed scores of all layers plus the true (unshifted) bias."""
        out = []
        start = 0
        for bias, wanted in zip(biases, rows, strict=True):
            stop = start + bias.n
            own_query = query[:, start:stop]
            own_key = key[:, start:stop]
            scores = own_query[:, wanted] @ own_key.transpose(1, 2) * self.scale
            shifted = [bias.rows(int(row), int(row) + 1) for row in wanted]
            shifted_bias = torch.cat(shifted, dim=1) if shifted else torch.zeros_like(scores)
            far_bias = bias.far_bias[:, None, None]
            pair = scores + shifted_bias + far_bias
            out.append(pair.permute(1, 2, 0))
            start = stop
        return out


def reference_forward(
    model: SE2Transformer, features: Tensor, types: Tensor, distance: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Compute the same plainly: dense distances, padded batch, carried pair tensor. For tests and benchmarks only.

    Parameters
    ----------
    model
        The weights (in eval mode).
    features, types
        ``(batch, n, input_dim)`` and ``(batch, n)``; type 3 is padding.
    distance
        Dense distances ``(batch, n, n)``.

    Returns
    -------
    hidden ``(batch, n, hidden)``, pair representation ``(batch, n, n, heads)``, all hidden states.
    """
    batch, n, _ = features.shape
    by_head = (batch, n, model.config.num_heads, model.head_dim)
    is_padding = types == PAD
    x = model.embedding(features) + model.token_types(types)
    pair = model.gaussian(distance).permute(0, 3, 1, 2)
    pair = pair.masked_fill(is_padding[:, None, None, :], float("-inf"))
    states = [x]
    for layer in model.blocks():
        query = layer.query(x).view(by_head).transpose(1, 2)
        key = layer.key(x).view(by_head).transpose(1, 2)
        value = layer.value(x).view(by_head).transpose(1, 2)
        pair = pair + query @ key.transpose(2, 3) * model.scale
        attended = pair.softmax(-1) @ value
        attended = attended.transpose(1, 2).reshape(batch, n, -1)
        x = layer.finish(x, attended)
        states.append(x)
    return x, pair.permute(0, 2, 3, 1), states
