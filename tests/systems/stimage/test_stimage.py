"""ST as images: every cell a vector, of any grid; hidden cells predicted without being read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from anndata import AnnData

import terrazzo as tz
from terrazzo import keys
from terrazzo.errors import ConfigError, GeneError, InputError, TerrazzoWarning
from terrazzo.slices.grids import grid_of
from terrazzo.systems.stimage import model as stimage_model
from terrazzo.systems.stimage.config import preset
from terrazzo.systems.stimage.windows import WindowConfig, tile_corners, window_sites


def visium(n: int = 300, seed: int = 0, **options: Any) -> AnnData:
    return tz.simulate.tissue(n, layout="visium", n_genes=60, seed=seed, **options)


def model_of(adata: AnnData, loud: Any = None, **changes: Any) -> tz.STImage:
    """Return a tiny model; ``loud`` weights so that an error in any part of it moves the output."""
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(adata)])
    config = preset(
        "tiny", vocabulary.n_tokens, windows=WindowConfig(window=6, channels=40, choose="spatial")
    )
    model = tz.STImage(replace(config, **changes), vocabulary, seed=1)
    rng = np.random.default_rng(0)
    model.module.autocorrelation.copy_(torch.from_numpy(rng.random(vocabulary.n_tokens)))
    if loud is not None:
        loud(model.module)
    return model


def embedded(model: tz.STImage, adata: AnnData, **options: Any) -> np.ndarray:
    return model.embed(adata.copy(), progress=False, **options).obsm["X_stimage"]


@pytest.mark.parametrize("output", ["encoder", "decoder", "own+niche"])
def test_every_spot_gets_a_vector(output: Any, loud: Any) -> None:
    adata = visium()
    model = model_of(adata, loud, output=output)
    out = model.embed(adata.copy(), progress=False)
    vectors = out.obsm["X_stimage"]
    assert vectors.shape == (300, 128 if output == "own+niche" else 64)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert (vectors.std(axis=0) > 0).all()
    assert not out.obs[keys.EMPTY].any()
    record = out.uns[keys.UNS]["X_stimage"]
    assert record["model_type"] == "stimage"
    assert json.loads(record["details"])["grid"] == "hex"


def test_blocks_are_named_and_of_one_norm(loud: Any) -> None:
    adata = visium()
    model_of(adata, loud).embed(adata, progress=False)
    own, niche = tz.get(adata, "X_stimage:own"), tz.get(adata, "X_stimage:niche")
    assert own.shape == niche.shape == (300, 64)
    assert np.linalg.norm(own, axis=1).mean() == pytest.approx(1, rel=1e-5)
    assert np.linalg.norm(niche, axis=1).mean() == pytest.approx(1, rel=1e-5)


def test_the_niche_block_reads_nothing_of_the_spot_itself(loud: Any) -> None:
    adata = visium()
    model = model_of(
        adata, loud, normalize="paper", standardize=False
    )  # so that no statistic of the slice moves
    spot, other = 150, adata.copy()
    counts = other.X.tolil()
    counts[spot] = counts[spot][:, ::-1]  # the same total, other genes
    other.X = counts.tocsr()
    first, second = (blocks_of(model, a) for a in (adata, other))
    moved = np.abs(first["niche"] - second["niche"]).max(axis=1)
    assert moved[spot] < 1e-6 < np.delete(moved, spot).max()
    assert np.abs(first["own"] - second["own"])[spot].max() > 1e-3


def blocks_of(model: tz.STImage, adata: AnnData) -> dict[str, np.ndarray]:
    """Return the blocks of all vectors as they are before they are brought to one norm."""
    from terrazzo.progress import Progress

    return model.prepare(tz.Slice.from_anndata(adata))._blocks(Progress(False))


def test_the_order_of_rows_does_not_matter(loud: Any) -> None:
    adata = visium()
    model, order = model_of(adata, loud), np.random.default_rng(0).permutation(300)
    np.testing.assert_allclose(
        embedded(model, adata)[order], embedded(model, adata[order]), atol=1e-5
    )


def test_a_turned_slice_without_array_positions_has_the_same_vectors(loud: Any) -> None:
    adata = visium()
    model, bare = model_of(adata, loud), adata.copy()
    bare.obs = bare.obs.drop(columns=[keys.ARRAY_ROW, keys.ARRAY_COL])
    angle = np.deg2rad(4)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    bare.obsm["spatial"] = bare.obsm["spatial"] @ turn
    bare.uns["technology"] = "visium"
    whole = {"window": 24}  # one window: otherwise it matters a little where windows begin
    first, second = embedded(model, adata, **whole), embedded(model, bare, **whole)
    own = slice(0, 64)
    np.testing.assert_allclose(first[:, own], second[:, own], atol=2e-4)


def test_cells_of_a_bin_are_told_apart_and_none_is_lost(loud: Any) -> None:
    adata = tz.simulate.tissue(400, n_genes=60, seed=0)
    model = model_of(adata, loud)
    with pytest.raises(InputError, match=r"bin_um"):
        embedded(model, adata)
    vectors = embedded(model, adata, bin_um=25.0)
    assert vectors.shape[0] == 400
    assert np.isfinite(vectors).all()
    bins = np.floor((adata.obsm["spatial"] - adata.obsm["spatial"].min(axis=0)) / 25.0)
    assert len(np.unique(bins, axis=0)) < 350  # many cells share theirs
    assert len(np.unique(vectors[:, :64].round(4), axis=0)) == 400
    order = np.random.default_rng(0).permutation(400)
    np.testing.assert_allclose(
        vectors[order], embedded(model, adata[order], bin_um=25.0), atol=1e-5
    )


def test_spots_of_one_array_position_share_a_vector(loud: Any) -> None:
    adata = visium()
    adata.obs.iloc[7, adata.obs.columns.get_indexer([keys.ARRAY_ROW, keys.ARRAY_COL])] = (
        adata.obs.iloc[6, adata.obs.columns.get_indexer([keys.ARRAY_ROW, keys.ARRAY_COL])]
    )
    with pytest.warns(TerrazzoWarning, match="share their lattice position"):
        vectors = embedded(model_of(adata, loud), adata)
    np.testing.assert_array_equal(vectors[6], vectors[7])


def test_drawn_channels_depend_on_the_seed_alone(loud: Any) -> None:
    adata = visium()
    config = preset("tiny", 1, flavor="paper").windows
    model = model_of(adata, loud, windows=replace(config, window=6, channels=20), output="decoder")
    first = embedded(model, adata, seed=3)
    np.testing.assert_array_equal(first, embedded(model, adata, seed=3))
    assert np.abs(first - embedded(model, adata, seed=4)).max() > 1e-4


@pytest.mark.parametrize("kept", [1, 2, 7])
def test_slices_smaller_than_a_window(kept: int, loud: Any) -> None:
    adata = visium()
    vectors = embedded(model_of(adata, loud), adata[:kept].copy())
    assert vectors.shape[0] == kept
    assert np.isfinite(vectors).all()


def part(adata: AnnData, kept: str) -> AnnData:
    row, column = adata.obs[keys.ARRAY_ROW], adata.obs[keys.ARRAY_COL]
    rows = {"row": row == row.mode()[0], "column": column == column.mode()[0], "gaps": row % 4 > 1}[
        kept
    ]
    return adata[rows.to_numpy()].copy()


@pytest.mark.parametrize("kept", ["row", "column", "gaps"])
def test_one_row_one_column_and_missing_rows(kept: str, loud: Any) -> None:
    adata = part(visium(), kept)
    vectors = embedded(model_of(visium(), loud), adata)
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors.round(5), axis=0)) == adata.n_obs > 3


@pytest.mark.filterwarnings("ignore:slice .*fewer than 30:terrazzo.errors.TerrazzoWarning")
@pytest.mark.parametrize("choose", ["spatial", "weighted", "hvg", "random", "all"])
@pytest.mark.parametrize("n", [1, 5])
def test_fewer_genes_than_channels(n: int, choose: Any, loud: Any) -> None:
    adata = visium()
    most = np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())
    adata = adata[:, most[:n]].copy()
    vectors = embedded(
        model_of(visium(), loud, windows=WindowConfig(window=6, channels=40, choose=choose)), adata
    )
    assert np.isfinite(vectors).all()
    assert vectors.std(axis=0).max() > 0


@pytest.mark.filterwarnings("ignore:.*farther than in tissue")
@pytest.mark.parametrize("choose", ["spatial", "weighted"])
def test_windows_with_a_single_cell(choose: Any, loud: Any) -> None:
    adata = tz.simulate.tissue(40, n_genes=60, seed=0)
    adata.obsm["spatial"] = np.stack(np.divmod(np.arange(40), 8), axis=1) * 1000.0
    model = model_of(
        adata, loud, windows=WindowConfig(window=6, bin_um=20.0, channels=40, choose=choose)
    )
    vectors = embedded(model, adata)
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors[:, :64].round(5), axis=0)) == 40


def test_normalized_values_are_refused(loud: Any) -> None:
    adata = visium()
    model = model_of(adata, loud)
    adata.X = np.log1p(adata.X.toarray())
    for verb in (
        lambda **options: embedded(model, adata, **options),
        lambda **options: model.plan(adata, **options),
        lambda **options: model.reconstruct(adata, np.arange(300) < 9, ["SIM1"], **options),
    ):
        with pytest.raises(InputError, match="does not hold counts"):
            verb()
        with (
            pytest.raises(
                InputError, match=r"X holds normalized values.*Pass the layer that holds raw counts"
            ),
            pytest.warns(TerrazzoWarning, match="normalized values"),
        ):
            verb(allow_normalized=True)


def test_spots_without_counts_keep_their_place_and_are_flagged(loud: Any, caplog: Any) -> None:
    adata = visium()
    counts = adata.X.tolil()
    counts[[3, 9]] = 0
    adata.X = counts.tocsr()
    out = model_of(adata, loud).embed(adata, progress=False)
    assert "2 cells have no counts" in caplog.text
    assert out.obs[keys.EMPTY].to_numpy().nonzero()[0].tolist() == [3, 9]
    assert np.isfinite(out.obsm["X_stimage"]).all()


def test_a_spot_without_counts_is_not_looked_at(loud: Any) -> None:
    adata = visium()
    counts = adata.X.tolil()
    counts[150] = 0
    adata.X = counts.tocsr()
    model = model_of(
        adata, loud, normalize="paper", standardize=False, output="decoder"
    )  # no statistic of the slice
    others = np.arange(300) != 150
    np.testing.assert_allclose(
        embedded(model, adata)[others], embedded(model, adata[others].copy()), atol=1e-4
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, loud: Any) -> None:
    adata = visium()
    model = model_of(adata, loud)
    again = tz.load(model.save_pretrained(tmp_path / "model"))
    assert isinstance(again, tz.STImage)
    assert again.config == model.config
    assert again.fingerprint() == model.fingerprint()
    np.testing.assert_array_equal(embedded(model, adata), embedded(again, adata))


def test_files_to_files(tmp_path: Path, loud: Any) -> None:
    adata = visium()
    adata.write_h5ad(tmp_path / "slice.h5ad")
    model = model_of(adata, loud)
    [done] = tz.embed_files(model, [tmp_path / "slice.h5ad"], tmp_path / "out")
    written = anndata.read_h5ad(done.target)
    np.testing.assert_array_equal(written.obsm["X_stimage"], embedded(model, adata))


def test_the_plan_counts_cells_and_takes_the_same_options() -> None:
    adata = tz.simulate.tissue(400, n_genes=60, seed=0)
    plan = model_of(adata).plan(adata, bin_um=25.0)
    assert plan.cells == 400
    assert plan.seconds > 0
    assert "400 cells" in str(plan)


def test_windows_are_looked_at_as_often_as_their_fullest_bin_has_cells(
    loud: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = tz.simulate.tissue(300, n_genes=60, seed=0)
    model = model_of(
        adata, loud, windows=WindowConfig(window=4, bin_um=25.0, channels=40, choose="spatial")
    )
    tissue = tz.Slice.from_anndata(adata)
    grid = grid_of(tissue, bin_um=25.0)
    cells = np.bincount(grid.site, minlength=grid.shape[0] * grid.shape[1])
    passes = 0
    for corner in tile_corners(grid, 4, 2):
        sites = window_sites(grid, corner, 4)
        passes += cells[sites[sites >= 0]].max()
    looked: list[int] = []
    plain = model.states
    monkeypatch.setattr(
        model, "states", lambda batch, seed: looked.append(len(batch.sites)) or plain(batch, seed)
    )
    embedded(model, adata)
    assert sum(looked) == passes > len(tile_corners(grid, 4, 2))
    monkeypatch.setattr(stimage_model, "matmul_rate", lambda *args: 1.0)
    each = 5 * model.module.flops(16, 40) / stimage_model.REACH
    assert model.plan(adata).seconds == pytest.approx(passes * each)


def test_foreign_genes_and_impossible_settings_are_refused(loud: Any) -> None:
    adata = visium()
    model = model_of(adata, loud)
    other = visium(seed=1, organism="mouse")
    other.var_names = [f"Other{i}" for i in range(60)]
    other.var = other.var[[]]
    with pytest.raises(GeneError, match="does not fit"), pytest.warns(TerrazzoWarning):
        embedded(model, other)
    with pytest.raises(ConfigError, match="window"):
        embedded(model, adata, window=0)
    with pytest.raises(ConfigError, match="tiny, small, paper"):
        tz.STImage("huge", model.vocabulary)
    with pytest.raises(ConfigError, match="n_genes"):
        tz.STImage(preset("tiny", 3), model.vocabulary)


@pytest.mark.parametrize("flavor", ["terrazzo", "paper"])
@pytest.mark.parametrize("name", ["tiny", "small", "paper"])
def test_presets_hold_the_papers_sizes(name: str, flavor: Any) -> None:
    config = preset(name, 100, flavor=flavor)
    if name == "paper":
        sizes = config.vit
        assert (
            sizes.num_layers,
            sizes.width,
            sizes.num_heads,
            sizes.ffn_size,
            sizes.decoder_layers,
        ) == (
            6,
            256,
            8,
            1024,
            2,
        )
    if flavor == "paper":
        assert (config.windows.window, config.windows.channels, config.windows.choose) == (
            16,
            512,
            "weighted",
        )
        assert (config.normalize, config.standardize, config.output) == ("paper", False, "encoder")


# hidden cells


def test_reconstruction_reads_nothing_of_hidden_cells(loud: Any) -> None:
    adata = visium()
    model, genes = model_of(adata, loud), list(map(str, adata.var_names[:10]))
    hidden = np.zeros(300, dtype=bool)
    hidden[100:140] = True
    first = model.reconstruct(adata, hidden, genes)
    poisoned = adata.copy()
    counts = poisoned.X.tolil()
    counts[100:140] = 77
    poisoned.X = counts.tocsr()
    np.testing.assert_array_equal(first, model.reconstruct(poisoned, hidden, genes))
    assert first.shape == (40, 10)
    assert np.isfinite(first).all()
    assert first.std(axis=0).max() > 0


def test_means_of_a_prediction_are_those_of_the_visible_cells(
    loud: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from terrazzo.systems.stimage import reconstruct as reconstruction

    def says_the_mean(model: Any, held: Any, sites: Any, tokens: Any, *rest: Any) -> Any:
        return np.tile(held.scale.mean[tokens], (len(sites), 1))

    adata = visium()
    model, hidden = model_of(adata, loud), np.arange(300) < 20
    monkeypatch.setattr(reconstruction, "_predict", says_the_mean)
    found = model.reconstruct(adata, hidden, list(map(str, adata.var_names)))
    shown = adata.X[20:].toarray()
    mean = np.log1p(shown / shown.sum(axis=1, keepdims=True) * 1e4).mean(axis=0)
    np.testing.assert_allclose(found, np.tile(mean, (20, 1)), rtol=1e-4)


def test_genes_that_the_model_does_not_know_are_answered_with_their_mean(loud: Any) -> None:
    adata = visium()
    model = model_of(adata[:, :50].copy(), loud)
    hidden = np.arange(300) < 20
    found = model.reconstruct(adata, hidden, [str(adata.var_names[55]), str(adata.var_names[2])])
    shown = adata.X[20:].toarray()
    mean = np.log1p(shown / shown.sum(axis=1, keepdims=True) * 1e4).mean(axis=0)
    np.testing.assert_allclose(found[:, 0], mean[55], rtol=1e-4)
    assert found[:, 1].std() > 0


def test_reconstruction_says_what_is_wrong(loud: Any) -> None:
    adata = visium()
    model = model_of(adata, loud)
    with pytest.raises(InputError, match="all cells are hidden"):
        model.reconstruct(adata, np.ones(300, dtype=bool), [str(adata.var_names[0])])
    with pytest.raises(InputError, match="no gene 'nothing'"):
        model.reconstruct(adata, np.arange(300) < 5, ["nothing"])
    with pytest.raises(InputError, match="shape"):
        model.reconstruct(adata, np.zeros(3, dtype=bool), [str(adata.var_names[0])])
    with pytest.raises(ConfigError, match="window"):
        model.reconstruct(adata, np.arange(300) < 5, [str(adata.var_names[0])], window=0)


def test_one_gene_may_be_named_alone(loud: Any) -> None:
    adata = visium()
    model, hidden, gene = model_of(adata, loud), np.arange(300) < 5, str(adata.var_names[0])
    np.testing.assert_array_equal(
        model.reconstruct(adata, hidden, gene), model.reconstruct(adata, hidden, [gene])
    )


# what a training sample is


def scheme_of(base: tz.STImage, scheme: Any, loud: Any) -> tz.STImage:
    """Return a model of another scheme with the same genes and windows."""
    config = preset("tiny", base.vocabulary.n_tokens, scheme=scheme, windows=base.config.windows)
    model = tz.STImage(config, base.vocabulary)
    loud(model.module)
    model.module.autocorrelation.copy_(base.module.autocorrelation)
    return model


@pytest.mark.parametrize("scheme", ["spot", "multi-spot", "slice"])
def test_other_schemes_give_every_spot_a_vector_too(scheme: Any, loud: Any, tmp_path: Path) -> None:
    adata = visium()
    model = scheme_of(model_of(adata, loud), scheme, loud)
    vectors = embedded(model, adata)
    assert vectors.shape == (300, 64)
    assert np.isfinite(vectors).all()
    np.testing.assert_array_equal(
        vectors, embedded(tz.load(model.save_pretrained(tmp_path / "m")), adata)
    )
    moved = adata.copy()
    counts = moved.X.tolil()
    counts[150] = counts[150][:, ::-1]
    moved.X = counts.tocsr()
    model.config = replace(model.config, normalize="paper", standardize=False)
    change = np.abs(embedded(model, moved) - embedded(model, adata)).max(axis=1) > 1e-5
    assert change[150]
    assert (change.sum() > 1) == (scheme != "spot")  # whether others take notice


@pytest.mark.parametrize("scheme", ["patch", "multi-spot", "slice"])
def test_vectors_do_not_depend_on_how_many_windows_are_worked_on_together(
    scheme: Any, loud: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU works on more of them than a CPU."""
    model = scheme_of(model_of(visium(), loud), scheme, loud)
    together = embedded(model, visium())
    monkeypatch.setitem(stimage_model.BATCH_SITES, "cpu", 36)
    np.testing.assert_allclose(together, embedded(model, visium()), atol=1e-5)


def test_slice_based_predictions_pass_the_layer_that_joins(loud: Any) -> None:
    adata = visium()
    model = scheme_of(model_of(adata, loud), "slice", loud)
    hidden, genes = np.arange(300) < 20, list(map(str, adata.var_names[:5]))
    before = model.reconstruct(adata, hidden, genes)
    with torch.no_grad():
        model.module.fusion.weight.mul_(2)
    assert np.abs(model.reconstruct(adata, hidden, genes) - before).max() > 1e-3


def test_a_preset_takes_flavor_scheme_and_windows() -> None:
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(visium())])
    model = tz.STImage(
        "tiny", vocabulary, flavor="paper", scheme="spot", windows=WindowConfig(window=4)
    )
    assert model.config == preset(
        "tiny",
        vocabulary.n_tokens,
        flavor="paper",
        scheme="spot",
        windows=WindowConfig(window=4),
    )


def test_a_scheme_and_its_settings_must_fit() -> None:
    with pytest.raises(ValueError, match="output must be 'decoder'"):
        replace(preset("tiny", 9, scheme="spot"), output="encoder")
    with pytest.raises(ValueError, match=r"vit\.context"):
        replace(preset("tiny", 9), scheme="spot")
