"""TissueImage: what it takes, what it refuses, and where its crops land."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from terrazzo.errors import ConfigError, InputError
from terrazzo.images import TissueImage


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)


def test_holds_pixels_read_only_without_copy(pixels):
    image = TissueImage(pixels, 0.5, 0.1)
    assert (image.height, image.width) == (20, 30)
    assert np.shares_memory(image.pixels, pixels)
    assert pixels.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        image.pixels[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        image.scale = 2.0


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        [1],
    ],
)
def test_refuses_wrong_pixels(bad):
    with pytest.raises(InputError):
        TissueImage(bad)


@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf, "a"])
@pytest.mark.parametrize("name", ["scale", "microns_per_pixel"])
def test_refuses_wrong_scales(pixels, name, value):
    with pytest.raises(InputError, match=name):
        TissueImage(pixels, **{name: value})


def test_from_array_converts(pixels):
    def got(array):
        return TissueImage.from_array(array).pixels

    np.testing.assert_array_equal(got(pixels), pixels)
    np.testing.assert_array_equal(got(pixels / 255), pixels)
    np.testing.assert_array_equal(got((pixels / 255).astype(np.float32)), pixels)
    np.testing.assert_array_equal(got(pixels.astype(np.uint16) * 257), pixels)
    gray = np.repeat(pixels[:, :, :1], 3, axis=2)
    np.testing.assert_array_equal(got(pixels[:, :, 0]), gray)
    np.testing.assert_array_equal(got(pixels[:, :, :1]), gray)
    solid, clear = np.full((20, 30, 1), 255, np.uint8), np.zeros((20, 30, 1), np.uint8)
    np.testing.assert_array_equal(got(np.concatenate([pixels, solid], 2)), pixels)
    assert (got(np.concatenate([pixels, clear], 2)) == 255).all()


@pytest.mark.parametrize(
    "bad",
    [
        np.full((3, 3), 2.0),
        np.full((3, 3), np.nan),
        np.zeros((3, 3), int),
        np.zeros((3, 3, 2)),
        np.zeros(3),
    ],
)
def test_from_array_refuses(bad):
    with pytest.raises(InputError):
        TissueImage.from_array(bad)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_from_file_is_lossless(tmp_path, pixels, suffix):
    path = tmp_path / f"image{suffix}"
    if suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels, photometric="rgb")
    image = TissueImage.from_file(path, microns_per_pixel=0.5, scale=0.2)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert (image.microns_per_pixel, image.scale) == (0.5, 0.2)


def test_from_file_reads_jpeg_gray_planar_and_palette(tmp_path, pixels):
    smooth = np.full((16, 24, 3), 120, np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg")
    assert np.abs(TissueImage.from_file(tmp_path / "a.jpg").pixels.astype(int) - 120).max() <= 2
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(
        TissueImage.from_file(tmp_path / "gray.png").pixels[:, :, 1], pixels[:, :, 0]
    )
    Image.fromarray(smooth).convert("P").save(tmp_path / "palette.png")
    assert TissueImage.from_file(tmp_path / "palette.png").pixels.shape == smooth.shape
    tifffile.imwrite(
        tmp_path / "p.tif", np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate"
    )
    np.testing.assert_array_equal(TissueImage.from_file(tmp_path / "p.tif").pixels, pixels)


def test_from_file_refuses_what_is_missing_foreign_or_large(tmp_path, pixels):
    with pytest.raises(InputError, match="No image file"):
        TissueImage.from_file(tmp_path / "none.png")
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match=r"\.gif"):
        TissueImage.from_file(tmp_path / "a.gif")
    for name in ("text.png", "text.tif", "empty.png", "empty.tif"):
        (tmp_path / name).write_bytes(b"" if "empty" in name else b"not an image at all")
        with pytest.raises(InputError, match=name):
            TissueImage.from_file(tmp_path / name)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="zlib")
    for name in ("a.png", "a.tif"):
        with pytest.raises(InputError, match="over the limit"):
            TissueImage.from_file(tmp_path / name, max_pixels=599)
    tifffile.imwrite(
        tmp_path / "stack.tif", np.zeros((5, 8, 8), np.uint8), photometric="minisblack"
    )
    with pytest.raises(InputError, match="shape"):
        TissueImage.from_file(tmp_path / "stack.tif")


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_decompression_bomb_is_refused(tmp_path, side):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    with pytest.raises(InputError, match=r"bomb\.png"):
        TissueImage.from_file(tmp_path / "bomb.png", max_pixels=10**8)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_file_is_refused(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    path = tmp_path / name
    if name.endswith("tif"):
        tifffile.imwrite(path, noise, photometric="rgb")
    else:
        Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=name):
        TissueImage.from_file(path)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    data=st.binary(min_size=0, max_size=60),
    at=st.integers(0, 400),
    name=st.sampled_from(["f.png", "f.jpg", "f.tif"]),
)
def test_damaged_file_never_raises_anything_else(tmp_path_factory, data, at, name):
    path = tmp_path_factory.mktemp("fuzz") / name
    image = np.full((12, 12, 3), 90, np.uint8)
    if name == "f.tif":
        tifffile.imwrite(path, image, photometric="rgb")
    else:
        Image.fromarray(image).save(path)
    good = path.read_bytes()
    at = min(at, len(good))
    path.write_bytes(good[:at] + data + good[at + len(data) :])
    with contextlib.suppress(InputError):
        np.asarray(TissueImage.from_file(path, max_pixels=10**6).pixels)


def test_crop_lands_on_the_point(pixels):
    image = TissueImage(pixels, microns_per_pixel=0.5, scale=0.1)
    np.testing.assert_array_equal(image.crop(155.0, 75.0, size_px=1)[0, 0], pixels[7, 15])
    np.testing.assert_array_equal(image.crop(150.0, 70.0, size_px=4), pixels[5:9, 13:17])
    np.testing.assert_array_equal(image.crop(150.0, 70.0, size_um=2.0), pixels[5:9, 13:17])
    assert image.crop(150.0, 70.0, size_um=0.01).shape == (1, 1, 3)


def test_crop_beyond_the_border_is_white_or_repeats_it(pixels):
    image = TissueImage(pixels)
    repeated = image.crop(0.0, 0.0, size_px=6)
    np.testing.assert_array_equal(
        repeated, np.pad(pixels[:3, :3], ((3, 0), (3, 0), (0, 0)), mode="edge")
    )
    assert (image.crop(-1e300, 1e300, size_px=4) == pixels[-1, 0]).all()
    corner = image.crop(0.0, 0.0, size_px=6, padding="white")
    np.testing.assert_array_equal(corner[3:, 3:], pixels[:3, :3])
    assert (corner[:3] == 255).all()
    assert (corner[:, :3] == 255).all()
    whole = image.crop(15.0, 10.0, size_px=50, padding="white")
    np.testing.assert_array_equal(whole[15:35, 10:40], pixels)
    for far in (1e3, -1e3, 1e300, -1e300):
        assert (image.crop(far, 5.0, size_px=6, padding="white") == 255).all()
    corner[:] = 0
    assert image.pixels.max() > 0


@pytest.mark.parametrize(
    "size",
    [
        {},
        {"size_px": 3, "size_um": 2.0},
        {"size_px": 0},
        {"size_px": 2.5},
        {"size_um": 3.0},
        {"size_px": 10**6},
    ],
)
def test_crop_refuses_sizes(pixels, size):
    with pytest.raises(ConfigError, match="size"):
        TissueImage(pixels).crop(1.0, 1.0, **size)


def test_crop_refuses_center_that_is_not_finite(pixels):
    with pytest.raises(InputError, match="finite"):
        TissueImage(pixels).crop(float("nan"), 1.0, size_px=3)
    with pytest.raises(ConfigError, match="size_um"):
        TissueImage(pixels, 0.5).crop(0.0, 1.0, size_um=-3.0)
