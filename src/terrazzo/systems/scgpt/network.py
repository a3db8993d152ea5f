"""scGPT's transformer: genes and their binned values to one vector a cell (Cui et al., 2024).

The layers are torch's ``TransformerEncoderLayer`` as published. The last one is computed for ``<cls>`` only, since
nothing else of it is used; for inference, cells are sorted by length so that almost nothing is padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terrazzo.arrays import Int32s, Ints, Vectors
from terrazzo.config import HEADS, LAYERS, SIZE, TOKENS, within
from terrazzo.errors import ConfigError
from terrazzo.models.sequences import length_batches, pack, padding_mask

__all__ = ["ScGPTEncoder", "ScGPTEncoderConfig", "ValueMap"]


@dataclass(frozen=True)
class ScGPTEncoderConfig:
    """Sizes of scGPT's encoder; the defaults are those of the published whole-human checkpoint.

    Attributes
    ----------
    vocab_size
        Tokens including special ones; 60,697 for the published vocabulary.
    hidden_size
        Width of the transformer and of the cell vector.
    num_layers, num_heads, ffn_size, dropout
        Of the transformer.
    cls_value
        Value of ``<cls>`` (published: the value of padding).
    max_value
        Larger values count as this one.

    Raises
    ------
    ConfigError
        A size below 1, a width that the heads do not divide, or a dropout outside [0, 1).
    """

    vocab_size: int = 60_697
    hidden_size: int = 512
    num_layers: int = 12
    num_heads: int = 8
    ffn_size: int = 512
    dropout: float = 0.2
    cls_value: float = -2.0
    max_value: float = 512.0

    def __post_init__(self) -> None:
        smallest = min(
            self.vocab_size, self.hidden_size, self.num_layers, self.num_heads, self.ffn_size
        )
        if smallest < 1 or self.hidden_size % self.num_heads:
            raise ConfigError(
                f"scGPT: sizes must be at least 1, and hidden_size ({self.hidden_size}) a multiple of num_heads "
                f"({self.num_heads})."
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"scGPT: dropout is {self.dropout}; it must be in [0, 1).")
        within(self, vocab_size=TOKENS, hidden_size=SIZE, num_layers=LAYERS, num_heads=HEADS)
        within(self, ffn_size=SIZE, cls_value=(-1e6, 1e6), max_value=(0, 1e9))


class ValueMap(nn.Module):
    """A number to a vector: linear, ReLU, linear, LayerNorm, dropout (scGPT's continuous value encoder)."""

    def __init__(self, width: int, dropout: float, max_value: float) -> None:
        super().__init__()
        self.max_value = max_value
        self.linear1 = nn.Linear(1, width)
        self.linear2 = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., width)`` of ``(...)``."""
        clamped = values.clamp(max=self.max_value)
        x = self.linear1(clamped.unsqueeze(-1))
        x = self.linear2(F.relu(x))
        return self.dropout(self.norm(x))


class ScGPTEncoder(nn.Module):
    """Gene and value embeddings, summed, through post-norm layers; the state of ``<cls>``, at unit length."""

    def __init__(self, config: ScGPTEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.genes = nn.Embedding(config.vocab_size, width)
        nn.init.uniform_(self.genes.weight, -0.1, 0.1)
        self.gene_norm = nn.LayerNorm(width)
        self.values = ValueMap(width, config.dropout, config.max_value)
        self.layers = nn.ModuleList()
        for _ in range(config.num_layers):
            layer = nn.TransformerEncoderLayer(
                width, config.num_heads, config.ffn_size, config.dropout, batch_first=True
            )
            self.layers.append(layer)

    def forward(self, genes: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode padded sequences.

        Parameters
        ----------
        genes
            int64 ``(batch, length)``, ``<cls>`` first.
        values
            float ``(batch, length)``: the bin of each gene, ``cls_value`` first.
        mask
            ``(batch, length)``, 1 on genes, 0 on padding; None where nothing is padding.

        Returns
        -------
        float32 ``(batch, hidden_size)``, of length 1.
        """
        attended = None
        if mask is not None:
            attended = mask.bool()[:, None, None, :]
        x = self.gene_norm(self.genes(genes)) + self.values(values)
        for layer in self.layers[:-1]:
            x = _layer(layer, x, attended)
        x = _layer(self.layers[-1], x, attended, only_first=True)
        cls_state = x[:, 0].float()
        return F.normalize(cls_state, dim=-1)

    @torch.inference_mode()
    def encode(
        self,
        flat: Int32s,
        values: Vectors,
        offsets: Ints,
        *,
        cls_token: int,
        precision: Literal["float32", "bfloat16"] = "float32",
        batch_tokens: int = 4096,
        advance: Callable[[int], None] | None = None,
    ) -> Vectors:
        """Encode many cells for inference.

        Parameters
        ----------
        flat, values, offsets
            Genes and their values without ``<cls>``: cell ``i`` is ``offsets[i]:offsets[i + 1]`` of both.
        cls_token
            Token put in front of each sequence.
        precision, batch_tokens, advance
            As in :meth:`terrazzo.systems.stofm.cell_encoder.CellEncoder.encode`.

        Returns
        -------
        float32 ``(n_cells, hidden_size)``, in the order of the sequences.
        """
        if self.training:
            try:
                return self.eval().encode(
                    flat,
                    values,
                    offsets,
                    cls_token=cls_token,
                    precision=precision,
                    batch_tokens=batch_tokens,
                    advance=advance,
                )
            finally:
                self.train()
        device = self.genes.weight.device
        lengths = np.diff(offsets) + 1
        out = np.empty((len(lengths), self.config.hidden_size), dtype=np.float32)
        autocast = torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"
        )
        with autocast:
            for cells in length_batches(lengths, batch_tokens):
                genes = pack(flat, offsets, cells, [cls_token]).to(device)
                bins = pack(values, offsets, cells, [self.config.cls_value]).to(device)
                mask = padding_mask(lengths[cells])
                if mask is not None:
                    mask = mask.to(device)
                vectors = self(genes, bins, mask)
                out[cells] = vectors.cpu().numpy()
                if advance is not None:
                    advance(len(cells))
        return out

    def flops(self, lengths: Ints) -> float:
        """Return the multiply-adds x 2 that sequences of these lengths (``<cls>`` included) cost."""
        config = self.config
        n = lengths.astype(np.float64)
        size = config.hidden_size
        inputs = 2 * n * (size**2 + size)
        dense = 2 * n * (4 * size**2 + 2 * size * config.ffn_size)
        layer = dense + 4 * n**2 * size
        last = 2 * n * 2 * size**2 + 4 * n * size
        total = inputs + (config.num_layers - 1) * layer + last
        return float(np.sum(total))


def _layer(layer: Any, x: Tensor, attended: Tensor | None, only_first: bool = False) -> Tensor:
    """One post-norm TransformerEncoderLayer from its own parts; with ``only_first`` only the first row's output."""
    attention = layer.self_attn
    rows = x[:, :1] if only_first else x

    def by_head(y: Tensor) -> Tensor:
        return y.view(y.shape[0], y.shape[1], attention.num_heads, -1).transpose(1, 2)

    query_weight, key_weight, value_weight = attention.in_proj_weight.chunk(3)
    query_bias, key_bias, value_bias = attention.in_proj_bias.chunk(3)
    query = by_head(F.linear(rows, query_weight, query_bias))
    key = by_head(F.linear(x, key_weight, key_bias))
    value = by_head(F.linear(x, value_weight, value_bias))
    dropout = attention.dropout if attention.training else 0.0
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attended, dropout_p=dropout)
    mixed = mixed.transpose(1, 2).reshape(rows.shape)
    mixed = attention.out_proj(mixed)
    rows = layer.norm1(rows + layer.dropout1(mixed))
    inner = layer.dropout(F.relu(layer.linear1(rows)))
    inner = layer.linear2(inner)
    return layer.norm2(rows + layer.dropout2(inner))
