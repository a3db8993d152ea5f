"""What must hold of ``SToFM.embed`` on any slice, with random weights loud enough for errors to show."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from spatialdata_stores import make

import terrazzo as tz
from terrazzo import keys
from terrazzo.errors import ConfigError, GeneError, InputError, TerrazzoWarning
from terrazzo.systems.stofm import model as stofm_module
from terrazzo.systems.stofm.cell_encoder import CellEncoder
from terrazzo.systems.stofm.cell_model import CellModel
from terrazzo.systems.stofm.config import preset

Vectors = Callable[..., np.ndarray]
N = 100  # cells, in two sub-slices
few = settings(
    max_examples=3,
    deadline=None,
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # no shrinking: an example takes a while
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
PUBLISHED = {"geometry": "published", "partition": "grid", "mix": "sum"}
GEOMETRIES = pytest.mark.parametrize("geometry", [{}, PUBLISHED], ids=["um", "published"])


def moved(adata: AnnData, angle: float, shift: tuple[float, float]) -> AnnData:
    c, s = np.cos(angle), np.sin(angle)
    out = adata.copy()
    out.obsm["spatial"] = adata.obsm["spatial"] @ np.array([[c, s], [-s, c]]) + shift
    return out


def at(adata: AnnData, positions: np.ndarray) -> AnnData:
    adata.obsm["spatial"] = positions.astype(float)
    return adata


def check(adata: AnnData, key: str = "X_stofm") -> np.ndarray:
    found = adata.obsm[key]
    assert found.shape == (adata.n_obs, 32)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    return found


# -- symmetries -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(90, 110), st.floats(0, 6.28), st.floats(-1e4, 1e4))
@few
def test_rotation_and_translation_change_nothing_in_micrometers(
    tiny_model: Any, simulated: Any, vectors: Vectors, seed: int, n: int, angle: float, shift: float
) -> None:
    model, adata = tiny_model(), simulated(n, seed=seed)
    before = vectors(model, adata)
    after = vectors(model, moved(adata, angle, (shift, -2 * shift)))
    assert before.std() > 0.1
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"halo": 2.0}, {"pair": "full"}, {"partition": "balanced", "subslice_size": 31}]
)
def test_rotation_changes_nothing_whatever_the_cut(
    tiny_model: Any, simulated: Any, vectors: Vectors, options: dict[str, Any]
) -> None:
    model, adata = tiny_model(), simulated(N)
    before, after = (vectors(model, a, **options) for a in (adata, moved(adata, 0.7, (50.0, 9.0))))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)


@given(st.integers(0, 5), st.integers(90, 110), st.floats(-100, 100))
@few
def test_translation_changes_nothing_as_published(
    tiny_model: Any, simulated: Any, vectors: Vectors, seed: int, n: int, shift: float
) -> None:
    model, adata = tiny_model(**PUBLISHED), simulated(n, seed=seed)
    before, after = vectors(model, adata), vectors(model, moved(adata, 0.0, (shift, 3 * shift)))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)


@GEOMETRIES
@given(st.integers(0, 5), st.integers(90, 110), st.integers(0, 2**32 - 1))
@few
def test_the_order_of_cells_changes_not_one_bit(
    tiny_model: Any,
    simulated: Any,
    vectors: Vectors,
    geometry: dict[str, Any],
    seed: int,
    n: int,
    shuffle: int,
) -> None:
    model, adata = tiny_model(**geometry), simulated(n, seed=seed)
    order = np.random.default_rng(shuffle).permutation(n)
    np.testing.assert_array_equal(vectors(model, adata[order].copy()), vectors(model, adata)[order])


def test_the_order_of_genes_changes_nothing_without_ties(
    tiny_model: Any, simulated: Any, vectors: Vectors
) -> None:
    adata = simulated(N)
    rng = np.random.default_rng(0)
    adata.X = rng.integers(1, 10**6, adata.shape).astype(np.float32)
    order = rng.permutation(adata.n_vars)
    first, second = vectors(tiny_model(), adata), vectors(tiny_model(), adata[:, order].copy())
    np.testing.assert_allclose(second, first, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["cells", "visium", "st"])
@GEOMETRIES
def test_n_cells_in_n_rows_out_on_every_layout(
    tiny_model: Any, simulated: Any, vectors: Vectors, layout: str, geometry: dict[str, Any]
) -> None:
    adata = simulated(N, layout=layout)
    names, x = adata.obs_names.copy(), adata.X.copy()
    found = vectors(tiny_model(**geometry), adata)
    check(adata)
    assert list(adata.obs_names) == list(names)
    assert abs(adata.X - x).sum() == 0  # the counts are left alone
    alone = adata[:60].copy()
    assert (
        np.abs(found[:60] - vectors(tiny_model(**geometry), alone)).max() > 1e-3
    )  # context counts


# -- how the work is cut ----------------------------------------------------------------------------------------------


def test_batch_size_changes_nothing(
    tiny_model: Any, simulated: Any, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adata = tiny_model(), simulated(N)
    adata.obs["given"] = np.arange(adata.n_obs) % 6
    before = vectors(model, adata, clusters="given")
    monkeypatch.setitem(stofm_module.PACK_TOKENS, "cpu", 100_000)  # all sub-slices in one pass
    np.testing.assert_allclose(vectors(model, adata, clusters="given"), before, rtol=0, atol=1e-5)
    encode = CellEncoder.encode

    def one_by_one(self: CellEncoder, *args: Any, **options: Any) -> np.ndarray:
        return encode(self, *args, **{**options, "batch_tokens": 1})

    monkeypatch.setattr(CellEncoder, "encode", one_by_one)
    np.testing.assert_allclose(vectors(model, adata, clusters="given"), before, rtol=0, atol=1e-4)


def details(adata: AnnData, key: str = "X_stofm") -> dict[str, Any]:
    return json.loads(adata.uns["terrazzo"][key]["details"])


@pytest.mark.parametrize("partition", ["balanced", "grid"])
def test_partition_and_size_are_taken(tiny_model: Any, simulated: Any, partition: str) -> None:
    adata = tiny_model().embed(simulated(N), partition=partition, subslice_size=25, progress=False)
    check(adata)
    assert details(adata)["n_subslices"] >= 4
    subslices = json.loads(adata.uns["terrazzo"]["X_stofm"]["settings"])["subslices"]
    assert (subslices["partition"], subslices["subslice_size"]) == (partition, 25)
    adata = tiny_model().embed(simulated(N), subslice_size=10_000, progress=False)
    assert details(adata)["n_subslices"] == 1


def test_a_halo_gives_context_and_a_wide_one_the_whole_slice(
    tiny_model: Any, simulated: Any, vectors: Vectors
) -> None:
    model = tiny_model()
    adata = simulated(N)
    adata.obs["given"] = np.arange(adata.n_obs) % 6
    none, some, wide, whole = (
        vectors(model, adata, clusters="given", **options)
        for options in ({}, {"halo": 2}, {"halo": 1000.0}, {"subslice_size": 10_000})
    )
    assert np.abs(some - none).max() > 1e-3
    np.testing.assert_allclose(wide, whole, rtol=0, atol=1e-4)


def test_without_virtual_cells(tiny_model: Any, simulated: Any) -> None:
    adata = tiny_model(virtual=False).embed(simulated(N), progress=False)
    check(adata)
    assert details(adata)["n_virtual_cells"] == 0
    check(tiny_model(virtual=False).embed(simulated(N)[:1].copy(), progress=False))


def test_seeds(tiny_model: Any, simulated: Any, vectors: Vectors) -> None:
    model, adata = tiny_model(), simulated(220)
    first = vectors(model, adata, seed=3)
    np.testing.assert_array_equal(first, vectors(model, adata, seed=3))
    assert any(np.abs(vectors(model, adata, seed=s) - first).max() > 1e-4 for s in (0, 1, 2, 4))


def test_random_weights_follow_the_seed_and_leave_torchs_generator_alone(
    tiny_model: Any, small_config: Any
) -> None:
    import torch

    vocabulary = tiny_model().vocabulary
    config = small_config(vocabulary.n_tokens)
    state = torch.random.get_rng_state()
    first, second, other = (tz.SToFM(config, vocabulary, seed=s).fingerprint() for s in (1, 1, 2))
    assert first == second != other
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not tz.SToFM(config, vocabulary).trained


def test_bfloat16_reports_its_error(tiny_model: Any, simulated: Any, vectors: Vectors) -> None:
    adata = simulated(N)
    adata.obs["given"] = 0
    exact = vectors(tiny_model(), adata, clusters="given")
    rough = vectors(tiny_model(), adata, clusters="given", precision="bfloat16")
    assert 0.9 < details(adata)["bfloat16_min_cosine"] <= 1.0001
    assert np.abs(exact - rough).max() > 1e-5
    cosine = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert np.median(cosine) > 0.95


# -- slices that are odd ----------------------------------------------------------------------------------------------


@GEOMETRIES
def test_empty_cells_are_flagged_and_finite(
    tiny_model: Any, simulated: Any, geometry: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    adata = simulated(N)
    counts = adata.X.tolil()
    counts[[4, 9, 75]] = 0
    adata.X = counts.tocsr()
    empty = np.asarray(adata.X.sum(axis=1)).ravel() == 0
    with caplog.at_level(logging.WARNING):
        tiny_model(**geometry).embed(adata, progress=False)
    check(adata)
    np.testing.assert_array_equal(adata.obs[keys.EMPTY].to_numpy(), empty)
    assert empty.sum() >= 3
    assert adata.uns["terrazzo"]["X_stofm"]["n_empty"] == empty.sum()
    assert f"{empty.sum()} cells have no counts" in caplog.text


@GEOMETRIES
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_few_cells(tiny_model: Any, simulated: Any, geometry: dict[str, Any], n: int) -> None:
    adata = simulated(N)
    check(tiny_model(**geometry).embed(adata[50 : 50 + n].copy(), progress=False))


@GEOMETRIES
@pytest.mark.parametrize("kind", ["one point", "pairs", "line", "lattice"])
def test_degenerate_positions(
    tiny_model: Any, simulated: Any, vectors: Vectors, geometry: dict[str, Any], kind: str
) -> None:
    adata = simulated(N)
    n = adata.n_obs
    spots = {
        "one point": np.full((n, 2), 3.0),
        "pairs": np.repeat(adata.obsm["spatial"][: n // 2], 2, axis=0),
        "line": np.outer(np.arange(n), [10.0, 0.0]),
        "lattice": 20.0 * np.column_stack(np.divmod(np.arange(n), 14)),
    }[kind]
    at(adata, spots)
    found = vectors(tiny_model(**geometry), adata)
    check(adata)
    order = np.random.default_rng(0).permutation(n)
    again = vectors(tiny_model(**geometry), adata[order].copy())
    np.testing.assert_array_equal(again, found[order])


def test_equal_cells_at_one_point_have_equal_vectors(
    tiny_model: Any, simulated: Any, vectors: Vectors
) -> None:
    adata = simulated(N)[:60].copy()
    other = adata.copy()
    other.obs_names = [f"twin-{name}" for name in other.obs_names]
    twins = anndata.concat([adata, other], join="outer", merge="same")
    twins.uns["technology"] = "MERFISH"
    twins.obs["given"] = 0
    found = vectors(tiny_model(), twins, clusters="given", subslice_size=1000)
    np.testing.assert_allclose(found[:60], found[60:], rtol=0, atol=1e-4)


def test_unknown_units_warn_and_the_spacing_is_the_unit(
    tiny_model: Any, simulated: Any, vectors: Vectors
) -> None:
    adata = simulated(N)
    del adata.uns["technology"]
    with pytest.warns(TerrazzoWarning, match="micrometers could not be derived"):
        before = vectors(tiny_model(), adata)
    adata.obsm["spatial"] = adata.obsm["spatial"] * 37.0
    with pytest.warns(TerrazzoWarning, match="taken as the unit"):
        after = vectors(tiny_model(), adata)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors(tiny_model(), adata, microns_per_unit=0.1)
        vectors(tiny_model(**PUBLISHED), adata)


def test_a_slice_of_other_genes_is_refused(tiny_model: Any, simulated: Any) -> None:
    adata = simulated(N)
    adata.var_names = [f"other{i}" for i in range(adata.n_vars)]
    adata.var["ensembl_id"] = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    with pytest.raises(GeneError):
        tiny_model().embed(adata)
    assert "X_stofm" not in adata.obsm


# -- what embed takes and writes --------------------------------------------------------------------------------------


def test_key_added_and_two_keys_side_by_side(tiny_model: Any, simulated: Any) -> None:
    adata = simulated(N)
    tiny_model().embed(adata, key_added="mine", seed=4, progress=False)
    tiny_model().embed(adata, progress=False)
    check(adata, "mine")
    check(adata)
    assert set(adata.uns["terrazzo"]) == {"mine", "X_stofm"}


def test_a_list_and_paths(
    tiny_model: Any, simulated: Any, vectors: Vectors, tmp_path: Path
) -> None:
    first, second = simulated(N), simulated(80, seed=1)
    expected = [vectors(tiny_model(), a.copy()) for a in (first, second)]
    path = tmp_path / "second.h5ad"
    second.write_h5ad(path)
    out = tiny_model().embed([first, path], progress=False)
    assert out[0] is first
    for adata, want in zip(out, expected, strict=True):
        np.testing.assert_array_equal(adata.obsm["X_stofm"], want)
    np.testing.assert_array_equal(
        tiny_model().embed(str(path), progress=False).obsm["X_stofm"], expected[1]
    )


def test_spatialdata(tiny_model: Any, simulated: Any) -> None:
    sdata = make(tables={"table": simulated(N)})
    assert tiny_model().embed(sdata, progress=False) is sdata
    check(sdata.tables["table"])
    for other in (make(), make(tables={"a": simulated(N), "b": simulated(N)})):
        with pytest.raises(InputError, match=r"no table|2 tables"):
            tiny_model().embed(other)


@pytest.mark.parametrize("wrong", [None, 3, np.zeros((3, 2)), pd.DataFrame()])
def test_what_is_no_slice_is_refused(tiny_model: Any, wrong: Any) -> None:
    with pytest.raises(InputError, match="embed takes"):
        tiny_model().embed(wrong)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_provenance_survives_the_disk(
    tiny_model: Any, simulated: Any, tmp_path: Path, suffix: str
) -> None:
    model, adata = tiny_model(), simulated(N)
    model.embed(adata, seed=5, progress=False)
    record = adata.uns["terrazzo"]["X_stofm"]
    path = tmp_path / f"slice.{suffix}"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*zarr", category=UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        adata.write_h5ad(path) if suffix == "h5ad" else adata.write_zarr(path)
        back = anndata.read_h5ad(path) if suffix == "h5ad" else anndata.read_zarr(path)
    kept = back.uns["terrazzo"]["X_stofm"]
    assert {k: str(v) for k, v in kept.items()} == {k: str(v) for k, v in record.items()}
    assert kept["checkpoint_sha256"] == model.fingerprint()
    assert json.loads(kept["settings"])["seed"] == 5
    assert json.loads(kept["coverage"])["n_matched"] == 60
    assert json.loads(kept["config"])["se2"]["hidden_size"] == 32
    assert kept["unit"] == "um"
    assert not kept["trained"]
    np.testing.assert_array_equal(back.obsm["X_stofm"], adata.obsm["X_stofm"])
    assert back.obs[keys.EMPTY].dtype == bool


def test_given_clusters_are_used_whatever_they_are_called(
    tiny_model: Any, simulated: Any, vectors: Vectors
) -> None:
    adata = simulated(N)
    number = np.arange(adata.n_obs) % 5
    adata.obs["number"] = number
    adata.obs["text"] = pd.Categorical(
        [f"c{i}" for i in number], categories=[f"c{i}" for i in range(9)]
    )
    adata.obs["sparse"] = number * 100.0
    first, second, third = (
        vectors(tiny_model(), adata, clusters=c) for c in ("number", "text", "sparse")
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)
    assert details(adata)["n_virtual_cells"] == 5
    assert np.abs(first - vectors(tiny_model(), adata)).max() > 1e-3


def test_clusters_that_cannot_be_used(tiny_model: Any, simulated: Any) -> None:
    adata = simulated(N)
    with pytest.raises(InputError, match=r"clusters='domain' is not a column.*region"):
        tiny_model().embed(adata, clusters="domain")
    adata.obs["domain"] = [None, np.nan] + ["a"] * (adata.n_obs - 2)
    with pytest.raises(InputError, match="no value for 2 cells"):
        tiny_model().embed(adata, clusters="domain")


@pytest.mark.parametrize(
    "options",
    [
        {"partition": "hexagons"},
        {"pair": "some"},
        {"subslice_size": 0},
        {"subslice_size": -3},
        {"subslice_size": 10.5},
        {"halo": -1.0},
        {"halo": float("nan")},
        {"halo": float("inf")},
        {"precision": "float16"},
    ],
    ids=str,
)
def test_impossible_settings_are_config_errors(
    tiny_model: Any, simulated: Any, options: dict[str, Any]
) -> None:
    adata = simulated(N)
    with pytest.raises(ConfigError):
        tiny_model().embed(adata, progress=False, **options)
    assert "X_stofm" not in adata.obsm


def test_plan_says_what_embed_does(tiny_model: Any, simulated: Any) -> None:
    adata = simulated(N)
    plan = tiny_model().plan(adata, subslice_size=25, seed=3, key_added="mine", halo=1.0)
    done = tiny_model().embed(adata, subslice_size=25, progress=False)
    assert plan.cells == N
    assert plan.subslices == details(done)["n_subslices"]
    assert plan.seconds > 0
    assert "100 cells in 4 sub-slices" in str(plan)
    assert plan.faster == ()


def test_presets_and_configs_that_do_not_fit() -> None:
    from dataclasses import replace

    for name in ("tiny", "small", "paper"):
        assert preset(name, 77).cell_encoder.vocab_size == 77
    assert preset("paper").cell_encoder.vocab_size == 25_427
    with pytest.raises(ConfigError, match="tiny, small, paper"):
        preset("huge")
    config = preset("tiny")
    with pytest.raises(ValueError, match="output_dim"):
        replace(config, se2=replace(config.se2, input_dim=7))
    with pytest.raises(ValueError, match="multiple"):
        replace(config, se2=replace(config.se2, num_heads=5))


def test_cell_model_sees_no_tissue(simulated: Any, loud: Any, small_config: Any) -> None:
    from dataclasses import replace

    from terrazzo.systems.stofm.cell_model import CellModelConfig

    adata = simulated(N)
    counts = adata.X.tolil()
    counts[0] = 0  # the first cell is always among those that bfloat16 is measured on
    adata.X = counts.tocsr()
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(adata)])
    encoder = small_config(vocabulary.n_tokens).cell_encoder
    for pooling, width in (("cls", 16), ("mean", 32)):
        model = CellModel(
            CellModelConfig(replace(encoder, pooling=pooling, output_dim=width)), vocabulary
        )
        loud(model.module)
        model.embed(adata, precision="bfloat16", progress=False)
        assert (
            details(adata, "X_cell")["bfloat16_min_cosine"] > 0.9
        )  # an empty cell (vector 0) is no error
        first = model.embed(adata, progress=False).obsm["X_cell"]
        assert first.shape == (N, width)
        other = model.embed(at(adata.copy(), np.zeros((N, 2))), progress=False).obsm["X_cell"]
        np.testing.assert_array_equal(first, other)
        plan = model.plan(adata)
        assert (plan.cells, plan.subslices) == (N, 0)
