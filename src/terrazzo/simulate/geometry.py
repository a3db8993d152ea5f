"""Where the cells and spots of a simulated slice are: outline, bands, positions, and the cells in each observation.

*Unit* coordinates have the tissue's area in a circle of radius 1. *Native* coordinates are those of
``obsm["spatial"]``: turned, shifted and scaled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terrazzo.arrays import AnyFloats, Ints
from terrazzo.simulate.atlas import PLATFORMS, Atlas, Layout, Platform

__all__ = [
    "GRADIENTS",
    "STAIN",
    "Cells",
    "Frame",
    "Geometry",
    "Truth",
    "cell_positions",
    "draw_truth",
    "draw_types",
]

# The smooth random fields of a geometry, by number
BANDS = 0
OUTLINE = 1
GRADIENTS = (2, 3)
STAIN = 4
N_FIELDS = 5
N_WAVES = 6  # of each field


class Geometry:
    """Outline and bands of one slice, in unit coordinates: the tissue is where ``level <= 1``, about."""

    def __init__(self, shape: str, n_regions: int, rng: np.random.Generator) -> None:
        self.shape = shape
        self.aspect = rng.uniform(0.8, 1.25) ** 0.5
        small_turn = rng.uniform(-0.35, 0.35)
        quarter_turns = (np.pi / 2) * rng.integers(4)
        self.tilt = small_turn + quarter_turns
        self.bow = rng.uniform(-0.35, 0.35)
        self.waves = rng.normal(0.0, 2.2, (N_FIELDS, N_WAVES, 2))
        self.phases = rng.uniform(0.0, 2 * np.pi, (N_FIELDS, N_WAVES))
        widths = rng.uniform(0.7, 1.3, n_regions)
        shares = np.cumsum(widths / widths.sum())
        uniform = rng.random((20_000, 2))
        points = (uniform - 0.5) * 2.6
        inside = points[self.level(points) <= 1]
        depths = self.depth(inside)
        self.edges = np.quantile(depths, shares[:-1])

    def field(self, number: int, xy: AnyFloats) -> AnyFloats:
        """Return a smooth random field, mean about 0 and standard deviation about 1."""
        x = xy[..., 0]
        y = xy[..., 1]
        waves = self.waves[number].astype(xy.dtype)  # float32 stays float32
        phases = self.phases[number].astype(xy.dtype)
        norm = xy.dtype.type(3**0.5)
        total = np.zeros_like(x)
        for wave, phase in zip(waves, phases, strict=True):
            u, v = wave
            total += np.sin(x * u + y * v + phase)
        return total / norm

    def level(self, xy: AnyFloats) -> AnyFloats:
        """Return how far out positions are: 1 at the outline, about."""
        x = xy[..., 0] / self.aspect
        y = xy[..., 1] * self.aspect
        if self.shape == "square":
            half_side = np.maximum(np.abs(x), np.abs(y))
            return half_side * (4 / np.pi) ** 0.5
        waves = self.field(OUTLINE, xy)
        return np.hypot(x, y) * (1 + 0.05 * waves)

    def depth(self, xy: AnyFloats) -> AnyFloats:
        """Return how deep positions are across the bands."""
        x = xy[..., 0]
        y = xy[..., 1]
        cos = np.cos(self.tilt)
        sin = np.sin(self.tilt)
        along = x * cos - y * sin
        across = x * sin + y * cos
        waves = self.field(BANDS, xy)
        return across + self.bow * along**2 + 0.09 * waves

    def region(self, xy: AnyFloats) -> Ints:
        """Return the number of the band that each position is in."""
        return np.searchsorted(self.edges, self.depth(xy))


@dataclass(frozen=True)
class Frame:
    """Map between unit and native coordinates.

    Attributes
    ----------
    radius
        Micrometers per unit.
    microns
        Micrometers per native unit.
    turn
        (2, 2) unit axes to native axes.
    shift
        (2,) native position of the unit origin.
    extent
        (2,) native size of the picture.
    """

    radius: float
    microns: float
    turn: AnyFloats
    shift: AnyFloats
    extent: AnyFloats

    @classmethod
    def around(
        cls, xy: AnyFloats, platform: Platform, radius: float, microns: float, angle: float
    ) -> Frame:
        """Return the frame that turns positions by an angle and leaves a margin around them."""
        cos = np.cos(angle)
        sin = np.sin(angle)
        turn = np.array([[cos, sin], [-sin, cos]])
        scale = radius / microns
        turned = xy @ turn * scale
        longer_side = np.ptp(turned, axis=0).max()
        margin = 0.06 * longer_side + (20.0 + platform.diameter) / microns
        low = turned.min(0) - margin
        high = turned.max(0) + margin
        return cls(radius, microns, turn, shift=-low, extent=high - low)

    def to_native(self, xy: AnyFloats) -> AnyFloats:
        """Return native coordinates of unit coordinates."""
        scale = self.radius / self.microns
        return xy @ self.turn * scale + self.shift

    def to_unit(self, xy: AnyFloats) -> AnyFloats:
        """Return unit coordinates of native coordinates; float32 stays float32."""
        scale = self.microns / self.radius
        back = (self.turn.T * scale).astype(xy.dtype)
        shift = self.shift.astype(xy.dtype)
        return (xy - shift) @ back


@dataclass(frozen=True)
class Cells:
    """The c cells of all observations.

    Attributes
    ----------
    owner
        (c,) number of the observation.
    places
        (c, 2) unit coordinates.
    regions, types
        (c,) numbers.
    """

    owner: Ints
    places: AnyFloats
    regions: Ints
    types: Ints


@dataclass(frozen=True)
class Truth:
    """One slice before its counts: n observations and the cells that they are made of.

    Attributes
    ----------
    platform, geometry, frame
        What it is measured with, its outline and bands, and its coordinates.
    xy
        (n, 2) unit coordinates of the observations.
    lattice
        Array row and column of each spot, (n,) both; None for single cells.
    cells
        What the observations are made of.
    outline
        Level of the outermost observation.
    """

    platform: Platform
    geometry: Geometry
    frame: Frame
    xy: AnyFloats
    lattice: tuple[Ints, Ints] | None
    cells: Cells
    outline: float


def draw_truth(layout: Layout, n: int, shape: str, atlas: Atlas, seed: int) -> Truth:
    """Draw outline, bands, observations and their cells."""
    platform = PLATFORMS[layout]
    rng = np.random.default_rng([seed, 2])
    geometry_rng = np.random.default_rng([seed, 1])
    geometry = Geometry(shape, len(atlas.density), geometry_rng)
    radius = (n * platform.area / np.pi) ** 0.5
    lattice = None
    angle = 0.0
    microns = platform.microns
    if layout == "cells":
        xy = cell_positions(n, radius, geometry, atlas.density, platform.area, rng)
    else:
        xy, lattice = _spot_positions(n, layout, radius, geometry)
        angle = rng.uniform(-0.05, 0.05)
        microns = microns * rng.uniform(0.9, 1.1)
    return Truth(
        platform=platform,
        geometry=geometry,
        frame=Frame.around(xy, platform, radius, microns, angle),
        xy=xy,
        lattice=lattice,
        cells=_draw_cells(xy, platform, radius, geometry, atlas, rng),
        outline=float(geometry.level(xy).max()),
    )


def cell_positions(
    n: int,
    radius: float,
    geometry: Geometry,
    density: AnyFloats,
    area: float,
    rng: np.random.Generator,
) -> AnyFloats:
    """Draw the ``n`` innermost cells, one per ``area`` um^2: a jittered hexagonal grid, thinned by region."""
    mean_density = float(density.mean())
    pitch_um = (2 / 3**0.5 * area * mean_density) ** 0.5
    pitch = pitch_um / radius
    row_pitch = pitch * 0.75**0.5
    reach = 1.5 + 4 * pitch
    column = np.arange(-reach, reach, pitch)
    row = np.arange(-reach, reach, row_pitch)
    x, y = np.meshgrid(column, row)
    x[1::2] += pitch / 2
    xy = _pairs(x, y)
    xy += rng.normal(0.0, 0.18 * pitch, xy.shape)
    regions = geometry.region(xy)
    is_cell = rng.random(len(xy)) < density[regions]
    cells = xy[is_cell]
    inner = _innermost(cells, n, geometry)
    return cells[rng.permutation(inner)]


def _pairs(x: AnyFloats, y: AnyFloats) -> AnyFloats:
    """Return positions (n, 2)."""
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _innermost(xy: AnyFloats, n: int, geometry: Geometry) -> Ints:
    """Return the numbers of the ``n`` innermost positions, from the center outwards."""
    outwards = np.argsort(geometry.level(xy), kind="stable")
    return outwards[:n]


def _spot_positions(
    n: int, layout: Layout, radius: float, geometry: Geometry
) -> tuple[AnyFloats, tuple[Ints, Ints]]:
    """Return the ``n`` innermost spots, in unit coordinates, with array row and column (Visium: row + col even)."""
    n_rows = int(np.ceil(2.0 * radius / 86.0)) + 4
    span = n_rows + n_rows % 2
    rows = np.arange(-span, span + 1)
    columns = np.arange(-2 * span, 2 * span + 1)
    row_grid, column_grid = np.meshgrid(rows, columns)
    row = row_grid.ravel()
    column = column_grid.ravel()
    if layout == "visium":
        is_even = (row + column) % 2 == 0
        row = row[is_even]
        column = column[is_even]
        microns = _pairs(column * 50.0, row * 50.0 * 3**0.5)
    else:
        microns = _pairs(column * 200.0, row * 200.0)
    xy = microns / radius
    inner = np.sort(_innermost(xy, n, geometry))
    by_row = np.lexsort((column[inner], row[inner]))
    inner = inner[by_row]
    array_row = _from_two(row[inner] + span)
    array_column = _from_two(column[inner] + 2 * span)
    return xy[inner], (array_row, array_column)


def _from_two(number: Ints) -> Ints:
    """Shift array numbers so that the lowest is 2 or 3: by an even number, which keeps Visium's parity."""
    lowest = int(number.min())
    margin = (lowest - 2) // 2 * 2
    return number - margin


def _draw_cells(
    xy: AnyFloats,
    platform: Platform,
    radius: float,
    geometry: Geometry,
    atlas: Atlas,
    rng: np.random.Generator,
) -> Cells:
    """Draw the cells of each observation."""
    n = len(xy)
    if platform.cells == 1:
        owner = np.arange(n)
        places = xy
    else:
        relative_density = atlas.density / atlas.density.mean()
        spot_regions = geometry.region(xy)
        expected = platform.cells * relative_density[spot_regions]
        others = expected - 1 if expected.min() > 1 else expected
        n_cells = 1 + rng.poisson(others)
        owner = np.repeat(np.arange(n), n_cells)
        spot_radius = platform.diameter / 2
        distance = spot_radius * rng.random(len(owner)) ** 0.5
        direction = rng.uniform(0, 2 * np.pi, len(owner))
        x = distance * np.cos(direction)
        y = distance * np.sin(direction)
        places = xy[owner] + _pairs(x, y) / radius
    regions = geometry.region(places)
    return Cells(owner, places, regions, draw_types(regions, atlas, rng))


def draw_types(regions: Ints, atlas: Atlas, rng: np.random.Generator) -> Ints:
    """Draw the type of each cell from the mixture of its region."""
    summed = np.cumsum(atlas.mixture, axis=1)
    thresholds = summed[regions, :-1]
    uniform = rng.random(len(regions))
    passed = uniform[:, None] > thresholds
    return passed.sum(1)
