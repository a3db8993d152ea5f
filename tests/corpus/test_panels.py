"""Small panels and two organisms in a corpus: the floor by the panel, what is said of it, and orthologs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from terrazzo import corpus
from terrazzo.cli import main
from terrazzo.corpus import Corpus, QualityControl, Splits
from terrazzo.errors import CorpusError, TerrazzoWarning
from terrazzo.genes.orthologs import shipped
from terrazzo.slices import Slice


def build(sources: Any, out: Path, **options: Any) -> Corpus:
    return corpus.build(sources, out, scheduler="synchronous", progress=False, **options)


def panel(
    folder: Path,
    name: str,
    n_genes: int,
    *,
    n_cells: int = 40,
    expressed: float = 0.3,
    n_columns: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a slice of cells that express this share of a panel, in a table of ``n_columns`` genes."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_cells, n_columns or n_genes), dtype=np.float32)
    drawn = rng.random((n_cells, n_genes)) < expressed
    counts[:, :n_genes] = drawn * rng.integers(1, 9, drawn.shape)
    counts[0, :n_genes] = 1  # every gene is in some cell
    adata = anndata.AnnData(sp.csr_matrix(counts))
    adata.var_names = [f"GENE{i}" for i in range(counts.shape[1])]
    adata.obsm["spatial"] = rng.random((n_cells, 2)) * 500
    path = folder / f"{name}.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.mark.parametrize(
    ("n_genes", "floor"), [(10, 1), (33, 2), (135, 7), (166, 9), (380, 19), (960, 48), (3000, 100)]
)
def test_the_floor_is_of_the_panel(n_genes: int, floor: int, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(panel(tmp_path, "s", n_genes))
    derived = QualityControl().floor(Slice.from_anndata(adata))
    assert (derived.n_genes, derived.n_panel) == (floor, n_genes)
    assert bool(derived.note()) == (floor < 100)
    stated = QualityControl(min_genes=100).floor(Slice.from_anndata(adata))
    assert (stated.n_genes, stated.note()) == (100, "")


def test_genes_without_counts_are_not_of_the_panel(tmp_path: Path) -> None:
    adata = anndata.read_h5ad(panel(tmp_path, "padded", 166, n_columns=5000))
    assert QualityControl().floor(Slice.from_anndata(adata)).n_genes == 9
    empty = anndata.AnnData(sp.csr_matrix((3, 20), dtype=np.float32))
    empty.obsm["spatial"] = np.arange(6.0).reshape(3, 2)
    piece = Slice.from_anndata(empty)
    assert not QualityControl().floor(piece).keep(piece).any()


@pytest.mark.case(
    "E",
    given="A panel of fewer than 2,000 genes in a corpus",
    gets="Cells need 5 % of the panel's genes instead of 100; printed, and in `corpus.json`",
)
def test_panels_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        panel(tmp_path, name, 166, seed=seed)
    built = build([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "out")
    assert built.n_cells() == 80
    assert built.about["floors"] == {"a": 9, "b": 9}
    assert "a panel of 166 genes: cells need 9 expressed ones" in built.about["notes"]["a"][0]
    words = ["corpus", "build", str(tmp_path / "a.h5ad"), "--out", str(tmp_path / "cli")]
    assert main([*words, "--scheduler", "synchronous"]) == 0
    assert "small panels: a cell needs 5 % of the panel's genes" in capsys.readouterr().out


def test_a_whole_transcriptome_keeps_its_floor(tmp_path: Path) -> None:
    panel(tmp_path, "whole", 3000, expressed=0.1)
    built = build(tmp_path / "whole.h5ad", tmp_path / "out")
    assert built.about["floors"] == {}
    assert built.n_cells() == 40


@pytest.mark.case(
    "E",
    given="A floor that leaves no slice to train on",
    gets="The slices that it left out, how many cells had how many genes, and `--min-genes`; not only the split",
)
def test_the_true_cause_is_named(tmp_path: Path) -> None:
    panel(tmp_path, "a", 166, seed=1)
    panel(tmp_path, "b", 166, seed=2)
    rich = panel(tmp_path, "rich", 400, expressed=0.6)
    sources = [tmp_path / "a.h5ad", tmp_path / "b.h5ad", rich]
    with (
        pytest.warns(TerrazzoWarning),
        pytest.raises(CorpusError, match=r"to train on.*all held out.*a: 1 of 40.*--min-genes"),
    ):
        build(sources, tmp_path / "out", min_genes=100, min_cells=2, splits=Splits(test=0.5))
    with pytest.raises(CorpusError, match=r"of 166 that the slice has.*without --min-genes it is"):
        build(sources[:2], tmp_path / "none", min_genes=100, min_cells=2)
    held_out = tmp_path / "held_out.csv"
    held_out.write_text("path,split\nrich.h5ad,test\n")
    with pytest.raises(CorpusError, match="Hold out fewer"):
        build(held_out, tmp_path / "test_only")


# two organisms

MOUSE = ["Ace2", "Gapdh", "Trp53", "Car4", "Cd8b1", "Ccl21a", "Ccl21b", "Madeup"]
HUMAN = ["ACE2", "GAPDH", "TP53", "CA4", "CD8B", "CCL21", "ONLYHERE"]


def of_genes(folder: Path, name: str, symbols: list[str], ids: list[str] | None = None) -> Path:
    rng = np.random.default_rng(len(name))
    adata = anndata.AnnData(sp.csr_matrix(rng.integers(1, 5, (12, len(symbols))), dtype=np.float32))
    adata.var_names = symbols
    if ids is not None:
        adata.var["ensembl_id"] = ids
    adata.obsm["spatial"] = rng.random((12, 2))
    path = folder / f"{name}.h5ad"
    adata.write_h5ad(path)
    return path


def ids_of(symbols: list[str], organism: str) -> list[str]:
    return [shipped().genes[organism].id_of.get(symbol, "") for symbol in symbols]


@pytest.mark.case(
    "E",
    given="Slices of human and mouse in one corpus",
    gets="Asked for: `--orthologs human` or `mouse`, or a table; then one gene is one column",
)
@pytest.mark.parametrize("human_ids", [True, False])
@pytest.mark.parametrize("mouse_ids", [True, False])
@pytest.mark.parametrize("table", ["human", "ids", "symbols"])
def test_a_corpus_of_two_organisms(
    human_ids: bool, mouse_ids: bool, table: str, tmp_path: Path
) -> None:
    human = of_genes(tmp_path, "man", HUMAN, ids_of(HUMAN, "human") if human_ids else None)
    mouse = of_genes(tmp_path, "mouse", MOUSE, ids_of(MOUSE, "mouse") if mouse_ids else None)
    orthologs: Any = table
    if table == "ids":
        pairs = zip(ids_of(MOUSE[:3], "mouse"), ids_of(HUMAN[:3], "human"), strict=True)
        orthologs = dict(pairs)
    elif table == "symbols":
        orthologs = dict(zip(MOUSE[:3], HUMAN[:3], strict=True))
    built = build([human, mouse], tmp_path / "out", orthologs=orthologs)
    rows = built.manifest.set_index("id")
    assert rows.loc["mouse", ["organism", "gene_organism", "n_genes"]].tolist() == [
        "mouse",
        "human",
        6,
    ]
    n_given = 0 if table == "human" else 3
    note = built.about["notes"]["mouse"][-1]
    assert f"6 of 8 mouse genes have a human ortholog of their own ({n_given} by" in note
    vocabulary = built.vocabulary()
    assert sorted(vocabulary.symbol.tolist()) == sorted(HUMAN)
    assert vocabulary.match(built.slice("mouse")).coverage.n_matched == 6


def test_several_organisms_are_asked_for(tmp_path: Path) -> None:
    sources = [of_genes(tmp_path, "man", HUMAN), of_genes(tmp_path, "mouse", MOUSE)]
    with pytest.raises(CorpusError, match=r"human \(man\), mouse \(mouse\).*--orthologs human"):
        build(sources, tmp_path / "out")
    to_mouse = build(sources, tmp_path / "out", orthologs="mouse")
    assert to_mouse.vocabulary().organism == "mouse"


def test_counts_are_never_counted_twice(tmp_path: Path) -> None:
    mouse = of_genes(tmp_path, "mouse", MOUSE)
    built = build(mouse, tmp_path / "out", orthologs="human")
    adata = anndata.read_h5ad(mouse)
    mapped = built.slice("mouse").counts.sum(axis=0)
    columns = np.asarray(adata.X.sum(axis=0)).ravel()
    left_out = [MOUSE.index("Madeup"), MOUSE.index("Ccl21b")]
    assert sorted(np.asarray(mapped).ravel()) == sorted(np.delete(columns, left_out))
