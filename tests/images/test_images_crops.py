"""Crops: which pixels they hold, at any scale, at borders, with x and y apart, from memory and from a pyramid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from terrazzo.errors import ConfigError, InputError
from terrazzo.images import Crops, TissueImage
from terrazzo.images.pixels import ArrayPixels


def ramp(height=60, width=90):
    """Red is the column, green the row, blue a checkerboard: every pixel says where it is."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 2, rows * 2, 255 * ((rows + columns) % 2)], axis=2).astype(np.uint8)


def weights(low, high, size, length):
    """Linear interpolation in one direction, slowly, (size, length): a triangle as wide as a pixel of the result."""
    step = (high - low) / size
    reach = max(step, 1.0)
    center = low + (np.arange(size) + 0.5) * step
    found = np.maximum(0.0, 1 - np.abs(np.arange(length)[None] + 0.5 - center[:, None]) / reach)
    return found / found.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("microns", [0.25, 1.0, 3.2, 16.1])
@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_a_crop_of_a_physical_size_holds_its_pixels(microns, scale):
    image = TissueImage(ramp(), microns_per_pixel=microns, scale=scale)
    column, row, side = 31, 22, 8
    crop = image.crops(
        [[(column + 4) / scale, (row + 4) / scale]], size_um=side * microns, pixels=side
    )[0]
    np.testing.assert_array_equal(crop, ramp()[row : row + side, column : column + side])
    np.testing.assert_array_equal(
        crop, image.crop((column + 4) / scale, (row + 4) / scale, size_um=side * microns)
    )


def test_x_is_the_column_and_y_the_row():
    image = TissueImage(ramp(), microns_per_pixel=1.0)
    crops = image.crops(np.array([[70.5, 10.5], [10.5, 50.5]]), size_um=1, pixels=1)[:]
    assert crops[:, 0, 0, :2].tolist() == [[140, 20], [20, 100]]


def test_pixels_that_are_no_squares():
    """Half as many rows as columns for the same length: a square of tissue is 8 columns and 4 rows."""
    image = TissueImage(ramp(), microns_per_pixel=2.0, scale=0.5, scale_y=0.25, offset=(3.0, -2.0))
    np.testing.assert_allclose(image.to_pixels([[60.0, 80.0]]), [[33.0, 18.0]])
    np.testing.assert_allclose(
        image.crops([[60.0, 80.0]], size_um=16).boxes, [[29.0, 16.0, 37.0, 20.0]]
    )
    np.testing.assert_array_equal(image.crop(60.0, 80.0, size_um=16), ramp()[16:20, 29:37])
    shown = image.crops([[60.0, 80.0]], size_um=16, pixels=8)[0]
    np.testing.assert_array_equal(shown[:, :, 0], np.tile(ramp()[16, 29:37, 0], (8, 1)))
    assert (np.diff(shown[:, 2, 1].astype(int)) >= 0).all()


@pytest.mark.parametrize("padding", ["edge", "white"])
def test_beyond_the_border(padding):
    image = TissueImage(ramp(), microns_per_pixel=1.0)
    wide = np.pad(
        ramp(),
        ((20, 20), (20, 20), (0, 0)),
        **({"mode": "edge"} if padding == "edge" else {"constant_values": 255}),
    )
    for x, y in itertools.product((0.0, 3.0, 45.0, 88.0, 90.0), (0.0, 30.0, 60.0)):
        crop = image.crops([[x, y]], size_um=8, pixels=8, padding=padding)[0]
        left, top = int(x) + 16, int(y) + 16
        np.testing.assert_array_equal(crop, wide[top : top + 8, left : left + 8])
    crops = image.crops(
        [[0.0, 30.0], [45.0, 30.0], [1e12, -1e12], [-1e300, 5.0]],
        size_um=8,
        pixels=4,
        padding=padding,
    )
    assert crops.outside().tolist() == [True, False, True, True]
    far = crops[2]
    assert (far == (ramp()[0, -1] if padding == "edge" else 255)).all()


@pytest.mark.parametrize(("side", "pixels"), [(40, 10), (33, 7), (12, 5), (13, 20), (8, 224)])
def test_any_size_is_resized_by_linear_interpolation(side, pixels):
    noise = np.random.default_rng(0).integers(0, 255, (120, 184, 3), dtype=np.uint8)
    crops = TissueImage(noise, microns_per_pixel=0.5).crops(
        [[80.3, 61.9], [50.0, 47.0]], side / 2, pixels=pixels
    )
    for (left, top, right, bottom), crop in zip(crops.boxes, crops[:], strict=True):
        across, down = weights(left, right, pixels, 184), weights(top, bottom, pixels, 120)
        expected = np.einsum(
            "ya,axc->yxc",
            down,
            np.einsum("xb,abc->axc", across, noise, optimize=True),
            optimize=True,
        )
        assert np.abs(crop - expected).max() <= 1.5


def test_growing_interpolates_between_pixels():
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, 2:] = 200
    row = TissueImage(pixels, microns_per_pixel=1.0).crops([[2.0, 2.0]], size_um=2, pixels=4)[0][
        0, :, 0
    ]
    assert row.tolist() == [0, 50, 150, 200]


def test_boxes_of_any_shape_become_squares():
    image = TissueImage(ramp(), microns_per_pixel=4.0, scale=0.5)
    crops = image.box_crops([[20.0, 40.0, 60.0, 60.0], [0.0, 0.0, 180.0, 120.0]], pixels=10)
    np.testing.assert_allclose(crops.boxes, [[10, 20, 30, 30], [0, 0, 90, 60]])
    assert crops[:].shape == (2, 10, 10, 3)
    assert abs(int(crops[0][5, 5, 1]) - 2 * 25) <= 1


@pytest.mark.parametrize("first", [False, True])
def test_lazy_arrays_give_the_same_crops(first):
    read = []

    class Watched:
        shape = (3, 60, 90) if first else (60, 90, 3)

        def __getitem__(self, index):
            read.append(index)
            return (np.moveaxis(ramp(), -1, 0) if first else ramp())[index]

    lazy = TissueImage.from_lazy(Watched(), 1.0, channels_first=first)
    assert not read
    kept = TissueImage(ramp(), 1.0)
    at = np.array([[30.2, 20.7], [89.0, 2.0], [0.0, 59.0]])
    np.testing.assert_array_equal(lazy.crops(at, 12, pixels=9)[:], kept.crops(at, 12, pixels=9)[:])
    for index in read:
        rows, columns = index[-2:] if first else index[:2]
        assert rows.stop - rows.start < 20
        assert columns.stop - columns.start < 20
    np.testing.assert_array_equal(np.asarray(lazy.pixels), ramp())
    np.testing.assert_array_equal(lazy.pixels[5, 3:9:2, 1], ramp()[5, 3:9:2, 1])
    np.testing.assert_array_equal(lazy.pixels[..., 0], ramp()[..., 0])
    np.testing.assert_array_equal(lazy.pixels[-1], ramp()[-1])
    assert lazy.content_hash != TissueImage.from_lazy(ramp()[:, ::-1]).content_hash


def test_a_coarse_level_serves_where_it_has_the_pixels():
    fine = np.full((64, 96, 3), 10, np.uint8)
    half, quarter = np.full((32, 48, 3), 20, np.uint8), np.full((16, 24, 3), 30, np.uint8)
    image = TissueImage(ArrayPixels(fine, coarser=[half, quarter]), microns_per_pixel=1.0)
    values = [int(image.crops([[48, 32]], 24, pixels=p)[0].mean()) for p in (24, 13, 12, 7, 6, 2)]
    assert values == [10, 10, 20, 20, 30, 30]
    assert [int(image.view(max_side=m).mean()) for m in (96, 60, 48, 24)] == [10, 10, 20, 30]


def test_a_view_is_a_mean_and_never_larger():
    image = TissueImage(ramp())
    assert image.view(max_side=500).shape == (60, 90, 3)
    view = image.view(10, 20, 50, 40, max_side=20)
    assert view.shape == (10, 20, 3)
    block = ramp()[20:40, 10:50].reshape(10, 2, 20, 2, 3).mean(axis=(1, 3))
    assert np.abs(view - block).max() <= 1
    for box in [(-1, 0, 5, 5), (0, 0, 91, 5), (5, 5, 5, 9)]:
        with pytest.raises(InputError, match="no view"):
            image.view(*box)


def test_a_view_by_bands_is_that_in_one(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (301, 199, 3), dtype=np.uint8)
    whole = TissueImage(pixels).view(max_side=77)
    monkeypatch.setattr("terrazzo.images.crops._BAND", 900)
    assert np.abs(whole.astype(int) - TissueImage(pixels).view(max_side=77)).max() <= 1


def test_batches_and_rows():
    image = TissueImage(ramp(), microns_per_pixel=1.0)
    crops = image.crops(np.random.default_rng(0).uniform(0, 60, (7, 2)), np.arange(4, 11), pixels=6)
    parts = list(crops.batches(3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert all(part.dtype == np.uint8 for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), crops[:])
    np.testing.assert_array_equal(crops[[4, 1]], crops[:][[4, 1]])
    np.testing.assert_array_equal(crops[np.array([True] + [False] * 6)], crops[:1])
    np.testing.assert_array_equal(crops[-1], crops[6])
    assert len(crops) == 7
    with pytest.raises(IndexError):
        crops[7]
    with pytest.raises(ConfigError, match="batch"):
        next(crops.batches(0))


def test_what_crops_depend_on_changes_their_hashes():
    image, other = TissueImage(ramp(), 1.0), ramp()
    other[0, 0, 0] += 1
    at = np.array([[10.0, 20.0]])
    assert (
        image.content_hash
        == TissueImage(ramp(), 2.0).content_hash
        != TissueImage(other).content_hash
    )
    same = image.crops(at, 10).settings_hash()
    assert same == image.crops(at, 10).settings_hash()
    changed = [
        image.crops(at, 11),
        image.crops(at, 10, pixels=32),
        image.crops(at, 10, padding="white"),
        image.crops(at + 1, 10),
    ]
    assert same not in {one.settings_hash() for one in changed}


def test_impossible_crops_are_refused():
    image, at = TissueImage(ramp(), 1.0), [[1.0, 1.0]]
    with pytest.raises(ConfigError, match="microns_per_pixel"):
        TissueImage(ramp()).crops(at, 10)
    for size in (0.0, -1.0, np.nan, [1.0, 2.0]):
        with pytest.raises(ConfigError, match="size_um"):
            image.crops(at, size)
    for pixels in (0, 2.5, True, 10**6):
        with pytest.raises(ConfigError):
            image.crops(at, 10, pixels=pixels)
    with pytest.raises(ConfigError, match="padding"):
        image.crops(at, 10, padding="black")
    with pytest.raises(ConfigError, match="over the limit"):
        image.crops(at, 1e6)
    with pytest.raises(InputError, match="row 1"):
        image.crops([[1.0, 1.0], [np.nan, 1.0]], 10)
    with pytest.raises(InputError, match=r"\(n, 2\)"):
        image.crops([1.0, 1.0], 10)
    with pytest.raises(InputError, match=r"\(n, 4\)"):
        image.box_crops(at)
    with pytest.raises(ConfigError, match="no inside"):
        image.box_crops([[5.0, 5.0, 5.0, 9.0]])
    with pytest.raises(InputError, match="offset"):
        TissueImage(ramp(), offset=(1.0, np.inf))
    with pytest.raises(InputError, match="scale_y"):
        TissueImage(ramp(), scale_y=-1.0)


def test_crops_of_nothing():
    crops = TissueImage(ramp(), 1.0).crops(np.empty((0, 2)), 10, pixels=4)
    assert isinstance(crops, Crops)
    assert crops[:].shape == (0, 4, 4, 3)
    assert list(crops.batches()) == []
