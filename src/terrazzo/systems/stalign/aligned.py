"""A slice as ST-Align reads it: spots, their niches, crops of the histology in micrometers, values of genes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.arrays import Ints
from terrazzo.errors import ConfigError, InputError
from terrazzo.genes import GeneMatch
from terrazzo.images import Crops, TissueImage, check_spots, needed
from terrazzo.slices import Slice
from terrazzo.slices.niches import Niches, find_niches, spot_boxes, spot_diameter
from terrazzo.systems.stalign.config import STAlignConfig
from terrazzo.systems.stalign.gene_encoders import known_genes, scaled_values

SAMPLE = 1024  # spots that colors are measured on, spread over the slice


LEAST_COLOR = 0.02  # standard deviation of a channel: blank crops are not blown up


MISMATCH = 0.1  # share by which two statements of the micrometers per pixel may differ


@dataclass(frozen=True, eq=False)
class AlignedSlice:
    """One slice, cut.

    Attributes
    ----------
    tissue
        Counts and positions.
    match
        How its genes meet the vocabulary; None where genes are not asked for.
    config
        The model's.
    genes
        int64 ``(G,)``: tokens that AE-Gene reads.
    niches
        Neighbors of each spot.
    spots, surroundings
        Crops of spots and of niches, none read yet; None where the image is not asked for.
    diameter
        Of a spot, micrometers; NaN without image.
    microns_per_pixel
        Of the image; NaN without.
    """

    tissue: Slice
    match: GeneMatch | None
    config: STAlignConfig
    genes: Ints
    niches: Niches
    spots: Crops | None = None
    surroundings: Crops | None = None
    diameter: float = float("nan")
    microns_per_pixel: float = float("nan")

    @classmethod
    def make(
        cls,
        tissue: Slice,
        config: STAlignConfig,
        genes: Ints,
        *,
        match: GeneMatch | None = None,
        image: bool = True,
        spot_um: float | None = None,
    ) -> AlignedSlice:
        """Find niches, and place crops on the image.

        Parameters
        ----------
        tissue
            With its histology, where that is asked for.
        config, genes
            The model's.
        match
            None: genes are not looked at.
        image
            False: the image is not looked at.
        spot_um
            In place of the config's.

        Raises
        ------
        InputError
            No image, or one of unknown scale; spots outside it; x and y swapped.
        ConfigError
            A platform whose spots have no known size.
        """
        niches = find_niches(tissue.coords, config.neighbors)
        if not image:
            return cls(tissue, match, config, genes, niches)
        try:
            picture = needed(tissue.image, tissue.name)
        except InputError as error:
            if match is None:
                raise
            raise InputError(
                f"{error} For its genes alone pass modality='genes' (--modality genes)."
            ) from None
        per_native = microns_per_unit(tissue, picture)
        native, wanted = tissue.native_coords, config.spot_um if spot_um is None else spot_um
        check_spots(picture, native, tissue.name)
        known_spacing = tissue.spacing / tissue.coord_scale * per_native
        diameter = wanted or spot_diameter(tissue.technology, tissue.lattice_kind, known_spacing)
        side = diameter / per_native
        return cls(
            *(tissue, match, config, genes, niches),
            picture.box_crops(spot_boxes(native, side), config.spot_pixels),
            picture.box_crops(
                niches.boxes(native, side, square=config.square), config.niche_pixels
            ),
            diameter,
            float(picture.microns_per_pixel or 0),
        )

    def __len__(self) -> int:
        """Return the number of spots."""
        return self.tissue.n_cells

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Genes of AE-Gene that the slice has measured, bool ``(G,)``."""
        return (
            np.zeros(len(self.genes), dtype=bool)
            if self.match is None
            else known_genes(self.match, self.genes)
        )

    @cached_property
    def values(self) -> sparse.csr_matrix:
        """Log values of each spot, CSR float32 ``(n, G)``."""
        return scaled_values(self.tissue.counts, self.matched, self.genes, self.config.normalize)[0]

    @property
    def matched(self) -> GeneMatch:
        """How the genes meet the vocabulary."""
        if self.match is None:
            raise InputError(f"{self.tissue.name}: its genes were not matched to the vocabulary.")
        return self.match

    def niche_values(self, rows: Ints) -> NDArray[np.float32]:
        """Return the mean log values over the niches of some spots (eq 2), float32 ``(len(rows), G)``."""
        means: Any = self.niches.mean(self.values, rows)
        return means.toarray()

    def niche_counts(self) -> sparse.csr_matrix:
        """Return the mean counts over each niche, CSR float32, all genes of the slice."""
        means: Any = self.niches.mean(self.tissue.counts)
        return means

    def colors(self) -> NDArray[np.float32]:
        """Return mean and standard deviation of the channels over spot crops, on a scale from 0 to 1, ``(2, 3)``.

        Of at most so many spots spread over the slice, whatever the order of its rows.
        """
        spots = _given(self.spots, self.tissue.name)
        order = np.lexsort(self.tissue.coords.T)
        rows = order[np.unique(np.linspace(0, len(order) - 1, min(SAMPLE, len(order))).astype(int))]
        n, first, second = 0, np.zeros(3), np.zeros(3)
        for start in range(0, len(rows), 128):
            pixels = spots[rows[start : start + 128]].reshape(-1, 3) / 255.0
            n, first, second = (
                n + len(pixels),
                first + pixels.sum(axis=0),
                second + (pixels**2).sum(axis=0),
            )
        sd = np.sqrt(np.maximum(second / n - (first / n) ** 2, 0))
        return np.stack([first / n, np.maximum(sd, LEAST_COLOR)]).astype(np.float32)


def microns_per_unit(tissue: Slice, image: TissueImage) -> float:
    """Return the micrometers in one native unit of a slice, from its coordinates, else from its image.

    Raises
    ------
    InputError
        Both are known and say different things.
    """
    of_image = float(image.microns_per_pixel or 0) * image.scale
    if tissue.unit != "um":
        return of_image
    if abs(of_image / tissue.coord_scale - 1) > MISMATCH:
        raise InputError(
            f"{tissue.name}: its image has {image.microns_per_pixel:.4g} um a pixel, but by its coordinates "
            f"({tissue.technology}) it should be {tissue.coord_scale / image.scale:.4g}: mend microns_per_pixel or "
            "scale of the image, or state microns_per_unit=."
        )
    return tissue.coord_scale


def _given(crops: Crops | None, name: str) -> Crops:
    if crops is None:
        raise ConfigError(f"{name} was read without its image.")
    return crops
