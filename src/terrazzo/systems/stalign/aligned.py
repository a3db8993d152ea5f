"""One slice as ST-Align reads it: spots, their niches, crops of the histology, values of genes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from terrazzo.arrays import Bools, Ints, Vectors
from terrazzo.errors import ConfigError, InputError
from terrazzo.genes import GeneMatch
from terrazzo.images import Crops, TissueImage, check_spots, needed
from terrazzo.images.crops import boxes_around
from terrazzo.slices import Slice
from terrazzo.slices.niches import Niches, find_niches, spot_boxes, spot_diameter
from terrazzo.systems.stalign.config import STAlignConfig
from terrazzo.systems.stalign.gene_encoders import known_genes, scaled_values

__all__ = ["AlignedSlice", "microns_per_unit"]

SAMPLE = 1024  # spots that colors are measured on, spread over the slice

SPOTS_AT_ONCE = 128

LEAST_COLOR = 0.02  # standard deviation of a channel: noise of blank crops is not amplified

MISMATCH = 0.1  # share by which two sources of the micrometers per pixel may differ


@dataclass(frozen=True, eq=False)
class AlignedSlice:
    """One slice with niches, crops and values.

    Attributes
    ----------
    tissue
        Counts and positions.
    match
        Match of its genes to the vocabulary; None where no genes are read.
    config
        The model's.
    genes
        int64 ``(G,)``: tokens that AE-Gene reads.
    niches
        Neighbors of each spot.
    spots, surroundings
        Crops of spots and of niches, none read yet; None where no image is read.
    squares
        Crops of the squares around spots, by ``niche_um`` of the config.
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
    squares: tuple[Crops, ...] = ()
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
            With its histology, where the image is read.
        config, genes
            The model's.
        match
            None: no genes are read.
        image
            False: the image is not read.
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
            histology = needed(tissue.image, tissue.name)
        except InputError as error:
            if match is None:
                raise
            raise InputError(
                f"{error} For its genes alone pass modality='genes' (--modality genes)."
            ) from None
        microns_per_native = microns_per_unit(tissue, histology)
        native = tissue.native_coords
        check_spots(histology, native, tissue.name)
        diameter = config.spot_um if spot_um is None else spot_um
        if not diameter:
            spacing_um = tissue.spacing / tissue.coord_scale * microns_per_native
            diameter = spot_diameter(tissue.technology, tissue.lattice_kind, spacing_um)
        side = diameter / microns_per_native
        niche_boxes = niches.boxes(native, side, square=config.square)
        squares = []
        for square_um in config.niche_um:
            sides = np.full(2, square_um / microns_per_native)
            square_boxes = boxes_around(native, sides)
            squares.append(histology.box_crops(square_boxes, config.niche_pixels))
        return cls(
            tissue,
            match,
            config,
            genes,
            niches,
            spots=histology.box_crops(spot_boxes(native, side), config.spot_pixels),
            surroundings=histology.box_crops(niche_boxes, config.niche_pixels),
            squares=tuple(squares),
            diameter=diameter,
            microns_per_pixel=float(histology.microns_per_pixel or 0),
        )

    def __len__(self) -> int:
        """Return the number of spots."""
        return self.tissue.n_cells

    @cached_property
    def known(self) -> Bools:
        """Genes of AE-Gene that the slice has measured, bool ``(G,)``."""
        if self.match is None:
            return np.zeros(len(self.genes), dtype=bool)
        return known_genes(self.match, self.genes)

    @cached_property
    def values(self) -> sparse.csr_matrix:
        """Log values of each spot, CSR float32 ``(n, G)``."""
        values, _ = scaled_values(
            self.tissue.counts, self.matched, self.genes, self.config.normalize
        )
        return values

    @property
    def matched(self) -> GeneMatch:
        """Match of the genes to the vocabulary; InputError where no genes are read."""
        if self.match is None:
            raise InputError(f"{self.tissue.name}: its genes were not matched to the vocabulary.")
        return self.match

    def niche_values(self, rows: Ints) -> Vectors:
        """Return the mean log values over the niches of some spots (eq 2), float32 ``(len(rows), G)``."""
        means: Any = self.niches.mean(self.values, rows)
        return means.toarray()

    def niche_counts(self) -> sparse.csr_matrix:
        """Return the mean counts over each niche, CSR float32, all genes of the slice."""
        means: Any = self.niches.mean(self.tissue.counts)
        return means

    def colors(self) -> Vectors:
        """Return mean and standard deviation of the channels over spot crops, on a scale from 0 to 1, ``(2, 3)``.

        Measured on a sample of spots spread over the slice, whatever the order of its rows.
        """
        if self.spots is None:
            raise ConfigError(f"{self.tissue.name} was read without its image.")
        rows = self._sample()
        n = 0
        total = np.zeros(3)
        square_total = np.zeros(3)
        for start in range(0, len(rows), SPOTS_AT_ONCE):
            crops = self.spots[rows[start : start + SPOTS_AT_ONCE]]
            pixels = crops.reshape(-1, 3) / 255.0
            n += len(pixels)
            total += pixels.sum(axis=0)
            square_total += (pixels**2).sum(axis=0)
        mean = total / n
        variance = np.maximum(square_total / n - mean**2, 0)
        deviation = np.maximum(np.sqrt(variance), LEAST_COLOR)
        return np.stack([mean, deviation]).astype(np.float32)

    def _sample(self) -> Ints:
        """Return at most ``SAMPLE`` rows that are spread over the slice."""
        order = np.lexsort(self.tissue.coords.T)
        n_sampled = min(SAMPLE, len(order))
        steps = np.linspace(0, len(order) - 1, n_sampled)
        return order[np.unique(steps.astype(int))]


def microns_per_unit(tissue: Slice, image: TissueImage) -> float:
    """Return the micrometers in one native unit of a slice, from its coordinates, else from its image.

    Raises
    ------
    InputError
        Both are known and differ.
    """
    by_image = float(image.microns_per_pixel or 0) * image.scale
    if tissue.unit != "um":
        return by_image
    if abs(by_image / tissue.coord_scale - 1) > MISMATCH:
        expected = tissue.coord_scale / image.scale
        raise InputError(
            f"{tissue.name}: its image has {image.microns_per_pixel:.4g} um a pixel, but by its coordinates "
            f"({tissue.technology}) it should be {expected:.4g}: fix microns_per_pixel or scale of the image, or "
            "pass microns_per_unit=."
        )
    return tissue.coord_scale
