"""SpatialData, stores and objects that the package made: what is chosen, and where it is."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata
from spatialdata.transformations import Affine, Identity, MapAxis, Sequence, Translation
from spatialdata_stores import (
    circles,
    image,
    labels,
    make,
    points,
    polygons,
    scale,
    set_unit,
    table,
)

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError
from terrazzo.slices import Choices, Slice, open_slice, read

N = 12
XY = np.stack([np.arange(N) * 10.0 + 5, np.arange(N)[::-1] * 7.0 + 3], axis=1)
ROWS = np.random.default_rng(1).permutation(N)  # in which order the table names them
NAMES = [f"cell_{i}" for i in range(N)]
TURNED = Affine([[0, 2, 1], [-3, 0, 500], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
both = pytest.mark.parametrize("zarr_format", [2, 3])


def ordered(index: Any) -> list[Any]:
    return [index[i] for i in ROWS]


def simple(path: Path | None = None, zarr_format: int = 3, **systems: Any) -> Any:
    """One table that annotates circles."""
    return make(
        path,
        zarr_format=zarr_format,
        shapes={"cells": circles(XY, NAMES, **systems)},
        tables={"table": table("cells", ordered(NAMES))},
    )


def one_element(path: Path | None, kind: str, element: Any, instances: Any, **more: Any) -> Any:
    """One table that annotates an element of any kind."""
    return make(path, **{kind: {"it": element}}, tables={"table": table("it", instances)}, **more)


def expected_centers(element: Any, instances: Any) -> np.ndarray:
    """What the package says of the centers in "global"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that are not in order
        found = spatialdata.get_centroids(element, "global").compute()
    return found.loc[instances, ["x", "y"]].to_numpy()


def masks(values: Any, shape: tuple[int, int] = (96, 128), size: int = 2) -> np.ndarray:
    pixels = np.zeros(shape, np.int32)
    for value, (x, y) in zip(values, XY.astype(int), strict=True):
        pixels[y : y + size, x : x + size] = value
    return pixels


# places


@both
def test_circles_joined_and_mapped(tmp_path: Path, zarr_format: int) -> None:
    path = simple(tmp_path / "mine.zarr", zarr_format, **{"global": TURNED, "other": scale(2)})
    found = open_slice(path)
    assert (found.format, found.name, found.table_name) == ("SpatialData", "mine", "table")
    tissue = Slice.from_opened(found)
    assert tissue.obs_names.tolist() == [f"row{i}" for i in range(N)]  # rows keep their order
    np.testing.assert_allclose(tissue.coords, XY[ROWS] @ [[0, -3], [2, 0]] + [1, 500])
    assert (tissue.name, tissue.unit, tissue.n_genes) == ("mine", "unknown", 30)
    assert "centers of shapes 'cells' in 'global'" in "; ".join(found.notes)
    np.testing.assert_allclose(read(path, coordinate_system="other").coords, XY[ROWS] * 2)


@pytest.mark.parametrize(("kind", "zarr_format"), [("polygons", 3), ("labels", 2), ("points", 3)])
def test_centers_are_those_of_the_package(tmp_path: Path, kind: str, zarr_format: int) -> None:
    """Polygons of every form, labels of a pyramid, points in parts; moved, and in the table's order."""
    move, index = Translation([3, -4], axes=("x", "y")), list(range(N))
    if kind == "polygons":
        boxes = [shapely.box(x - 3, y - 2, x + 1, y + 3) for x, y in XY]
        boxes[0] = boxes[0].difference(boxes[0].centroid.buffer(0.4).exterior.envelope)  # a hole
        boxes[1] = shapely.MultiPolygon([boxes[1], shapely.box(0, 0, 1, 1)])
        element, kinds = polygons(boxes, **{"global": move}), "shapes"
    elif kind == "labels":
        index = [100 + 3 * i for i in range(N)]
        element = labels(masks(index), scale_factors=[2], chunks=(16, 16), **{"global": move})
        kinds = "labels"
    else:
        element, kinds = points(XY, n_parts=3, **{"global": move}), "points"
    path = one_element(tmp_path / "x.zarr", kinds, element, ordered(index), zarr_format=zarr_format)
    expected = expected_centers(element, ordered(index))
    np.testing.assert_allclose(read(path).coords, expected, rtol=1e-12)


@pytest.mark.parametrize("apart", [1, 10**8])
def test_centers_of_labels_piece_by_piece(monkeypatch: pytest.MonkeyPatch, apart: int) -> None:
    monkeypatch.setattr("terrazzo.slices.spatialdata._TILE", 7)
    drawn = np.random.default_rng(0).integers(0, 6, (40, 33)) * apart
    element = labels(drawn.astype(np.uint32), chunks=(20, 5))
    found = read(one_element(None, "labels", element, [5 * apart, apart]))
    expected = expected_centers(element, [5 * apart, apart])
    np.testing.assert_allclose(found.coords, expected, rtol=1e-12)


def test_labels_in_planes_are_looked_at_from_above() -> None:
    volume = np.zeros((3, 4, 6), np.int16)
    volume[0, 1, 2] = volume[2, 1, 4] = 7
    element = labels(volume)
    np.testing.assert_allclose(read(one_element(None, "labels", element, [7])).coords, [[3.5, 1.5]])
    np.testing.assert_allclose(expected_centers(element, [7]), [[3.5, 1.5]])


@pytest.mark.parametrize(
    "transformation",
    [
        Identity(),
        scale(2, 3),
        Translation([-1, 7], axes=("y", "x")),
        TURNED,
        MapAxis({"x": "y", "y": "x"}),
        Sequence([scale(2, 3), Translation([1, 1], axes=("x", "y")), TURNED]),
    ],
)
def test_transformations_are_those_of_the_package(transformation: Any) -> None:
    sdata = simple(**{"global": transformation})
    expected = expected_centers(sdata.shapes["cells"], ordered(NAMES))
    np.testing.assert_allclose(read(sdata).coords, expected)


# choices


def test_a_table_is_chosen(tmp_path: Path) -> None:
    tables = {name: table("cells", ordered(NAMES), seed=i) for i, name in enumerate("ab")}
    path = make(tmp_path / "x.zarr", shapes={"cells": circles(XY, NAMES)}, tables=tables)
    with pytest.raises(InputError, match="2 tables: pass table= one of a, b"):
        read(path)
    with pytest.raises(InputError, match="no table 'c'; tables: a, b"):
        read(path, table="c")
    assert read(path, table="a").content_hash() != read(path, table="b").content_hash()
    found = open_slice(path / "tables" / "b")  # the store, with the table chosen
    assert (found.table_name, found.store, found.name) == ("b", path, "x")
    np.testing.assert_allclose(Slice.from_opened(found).coords, XY[ROWS])
    with pytest.raises(ConfigError, match="is a table already; table='a' is another"):
        open_slice(path / "tables" / "b", Choices(table="a"))
    with pytest.raises(ConfigError, match=r"bins= .* which is a SpatialData"):
        open_slice(path, Choices(bins="8"))


def test_a_region_is_chosen(tmp_path: Path) -> None:
    path = make(
        tmp_path / "x.zarr",
        shapes={
            "left": circles(XY, NAMES),
            "right": circles(XY, NAMES, **{"global": scale(2)}),
        },
        tables={"table": table(["left", "right"] * N, [name for name in NAMES for _ in "lr"])},
    )
    with pytest.raises(InputError, match="annotates 2 regions: pass region= one of left, right"):
        read(path)
    with pytest.raises(InputError, match="no rows of the region 'up'; regions: left, right"):
        read(path, region="up")
    found = open_slice(path, Choices(region="right"))
    np.testing.assert_allclose(Slice.from_opened(found).coords, XY * 2)
    assert found.source_table is not None
    assert found.source_table.n_obs == 2 * N
    assert found.source_rows is not None
    assert found.source_rows.tolist() == list(range(1, 2 * N, 2))
    assert (
        found.adata.obs_names.tolist() == found.source_table.obs_names[found.source_rows].tolist()
    )


def test_a_coordinate_system_is_chosen() -> None:
    visium = simple(**{"id": Identity(), "id_downscaled_hires": scale(2)})
    np.testing.assert_allclose(read(visium).coords, XY[ROWS])  # no "global": that of the spots
    with pytest.raises(
        InputError, match=r"no coordinate system 'global'; there are: id, id_downscaled_hires"
    ):
        read(visium, coordinate_system="global")
    with pytest.raises(InputError, match=r"coordinate systems p, q: pass coordinate_system="):
        read(simple(p=scale(2), q=scale(2)))
    np.testing.assert_allclose(read(simple(p=scale(2))).coords, XY[ROWS] * 2)


# units


def test_micrometers_as_the_axes_or_the_name_say(tmp_path: Path) -> None:
    path = simple(tmp_path / "a.zarr", **{"global": scale(2)})
    set_unit(path, "shapes", "cells")
    assert read(path).unit == "um"
    np.testing.assert_allclose(read(path, microns_per_unit=0.5).coords, XY[ROWS])
    assert read(simple(microns=scale(2))).unit == "um"
    masked = labels(masks(range(1, N + 1)))
    path = one_element(tmp_path / "b.zarr", "labels", masked, (ROWS + 1).tolist())
    set_unit(path, "labels", "it")
    assert read(path).unit == "um"


def test_platform_units_are_those_of_the_vendors_coordinates() -> None:
    """Xenium as spatialdata-io has it: circles in micrometers, "global" in pixels of 0.2125 um."""
    tissue = read(simple(**{"global": scale(1 / 0.2125)}), technology="Xenium")
    assert tissue.unit == "um"
    assert "of the vendor's coordinates" in tissue.unit_evidence
    np.testing.assert_allclose(tissue.native_coords, XY[ROWS] / 0.2125)
    np.testing.assert_allclose(tissue.coords, XY[ROWS])
    pixels = np.zeros((500, 700), np.int32)
    for value, (x, y) in enumerate((XY / 0.2125).astype(int), 1):
        pixels[y, x] = value
    tables = {
        "table": table("cells", (ROWS + 1).tolist(), obsm=XY[ROWS]),
        "bare": table("cells", (ROWS + 1).tolist()),
    }
    sdata = make(labels={"cells": labels(pixels)}, tables=tables)
    placed = read(sdata, table="table", technology="Xenium")
    np.testing.assert_allclose(placed.coords, XY[ROWS], atol=0.3)
    bare = read(sdata, table="bare", technology="Xenium")
    assert bare.unit == "pixel"  # and not 1 um a pixel


# what is missing or wrong


def test_a_table_alone(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zarr", tables={"table": table(None, NAMES, obsm=XY)})
    np.testing.assert_allclose(read(path).coords, XY)
    assert "annotates nothing" in "; ".join(open_slice(path).notes)
    path = make(tmp_path / "b.zarr", tables={"table": table("gone", NAMES, obsm=XY)})
    np.testing.assert_allclose(read(path).coords, XY)
    with pytest.raises(InputError, match="no rows of the region"):
        read(path, region="q")
    with pytest.raises(InputError, match="not there"):
        read(path, coordinate_system="global")
    with pytest.raises(InputError, match="its cells have no place"):
        read(make(tables={"table": table(None, NAMES)}))
    with pytest.raises(InputError, match="has no table, so no counts"):
        read(make(tmp_path / "d.zarr", shapes={"a": circles(XY)}))


@pytest.mark.parametrize(
    ("index", "xy", "words"),
    [
        ([*NAMES[:-1], "other"], XY, r"1 of 12 rows .* does not have \(first: 'cell_11'\)"),
        ([*NAMES[:-1], "cell_0"], XY, "'cell_0' more than once"),
        (NAMES, [*XY[:-1], [np.nan, np.nan]], r"1 of 12 annotated things have no place"),
        (list(range(N)), XY, "does not have"),
    ],
)
def test_rows_without_a_place_are_never_dropped(index: Any, xy: Any, words: str) -> None:
    cells = circles(xy, index)
    with pytest.raises(InputError, match=words):
        read(make(shapes={"cells": cells}, tables={"table": table("cells", ordered(NAMES))}))


def test_damaged_stores(tmp_path: Path) -> None:
    path = make(
        tmp_path / "x.zarr",
        shapes={"cells": circles(XY, NAMES), "other": circles(XY)},
        images={"he": image(picture())},
        tables={"table": table("cells", ordered(NAMES))},
    )
    (path / "shapes" / "other" / "shapes.parquet").write_bytes(b"PAR1nothing")
    (path / "images" / "he" / "s0" / "zarr.json").unlink()
    np.testing.assert_allclose(read(path).coords, XY[ROWS])  # nobody asked for these
    with pytest.raises(InputError, match=r"images 'he' of .* cannot be read"):
        read(path, image="he")
    (path / "shapes" / "cells" / "shapes.parquet").write_bytes(b"PAR1nothing")
    with pytest.raises(InputError, match=r"shapes 'cells' of .* cannot be read"):
        read(path)
    about = path / "shapes" / "cells" / "zarr.json"
    content = json.loads(about.read_text())
    del content["attributes"]["coordinateTransformations"]
    about.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"shapes 'cells' of .* cannot be read"):
        read(path)
    (path / "tables" / "table" / "zarr.json").write_text("{")
    with pytest.raises(InputError, match=r"zarr.json cannot be read"):
        read(path)


def test_labels_in_one_enormous_piece_are_refused(tmp_path: Path) -> None:
    path = one_element(
        tmp_path / "x.zarr", "labels", labels(np.ones((4, 4), np.int32)), [1], consolidated=False
    )
    about = path / "labels" / "it" / "s0" / "zarr.json"
    content = json.loads(about.read_text())
    content["shape"] = content["chunk_grid"]["configuration"]["chunk_shape"] = [2**20, 2**20]
    about.write_text(json.dumps(content))
    with pytest.raises(InputError, match="pieces of"):
        read(path)


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was opened",))


def test_pickled_arrays_are_never_opened(tmp_path: Path) -> None:
    path = simple(tmp_path / "x.zarr", 2)
    folder = path / "tables" / "table" / "obs" / "instance"
    content = json.loads((folder / ".zarray").read_text())
    content["filters"] = [*(content["filters"] or []), {"id": "pickle", "protocol": 5}]
    (folder / ".zarray").write_text(json.dumps(content))
    (folder / "0").write_bytes(pickle.dumps(Bomb()))
    for one in (path, path / "tables" / "table"):
        with pytest.raises(InputError, match="pickles"):
            read(one)


def test_links_out_of_a_store_are_never_followed(tmp_path: Path) -> None:
    path = simple(tmp_path / "x.zarr")
    parquet = path / "shapes" / "cells" / "shapes.parquet"
    parquet.rename(tmp_path / "elsewhere.parquet")
    parquet.symlink_to(tmp_path / "elsewhere.parquet")
    for one in (path, path / "tables" / "table"):
        with pytest.raises(InputError, match=r"shapes.parquet is a link to .*elsewhere.parquet"):
            read(one)


def test_without_the_package_one_line_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = simple(tmp_path / "x.zarr")
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    for one in (path, path / "tables" / "table"):
        with pytest.raises(InputError, match=r"pip install 'terrazzo\[spatialdata\]'") as caught:
            read(one)
        assert "\n" not in str(caught.value)


# images


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (3, 96, 128), dtype=np.uint8)


@both
def test_the_only_image_in_colors_is_taken(tmp_path: Path, zarr_format: int) -> None:
    pixels = picture()
    path = make(
        tmp_path / "x.zarr",
        zarr_format=zarr_format,
        shapes={"cells": circles(XY, NAMES, microns=scale(0.25))},
        images={
            "he": image(pixels, scale_factors=[2], chunks=(3, 16, 16), microns=scale(0.5)),
            "stains": image(np.zeros((4, 8, 8), np.uint16), channels="abcd", microns=Identity()),
        },
        tables={"table": table("cells", ordered(NAMES))},
    )
    found = read(path).image
    assert found is not None
    assert (found.scale, found.offset, found.microns_per_pixel) == (2.0, (0.0, 0.0), 0.5)
    assert [level.shape for level in found.pixels.levels] == [(96, 128, 3), (48, 64, 3)]
    np.testing.assert_array_equal(
        found.pixels[10:20, 30:44], np.moveaxis(pixels[:, 10:20, 30:44], 0, -1)
    )
    cell = np.array([64.0, 42.0]) / 2  # in micrometers; twice that in pixels
    np.testing.assert_array_equal(found.crop(*cell, size_px=4), found.pixels[40:44, 62:66])


def test_images_stay_on_disk_until_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(
        tmp_path / "x.zarr",
        shapes={"cells": circles(XY, NAMES)},
        images={"he": image(picture(), chunks=(3, 16, 16))},
        tables={"table": table("cells", ordered(NAMES))},
    )
    found = read(path).image
    assert found is not None
    read_files = []
    for one in (path / "images" / "he" / "s0" / "c").rglob("*"):
        if one.is_file() and one.relative_to(path / "images/he/s0/c").parts[1:] != ("1", "1"):
            read_files.append(one)
            one.write_bytes(b"damaged")
    assert len(read_files) > 40
    np.testing.assert_array_equal(
        found.pixels[16:32, 16:32], np.moveaxis(picture()[:, 16:32, 16:32], 0, -1)
    )


def test_images_are_chosen_by_name(tmp_path: Path) -> None:
    quarter_turn = Affine(
        [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y")
    )
    path = make(
        tmp_path / "x.zarr",
        shapes={"cells": circles(XY, NAMES, **{"global": Identity(), "small": scale(2)})},
        images={
            "one": image(picture(1), **{"global": Translation([3, -7], axes=("x", "y"))}),
            "two": image(picture(2), small=Identity()),
            "turned": image(picture(3), **{"global": quarter_turn}),
        },
        tables={"table": table("cells", ordered(NAMES))},
    )
    found = open_slice(path)
    assert found.image is None
    assert "images, taken if named (image=): one, turned, two" in found.notes
    one, two = (read(path, image=name).image for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert (one.scale, one.offset) == (1.0, (-3.0, 7.0))
    assert (two.scale, two.offset) == (2.0, (0.0, 0.0))  # through the system that both have
    again = tz.TissueImage.from_spatialdata(path, "two")
    assert (again.scale, again.offset) == (two.scale, two.offset)
    with pytest.raises(InputError, match="more than a scale and a shift"):
        read(path, image="turned")
    with pytest.raises(InputError, match="no image 'three'; images: one, turned, two"):
        read(path, image="three")


# objects


def test_an_object_is_read_like_its_store() -> None:
    sdata = simple(**{"global": scale(2), "own": Identity()})
    before = sdata.tables["table"].copy()
    for tissue in (
        read(sdata),
        Slice.from_spatialdata(sdata),
        tz.read(sdata, table="table", region="cells"),
    ):
        np.testing.assert_allclose(tissue.coords, XY[ROWS] * 2)
    np.testing.assert_allclose(
        Slice.from_spatialdata(sdata, coordinate_system="own").coords, XY[ROWS]
    )
    assert "spatial" not in sdata.tables["table"].obsm  # nothing of it was changed
    pd.testing.assert_frame_equal(sdata.tables["table"].obs, before.obs)


def test_labels_points_and_images_in_memory() -> None:
    sdata = make(
        labels={"masks": labels(masks(range(1, N + 1), size=1))},
        points={"dots": points(XY)},
        images={"he": image(picture())},
        tables={
            "of_masks": table("masks", (ROWS + 1).tolist()),
            "of_dots": table("dots", ROWS.tolist()),
        },
    )
    found = read(sdata, table="of_masks")
    np.testing.assert_allclose(found.coords, XY[ROWS] + 0.5)
    assert found.image is not None
    np.testing.assert_allclose(read(sdata, table="of_dots").coords, XY[ROWS])


def test_tables_of_an_object(simulated: Any) -> None:
    adata = simulated(40)
    one = make(tables={"cells": adata})
    assert Slice.from_spatialdata(one).content_hash() == Slice.from_anndata(adata).content_hash()
    two = make(tables={"cells": adata, "bins": simulated(30)})
    with pytest.raises(InputError, match=r"2 tables: pass table= one of cells, bins$"):
        Slice.from_spatialdata(two)
    assert Slice.from_spatialdata(two, table="bins", organism="mouse").n_cells == 30
    with pytest.raises(InputError, match="no table 'x'; tables: cells, bins"):
        Slice.from_spatialdata(two, table="x")
    with pytest.raises(InputError, match="has no table"):
        Slice.from_spatialdata(make())


def test_what_is_not_a_spatialdata_is_refused() -> None:
    with pytest.raises(InputError, match="not a SpatialData"):
        Slice.from_spatialdata(anndata.AnnData(np.ones((2, 2))))
    with pytest.raises(InputError, match="not a SpatialData"):
        Slice.from_spatialdata(SimpleNamespace(tables={}))
    with pytest.raises(InputError, match="does not exist"):
        Slice.from_spatialdata("nowhere.zarr")
