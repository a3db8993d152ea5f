"""Settings of ST as images and its presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from terrazzo.config import within
from terrazzo.errors import ConfigError
from terrazzo.expression import Normalize
from terrazzo.systems.stimage.network import ViTConfig
from terrazzo.systems.stimage.windows import WindowConfig

__all__ = ["SIZES", "Flavor", "STImageConfig", "Scheme", "preset"]

Scheme = Literal["patch", "spot", "multi-spot", "slice"]

Flavor = Literal["terrazzo", "paper"]


@dataclass(frozen=True)
class STImageConfig:
    """Everything that decides the output of ST as images, apart from weights and vocabulary.

    Attributes
    ----------
    vit
        The masked autoencoder.
    windows
        Grid, windows and channels.
    scheme
        What a training sample is: ``"patch"`` (eq 8), ``"spot"`` (eq 2), ``"multi-spot"`` (eq 3: mean over a spot and
        its ``neighbors`` nearest) or ``"slice"`` (eq 4: joined with the mean of the spot's domain, of ``domains``).
    normalize, standardize
        log1p of counts scaled to 10,000 (``"paper"``) or to the slice's median total; each gene brought to mean 0 and
        sd 1 within its slice.
    output
        What ``embed`` writes: ``"encoder"``, the encoder's state; ``"decoder"``, the decoder's; ``"own+niche"``: the
        decoder's state of a site that is shown, and of one that is hidden, side by side, equal in norm. Other schemes
        than ``"patch"`` have ``"decoder"``: the state that they predict from.
    neighbors, domains
        Of the schemes ``"multi-spot"`` and ``"slice"``.
    """

    vit: ViTConfig
    windows: WindowConfig = field(default_factory=WindowConfig)
    scheme: Scheme = "patch"
    normalize: Normalize = "median"
    standardize: bool = True
    output: Literal["encoder", "decoder", "own+niche"] = "own+niche"
    neighbors: int = 16
    domains: int = 8

    def __post_init__(self) -> None:
        if self.vit.context != (self.scheme == "patch"):
            raise ValueError(
                f"vit.context must be {self.scheme == 'patch'} with the scheme {self.scheme!r}."
            )
        if self.vit.fuse != (self.scheme == "slice"):
            raise ValueError(
                f"vit.fuse must be {self.scheme == 'slice'} with the scheme {self.scheme!r}."
            )
        if self.neighbors < 1 or self.domains < 1:
            raise ValueError("neighbors and domains must be at least 1.")
        if self.output != "decoder" and self.scheme != "patch":
            raise ValueError(
                f"output must be 'decoder' with the scheme {self.scheme!r}: its states are what it learns."
            )
        within(self, neighbors=(1, 10_000), domains=(1, 10_000))


SIZES = {
    "tiny": {
        "width": 64,
        "num_layers": 2,
        "num_heads": 4,
        "ffn_size": 128,
        "decoder_layers": 1,
        "decoder_ffn_size": 128,
    },
    "small": {
        "width": 128,
        "num_layers": 4,
        "num_heads": 8,
        "ffn_size": 256,
        "decoder_layers": 2,
        "decoder_ffn_size": 256,
    },
    "paper": {
        "width": 256,
        "num_layers": 6,
        "num_heads": 8,
        "ffn_size": 1024,
        "decoder_layers": 2,
        "decoder_ffn_size": 512,
    },
}


def preset(
    name: str,
    n_genes: int,
    *,
    flavor: Flavor = "terrazzo",
    scheme: Scheme = "patch",
    windows: WindowConfig | None = None,
) -> STImageConfig:
    """Return a preset.

    Parameters
    ----------
    name
        ``"tiny"`` (tests, demo), ``"small"`` (a laptop) or ``"paper"`` (section 4.2).
    n_genes
        Tokens of the vocabulary.
    flavor
        ``"paper"``: counts scaled to 10,000, raw targets, channels drawn by variance, fixed positions, the encoder's
        state. ``"terrazzo"``: median total, targets standardized per gene, the 1,000 spatially most autocorrelated
        genes, attention by distance, the decoder's states.
    scheme
        See :class:`STImageConfig`.
    windows
        In place of the flavor's.

    Raises
    ------
    ConfigError
        No such preset.
    """
    if name not in SIZES:
        raise ConfigError(
            f"There is no preset {name!r} of ST as images; there are {', '.join(SIZES)}."
        )
    sizes: dict[str, int] = SIZES[name]
    paper = flavor == "paper"
    patch = scheme == "patch"
    vit = ViTConfig(
        n_genes,
        **sizes,
        positions="sincos" if paper else "distance",
        context=patch,
        fuse=scheme == "slice",
    )
    if paper:
        return STImageConfig(
            vit,
            windows or WindowConfig(),
            scheme,
            normalize="paper",
            standardize=False,
            output="encoder" if patch else "decoder",
        )
    return STImageConfig(
        vit,
        windows or WindowConfig(channels=1000, choose="spatial"),
        scheme,
        output="own+niche" if patch else "decoder",
    )
