"""Options of ``embed`` of ST as images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from terrazzo.models.options import EmbedOptions, option

__all__ = ["STImageEmbedOptions"]


@dataclass(frozen=True)
class STImageEmbedOptions(EmbedOptions):
    """Options of ``embed`` of ST as images.

    Attributes
    ----------
    layout, bin_um, window
        In place of the checkpoint's :class:`~terrazzo.systems.stimage.windows.WindowConfig`: platforms differ in their
        grid.
    seed
        Of the channels, where they are drawn.
    """

    layout: Literal["auto", "hex", "square", "rank", "bin"] | None = option(
        None, "Grid that the cells are put on."
    )
    bin_um: float | None = option(None, "Side of a bin in micrometers, for single cells.")
    window: int | None = option(None, "Sites on a side of a window.")
    seed: int = option(0, "Seed of the channels, where they are drawn. Default 0.")
