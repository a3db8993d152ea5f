"""Image and genes of one place joined: symmetric cross-attention between their tokens (ST-Align, section 3.3).

A softmax over one key is always 1, so that equations 7 and 8 on single vectors would be plain concatenation. Each
vector is therefore first expanded to several tokens, each a linear map of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from terrazzo.errors import ConfigError


@dataclass(frozen=True)
class FusionConfig:
    """How image and genes are joined.

    Attributes
    ----------
    image_dim, gene_dim
        Width of the vectors that come in.
    n_tokens, width
        A vector becomes so many tokens of this width.
    output_dim
        Width of what comes out; the first half is from the image's point of view, the second from the genes'.
    mode
        ``"attention"``: equations 7 to 9. ``"concatenation"``: both vectors, each through a linear map (the ablation of
        table 3); tokens and width are not used.
    pooling
        The attended tokens of a side are averaged (``"mean"``), or laid one after the other (``"flatten"``), before
        ``W_I`` and ``W_G``.
    dropout
        Of attention weights, in training.

    Raises
    ------
    ConfigError
        A size below 1, an odd ``output_dim``, an unknown mode or pooling, or a dropout outside [0, 1).
    """

    image_dim: int
    gene_dim: int
    n_tokens: int = 8
    width: int = 512
    output_dim: int = 512
    mode: Literal["attention", "concatenation"] = "attention"
    pooling: Literal["mean", "flatten"] = "mean"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("image_dim", "gene_dim", "n_tokens", "width", "output_dim")}
        if min(sizes.values()) < 1 or self.output_dim % 2:
            raise ConfigError(f"fusion: sizes must be at least 1 and output_dim even, got {sizes}.")
        if self.mode not in ("attention", "concatenation"):
            raise ConfigError(f'fusion: mode is {self.mode!r}; it must be "attention" or "concatenation".')
        if self.pooling not in ("mean", "flatten"):
            raise ConfigError(f'fusion: pooling is {self.pooling!r}; it must be "mean" or "flatten".')
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"fusion: dropout is {self.dropout}; it must lie in [0, 1).")


class Fusion(nn.Module):
    """Vectors of image and genes to one, ``[z_I W_I ; z_G W_G]``."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        half = config.output_dim // 2
        if config.mode == "concatenation":
            self.out_image, self.out_genes = nn.Linear(config.image_dim, half), nn.Linear(config.gene_dim, half)
            return
        tokens, width = config.n_tokens, config.width
        self.expand_image = nn.Linear(config.image_dim, tokens * width)
        self.expand_genes = nn.Linear(config.gene_dim, tokens * width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        pooled = width if config.pooling == "mean" else tokens * width
        self.out_image, self.out_genes = nn.Linear(pooled, half), nn.Linear(pooled, half)

    def forward(self, image: Tensor, genes: Tensor) -> Tensor:
        """Join vectors of the same places.

        Parameters
        ----------
        image
            ``(n, image_dim)``.
        genes
            ``(n, gene_dim)``.

        Returns
        -------
        ``(n, output_dim)``.
        """
        if self.config.mode == "concatenation":
            return torch.cat([self.out_image(image), self.out_genes(genes)], dim=-1)
        shape = (len(image), self.config.n_tokens, self.config.width)
        seen, read = self.expand_image(image).view(shape), self.expand_genes(genes).view(shape)
        return torch.cat([self.out_image(self.attend(seen, read)), self.out_genes(self.attend(read, seen))], dim=-1)

    def attend(self, asking: Tensor, asked: Tensor) -> Tensor:
        """Return what one side's tokens find in the other's (eq 7, and 8 the other way round), ``(n, pooled)``."""
        score = self.query(asking) @ self.key(asked).transpose(1, 2) / math.sqrt(self.config.width)
        weights = nn.functional.dropout(score.softmax(dim=-1), self.config.dropout, self.training)
        found = weights @ self.value(asked)
        return found.mean(dim=1) if self.config.pooling == "mean" else found.flatten(1)
