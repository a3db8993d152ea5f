"""Which matrix of an AnnData holds the counts of its cells, and which of its features are genes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import terrazzo as tz
from terrazzo.errors import InputError, TerrazzoWarning
from terrazzo.slices import Slice

N = 60
GENES = [f"GENE{letter}{number}" for letter in "ABCD" for number in range(5)]


def draw(seed: int = 0) -> np.ndarray[Any, Any]:
    """Draw counts."""
    return np.random.default_rng(seed).poisson(3, (N, len(GENES))).astype(np.float32)


def make(x: Any = None, genes: list[str] | None = None, **var: Any) -> AnnData:
    """Build a slice of single cells."""
    genes = GENES if genes is None else genes
    x = draw() if x is None else x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = AnnData(
            sp.csr_matrix(np.asarray(x, dtype=np.float32)),
            obs=pd.DataFrame(index=[f"c{i}" for i in range(len(x))]),
            var=pd.DataFrame(var, index=genes),
        )
    adata.obsm["spatial"] = np.random.default_rng(1).uniform(0, 300, (len(x), 2))
    adata.uns["technology"] = "Xenium"
    return adata


def ones_of_few_cells() -> np.ndarray[Any, Any]:
    """Return the counts of 5 of the cells alone."""
    x = draw(4)
    x[5:] = 0
    return x


NORMALIZED = draw() / draw().sum(axis=1, keepdims=True) * 1e4
WRONG: dict[str, tuple[np.ndarray[Any, Any], str]] = {
    "zeros": (np.zeros((N, 20)), "holds no count, only zeros"),
    "NaN": (np.full((N, 20), np.nan), "holds NaN or infinite values"),
    "a NaN": (np.where(np.arange(20) == 3, np.nan, draw()), "holds NaN or infinite values"),
    "rounded normalized": (np.rint(NORMALIZED), "sum to about 10,000"),
    "multiples": (draw() * 7, "all are multiples of 7"),
    "binary": ((draw() > 0).astype(float), "holds only zeros and ones"),
    "few cells": (ones_of_few_cells(), "has counts of only 5 of 60 cells"),
}


@pytest.mark.case(
    "D",
    given="`raw` or `layers['counts']` of zeros, NaN, scaled or binary values, or counts of few cells, beside a good X",
    gets="X is taken; a warning, the notes and `info` say why",
)
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("place", ["raw", "layer"])
def test_a_wrong_matrix_does_not_hide_counts(name: str, place: str) -> None:
    values, why = WRONG[name]
    adata = make()
    source = "raw.X"
    if place == "raw":
        adata.raw = make(values)
    else:
        adata.layers["counts"] = sp.csr_matrix(values.astype(np.float32))
        source = "layers['counts']"
    with pytest.warns(TerrazzoWarning, match="counts taken from X"):
        tissue = Slice.from_anndata(adata)
    assert tissue.source == "X"
    np.testing.assert_array_equal(tissue.counts.toarray(), draw())
    (note,) = tissue.notes
    assert note.startswith(f"counts taken from X: {source} ")
    assert why in note
    assert note in tissue.describe()["recognized_as"]


@pytest.mark.parametrize("values", [NORMALIZED, draw() - 1.5], ids=["fractional", "negative"])
def test_a_normalized_layer_of_counts(values: Any) -> None:
    adata = make()
    adata.layers["counts"] = sp.csr_matrix(values.astype(np.float32))
    with pytest.warns(TerrazzoWarning, match=r"counts taken from X: layers\['counts'\] holds"):
        assert Slice.from_anndata(adata).source == "X"
    other = make()
    other.raw = make(values)
    assert Slice.from_anndata(other).notes == ()  # usual, so without a warning


def no_genes(adata: AnnData) -> AnnData:
    """Return a raw without columns."""
    empty = sp.csr_matrix((N, 0), dtype=np.float32)
    return AnnData(empty, obs=adata.obs, var=pd.DataFrame(index=[]))


RAWS: dict[str, tuple[Callable[[AnnData], AnnData], str]] = {
    "no genes": (no_genes, "has zero genes"),
    "controls alone": (
        lambda a: make(draw()[:, :3], ["NegPrb1", "NegPrb2", "Blank-1"]),
        "has zero genes, only 1 blank barcodes, 2 control probes and codes",
    ),
    "antibodies alone": (
        lambda a: make(draw()[:, :2], ["CD4", "CD8"], feature_types=["Antibody Capture"] * 2),
        "has zero genes, only 2 Antibody Capture",
    ),
    "numbers for names": (
        lambda a: make(draw(3), [str(i) for i in range(20)]),
        "has none of the genes in var",
    ),
    "other genes": (
        lambda a: make(draw(3), [f"OTHER{i}" for i in range(20)]),
        "has none of the genes in var",
    ),
}


@pytest.mark.case(
    "D",
    given="A `raw` without genes, or of other genes than X, of control probes or antibodies alone, or of another shape",
    gets="X is taken, with a warning; where X holds no counts either: an error that lists what was seen",
)
@pytest.mark.parametrize("name", RAWS)
def test_a_raw_of_no_genes_of_these_cells(name: str, tmp_path: Path) -> None:
    build, why = RAWS[name]
    adata = make()
    adata.raw = build(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.warns(TerrazzoWarning, match=why):
        tissue = tz.read(tmp_path / "a.h5ad")
    assert tissue.source == "X"
    np.testing.assert_array_equal(tissue.counts.toarray(), draw())


def test_a_raw_of_other_genes_is_taken_where_x_holds_no_counts() -> None:
    adata = make(NORMALIZED)
    adata.raw = make(draw(3), [f"OTHER{i}" for i in range(20)])
    with pytest.warns(TerrazzoWarning, match=r"raw.X has none of the genes in var.*layer="):
        assert Slice.from_anndata(adata).source == "raw.X"


def test_a_raw_by_ids_is_not_of_other_genes() -> None:
    adata = make()
    adata.raw = make(draw(3), [f"ENSG{i:011d}" for i in range(20)])
    assert Slice.from_anndata(adata).source == "raw.X"


@pytest.mark.parametrize("shape", [(N - 5, 20), (N, 19)])
def test_a_raw_of_another_shape(shape: tuple[int, int]) -> None:
    adata = make()
    adata.raw = make()
    adata.raw._X = sp.csr_matrix(draw()[: shape[0], : shape[1]])
    with pytest.warns(TerrazzoWarning, match=r"raw.X has the shape \(\d+, \d+\), not \(60, 20\)"):
        assert Slice.from_anndata(adata).source == "X"


def test_where_none_holds_counts_all_are_listed() -> None:
    adata = make(NORMALIZED)
    adata.raw = make(np.zeros((N, 20)))
    adata.layers["counts"] = sp.csr_matrix(np.full((N, 20), np.nan, dtype=np.float32))
    said = r"X does not hold counts.*layers\['counts'\] holds NaN.*raw.X holds no count"
    with pytest.raises(InputError, match=said):
        Slice.from_anndata(adata)
    zeros = make(np.zeros((N, 20)))
    zeros.raw = make(np.zeros((N, 20)))
    with pytest.raises(
        InputError, match=r"raw.X holds no count: every value is zero.*X holds no c"
    ):
        Slice.from_anndata(zeros)
    only_raw = make(np.zeros((N, 20)))
    only_raw.raw = no_genes(only_raw)
    with pytest.raises(InputError, match=r"zero genes.*raw.X has zero genes.*X holds no count"):
        Slice.from_anndata(only_raw)


def test_cells_without_counts_are_cells_where_there_is_no_other_matrix() -> None:
    tissue = Slice.from_anndata(make(np.zeros((N, 20))))
    assert tissue.empty.all()
    assert tissue.notes == ("X holds no count: every value is zero",)


def test_scaled_counts_alone_are_taken_with_a_warning() -> None:
    for values in (draw() * 7, np.rint(NORMALIZED)):
        with pytest.warns(TerrazzoWarning, match="whole numbers that look scaled.*pass layer="):
            Slice.from_anndata(make(values))
    downsampled = np.tile(np.eye(20)[:, [0] * 20] + 1, (3, 1))  # equal totals, small values
    assert Slice.from_anndata(make(downsampled)).notes == ()


ANTIBODIES = ["CD4", "CD8A", "CD14", "mouse_IgG1k"]
TYPES = ["Gene Expression"] * 20 + ["Antibody Capture"] * 4


def with_antibodies() -> AnnData:
    """Build a slice with antibodies whose counts are a thousand times those of genes."""
    x = np.c_[draw(), np.random.default_rng(2).poisson(2000, (N, 4))]
    return make(x, [*GENES, *ANTIBODIES], feature_types=TYPES)


def with_controls() -> AnnData:
    """Build a slice with the controls of several platforms."""
    names = ["NegPrb1", "SystemControl1", "Blank-1", "NegControlProbe_00042", "antisense_X"]
    return make(np.c_[draw(), np.ones((N, 5))], [*GENES, *names])


def read_by(door: str, adata: AnnData, path: Path) -> Slice:
    """Read a slice from memory, from its file as it is written, or opened."""
    if door in ("memory", "raw", "layer"):
        return Slice.from_anndata(adata)
    if door == "backed":
        backed = anndata.read_h5ad(path, backed="r")
        tissue = Slice.from_anndata(backed)
        backed.file.close()
        return tissue
    return tz.read(path)


@pytest.mark.case(
    "C",
    given="Antibodies, CRISPR guides and other types in `var['feature_types']`; control probes, blanks and spike-ins",
    gets="Left out of counts and vocabularies, with a warning of how many of which kind; kept in the file",
)
@pytest.mark.parametrize("build", [with_antibodies, with_controls])
@pytest.mark.parametrize("door", ["memory", "h5ad", "zarr", "raw", "layer", "backed"])
def test_features_that_are_no_genes(
    build: Callable[[], AnnData], door: str, tmp_path: Path
) -> None:
    adata = build()
    path = tmp_path / ("a.zarr" if door == "zarr" else "a.h5ad")
    if door == "raw":
        logged = adata.copy()
        logged.X = np.log1p(adata.X.toarray())
        logged.raw = adata
        adata = logged
    elif door == "layer":
        adata.layers["counts"] = adata.X.copy()
        adata.X = np.log1p(adata.X.toarray())
    n_columns = adata.n_vars
    if door == "zarr":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of zarr formats to come
            anndata.io.write_zarr(path, adata)
    else:
        adata.write_h5ad(path)
    with pytest.warns(TerrazzoWarning, match=r"[45] features that are not genes left out \("):
        tissue = read_by(door, adata, path)
    np.testing.assert_array_equal(tissue.counts.toarray(), draw())
    assert tissue.gene_symbols.tolist() == GENES
    assert "features that are not genes left out" in tissue.describe()["recognized_as"]
    assert adata.n_vars == n_columns  # nothing is taken from the data


def test_vocabulary_coverage_and_what_is_written_back(tmp_path: Path) -> None:
    adata = with_antibodies()
    with pytest.warns(TerrazzoWarning, match="4 Antibody Capture"):
        tissue = Slice.from_anndata(adata)
    vocabulary = tz.Vocabulary.from_slices([tissue])
    assert sorted(vocabulary.symbol.tolist()) == sorted(GENES)
    assert vocabulary.coverage(tissue).share_counts == 1.0
    model = tz.SToFM("tiny", vocabulary)
    with pytest.warns(TerrazzoWarning, match="4 Antibody Capture"):
        out = model.embed(adata, progress=False)
    assert out.n_vars == 24
    assert out.X.sum() > 100 * draw().sum()


def test_a_corpus_takes_genes_and_says_so(tmp_path: Path) -> None:
    with_controls().write_h5ad(tmp_path / "a.h5ad")
    corpus = tz.build_corpus([tmp_path / "a.h5ad"], tmp_path / "corpus", min_genes=1)
    _, symbols = corpus.genes("a")
    assert symbols.tolist() == GENES
    assert "5 features that are not genes left out" in (
        tmp_path / "corpus" / "members" / "a.json"
    ).read_text(encoding="utf-8")


def test_spike_ins_are_no_genes_but_ercc1_is() -> None:
    adata = make(genes=[*GENES[:18], "ERCC1", "ERCC-00002"])
    with pytest.warns(TerrazzoWarning, match="1 spike-ins"):
        assert Slice.from_anndata(adata).gene_symbols.tolist() == [*GENES[:18], "ERCC1"]


def test_a_table_of_a_spatialdata() -> None:
    spatialdata = pytest.importorskip("spatialdata", reason="spatialdata is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = spatialdata.models.TableModel.parse(with_controls())
        sdata = spatialdata.SpatialData(tables={"table": table})
    with pytest.warns(TerrazzoWarning, match="5 features that are not genes left out"):
        tissue = tz.read(sdata)
    assert tissue.gene_symbols.tolist() == GENES
