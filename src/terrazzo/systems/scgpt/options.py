"""Options of ``embed``: scGPT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from terrazzo.models.options import EmbedOptions, option

__all__ = ["ScGPTEmbedOptions"]


@dataclass(frozen=True)
class ScGPTEmbedOptions(EmbedOptions):
    """Options of ``embed`` of scGPT.

    Attributes
    ----------
    precision
        ``"float32"`` or ``"bfloat16"`` (its measured error is recorded in ``uns``).
    seed
        Of scGPT's random draws: into which of several bins equal values fall, and which genes are read of a cell that
        has more than fit.
    """

    precision: Literal["float32", "bfloat16"] = option(
        "float32", "bfloat16 may be faster. Default float32."
    )
    seed: int = option(0, "Seed of scGPT's random draws. Default 0.")
