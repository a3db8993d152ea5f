"""The cell encoder: a ranked gene list through BERT to one vector (SToFM section A.1), without wasted work.

The module holds ``transformers.BertModel`` as it is. The last layer is computed for ``<cls>`` only, since nothing else
of it is used; for inference, cells are sorted by length so that almost nothing is padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from terrazzo.models.sequences import length_batches, pack, padding_mask

if TYPE_CHECKING:
    from transformers import BertConfig


@dataclass(frozen=True)
class CellEncoderConfig:
    """Sizes of the cell encoder (SToFM table A.8) and how a cell's vector is read out.

    Attributes
    ----------
    vocab_size
        Tokens including special ones; 25,427 for the published vocabulary with ``<cls>``.
    max_length
        Longest sequence, ``<cls>`` included.
    output_dim
        Width of the cell vector.
    pooling
        ``"cls"``: ``<cls>`` is put in front, its state -> linear -> unit length (SToFM). ``"mean"``: no ``<cls>``, the
        mean over genes of the second-to-last layer (Geneformer's own read-out; ``output_dim`` = ``hidden_size``).
    attention_dropout
        Of attention weights. At 0 torch takes its fused attention on a CPU in training too (3 times faster); the
        presets ``tiny`` and ``small`` do, since thinned counts are noise enough.
    """

    vocab_size: int = 25_427
    hidden_size: int = 512
    num_layers: int = 12
    num_heads: int = 8
    intermediate_size: int = 1024
    max_length: int = 2048
    output_dim: int = 256
    dropout: float = 0.02
    activation: str = "relu"
    layer_norm_eps: float = 1e-12
    pooling: Literal["cls", "mean"] = "cls"
    attention_dropout: float = 0.02

    def bert(self) -> BertConfig:
        """Return the transformers config."""
        from transformers import BertConfig

        return BertConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.max_length,
            hidden_act=self.activation,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.attention_dropout,
            layer_norm_eps=self.layer_norm_eps,
            type_vocab_size=2,
            pad_token_id=0,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )


class CellEncoder(nn.Module):
    """BERT over ranked genes, read out as one vector a cell.

    Parameters
    ----------
    config
        Sizes.
    """

    def __init__(self, config: CellEncoderConfig) -> None:
        super().__init__()
        from transformers import BertModel

        self.config = config
        self.bert = BertModel(config.bert(), add_pooling_layer=False)
        self.proj = (
            nn.Linear(config.hidden_size, config.output_dim) if config.pooling == "cls" else None
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Encode padded sequences: transformers' own layers, of the last one only what the read-out needs.

        Parameters
        ----------
        input_ids
            int64 ``(batch, length)``; ``<cls>`` first for ``pooling="cls"``.
        attention_mask
            ``(batch, length)``, 1 on tokens, 0 on padding; None where nothing is padding.

        Returns
        -------
        ``(batch, output_dim)``.
        """
        x = self.bert.embeddings(input_ids=input_ids)
        keep = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        layers: list[Any] = list(self.bert.encoder.layer)
        for layer in layers[:-1]:
            x = _bert_layer(layer, x, keep)
        if self.proj is None:
            return _masked_mean(
                x, torch.ones_like(input_ids) if attention_mask is None else attention_mask
            )
        state = _bert_layer(layers[-1], x, keep, only_first=True)[:, 0]
        return F.normalize(self.proj(state).float(), dim=-1)

    @torch.inference_mode()
    def encode(
        self,
        flat: NDArray[np.int32],
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
        flat, offsets
            Token sequences without ``<cls>``: cell ``i`` is ``flat[offsets[i]:offsets[i + 1]]``.
        cls_token
            Token put in front of each sequence (``pooling="cls"``).
        precision
            ``"bfloat16"``: matrix products in bfloat16; residuals, LayerNorm and softmax stay in float32.
        batch_tokens
            Tokens processed at once.
        advance
            Called with the number of cells done after each batch.

        Returns
        -------
        float32 ``(n_cells, output_dim)``, in the order given.
        """
        if self.training:  # called amid training, to store vectors: without dropout
            try:
                return self.eval().encode(
                    flat,
                    offsets,
                    cls_token=cls_token,
                    precision=precision,
                    batch_tokens=batch_tokens,
                    advance=advance,
                )
            finally:
                self.train()
        device = self.bert.embeddings.word_embeddings.weight.device
        lead = [cls_token] if self.proj is not None else []
        lengths = np.diff(offsets) + len(lead)
        out = np.zeros(
            (len(lengths), self.config.output_dim), dtype=np.float32
        )  # without <cls>, an empty cell stays 0
        autocast = torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"
        )
        with autocast:
            for cells in length_batches(lengths, batch_tokens):
                ids, mask = pack(flat, offsets, cells, lead), padding_mask(lengths[cells])
                vectors = self(ids.to(device), None if mask is None else mask.to(device))
                out[cells] = vectors.float().cpu().numpy()
                if advance is not None:
                    advance(len(cells))
        return out

    def flops(self, lengths: NDArray[np.int64]) -> float:
        """Return the multiply-adds x 2 that sequences of these lengths (``<cls>`` included) cost."""
        c, n = self.config, lengths.astype(np.float64)
        dense = 2 * n * (4 * c.hidden_size**2 + 2 * c.hidden_size * c.intermediate_size)
        attention = 4 * n**2 * c.hidden_size
        full = (c.num_layers - 1) * (dense + attention)
        last = (
            2 * n * 2 * c.hidden_size**2 + 4 * n * c.hidden_size if self.proj is not None else 0.0
        )
        return float(np.sum(full + last))


def _bert_layer(layer: Any, x: Tensor, keep: Tensor | None, only_first: bool = False) -> Tensor:
    """One BertLayer from its own submodules; with ``only_first`` only the first row's output is computed."""
    attention = layer.attention.self
    rows = x[:, :1] if only_first else x
    heads = attention.num_attention_heads

    def split(y: Tensor) -> Tensor:
        return y.view(y.shape[0], y.shape[1], heads, -1).transpose(1, 2)

    q, k, v = split(attention.query(rows)), split(attention.key(x)), split(attention.value(x))
    drop = attention.dropout.p if attention.training else 0.0
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, dropout_p=drop)
    mixed = mixed.transpose(1, 2).reshape(rows.shape)
    mixed = layer.attention.output(mixed, rows)
    return layer.output(layer.intermediate(mixed), mixed)


def _masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are not padding."""
    weight = mask.to(states.dtype)[..., None]
    return ((states * weight).sum(1) / weight.sum(1)).float()
