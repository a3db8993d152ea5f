"""AE-Gene: encoder of expression values, a linear map and a transformer (ST-Align, eq 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from terrazzo.config import HEADS, LAYERS, SIZE, TOKENS, within
from terrazzo.errors import ConfigError

__all__ = ["ValueEncoder", "ValueEncoderConfig"]

_LEAST = 1e-3  # standard deviation: noise of a gene that hardly varies is not amplified


@dataclass(frozen=True)
class ValueEncoderConfig:
    """Sizes of AE-Gene; layers, heads and dropout are the paper's (section 4.1).

    Attributes
    ----------
    n_genes
        Length of the vector that comes in: one column a gene, the same for every slice.
    n_tokens
        Tokens that it becomes.
    width, num_layers, num_heads, ffn_size, dropout
        Of the transformer.
    output_dim
        Width of the vector that comes out.

    Raises
    ------
    ConfigError
        A size below 1, fewer genes than tokens, a width that the heads do not divide, or a dropout outside [0, 1).
    """

    n_genes: int
    n_tokens: int = 8
    width: int = 512
    num_layers: int = 6
    num_heads: int = 8
    ffn_size: int = 2048
    dropout: float = 0.1
    output_dim: int = 512

    def __post_init__(self) -> None:
        sizes = [
            self.n_genes,
            self.n_tokens,
            self.width,
            self.num_layers,
            self.num_heads,
            self.ffn_size,
            self.output_dim,
        ]
        uneven = min(sizes) < 1 or self.width % self.num_heads > 0
        if uneven or self.n_genes < self.n_tokens:
            raise ConfigError(
                f"AE-Gene: sizes must be at least 1, width ({self.width}) a multiple of num_heads ({self.num_heads}) "
                f"and n_genes ({self.n_genes}) no fewer than n_tokens ({self.n_tokens})."
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"AE-Gene: dropout is {self.dropout}; it must be in [0, 1).")
        within(self, n_genes=TOKENS, n_tokens=SIZE, width=SIZE, num_layers=LAYERS, num_heads=HEADS)
        within(self, ffn_size=SIZE, output_dim=SIZE)


class ValueEncoder(nn.Module):
    """AE-Gene: linear projection and transformer encoder.

    The paper does not state how a vector becomes tokens. A transformer on one token would be a plain network, and one
    token a gene would be 15,000 tokens. So genes are assigned to ``n_tokens`` groups, gene ``i`` to group ``i mod
    n_tokens``, as an image is cut into patches; each group has a linear map of its own to one token. All maps together
    are as large as one from all genes to ``width``. The tokens' mean after the last layer is normalized and mapped to
    ``output_dim``.

    Values are standardized gene by gene where :meth:`fit` has set means and deviations, which are stored with the
    weights; a gene that a slice lacks then counts as its mean.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: ValueEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        group_size = math.ceil(config.n_genes / config.n_tokens)
        self.weight = nn.Parameter(torch.empty(config.n_tokens, group_size, width))
        self.bias = nn.Parameter(torch.zeros(config.n_tokens, width))
        bound = 1 / math.sqrt(group_size)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.normal_(self.bias, std=0.02)  # it also makes the groups different
        self.register_buffer("mean", torch.zeros(config.n_genes))
        self.register_buffer("deviation", torch.ones(config.n_genes))
        self.layers = nn.ModuleList()
        for _ in range(config.num_layers):
            layer = nn.TransformerEncoderLayer(
                width,
                config.num_heads,
                config.ffn_size,
                config.dropout,
                "gelu",
                batch_first=True,
                norm_first=True,
            )
            self.layers.append(layer)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.output_dim)

    def fit(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the mean and the standard deviation of each gene's values on the training slices, ``(n_genes,)``."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp_min(_LEAST))

    def tokens(self, values: Tensor, known: Tensor | None = None) -> Tensor:
        """Return ``(n, n_tokens, width)``; arguments as in :meth:`forward`."""
        standard = (values - self.mean) / self.deviation
        if known is not None:
            standard = torch.where(known, standard, 0.0)
        n_groups, group_size, _ = self.weight.shape
        n_missing = n_groups * group_size - self.config.n_genes
        padded = nn.functional.pad(standard, (0, n_missing))
        grouped = padded.view(len(values), group_size, n_groups)
        return torch.einsum("nsg,gsw->ngw", grouped, self.weight) + self.bias

    def forward(self, values: Tensor, known: Tensor | None = None) -> Tensor:
        """Encode expression vectors.

        Parameters
        ----------
        values
            ``(n, n_genes)``: log1p of normalized expression, of a niche its mean (eq 2).
        known
            bool ``(n_genes,)`` or ``(n, n_genes)``: genes that were measured; None: all.

        Returns
        -------
        ``(n, output_dim)``.
        """
        x = self.tokens(values, known)
        for layer in self.layers:
            x = layer(x)
        mean = x.mean(dim=1)
        return self.out(self.norm(mean))
