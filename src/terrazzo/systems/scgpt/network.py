"""scGPT's transformer: genes and their binned values to one vector a cell (Cui et al., 2024), without wasted work.

The layers are torch's ``TransformerEncoderLayer`` as published. The last one is computed for ``<cls>`` only, since
nothing else of it is used; for inference, cells are sorted by length so that almost nothing is padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from terrazzo.errors import ConfigError
from terrazzo.models.sequences import length_batches, pack, padding_mask


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
        Value that stands beside ``<cls>`` (published: the value of padding).
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
        sizes = [self.vocab_size, self.hidden_size, self.num_layers, self.num_heads, self.ffn_size]
        if min(sizes) < 1 or self.hidden_size % self.num_heads:
            raise ConfigError(
                f"scGPT: sizes must be at least 1, and hidden_size ({self.hidden_size}) a multiple of num_heads "
                f"({self.num_heads})."
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"scGPT: dropout is {self.dropout}; it must lie in [0, 1).")


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
        x = values.clamp(max=self.max_value).unsqueeze(-1)
        return self.dropout(self.norm(self.linear2(F.relu(self.linear1(x)))))


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
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, config.num_heads, config.ffn_size, config.dropout, batch_first=True
            )
            for _ in range(config.num_layers)
        )

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
        x = self.gene_norm(self.genes(genes)) + self.values(values)
        keep = None if mask is None else mask.bool()[:, None, None, :]
        for layer in self.layers[:-1]:
            x = _layer(layer, x, keep)
        return F.normalize(_layer(self.layers[-1], x, keep, only_first=True)[:, 0].float(), dim=-1)

    @torch.inference_mode()
    def encode(
        self,
        flat: NDArray[np.int32],
        values: NDArray[np.float32],
        offsets: NDArray[np.int64],
        *,
        cls_token: int,
        precision: Literal["float32", "bfloat16"] = "float32",
        batch_tokens: int = 4096,
        advance: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
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
        float32 ``(n_cells, hidden_size)``, in the order given.
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
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            for cells in length_batches(lengths, batch_tokens):
                tokens = pack(flat, offsets, cells, [cls_token]).to(device)
                numbers = pack(values, offsets, cells, [self.config.cls_value]).to(device)
                mask = padding_mask(lengths[cells])
                vectors = self(tokens, numbers, None if mask is None else mask.to(device))
                out[cells] = vectors.cpu().numpy()
                if advance is not None:
                    advance(len(cells))
        return out

    def flops(self, lengths: NDArray[np.int64]) -> float:
        """Return the multiply-adds x 2 that sequences of these lengths (``<cls>`` included) cost."""
        c, n = self.config, lengths.astype(np.float64)
        entry = 2 * n * (c.hidden_size**2 + c.hidden_size)
        layer = (
            2 * n * (4 * c.hidden_size**2 + 2 * c.hidden_size * c.ffn_size)
            + 4 * n**2 * c.hidden_size
        )
        last = 2 * n * 2 * c.hidden_size**2 + 4 * n * c.hidden_size
        return float(np.sum(entry + (c.num_layers - 1) * layer + last))


def _layer(layer: Any, x: Tensor, keep: Tensor | None, only_first: bool = False) -> Tensor:
    """One post-norm TransformerEncoderLayer from its own parts; with ``only_first`` only the first row's output."""
    attention = layer.self_attn
    rows = x[:, :1] if only_first else x

    def split(y: Tensor) -> Tensor:
        return y.view(y.shape[0], y.shape[1], attention.num_heads, -1).transpose(1, 2)

    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (
        split(F.linear(y, w, b)) for y, w, b in zip((rows, x, x), weights, biases, strict=True)
    )
    drop = attention.dropout if attention.training else 0.0
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, dropout_p=drop)
    mixed = attention.out_proj(mixed.transpose(1, 2).reshape(rows.shape))
    rows = layer.norm1(rows + layer.dropout1(mixed))
    inner = layer.linear2(layer.dropout(F.relu(layer.linear1(rows))))
    return layer.norm2(rows + layer.dropout2(inner))
