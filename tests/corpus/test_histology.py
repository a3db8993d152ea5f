"""Histology in a corpus: from a table or the slice itself, by tile, lazily back; bad pictures make failed slices."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image

from terrazzo import corpus
from terrazzo.corpus import histology
from terrazzo.errors import CorpusError, InputError, TerrazzoWarning
from terrazzo.images import TissueImage
from terrazzo.images.pixels import LazyPixels
from terrazzo.slices import Slice, read


def build(sources: Any, out: Path, **options: Any) -> corpus.Corpus:
    defaults = {"min_genes": 0, "vocabulary": False, "scheduler": "synchronous", "progress": False}
    return corpus.build(sources, out, **{**defaults, **options})


@pytest.fixture
def spots(simulated: Callable[..., AnnData]) -> AnnData:
    """A Visium slice with a picture; without other columns, since every column is three files of a member."""
    adata = simulated(90, 40, layout="visium", image=True, image_px=120, name="spots")
    adata.obs = adata.obs[["array_row", "array_col"]]
    return adata


@pytest.fixture(scope="module")
def stored(
    simulated: Callable[..., AnnData], tmp_path_factory: pytest.TempPathFactory
) -> corpus.Corpus:
    """A corpus of one slice that has two libraries."""
    folder = tmp_path_factory.mktemp("stored")
    adata = simulated(90, 40, layout="visium", image=True, image_px=120, name="spots")
    adata.obs = adata.obs[["array_row", "array_col"]].assign(library_id="slide 1")
    adata.uns["spatial"] = {
        "slide 1": adata.uns["spatial"]["spots"],
        "slide 2": {"scalefactors": {"a": 1.0}},
    }
    adata.write_h5ad(folder / "spots.h5ad")
    return build(folder / "spots.h5ad", folder / "out")


def copied(stored: corpus.Corpus, out: Path) -> tuple[Path, corpus.Corpus]:
    """Return the slice's file and a copy of its corpus."""
    shutil.copytree(stored.folder, out)
    return Path(stored.row("spots")["source"]), corpus.Corpus.open(out)


def picture_of(adata: AnnData) -> tuple[np.ndarray, float]:
    entry = adata.uns["spatial"]["spots"]
    return np.asarray(entry["images"]["hires"]), float(entry["scalefactors"]["tissue_hires_scalef"])


def listed(adata: AnnData, folder: Path, file: str = "a.png", **columns: Any) -> Path:
    """Write a slice without its picture, the picture beside it, and the table that joins them."""
    pixels, scale = picture_of(adata)
    bare = adata.copy()
    del bare.uns["spatial"]
    bare.write_h5ad(folder / "a.h5ad")
    Image.fromarray(pixels).save(folder / "a.png")
    row = {"path": "a.h5ad", "image": file, "image_scale": scale, **columns}
    pd.DataFrame([row]).to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def test_a_picture_comes_back_lazily_and_whole(stored: corpus.Corpus) -> None:
    built, wanted = stored, read(stored.row("spots")["source"]).image
    found = built.image("spots")
    assert found is not None
    assert wanted is not None
    assert isinstance(found.pixels, LazyPixels)
    assert np.array_equal(np.asarray(found.pixels), wanted.pixels)
    assert found.scale == pytest.approx(wanted.scale)
    assert found.microns_per_pixel == pytest.approx(wanted.microns_per_pixel)
    assert found.content_hash == wanted.content_hash  # what was cached of one serves the other
    here, there = built.slice("spots"), anndata.read_zarr(built.path("spots"))
    assert isinstance(here.image.pixels, LazyPixels)
    assert np.array_equal(Slice.from_anndata(there).image.pixels, wanted.pixels)
    boxes = np.column_stack([there.obsm["spatial"] - 40, there.obsm["spatial"] + 40])
    assert np.array_equal(found.box_crops(boxes, 8)[:], wanted.box_crops(boxes, 8)[:])


def test_a_table_names_the_picture_and_its_scale(spots: AnnData, tmp_path: Path) -> None:
    pixels, scale = picture_of(spots)
    built = build(listed(spots, tmp_path, image_scale_y=1.01 * scale), tmp_path / "out")
    found = built.image("a")
    assert np.array_equal(np.asarray(found.pixels), pixels)
    assert found.scales == pytest.approx([scale, 1.01 * scale])
    assert found.microns_per_pixel == pytest.approx(built.slice("a").coord_scale / scale)
    assert Slice.from_anndata(anndata.read_zarr(built.path("a"))).image.scales == pytest.approx(
        found.scales
    )
    assert corpus.verify(built, progress=False) == []
    kept = built.content_hash()
    assert build(tmp_path / "t.csv", tmp_path / "out").content_hash() == kept
    Image.fromarray(255 - pixels).save(tmp_path / "a.png")
    again = build(tmp_path / "t.csv", tmp_path / "out")
    assert again.content_hash() != kept
    assert np.array_equal(np.asarray(again.image("a").pixels), 255 - pixels)


def test_a_picture_without_scale_is_none_and_noted(spots: AnnData, tmp_path: Path) -> None:
    del spots.uns["spatial"]["spots"]["scalefactors"]["tissue_hires_scalef"]
    spots.write_h5ad(tmp_path / "a.h5ad")
    built = build(tmp_path / "a.h5ad", tmp_path / "out")
    assert built.image("a") is None
    assert built.slice("a").image is None
    assert any("no scale" in note for note in built.about["notes"]["a"])


class Watched(LazyPixels):
    """Pixels that are made where they are asked for, and remember the largest region."""

    largest = 0

    def _region(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        self.largest = max(self.largest, (y1 - y0) * (x1 - x0))
        y, x = np.mgrid[y0:y1, x0:x1]
        return np.stack([y % 251, x % 241, (x + y) % 239], axis=-1).astype(np.uint8)


def test_a_large_picture_is_copied_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zarr

    monkeypatch.setattr(histology, "TILE", 16)
    monkeypatch.setattr(histology, "SHARD", 64)
    pixels = Watched(300, 130)
    group = zarr.open_group(tmp_path / "z", mode="w")
    histology.write_image(group, TissueImage(pixels))
    assert pixels.largest == 64 * 64
    array = group["hires"]
    assert np.array_equal(array[:], pixels[:, :])
    assert array.chunks == (16, 16, 3)
    files = [path for path in (tmp_path / "z" / "hires" / "c").rglob("*") if path.is_file()]
    assert len(files) == 5 * 3


def test_a_tile_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import zarr

    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    array, reads = zarr.create_array({}, data=pixels, chunks=(16, 16, 3)), []
    whole = zarr.Array.__getitem__
    monkeypatch.setattr(
        zarr.Array, "__getitem__", lambda self, at: (reads.append(at), whole(self, at))[1]
    )
    tiles = histology.CachedTiles(array)
    image = TissueImage.from_lazy(tiles)
    for box in (
        (0, 16, 0, 16),
        (3, 40, 10, 70),
        (49, 50, 69, 70),
        (15, 17, 31, 33),
        (0, 50, 0, 70),
    ):
        y0, y1, x0, x1 = box
        assert np.array_equal(image.pixels[y0:y1, x0:x1], pixels[y0:y1, x0:x1]), box
    assert len(reads) == 4 * 5
    monkeypatch.setattr(histology, "CACHED_BYTES", 3 * 16 * 16 * 3)
    for _ in range(2):
        assert np.array_equal(image.pixels[:, :], pixels)
    assert sum(tile.nbytes for tile in tiles._tiles.values()) <= 3 * 16 * 16 * 3


def test_a_missing_file_is_not_white_tissue(stored: corpus.Corpus, tmp_path: Path) -> None:
    source, built = copied(stored, tmp_path / "out")
    (built.path("spots") / "uns/spatial/slide 1/images/hires/c/0/0/0").unlink()
    with pytest.raises(CorpusError, match="parts of this picture are missing"):
        built.image("spots")
    problems = corpus.verify(built, progress=False)
    assert any("hires/c/0/0/0 is missing" in problem for problem in problems)
    build(source, tmp_path / "out")
    assert built.image("spots") is not None


@pytest.mark.parametrize("kind", ["truncated", "text", "tiff"])
def test_a_damaged_picture_is_a_failed_slice(
    spots: AnnData, stored: corpus.Corpus, tmp_path: Path, kind: str
) -> None:
    import tifffile

    table = listed(spots, tmp_path, "a.tif" if kind == "tiff" else "a.png")
    pixels, _ = picture_of(spots)
    if kind == "tiff":  # a tile of it: the header is sound, and damage shows as it is copied
        tifffile.imwrite(
            tmp_path / "a.tif", pixels, tile=(64, 64), compression="zlib", photometric="rgb"
        )
        whole = bytearray((tmp_path / "a.tif").read_bytes())
        with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
            offset, count = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]
        whole[offset : offset + count] = bytes(count)
        (tmp_path / "a.tif").write_bytes(whole)
    else:
        whole = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(
            whole[: len(whole) // 2] if kind == "truncated" else b"not a picture"
        )
    with pytest.raises(CorpusError, match=r"a: .*a\.(png|tif)"):
        build(table, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith(".part")]
    source, _ = copied(stored, tmp_path / "both")
    with pytest.warns(TerrazzoWarning, match="1 slices are left out: a"):
        both = build([table, source], tmp_path / "both", skip_failed=True)
    assert both.ids() == ["spots"]


def test_a_picture_that_does_not_fit_is_a_failed_slice(spots: AnnData, tmp_path: Path) -> None:
    _, scale = picture_of(spots)
    table = listed(spots, tmp_path, image_scale=3 * scale)
    with pytest.raises(CorpusError, match=r"a: .*spots are outside the image"):
        build(table, tmp_path / "out")


def test_rows_that_cannot_be_meant(spots: AnnData, tmp_path: Path) -> None:
    listed(spots, tmp_path)
    for text, kind, message in (
        ("path,image\na.h5ad,a.png\n", CorpusError, "image and image_scale .* belong together"),
        ("path,image_scale\na.h5ad,1\n", CorpusError, "image and image_scale .* belong together"),
        ("path,image,image_scale\na.h5ad,b.png,1\n", InputError, "line 2: .*b.png does not exist"),
        (
            "path,image,image_scale\na.h5ad,a.png,one\n",
            CorpusError,
            "image_scale 'one' is not a number",
        ),
        ("path,image,image_scale\na.h5ad,a.png,-1\n", CorpusError, "a: .*scale must be"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(kind, match=message):
            build(tmp_path / "bad.csv", tmp_path / "bad")


def test_a_spatialdata_store_brings_its_own(spots: AnnData, tmp_path: Path) -> None:
    from spatialdata.transformations import Sequence, Translation
    from spatialdata_stores import circles, image, make, scale, table

    pixels, factor = picture_of(spots)

    def write(name: str, to_um: Any) -> None:
        make(
            tmp_path / name,
            shapes={"cells": circles(spots.obsm["spatial"], um=scale(1))},
            images={"he": image(np.moveaxis(pixels, -1, 0), um=to_um)},
            tables={"table": table("cells", range(90))},
        )

    write("mine.zarr", scale(1 / factor))
    built = build(tmp_path / "mine.zarr", tmp_path / "out")
    piece, found = built.slice("mine"), built.image("mine")
    assert piece.unit == "um"
    assert sorted(piece.coords.tolist()) == sorted(
        np.asarray(spots.obsm["spatial"], dtype=float).tolist()
    )
    assert found is not None
    assert np.array_equal(np.asarray(found.pixels), pixels)
    assert found.scale == pytest.approx(factor)
    assert found.microns_per_pixel == pytest.approx(1 / factor)
    write("moved.zarr", Sequence([scale(1 / factor), Translation([5, 5], axes=("x", "y"))]))
    assert (
        build(tmp_path / "moved.zarr", tmp_path / "other").image("moved") is None
    )  # rather than in a wrong place


def test_the_picture_that_a_json_file_names_is_left_to_the_table(
    spots: AnnData, tmp_path: Path
) -> None:
    del spots.uns["spatial"]
    spots.write_h5ad(tmp_path / "a.h5ad")
    Image.new("RGB", (30, 30)).save(tmp_path / "he.png")
    (tmp_path / "a.json").write_text('{"image": "he.png", "scale": 0.1}')
    built = build(tmp_path / "a.h5ad", tmp_path / "out")
    assert built.image("a") is None
    assert any("table of sources" in note for note in built.about["notes"]["a"])
