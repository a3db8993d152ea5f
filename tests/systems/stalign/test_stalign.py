"""ST-Align: every spot a vector, of one scale or both, from image, genes or both; what cannot be used is said."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from anndata import AnnData
from PIL import Image

import terrazzo as tz
from terrazzo import keys
from terrazzo.errors import CheckpointError, ConfigError, GeneError, InputError, TerrazzoWarning
from terrazzo.systems.stalign.config import preset

Make = Callable[..., Any]


def embedded(model: Any, adata: AnnData, **options: Any) -> np.ndarray:
    return np.asarray(model.embed(adata.copy(), progress=False, **options).obsm["X_stalign"])


def details(adata: AnnData) -> Any:
    return json.loads(adata.uns[keys.UNS]["X_stalign"]["details"])


def picture(adata: AnnData) -> np.ndarray:
    return np.asarray(next(iter(adata.uns["spatial"].values()))["images"]["hires"])


def scale_of(adata: AnnData) -> float:
    return float(next(iter(adata.uns["spatial"].values()))["scalefactors"]["tissue_hires_scalef"])


@pytest.fixture(scope="module")
def adata(histology: Make) -> AnnData:
    return histology()


@pytest.fixture(scope="module")
def model(align_model: Make) -> Any:
    return align_model()


def test_every_spot_gets_two_blocks_of_one_norm(model: Any, adata: AnnData) -> None:
    out = model.embed(adata.copy(), progress=False)
    vectors = out.obsm["X_stalign"]
    assert vectors.shape == (90, 256)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert (vectors.std(axis=0) > 0).all()
    for name in ("own", "niche"):
        block = tz.get(out, f"X_stalign:{name}")
        assert block.shape == (90, 128)
        assert np.linalg.norm(block, axis=1).mean() == pytest.approx(1, rel=1e-5)
    record = out.uns[keys.UNS]["X_stalign"]
    assert (record["model_type"], record["trained"]) == ("stalign", False)
    found = details(out)
    assert (found["modality"], found["scale"], found["spot_um"]) == ("both", "both", 55.0)
    microns = adata.uns["simulation"]["microns_per_pixel"] / scale_of(adata)
    assert found["microns_per_pixel"] == pytest.approx(
        microns, rel=0.02
    )  # by the pitch of the array
    assert not out.obs[keys.EMPTY].any()


@pytest.mark.parametrize("modality", ["both", "genes", "image"])
def test_a_scale_alone_is_its_block(model: Any, adata: AnnData, modality: Any) -> None:
    out = model.embed(adata.copy(), modality=modality, progress=False)
    for scale, name in (("spot", "own"), ("niche", "niche")):
        alone = model.embed(adata.copy(), scale=scale, modality=modality, progress=False)
        vectors = alone.obsm["X_stalign"]
        assert vectors.shape == (90, 128 if modality == "both" else 64)
        assert "blocks" not in details(alone)
        norm = np.linalg.norm(vectors, axis=1).mean()
        np.testing.assert_allclose(vectors / norm, tz.get(out, f"X_stalign:{name}"), atol=1e-5)


def test_each_vector_is_made_of_what_its_modality_names(model: Any, adata: AnnData) -> None:
    genes_only, image_only = adata.copy(), adata.copy()
    rng = np.random.default_rng(0)
    image_only.X = image_only.X[:, rng.permutation(60)]
    library = next(iter(genes_only.uns["spatial"]))
    drawn = rng.integers(256, size=picture(adata).shape, dtype=np.uint8)
    genes_only.uns["spatial"] = {
        library: {**genes_only.uns["spatial"][library], "images": {"hires": drawn}}
    }
    for modality, changed in (("genes", genes_only), ("image", image_only)):
        np.testing.assert_array_equal(
            embedded(model, adata, modality=modality), embedded(model, changed, modality=modality)
        )
        assert np.abs(embedded(model, adata) - embedded(model, changed)).max() > 1e-2


def test_genes_need_no_image_and_the_image_no_genes(model: Any, adata: AnnData) -> None:
    bare = adata.copy()
    bare.uns.pop("spatial")
    np.testing.assert_allclose(
        embedded(model, bare, modality="genes"), embedded(model, adata, modality="genes"), atol=1e-5
    )
    foreign = adata.copy()
    foreign.var_names = [f"Other{i}" for i in range(60)]
    foreign.var = foreign.var[[]]
    np.testing.assert_array_equal(
        embedded(model, foreign, modality="image"), embedded(model, adata, modality="image")
    )
    with pytest.raises(GeneError, match="does not fit"):
        embedded(model, foreign)


def test_the_order_of_rows_does_not_matter(model: Any, adata: AnnData) -> None:
    order = np.random.default_rng(0).permutation(90)
    np.testing.assert_allclose(
        embedded(model, adata)[order], embedded(model, adata[order]), atol=2e-5
    )


def test_a_niche_is_the_spot_and_its_three_nearest(model: Any, adata: AnnData) -> None:
    by_training: dict[str, Any] = {"standardize": "training", "normalize": "paper"}
    genes = replace(model.config.gene_encoder, **by_training)
    config = replace(model.config, gene_encoder=genes, **by_training)  # no statistic of the slice
    plain = tz.STAlign(config, model.vocabulary)
    plain.module.load_state_dict(model.module.state_dict())
    tissue = tz.Slice.from_anndata(adata)
    members = plain.reader(
        tissue, plain.vocabulary.match(tissue), modality="genes"
    ).aligned.niches.members
    spot = 40
    other = adata.copy()
    counts = other.X.tolil()
    counts[spot] = counts[spot][:, ::-1]  # the same total, other genes
    other.X = counts.tocsr()
    pair = [
        plain.embed(a.copy(), scale="niche", modality="genes", progress=False)
        for a in (adata, other)
    ]
    moved = np.abs(pair[0].obsm["X_stalign"] - pair[1].obsm["X_stalign"]).max(axis=1) > 1e-6
    assert set(np.flatnonzero(moved)) == {row for row in range(90) if spot in members[row]}
    assert members.shape == (90, 4)


def test_crops_follow_the_image_in_micrometers(model: Any, adata: AnnData) -> None:
    tissue = tz.Slice.from_anndata(adata)
    match = model.vocabulary.match(tissue)
    cut = model.reader(tissue, match).aligned
    pixels = 55.0 / cut.microns_per_pixel
    np.testing.assert_allclose(cut.spots.boxes[:, 2:] - cut.spots.boxes[:, :2], pixels, rtol=1e-6)
    np.testing.assert_allclose(
        cut.spots.boxes[:, :2] + pixels / 2, adata.obsm["spatial"] * scale_of(adata), rtol=1e-6
    )
    sides = cut.surroundings.boxes[:, 2:] - cut.surroundings.boxes[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1])  # square: tissue keeps its proportions
    assert (
        sides >= (55 + 100 * 0.9) / cut.microns_per_pixel
    ).all()  # two spots beside each other, at least
    wide = model.reader(tissue, match, spot_um=110.0).aligned
    np.testing.assert_allclose(
        wide.spots.boxes[:, 2:] - wide.spots.boxes[:, :2], 2 * pixels, rtol=1e-6
    )


def test_twice_the_pixels_of_one_image_are_the_same_crops(
    align_model: Make, adata: AnnData
) -> None:
    model = align_model(spot_pixels=8, niche_pixels=8)  # so small that both are shrunken
    large = adata.copy()
    name = next(iter(large.uns["spatial"]))
    entry = large.uns["spatial"][name]
    doubled = picture(adata).repeat(2, axis=0).repeat(2, axis=1)
    factors = {**entry["scalefactors"], "tissue_hires_scalef": 2 * scale_of(adata)}
    large.uns["spatial"] = {name: {"images": {"hires": doubled}, "scalefactors": factors}}
    np.testing.assert_allclose(
        embedded(model, adata, modality="image"),
        embedded(model, large, modality="image"),
        atol=0.05,
    )


@pytest.mark.parametrize("flavor", ["terrazzo", "paper"])
@pytest.mark.parametrize(("adaptive", "fusion"), [(True, "concatenation"), (False, "attention")])
def test_the_ablations_of_table_3_run(
    align_model: Make, adata: AnnData, flavor: Any, adaptive: bool, fusion: Any
) -> None:
    sides = {} if adaptive else {"spot_pixels": 32}
    vectors = embedded(align_model(flavor, adaptive, fusion, **sides), adata)
    residual = adaptive and flavor == "terrazzo"
    assert vectors.shape == (90, 256 if residual else 128)
    if flavor == "paper" or not adaptive:
        assert (vectors.std(axis=0) > 0).all()


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_slices_of_few_spots(align_model: Make, adata: AnnData, kept: int) -> None:
    few = adata[:kept].copy()
    for modality in ("both", "genes", "image"):
        vectors = embedded(align_model(), few, modality=modality)
        assert vectors.shape == (kept, 256 if modality == "both" else 128)
        assert np.isfinite(vectors).all()


def test_spots_without_counts_are_flagged(model: Any, adata: AnnData, caplog: Any) -> None:
    empty = adata.copy()
    counts = empty.X.tolil()
    counts[[3, 9]] = 0
    empty.X = counts.tocsr()
    out = model.embed(empty, progress=False)
    assert out.obs[keys.EMPTY].to_numpy().nonzero()[0].tolist() == [3, 9]
    assert np.isfinite(out.obsm["X_stalign"]).all()
    assert "2 cells have no counts" in caplog.text


def test_single_cells_need_the_size_of_a_crop(model: Any, histology: Make) -> None:
    cells = histology(layout="cells")
    with pytest.raises(ConfigError, match=r"spot_um="):
        embedded(model, cells)
    assert embedded(model, cells, spot_um=40.0).shape == (90, 256)


# checkpoints


def test_a_checkpoint_comes_back_as_it_was(model: Any, adata: AnnData, tmp_path: Path) -> None:
    again = tz.load(model.save_pretrained(tmp_path / "model"))
    assert isinstance(again, tz.STAlign)
    assert again.config == model.config
    assert again.fingerprint() == model.fingerprint()
    np.testing.assert_array_equal(embedded(model, adata), embedded(again, adata))


def test_a_checkpoint_of_the_paper_flavor_keeps_means_and_deviations(
    align_model: Make, adata: AnnData, tmp_path: Path
) -> None:
    model = align_model("paper")
    again = tz.load(model.save_pretrained(tmp_path / "model"))
    assert float(again.module.net.ae_genes.mean.abs().max()) > 0
    np.testing.assert_array_equal(embedded(model, adata), embedded(again, adata))


def test_frozen_encoders_get_no_gradient(model: Any, adata: AnnData) -> None:
    tissue = tz.Slice.from_anndata(adata)
    features = model.reader(tissue, model.vocabulary.match(tissue)).read()
    module = model.module.train()
    try:
        states = module.states(features.take(np.arange(16)))
        sum(s.square().sum() for s in states.values()).backward()
        assert all(
            p.grad is not None and p.grad.abs().max() > 0
            for n, p in module.net.named_parameters()
            if not n.startswith("heads.")  # only the contrasts use them
        )
        frozen = [*module.image_encoder.parameters(), *module.gene_encoder.parameters()]
        assert frozen
        assert all(p.grad is None and not p.requires_grad for p in frozen)
        assert not module.image_encoder.training
        assert not module.gene_encoder.training
    finally:
        module.zero_grad()
        model.module.eval()


def test_given_encoders_are_inside_the_checkpoint(
    adata: AnnData, tmp_path: Path, tiny_model: Make, simulated: Make
) -> None:
    from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder

    eye = FrozenImageEncoder.small(seed=5, image_size=32, patch_size=16, width=64, num_layers=1)
    eye.backbone.save_pretrained(tmp_path / "eye")
    source = tiny_model()
    model = tz.STAlign("tiny", image_encoder=tmp_path / "eye", gene_encoder=source)
    assert model.vocabulary is source.vocabulary
    assert model.provenance["image_encoder"] == "eye"
    assert model.provenance["gene_encoder"] == "SToFM, random"
    first = embedded(model, adata)
    again = tz.load(model.save_pretrained(tmp_path / "model"))
    for file in (tmp_path / "eye").iterdir():
        file.unlink()
    np.testing.assert_array_equal(first, embedded(again, adata))
    cells = source.module.cell_encoder.state_dict()
    held = again.module.gene_encoder.encoder.state_dict()
    assert all(torch.equal(v, held[k]) for k, v in cells.items())
    other = tz.Vocabulary.from_slices([tz.Slice.from_anndata(simulated(50, 40, atlas_seed=3))])
    with pytest.raises(ConfigError, match="another vocabulary"):
        tz.STAlign("tiny", other, gene_encoder=source)


def test_impossible_settings_are_refused(model: Any, adata: AnnData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tiny, small, paper"):
        tz.STAlign("huge", model.vocabulary)
    with pytest.raises(ConfigError, match="needs a vocabulary"):
        tz.STAlign("tiny")
    with pytest.raises(ConfigError, match="n_genes"):
        tz.STAlign(preset("tiny", 100), model.vocabulary)
    with pytest.raises(ConfigError, match="scale is 'tissue'"):
        embedded(model, adata, scale="tissue")
    with pytest.raises(ConfigError, match="modality is 'text'"):
        embedded(model, adata, modality="text")
    with pytest.raises(ConfigError, match="one image cannot belong to 2 slices"):
        model.embed([adata, adata], image=tz.TissueImage.from_array(picture(adata)))
    with pytest.raises(CheckpointError, match="no config"):
        tz.STAlign("tiny", model.vocabulary, image_encoder=tmp_path)


@pytest.mark.parametrize("flavor", ["terrazzo", "paper"])
@pytest.mark.parametrize("name", ["tiny", "small", "paper"])
def test_presets_hold_the_papers_sizes(name: str, flavor: Any) -> None:
    config = preset(name, 20_000, flavor=flavor)
    assert config.neighbors == 3
    if name == "paper":
        genes = config.net.niche_genes
        assert (genes.num_layers, genes.num_heads, genes.dropout, genes.n_genes) == (
            6,
            8,
            0.1,
            2000,
        )
        assert (config.spot_pixels, config.net.spot_side, config.niche_pixels) == (28, 224, 224)
        assert (config.net.spot_image.size, config.net.dim) == ("resnet50", 512)
    if flavor == "paper":
        assert (config.normalize, config.standardize, config.colors, config.square) == (
            "paper",
            "training",
            "fixed",
            False,
        )


# images that are not as they should be


def test_no_image_is_said_with_what_to_pass(model: Any, adata: AnnData) -> None:
    bare = adata.copy()
    bare.uns.pop("spatial")
    for run in (embedded, lambda model, adata, **options: model.plan(adata, **options)):
        with pytest.raises(InputError, match=r"no histology image.*modality='genes'"):
            run(model, bare)
        with pytest.raises(InputError, match=r"no histology image.*scalefactors\)\.$"):
            run(model, bare, modality="image")


def test_an_image_without_scale_is_said(model: Any, adata: AnnData) -> None:
    bare = adata.copy()
    bare.uns.pop("spatial")
    bare.uns["technology"] = "unknown"
    bare.obs = bare.obs.drop(columns=[keys.ARRAY_ROW, keys.ARRAY_COL])
    image = tz.TissueImage.from_array(picture(adata), scale=scale_of(adata))
    with pytest.raises(InputError, match="micrometers per pixel of its image are not known"):
        embedded(model, bare, image=image, spot_um=55.0)
    microns = adata.uns["simulation"]["microns_per_pixel"] / scale_of(adata)
    known = replace(image, microns_per_pixel=microns)  # the coordinates have no unit, the image has
    found = embedded(model, bare, image=known, spot_um=55.0)
    np.testing.assert_allclose(
        found, embedded(model, adata), atol=0.1
    )  # but for the array's own idea of its pitch


def test_two_scales_that_contradict_each_other_are_said(model: Any, adata: AnnData) -> None:
    image = tz.TissueImage.from_array(picture(adata), microns_per_pixel=50.0, scale=scale_of(adata))
    with pytest.raises(InputError, match=r"50 um a pixel.*should be"):
        embedded(model, adata, image=image)


def test_spots_outside_the_image_are_said(model: Any, adata: AnnData) -> None:
    shifted = adata.copy()
    shifted.obsm["spatial"] = shifted.obsm["spatial"] + np.ptp(adata.obsm["spatial"], axis=0) * 2
    with pytest.raises(InputError, match="90 of 90 spots are outside the image"):
        embedded(model, shifted)


def test_swapped_coordinates_are_said(model: Any, histology: Make) -> None:
    adata = histology(400)
    long = adata[
        np.abs(adata.obsm["spatial"][:, 1] - adata.obsm["spatial"][:, 1].mean()) < 900
    ].copy()
    image = tz.TissueImage.from_array(
        picture(adata)[: picture(adata).shape[0]], scale=scale_of(adata)
    )
    narrow = long.obsm["spatial"] - [0, long.obsm["spatial"][:, 1].min() - 200]
    rows = int((np.ptp(narrow[:, 1]) + 400) * scale_of(adata))
    long.obsm["spatial"] = narrow[:, ::-1].copy()
    strip = replace(image, pixels=np.ascontiguousarray(image.pixels[:rows]))
    with pytest.raises(InputError, match=r"swap.*\[:, ::-1\]"):
        embedded(model, long, image=strip, modality="image")


@pytest.mark.parametrize("kind", ["gray", "RGBA", "16-bit", "CMYK"])
def test_pictures_of_any_kind(model: Any, adata: AnnData, tmp_path: Path, kind: str) -> None:
    plain = picture(adata)
    path, same = tmp_path / "he.png", plain
    if kind == "gray":
        held = Image.fromarray(plain).convert("L")
        held.save(path)
        same = np.asarray(held)[..., None].repeat(3, axis=2)
    elif kind == "RGBA":
        Image.fromarray(np.dstack([plain, np.full(plain.shape[:2], 255, np.uint8)])).save(path)
    elif kind == "16-bit":
        tifffile = pytest.importorskip("tifffile")
        path = tmp_path / "he.tif"
        tifffile.imwrite(path, plain.astype(np.uint16) * 257, photometric="rgb")
    else:
        path = tmp_path / "he.jpg"
        Image.fromarray(plain).convert("CMYK").save(path, quality=95)
    found = embedded(
        model, adata, image=tz.TissueImage.from_file(path, scale=scale_of(adata)), modality="image"
    )
    wanted = embedded(
        model, adata, image=tz.TissueImage.from_array(same, scale=scale_of(adata)), modality="image"
    )
    np.testing.assert_allclose(found, wanted, atol=0.3 if kind == "CMYK" else 1e-5)


def test_broken_pictures_are_refused(model: Any, adata: AnnData, tmp_path: Path) -> None:
    whole = tmp_path / "he.jpg"
    Image.fromarray(picture(adata)).save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(InputError, match="truncated"):
        embedded(model, adata, image=cut)
    bomb = tmp_path / "bomb.png"
    Image.new("1", (8, 8)).save(bomb)
    head = bytearray(bomb.read_bytes())
    head[16:24] = struct.pack(">II", 40_000, 40_000)
    head[29:33] = struct.pack(">I", zlib.crc32(head[12:29]))
    bomb.write_bytes(head)
    with pytest.raises(InputError, match="max_pixels"):
        embedded(model, adata, image=bomb)


def test_normalized_values_are_refused_where_genes_are_read(model: Any, adata: AnnData) -> None:
    logged = adata.copy()
    logged.X = np.log1p(logged.X.toarray())
    with (
        pytest.raises(InputError, match="ST-Align scales counts"),
        pytest.warns(TerrazzoWarning, match="normalized"),
    ):
        embedded(model, logged, allow_normalized=True)
    with pytest.warns(TerrazzoWarning, match="normalized"):
        found = embedded(model, logged, allow_normalized=True, modality="image")
    np.testing.assert_array_equal(found, embedded(model, adata, modality="image"))


# files


def test_files_to_files(model: Any, adata: AnnData, tmp_path: Path) -> None:
    bare = adata.copy()
    bare.uns.pop("spatial")
    bare.write_h5ad(tmp_path / "slice.h5ad")
    Image.fromarray(picture(adata)).save(tmp_path / "he.png")
    options: dict[str, Any] = {"cache": tmp_path / "cache"}

    def run(scale: float) -> Any:
        image = tz.TissueImage.from_file(tmp_path / "he.png", scale=scale)
        [done] = tz.embed_files(
            model, [tmp_path / "slice.h5ad"], tmp_path / "out", image=image, **options
        )
        return done

    done = run(scale_of(adata))
    np.testing.assert_allclose(
        anndata.read_h5ad(done.target).obsm["X_stalign"], embedded(model, adata), atol=1e-5
    )
    assert run(scale_of(adata)).status == "unchanged"
    mirrored = Image.fromarray(np.ascontiguousarray(picture(adata)[:, ::-1]))
    mirrored.save(tmp_path / "he.png")  # another picture under the same name
    assert run(scale_of(adata)).status == "embedded"
    with pytest.raises(ConfigError, match="one image cannot belong to 2 slices"):
        list(
            tz.embed_files(
                model,
                [tmp_path / "slice.h5ad"] * 2,
                tmp_path / "out",
                image=tz.TissueImage.from_file(tmp_path / "he.png"),
            )
        )


def test_the_plan_takes_the_same_options(model: Any, adata: AnnData) -> None:
    plan = model.plan(adata, modality="image", scale="spot", cache="anywhere", progress=False)
    assert plan.cells == 90
    assert 0 < plan.seconds < model.plan(adata).seconds * 10
    assert "90 cells" in str(plan)
