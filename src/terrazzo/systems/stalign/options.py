"""Options of ``embed`` of ST-Align."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from terrazzo.models.options import EmbedOptions, option

__all__ = ["STAlignEmbedOptions"]


@dataclass(frozen=True)
class STAlignEmbedOptions(EmbedOptions):
    """Options of ``embed`` of ST-Align; the histology itself is an option of reading a slice (``image=``).

    Attributes
    ----------
    scale
        ``"spot"`` or ``"niche"``: that vector. ``"both"``: side by side as the blocks ``own`` and ``niche``, each of
        mean norm one.
    modality
        ``"both"``: image and genes fused (h of eq 9). ``"genes"``: u and t, no image is read. ``"image"``: r and e, no
        gene is read.
    shared
        Vectors of one modality in the space in which images and genes are contrasted, which retrieval compares.
    spot_um
        Diameter of a spot's crop in micrometers, in place of the checkpoint's and the platform's; needed for single
        cells.
    cache
        Folder that frozen features are stored in.
    """

    scale: Literal["both", "spot", "niche"] = option("both", "Which vectors. Default both.")
    modality: Literal["both", "genes", "image"] = option("both", "What is read. Default both.")
    shared: bool = option(False, "In the space that image and genes share (one modality).")
    spot_um: float | None = option(
        None, "Diameter of a spot in micrometers; default: the platform's."
    )
    cache: str | None = option(None, "Folder to store frozen features in.", decides=False)
