"""Niches: the nearest neighbors and their ties, means against brute force, boxes that cover the discs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from terrazzo.errors import ConfigError, InputError
from terrazzo.slices.niches import Niches, find_niches, spot_boxes, spot_diameter


def brute(coords, k):
    """Neighbors by sorting all distances: of equal ones the smaller y, then the smaller x, then the row."""
    out = np.full((len(coords), k + 1), -1)
    for i, here in enumerate(coords):
        offset = coords - here
        distance = np.hypot(*offset.T)
        rest = [j for j in range(len(coords)) if j != i]
        rest.sort(
            key=lambda j: (round(distance[j], 5), round(offset[j, 1], 5), round(offset[j, 0], 5), j)
        )
        out[i, 0] = i
        out[i, 1 : min(k, len(rest)) + 1] = rest[:k]
    return out


def lattice(kind, n=7, pitch=100.0):
    rows, columns = np.mgrid[:n, :n].reshape(2, -1)
    if kind == "square":
        return pitch * np.stack([columns, rows], axis=1).astype(float)
    return pitch * np.stack([columns + 0.5 * (rows % 2), rows * np.sqrt(3) / 2], axis=1)


@pytest.mark.parametrize("k", [0, 1, 3, 6])
@pytest.mark.parametrize("kind", ["square", "hexagonal", "random", "coincident"])
def test_neighbors_are_those_of_brute_force(kind, k):
    rng = np.random.default_rng(0)
    coords = lattice(kind) if kind in ("square", "hexagonal") else rng.uniform(0, 900, (60, 2))
    if kind == "coincident":
        coords[10:40] = coords[3]
    np.testing.assert_array_equal(find_niches(coords, k).members, brute(coords, k))


def test_ties_do_not_depend_on_the_order_of_the_rows_nor_on_rounding():
    coords = lattice("hexagonal")
    first = find_niches(coords).members
    order = np.random.default_rng(1).permutation(len(coords))
    shuffled = find_niches(coords[order]).members
    np.testing.assert_array_equal(order[shuffled], first[order])
    noisy = coords * 0.29 + 1234.5 + np.random.default_rng(2).uniform(-1e-9, 1e-9, coords.shape)
    np.testing.assert_array_equal(find_niches(noisy).members, first)


def test_fewer_spots_than_neighbors_and_a_reach():
    coords = np.array([[0.0, 0.0], [100.0, 0.0], [900.0, 0.0]])
    np.testing.assert_array_equal(
        find_niches(coords, 3).members, [[0, 1, 2, -1], [1, 0, 2, -1], [2, 1, 0, -1]]
    )
    near = find_niches(coords, 3, reach=100.0)
    np.testing.assert_array_equal(near.members, [[0, 1, -1, -1], [1, 0, -1, -1], [2, -1, -1, -1]])
    assert near.sizes.tolist() == [2, 2, 1]
    assert find_niches(coords[:1]).members.tolist() == [[0, -1, -1, -1]]
    assert find_niches(np.empty((0, 2))).members.shape == (0, 4)


@pytest.mark.parametrize("reach", [None, 60.0])
@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_niche_mean_is_that_of_brute_force(kind, reach):
    rng = np.random.default_rng(3)
    coords = rng.uniform(0, 500, (80, 2))
    dense = (rng.poisson(1.0, (80, 25)) * (rng.random((80, 25)) < 0.3)).astype(np.float32)
    niches = find_niches(coords, 3, reach=reach)
    expected = np.stack(
        [dense[[j for j in row if j >= 0]].astype(float).mean(axis=0) for row in niches.members]
    )
    values = sparse.csr_matrix(dense) if kind == "csr" else dense
    got = niches.mean(values)
    assert got.dtype == np.float32
    assert sparse.issparse(got) == (kind == "csr")
    np.testing.assert_allclose(got.toarray() if kind == "csr" else got, expected, rtol=1e-6)
    rows = np.array([5, 5, 0, 79])
    some = niches.mean(values, rows)
    np.testing.assert_allclose(some.toarray() if kind == "csr" else some, expected[rows], rtol=1e-6)


def test_boxes_cover_the_discs():
    coords = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [1000.0, 1000.0]])
    niches = Niches(np.array([[0, 1, 2], [1, 0, -1], [2, 0, -1], [3, -1, -1]]))
    boxes = niches.boxes(coords, 55.0)
    half = 27.5
    np.testing.assert_allclose(boxes[0], [-half, -half, 100 + half, 100 + half])
    np.testing.assert_allclose(boxes[1], [-half, -half, 100 + half, half])
    np.testing.assert_allclose(boxes[3], [1000 - half, 1000 - half, 1000 + half, 1000 + half])
    square = niches.boxes(coords, 55.0, square=True)
    np.testing.assert_allclose(square[1], [-half, -77.5, 100 + half, 77.5])
    np.testing.assert_allclose(spot_boxes(coords, 55.0)[1], [100 - half, -half, 100 + half, half])


def test_bounding_boxes_of_visium_are_within_the_range_of_the_paper():
    """Section 3.1: 84 to 168 pixels where a spot has 28; here 79 to 130, since 100 um is the center distance."""
    boxes = find_niches(lattice("hexagonal", 12)).boxes(lattice("hexagonal", 12), 55.0)
    pixels = (boxes[:, 2:] - boxes[:, :2]) * 28 / 55
    assert 28 * 2 < pixels.max(axis=1).min() < pixels.max() < 168


@pytest.mark.parametrize(
    ("technology", "kind", "spacing", "diameter"),
    [
        ("Visium", "visium", 100.0, 55.0),
        ("unknown", "visium", None, 55.0),
        ("ST", "st", 200.0, 100.0),
        ("Spatial Transcriptomics", None, None, 100.0),
        ("Visium HD", None, 8.0, 8.0),
        ("Slide-seqV2", None, 12.0, 10.0),
    ],
)
def test_the_platform_gives_the_diameter(technology, kind, spacing, diameter):
    assert spot_diameter(technology, kind, spacing) == diameter


@pytest.mark.parametrize("technology", ["Xenium", "unknown", "Visium HD"])
def test_a_platform_without_spots_has_no_diameter(technology):
    with pytest.raises(ConfigError, match="spot_um"):
        spot_diameter(technology)


def test_bad_input_is_refused():
    coords = np.zeros((4, 2))
    for k in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="neighbors"):
            find_niches(coords, k)
    with pytest.raises(ConfigError, match="reach"):
        find_niches(coords, reach=0.0)
    with pytest.raises(InputError, match="finite"):
        find_niches(np.array([[0.0, np.nan]]))
    with pytest.raises(InputError, match="one row a spot"):
        find_niches(coords).mean(np.zeros((3, 2)))
    for diameter in (0.0, -1.0, np.nan):
        with pytest.raises(ConfigError, match="diameter"):
            spot_boxes(coords, diameter)


def test_a_slice_in_one_place_is_no_trouble():
    niches = find_niches(np.zeros((300, 2)))
    assert (np.sort(niches.members, axis=1)[:, 0] >= 0).all()
    assert (niches.members[:, 0] == np.arange(300)).all()
    assert niches.members[5].tolist() == [5, 0, 1, 2]
