"""Genes: the vocabulary, how slices meet it, and what may be unpickled."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.errors import CheckpointError, ConfigError, GeneError, InputError, TerrazzoWarning
from terrazzo.genes import Vocabulary, load_orthologs
from terrazzo.slices import Slice, read

HUMAN = ["TP53", "EGFR", "MYC", "GAPDH", "C2orf74", "ACE2"]
IDS = [f"ENSG0000000000{i}" for i in range(6)]
MOUSE_IDS = [f"ENSMUSG0000000000{i}" for i in range(6)]


def vocabulary(**changes: Any) -> Vocabulary:
    """Build six human genes with tokens 2-7."""
    columns = {
        "ensembl_id": IDS,
        "symbol": HUMAN,
        "token": np.arange(2, 8),
        "median": np.arange(1.0, 7.0),
    }
    return Vocabulary(**{**columns, "special": {"<pad>": 0, "<mask>": 1, "<cls>": 8}, **changes})


def piece(
    symbols: list[str] | None = None,
    ids: list[str] | None = None,
    x: Any = None,
    organism: str = "human",
) -> Slice:
    """Build a slice of four cells (or as many as ``x`` has)."""
    n = len(symbols or ids or [])
    x = np.ones((4, n)) if x is None else np.asarray(x, dtype=float)
    return Slice(
        counts=sp.csr_matrix(x.astype(np.float32)),
        gene_ids=np.array(ids or [""] * n),
        gene_symbols=np.array(symbols or [""] * n),
        coords=np.zeros((len(x), 2)),
        obs_names=np.array([f"c{i}" for i in range(len(x))]),
        organism=organism,
    )


# the table


def test_vocabulary_basics() -> None:
    vocab = vocabulary()
    assert (len(vocab), vocab.n_tokens) == (6, 9)
    assert "6 genes" in repr(vocab)
    assert vocab.content_hash() == vocabulary().content_hash()
    others = [
        vocabulary(organism="mouse"),
        vocabulary(special={}),
        vocabulary(median=np.arange(2.0, 8.0)),
    ]
    assert len({v.content_hash() for v in [vocab, *others]}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token": [2, 3, 4, 5, 6, 6]}, "token 6 is used more than once"),
        ({"special": {"<pad>": 2}}, "token 2 is used more than once"),
        ({"token": [-1, 3, 4, 5, 6, 7]}, "negative"),
        ({"median": [1, 2, 3, 4, 5, 0]}, "medians"),
        ({"median": [1, 2, 3, 4, 5, np.nan]}, "medians"),
        ({"median": [1.0]}, "differ in length"),
        ({"ensembl_id": [*IDS[:5], IDS[0]]}, "more than one row"),
        ({"ensembl_id": [""] * 6, "symbol": [""] * 6}, "neither"),
        ({"organism": "yeti"}, "organism 'yeti'"),
    ],
)
def test_impossible_vocabularies(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vocabulary(**changes)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=8, unique=True), st.randoms())
def test_parquet_round_trip(
    tmp_path_factory: pytest.TempPathFactory, symbols: list[str], random: Any
) -> None:
    n = len(symbols)
    symbols = [symbol.rstrip("\0") or "x" for symbol in symbols]  # numpy strings cannot end in NUL
    token = random.sample(range(10, 100), n)
    vocab = Vocabulary(
        [""] * n, symbols, token, [random.uniform(0.1, 9) for _ in token], {"<pad>": 0}, "mouse"
    )
    path = tmp_path_factory.mktemp("vocab") / "vocab.parquet"
    vocab.to_parquet(path)
    again = Vocabulary.from_parquet(path)
    assert again.content_hash() == vocab.content_hash()
    assert (again.special, again.organism, again.token.dtype) == ({"<pad>": 0}, "mouse", np.int32)


def test_parquet_files_that_are_no_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "vocab.parquet"
    with pytest.raises(CheckpointError, match="does not exist"):
        Vocabulary.from_parquet(path)
    vocabulary().to_parquet(path)
    good = pq.read_table(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="damaged, truncated"):
        Vocabulary.from_parquet(path)
    pq.write_table(good.replace_schema_metadata({}), path)
    with pytest.raises(CheckpointError, match="no terrazzo vocabulary"):
        Vocabulary.from_parquet(path)
    pq.write_table(good.drop_columns(["median"]), path)
    with pytest.raises(CheckpointError, match="unexpected types"):
        Vocabulary.from_parquet(path)
    key = b"terrazzo_vocabulary"
    for token, median, message in (
        ([2, 2, 4, 5, 6, 7], [1.0] * 6, "token 2 is used"),
        ([2, 3, 4, 5, 6, 7], [-1.0] * 6, "medians"),
        ([None, 3, 4, 5, 6, 7], [1.0] * 6, "missing values"),
    ):
        columns = [
            good["ensembl_id"],
            good["symbol"],
            pa.array(token, pa.int32()),
            pa.array(median, pa.float64()),
        ]
        pq.write_table(pa.table(columns, schema=good.schema), path)
        with pytest.raises(CheckpointError, match=message):
            Vocabulary.from_parquet(path)
    about = json.loads(good.schema.metadata[key])
    for metadata in (b"{", b"[]", json.dumps({**about, "special": 3}).encode()):
        pq.write_table(good.replace_schema_metadata({key: metadata}), path)
        with pytest.raises(CheckpointError, match=r"vocab\.parquet"):
            Vocabulary.from_parquet(path)
    newer = json.dumps({**about, "format_version": 2}).encode()
    pq.write_table(good.replace_schema_metadata({key: newer}), path)
    with pytest.raises(CheckpointError, match=r"format 2.*reads 1"):
        Vocabulary.from_parquet(path)


# matching


def test_matching_order() -> None:
    symbols = ["wrong", "egfr", "MYC", "G3PD", "C2ORF74", "ERCC-1"]
    found = vocabulary().match(
        piece(symbols, [IDS[0], "", "ENSG00000099999", "", "", ""]), aliases={"G3PD": "GAPDH"}
    )
    assert found.column_token.tolist() == [2, 3, 4, 5, 6, -1]
    assert found.column_token.dtype == np.int32
    assert found.column_median.tolist() == [1, 2, 3, 4, 5, 1]
    assert found.coverage.by == {
        "ensembl": 1,
        "symbol": 1,
        "symbol_case": 2,
        "alias": 1,
        "ortholog": 0,
    }
    by_id = vocabulary().match(piece(HUMAN), aliases=pd.DataFrame({"a": ["X"], "b": [IDS[0]]}))
    assert by_id.coverage.by["symbol"] == 6
    odd = piece(["P53", *HUMAN[1:]])
    assert (
        vocabulary().match(odd, aliases=pd.DataFrame({"a": ["P53"], "b": [IDS[0]]})).column_token[0]
        == 2
    )
    ambiguous = pd.DataFrame({"a": ["P53", "P53"], "b": ["TP53", "MYC"]})
    assert vocabulary().match(odd, aliases=ambiguous).column_token[0] == -1


def test_two_columns_on_one_token() -> None:
    found = vocabulary().match(piece([*HUMAN, "tp53"]))
    assert found.column_token.tolist() == [2, 3, 4, 5, 6, 7, 2]
    assert found.coverage.n_merged == 1


def test_coverage_numbers_and_text() -> None:
    x = [[1, 0, 0, 0, 3], [0, 2, 0, 2, 0], [0, 0, 0, 0, 5], [0, 0, 0, 0, 0]]
    coverage = vocabulary().coverage(piece(["TP53", "EGFR", "MYC", "XX1", "XX2"], x=x))
    assert (coverage.n_genes, coverage.n_matched, coverage.n_unmatched) == (5, 3, 2)
    assert coverage.share_counts == pytest.approx(3 / 13)
    assert (coverage.min_cell_share, coverage.n_empty_after) == (0.0, 2)
    assert coverage.unmatched_examples == ("XX2", "XX1")
    text = str(coverage)
    assert "3 of 5 genes matched (3 by symbol)" in text
    assert "2 cells have no matched counts" in text
    assert json.loads(json.dumps(coverage.to_dict()))["n_matched"] == 3


def test_slice_without_any_count() -> None:
    found = vocabulary().match(piece(HUMAN, x=np.zeros((2, 6))))
    assert (found.coverage.share_counts, found.coverage.n_empty_after) == (0.0, 2)


FEW = pytest.mark.filterwarnings("ignore:slice .*fewer than 3:terrazzo.errors.TerrazzoWarning")


@FEW
def test_floor() -> None:
    x = np.ones((4, 7))
    x[:, 6] = 1000
    low = piece([*HUMAN, "NOISE"], x=x)
    with pytest.raises(
        GeneError, match=r"6 of 7 genes matched, 0\.6% of the counts.*Unmatched.*NOISE"
    ) as caught:
        vocabulary().match(low)
    for word in ("TP53 (ENSG00000000000)", "organism=", "orthologs=", "ensembl_id"):
        assert word in str(caught.value)
    assert vocabulary().match(low, floor=0.001).coverage.n_matched == 6
    with pytest.raises(GeneError, match="2 of 9 genes"):
        vocabulary().match(piece(["TP53", "EGFR", *"abcdefg"]))
    assert vocabulary().match(piece(["TP53", "EGFR"])).coverage.n_matched == 2
    with pytest.raises(GeneError, match="0 of 3 genes matched"):
        vocabulary().match(piece(["q1", "q2", "q3"]))
    assert vocabulary().coverage(piece(["q1", "q2", "q3"])).n_matched == 0


def test_mouse_without_orthologs_goes_by_letter_case() -> None:
    mouse = piece(["Tp53", "Egfr", "Myc", "Gapdh", "Ace2"], MOUSE_IDS[:5], organism="mouse")
    with pytest.warns(TerrazzoWarning, match="approximates one-to-one orthologs; pass orthologs="):
        found = vocabulary().match(mouse)
    assert found.column_token.tolist() == [2, 3, 4, 5, 7]
    human = piece(HUMAN, organism="human")
    with pytest.warns(TerrazzoWarning, match="human genes are matched to the mouse"):
        back = vocabulary(
            symbol=[s.capitalize() for s in HUMAN], ensembl_id=MOUSE_IDS, organism="mouse"
        ).match(human)
    assert (back.column_token >= 0).all()
    only_ids = piece(None, MOUSE_IDS, organism="mouse")
    with pytest.warns(TerrazzoWarning), pytest.raises(GeneError, match="orthologs="):
        vocabulary().match(only_ids)


def test_orthologs_one_to_one_only() -> None:
    mouse = piece([f"m{i}" for i in range(6)], MOUSE_IDS, organism="mouse")
    table = {
        MOUSE_IDS[0]: IDS[0],
        MOUSE_IDS[1] + ".3": "EGFR",  # a version, and a symbol as target
        MOUSE_IDS[2]: [IDS[2], IDS[3]],  # one to many
        MOUSE_IDS[3]: IDS[4],  # many to one, with the next
        MOUSE_IDS[4]: IDS[4],
        "m5": IDS[5],  # by the slice's symbol
    }
    found = vocabulary().match(mouse, orthologs=table, min_genes=3)
    assert found.column_token.tolist() == [2, 3, -1, -1, -1, 7]
    assert (found.coverage.by["ortholog"], found.coverage.n_ortholog_lost) == (3, 3)
    assert "3 genes lost" in str(found.coverage)
    rows = [(a, b) for a, bs in table.items() for b in (bs if isinstance(bs, list) else [bs])]
    again = vocabulary().match(mouse, orthologs=pd.DataFrame([*rows, rows[0]]), min_genes=3)
    assert again.column_token.tolist() == found.column_token.tolist()
    with pytest.raises(InputError, match="two-column"):
        vocabulary().match(mouse, orthologs=pd.DataFrame({"a": [1]}))


def test_mixed_slice() -> None:
    mixed = piece(
        ["TP53", "Trp53", "MYC", "gapdh", "EGFR", "C2orf74", "ACE2"],
        [IDS[0], MOUSE_IDS[0], MOUSE_IDS[1], "", "", "", ""],
        organism="mixed",
    )
    with pytest.warns(TerrazzoWarning, match="only its human genes"):
        found = vocabulary().match(mixed, min_genes=1)
    assert found.column_token.tolist() == [2, -1, -1, -1, 3, 6, 7]


@FEW
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".pkl"])
def test_load_orthologs(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    frame = pd.DataFrame(
        {"mouse": [MOUSE_IDS[0] + ".1", MOUSE_IDS[1], None], "human": [IDS[0], IDS[1], IDS[2]]}
    )
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix == ".pkl":
        path.write_bytes(pickle.dumps(dict(frame.dropna().values.tolist())))
    else:
        frame.to_csv(path, sep="," if suffix == ".csv" else "\t", index=False)
    table = load_orthologs(path)
    assert table.values.tolist() == [[MOUSE_IDS[0], IDS[0]], [MOUSE_IDS[1], IDS[1]]]
    mouse = piece(None, MOUSE_IDS[:2], organism="mouse")
    assert vocabulary().match(mouse, orthologs=path).column_token.tolist() == [2, 3]


def test_ortholog_files_that_are_none(tmp_path: Path) -> None:
    headless = tmp_path / "headless.csv"
    headless.write_text(f"{MOUSE_IDS[0]},{IDS[0]}\n{MOUSE_IDS[1]},{IDS[1]}\n")
    assert len(load_orthologs(headless)) == 2
    (tmp_path / "three.csv").write_text("a,b,c\n1,2,3\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bad.parquet").write_text("no")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    (tmp_path / "x.doc").write_text("")
    for name, message in {
        "three.csv": "two-column",
        "empty.csv": "cannot be read",
        "bad.parquet": "cannot be read",
        "x.doc": "csv",
        "no.csv": "does not exist",
    }.items():
        with pytest.raises(InputError, match=message):
            load_orthologs(tmp_path / name)
    with pytest.raises(CheckpointError, match="not a dict"):
        load_orthologs(tmp_path / "list.pkl")


# building


def test_from_slices_medians_are_exact() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.poisson(0.7, (30, 4)), rng.poisson(0.7, (25, 4))
    a[:, 3] = b[:, 3] = 0
    one = piece(["A", "B", "C", "D"], ["ENSG00000000001", "ENSG00000000002", "", ""], x=a)
    two = piece(["B", "A", "C", "E"], ["ENSG00000000002", "", "ENSG00000000003", ""], x=b)
    vocab = Vocabulary.from_slices(iter([one, two]))
    assert vocab.ensembl_id.tolist() == [
        "",
        "",
        "ENSG00000000001",
        "ENSG00000000002",
        "ENSG00000000003",
    ]
    assert vocab.symbol.tolist() == ["D", "E", "A", "B", "C"]
    assert vocab.token.tolist() == [3, 4, 5, 6, 7]
    assert (vocab.special, vocab.organism) == ({"<pad>": 0, "<mask>": 1, "<cls>": 2}, "human")
    with np.errstate(invalid="ignore"):
        na, nb = (x / x.sum(1, keepdims=True) * 1e4 for x in (a, b))
    for row, values in {
        2: (na[:, 0], nb[:, 1]),
        3: (na[:, 1], nb[:, 0]),
        4: (na[:, 2], nb[:, 2]),
    }.items():
        every = np.concatenate(values)
        assert vocab.median[row] == pytest.approx(np.median(every[every > 0]), rel=1e-6)
    assert vocab.median[0] == pytest.approx(np.median(vocab.median[2:]))
    assert Vocabulary.from_slices([two, one]).content_hash() == vocab.content_hash()


def test_from_slices_in_bins_stays_close() -> None:
    from terrazzo.genes.medians import NonZeroMedians

    rng = np.random.default_rng(0)
    exact, binned = NonZeroMedians(), NonZeroMedians(exact_values=100)
    for part in range(5):
        gene, value = rng.integers(0, 10 + part, 3000), 10 ** rng.uniform(-5, -0.1, 3000)
        exact.add(gene, value)
        binned.add(gene, value)
    np.testing.assert_allclose(binned.result(20)[:14], exact.result(20)[:14], rtol=0.007)
    assert np.isnan(binned.result(20)[14:]).all()


def test_from_slices_refuses() -> None:
    with pytest.raises(ConfigError, match="at least one slice"):
        Vocabulary.from_slices([])
    logged = piece(HUMAN)
    object.__setattr__(logged, "is_counts", False)
    with pytest.raises(InputError, match="need counts"):
        Vocabulary.from_slices([logged])
    both = [piece(HUMAN), piece(["Ace2"], organism="mouse")]
    assert Vocabulary.from_slices(both).organism == "mixed"
    assert Vocabulary.from_slices(both, organism="human").organism == "human"


def test_from_geneformer(shared_dir: Path) -> None:
    folder = shared_dir / "reference" / "geneformer"
    if not folder.is_dir():
        pytest.skip("no reference/geneformer in the shared folder")
    vocab = Vocabulary.from_geneformer(folder)
    assert (len(vocab), vocab.n_tokens) == (25_424, 25_427)
    assert vocab.special == {"<pad>": 0, "<mask>": 1, "<cls>": 25_426}
    first = vocab.ensembl_id.tolist().index("ENSG00000000003")
    assert (vocab.symbol[first], int(vocab.token[first])) == ("TSPAN6", 2)
    assert vocab.median[first] == pytest.approx(2.001186019549122, rel=1e-15)
    assert vocab.coverage(read(shared_dir / "data" / "dlpfc" / "151673.h5ad")).share_counts > 0.9
    table = load_orthologs(folder / "mouseid2humanid.pkl")
    assert len(table) == 20_473
    mouse = piece(None, table["source"].tolist()[:3000], organism="mouse")
    coverage = vocab.coverage(mouse, orthologs=table)
    assert coverage.by["ortholog"] > 1500
    assert coverage.n_ortholog_lost > 0


def test_from_geneformer_faults(tmp_path: Path) -> None:
    def write(**content: Any) -> None:
        for name, value in content.items():
            (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(value))

    with pytest.raises(CheckpointError, match=r"token_dictionary\.pkl does not exist"):
        Vocabulary.from_geneformer(tmp_path)
    tokens = {"<pad>": 0, **{gene: np.int16(i + 1) for i, gene in enumerate(IDS)}}
    write(
        token_dictionary=tokens,
        gene_median_dictionary={IDS[0]: 1.0},
        gene_name_id_dict={"TP53": IDS[0]},
    )
    with pytest.raises(CheckpointError, match="5 genes have a token but no median"):
        Vocabulary.from_geneformer(tmp_path)
    write(gene_median_dictionary=dict.fromkeys(IDS, np.float64(2.5)))
    vocab = Vocabulary.from_geneformer(tmp_path)
    assert (vocab.special["<cls>"], vocab.symbol[0], vocab.median[0]) == (7, "TP53", 2.5)
    write(token_dictionary=["a"])
    with pytest.raises(CheckpointError, match="not a dict of names to int"):
        Vocabulary.from_geneformer(tmp_path)
