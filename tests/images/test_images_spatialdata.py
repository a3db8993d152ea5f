"""Images of SpatialData objects: the scale that follows from the transformations of image and cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from spatialdata.transformations import Affine, Identity, Sequence, Translation
from spatialdata_stores import circles, image, make, scale, table

from terrazzo.errors import InputError
from terrazzo.images import TissueImage

PIXELS = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
TURNED = Affine([[0, -1, 0], [1, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))


def picture(pixels: Any = PIXELS, **options: Any) -> Any:
    return image(np.moveaxis(pixels, -1, 0), **options)


def sdata_of(he: Any, region: Any = "spots", **systems: Any) -> Any:
    """One image, and spots in some coordinate systems."""
    spots = circles([[0.0, 0.0], [1.0, 1.0]], **systems)
    tables = {"table": table(region, [0, 1])}
    return make(images={"hires": he}, shapes={"spots": spots}, tables=tables)


def test_image_and_scale() -> None:
    systems = {"global": Identity(), "hires": scale(0.2, 0.25)}
    sdata = sdata_of(picture(hires=Identity()), **systems)
    found = TissueImage.from_spatialdata(sdata, microns_per_pixel=2.0)
    np.testing.assert_array_equal(np.asarray(found.pixels), PIXELS)
    assert (found.scale, found.scale_y, found.offset) == (0.2, 0.25, (0.0, 0.0))
    assert found.microns_per_pixel == 2.0
    moved = Sequence([scale(0.5), Translation([10, 20], axes=("x", "y"))])
    sdata = sdata_of(picture(um=moved), um=Identity())
    found = TissueImage.from_spatialdata(sdata, "hires", region="spots", coordinate_system="um")
    np.testing.assert_allclose(
        found.to_pixels([[10.0, 20.0], [11.0, 22.0]]), [[0, 0], [2, 4]], atol=1e-12
    )


def test_the_levels_of_a_pyramid() -> None:
    pyramid = picture(np.full((40, 60, 3), 5, np.uint8), scale_factors=[2])
    found = TissueImage.from_spatialdata(sdata_of(pyramid), microns_per_pixel=1.0)
    assert [level.shape for level in found.pixels.levels] == [(40, 60, 3), (20, 30, 3)]
    assert (found.crops([[20, 20]], 20, pixels=10)[0] == 5).all()


@pytest.mark.parametrize(
    ("hires", "options", "words"),
    [
        (picture(a=Identity()), {"b": Identity()}, "no coordinate system in common"),
        (picture(a=TURNED), {"a": Identity()}, "more than a scale"),
        (picture(a=scale(1, -1)), {"a": Identity()}, "more than a scale"),
        (picture(), {"region": ["spots", "cells"]}, "pass region="),
        (picture(), {"region": "cells"}, "no shapes, labels or points"),
        (picture(a=scale(0)), {"a": Identity()}, "cannot be inverted"),
    ],
)
def test_what_cannot_be_used_is_refused(hires: Any, options: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TissueImage.from_spatialdata(sdata_of(hires, **options))


def test_images_by_name() -> None:
    sdata = sdata_of(picture())
    with pytest.raises(InputError, match="no image 'lowres'"):
        TissueImage.from_spatialdata(sdata, "lowres")
    with pytest.raises(InputError, match="coordinate system 'b'"):
        TissueImage.from_spatialdata(sdata, coordinate_system="b")
    sdata.images["lowres"] = picture()
    with pytest.raises(InputError, match="pass image="):
        TissueImage.from_spatialdata(sdata)
    del sdata.images["lowres"], sdata.images["hires"]
    with pytest.raises(InputError, match="has no image"):
        TissueImage.from_spatialdata(sdata)
