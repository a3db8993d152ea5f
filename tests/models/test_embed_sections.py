"""Embedding of AnnDatas with several sections: each by itself, rows in their places."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData
from spatialdata_stores import circles, make, set_unit, table

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError
from terrazzo.models.embed_files import embed_files
from terrazzo.slices import Choices, open_slice
from terrazzo.systems.stalign.image_baselines import ImageBaseline


def two(simulated: Any, seed: int = 0) -> tuple[dict[str, AnnData], AnnData]:
    """Two simulated slices, and both as one AnnData, rows mixed."""
    parts = {"A": simulated(50, seed=1), "B": simulated(40, seed=2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = ad.concat(parts, label="library_id", index_unique="-", uns_merge="first")
    both.uns.pop("spatial", None)
    order = np.random.default_rng(seed).permutation(both.n_obs)
    return parts, both[order].copy()


def alone(both: AnnData, name: str) -> AnnData:
    return both[both.obs["library_id"] == name].copy()


@pytest.mark.case(
    "A",
    given="`embed(slice_key=)` of an AnnData with several sections",
    gets="The vectors of each section are those of the section alone, rows in their places",
)
@pytest.mark.parametrize(
    "system", ["SToFM", "STImage", "z50", "t3", "t4", "t1-half", "t3-clean-z", "t4-clean-z"]
)
def test_each_section_gets_its_own_vectors(system: str, simulated: Any, tiny_model: Any) -> None:
    _, both = two(simulated)
    options: dict[str, Any] = {}
    model: Any
    if system == "SToFM":
        model = tiny_model()
    elif system == "STImage":
        vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(alone(both, "A"))])
        model = tz.STImage("tiny", vocabulary)
        options = {"bin_um": 40.0}
    else:
        model = tz.Baseline(system)
    key = model.default_key
    names = both.obs_names.copy()
    with pytest.raises(InputError, match=r"library_id'\] tells 2 sections apart"):
        model.embed(both, **options)
    assert key not in both.obsm
    model.embed(both, slice_key="library_id", **options)
    assert list(both.obs_names) == list(names)
    for name in ("A", "B"):
        one = alone(both, name)
        embedded = one.obsm.pop(key)
        model.embed(one, **options)
        np.testing.assert_array_equal(embedded, one.obsm[key])
    record = both.uns["terrazzo"][key]
    assert record["slice_key"] == "library_id"
    assert json.loads(record["parts"])["A"]["n_cells"] == 50


def test_all_as_one_slice_if_wished(simulated: Any, tiny_model: Any) -> None:
    _, both = two(simulated)
    tiny_model().embed(both, slice_key="none", progress=False)
    assert both.obsm["X_stofm"].shape[0] == both.n_obs


def test_plan_is_the_sum(simulated: Any, tiny_model: Any) -> None:
    _, both = two(simulated)
    model = tiny_model()
    plan = model.plan(both, slice_key="library_id")
    plans = [model.plan(alone(both, name)) for name in ("A", "B")]
    assert plan.cells == sum(one.cells for one in plans)
    assert plan.subslices == sum(one.subslices for one in plans)


def test_files(simulated: Any, tiny_model: Any, tmp_path: Path) -> None:
    _, both = two(simulated)
    source = tmp_path / "both.h5ad"
    both.write_h5ad(source)
    model = tiny_model()
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"both.h5ad: obs\['library_id'\]"):
        list(embed_files(model, [source], out, progress=False))
    assert not list(out.iterdir())
    said: list[str] = []
    options: dict[str, Any] = {"slice_key": "library_id", "progress": False}
    (done,) = embed_files(model, [source], out, announce=said.append, **options)
    assert (done.status, done.cells) == ("embedded", both.n_obs)
    assert any("both.h5ad: A: 50 cells" in line for line in said)
    (again,) = embed_files(model, [source], out, **options)
    assert again.status == "unchanged"
    model.embed(both, **options)
    written = ad.read_h5ad(done.target)
    np.testing.assert_array_equal(written.obsm["X_stofm"], both.obsm["X_stofm"])
    slices = tz.read(source, slice_key="library_id")
    assert [(one.name, one.n_cells) for one in slices] == [("both_A", 50), ("both_B", 40)]
    assert [one.n_cells for one in tz.read([source], slice_key="library_id")] == [50, 40]


def test_one_image_is_not_that_of_several_sections(simulated: Any, tiny_model: Any) -> None:
    _, both = two(simulated)
    image = tz.TissueImage.from_array(np.zeros((8, 8, 3), np.uint8), scale=1.0)
    with pytest.raises(ConfigError, match="one image cannot belong to several sections"):
        tiny_model().embed(both, slice_key="library_id", image=image)


@pytest.mark.parametrize("histology_seed", [3])
def test_each_section_has_the_image_of_its_library(histology: Any, histology_seed: int) -> None:
    parts = {"A": histology(seed=1), "B": histology(seed=histology_seed)}
    for name, one in parts.items():
        (library,) = one.uns["spatial"].values()
        one.uns["spatial"] = {name: library}
    both = ad.concat(parts, label="library_id", index_unique="-", uns_merge="unique")
    model = ImageBaseline("colors")
    model.embed(both, slice_key="library_id", progress=False)
    for name, one in parts.items():
        model.embed(one, progress=False)
        rows = (both.obs["library_id"] == name).to_numpy()
        np.testing.assert_array_equal(both.obsm["X_colors"][rows], one.obsm["X_colors"])


@pytest.fixture
def regions(simulated: Any) -> tuple[Any, AnnData, list[str]]:
    """Elements and table of two regions in one coordinate system, on top of each other, rows mixed."""
    adata = table(None, range(120), counts=simulated(120))
    coords = np.asarray(simulated(120).obsm["spatial"], dtype=float)
    names = list(np.random.default_rng(0).permutation(["first", "second"] * 60))
    mixed = table(names, range(120), counts=adata)
    shapes = {}
    for name in ("first", "second"):
        rows = [i for i in range(120) if names[i] == name]
        shapes[name] = circles(coords[rows], rows)
    adata.obsm["spatial"] = coords
    return (shapes, mixed), adata, names


@pytest.mark.case(
    "A",
    given="A SpatialData whose table annotates several regions",
    gets="Refused, with the regions; `region=` takes one, `slice_key=` the column of regions each by itself",
)
def test_regions_of_a_spatialdata(regions: Any, tiny_model: Any, tmp_path: Path) -> None:
    (shapes, mixed), plain, names = regions
    store = make(tmp_path / "in" / "s.zarr", shapes=shapes, tables={"table": mixed})
    for name in shapes:
        set_unit(store, "shapes", name)
    model = tiny_model()
    with pytest.raises(InputError, match="slice_key='region'"):
        open_slice(store)
    assert [one.n_cells for one in tz.read(store, slice_key="region")] == [60, 60]
    (done,) = embed_files(model, [store], tmp_path / "out", slice_key="region", progress=False)
    written = ad.read_zarr(done.target / "tables" / "table")
    sdata = make(shapes=shapes, tables={"table": mixed})
    for name in shapes:
        rows = np.array([one == name for one in names])
        one = plain[rows].copy()
        model.embed(one, unit="um", progress=False)
        np.testing.assert_allclose(written.obsm["X_stofm"][rows], one.obsm["X_stofm"], atol=1e-5)
    model.embed(sdata, slice_key="region", unit="um", progress=False)
    np.testing.assert_allclose(
        sdata.tables["table"].obsm["X_stofm"], written.obsm["X_stofm"], atol=1e-5
    )


@pytest.mark.parametrize("apart", [False, True])
def test_an_image_beside_the_file(apart: bool, simulated: Any, tmp_path: Path) -> None:
    """It is that of all sections where they are side by side, and of none where they overlap."""
    _, both = two(simulated)
    if apart:
        rows = (both.obs["library_id"] == "B").to_numpy()
        both.obsm["spatial"][rows, 0] += 10_000
    both.write_h5ad(tmp_path / "both.h5ad")
    image = tz.TissueImage.from_array(np.zeros((64, 64, 3), np.uint8), scale=1.0)
    opened = open_slice(tmp_path / "both.h5ad", Choices(slice_key="library_id"))
    slices = replace(opened, image=image).each(lambda one: one.image)
    assert slices == ([image, image] if apart else [None, None])
