"""The cell encoder: a ranked gene list through BERT to one vector (SToFM section A.1).

The module has ``transformers.BertModel`` as it is. The last layer is computed for ``<cls>`` only, since nothing else
of it is used; for inference, cells are sorted by length so that almost nothing is padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terrazzo.arrays import Int32s, Ints, Vectors
from terrazzo.config import HEADS, LAYERS, SHARE, SIZE, TOKENS, within
from terrazzo.errors import shortened
from terrazzo.models.sequences import length_batches, pack, padding_mask

if TYPE_CHECKING:
    from transformers import BertConfig

__all__ = ["CellEncoder", "CellEncoderConfig"]


ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu", "tanh")


@dataclass(frozen=True)
class CellEncoderConfig:
    """Sizes of the cell encoder (SToFM table A.8), and which of its states is a cell's vector.

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
        mean over genes of the second-to-last layer (Geneformer's own; ``output_dim`` = ``hidden_size``).
    attention_dropout
        Of attention weights. At 0 torch uses its fused attention on a CPU in training too (3 times faster); it is 0 in
        the presets ``tiny`` and ``small``, since thinned counts are noise enough.
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

    def __post_init__(self) -> None:
        within(self, vocab_size=TOKENS, hidden_size=SIZE, num_layers=LAYERS, num_heads=HEADS)
        within(self, intermediate_size=SIZE, max_length=(2, SIZE[1]), output_dim=SIZE)
        within(self, dropout=SHARE, attention_dropout=SHARE, layer_norm_eps=(1e-30, 1))
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            shown = shortened(self.activation)
            raise ValueError(f"activation is {shown}; it must be one of {known}.")

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
    """BERT over ranked genes, with one vector a cell.

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
        self.proj: nn.Linear | None = None
        if config.pooling == "cls":
            self.proj = nn.Linear(config.hidden_size, config.output_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Encode padded sequences: transformers' own layers, of the last one only the part that the vector needs.

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
        attended = None
        if attention_mask is not None:
            attended = attention_mask.bool()[:, None, None, :]
        x = self.bert.embeddings(input_ids=input_ids)
        layers: list[Any] = list(self.bert.encoder.layer)
        for layer in layers[:-1]:
            x = _bert_layer(layer, x, attended)
        if self.proj is None:
            mask = attention_mask
            if mask is None:
                mask = torch.ones_like(input_ids)
            return _masked_mean(x, mask)
        x = _bert_layer(layers[-1], x, attended, only_first=True)
        cls_state = x[:, 0]
        return F.normalize(self.proj(cls_state).float(), dim=-1)

    @torch.inference_mode()
    def encode(
        self,
        flat: Int32s,
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
        float32 ``(n_cells, output_dim)``, in the order of the sequences.
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
        # without <cls>, the vector of an empty cell stays 0
        out = np.zeros((len(lengths), self.config.output_dim), dtype=np.float32)
        autocast = torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"
        )
        with autocast:
            for cells in length_batches(lengths, batch_tokens):
                ids = pack(flat, offsets, cells, lead).to(device)
                mask = padding_mask(lengths[cells])
                if mask is not None:
                    mask = mask.to(device)
                vectors = self(ids, mask)
                out[cells] = vectors.float().cpu().numpy()
                if advance is not None:
                    advance(len(cells))
        return out

    def flops(self, lengths: Ints) -> float:
        """Return the multiply-adds x 2 that sequences of these lengths (``<cls>`` included) cost."""
        config = self.config
        n = lengths.astype(np.float64)
        size = config.hidden_size
        dense = 2 * n * (4 * size**2 + 2 * size * config.intermediate_size)
        attention = 4 * n**2 * size
        total = (config.num_layers - 1) * (dense + attention)
        if self.proj is not None:
            total = total + (2 * n * 2 * size**2 + 4 * n * size)
        return float(np.sum(total))


def _bert_layer(layer: Any, x: Tensor, attended: Tensor | None, only_first: bool = False) -> Tensor:
    """One BertLayer from its own submodules; with ``only_first`` only the first row's output is computed."""
    attention = layer.attention.self
    rows = x[:, :1] if only_first else x
    heads = attention.num_attention_heads

    def by_head(y: Tensor) -> Tensor:
        return y.view(y.shape[0], y.shape[1], heads, -1).transpose(1, 2)

    query = by_head(attention.query(rows))
    key = by_head(attention.key(x))
    value = by_head(attention.value(x))
    dropout = attention.dropout.p if attention.training else 0.0
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attended, dropout_p=dropout)
    mixed = mixed.transpose(1, 2).reshape(rows.shape)
    mixed = layer.attention.output(mixed, rows)
    return layer.output(layer.intermediate(mixed), mixed)


def _masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the tokens that are not padding."""
    weight = mask.to(states.dtype)[..., None]
    total = (states * weight).sum(1)
    mean = total / weight.sum(1)
    return mean.float()
