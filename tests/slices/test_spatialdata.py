"""SpatialData: stores of zarr v2 and v3 that the tests write, and objects; what is chosen, and where it lies."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from spatialdata_stores import IDENTITY, Writer, multipolygon, point, polygon, square, table

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError
from terrazzo.slices import Choices, Slice, open_slice, read

N = 12
XY = np.stack([np.arange(N) * 10.0 + 5, np.arange(N)[::-1] * 7.0 + 3], axis=1)
ROWS = np.random.default_rng(1).permutation(N)  # in which order the table names them
SCALE = {"type": "scale", "scale": [2.0, 2.0]}
both = pytest.mark.parametrize("zarr_format", [2, 3])


def names(stem: str = "cell") -> list[str]:
    return [f"{stem}_{i}" for i in range(N)]


def ordered(index: Any) -> list[Any]:
    return [index[i] for i in ROWS]


def circles() -> list[bytes]:
    return [point(x, y) for x, y in XY]


def simple(path: Path, zarr_format: int = 3, **how: Any) -> Path:
    """One table that annotates circles."""
    store = Writer(path, zarr_format).shapes(
        "cells", names(), circles(), **(how or {"global": IDENTITY})
    )
    return store.table("table", table("cells", ordered(names()))).done()


@both
def test_circles_joined_and_mapped(tmp_path: Path, zarr_format: int) -> None:
    affine = {"type": "affine", "affine": [[0, 2, 1], [-3, 0, 500]]}
    found = open_slice(
        simple(tmp_path / "mine.zarr", zarr_format, **{"global": affine, "other": SCALE})
    )
    assert (found.format, found.name, found.table) == ("SpatialData", "mine", "table")
    tissue = found.to_slice()
    assert tissue.obs_names.tolist() == [f"row{i}" for i in range(N)]  # rows keep their order
    np.testing.assert_allclose(tissue.coords, XY[ROWS] @ [[0, -3], [2, 0]] + [1, 500])
    assert (tissue.name, tissue.unit, tissue.n_genes) == ("mine", "unknown", 30)
    assert "centers of shapes 'cells' in 'global'" in "; ".join(found.notes)
    np.testing.assert_allclose(
        read(tmp_path / "mine.zarr", coordinate_system="other").coords, XY[ROWS] * 2
    )


@both
@pytest.mark.parametrize("kind", ["polygons", "multipolygons", "labels", "pyramid", "points"])
def test_each_kind_of_element(tmp_path: Path, zarr_format: int, kind: str) -> None:
    index: list[Any] = names() if "polygons" in kind else list(range(N))
    store, move = (
        Writer(tmp_path / "x.zarr", zarr_format),
        {"type": "translation", "translation": [3, -4]},
    )
    if kind == "polygons":
        store.shapes(
            "it",
            index,
            [polygon(square(x, y), square(x, y, 0.2)) for x, y in XY],
            **{"global": move},
        )
    elif kind == "multipolygons":
        pairs = [multipolygon(polygon(square(x - 2, y)), polygon(square(x + 2, y))) for x, y in XY]
        store.shapes("it", index, pairs, **{"global": move})
    elif kind == "points":
        store.points("it", XY, parts=3, **{"global": move})
    else:
        index = [100 + 3 * i for i in range(N)]
        pixels = np.zeros((96, 128), np.int32)
        for value, (x, y) in zip(index, XY.astype(int), strict=True):
            pixels[y : y + 2, x : x + 2] = value  # center at x + 1, y + 1
        levels = [pixels, pixels[::2, ::2]] if kind == "pyramid" else [pixels]
        store.labels(
            "it", *levels, **{"global": {"type": "translation", "translation": [-5, 2]}}
        )  # y, x
    store.table("table", table("it", ordered(index))).done()
    np.testing.assert_allclose(read(tmp_path / "x.zarr").coords, XY[ROWS] + [3, -4])


@pytest.mark.parametrize("kind", ["POINT", "POLYGON", "MULTIPOLYGON"])
def test_shapes_of_version_0_1(tmp_path: Path, kind: str) -> None:
    squares = np.concatenate([square(x, y) for x, y in XY])
    ends = np.arange(N + 1)
    offsets = {"POINT": [], "POLYGON": [ends * 5, ends], "MULTIPOLYGON": [ends * 5, ends, ends]}[
        kind
    ]
    store = Writer(tmp_path / "x.zarr", 2)
    store.ragged(
        "it",
        kind,
        XY if kind == "POINT" else squares,
        offsets,
        np.arange(N),
        **{"global": IDENTITY},
    )
    store.table("table", table("it", ordered(range(N)))).done()
    np.testing.assert_allclose(read(tmp_path / "x.zarr").coords, XY[ROWS])


@pytest.mark.parametrize("kind", ["point", "polygon", "multipolygon"])
def test_geoarrow(tmp_path: Path, kind: str) -> None:
    def corner(x: float, y: float) -> dict[str, float]:
        return {"x": x, "y": y}

    pair = pa.struct([("x", pa.float64()), ("y", pa.float64())])
    rings = [[corner(*p) for p in square(x, y)] for x, y in XY]
    values, form = {
        "point": ([corner(x, y) for x, y in XY], pair),
        "polygon": ([[ring] for ring in rings], pa.list_(pa.list_(pair))),
        "multipolygon": ([[[ring]] for ring in rings], pa.list_(pa.list_(pa.list_(pair)))),
    }[kind]
    path = simple(tmp_path / "x.zarr")
    index = pa.Table.from_pandas(pd.DataFrame(index=pd.Index(names())))
    held = index.append_column("geometry", pa.array(values, form))
    Writer.parquet(path / "shapes" / "cells" / "shapes.parquet", held, kind)
    np.testing.assert_allclose(read(path).coords, XY[ROWS])


def test_a_table_is_chosen(tmp_path: Path) -> None:
    store = Writer(tmp_path / "x.zarr").shapes("cells", names(), circles(), **{"global": IDENTITY})
    for name, seed in (("a", 1), ("b", 2)):
        store.table(name, table("cells", ordered(names()), seed=seed))
    path = store.done()
    with pytest.raises(InputError, match="2 tables: pass table= one of a, b"):
        read(path)
    with pytest.raises(InputError, match="no table 'c'; tables: a, b"):
        read(path, table="c")
    assert read(path, table="a").content_hash() != read(path, table="b").content_hash()
    found = open_slice(
        path / "tables" / "b"
    )  # a table by its path: the store, with the table chosen
    assert (found.table, found.store, found.name) == ("b", path, "x")
    np.testing.assert_allclose(found.to_slice().coords, XY[ROWS])
    with pytest.raises(ConfigError, match="is a table already; table='a' is another"):
        open_slice(path / "tables" / "b", Choices(table="a"))
    with pytest.raises(ConfigError, match=r"bins= means nothing for .* which is a SpatialData"):
        open_slice(path, Choices(bins="8"))


@both
def test_a_region_is_chosen(tmp_path: Path, zarr_format: int) -> None:
    store = Writer(tmp_path / "x.zarr", zarr_format)
    store.shapes("left", names(), circles(), **{"global": IDENTITY})
    store.shapes("right", names(), circles(), **{"global": SCALE})
    which = ["left", "right"] * N
    path = store.table("table", table(which, [name for name in names() for _ in "lr"])).done()
    with pytest.raises(InputError, match="annotates 2 regions: pass region= one of left, right"):
        read(path)
    with pytest.raises(InputError, match="no rows of the region 'up'; regions: left, right"):
        read(path, region="up")
    found = open_slice(path, Choices(region="right"))
    np.testing.assert_allclose(found.to_slice().coords, XY * 2)
    assert found.home is not None
    assert found.home.n_obs == 2 * N
    assert found.rows is not None
    assert found.rows.tolist() == list(range(1, 2 * N, 2))
    assert found.adata.obs_names.tolist() == found.home.obs_names[found.rows].tolist()


def test_a_coordinate_system_is_chosen(tmp_path: Path) -> None:
    visium = simple(tmp_path / "a.zarr", **{"id": IDENTITY, "id_downscaled_hires": SCALE})
    np.testing.assert_allclose(
        read(visium).coords, XY[ROWS]
    )  # no "global": that of the spots themselves
    with pytest.raises(
        InputError, match=r"no coordinate system 'global'; there are: id, id_downscaled_hires"
    ):
        read(visium, coordinate_system="global")
    with pytest.raises(InputError, match=r"coordinate systems p, q: pass coordinate_system="):
        read(simple(tmp_path / "b.zarr", p=SCALE, q=SCALE))
    np.testing.assert_allclose(read(simple(tmp_path / "c.zarr", p=SCALE)).coords, XY[ROWS] * 2)


def test_micrometers_as_the_axes_say(tmp_path: Path) -> None:
    for name, how in {"a": {"global": (SCALE, "micrometer")}, "b": {"microns": SCALE}}.items():
        assert read(simple(tmp_path / f"{name}.zarr", **how)).unit == "um"
    pixels = read(tmp_path / "a.zarr", microns_per_unit=0.5)
    np.testing.assert_allclose(pixels.coords, XY[ROWS])


def test_platform_units_are_those_of_the_vendors_coordinates(tmp_path: Path) -> None:
    """Xenium as spatialdata-io has it: circles in micrometers, "global" in pixels of 0.2125 um."""
    pixel = {"type": "scale", "scale": [1 / 0.2125] * 2}
    path = simple(tmp_path / "x.zarr", **{"global": pixel})
    tissue = read(path, technology="Xenium")
    assert tissue.unit == "um"
    np.testing.assert_allclose(tissue.native_coords, XY[ROWS] / 0.2125)
    np.testing.assert_allclose(tissue.coords, XY[ROWS])
    labels = np.zeros((500, 700), np.int32)
    for value, (x, y) in enumerate((XY / 0.2125).astype(int), 1):
        labels[y, x] = value
    store = Writer(tmp_path / "y.zarr").labels(
        "cells", labels, chunks=(200, 200), **{"global": IDENTITY}
    )
    store.table("table", table("cells", (ROWS + 1).tolist(), obsm=XY[ROWS])).table(
        "bare", table("cells", ROWS + 1)
    )
    store.done()
    np.testing.assert_allclose(
        read(tmp_path / "y.zarr", table="table", technology="Xenium").coords, XY[ROWS], atol=0.3
    )
    assert (
        read(tmp_path / "y.zarr", table="bare", technology="Xenium").unit == "pixel"
    )  # and not 1 um a pixel


def test_a_table_alone(tmp_path: Path) -> None:
    path = Writer(tmp_path / "a.zarr").table("table", table(None, names(), obsm=XY)).done()
    np.testing.assert_allclose(read(path).coords, XY)
    assert "annotates nothing" in "; ".join(open_slice(path).notes)
    gone = Writer(tmp_path / "b.zarr").table("table", table("gone", names(), obsm=XY)).done()
    np.testing.assert_allclose(read(gone).coords, XY)
    for choices, words in (
        ({"region": "q"}, "no rows of the region"),
        ({"coordinate_system": "global"}, "not there"),
    ):
        with pytest.raises(InputError, match=words):
            read(gone, **choices)
    nowhere = Writer(tmp_path / "c.zarr").table("table", table(None, names())).done()
    with pytest.raises(InputError, match="its cells have no place"):
        read(nowhere)
    with pytest.raises(InputError, match="has no table"):
        read(
            Writer(tmp_path / "d.zarr")
            .shapes("a", names(), circles(), **{"global": IDENTITY})
            .done()
        )


@pytest.mark.parametrize(
    ("index", "geometry", "words"),
    [
        (
            [*names()[:-1], "other"],
            circles(),
            r"1 of 12 rows .* does not have \(first: 'cell_11'\)",
        ),
        ([*names()[:-1], "cell_0"], circles(), "'cell_0' more than once"),
        (
            names(),
            [*circles()[:-1], point(np.nan, np.nan)],
            r"1 of 12 annotated things have no place",
        ),
        (names(), [*circles()[:-1], b"\x01\x02"], "damaged"),
        (list(range(N)), circles(), "does not have"),
    ],
)
def test_rows_without_a_place_are_never_dropped(
    tmp_path: Path, index: Any, geometry: Any, words: str
) -> None:
    store = Writer(tmp_path / "x.zarr").shapes("cells", index, geometry, **{"global": IDENTITY})
    with pytest.raises(InputError, match=words):
        read(store.table("table", table("cells", ordered(names()))).done())


def test_what_else_is_wrong(tmp_path: Path) -> None:
    path = simple(tmp_path / "x.zarr")
    (path / "shapes" / "cells" / "shapes.parquet").write_bytes(b"PAR1nothing")
    with pytest.raises(InputError, match=r"shapes 'cells' of .* cannot be read"):
        read(path)
    about = json.loads((path / "shapes" / "cells" / "zarr.json").read_text())
    del about["attributes"]["coordinateTransformations"]
    (path / "shapes" / "cells" / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"shapes 'cells' of .* cannot be read"):
        read(path)
    (path / "tables" / "table" / "zarr.json").write_text("{")
    with pytest.raises(InputError, match=r"zarr.json cannot be read"):
        read(path)


def test_an_array_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    store = Writer(tmp_path / "x.zarr", 2)
    store.ragged("it", "POINT", XY, [], np.arange(N), **{"global": IDENTITY})
    store.table("table", table("it", list(range(N)))).done()
    about = tmp_path / "x.zarr" / "shapes" / "it" / "coords" / ".zarray"
    about.write_text(json.dumps({**json.loads(about.read_text()), "shape": [2**40, 2]}))
    with pytest.raises(InputError, match=r"more than its .* on disk can hold"):
        read(tmp_path / "x.zarr")


def test_labels_in_one_enormous_piece_are_refused(tmp_path: Path) -> None:
    store = Writer(tmp_path / "x.zarr").labels(
        "it", np.ones((4, 4), np.int32), **{"global": IDENTITY}
    )
    store.table("table", table("it", [1])).done()
    about = tmp_path / "x.zarr" / "labels" / "it" / "s0" / "zarr.json"
    content = json.loads(about.read_text())
    content["shape"] = content["chunk_grid"]["configuration"]["chunk_shape"] = [2**20, 2**20]
    about.write_text(json.dumps(content))
    with pytest.raises(InputError, match="pieces of"):
        read(tmp_path / "x.zarr")


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


# images


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (3, 96, 128), dtype=np.uint8)


@both
def test_the_only_image_in_colors_is_taken(tmp_path: Path, zarr_format: int) -> None:
    pixels = picture()
    quarter = {"type": "scale", "scale": [0.25, 0.25]}
    store = Writer(tmp_path / "x.zarr", zarr_format)
    store.shapes("cells", names(), circles(), **{"global": (quarter, "micron")})
    store.image(
        "he", pixels, pixels[:, ::2, ::2], **{"global": {"type": "scale", "scale": [1, 0.5, 0.5]}}
    )
    store.raster(
        "images",
        "stains",
        [np.zeros((4, 8, 8), np.uint16)],
        "cyx",
        (4, 8, 8),
        **{"global": IDENTITY},
    )
    path = store.table("table", table("cells", ordered(names()))).done()
    tissue = read(path)
    image = tissue.image
    assert image is not None
    assert (image.scale, image.offset, image.microns_per_pixel) == (2.0, (0.0, 0.0), 0.5)
    assert [level.shape for level in image.pixels.levels] == [(96, 128, 3), (48, 64, 3)]
    np.testing.assert_array_equal(
        image.pixels[10:20, 30:44], np.moveaxis(pixels[:, 10:20, 30:44], 0, -1)
    )
    cell = np.array([64.0, 42.0]) / 2  # in micrometers; twice that in pixels
    np.testing.assert_array_equal(image.crop(*cell, size_px=4), image.pixels[40:44, 62:66])


def test_images_are_chosen_by_name(tmp_path: Path) -> None:
    store = Writer(tmp_path / "x.zarr").shapes(
        "cells", names(), circles(), **{"global": IDENTITY, "small": SCALE}
    )
    store.image("one", picture(1), **{"global": {"type": "translation", "translation": [0, -7, 3]}})
    store.image("two", picture(2), small=IDENTITY)
    store.image(
        "turned",
        picture(3),
        **{"global": {"type": "rotation", "rotation": [[1, 0, 0], [0, 0, 1], [0, -1, 0]]}},
    )
    path = store.table("table", table("cells", ordered(names()))).done()
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


class Matrix:
    def __init__(self, matrix: Any) -> None:
        self.matrix = np.asarray(matrix, dtype=float)

    def to_affine_matrix(self, input_axes: Any, output_axes: Any) -> Any:
        assert input_axes == output_axes == ("x", "y")
        return self.matrix


def in_memory(**more: Any) -> SimpleNamespace:
    how = {"transform": {"global": Matrix(np.diag([2, 2, 1])), "own": Matrix(np.eye(3))}}
    geometry = SimpleNamespace(to_wkb=lambda: pd.Series(circles()))
    cells = SimpleNamespace(index=pd.Index(names()), geometry=geometry, attrs=how)
    held = {"shapes": {"cells": cells}, "labels": {}, "points": {}, "images": {}, **more}
    return SimpleNamespace(tables={"table": table("cells", ordered(names()))}, **held)


def test_an_object_is_read_like_its_store() -> None:
    sdata = in_memory()
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
    pixels = np.zeros((96, 128), np.int32)
    for value, (x, y) in enumerate(XY.astype(int), 1):
        pixels[y, x] = value
    how = {"transform": {"global": Matrix(np.eye(3))}}
    labels = SimpleNamespace(data=pixels, dims=("y", "x"), attrs=how)
    points = pd.DataFrame(XY, columns=["x", "y"])
    points.attrs = how
    he = SimpleNamespace(
        data=picture(), dims=("c", "y", "x"), attrs=how, coords={"c": np.array(["r", "g", "b"])}
    )
    sdata = in_memory(labels={"masks": labels}, points={"dots": points}, images={"he": he})
    sdata.tables |= {"masks": table("masks", (ROWS + 1).tolist()), "dots": table("dots", ROWS)}
    found = read(sdata, table="masks")
    np.testing.assert_allclose(found.coords, XY[ROWS] + 0.5)
    assert found.image is not None
    np.testing.assert_allclose(read(sdata, table="dots").coords, XY[ROWS])


def test_what_is_no_spatialdata_is_refused() -> None:
    with pytest.raises(InputError, match="not a SpatialData"):
        Slice.from_spatialdata(anndata.AnnData(np.ones((2, 2))))
    with pytest.raises(InputError, match="does not exist"):
        Slice.from_spatialdata("nowhere.zarr")
