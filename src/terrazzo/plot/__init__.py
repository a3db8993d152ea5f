"""Figures: values on the tissue, embeddings in two dimensions, predictions against the truth."""

from terrazzo.plot.expression import predicted_genes
from terrazzo.plot.figures import save
from terrazzo.plot.overlay import overlay
from terrazzo.plot.palettes import colors
from terrazzo.plot.reconstruction import reconstruction
from terrazzo.plot.results import confusion, predicted_against_true, umap
from terrazzo.plot.tissue import spatial

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
