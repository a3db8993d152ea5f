"""The trained part of ST-Align: encoders, and fusion by cross-attention of image and genes (section 3.3).

A softmax over one key is always 1, so that equations 7 and 8 on single vectors would be plain concatenation. Each
vector is therefore first expanded to several tokens, each a linear map of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terrazzo.config import SIZE, within
from terrazzo.errors import ConfigError
from terrazzo.systems.stalign.image_encoder import SpotEncoder, SpotEncoderConfig
from terrazzo.systems.stalign.kept import Components, Heads
from terrazzo.systems.stalign.value_encoder import ValueEncoder, ValueEncoderConfig

__all__ = ["AlignConfig", "AlignNet", "FrozenFeatures", "Fusion", "FusionConfig", "Part"]

Part = Literal["spot_image", "niche_image", "spot_genes", "niche_genes"]

_COLDEST = 0.01  # lower bound of a temperature that is learned, as in CLIP

_LEAST = 1e-6  # standard deviation of a frozen feature that is used at all


@dataclass(frozen=True)
class FusionConfig:
    """Settings of the fusion of image and genes.

    Attributes
    ----------
    image_dim, gene_dim
        Width of the vectors that come in.
    n_tokens, width
        A vector becomes so many tokens of this width.
    output_dim
        Width of the output; the first half is of the image's tokens, the second of the genes'.
    mode
        ``"attention"``: equations 7 to 9. ``"concatenation"``: both vectors, each through a linear map (the ablation of
        table 3); tokens and width are not used.
    pooling
        The attended tokens of a side are averaged (``"mean"``), or concatenated (``"flatten"``), before ``W_I`` and
        ``W_G``.
    dropout
        Of attention weights, in training.
    residual
        The sides themselves stay in the output, ``[image ; genes]`` of width ``image_dim + gene_dim``; what attention
        reads is added to them, and is 0 before training. ``output_dim`` is not used.

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
    residual: bool = False

    def __post_init__(self) -> None:
        sizes = {
            "image_dim": self.image_dim,
            "gene_dim": self.gene_dim,
            "n_tokens": self.n_tokens,
            "width": self.width,
            "output_dim": self.output_dim,
        }
        if min(sizes.values()) < 1 or self.output_dim % 2:
            raise ConfigError(f"fusion: sizes must be at least 1 and output_dim even, got {sizes}.")
        if self.mode not in ("attention", "concatenation"):
            raise ConfigError(
                f'fusion: mode is {self.mode!r}; it must be "attention" or "concatenation".'
            )
        if self.pooling not in ("mean", "flatten"):
            raise ConfigError(
                f'fusion: pooling is {self.pooling!r}; it must be "mean" or "flatten".'
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"fusion: dropout is {self.dropout}; it must be in [0, 1).")
        within(self, image_dim=SIZE, gene_dim=SIZE, n_tokens=SIZE, width=SIZE, output_dim=SIZE)


class Fusion(nn.Module):
    """Fusion of vectors of image and genes to one, ``[z_I W_I ; z_G W_G]``."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        half = config.output_dim // 2
        if config.residual and config.mode == "concatenation":
            return  # nothing is trained
        if config.mode == "concatenation":
            self.out_image = nn.Linear(config.image_dim, half)
            self.out_genes = nn.Linear(config.gene_dim, half)
            return
        width = config.width
        all_tokens = config.n_tokens * width
        self.expand_image = nn.Linear(config.image_dim, all_tokens)
        self.expand_genes = nn.Linear(config.gene_dim, all_tokens)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        pooled = width if config.pooling == "mean" else all_tokens
        self.out_image = nn.Linear(pooled, config.image_dim if config.residual else half)
        self.out_genes = nn.Linear(pooled, config.gene_dim if config.residual else half)
        if config.residual:
            _zero(self.out_image)
            _zero(self.out_genes)

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
        ``(n, output_dim)``; with residual sides ``(n, image_dim + gene_dim)``.
        """
        if not self.config.residual:
            return self._read(image, genes)
        sides = torch.cat([image, genes], dim=-1)
        if self.config.mode == "concatenation":
            return sides
        return sides + self._read(image, genes)

    def _read(self, image: Tensor, genes: Tensor) -> Tensor:
        if self.config.mode == "concatenation":
            return torch.cat([self.out_image(image), self.out_genes(genes)], dim=-1)
        shape = (len(image), self.config.n_tokens, self.config.width)
        image_tokens = self.expand_image(image).view(shape)
        gene_tokens = self.expand_genes(genes).view(shape)
        image_attended = self.attend(image_tokens, gene_tokens)
        genes_attended = self.attend(gene_tokens, image_tokens)
        both = [self.out_image(image_attended), self.out_genes(genes_attended)]
        return torch.cat(both, dim=-1)

    def attend(self, tokens: Tensor, others: Tensor) -> Tensor:
        """Attend from one side's tokens to the other's (eq 7, and 8 the other way round); return ``(n, pooled)``."""
        query = self.query(tokens)
        key = self.key(others)
        score = query @ key.transpose(1, 2) / math.sqrt(self.config.width)
        weights = F.dropout(score.softmax(dim=-1), self.config.dropout, self.training)
        attended = weights @ self.value(others)
        if self.config.pooling == "mean":
            return attended.mean(dim=1)
        return attended.flatten(1)


def _zero(linear: nn.Linear) -> None:
    """Let a map start at 0."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


@dataclass(frozen=True)
class AlignConfig:
    """Sizes of the trained part.

    Attributes
    ----------
    dim
        Width of every vector (eqs 3 to 6, and 9).
    spot_image
        AE-Img; its ``output_dim`` is ``dim``.
    spot_side
        Side that spot crops are resized to for AE-Img; 0: they are not resized.
    niche_image_dim, spot_gene_dim
        Width of the frozen features.
    niche_genes
        AE-Gene; its ``output_dim`` is ``dim``.
    fusion_tokens, fusion_width, fusion_mode, fusion_pooling, fusion_dropout
        As in :class:`terrazzo.systems.stalign.network.FusionConfig`.
    adaptive
        False: the ablation of table 3 without AE-Img and AE-Gene. Spot crops and niche genes then come as features of
        the frozen encoders, too, each with a trained linear map only.
    temperature, learn_temperature
        Of the contrast; train it, too.
    residual
        Every vector is the components of its frozen feature, unchanged, plus what the trained parts add, which is 0
        before training; fusion has residual sides, and linear maps (:class:`terrazzo.systems.stalign.kept.Heads`) lead
        to the space of the contrast. False: as in the paper.
    own_first
        The first half of ``niche_image`` is of the spot itself: the frozen feature that AE-Img's vector is added to.

    Raises
    ------
    ConfigError
        Sizes below 1 or of another ``dim``, or a temperature that is not positive.
    """

    dim: int
    niche_image_dim: int
    spot_gene_dim: int
    niche_genes: ValueEncoderConfig
    spot_image: SpotEncoderConfig = field(default_factory=SpotEncoderConfig)
    spot_side: int = 224
    fusion_tokens: int = 8
    fusion_width: int = 512
    fusion_mode: Literal["attention", "concatenation"] = "attention"
    fusion_pooling: Literal["mean", "flatten"] = "mean"
    fusion_dropout: float = 0.0
    adaptive: bool = True
    temperature: float = 0.07
    learn_temperature: bool = False
    residual: bool = False
    own_first: bool = False

    def __post_init__(self) -> None:
        least = min(self.dim, self.niche_image_dim, self.spot_gene_dim)
        if least < 1 or self.spot_side < 0:
            raise ConfigError(
                f"ST-Align: dim ({self.dim}), niche_image_dim ({self.niche_image_dim}) and spot_gene_dim "
                f"({self.spot_gene_dim}) must be at least 1, spot_side ({self.spot_side}) at least 0."
            )
        output_dims = {self.spot_image.output_dim, self.niche_genes.output_dim}
        if self.adaptive and output_dims != {self.dim}:
            raise ConfigError(
                f"ST-Align: spot_image.output_dim ({self.spot_image.output_dim}) and niche_genes.output_dim "
                f"({self.niche_genes.output_dim}) must be dim ({self.dim})."
            )
        if not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"ST-Align: temperature is {self.temperature}; it must be a positive number."
            )
        if self.residual and not self.adaptive:
            raise ConfigError(
                "ST-Align: without adaptive encoders there is no residual: set residual False."
            )
        if self.own_first and self.niche_image_dim % 2:
            raise ConfigError(
                f"ST-Align: niche_image_dim ({self.niche_image_dim}) must be even with own_first."
            )
        self.fusion()  # checks the rest
        within(self, dim=SIZE, niche_image_dim=SIZE, spot_gene_dim=SIZE, spot_side=(0, 4096))

    def fusion(self) -> FusionConfig:
        """Return the sizes of the fusion network."""
        return FusionConfig(
            self.dim,
            self.dim,
            self.fusion_tokens,
            self.fusion_width,
            self.dim,
            self.fusion_mode,
            self.fusion_pooling,
            self.fusion_dropout,
            self.residual,
        )

    @property
    def fused_dim(self) -> int:
        """Width of a vector of image and genes."""
        return 2 * self.dim if self.residual else self.dim


class FrozenFeatures(nn.Module):
    """Features of a frozen encoder, through a linear map that is trained.

    They are standardized first where :meth:`fit` has set their means and deviations, which are stored with the
    weights: a part that is the same for all crops would otherwise dominate every cosine.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.proj = nn.Linear(width, dim)

    def fit(self, mean: Tensor, deviation: Tensor) -> None:
        """Set mean and standard deviation over the training slices, ``(width,)`` each."""
        self.mean.copy_(mean)
        used = deviation > _LEAST
        self.deviation.copy_(torch.where(used, deviation, torch.inf))

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(n, dim)`` of ``(n, width)``."""
        standard = (features - self.mean) / self.deviation
        return self.proj(standard)


class AlignNet(nn.Module):
    """The trained part of ST-Align. Every vector is ``(n, dim)``; of image and genes ``(n, fused_dim)``."""

    log_temperature: Tensor

    def __init__(self, config: AlignConfig) -> None:
        super().__init__()
        self.config = config
        self.niche_image_map = FrozenFeatures(config.niche_image_dim, config.dim)
        self.spot_gene_map = FrozenFeatures(config.spot_gene_dim, config.dim)
        self.ae_image: SpotEncoder | FrozenFeatures
        self.ae_genes: ValueEncoder | FrozenFeatures
        if config.adaptive:
            self.ae_image = SpotEncoder(config.spot_image)
            self.ae_genes = ValueEncoder(config.niche_genes)
        else:
            self.ae_image = FrozenFeatures(config.niche_image_dim, config.dim)
            self.ae_genes = FrozenFeatures(config.spot_gene_dim, config.dim)
        self.fusion = Fusion(config.fusion())
        self.kept = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        if config.residual:
            self._start_from_components()
        start = torch.tensor(math.log(config.temperature))
        if config.learn_temperature:
            self.log_temperature = nn.Parameter(start)
        else:
            self.register_buffer("log_temperature", start)

    def _start_from_components(self) -> None:
        """Add the components, and let what is trained beside them start at 0."""
        config = self.config
        image_width = config.niche_image_dim
        _zero(self.niche_image_map.proj)
        _zero(self.spot_gene_map.proj)
        if isinstance(self.ae_genes, ValueEncoder):
            _zero(self.ae_genes.out)
        if config.own_first:
            image_width = image_width // 2
            self.kept["spot_image"] = Components(image_width, config.dim)
            if isinstance(self.ae_image, SpotEncoder):
                _zero(self.ae_image.proj)
        self.kept["niche_image"] = Components(image_width, config.dim)
        self.kept["spot_genes"] = Components(config.spot_gene_dim, config.dim)
        self.kept["niche_genes"] = Components(config.spot_gene_dim, config.dim)
        self.heads["spot"] = Heads(config.dim, config.dim)
        self.heads["niche"] = Heads(config.dim, config.dim)
        self.heads["spot_niche"] = Heads(2 * config.dim, config.dim)

    def frozen_part(self, part: Part, features: Tensor) -> Tensor:
        """Return the columns of a frozen feature that are of this part: with ``own_first`` images are in two halves."""
        if not self.config.own_first or part not in ("spot_image", "niche_image"):
            return features
        half = self.config.niche_image_dim // 2
        return features[:, :half] if part == "spot_image" else features[:, half:]

    def components(self, part: Part, features: Tensor | None) -> Tensor | None:
        """Return the components that a vector starts from, ``(n, dim)``; None where there are none.

        ``features``: the frozen feature of the spot's or niche's genes; of both images ``(n, niche_image_dim)``.
        """
        if part not in self.kept:
            return None
        if features is None:
            raise ConfigError(
                f"ST-Align: the frozen features that {part} starts from were not read."
            )
        return self.kept[part](self.frozen_part(part, features))

    def _with_components(self, part: Part, trained: Tensor, features: Tensor | None) -> Tensor:
        components = self.components(part, features)
        return trained if components is None else components + trained

    @property
    def temperature(self) -> Tensor:
        """Tau of eqs 10 and 11; with gradient where it is learned, and then never below a floor."""
        tau = self.log_temperature.exp()
        if self.config.learn_temperature:
            return tau.clamp_min(_COLDEST)
        return tau

    def spot_image(
        self, crops: Tensor, colors: Tensor | None = None, frozen: Tensor | None = None
    ) -> Tensor:
        """Return ``r`` (eq 3).

        Parameters
        ----------
        crops
            uint8 ``(n, P, P, 3)``; without adaptive encoders float ``(n, niche_image_dim)``.
        colors
            ``(n, 2, 3)``: mean and standard deviation of the channels, on a scale from 0 to 1, of the slice that each
            crop is from; None: those of the config.
        frozen
            The niche's frozen features, ``(n, niche_image_dim)``; needed with ``residual`` and ``own_first``.
        """
        trained = self._trained_spot_image(crops, colors)
        return self._with_components("spot_image", trained, frozen)

    def _trained_spot_image(self, crops: Tensor, colors: Tensor | None) -> Tensor:
        if not isinstance(self.ae_image, SpotEncoder):
            return self.ae_image(crops)
        if colors is None:
            pixels = self.ae_image.colors(crops)
        else:
            by_channel = colors[..., None, None]
            mean, deviation = by_channel.unbind(dim=1)
            pixels = crops.permute(0, 3, 1, 2).float() / 255
            pixels = (pixels - mean) / deviation
        side = self.config.spot_side
        if side and pixels.shape[-1] != side:
            pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
        return self.ae_image(pixels)

    def niche_image(self, features: Tensor) -> Tensor:
        """Return ``e`` (eq 4) of frozen features ``(n, niche_image_dim)``."""
        trained = self.niche_image_map(features)
        return self._with_components("niche_image", trained, features)

    def spot_genes(self, features: Tensor) -> Tensor:
        """Return ``u`` (eq 5) of frozen features ``(n, spot_gene_dim)``."""
        return self._with_components("spot_genes", self.spot_gene_map(features), features)

    def niche_genes(
        self, values: Tensor, known: Tensor | None = None, frozen: Tensor | None = None
    ) -> Tensor:
        """Return ``t`` (eq 6).

        Parameters
        ----------
        values
            ``(n, n_genes)``; without adaptive encoders frozen features ``(n, spot_gene_dim)``.
        known
            bool ``(n_genes,)`` or ``(n, n_genes)``: genes that were measured; None: all.
        frozen
            Mean of the frozen features over the niche, ``(n, spot_gene_dim)``; needed with ``residual``.
        """
        if not isinstance(self.ae_genes, ValueEncoder):
            return self.ae_genes(values)
        return self._with_components("niche_genes", self.ae_genes(values, known), frozen)

    def fuse(self, scale: Literal["spot", "niche"], image: Tensor, genes: Tensor) -> Tensor:
        """Return ``h`` (eq 9) of one scale; both scales share one fusion network, as in the paper."""
        if scale not in ("spot", "niche"):
            raise ConfigError(f"fuse: scale is {scale!r}; it must be 'spot' or 'niche'.")
        return self.fusion(image, genes)

    def shared(
        self, pair: Literal["spot", "niche", "spot_niche"], first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return both sides of a contrast in the space that they share: of images and genes, or of spots and niches.

        Without ``residual`` they are in it already. With it, sides of one modality alone are taken for the part of it
        in vectors of both: see :meth:`one_side`.
        """
        if not self.config.residual:
            return first, second
        return self.heads[pair](first, second)

    def one_side(self, modality: Literal["image", "genes"], vectors: Tensor) -> Tensor:
        """Return vectors of one modality as those of both, ``(n, fused_dim)``, with 0 for the other."""
        if not self.config.residual:
            return vectors
        empty = torch.zeros_like(vectors)
        sides = [vectors, empty] if modality == "image" else [empty, vectors]
        return torch.cat(sides, dim=-1)
