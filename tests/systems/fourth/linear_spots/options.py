"""Options of ``embed`` of the linear autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from terrazzo.models.options import EmbedOptions, option


@dataclass(frozen=True)
class LinearEmbedOptions(EmbedOptions):
    """Options of ``embed``.

    Attributes
    ----------
    sharpness
        The vectors are multiplied with it.
    """

    sharpness: float = option(1.0, "Factor of the vectors. Default 1.")
