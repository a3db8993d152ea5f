"""Colors and frozen encoders as baselines: the numbers by hand, and nothing of the counts in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from PIL import Image

import terrazzo as tz
from terrazzo.errors import CheckpointError, ConfigError, InputError
from terrazzo.systems.stalign.aligned import AlignedSlice
from terrazzo.systems.stalign.image_baselines import ImageBaseline, image_model
from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder

Make = Callable[..., Any]
NO_GENES = np.zeros(0, dtype=np.int64)


@pytest.fixture(scope="module")
def encoder() -> FrozenImageEncoder:
    return FrozenImageEncoder.small(image_size=32, patch_size=16, width=64, num_layers=1)


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory: pytest.TempPathFactory, encoder: FrozenImageEncoder) -> Path:
    """Write an encoder as transformers does."""
    folder = tmp_path_factory.mktemp("vision") / "tiny-vit"
    backbone: Any = encoder.backbone
    backbone.save_pretrained(folder)
    return folder


def vectors(model: Any, adata: AnnData, **options: Any) -> np.ndarray:
    return np.asarray(model.embed(adata.copy(), key_added="X", progress=False, **options).obsm["X"])


def without_counts(adata: AnnData) -> AnnData:
    out = adata.copy()
    out.X = sp.csr_matrix(out.shape, dtype=np.float32)
    return out


def test_colors_by_hand(histology: Make) -> None:
    adata, baseline = histology(), ImageBaseline()
    found = vectors(baseline, adata)
    assert found.shape == (90, 12)
    assert found.dtype == np.float32
    cut = AlignedSlice.make(tz.Slice.from_anndata(adata), baseline.config, NO_GENES)
    for first, crops in ((0, cut.spots), (6, cut.surroundings)):
        assert crops is not None
        for row in (0, 50, 89):
            pixels = crops[row].reshape(-1, 3) / 255
            np.testing.assert_allclose(found[row, first : first + 3], pixels.mean(0), rtol=1e-5)
            np.testing.assert_allclose(
                found[row, first + 3 : first + 6], pixels.std(0), rtol=1e-4, atol=1e-6
            )
    assert baseline.default_key == "X_colors"
    assert ImageBaseline("colors-own").default_key == "X_colors_own"


def test_by_slice_takes_brightness_away(histology: Make) -> None:
    adata = histology()
    darker = adata.copy()
    entry = next(iter(darker.uns["spatial"].values()))["images"]
    entry["hires"] = (np.asarray(entry["hires"]) * 0.5).astype(np.uint8)
    own = ImageBaseline("colors-own")
    found = vectors(own, adata)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(0), 1, atol=1e-4)
    assert np.corrcoef(found.ravel(), vectors(own, darker).ravel())[0, 1] > 0.99
    assert np.abs(vectors(ImageBaseline(), darker) - vectors(ImageBaseline(), adata)).max() > 0.2


@pytest.mark.parametrize("name", ["colors", "colors-own", "encoder"])
def test_counts_say_nothing(histology: Make, encoder: FrozenImageEncoder, name: str) -> None:
    baseline = ImageBaseline(name, encoder=encoder if name == "encoder" else None)
    adata = histology()
    np.testing.assert_array_equal(
        vectors(baseline, adata), vectors(baseline, without_counts(adata))
    )


def test_a_frozen_encoder_sees_niches_and_is_found_in_the_cache(
    histology: Make, encoder: FrozenImageEncoder, tmp_path: Path
) -> None:
    adata, baseline = histology(), ImageBaseline("encoder", encoder=encoder)
    cut = AlignedSlice.make(tz.Slice.from_anndata(adata), baseline.config, NO_GENES)
    assert cut.surroundings is not None
    assert cut.surroundings.pixels == 32
    found = vectors(baseline, adata, cache=tmp_path)
    np.testing.assert_allclose(
        found, encoder.features(cut.surroundings.batches(64)), rtol=1e-5, atol=1e-6
    )
    files = sorted(tmp_path.iterdir())
    assert files
    np.testing.assert_array_equal(vectors(baseline, adata, cache=tmp_path), found)
    assert sorted(tmp_path.iterdir()) == files
    own = vectors(ImageBaseline("encoder-own", encoder=encoder), adata)
    np.testing.assert_allclose(own, (found - found.mean(0)) / found.std(0), rtol=1e-3, atol=1e-3)


def test_provenance(histology: Make, encoder: FrozenImageEncoder) -> None:
    adata = ImageBaseline("encoder", encoder=encoder, title="My ViT").embed(
        histology().copy(), progress=False
    )
    record = adata.uns["terrazzo"]["X_encoder"]
    assert (record["model"], record["model_type"]) == ("My ViT", "image baseline:encoder")
    assert record["checkpoint_sha256"] == encoder.fingerprint()
    assert record["spot_um"] == 55


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "colrs"}, "Did you mean 'colors'"),
        (
            {"name": "zzz"},
            "There are: colors, colors-own, efficientnet-lite0, .*, encoder, encoder-own",
        ),
        ({"name": "encoder"}, "needs one"),
        ({"name": "colors", "encoder": "folder"}, "belongs to 'encoder'"),
    ],
)
def test_what_there_is_not(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ImageBaseline(**given)


def test_no_image(histology: Make) -> None:
    adata = histology().copy()
    del adata.uns["spatial"]
    with pytest.raises(InputError, match="has no histology image"):
        ImageBaseline().embed(adata)


def test_three_ways_to_a_model_of_images(
    histology: Make,
    align_model: Make,
    vision_folder: Path,
    tmp_path: Path,
    encoder: FrozenImageEncoder,
) -> None:
    adata, align = histology(), align_model()
    folder = align.save_pretrained(tmp_path / "align")
    expected = {
        "colors": vectors(ImageBaseline(), adata),
        str(folder): vectors(align, adata, modality="image"),
        str(vision_folder): vectors(ImageBaseline("encoder", encoder=vision_folder), adata),
    }
    for source, found in expected.items():
        model = image_model(source)
        out = model.embed(adata.copy(), progress=False)
        np.testing.assert_allclose(out.obsm["X_image"], found, rtol=1e-5, atol=1e-5)
        blind = model.embed(without_counts(adata), progress=False)
        np.testing.assert_array_equal(blind.obsm["X_image"], out.obsm["X_image"])
    assert image_model(vision_folder).title == "tiny-vit"
    assert image_model(folder).title == "ST-Align"


def test_what_reads_no_image_alone(tiny_model: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a SToFM, which sees no image"):
        image_model(tiny_model().save_pretrained(tmp_path / "stofm"))
    with pytest.raises(
        CheckpointError,
        match="is not a folder, and not efficientnet-lite0-own, colors or colors-own",
    ):
        image_model(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        image_model(tmp_path)


def test_a_picture_beside_its_slice(histology: Make, tmp_path: Path) -> None:
    adata = histology().copy()
    entry = next(iter(adata.uns.pop("spatial").values()))
    scale = float(entry["scalefactors"]["tissue_hires_scalef"])
    Image.fromarray(np.asarray(entry["images"]["hires"])).save(tmp_path / "a.png")
    adata.write_h5ad(tmp_path / "a.h5ad")
    model = image_model("colors")
    with pytest.raises(InputError, match=r"a\.h5ad: a has no histology image"):
        model.read(tmp_path / "a.h5ad")
    (tmp_path / "a.json").write_text(json.dumps({"image": "a.png", "scale": scale}))
    found, picture = model.read(tmp_path / "a.h5ad")
    np.testing.assert_allclose(
        found.obsm["X_image"], vectors(ImageBaseline(), histology()), atol=1e-6
    )
    assert picture is not None
    assert "spatial" not in found.uns  # the picture stays out of what is written
    (tmp_path / "a.json").write_text(json.dumps({"image": "../a.png", "scale": scale}))
    with pytest.raises(InputError, match="must name a file of the same folder"):
        model.read(tmp_path / "a.h5ad")
