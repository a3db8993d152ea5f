"""Figures: values on the tissue, embeddings in two dimensions, predictions against the truth."""

from typing import Any

from terrazzo.plot.expression import predicted_genes
from terrazzo.plot.figures import save
from terrazzo.plot.overlay import overlay
from terrazzo.plot.palettes import colors
from terrazzo.plot.reconstruction import reconstruction
from terrazzo.plot.results import confusion, predicted_against_true, umap
from terrazzo.plot.tissue import spatial
from terrazzo.systems import registry

__all__ = [
    "colors",
    "confusion",
    "overlay",
    "predicted_against_true",
    "predicted_genes",
    "reconstruction",
    "save",
    "spatial",
    "umap",
]


def __getattr__(name: str) -> Any:
    """Return a figure that a system registers, such as ``grid`` of ST as images."""
    found = registry.figure(name)
    if found is None:
        raise AttributeError(f"module 'terrazzo.plot' has no attribute {name!r}")
    return found
