"""Mouse slices and human genes: the table that comes with the library, tables of users, and what a slice is."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.cli import main
from terrazzo.errors import GeneError, TerrazzoWarning
from terrazzo.genes import Vocabulary
from terrazzo.genes.orthologs import n_with_ortholog, shipped
from terrazzo.slices import Slice, read

# mouse symbol, human symbol: the same but for case, renamed, and several to one
SAME = {"Ace2": "ACE2", "Gapdh": "GAPDH", "Egfr": "EGFR", "Myc": "MYC", "Gfap": "GFAP"}
SEVERAL = {"Ccl21a": "CCL21", "Ccl21b": "CCL21", "Ccl21d": "CCL21"}
PAIRS = {**SAME, "Trp53": "TP53", "Car4": "CA4", "Cd8b1": "CD8B"}


def mouse_id(symbol: str) -> str:
    return shipped().genes["mouse"].id_of[symbol]


def human_id(symbol: str) -> str:
    return shipped().genes["human"].id_of[symbol]


def human_genes(symbols: list[str], *, ids: bool = True, organism: str = "human") -> Vocabulary:
    """Return a vocabulary of these genes with tokens 3, 4, ..."""
    n = len(symbols)
    gene_ids = [""] * n
    if ids:
        gene_ids = [shipped().genes[organism].id_of.get(symbol, "") for symbol in symbols]
    return Vocabulary(gene_ids, symbols, np.arange(n) + 3, np.ones(n), {"<pad>": 0}, organism)


def piece(
    symbols: list[str], ids: list[str] | None = None, organism: str = "mouse", n_cells: int = 4
) -> Slice:
    n = len(symbols)
    return Slice(
        counts=sp.csr_matrix(np.ones((n_cells, n), dtype=np.float32)),
        gene_ids=np.array(ids or [""] * n, dtype=np.str_),
        gene_symbols=np.array(symbols, dtype=np.str_),
        coords=np.zeros((n_cells, 2)),
        obs_names=np.array([f"c{i}" for i in range(n_cells)]),
        organism=organism,
    )


def matched(vocabulary: Vocabulary, tissue: Slice, **options: Any) -> dict[str, str]:
    """Return the human symbol by the name of each matched gene of a slice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TerrazzoWarning)
        found = vocabulary.match(tissue, min_genes=1, floor=0.0, **options)
    symbol_of = dict(zip(vocabulary.token.tolist(), vocabulary.symbol.tolist(), strict=True))
    names = np.where(tissue.gene_symbols == "", tissue.gene_ids, tissue.gene_symbols)
    tokens = found.column_token.tolist()
    return {
        str(name): symbol_of[token]
        for name, token in zip(names, tokens, strict=True)
        if token in symbol_of
    }


# the table


def test_the_table_says_what_it_is() -> None:
    table = shipped()
    assert len(table.pairs) == len(set(table.pairs)) > 25_000
    assert "Ensembl" in table.about["source"]
    assert "no restrictions" in table.about["license"]
    assert set(table.about) == {"source", "license", "citation", "release"}
    human, mouse = zip(*table.pairs, strict=True)
    assert all(gene.startswith("ENSG") for gene in human)
    assert all(gene.startswith("ENSMUSG") for gene in mouse)
    assert table.genes["human"].id_of["TP53"] == "ENSG00000141510"
    assert (mouse_id("Trp53"), human_id("TP53"))[::-1] in table.pairs
    assert 0 < table.n_sure < len(table.pairs)


@pytest.mark.case(
    "E",
    given="A mouse slice and a human model, no table of orthologs",
    gets="Matched through a table that comes with terrazzo; a line says how many genes",
)
@pytest.mark.parametrize("has_ids", [True, False])
@pytest.mark.parametrize("has_symbols", [True, False])
def test_without_a_table(has_ids: bool, has_symbols: bool) -> None:
    symbols = [*PAIRS, "Ccl21a"]
    ids = [mouse_id(symbol) for symbol in symbols]
    if not has_ids and not has_symbols:
        return
    tissue = piece(
        symbols if has_symbols else [""] * len(symbols), ids if has_ids else None, "mouse"
    )
    vocabulary = human_genes([*PAIRS.values(), "CCL21"])
    with pytest.warns(TerrazzoWarning, match=r"through orthologs of Ensembl.*: 9 of 9 genes"):
        found = vocabulary.match(tissue)
    assert found.column_token.tolist() == list(range(3, 12))
    assert found.coverage.by["ortholog"] == 9
    assert found.coverage.n_ortholog_shipped == 9
    assert "9 orthologs are of terrazzo's own table" in str(found.coverage)
    assert json.loads(json.dumps(found.coverage.to_dict()))["n_ortholog_shipped"] == 9


@pytest.mark.parametrize("has_ids", [True, False])
def test_a_human_slice_and_a_mouse_model(has_ids: bool) -> None:
    symbols = list(PAIRS.values())
    tissue = piece(symbols, [human_id(s) for s in symbols] if has_ids else None, "human")
    assert matched(human_genes(list(PAIRS), organism="mouse"), tissue) == {
        human: mouse for mouse, human in PAIRS.items()
    }


@pytest.mark.parametrize("write", [str.upper, str.lower, str.capitalize])
def test_symbols_in_any_case(write: Callable[[str], str]) -> None:
    tissue = piece([write(symbol) for symbol in PAIRS])
    expected = {write(mouse): human for mouse, human in PAIRS.items()}
    assert matched(human_genes(list(PAIRS.values())), tissue) == expected
    assert matched(human_genes(list(PAIRS.values()), ids=False), tissue) == expected


def test_letter_case_catches_what_the_table_does_not_have() -> None:
    tissue = piece([*PAIRS, "Madeup1"])
    vocabulary = human_genes([*PAIRS.values(), "MADEUP1"])
    with pytest.warns(TerrazzoWarning, match="1 more by symbol without regard to case"):
        found = vocabulary.match(tissue)
    assert found.column_token[-1] == vocabulary.token[-1]
    assert (found.coverage.by["symbol_case"], found.coverage.by["ortholog"]) == (1, 8)


@pytest.mark.case(
    "E",
    given="Several mouse genes with one human ortholog, or several orthologs of one gene",
    gets="One gene each: one-to-one pairs first, then the same symbol, then confidence; others are counted as lost",
)
def test_many_to_one() -> None:
    several = piece([*PAIRS, *SEVERAL])
    vocabulary = human_genes([*PAIRS.values(), "CCL21"])
    found = matched(vocabulary, several)
    assert list(found.values()).count("CCL21") == 1
    assert len(found) == len(PAIRS) + 1
    with pytest.warns(TerrazzoWarning):
        coverage = vocabulary.coverage(several)
    assert (coverage.n_ortholog_lost, coverage.n_merged) == (2, 0)
    again = piece([*SEVERAL, *PAIRS][::-1])
    assert set(matched(vocabulary, again).values()) == set(found.values())


def test_a_gene_of_the_same_symbol_goes_before_a_renamed_one() -> None:
    pairs = {}
    for human, mouse in shipped().pairs[shipped().n_sure :]:
        pairs.setdefault(human, mouse)
    human, renamed = next(iter(pairs.items()))
    symbol = shipped().genes["human"].symbol_of[human]
    namesake = piece([symbol.capitalize(), ""], ["", renamed])
    found = matched(human_genes([symbol]), namesake)
    assert found == {symbol.capitalize(): symbol}


# tables of users


@pytest.mark.case(
    "E",
    given="A slice of mouse symbols and a table of Ensembl ids, or the reverse",
    gets="The table is used through the names that terrazzo knows; nothing is lost that matches without it",
)
@pytest.mark.parametrize("slice_names", ["ids", "symbols", "capitals"])
@pytest.mark.parametrize("table_names", ["ids", "symbols"])
@pytest.mark.parametrize("vocabulary_ids", [True, False])
def test_names_of_slice_and_table_may_differ(
    slice_names: str, table_names: str, vocabulary_ids: bool
) -> None:
    # the other way round, so that only the table can say it
    targets = dict(zip(PAIRS, [*PAIRS.values()][::-1], strict=True))
    table = targets
    if table_names == "ids":
        table = {mouse_id(mouse): human_id(human) for mouse, human in targets.items()}
    if slice_names == "ids":
        tissue = piece([""] * len(PAIRS), [mouse_id(symbol) for symbol in PAIRS])
        expected = {mouse_id(mouse): human for mouse, human in targets.items()}
    elif slice_names == "symbols":
        tissue = piece(list(PAIRS))
        expected = targets
    else:
        tissue = piece([symbol.upper() for symbol in PAIRS])
        expected = {mouse.upper(): human for mouse, human in targets.items()}
    vocabulary = human_genes(list(PAIRS.values()), ids=vocabulary_ids)
    assert matched(vocabulary, tissue, orthologs=table) == expected


def test_no_warning_with_a_table_of_ones_own() -> None:
    table = {"Ace2": "ACE2", "Trp53": "TP53"}
    found = human_genes(list(PAIRS.values())).match(piece(list(PAIRS)), orthologs=table)
    assert found.coverage.by["ortholog"] == len(PAIRS)
    assert found.coverage.n_ortholog_shipped == len(PAIRS) - 2


@pytest.mark.parametrize(
    "table",
    [
        {"Nothing": "NONE"},
        {"Ace2": "NOT IN THE VOCABULARY"},
        {"Ace2": ["ACE2", "MYC"]},
        {"Ace2": "MYC", "Gapdh": "MYC"},
        {"ACE2": "Ace2", "TP53": "Trp53"},  # the wrong way round
        dict.fromkeys(PAIRS, "ACE2"),
    ],
)
def test_a_poor_table_loses_nothing(table: dict[str, Any]) -> None:
    vocabulary = human_genes(list(PAIRS.values()))
    tissue = piece(list(PAIRS))
    assert set(matched(vocabulary, tissue, orthologs=table)) == set(PAIRS)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*PAIRS, *SEVERAL, "Unheard"]),
            st.sampled_from([*PAIRS.values(), "CCL21", "ELSE"]),
        ),
        min_size=1,
        max_size=14,
    )
)
def test_never_worse_than_without_a_table(rows: list[tuple[str, str]]) -> None:
    vocabulary = human_genes([*PAIRS.values(), "CCL21"])
    tissue = piece([*PAIRS, *SEVERAL])
    table = pd.DataFrame(rows)
    without = matched(vocabulary, tissue)
    found = matched(vocabulary, tissue, orthologs=table)
    assert set(found) >= set(without)
    assert found == matched(vocabulary, tissue, orthologs=table)
    own = table.drop_duplicates()
    one_to_one = own[~own[0].duplicated(keep=False) & ~own[1].duplicated(keep=False)]
    for mouse, human in one_to_one.itertuples(index=False):
        if mouse in PAIRS and human != "ELSE":
            assert found[mouse] == human


def test_an_unknown_organism_with_a_table() -> None:
    tissue = piece(["r1", "r2", "r3"], organism="unknown")
    table = {"r1": "ACE2", "r2": "TP53", "r3": "GAPDH"}
    vocabulary = human_genes(list(PAIRS.values()))
    assert matched(vocabulary, tissue, orthologs=table) == table
    with pytest.raises(GeneError, match="neither human nor mouse pass orthologs="):
        vocabulary.match(tissue)


STOFM_MAP = Path("reference") / "geneformer" / "mouseid2humanid.pkl"
MOUSE_SLICES = ("starmap_mpfc/BZ5", "merfish_hypothalamus/animal1_bregma0.21", "st_mob/MOB")


def by_letters_alone(vocabulary: Vocabulary, tissue: Slice) -> set[str]:
    known = {symbol.upper() for symbol in vocabulary.symbol.tolist()} - {""}
    return {symbol for symbol in tissue.gene_symbols.tolist() if symbol.upper() in known}


@pytest.mark.parametrize("name", MOUSE_SLICES)
@pytest.mark.parametrize("write", [str, str.upper])
def test_real_mouse_slices_and_the_published_map(
    name: str, write: Callable[[str], str], shared_dir: Path
) -> None:
    path = shared_dir / "data" / f"{name}.h5ad"
    if not path.is_file() or not (shared_dir / STOFM_MAP).is_file():
        pytest.skip("no mouse slices, or no reference/geneformer, in the shared folder")
    vocabulary = Vocabulary.from_geneformer(shared_dir / STOFM_MAP.parent)
    adata = anndata.read_h5ad(path)
    adata.var_names = [write(name) for name in adata.var_names]
    adata.uns.clear()
    tissue = Slice.from_anndata(adata)
    assert tissue.organism == "mouse"
    letters = by_letters_alone(vocabulary, tissue)
    without = matched(vocabulary, tissue)
    with_map = matched(vocabulary, tissue, orthologs=shared_dir / STOFM_MAP)
    assert set(with_map) >= set(without)
    assert len(without) > len(letters)


# which organism


def organism_of(symbols: list[str], **uns: Any) -> Slice:
    adata = anndata.AnnData(np.ones((3, len(symbols)), dtype=np.float32), uns=uns)
    adata.var_names = symbols
    adata.obsm["spatial"] = np.arange(6.0).reshape(3, 2)
    return Slice.from_anndata(adata)


HUMAN_ONLY = ["TP53", "CD8B", "CA4", "CA12", "HLA-A", "C11orf96"]
MOUSE_ONLY = ["Trp53", "Cd8b1", "Car4", "Car12", "Kitl", "Serpinb1b"]
BOTH = ["Ace2", "Gapdh", "Egfr", "Myc", "Gfap", "Aqp4", "Mbp", "Snap25", "Pvalb", "Sst"]


@pytest.mark.case(
    "E",
    given="Mouse symbols in capitals",
    gets="Mouse, by the symbols that only mouse has; `info` prints the evidence",
)
@pytest.mark.parametrize(
    ("symbols", "organism"),
    [
        ([*BOTH, *MOUSE_ONLY], "mouse"),
        ([s.upper() for s in [*BOTH, *MOUSE_ONLY]], "mouse"),
        ([s.lower() for s in [*BOTH, *MOUSE_ONLY]], "mouse"),
        ([*(s.upper() for s in BOTH), *HUMAN_ONLY], "human"),
        ([s.capitalize() for s in [*BOTH, *HUMAN_ONLY]], "human"),
        ([s.upper() for s in BOTH], "human"),
        (BOTH, "mouse"),
        ([s.lower() for s in BOTH], "unknown"),
    ],
)
def test_organism_by_symbols(symbols: list[str], organism: str) -> None:
    tissue = organism_of(symbols)
    assert tissue.organism == organism
    assert "names of one organism only" in tissue.organism_from
    assert tissue.describe()["organism_from"] == tissue.organism_from


@pytest.mark.case(
    "E",
    given="Symbols that do not tell human from mouse",
    gets='Organism "unknown", and a line that asks for `organism=`',
)
def test_symbols_that_contradict_each_other() -> None:
    symbols = [s.upper() for s in [*BOTH, *MOUSE_ONLY]] + HUMAN_ONLY[:3]
    with pytest.warns(TerrazzoWarning, match=r"do not tell human from mouse.*--organism"):
        assert organism_of(symbols).organism == "unknown"


def test_both_organisms_by_symbols() -> None:
    with pytest.warns(TerrazzoWarning, match=r"human \(\d+\) and mouse \(\d+\) genes"):
        assert organism_of([*BOTH, *(s.upper() for s in BOTH)]).organism == "mixed"


def test_ids_go_before_a_statement_that_they_contradict() -> None:
    ids = [mouse_id(symbol) for symbol in SAME]
    with pytest.warns(TerrazzoWarning, match=r"says human, but the genes are mouse.*organism="):
        tissue = organism_of(ids, organism="Homo sapiens")
    assert (tissue.organism, tissue.organism_from) == (
        "mouse",
        "5 of 5 Ensembl ids or genome prefixes",
    )
    assert organism_of(ids, organism="mouse").organism_from == "uns['organism']"
    capitals = [symbol.upper() for symbol in SAME]
    assert organism_of(capitals, organism="mouse").organism == "mouse"


def test_n_with_ortholog() -> None:
    symbols = [*PAIRS, *SEVERAL, "Madeup"]
    assert n_with_ortholog([""] * len(symbols), symbols, "mouse") >= len(PAIRS) + 1
    assert n_with_ortholog([""], ["Madeup"], "mouse") == 0


def test_a_pickled_map_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "map.pkl"
    path.write_bytes(pickle.dumps({mouse_id(m): human_id(h) for m, h in PAIRS.items()}))
    tissue = piece(list(PAIRS))
    assert matched(human_genes(list(PAIRS.values())), tissue, orthologs=path) == PAIRS


def test_info_of_a_real_mouse_slice(shared_dir: Path) -> None:
    path = shared_dir / "data" / "starmap_mpfc" / "BZ5.h5ad"
    if not path.is_file():
        pytest.skip("no starmap_mpfc in the shared folder")
    tissue = read(path)
    n_genes = n_with_ortholog(tissue.gene_ids.tolist(), tissue.gene_symbols.tolist(), "mouse")
    assert n_genes > 150


def test_info_prints_organism_and_orthologs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    symbols = [symbol.upper() for symbol in [*BOTH, *MOUSE_ONLY, "Unheard"]]
    adata = anndata.AnnData(sp.csr_matrix(np.ones((3, len(symbols)), dtype=np.float32)))
    adata.var_names = symbols
    adata.obsm["spatial"] = np.arange(6.0).reshape(3, 2)
    adata.write_h5ad(tmp_path / "capitals.h5ad")
    assert main(["info", str(tmp_path / "capitals.h5ad")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "organism mouse" in printed
    assert "organism from 17 symbols, 0 as in mouse, 17 in capitals" in printed
    assert "human orthologs 16 of 17 genes" in printed
