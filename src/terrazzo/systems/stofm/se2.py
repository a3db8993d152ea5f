"""The SE(2) Transformer: one exact implementation that is fast, and one that is plain, for the tests.

Published recurrence (SToFM section A.2): ``R[l+1] = R[l] + Q K^T / sqrt(d)``, ``out = softmax(R[l+1]) V``, with
``R[0]`` the Gaussian bias of the distances. Unrolled, layer ``l`` is ordinary attention with the queries and the keys
of all layers up to ``l`` side by side, plus the fixed bias ``R[0]``: no n x n x heads tensor is carried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from terrazzo.systems.stofm.pair_bias import GaussianBias, Pairs, SparseBias

CELL, GRAPH, VIRTUAL, PAD = 0, 1, 2, 3  # token types as published


DENSE_BIAS_BYTES = 2**28  # a bias up to this size is built once and kept for all layers


BLOCK_BIAS_BYTES = 2**27  # a larger one is built a block of rows at a time, again in every layer


SCORE_BYTES = (
    3 * 2**20
)  # scores of one block of query rows and one head: kept within a core's cache on the CPU


MIN_ROWS = 128  # fewer rows would starve the matrix product


GRADIENT_BYTES = 2**26  # scores of one block in training


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


@dataclass(frozen=True)
class SE2Output:
    """What a forward pass returns.

    Attributes
    ----------
    hidden
        ``(tokens, hidden_size)``, the sub-slices one after the other.
    pair
        One ``(rows, n, heads)`` tensor a sub-slice: rows of ``R[L]`` that were asked for; else empty.
    hidden_states
        The input and every layer's output, when asked for; else empty.
    """

    hidden: Tensor
    pair: list[Tensor]
    hidden_states: list[Tensor]


class _Layer(nn.Module):
    """One post-LN layer: the projections; the attention itself is done by the two implementations."""

    def __init__(self, config: SE2Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.query, self.key = nn.Linear(size, size), nn.Linear(size, size)
        self.value, self.out = nn.Linear(size, size), nn.Linear(size, size)
        self.attention_norm, self.final_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.fc1, self.fc2 = nn.Linear(size, config.ffn_size), nn.Linear(config.ffn_size, size)
        self.dropout, self.activation_dropout = (
            nn.Dropout(config.dropout),
            nn.Dropout(config.activation_dropout),
        )

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add and normalize the attention's output, then the feed-forward block."""
        x = self.attention_norm(x + self.dropout(self.out(attended)))
        inner = self.activation_dropout(F.gelu(self.fc1(x)))
        return self.final_norm(x + self.dropout(self.fc2(inner)))


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
        lengths = [p.n for p in pairs]
        x = self.embedding(features) + self.token_types(types)
        spaces = (
            [Workspace() for _ in pairs] if len(pairs) > 1 or workspace is None else [workspace]
        )
        sparse = [SparseBias(self.gaussian, p, self.config.far_distance) for p in pairs]
        biases = [BiasSource(s, w) for s, w in zip(sparse, spaces, strict=True)]
        queries: list[Tensor] = []
        keys: list[Tensor] = []
        states = [x]
        for layer in self.blocks():
            queries.append(self._heads(layer.query(x)))
            keys.append(self._heads(layer.key(x)))
            value = self._heads(layer.value(x))
            q, k = torch.cat(queries, dim=-1), torch.cat(keys, dim=-1)
            parts = zip(
                q.split(lengths, 1),
                k.split(lengths, 1),
                value.split(lengths, 1),
                biases,
                strict=True,
            )
            attended = torch.cat([self._attend(*part) for part in parts], dim=1)
            x = layer.finish(x, attended.transpose(0, 1).reshape(len(x), -1))
            states.append(x)
        pair = (
            []
            if pair_rows is None
            else self._pair(torch.cat(queries, -1), torch.cat(keys, -1), sparse, pair_rows)
        )
        for bias in biases:
            bias.release()
        return SE2Output(x, pair, states if hidden_states else [])

    @torch.no_grad()
    def typical_norm(self) -> float:
        """Return the root mean square length of an output vector, as the last LayerNorm's weights set it."""
        last = self.blocks()[-1].final_norm
        return float((last.weight.square().sum() + last.bias.square().sum()).sqrt())

    def flops(self, tokens: int) -> float:
        """Return the operations of one forward pass over a sub-slice of this many tokens."""
        c, n = self.config, float(tokens)
        dense = 2 * n * (4 * c.hidden_size**2 + 2 * c.hidden_size * c.ffn_size)
        depth = sum(
            range(1, c.num_layers + 1)
        )  # queries and keys of all layers so far, side by side
        attention = 2 * n**2 * c.hidden_size * (depth + c.num_layers)
        return c.num_layers * dense + attention + 2 * n * 65 * c.num_kernels**2

    def _heads(self, x: Tensor) -> Tensor:
        """``(tokens, hidden)`` to ``(heads, tokens, head_dim)``."""
        return x.view(len(x), self.config.num_heads, self.head_dim).transpose(0, 1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: BiasSource) -> Tensor:
        """Attention of one sub-slice in blocks of query rows; large blocks are recomputed in the backward pass."""
        n = q.shape[1]
        scale = self.head_dim**-0.5
        drop = self.config.attention_dropout if self.training else 0.0
        if not torch.is_grad_enabled():
            return _attend_inference(q, k, v, bias, scale, drop)
        rows = max(1, GRADIENT_BYTES // (4 * n * len(q)))
        out = []
        for start in range(0, n, rows):
            stop = min(start + rows, n)
            block = (q[:, start:stop], k, v, bias.rows(start, stop), scale, drop)
            recompute = n > rows  # large contexts trade time for memory
            out.append(
                checkpoint(_block, *block, use_reentrant=False) if recompute else _block(*block)
            )
        return torch.cat(out, dim=1)

    def _pair(
        self, q: Tensor, k: Tensor, biases: list[SparseBias], rows: list[Tensor]
    ) -> list[Tensor]:
        """Rows of ``R[L]``: the summed scores of all layers plus the true (unshifted) bias."""
        out, start = [], 0
        for bias, wanted in zip(biases, rows, strict=True):
            stop = start + bias.n
            scores = (
                q[:, start:stop][:, wanted] @ k[:, start:stop].transpose(1, 2) * self.head_dim**-0.5
            )
            rows_of_bias = [bias.rows(int(r), int(r) + 1) for r in wanted]
            zero = torch.cat(rows_of_bias, dim=1) if rows_of_bias else torch.zeros_like(scores)
            out.append((scores + zero + bias.far_bias[:, None, None]).permute(1, 2, 0))
            start = stop
        return out


class Workspace:
    """A buffer of zeros for biases, kept from one sub-slice to the next: fresh memory is what costs time."""

    def __init__(self) -> None:
        self._zeros: Tensor | None = None

    def zeros(self, size: int, like: Tensor) -> Tensor:
        """Return at least ``size`` zeros, flat; whoever writes into them puts the zeros back."""
        if self._zeros is None or len(self._zeros) < size or self._zeros.device != like.device:
            self._zeros = like.new_zeros(size)
        return self._zeros


class BiasSource:
    """Rows of a bias: built once where it is small, anew for each block where the context is large."""

    def __init__(self, sparse: SparseBias, workspace: Workspace) -> None:
        self.sparse, self.workspace = sparse, workspace
        row_bytes = 4 * sparse.heads * sparse.n
        self.wide = (
            sparse.n
            if row_bytes * sparse.n <= DENSE_BIAS_BYTES
            else max(1, BLOCK_BIAS_BYTES // row_bytes)
        )
        self.dense: Tensor | None = None
        if self.wide == sparse.n:
            self.dense = (
                sparse.rows(0, sparse.n) if torch.is_grad_enabled() else self._write(0, sparse.n)
            )

    def _write(self, start: int, stop: int) -> Tensor:
        size = self.sparse.heads * self.wide * self.sparse.n
        return self.sparse.write(start, stop, self.workspace.zeros(size, self.sparse.far_bias))

    def rows(self, start: int, stop: int) -> Tensor:
        """Return ``(heads, stop - start, n)``, with gradient."""
        return self.sparse.rows(start, stop) if self.dense is None else self.dense[:, start:stop]

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield ``(start, stop, bias)`` over all rows, without gradient; a block is valid until the next is taken."""
        for start in range(0, self.sparse.n, self.wide):
            stop = min(start + self.wide, self.sparse.n)
            yield start, stop, self._write(start, stop) if self.dense is None else self.dense
            if self.dense is None:
                self._clear(start, stop)

    def _clear(self, start: int, stop: int) -> None:
        size = self.sparse.heads * self.wide * self.sparse.n
        self.sparse.clear(start, stop, self.workspace.zeros(size, self.sparse.far_bias))

    def release(self) -> None:
        """Put the workspace's zeros back."""
        if self.dense is not None and not torch.is_grad_enabled():
            self._clear(0, self.sparse.n)


def _block(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, dropout: float) -> Tensor:
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    return F.dropout(scores.softmax(-1), dropout) @ v if dropout else scores.softmax(-1) @ v


def _attend_inference(
    q: Tensor, k: Tensor, v: Tensor, bias: BiasSource, scale: float, dropout: float
) -> Tensor:
    """Attend without autograd; on the CPU one head at a time, so that scores stay in the cache."""
    heads, n, _ = q.shape
    out = q.new_empty((heads, n, v.shape[-1]))
    if q.device.type != "cpu" or dropout:
        rows = max(1, 2**30 // (4 * n * heads))
        for begin, end, part in bias.blocks():
            for start in range(begin, end, rows):
                stop = min(start + rows, end)
                here = part[:, start - begin : stop - begin]
                out[:, start:stop] = _block(q[:, start:stop], k, v, here, scale, dropout)
        return out
    for begin, end, part in bias.blocks():
        pieces = max(1, -(-4 * n * (end - begin) // SCORE_BYTES))
        rows = max(
            MIN_ROWS, -(-(end - begin) // pieces)
        )  # equal pieces: a short last one would be slow
        scores = q.new_empty((rows, n))
        for head in range(heads):
            for start in range(begin, end, rows):
                stop = min(start + rows, end)
                block = scores[: stop - start]
                torch.addmm(
                    part[head, start - begin : stop - begin],
                    q[head, start:stop],
                    k[head].T,
                    alpha=scale,
                    out=block,
                )
                torch.softmax(block, -1, out=block)
                torch.mm(block, v[head], out=out[head, start:stop])
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
    config = model.config
    batch, n, _ = features.shape
    x = model.embedding(features) + model.token_types(types)
    pair = model.gaussian(distance).permute(0, 3, 1, 2)
    pair = pair.masked_fill((types == PAD)[:, None, None, :], float("-inf"))
    states = [x]
    for layer in model.blocks():
        q, k, v = (
            part(x).view(batch, n, config.num_heads, model.head_dim).transpose(1, 2)
            for part in (layer.query, layer.key, layer.value)
        )
        pair = pair + q @ k.transpose(2, 3) * model.head_dim**-0.5
        x = layer.finish(x, (pair.softmax(-1) @ v).transpose(1, 2).reshape(batch, n, -1))
        states.append(x)
    return x, pair.permute(0, 2, 3, 1), states
