"""TIFF: read by tile and level, every color kind, and what is damaged, foreign or too large."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from terrazzo.errors import InputError, TerrazzoWarning
from terrazzo.images import TissueImage
from terrazzo.images.pixels import LazyPixels


@pytest.fixture
def smooth():
    """Smooth, so that JPEG keeps it."""
    rows, columns = np.mgrid[:150, :210]
    return np.stack([columns, rows, 128 + rows // 4], axis=2).astype(np.uint8)


def jpeg_tiff(path, pixels, tile, colors="ycbcr"):
    """Write a tiled TIFF of JPEGs, as scanners do; tifffile cannot without another package."""
    parts = []
    for y, x in itertools.product(range(0, pixels.shape[0], tile), range(0, pixels.shape[1], tile)):
        part = pixels[y : y + tile, x : x + tile]
        part = np.pad(
            part, ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)), mode="edge"
        )
        held = io.BytesIO()
        Image.fromarray(part).save(
            held, "JPEG", quality=95, subsampling=0, keep_rgb=colors == "rgb"
        )
        parts.append(held.getvalue())
    offsets = 8 + np.cumsum([0, *map(len, parts)])
    n, end = len(parts), int(offsets[-1])
    tags = [  # tag, type (3: uint16, 4: uint32), count, value or the place of the values, which follow the tiles
        (256, 4, 1, pixels.shape[1]),
        (257, 4, 1, pixels.shape[0]),
        (258, 3, 3, end + 8 * n),
        (259, 3, 1, 7),
        (262, 3, 1, 6 if colors == "ycbcr" else 2),
        (277, 3, 1, 3),
        (284, 3, 1, 1),
        (322, 4, 1, tile),
        (323, 4, 1, tile),
        (324, 4, n, end),
        (325, 4, n, end + 4 * n),
        (530, 3, 2, 1 + (1 << 16)),
    ]
    values = struct.pack(f"<{2 * n}I3H", *offsets[:-1], *map(len, parts), 8, 8, 8)
    directory = (
        struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        + b"\0" * 4
    )
    head = struct.pack("<2sHI", b"II", 42, end + len(values))
    path.write_bytes(head + b"".join(parts) + values + directory)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 7},
        {"tile": (32, 48)},
        {"tile": (32, 48), "compression": "zlib"},
        {"tile": (32, 48), "compression": "zlib", "predictor": True},
        {"rowsperstrip": 11, "compression": "zlib"},
        {"tile": (64, 64), "planarconfig": "separate"},
        {"byteorder": ">", "tile": (32, 48)},
    ],
)
def test_any_layout_is_read_by_part(tmp_path, smooth, options):
    pixels = np.moveaxis(smooth, -1, 0) if "planarconfig" in options else smooth
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **options)
    image = TissueImage.from_file(tmp_path / "a.tif", microns_per_pixel=1.0)
    assert isinstance(image.pixels, LazyPixels)
    np.testing.assert_array_equal(image.pixels[40:99, 30:131], smooth[40:99, 30:131])
    np.testing.assert_array_equal(np.asarray(image.pixels), smooth)
    at = np.array([[100.0, 70.0], [0.0, 0.0], [209.0, 149.0]])
    np.testing.assert_array_equal(
        image.crops(at, 20, pixels=16)[:], TissueImage(smooth, 1.0).crops(at, 20, 16)[:]
    )


def test_only_the_tiles_under_a_crop_are_read(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", tile=(64, 64), compression="zlib"
    )
    read = []
    plain = tifffile.FileCache.read

    def counted(self, file, offset, n):
        read.append(n)
        return plain(self, file, offset, n)

    monkeypatch.setattr(tifffile.FileCache, "read", counted)
    image = TissueImage.from_file(tmp_path / "a.tif", microns_per_pixel=1.0)
    crops = image.crops([[96.0, 96.0], [100.0, 100.0]], 20, pixels=20)
    assert read == []
    np.testing.assert_array_equal(crops[0], pixels[86:106, 86:106])
    assert len(read) == 1
    assert sum(read) < pixels.nbytes / 50
    _ = crops[1]
    assert len(read) == 1  # the tile is still there


def test_one_strip_without_compression_is_read_in_part(tmp_path, smooth):
    tifffile.imwrite(tmp_path / "a.tif", smooth, photometric="rgb", rowsperstrip=150)
    image = TissueImage.from_file(
        tmp_path / "a.tif", max_pixels=20_000
    )  # fewer than the 31,500 of the whole
    np.testing.assert_array_equal(image.pixels[33:47, 5:9], smooth[33:47, 5:9])
    with pytest.raises(InputError, match="at once"):
        np.asarray(image.pixels)


@pytest.mark.parametrize("subifds", [True, False])
def test_the_levels_of_a_pyramid(tmp_path, smooth, subifds):
    path = tmp_path / "a.ome.tif" if subifds else tmp_path / "a.tif"
    with tifffile.TiffWriter(path, ome=subifds) as tiff:
        options = {"photometric": "rgb", "tile": (32, 32)}
        tiff.write(smooth, subifds=2 if subifds else None, **options)
        tiff.write(np.full((75, 105, 3), 7, np.uint8), subfiletype=1, **options)
        tiff.write(np.full((38, 53, 3), 9, np.uint8), subfiletype=1, **options)
    image = TissueImage.from_file(path, microns_per_pixel=1.0)
    if subifds:
        assert [level.shape for level in image.pixels.levels] == [
            (150, 210, 3),
            (75, 105, 3),
            (38, 53, 3),
        ]
        assert (image.crops([[100.0, 70.0]], 60, pixels=28)[0] == 7).all()
        assert (image.view(max_side=53) == 9).all()
    np.testing.assert_array_equal(
        image.crops([[100.0, 70.0]], 40, pixels=40)[0], smooth[50:90, 80:120]
    )


@pytest.mark.parametrize("colors", ["ycbcr", "rgb"])
def test_jpeg_tiles_need_no_other_package(tmp_path, smooth, colors):
    jpeg_tiff(tmp_path / "a.tif", smooth, 64, colors)
    image = TissueImage.from_file(tmp_path / "a.tif")
    assert isinstance(image.pixels, LazyPixels)
    assert np.abs(image.pixels[20:140, 50:200].astype(int) - smooth[20:140, 50:200]).max() <= 6


def test_jpeg_strips_with_shared_tables(tmp_path, smooth):
    Image.fromarray(smooth).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    image = TissueImage.from_file(tmp_path / "a.tif")
    assert np.abs(np.asarray(image.pixels).astype(int) - smooth).max() <= 12


def test_jpeg_of_four_inks_is_read_whole(tmp_path, smooth):
    Image.fromarray(smooth).convert("CMYK").save(tmp_path / "a.tif", compression="jpeg")
    pixels = np.asarray(TissueImage.from_file(tmp_path / "a.tif").pixels)
    assert np.abs(pixels.astype(int) - smooth).max() <= 12


def test_no_file_stays_open(tmp_path, smooth):
    tifffile.imwrite(tmp_path / "a.tif", smooth, photometric="rgb", tile=(32, 32))
    open_files = Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("no list of open files on this system")
    image = TissueImage.from_file(tmp_path / "a.tif")
    np.asarray(image.pixels)
    names = [os.path.realpath(link) for link in open_files.iterdir()]
    assert str(tmp_path / "a.tif") not in names


def test_threads_read_the_same(tmp_path, smooth):
    tifffile.imwrite(
        tmp_path / "a.tif", smooth, photometric="rgb", tile=(32, 32), compression="zlib"
    )
    pixels = TissueImage.from_file(tmp_path / "a.tif").pixels
    starts = list(range(0, 150, 3))
    with ThreadPoolExecutor(8) as pool:
        bands = list(pool.map(lambda y: pixels[y : y + 3], starts))
    np.testing.assert_array_equal(np.concatenate(bands), smooth)


def test_lzw_is_read_whole(tmp_path, smooth, monkeypatch):
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", {})  # as without imagecodecs
    Image.fromarray(smooth).save(tmp_path / "a.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(
        np.asarray(TissueImage.from_file(tmp_path / "a.tif").pixels), smooth
    )
    with pytest.raises(InputError, match="over the limit"):
        TissueImage.from_file(tmp_path / "a.tif", max_pixels=31_499)


def test_gray_alpha_inks_palette_and_sixteen_bits_become_rgb(tmp_path, smooth):
    def got(pixels, photometric, **options):
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, **options)
        return np.asarray(TissueImage.from_file(tmp_path / "a.tif").pixels)

    gray = smooth[:, :, 0]
    three = np.repeat(gray[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(got(gray, "minisblack"), three)
    np.testing.assert_array_equal(got(gray, "miniswhite"), 255 - three)
    np.testing.assert_array_equal(got(gray.astype(np.uint16) * 257, "minisblack"), three)
    np.testing.assert_array_equal(
        got(gray.astype(np.uint16) * 257, "minisblack", byteorder=">"), three
    )
    np.testing.assert_array_equal(got(smooth.astype(np.uint16) * 257, "rgb"), smooth)
    np.testing.assert_array_equal(got((smooth / 255).astype(np.float32), "rgb"), smooth)
    clear = np.concatenate([smooth, np.zeros_like(smooth[:, :, :1])], axis=2)
    assert (got(clear, "rgb", extrasamples=["unassalpha"]) == 255).all()
    inks = np.stack(
        [255 - smooth[:, :, 0], 255 - smooth[:, :, 1], 255 - smooth[:, :, 2], 0 * gray], axis=2
    )
    np.testing.assert_array_equal(got(inks, "separated"), smooth)
    inks[:, :, 3] = 255
    assert (got(inks, "separated") == 0).all()
    colors = np.random.default_rng(0).integers(0, 65535, (3, 256), dtype=np.uint16)
    np.testing.assert_array_equal(
        got(gray, "palette", colormap=colors), np.moveaxis(colors // 257, 0, -1)[gray]
    )


def test_png_and_jpeg_of_every_kind_become_rgb(tmp_path, smooth):
    gray = smooth[:, :, 0]
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "a.png")
    np.testing.assert_array_equal(TissueImage.from_file(tmp_path / "a.png").pixels[:, :, 2], gray)
    Image.fromarray(smooth).convert("RGBA").save(tmp_path / "b.png")
    np.testing.assert_array_equal(TissueImage.from_file(tmp_path / "b.png").pixels, smooth)
    Image.fromarray(smooth).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert np.abs(TissueImage.from_file(tmp_path / "c.jpg").pixels.astype(int) - smooth).max() <= 12
    Image.fromarray(gray).save(tmp_path / "d.jpg", quality=95)
    assert (
        np.abs(TissueImage.from_file(tmp_path / "d.jpg").pixels[:, :, 1].astype(int) - gray).max()
        <= 6
    )


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_twelve_bits_in_sixteen_are_dark_and_said_to_be(tmp_path, name):
    raw = np.random.default_rng(0).integers(0, 4096, (40, 40), dtype=np.uint16)
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, raw, photometric="minisblack")
    else:
        Image.fromarray(raw).save(tmp_path / name)
    with pytest.warns(TerrazzoWarning, match="16-bit"):
        TissueImage.from_file(tmp_path / name)
    with pytest.warns(TerrazzoWarning, match="16-bit"):
        TissueImage.from_array(raw)


def test_where_a_file_is_damaged_is_said(tmp_path, smooth):
    tifffile.imwrite(
        tmp_path / "a.tif", smooth, photometric="rgb", tile=(64, 64), compression="zlib"
    )
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        offset = tiff.pages[0].dataoffsets[1]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[offset : offset + 20] = b"\xff" * 20
    (tmp_path / "a.tif").write_bytes(bytes(data))
    image = TissueImage.from_file(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.pixels[:64, :64], smooth[:64, :64])
    with pytest.raises(InputError, match="columns 60 and 70, rows 0 and 10"):
        image.pixels[:10, 60:70]


def test_a_tile_that_claims_too_much_is_refused(tmp_path, smooth):
    jpeg_tiff(tmp_path / "a.tif", smooth, 64)
    data = (tmp_path / "a.tif").read_bytes()
    frame = struct.pack(">HH", 64, 64)
    at = data.index(b"\xff\xc0")
    assert data[at + 5 : at + 9] == frame
    (tmp_path / "a.tif").write_bytes(
        data[: at + 5] + struct.pack(">HH", 60_000, 60_000) + data[at + 9 :]
    )
    image = TissueImage.from_file(tmp_path / "a.tif")
    with pytest.raises(InputError, match="announced"):
        image.pixels[:10, :10]


def test_a_tiff_cut_short_between_tiles_is_refused(tmp_path, smooth):
    tifffile.imwrite(tmp_path / "a.tif", smooth, photometric="rgb", tile=(64, 64))
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: len(data) - 5000])
    with pytest.raises(InputError, match=r"a\.tif"):
        TissueImage.from_file(tmp_path / "a.tif")


def test_channels_that_are_no_colors_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 40, 40), np.uint16), photometric="minisblack")
    with pytest.raises(InputError, match="gray or RGB"):
        TissueImage.from_file(tmp_path / "a.tif")
    with pytest.raises(InputError, match="choose three"):
        TissueImage.from_lazy(np.zeros((5, 40, 40), np.uint8), channels_first=True)


def test_lazy_pixels_travel_to_other_processes(tmp_path, smooth):
    tifffile.imwrite(tmp_path / "a.tif", smooth, photometric="rgb", tile=(64, 64))
    image = TissueImage.from_file(tmp_path / "a.tif", 1.0)
    there = pickle.loads(pickle.dumps(image))
    np.testing.assert_array_equal(there.pixels[3:9, 100:120], smooth[3:9, 100:120])
    assert there.content_hash == image.content_hash
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a.tif").write_bytes(bytes(data))
    assert TissueImage.from_file(tmp_path / "a.tif").content_hash != image.content_hash
