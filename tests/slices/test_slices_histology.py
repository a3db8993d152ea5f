"""Histology that a slice brings along: any key of ``uns``, and the picture that a JSON file beside it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from PIL import Image
from test_slices import lattice_slice

import terrazzo as tz
from terrazzo.errors import InputError, TerrazzoWarning
from terrazzo.images.pixels import LazyPixels
from terrazzo.slices import Slice, open_slice

PICTURE = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
SCALE = 0.02


def pictured(images: Any, **factors: Any) -> AnnData:
    """A Visium slice with these images in ``uns``."""
    adata = lattice_slice("visium", 10, 10)
    adata.uns["spatial"] = {"lib": {"images": images, "scalefactors": factors}}
    return adata


@pytest.mark.case(
    "F",
    given='Histology in `uns["spatial"]` under another key than hires and lowres (HEST-1k, squidpy)',
    gets="Used, where its scale is there (`tissue_<key>_scalef`)",
)
@pytest.mark.parametrize(
    ("key", "factor"),
    [
        ("downscaled_fullres", "tissue_downscaled_fullres_scalef"),
        ("hires_image", "tissue_hires_scalef"),
        ("lowres_image", "tissue_lowres_scalef"),
        ("image_hires", "tissue_hires_scalef"),
        ("tissue_hires_image", "tissue_hires_scalef"),
        ("he", "tissue_he_scalef"),
        ("he", "he_scalef"),
        ("fullres", "tissue_fullres_scalef"),
    ],
)
def test_images_under_other_keys(key: str, factor: str) -> None:
    image = Slice.from_anndata(pictured({key: PICTURE}, **{factor: SCALE})).image
    assert image is not None
    assert image.scale == SCALE
    assert image.microns_per_pixel == pytest.approx(1 / 1.37 / SCALE, rel=1e-3)
    np.testing.assert_array_equal(image.pixels, PICTURE)


def test_usual_keys_go_first_and_masks_last() -> None:
    large = np.zeros((90, 90, 3), np.uint8)
    factors = dict.fromkeys(
        ["tissue_hires_scalef", "tissue_he_scalef", "tissue_mask_scalef", "tissue_b_scalef"], SCALE
    )
    images = {"he": large, "hires": PICTURE}
    image = Slice.from_anndata(pictured(images, **factors)).image
    assert image is not None
    assert image.height == 40
    images = {"mask": np.zeros((200, 200, 3), np.uint8), "b": PICTURE, "he": large}
    image = Slice.from_anndata(pictured(images, **factors)).image
    assert image is not None
    assert image.height == 90


@pytest.mark.case(
    "F",
    given='An image in `uns["spatial"]` that cannot be used: no scale, a path, numbers of cells, several libraries',
    gets="Left out, with one line that names it, the reason and `image=` (`--image FILE --image-scale`)",
)
@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ({"hires": PICTURE}, "hires image .* tissue_hires_scalef"),
        ({"he": PICTURE}, "he image .*scale is not there"),
        ({"hires": "he.png"}, "hires image .*it is a path"),
        ({"segmentation": PICTURE[:, :, 0]}, "segmentation image .*no histology"),
        ({"hires": np.zeros(3)}, "1 axes"),
        ({"a": PICTURE, "b": PICTURE}, "a image .*; the b image"),
    ],
)
def test_images_that_cannot_be_used_are_named(images: Any, reason: str) -> None:
    with pytest.warns(TerrazzoWarning, match=reason) as caught:
        assert Slice.from_anndata(pictured(images)).image is None
    assert len(caught) == 1
    mine = tz.TissueImage(PICTURE, scale=SCALE)
    assert Slice.from_anndata(pictured(images), image=mine).image is not None


def test_a_library_without_a_name_and_several_with_one() -> None:
    adata = pictured({"hires": PICTURE}, tissue_hires_scalef=SCALE)
    library = adata.uns["spatial"]["lib"]
    adata.uns["spatial"] = library
    assert Slice.from_anndata(adata).image is not None
    adata.uns["spatial"] = {"one": library, "two": {"images": {}}}
    with pytest.warns(TerrazzoWarning, match=r"one/hires.*which library"):
        assert Slice.from_anndata(adata).image is None
    adata.obs["library_id"] = "one"
    assert Slice.from_anndata(adata).image is not None


# beside the file


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    """Write a slice, a picture, and the JSON file that names it."""
    lattice_slice("visium", 10, 10, name="a").write_h5ad(tmp_path / "a.h5ad")
    Image.fromarray(PICTURE).save(tmp_path / "he.png")
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"image": "he.png", "scale": SCALE, "scale_y": 0.03}))
    return path


@pytest.mark.case(
    "F",
    given="A picture named in the JSON file beside the slice (`image`, `scale`)",
    gets="Used by every verb that takes a path; a corpus takes those of a table of sources",
)
def test_the_picture_beside_a_slice_is_used(sheet: Path) -> None:
    tissue = tz.read(sheet.with_name("a.h5ad"))
    assert tissue.image is not None
    assert isinstance(tissue.image.pixels, LazyPixels)  # not decoded by those who need none
    assert (tissue.image.scale, tissue.image.scale_y) == (SCALE, 0.03)
    np.testing.assert_array_equal(tissue.image.pixels, PICTURE)
    other = tz.TissueImage(PICTURE, scale=0.5)
    stated = tz.read(sheet.with_name("a.h5ad"), image=other).image
    assert stated is not None
    assert stated.scale == 0.5
    same = tz.TissueImage(PICTURE)
    assert tissue.image.content_hash == same.content_hash


def test_a_tiled_picture_beside_a_slice(sheet: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(sheet.with_name("he.tif"), PICTURE)
    sheet.write_text(json.dumps({"image": "he.tif", "scale": SCALE}))
    image = tz.read(sheet.with_name("a.h5ad")).image
    assert image is not None
    np.testing.assert_array_equal(image.pixels, PICTURE)


@pytest.mark.parametrize("text", ['{"note": "of something else"}', "[]", "3"])
def test_a_file_of_something_else_is_left_alone(sheet: Path, text: str) -> None:
    sheet.write_text(text)
    opened = open_slice(sheet.with_name("a.h5ad"))
    assert (opened.image, opened.notes) == (None, ())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not readable JSON"),
        ('{"image": "missing.png", "scale": 1}', "No image file"),
        ('{"image": "../he.png", "scale": 1}', "a file of the same folder"),
        ('{"image": "he.png"}', "scale must be a positive"),
        ('{"image": "a.h5ad", "scale": 1}', "a file of the same folder"),
        ('{"image": 3, "scale": 1}', "a file of the same folder"),
    ],
)
def test_a_picture_that_cannot_be_used_is_noted(sheet: Path, text: str, reason: str) -> None:
    sheet.write_text(text)
    opened = open_slice(sheet.with_name("a.h5ad"))
    assert opened.image is None
    (note,) = opened.notes
    assert reason in note
    assert "--image FILE" in note


def test_a_damaged_picture_fails_when_it_is_needed(sheet: Path) -> None:
    picture = sheet.with_name("he.png")
    picture.write_bytes(picture.read_bytes()[:200])
    tissue = tz.read(sheet.with_name("a.h5ad"))
    assert tissue.image is not None
    with pytest.raises(InputError, match="damaged or truncated"):
        np.asarray(tissue.image.pixels)
