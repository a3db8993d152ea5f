"""Spots on tissue: a wrong order, a wrong scale, no image; images of SpatialData objects."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from terrazzo import Slice, datasets, simulate
from terrazzo.errors import InputError, TerrazzoWarning
from terrazzo.images import TissueImage, check_spots, needed
from terrazzo.images.placement import place_spots, tissue_mask


def section(glass=235, ink=(150, 60, 140), height=400, width=400):
    """A piece of tissue, wider than high, in the upper part of a slide, and spots on it (image pixels)."""
    pixels = np.random.default_rng(0).normal(glass, 2, (height, width, 3))
    rows, columns = np.mgrid[:height, :width]
    on = ((columns - 180) / 150) ** 2 + ((rows - 120) / 80) ** 2 < 1
    pixels[on] = np.array(ink) + np.random.default_rng(1).normal(0, 12, (int(on.sum()), 3))
    x, y = np.meshgrid(np.arange(10, 400, 12.0), np.arange(10, 400, 12.0))
    inside = ((x - 180) / 150) ** 2 + ((y - 120) / 80) ** 2 < 0.95
    return TissueImage(pixels.clip(0, 255).astype(np.uint8), 1.0), np.stack(
        [x[inside], y[inside]], axis=1
    )


@pytest.mark.parametrize(
    ("glass", "ink"), [(235, (150, 60, 140)), (0, (150, 60, 140)), (200, (90, 90, 90))]
)
def test_spots_on_tissue_pass_and_swapped_ones_do_not(glass, ink):
    image, xy = section(glass, ink)
    found = check_spots(image, xy)
    assert found.inside == 1
    assert found.on_tissue > 0.98
    assert found.on_tissue_swapped < 0.8
    assert abs(found.tissue_area - np.pi * 150 * 80 / 400**2) < 0.03
    with pytest.raises(InputError, match="swap the two columns"):
        check_spots(image, xy[:, ::-1])


def test_the_scale_counts():
    image, xy = section()
    wide = TissueImage(
        np.repeat(image.pixels, 2, axis=1), 1.0, scale=0.5, scale_y=0.25, offset=(7.0, 0.0)
    )
    native = (xy * [2, 1] - [7, 0]) / [0.5, 0.25]
    assert check_spots(wide, native).on_tissue > 0.97


def test_a_swap_on_an_image_that_is_no_square_is_named():
    image, xy = section(height=250)
    with pytest.raises(InputError, match=r"are outside the image.*look swapped"):
        check_spots(image, xy[:, ::-1])


def test_spots_outside_the_image_are_refused_or_few_allowed():
    image, xy = section()
    with pytest.raises(InputError, match=r"slide: \d+ of \d+ spots are outside.*fix its scale"):
        check_spots(image, xy * 3, name="slide")
    xy[:3] += 1000
    with pytest.raises(InputError, match="3 of"):
        check_spots(image, xy)
    assert check_spots(image, xy, outside=0.05).inside < 1


def test_a_wrong_scale_is_warned_of():
    image, xy = section()
    with pytest.warns(TerrazzoWarning, match="looks like tissue"):
        check_spots(image, xy * 0.3 + 250)


def test_an_image_that_is_all_tissue_says_nothing():
    image = TissueImage(np.random.default_rng(0).normal(120, 3, (300, 200, 3)).astype(np.uint8))
    assert tissue_mask(image) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = check_spots(image, np.random.default_rng(0).uniform(0, 200, (50, 2)))
    assert np.isnan(found.on_tissue)
    assert not found.looks_swapped
    assert tissue_mask(TissueImage(np.zeros((2, 2, 3), np.uint8))) is None


def test_no_spots_are_no_trouble():
    assert place_spots(section()[0], np.empty((0, 2))).n == 0


@pytest.mark.parametrize("layout", ["visium", "st"])
def test_simulated_tissue_lies_on_its_image(layout):
    tissue = Slice.from_anndata(
        simulate.tissue(150, n_genes=20, layout=layout, image=True, image_px=500)
    )
    image = needed(tissue.image, tissue.name)
    assert check_spots(image, tissue.native_coords).on_tissue > 0.9


def test_no_image_and_no_scale_are_said():
    with pytest.raises(InputError, match="liver has no histology image"):
        needed(None, "liver")
    image = section()[0]
    assert needed(image) is image
    bare = TissueImage(image.pixels)
    assert needed(bare, scale=False) is bare
    with pytest.raises(InputError, match="micrometers per pixel"):
        needed(bare)


@pytest.mark.parametrize(
    ("dataset", "name"), [("her2st", "A1"), ("dlpfc", "151673"), ("visium_human_lymph_node", None)]
)
def test_real_slices_lie_on_their_tissue_one_way_round(shared_dir, dataset, name):
    name = "lymph_node_1000spots" if name is None else name
    adata = datasets.load(dataset, name, shared_dir / "data", image=True)
    tissue = Slice.from_anndata(adata)
    image = needed(tissue.image, name)
    assert check_spots(image, tissue.native_coords).on_tissue > 0.95
    with pytest.raises(InputError, match="swap"):
        check_spots(image, tissue.native_coords[:, ::-1])


# SpatialData


class Affine:
    """What SpatialData calls a transformation, of x and y."""

    def __init__(self, matrix):
        self.matrix = np.array(matrix, dtype=float)

    def to_affine_matrix(self, input_axes, output_axes):
        assert input_axes == output_axes == ("x", "y")
        return self.matrix


def scaled(x, y=None, shift=(0.0, 0.0)):
    return Affine([[x, 0, shift[0]], [0, x if y is None else y, shift[1]], [0, 0, 1]])


def array_of(pixels, **transform):
    return SimpleNamespace(
        data=np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), attrs={"transform": transform}
    )


def spatialdata(image, shapes, region="spots"):
    table = SimpleNamespace(uns={"spatialdata_attrs": {"region": region}})
    return SimpleNamespace(
        images={"hires": image},
        shapes={"spots": SimpleNamespace(attrs={"transform": shapes})},
        labels={},
        tables={"table": table},
    )


def test_spatialdata_gives_image_and_scale():
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    sdata = spatialdata(
        array_of(pixels, hires=scaled(1)), {"global": scaled(1), "hires": scaled(0.2, 0.25)}
    )
    image = TissueImage.from_spatialdata(sdata, microns_per_pixel=2.0)
    np.testing.assert_array_equal(np.asarray(image.pixels), pixels)
    assert (image.scale, image.scale_y, image.offset, image.microns_per_pixel) == (
        0.2,
        0.25,
        (0.0, 0.0),
        2.0,
    )
    moved = spatialdata(array_of(pixels, um=scaled(0.5, shift=(10, 20))), {"um": scaled(1)})
    image = TissueImage.from_spatialdata(moved, "hires", region="spots", coordinate_system="um")
    np.testing.assert_allclose(
        image.to_pixels([[10.0, 20.0], [11.0, 22.0]]), [[0, 0], [2, 4]], atol=1e-12
    )


def test_spatialdata_gives_the_levels_of_a_pyramid():
    pixels = np.zeros((40, 60, 3), np.uint8)
    tree = {
        "scale0": {"image": array_of(pixels, global_=scaled(1))},
        "scale1": {"image": array_of(pixels[::2, ::2] + 5, global_=scaled(2))},
    }
    image = TissueImage.from_spatialdata(
        spatialdata(tree, {"global_": scaled(1)}), microns_per_pixel=1.0
    )
    assert [level.shape for level in image.pixels.levels] == [(40, 60, 3), (20, 30, 3)]
    assert (image.crops([[20, 20]], 20, pixels=10)[0] == 5).all()


def test_spatialdata_that_cannot_be_used_is_refused():
    pixels = np.zeros((30, 40, 3), np.uint8)
    good, turned = array_of(pixels, a=scaled(1)), Affine([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    for sdata, words in [
        (SimpleNamespace(images={}), "has no image"),
        (spatialdata(good, {"b": scaled(1)}), "no coordinate system in common"),
        (spatialdata(array_of(pixels, a=turned), {"a": scaled(1)}), "more than a scale"),
        (spatialdata(array_of(pixels, a=scaled(1, -1)), {"a": scaled(1)}), "more than a scale"),
        (spatialdata(good, {"a": scaled(1)}, region=["spots", "cells"]), "pass region="),
        (spatialdata(good, {"a": scaled(1)}, region="cells"), "no shapes, labels or points"),
        (spatialdata(good, {"a": "identity"}), "cannot read the transformation"),
        (
            spatialdata(SimpleNamespace(data=pixels, dims=("y", "x", "c"), attrs={}), {}),
            "axes c, y and x",
        ),
    ]:
        with pytest.raises(InputError, match=words):
            TissueImage.from_spatialdata(sdata)
    sdata = spatialdata(good, {"a": scaled(1)})
    with pytest.raises(InputError, match="no image 'lowres'"):
        TissueImage.from_spatialdata(sdata, "lowres")
    with pytest.raises(InputError, match="coordinate system 'b'"):
        TissueImage.from_spatialdata(sdata, coordinate_system="b")
    sdata.images["lowres"] = good
    with pytest.raises(InputError, match="pass image="):
        TissueImage.from_spatialdata(sdata)
