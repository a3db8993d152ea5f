"""A small image encoder with random weights, for models whose images nobody reads."""

from __future__ import annotations

from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder


def small_eye() -> FrozenImageEncoder:
    """Return it; each call the same."""
    return FrozenImageEncoder.small(image_size=32, patch_size=16, width=64, num_layers=1)
