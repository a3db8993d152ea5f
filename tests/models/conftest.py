"""What the tests of models share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from anndata import AnnData


@pytest.fixture(scope="session")
def histology(simulated: Callable[..., AnnData]) -> Callable[..., AnnData]:
    """Make a small Visium slice with its section; equal arguments are simulated once."""

    def make(n: int = 90, n_genes: int = 60, **options: Any) -> AnnData:
        return simulated(n, n_genes, **({"layout": "visium", "image": True, "image_px": 500} | options))

    return make


@pytest.fixture(scope="session")
def align_model(histology: Callable[..., AnnData], loud: Callable[..., Any]) -> Callable[..., Any]:
    """Make a very small ST-Align with loud weights, fitted on a slice; keywords are the constructor's, or its config's."""
    from terrazzo import Slice, STAlign, Vocabulary
    from terrazzo.models.stalign_config import preset
    from terrazzo.nn.image_encoder import FrozenImageEncoder

    def make(recipe: Any = "terrazzo", adaptive: bool = True, fusion: Any = "attention", **changes: Any) -> Any:
        tissue = Slice.from_anndata(histology(seed=7))
        vocabulary = Vocabulary.from_slices([tissue])
        eye = FrozenImageEncoder.small(image_size=32, patch_size=16, width=64, num_layers=1)
        config = preset("tiny", len(vocabulary), recipe=recipe, image_encoder=eye, adaptive=adaptive, fusion=fusion)
        config = replace(config, **({"spot_pixels": 16, "niche_pixels": 32} | changes))
        model = STAlign(config, vocabulary, seed=1, image_encoder=eye)
        loud(model.module.net)
        return model.fit([tissue])

    return make
