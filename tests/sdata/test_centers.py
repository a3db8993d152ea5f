"""Centers of polygons, points and labels: against slow sums, in every form that holds them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from spatialdata_stores import multipolygon, point, polygon, square

from terrazzo.sdata import centers
from terrazzo.sdata.rasters import boxes


def star(x: float, y: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 12)[:-1]
    radius = rng.uniform(1, 3, 11)
    ring = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)
    return np.concatenate([ring, ring[:1]])


def by_grid(rings: list[np.ndarray], holes: list[np.ndarray]) -> np.ndarray:
    """Mean of the points of a fine grid that lie within: slow, and no formula."""
    from matplotlib.path import Path

    low, high = np.concatenate(rings).min(axis=0), np.concatenate(rings).max(axis=0)
    grid = np.stack(
        np.meshgrid(*[np.linspace(a, b, 600) for a, b in zip(low, high, strict=True)]), -1
    ).reshape(-1, 2)
    inside = np.any([Path(ring).contains_points(grid) for ring in rings], axis=0)
    inside &= (
        ~np.any([Path(ring).contains_points(grid) for ring in holes], axis=0) if holes else True
    )
    return grid[inside].mean(axis=0)


def test_polygons_holes_and_several_parts() -> None:
    ring, other, hole = star(100, 50, 0), star(120, 55, 1), np.array(square(100.2, 50.1, 0.5))
    found = centers.of_wkb(
        [
            polygon(ring),
            polygon(ring[::-1]),
            polygon(ring, hole),
            polygon(ring, hole[::-1]),
            multipolygon(polygon(ring, hole), polygon(other[::-1])),
            polygon(ring, order=">"),
            None,
        ]
    )
    expected = [
        by_grid([ring], []),
        by_grid([ring], []),
        by_grid([ring], [hole]),
        by_grid([ring], [hole]),
        by_grid([ring, other], [hole]),
        by_grid([ring], []),
    ]
    np.testing.assert_allclose(found[:-1], expected, atol=0.02)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)
    np.testing.assert_allclose(found[2], found[3], rtol=1e-12)
    assert np.isnan(found[-1]).all()


def test_far_from_the_origin_no_digits_are_lost() -> None:
    near, far = centers.of_wkb([polygon(star(0, 0, 3)), polygon(star(0, 0, 3) + 2.0**30)])
    np.testing.assert_allclose(far - 2.0**30, near, atol=1e-6)


def test_points_and_flat_things() -> None:
    line = [[0, 0], [4, 0], [0, 0]]
    found = centers.of_wkb(
        [point(1, 2), point(3, 4, ">"), polygon(line), struct.pack("<BI3d", 1, 1001, 5, 6, 7)]
    )
    np.testing.assert_allclose(found, [[1, 2], [3, 4], [4 / 3, 0], [5, 6]])
    assert np.isnan(centers.of_wkb([point(np.nan, np.nan)])).all()


def test_three_dimensions_and_postgis() -> None:
    ring = np.concatenate([np.array(square(5, 6)), np.full((5, 1), 9.0)], axis=1)
    iso = struct.pack("<BIII", 1, 1003, 1, 5) + ring.tobytes()
    postgis = struct.pack("<BIIII", 1, 0xA0000003, 4326, 1, 5) + ring.tobytes()
    np.testing.assert_allclose(centers.of_wkb([iso, postgis]), [[5, 6], [5, 6]])


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<BII", 1, 2, 0),  # a line
        struct.pack("<BII", 1, 6, 2**31),  # polygons that are not there
        struct.pack("<BIII", 1, 3, 1, 2**31),  # corners that are not there
        polygon(square(0, 0))[:-3],
        multipolygon(point(0, 0)),
        b"\x01",
    ],
)
def test_broken_geometry_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no place|too early|smaller|holds something else"):
        centers.of_wkb([data])


def test_ragged_arrays_are_the_same() -> None:
    rings = [star(0, 0, 4), np.array(square(0, 0, 0.3)), star(9, 9, 5)]
    xy, ends = np.concatenate(rings), np.cumsum([0, *map(len, rings)])
    polygons = centers.of_wkb([polygon(rings[0], rings[1]), polygon(rings[2])])
    np.testing.assert_allclose(centers.of_ragged(xy, [ends, np.array([0, 2, 3])]), polygons)
    whole = centers.of_wkb([multipolygon(polygon(rings[0], rings[1]), polygon(rings[2]))])
    np.testing.assert_allclose(
        centers.of_ragged(xy, [ends, np.array([0, 2, 3]), np.array([0, 2])]), whole
    )
    for wrong in ([ends, np.array([0, 2])], [ends + 1, np.array([0, 2, 3])], [ends]):
        with pytest.raises(ValueError, match="offsets"):
            centers.of_ragged(xy, wrong)


@pytest.mark.parametrize("chunk", [(7, 5), (64, 64)])
@pytest.mark.parametrize("apart", [1, 10**8])
def test_labels_by_piece(chunk: tuple[int, int], apart: int) -> None:
    import dask.array as da

    labels = (np.random.default_rng(0).integers(0, 6, (40, 33)) * apart).astype(np.uint32)
    array = da.from_array(labels, chunks=chunk)
    found, places = centers.of_labels(array, boxes(array, "labels"))
    assert found.tolist() == [n * apart for n in range(1, 6)]
    for label, place in zip(found, places, strict=True):
        rows, columns = np.nonzero(labels == label)
        np.testing.assert_allclose(place, [columns.mean() + 0.5, rows.mean() + 0.5])


def test_labels_in_planes_are_looked_at_from_above() -> None:
    labels = np.zeros((3, 4, 6), np.int16)
    labels[0, 1, 2], labels[2, 1, 4] = 7, 7
    found, places = centers.of_labels(labels, boxes(labels, "labels"))
    assert found.tolist() == [7]
    np.testing.assert_allclose(places, [[3.5, 1.5]])
