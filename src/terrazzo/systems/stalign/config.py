"""Settings of ST-Align and its presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from terrazzo.config import within
from terrazzo.errors import ConfigError, shortened
from terrazzo.expression import Normalize
from terrazzo.systems.stalign.efficientnet import LiteBackbone
from terrazzo.systems.stalign.gene_encoders import GeneEncoderConfig, Standardize
from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder, SpotEncoderConfig
from terrazzo.systems.stalign.network import AlignConfig
from terrazzo.systems.stalign.value_encoder import ValueEncoderConfig

__all__ = [
    "SIZES",
    "SQUARES_UM",
    "Colors",
    "Components",
    "Flavor",
    "STAlignConfig",
    "preset",
    "size_of",
]

Flavor = Literal["terrazzo", "paper"]

Colors = Literal["slice", "fixed"]

Components = Literal["kept", "whitened"]

SQUARES_UM = (112.0, 224.0, 448.0)  # sides of the squares that EfficientNet-Lite sees of each spot

_MOST_SQUARES = 16


@dataclass(frozen=True)
class STAlignConfig:
    """Everything that decides the output of ST-Align, apart from weights and vocabulary.

    Attributes
    ----------
    net
        The trained part.
    image_encoder
        The frozen encoder of niche crops, as
        :meth:`terrazzo.systems.stalign.image_encoder.FrozenImageEncoder.description` returns it.
    gene_encoder
        The frozen encoder of a spot's genes.
    neighbors
        K of a niche (eq 1).
    spot_um
        Side of a spot's crop in micrometers, which is also what niches are bounded by; 0: the diameter of the
        platform's spots.
    spot_pixels, niche_pixels
        Sides of the crops as they are read and stored. The encoders may enlarge them.
    niche_um
        Sides, micrometers, of squares around each spot that the frozen encoder sees in place of the niche's box: their
        vectors side by side, then the mean of these over the niche. Empty: the box.
    square
        Widen the shorter side of a niche's box, so that tissue keeps its proportions.
    normalize, standardize
        Of the values that AE-Gene reads: log1p of counts scaled to the slice's median total or to 10,000 (``"paper"``);
        each gene brought to mean 0 and sd 1 within its slice, or by the training slices' mean and sd. ``standardize``
        applies to frozen features, too.
    components
        Of ``standardize="slice"``: frozen features of genes are centered, and divided by one number, so that their
        columns keep their proportions (``"kept"``); or each column is brought to sd 1 (``"whitened"``).
    colors
        Spot crops are brought to mean 0 and sd 1 by the colors of their slice's spots, or by fixed ones.

    Raises
    ------
    ConfigError
        Impossible sizes, or parts that do not fit together.
    """

    net: AlignConfig
    image_encoder: dict
    gene_encoder: GeneEncoderConfig
    neighbors: int = 3
    spot_um: float = 0.0
    spot_pixels: int = 28
    niche_pixels: int = 224
    niche_um: tuple[float, ...] = ()
    square: bool = True
    normalize: Normalize = "median"
    standardize: Standardize = "slice"
    components: Components = "whitened"
    colors: Colors = "slice"

    def __post_init__(self) -> None:
        too_small = min(self.spot_pixels, self.niche_pixels) < 8
        if self.neighbors < 0 or too_small or not self.spot_um >= 0:
            raise ConfigError(
                f"ST-Align: neighbors ({self.neighbors}) and spot_um ({self.spot_um}) must be at least 0, spot_pixels "
                f"({self.spot_pixels}) and niche_pixels ({self.niche_pixels}) at least 8."
            )
        if self.gene_encoder.output_dim != self.net.spot_gene_dim:
            raise ConfigError(
                f"ST-Align: gene_encoder.output_dim ({self.gene_encoder.output_dim}) must be net.spot_gene_dim "
                f"({self.net.spot_gene_dim})."
            )
        n_components_of = self.gene_encoder.n_genes
        n_read = self.net.niche_genes.n_genes
        if self.gene_encoder.kind == "pca" and n_components_of != n_read:
            raise ConfigError(
                f"ST-Align: components are of the genes that AE-Gene reads: gene_encoder.n_genes "
                f"({n_components_of}) must be net.niche_genes.n_genes ({n_read})."
            )
        if not all(0 < side < 1e6 for side in self.niche_um) or len(self.niche_um) > _MOST_SQUARES:
            raise ConfigError(
                f"ST-Align: niche_um is {shortened(self.niche_um)}; it must be at most {_MOST_SQUARES} sides in "
                "micrometers."
            )
        if self.niche_um and not self.net.adaptive:
            raise ConfigError(
                "ST-Align: without adaptive encoders spots and niches are seen alike; leave niche_um empty."
            )
        if self.net.own_first and not self.niche_um:
            raise ConfigError("ST-Align: net.own_first needs niche_um: squares around each spot.")
        within(self, neighbors=(0, 10_000), spot_um=(0, 1e6))
        within(self, spot_pixels=(8, 4096), niche_pixels=(8, 4096))

    @property
    def niche_vectors(self) -> int:
        """How many vectors of the frozen image encoder a niche has."""
        return 2 * len(self.niche_um) or 1


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "dim": 64,
        "resnet": "tiny",
        "spot_pixels": 32,
        "spot_side": 0,
        "niche_pixels": 64,
        "n_genes": 500,
        "genes": {"n_tokens": 4, "width": 64, "num_layers": 2, "num_heads": 4, "ffn_size": 128},
        "fusion": (4, 64),
        "vit": {"image_size": 64, "patch_size": 16, "width": 128, "num_layers": 2},
    },
    "small": {
        "dim": 128,
        "resnet": "small",
        "spot_pixels": 28,
        "spot_side": 56,
        "niche_pixels": 112,
        "n_genes": 1000,
        "genes": {"n_tokens": 8, "width": 128, "num_layers": 4, "num_heads": 8, "ffn_size": 256},
        "fusion": (8, 128),
        "vit": {"image_size": 112, "patch_size": 16, "width": 192, "num_layers": 4},
    },
    "paper": {
        "dim": 512,
        "resnet": "resnet50",
        "spot_pixels": 28,
        "spot_side": 224,
        "niche_pixels": 224,
        "n_genes": 2000,
        "genes": {"n_tokens": 8, "width": 512, "num_layers": 6, "num_heads": 8, "ffn_size": 2048},
        "fusion": (8, 512),
        "vit": {"image_size": 224, "patch_size": 16, "width": 192, "num_layers": 4},
    },
}


def size_of(name: str) -> dict[str, Any]:
    """Return the sizes of a preset.

    Raises
    ------
    ConfigError
        No such preset.
    """
    if name not in SIZES:
        raise ConfigError(f"There is no preset {name!r} of ST-Align; there are {', '.join(SIZES)}.")
    return SIZES[name]


def preset(
    name: str,
    n_genes: int,
    *,
    flavor: Flavor = "terrazzo",
    image_encoder: FrozenImageEncoder | None = None,
    gene_encoder: GeneEncoderConfig | None = None,
    adaptive: bool = True,
    fusion: Literal["attention", "concatenation"] = "attention",
    residual: bool = True,
    components: Components = "kept",
) -> STAlignConfig:
    """Return a preset.

    Parameters
    ----------
    name
        ``"tiny"`` (tests, demo, a laptop), ``"small"`` or ``"paper"`` (section 4.1).
    n_genes
        Genes of the vocabulary; of them at most 500, 1,000 or 2,000 are used.
    flavor
        ``"paper"``: counts scaled to 10,000, training means and deviations, niche boxes squeezed to squares, fixed
        colors. ``"terrazzo"``: median total; values, frozen features and colors standardized within their slice.
    image_encoder, gene_encoder
        In place of a small vision transformer, and of principal components. EfficientNet-Lite sees squares of three
        sizes around each spot (``SQUARES_UM``), unless the flavor is ``"paper"`` or nothing is adaptive.
    adaptive, fusion
        The ablations of table 3; see :class:`terrazzo.systems.stalign.network.AlignConfig`.
    residual, components
        Whether vectors start from components of frozen features, and whether these keep their proportions. The flavor
        ``"paper"`` has neither; without adaptive encoders there is no residual.

    Raises
    ------
    ConfigError
        No such preset.
    """
    size = size_of(name)
    dim = size["dim"]
    paper = flavor == "paper"
    if image_encoder is None:
        image_encoder = FrozenImageEncoder.small(**size["vit"])
    niche_um: tuple[float, ...] = ()
    niche_pixels = size["niche_pixels"]
    if isinstance(image_encoder.backbone, LiteBackbone) and adaptive and not paper:
        niche_um = SQUARES_UM
        niche_pixels = image_encoder.image_size
    n_vectors = 2 * len(niche_um) or 1
    n_used = max(min(n_genes, size["n_genes"]), 1)
    normalize: Normalize = "paper" if paper else "median"
    standardize: Standardize = "training" if paper else "slice"
    if gene_encoder is None:
        n_components = min(50, n_used)
        gene_encoder = GeneEncoderConfig("pca", n_components, n_used, normalize, standardize)
    value_sizes = dict(size["genes"])
    value_sizes["n_tokens"] = min(value_sizes["n_tokens"], n_used)
    fusion_tokens, fusion_width = size["fusion"]
    net = AlignConfig(
        dim,
        n_vectors * image_encoder.output_dim,
        gene_encoder.output_dim,
        ValueEncoderConfig(n_used, **value_sizes, output_dim=dim),
        SpotEncoderConfig(size["resnet"], dim),
        size["spot_side"],
        fusion_tokens=fusion_tokens,
        fusion_width=fusion_width,
        fusion_mode=fusion,
        adaptive=adaptive,
        residual=residual and adaptive and not paper,
        own_first=bool(niche_um),
    )
    return STAlignConfig(
        net,
        image_encoder.description(),
        gene_encoder,
        spot_pixels=size["spot_pixels"] if adaptive else size["niche_pixels"],
        niche_pixels=niche_pixels,
        niche_um=niche_um,
        square=not paper,
        normalize=normalize,
        standardize=standardize,
        components="whitened" if paper else components,
        colors="fixed" if paper else "slice",
    )
