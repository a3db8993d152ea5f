"""What stands on disk: members that anyone can open, rows straight from the arrays, damage found and named."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from terrazzo import corpus, simulate
from terrazzo.corpus.members import hilbert_order, plain_table
from terrazzo.corpus.sources import Orthologs, list_sources
from terrazzo.errors import CorpusError
from terrazzo.slices import Slice, read


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> corpus.Corpus:
    folder = tmp_path_factory.mktemp("store")
    panels = simulate.corpus(2, 150, n_genes=60, seed=1)
    spots = simulate.tissue(
        90, layout="visium", n_genes=60, image=True, image_px=60, name="spots", donor="donor_2"
    )
    panels[0].obs["note"] = ["a", None, *["b"] * 148]
    for adata in [*panels, spots]:
        adata.write_h5ad(folder / f"{adata.obs_names[0].rsplit('-', 1)[0]}.h5ad")
    return corpus.build(
        [folder], folder / "corpus", min_genes=0, scheduler="synchronous", progress=False
    )


@pytest.mark.parametrize("name", ["slice_1", "spots"])
def test_member_gives_the_same_slice_up_to_row_order(built: corpus.Corpus, name: str) -> None:
    source = read(built.row(name)["source"], name=name)
    plain = Slice.from_anndata(anndata.read_zarr(built.path(name)), name=name)
    ours = built.slice(name)
    place = {cell: row for row, cell in enumerate(source.obs_names)}
    rows = np.array([place[cell] for cell in ours.obs_names])
    assert sorted(rows) == list(range(source.n_cells))
    for got in (ours, plain):
        assert (got.counts != source.counts[rows]).nnz == 0
        assert got.counts.dtype == source.counts.dtype
        np.testing.assert_allclose(got.coords, source.coords[rows], rtol=1e-12)
        assert got.gene_ids.tolist() == source.gene_ids.tolist()
        assert got.gene_symbols.tolist() == source.gene_symbols.tolist()
        assert (got.unit, got.technology, got.organism) == (
            source.unit,
            source.technology,
            source.organism,
        )
        assert got.lattice_kind == source.lattice_kind
    assert np.array_equal(ours.coords, source.coords[rows])
    if source.image is not None:
        assert np.array_equal(ours.image.pixels, source.image.pixels)
        assert ours.image.microns_per_pixel == pytest.approx(source.image.microns_per_pixel)


def test_member_keeps_labels(built: corpus.Corpus) -> None:
    source = anndata.read_h5ad(built.row("slice_1")["source"])
    member = anndata.read_zarr(built.path("slice_1"))
    same = source[member.obs_names].obs
    for column in ("region", "cell_type", "donor"):
        assert member.obs[column].astype(str).tolist() == same[column].astype(str).tolist()
    assert member.obs["note"].isna().sum() == 1
    assert member.var["ensembl_id"].tolist() == source.var["ensembl_id"].tolist()


def test_any_table_becomes_plain() -> None:
    odd = pd.DataFrame(
        {"a/b": [1, "x", None], 3: [True, False, True], "_index": pd.array([1, None, 2])},
        index=[7, 8, 9],
    )
    plain = plain_table(odd)
    assert plain.columns.tolist() == ["a_b", "3", "_index_"]
    assert plain["a_b"].astype(object).tolist()[:2] == ["1", "x"]
    assert (
        plain["a_b"].isna().tolist()
        == plain["_index_"].isna().to_numpy()[[0, 2, 1]].tolist()
        == [False, False, True]
    )
    assert plain["3"].dtype == bool
    assert plain.index.tolist() == ["7", "8", "9"]


def test_rows_genes_and_coords(built: corpus.Corpus) -> None:
    for name in built.ids():
        whole = built.slice(name)
        assert (built.rows(name, 0, whole.n_cells) != whole.counts).nnz == 0
        part = built.rows(name, 7, 31)
        assert (part != whole.counts[7:31]).nnz == 0
        assert part.has_sorted_indices
        assert built.rows(name, 5, 5).shape == (0, whole.n_genes)
        assert np.array_equal(built.coords(name), whole.coords)
        assert hilbert_order(whole.coords).tolist() == list(range(whole.n_cells))
        ids, symbols = built.genes(name)
        assert ids.tolist() == whole.gene_ids.tolist()
        assert symbols.tolist() == whole.gene_symbols.tolist()


def test_any_rows_in_any_order(built: corpus.Corpus) -> None:
    whole = built.slice("slice_1").counts
    rng = np.random.default_rng(0)
    for rows in (
        [],
        [5],
        [0, 149],
        [3, 0, 1, 60, 61, 30],
        [7, 7, 2],
        rng.permutation(150),
        np.arange(20, 90),
    ):
        got = built.take("slice_1", rows)
        assert (got.dtype, got.shape) == (np.float32, (len(rows), 60))
        np.testing.assert_array_equal(
            got.toarray(), whole.toarray()[np.array(rows, dtype=np.int64)]
        )
        assert got.has_canonical_format
    for rows in ([-1], [3, 150]):
        with pytest.raises(CorpusError, match="'slice_1' has rows 0 to 149"):
            built.take("slice_1", rows)


@pytest.mark.parametrize(("piece", "pieces", "members"), [(7, 3, 1), (64, 1, 2)])
def test_memory_does_not_grow_with_the_corpus(
    built: corpus.Corpus, monkeypatch: pytest.MonkeyPatch, piece: int, pieces: int, members: int
) -> None:
    limit = 9000 * members
    for name, value in (
        ("POINTER_ROWS", piece),
        ("CACHED_POINTERS", pieces),
        ("OPEN_MEMBERS", members),
        ("CACHED_BYTES", limit),
    ):
        monkeypatch.setattr(f"terrazzo.corpus.shards.{name}", value)
    small = corpus.Corpus.open(built.folder)
    whole = {name: built.slice(name).counts for name in built.ids()}
    rng = np.random.default_rng(0)
    for _ in range(40):
        name = str(rng.choice(built.ids()))
        start, stop = sorted(rng.integers(0, whole[name].shape[0] + 1, 2).tolist())
        assert (small.rows(name, start, stop) != whole[name][start:stop]).nnz == 0
    reader = small._reader
    assert reader._chunks.bytes == 0  # a pass leaves nothing behind
    for _ in range(40):
        name = str(rng.choice(built.ids()))
        rows = rng.permutation(whole[name].shape[0])[:9]
        assert (small.take(name, rows) != whole[name][rows]).nnz == 0
    assert 0 < reader._chunks.bytes <= limit
    assert reader._pointers.cache_info().currsize <= pieces
    assert reader._open.cache_info().currsize <= members
    assert reader._pointers(name, 0).nbytes <= 8 * (piece + 1)


def test_counts_are_kept_as_they_are(tmp_path: Path) -> None:
    for name, factor, stored, read_as in (
        ("whole", 1, np.int32, np.float32),
        ("large", 2**24 + 1, np.float64, np.float64),
    ):
        adata = simulate.tissue(40, n_genes=20)
        adata.X = adata.X.astype(np.float64) * factor
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        made = corpus.build(
            tmp_path / f"{name}.h5ad",
            tmp_path / name,
            min_genes=0,
            vocabulary=False,
            progress=False,
        )
        member = anndata.read_zarr(made.path(name))
        assert member.X.dtype == stored
        assert made.rows(name, 3, 9).dtype == read_as
        order = [adata.obs_names.get_loc(cell) for cell in member.obs_names]
        np.testing.assert_array_equal(made.rows(name, 0, 40).toarray(), adata.X[order].toarray())


def test_manifest_and_summary(built: corpus.Corpus) -> None:
    rows = built.manifest.set_index("id")
    assert set(rows.index) == {"slice_1", "slice_2", "spots"}
    assert rows.loc["spots", "technology"] == "Visium"
    assert rows.loc["spots", "spacing"] == pytest.approx(100, rel=0.02)
    assert rows.loc["slice_1", "donor"] == "donor_1"
    assert (rows["unit"] == "um").all()
    assert built.n_cells() == 390 == built.n_cells("train")
    assert rows.loc["slice_2", "total_counts"] == built.slice("slice_2").counts.sum()
    tables = corpus.info(built)
    assert tables["technology"].set_index("technology").loc["MERFISH", "cells"] == 300
    assert tables["organism"]["slices"].tolist() == [3]
    assert built.ids("test") == []
    assert built.image("slice_1") is None
    assert built.about["notes"] == {}
    with pytest.raises(CorpusError, match="no split 'tset'"):
        built.ids("tset")
    with pytest.raises(CorpusError, match="no slice 'nope'"):
        built.rows("nope", 0, 1)


def test_pickles_and_opens_again(built: corpus.Corpus) -> None:
    built.rows("slice_1", 0, 3)
    copy = pickle.loads(pickle.dumps(built))
    pd.testing.assert_frame_equal(copy.manifest, built.manifest)
    assert (copy.rows("slice_1", 0, 3) != built.rows("slice_1", 0, 3)).nnz == 0
    again = corpus.Corpus.open(str(built.folder))
    assert again.content_hash() == built.content_hash()
    assert again.vocabulary().content_hash() == built.vocabulary().content_hash()


def flip(path: Path) -> bytes:
    """Change one bit in the middle of a file; return what it was."""
    content = path.read_bytes()
    at = len(content) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    return content


def test_any_flipped_byte_is_found_and_its_file_named(built: corpus.Corpus, tmp_path: Path) -> None:
    assert corpus.verify(built, progress=False) == []
    folder = tmp_path / "copy"
    shutil.copytree(built.folder, folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    of_members = [path for path in files if ".zarr/" in path.as_posix()]
    assert len(of_members) > 150
    before = {path: flip(path) for path in of_members}
    wanted = [f"{path.relative_to(folder).as_posix()} is damaged" for path in of_members]
    problems = corpus.verify(folder, progress=False)
    assert sorted(problem.split(": ")[1] for problem in problems) == wanted
    for path, content in before.items():
        path.write_bytes(content)
    for path in set(files) - set(of_members):  # each alone: nothing else is looked at without them
        content = flip(path)
        try:
            problems = corpus.verify(folder, progress=False)
        except CorpusError as error:
            problems = [str(error)]
        path.write_bytes(content)
        assert len(problems) == 1, path
        assert path.name in problems[0], problems
    assert corpus.verify(folder, progress=False) == []


def test_missing_and_extra_members_are_named(built: corpus.Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built.folder, folder)
    shutil.copytree(folder / "members" / "spots.zarr", folder / "members" / "more.zarr")
    shutil.rmtree(folder / "members" / "slice_1.zarr")
    (folder / "members" / "spots.zarr" / "odd").write_text("odd")
    (folder / "members" / "slice_2.zarr" / "X" / "data" / "zarr.json").unlink()
    problems = " ".join(corpus.verify(folder, progress=False))
    for part in (
        "slice_1.zarr is missing",
        "more.zarr is not in",
        "spots.zarr/odd",
        "slice_2.zarr/X/data/zarr.json is",
    ):
        assert part in problems
    with pytest.raises(CorpusError, match=r"1 of 3 members are missing, e.g. members/slice_1.zarr"):
        corpus.Corpus.open(folder)


def test_what_is_not_a_corpus_is_an_error(built: corpus.Corpus, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is not a corpus"):
        corpus.Corpus.open(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(built.folder, folder)
    (folder / "vocab.parquet").unlink()
    with pytest.raises(CorpusError, match=r"has no vocab\.parquet"):
        corpus.Corpus.open(folder).vocabulary()
    (folder / "manifest.parquet").unlink()
    with pytest.raises(CorpusError, match="was not finished"):
        corpus.Corpus.open(folder)
    (folder / "corpus.json").unlink()
    with pytest.raises(CorpusError, match="was not finished"):
        corpus.Corpus.open(folder)


def test_reprs(built: corpus.Corpus) -> None:
    assert repr(built) == f"Corpus({str(built.folder)!r}, 3 slices, 390 cells)"
    assert repr(corpus.Splits("donor", test=0.5)).startswith("Splits(by='donor', validation=0.0")
    assert repr(corpus.QualityControl(5)) == "QualityControl(min_genes=5, min_cells=1)"
    (source,) = list_sources(built.row("spots")["source"])
    assert repr(source) == f"Source('spots', {str(source.path)!r})"
    pairs = {f"ENSMUSG{i:011d}": f"ENSG{i:011d}" for i in range(1000)}
    assert repr(Orthologs.from_table(pairs)) == "Orthologs(1,000 pairs to human genes)"


def test_html_repr_counts_by_technology_and_escapes(built: corpus.Corpus) -> None:
    odd = "<script>alert('x')</script>"
    manifest = built.manifest.assign(n_cells=1000)
    manifest.loc[manifest["id"] == "spots", "technology"] = odd
    html = corpus.Corpus(built.folder / odd, manifest)._repr_html_()
    assert "<script>" not in html
    assert html.count("&lt;script&gt;") == 2
    rows = re.findall(r"<td>(.*?)</td>\s*<td>(.*?)</td>\s*<td>(.*?)</td>", html)
    shown = "&lt;script&gt;alert('x')&lt;/script&gt;"
    assert rows == [(shown, "1", "1,000"), ("MERFISH", "2", "2,000"), ("total", "3", "3,000")]
