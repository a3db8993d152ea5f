"""Every model, baseline and image baseline takes an AnnData, a path, a list of these, or a SpatialData."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError
from terrazzo.models import inputs
from terrazzo.slices import Opened
from terrazzo.systems.stalign.image_baselines import ImageBaseline

KEY = "X_forms"
MODELS = ("SToFM", "Baseline", "ImageBaseline")


@pytest.fixture(scope="module")
def slices(histology: Callable[..., AnnData]) -> list[AnnData]:
    """Two Visium slices with their sections."""
    return [histology(60, 60, seed=seed, image_px=300) for seed in (0, 1)]


@pytest.fixture(scope="module")
def models(tiny_model: Callable[..., Any], slices: list[AnnData]) -> dict[str, Any]:
    """One of each kind; the baseline is fitted, so that a slice's vectors do not depend on how it comes."""
    return {
        "SToFM": tiny_model(),
        "Baseline": tz.Baseline("pca", n_components=5).fit(slices),
        "ImageBaseline": ImageBaseline(),
    }


@pytest.fixture
def embed(models: dict[str, Any], request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Embed with the model that the test is run with."""
    model = models[request.param]

    def run(data: Any, **options: Any) -> Any:
        return model.embed(data, key_added=KEY, **options)

    return run


each_model = pytest.mark.parametrize("embed", MODELS, indirect=True)


def written(slices: list[AnnData], folder: Path) -> list[Path]:
    paths = [folder / f"s{number}.h5ad" for number in range(len(slices))]
    for adata, path in zip(slices, paths, strict=True):
        adata.write_h5ad(path)
    return paths


def same(one: AnnData, other: AnnData) -> None:
    """Check vectors and record of two results."""
    np.testing.assert_array_equal(one.obsm[KEY], other.obsm[KEY])
    first, second = (dict(adata.uns["terrazzo"][KEY]) for adata in (one, other))
    for record in (first, second):
        record.pop("date", None)
    assert first == second


@each_model
def test_one_slice_is_embedded_in_place(embed: Any, slices: list[AnnData]) -> None:
    adata = slices[0].copy()
    assert embed(adata) is adata
    assert adata.obsm[KEY].dtype == np.float32
    assert len(adata.obsm[KEY]) == 60
    assert adata.uns["terrazzo"][KEY]["terrazzo_version"] == tz.__version__


@each_model
def test_a_path_and_a_list_give_what_the_slices_give(
    embed: Any, slices: list[AnnData], tmp_path: Path
) -> None:
    expected = [embed(adata.copy()) for adata in slices]
    paths = written(slices, tmp_path)
    before = paths[0].read_bytes()
    same(embed(paths[0]), expected[0])
    same(embed(str(paths[0])), expected[0])
    assert paths[0].read_bytes() == before  # the file is read, never written
    both = embed([slices[0].copy(), paths[1]])
    assert isinstance(both, list)
    for found, one in zip(both, expected, strict=True):
        same(found, one)
    assert embed([]) == []


@each_model
def test_a_spatialdata_gets_the_result_in_its_table(
    embed: Any, slices: list[AnnData], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = embed(slices[0].copy())
    sdata = SimpleNamespace(tables={"table": slices[0].copy()})

    def opened(data: Any, choices: Any) -> Opened:
        assert choices.table == "table"
        return Opened(data.tables[choices.table], "SpatialData", "like")

    monkeypatch.setattr(inputs, "open_spatialdata", opened)
    assert embed(sdata, table="table") is sdata
    np.testing.assert_array_equal(sdata.tables["table"].obsm[KEY], expected.obsm[KEY])


@each_model
def test_options_of_reading_and_what_is_no_slice(
    embed: Any, slices: list[AnnData], tmp_path: Path
) -> None:
    moved = slices[0].copy()
    moved.obsm["xy"] = moved.obsm.pop("spatial")
    with pytest.raises(InputError, match="spatial"):
        embed(moved.copy())
    np.testing.assert_array_equal(
        embed(moved, spatial_key="xy").obsm[KEY], embed(slices[0].copy()).obsm[KEY]
    )
    with pytest.raises(InputError, match="not int"):
        embed(3)
    with pytest.raises(InputError, match="does not exist"):
        embed(tmp_path / "gone.h5ad")
    picture = tz.TissueImage.from_array(np.zeros((10, 10, 3), dtype=np.uint8), scale=1.0)
    with pytest.raises(ConfigError, match="one image cannot belong to 2 slices"):
        embed([slices[0], slices[1]], image=picture)


def test_an_image_beside_the_slice(slices: list[AnnData], tmp_path: Path) -> None:
    expected = ImageBaseline().embed(slices[0].copy(), key_added=KEY)
    bare = slices[0].copy()
    entry = next(iter(bare.uns.pop("spatial").values()))
    scale = float(entry["scalefactors"]["tissue_hires_scalef"])
    image = tz.TissueImage.from_array(np.asarray(entry["images"]["hires"]), scale=scale)
    (path,) = written([bare], tmp_path)
    found = ImageBaseline().embed(path, key_added=KEY, image=image, progress=False)
    np.testing.assert_array_equal(found.obsm[KEY], expected.obsm[KEY])
    assert KEY not in anndata.read_h5ad(path).obsm
