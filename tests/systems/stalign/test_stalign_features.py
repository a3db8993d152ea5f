"""Frozen features: made once, found by content, made again where anything that they depend on has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

import terrazzo as tz
from terrazzo.errors import OutputError, TerrazzoWarning
from terrazzo.systems.stalign.feature_cache import FeatureCache, NewArray
from terrazzo.systems.stalign.features import AlignBatch, moments, standardized

Make = Callable[..., Any]


def made(values: np.ndarray, calls: list[int] | None = None) -> Callable[[], NewArray]:
    def make() -> NewArray:
        if calls is not None:
            calls.append(1)
        return NewArray(values.shape, values.dtype, [values[:2], values[2:]])

    return make


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(5, 3), (7,), (4, 2, 2, 3), (0, 3)])
def test_an_array_is_made_once(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values, calls = np.arange(np.prod(shape)).reshape(shape).astype(dtype), []
    for _ in range(2):  # another process has no memory of the first
        found = FeatureCache(tmp_path / "cache").array(["a", 1], made(values, calls))
        np.testing.assert_array_equal(found, values)
        assert found.dtype == values.dtype
    assert len(calls) == 1
    assert FeatureCache(tmp_path / "cache").find(["a", 2]) is None
    if values.size:
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 0


def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    def half() -> Any:
        def blocks() -> Any:
            yield np.zeros((2, 3))
            raise KeyboardInterrupt

        return NewArray((4, 3), np.float64, blocks())

    cache = FeatureCache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.array("x", half)
    assert list(tmp_path.iterdir()) == []
    assert cache.find("x") is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "grown", "head"])
def test_a_damaged_file_is_noticed_and_made_again(tmp_path: Path, damage: str) -> None:
    values = np.random.default_rng(0).normal(size=(50, 4))
    path = FeatureCache(tmp_path).path("x")
    FeatureCache(tmp_path).array("x", made(values))
    whole = path.read_bytes()
    middle = len(whole) // 2
    broken = {
        "cut": whole[:-9],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "emptied": b"",
        "grown": whole + b"\0",
        "head": b"\0" * 8 + whole[8:],
    }[damage]
    path.write_bytes(broken)
    calls: list[int] = []
    with pytest.warns(TerrazzoWarning, match="cut off or damaged"):
        found = FeatureCache(tmp_path).array("x", made(values, calls))
    np.testing.assert_array_equal(found, values)
    assert calls == [1]
    assert path.read_bytes() == whole


def test_fewer_rows_than_said_are_no_array(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    with (
        pytest.warns(TerrazzoWarning, match="more or fewer bytes"),
        pytest.raises(OutputError, match="changed while"),
    ):
        cache.array("x", lambda: NewArray((9, 3), np.float32, [np.zeros((2, 3))]))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="another folder"):
        FeatureCache(tmp_path / "file" / "cache").array("x", made(np.zeros((3, 2))))


# features of a slice


@pytest.fixture(scope="module")
def adata(histology: Make) -> AnnData:
    return histology()


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the crops that the frozen encoder sees."""
    from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder

    seen: list[int] = []
    plain = FrozenImageEncoder.features

    def features(self: Any, batches: Any, advance: Any = None) -> Any:
        found = plain(self, batches, advance)
        seen.append(len(found))
        return found

    monkeypatch.setattr(FrozenImageEncoder, "features", features)
    return seen


def test_stored_features_give_the_same_vectors_and_are_not_made_again(
    align_model: Make, adata: AnnData, tmp_path: Path, counting: list[int]
) -> None:
    model = align_model()
    plain = model.embed(adata.copy(), progress=False).obsm["X_stalign"]
    counting.clear()
    first = model.embed(adata.copy(), cache=tmp_path, progress=False).obsm["X_stalign"]
    assert sum(counting) == 90
    files = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = align_model().embed(adata.copy(), cache=tmp_path, progress=False).obsm["X_stalign"]
    assert sum(counting) == 90
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == files
    np.testing.assert_array_equal(plain, first)
    np.testing.assert_array_equal(plain, again)


@pytest.mark.parametrize(
    "change", ["image", "weights", "niche pixels", "spot pixels", "spot size", "counts", "place"]
)
def test_what_depends_on_a_change_is_made_again(
    align_model: Make, adata: AnnData, tmp_path: Path, counting: list[int], change: str
) -> None:
    align_model().embed(adata.copy(), cache=tmp_path, progress=False)
    before = {p.name for p in tmp_path.iterdir()}
    counting.clear()
    other, model, options = adata.copy(), align_model(), {}
    if change == "image":
        name = next(iter(other.uns["spatial"]))
        pixels = other.uns["spatial"][name]["images"]["hires"].copy()
        pixels[0, 0] = 255 - pixels[0, 0]
        other.uns["spatial"] = {name: {**other.uns["spatial"][name], "images": {"hires": pixels}}}
    elif change == "weights":
        with torch.no_grad():
            next(model.module.image_encoder.parameters()).view(-1)[0] += 1e-3
    elif change.endswith("pixels"):
        model = align_model(**{change.replace(" ", "_"): 24})
    elif change == "spot size":
        options = {"spot_um": 60.0}
    elif change == "counts":
        other.X[0, int(other.X[0].indices[0])] += 1
    else:
        other.obsm["spatial"] = other.obsm["spatial"] + 1.0
    found = model.embed(other.copy(), cache=tmp_path, progress=False, **options).obsm["X_stalign"]
    np.testing.assert_allclose(
        found, model.embed(other.copy(), progress=False, **options).obsm["X_stalign"], atol=1e-6
    )
    assert {p.name for p in tmp_path.iterdir()} - before
    images = sum(counting) - 90  # without those of the plain run
    assert images == (0 if change == "spot pixels" else 90)


def test_parts_are_read_for_what_is_asked(align_model: Make, adata: AnnData) -> None:
    model, tissue = align_model(), tz.Slice.from_anndata(adata)
    match = model.vocabulary.match(tissue)
    genes = model.reader(tissue, match, modality="genes").read("genes")
    assert genes.spot_image is genes.niche_image is genes.colors is None
    assert genes.spot_genes is not None
    spots = model.reader(tissue, match).read("both", ["spot"])
    assert spots.niche_image is spots.niche_genes is None
    batch = model.reader(tissue, match).read().take([5, 2], first=100)
    assert batch.spot_image.shape == (2, 16, 16, 3)
    assert batch.spot_image.dtype == torch.uint8
    assert batch.spots.tolist() == [105, 102]
    assert batch.niches[0, 0] == 105
    assert batch.known.shape == (2, 60)
    joined = AlignBatch.join([batch, batch])
    assert len(joined) == 4
    assert joined.colors.shape == (4, 2, 3)


def test_within_a_slice_features_have_mean_0_and_sd_1(align_model: Make, adata: AnnData) -> None:
    model, tissue = align_model(components="whitened"), tz.Slice.from_anndata(adata)
    batch = model.reader(tissue, model.vocabulary.match(tissue)).read().take(np.arange(90))
    for part in (batch.niche_image, batch.spot_genes, batch.niche_genes):
        varied = part.std(dim=0) > 0
        assert varied.any()
        assert float(part.mean(dim=0).abs().max()) < 1e-3
        torch.testing.assert_close(
            part.std(dim=0, correction=0)[varied], torch.ones(int(varied.sum())), rtol=1e-2, atol=0
        )
    kept = align_model()
    batch = kept.reader(tissue, kept.vocabulary.match(tissue)).read().take(np.arange(90))
    for part in (batch.spot_genes, batch.niche_components):  # by one number, in proportion
        assert float(part.mean(dim=0).abs().max()) < 1e-3
        assert float(part.square().sum(dim=1).mean()) == pytest.approx(1, rel=1e-3)
    raw = align_model("paper")
    held = raw.reader(tissue, raw.vocabulary.match(tissue)).read().take(np.arange(90))
    assert float(held.niche_genes.min()) == 0  # log values as they are
    assert held.colors is None


def test_niche_values_are_means_of_log_values(align_model: Make, adata: AnnData) -> None:
    model, tissue = align_model("paper"), tz.Slice.from_anndata(adata)
    reader = model.reader(tissue, model.vocabulary.match(tissue))
    found = reader.read().take(np.arange(90)).niche_genes.numpy()
    counts, members = adata.X.toarray(), reader.aligned.niches.members
    logs = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    order = [list(model.vocabulary.token).index(t) for t in model.genes]
    column = [list(adata.var["ensembl_id"]).index(model.vocabulary.ensembl_id[i]) for i in order]
    for row in (0, 44, 89):
        np.testing.assert_allclose(found[row], logs[members[row]].mean(axis=0)[column], rtol=1e-5)


def test_moments_and_standards() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=(100, 4)).astype(np.float32)
    values[:, 2] = 1e6 + 1e-3
    mean, sd = moments(values, size=7)
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-5)
    out = standardized(values, mean, sd)
    assert (out[:, 2] == 0).all()
    np.testing.assert_allclose(out[:, 0].std(), 1, rtol=1e-4)


def test_a_model_with_other_genes_reads_other_values(
    align_model: Make, adata: AnnData, tmp_path: Path
) -> None:
    model = align_model()
    first = model.embed(adata.copy(), cache=tmp_path, progress=False).obsm["X_stalign"]
    other = tz.STAlign(replace(model.config), model.vocabulary)
    other.module.load_state_dict(model.module.state_dict())
    other.module.genes.copy_(other.module.genes.flip(0))
    found = other.embed(adata.copy(), cache=tmp_path, progress=False).obsm["X_stalign"]
    assert np.abs(first - found).max() > 1e-2
    np.testing.assert_array_equal(
        found, other.embed(adata.copy(), progress=False).obsm["X_stalign"]
    )
