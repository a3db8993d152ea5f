"""A drawn section: what a simulated slice looks like in an H&E-like stain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from terrazzo.arrays import AnyFloats, Ints, Vectors
from terrazzo.simulate.atlas import Atlas
from terrazzo.simulate.geometry import STAIN, Frame, Truth, cell_positions, draw_types

__all__ = ["draw_section"]

FINEST = 0.25  # um per pixel of the drawn image, at the best
GLASS = 248.0  # gray around the tissue
EDGE = 8.0  # um of tissue around the outermost observations
NUCLEUS_COLOR = (86, 58, 138)
PIXELS_AT_ONCE = 4_000_000  # of nuclei that are worked out together


def draw_section(
    truth: Truth, atlas: Atlas, image_px: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], float]:
    """Draw the slice like an H&E section; returns the image (H, W, 3) and its micrometers per pixel."""
    frame = truth.frame
    longer_side = float(frame.extent.max())
    longer_side_um = longer_side * frame.microns
    pixel_um = max(FINEST, longer_side_um / image_px)
    scale = frame.microns / pixel_um  # image pixels per native unit
    unit = _pixel_positions(frame, scale)
    rgb = _background(truth, atlas, unit, rng)
    ink = _nuclear_ink(truth, atlas, pixel_um, unit.shape[:2], rng)
    share = ink[..., None]
    nucleus_color = np.array(NUCLEUS_COLOR, dtype=np.float32)
    rgb += share * (nucleus_color - rgb)
    border = truth.outline + EDGE / frame.radius
    is_tissue = truth.geometry.level(unit) <= border
    rgb[~is_tissue] = GLASS
    image = np.clip(rgb, 0, 255)
    return image.astype(np.uint8), pixel_um


def _pixel_positions(frame: Frame, scale: float) -> AnyFloats:
    """Return the unit coordinates of every pixel's center, float32 (H, W, 2)."""
    sides = np.ceil(frame.extent * scale - 1e-6)
    width = max(1, int(sides[0]))
    height = max(1, int(sides[1]))
    column = np.arange(width, dtype=np.float32)
    row = np.arange(height, dtype=np.float32)
    columns, rows = np.meshgrid(column, row)
    x = columns + 0.5
    y = rows + 0.5
    centers = np.stack([x, y], axis=-1)
    centers = centers / np.float32(scale)
    return frame.to_unit(centers)


def _background(truth: Truth, atlas: Atlas, unit: AnyFloats, rng: np.random.Generator) -> Vectors:
    """Return the stain of each region with a grain, float32 (H, W, 3)."""
    from scipy.ndimage import gaussian_filter

    sides = unit.shape[:2]
    geometry = truth.geometry
    region = geometry.region(unit)
    fine = rng.standard_normal(sides, dtype=np.float32)
    grain = gaussian_filter(fine, 1.5) * 40
    coarse = rng.standard_normal(sides, dtype=np.float32)
    grain += gaussian_filter(coarse, 5.0) * 80
    rough = atlas.rough[region]
    grain *= rough.astype(np.float32)
    waves = geometry.field(STAIN, unit)
    shade = grain + 5 * waves
    stain = atlas.stain[region].astype(np.float32)
    return stain + shade[..., None]


def _nuclear_ink(
    truth: Truth,
    atlas: Atlas,
    pixel_um: float,
    sides: tuple[int, ...],
    rng: np.random.Generator,
) -> Vectors:
    """Return how dark the nuclei make each pixel, float32 (H, W), 0 to 1."""
    frame = truth.frame
    places, types = _nuclei(truth, atlas, rng)
    n = len(places)
    jitter = rng.uniform(0.85, 1.15, n)
    radius_um = atlas.nucleus[types] * jitter
    radius = radius_um / pixel_um
    scale = frame.microns / pixel_um
    center = frame.to_native(places) * scale
    ellipses = _Ellipses.draw(center, radius, rng)
    return ellipses.on_canvas(sides)


def _nuclei(truth: Truth, atlas: Atlas, rng: np.random.Generator) -> tuple[AnyFloats, Ints]:
    """Return unit coordinates and types of all nuclei, those between the spots too."""
    cells = truth.cells
    platform = truth.platform
    geometry = truth.geometry
    if platform.cells == 1:
        return cells.places, cells.types
    radius = truth.frame.radius
    spot_area = np.pi / 4 * platform.diameter**2
    cell_area = spot_area / platform.cells
    tissue_radius = truth.outline * radius
    tissue_area = np.pi * tissue_radius**2
    n = max(1, round(tissue_area / cell_area))
    candidates = cell_positions(2 * n, radius, geometry, atlas.density, cell_area, rng)
    is_inside = geometry.level(candidates) <= truth.outline
    candidates = candidates[is_inside]
    spots = cKDTree(truth.xy)
    distance, _ = spots.query(candidates)
    distance_um = distance * radius
    spot_radius = platform.diameter / 2
    is_between = distance_um > spot_radius
    places = candidates[is_between]
    regions = geometry.region(places)
    types = draw_types(regions, atlas, rng)
    all_places = np.concatenate([cells.places, places])
    all_types = np.concatenate([cells.types, types])
    return all_places, all_types


@dataclass(frozen=True)
class _Ellipses:
    """Soft ellipses on an image, one a nucleus.

    Attributes
    ----------
    center_x, center_y
        (n, 1) pixels.
    radius
        (n, 1) mean radius, pixels.
    stretch, turn
        (n, 1) ratio of the long axis to the mean radius, and the direction of the long axis.
    darkness
        (n, 1) between 0 and 1.
    """

    center_x: AnyFloats
    center_y: AnyFloats
    radius: AnyFloats
    stretch: AnyFloats
    turn: AnyFloats
    darkness: AnyFloats

    @classmethod
    def draw(cls, center: AnyFloats, radius: AnyFloats, rng: np.random.Generator) -> _Ellipses:
        """Draw form and darkness of ellipses at centers (n, 2) of mean radius (n,)."""
        n = len(center)
        stretch = rng.uniform(1.0, 1.35, n)
        turn = rng.uniform(0.0, np.pi, n)
        darkness = rng.uniform(0.65, 0.95, n)
        size = (radius / 0.7) ** 2
        darkness = darkness * np.minimum(1.0, size)  # smaller than a pixel: fainter
        return cls(
            center_x=center[:, :1],
            center_y=center[:, 1:],
            radius=radius[:, None],
            stretch=stretch[:, None],
            turn=turn[:, None],
            darkness=darkness[:, None],
        )

    def take(self, part: slice) -> _Ellipses:
        """Return some of the ellipses."""
        return _Ellipses(
            center_x=self.center_x[part],
            center_y=self.center_y[part],
            radius=self.radius[part],
            stretch=self.stretch[part],
            turn=self.turn[part],
            darkness=self.darkness[part],
        )

    def on_canvas(self, sides: tuple[int, ...]) -> Vectors:
        """Return how dark each pixel is, float32 (H, W); under several ellipses, as dark as the darkest."""
        canvas = np.zeros(sides, dtype=np.float32)
        largest = self.radius.max(initial=0.0)
        reach = int(np.ceil(1.35 * largest + 0.5))
        offsets = np.arange(-reach, reach + 1)
        x_grid, y_grid = np.meshgrid(offsets, offsets)
        dx = x_grid.ravel()
        dy = y_grid.ravel()
        n_at_once = max(1, PIXELS_AT_ONCE // dx.size)
        for start in range(0, len(self.radius), n_at_once):
            part = slice(start, start + n_at_once)
            self.take(part)._stamp(canvas, dx, dy)
        return canvas

    def _stamp(self, canvas: Vectors, dx: Ints, dy: Ints) -> None:
        """Darken the pixels of ``canvas`` at these offsets from each center, in place."""
        left = np.floor(self.center_x).astype(int)
        top = np.floor(self.center_y).astype(int)
        x = left + dx
        y = top + dy
        u = x + 0.5
        v = y + 0.5
        u = u - self.center_x
        v = v - self.center_y
        cos = np.cos(self.turn)
        sin = np.sin(self.turn)
        along = u * cos + v * sin
        across = v * cos - u * sin
        along = along / self.stretch
        across = across * self.stretch
        distance = np.hypot(along, across)
        cover = self.radius - distance + 0.5
        cover = np.clip(cover, 0.0, 1.0)
        ink = cover * self.darkness

        height, width = canvas.shape
        in_x = (x >= 0) & (x < width)
        in_y = (y >= 0) & (y < height)
        drawn = (ink > 0) & in_x & in_y
        pixels = (y[drawn], x[drawn])
        drawn_ink = ink[drawn].astype(np.float32)
        np.maximum.at(canvas, pixels, drawn_ink)
