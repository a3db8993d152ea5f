"""Features that are not genes: by type, by name, and names of genes that look like those of controls."""

from __future__ import annotations

import pandas as pd
import pytest

from terrazzo.genes.features import find_features, kind_by_name

CONTROLS = (
    ["NegPrb1", "NegPrb01", "Negative1", "Negative04", "NegProbe-WTX", "NegControlProbe_00042"],
    ["NegControlCodeword_0500", "NegControlProbe.00042", "NEGPRB1", "NegPrb3-1", "NegAdd-001"],
    ["SystemControl1", "System.Control.12", "FalseCode1", "UnassignedCodeword_0001"],
    ["DeprecatedCodeword_0321", "antisense_PROKR2", "Intergenic_Region_12", "GenomicControl_1"],
    ["Negative control probe 3", "GRCh38_NegPrb1", "Control1"],
)
BLANKS = ["Blank-1", "blank1", "Blank_23", "Blank.7", "BLANK_0001", "Blank", "BLANK-12-1"]
GENES = (
    ["NEGR1", "Negr1", "BLNK", "Blnk", "ERCC1", "ERCC5", "ERCC6L2", "Ercc8", "CTRL", "CTRB1"],
    ["ANTXR1", "INTS1", "INTU", "POSTN", "SYS1", "DEPDC1", "UNC5B", "BLK", "SIRPA", "RGCC"],
    ["NELFA", "CONTROL", "FALEC", "GenomeA", "N4BP1", "CD4", "GRCh38_NEGR1", ""],
)


@pytest.mark.parametrize("name", [name for names in CONTROLS for name in names])
def test_controls(name: str) -> None:
    assert kind_by_name(name) == "control probes and codes"


def test_blanks_spike_ins_and_tallies() -> None:
    assert {kind_by_name(name) for name in BLANKS} == {"blank barcodes"}
    for name in ("ERCC-00002", "ERCC_00171", "ERCC.00130", "SIRV1"):
        assert kind_by_name(name) == "spike-ins"
    for name in ("__no_feature", "__ambiguous[A+B]", "N_unmapped"):
        assert kind_by_name(name) == "tallies of reads"


@pytest.mark.parametrize("name", [name for names in GENES for name in names])
def test_genes_whose_names_begin_alike(name: str) -> None:
    assert kind_by_name(name) == ""


@pytest.mark.parametrize(
    ("column", "types", "is_gene"),
    [
        ("feature_types", ["Gene Expression", "Antibody Capture", "CRISPR Guide Capture"], "100"),
        ("feature_types", ["Gene Expression", "Custom", "Peaks"], "100"),
        ("feature_types", ["Gene Expression", None, "Something new"], "110"),
        ("feature_types", ["Antibody Capture"] * 3, "000"),
        ("feature_types", ["Negative Control Probe", "Gene Expression", "Genomic Control"], "010"),
        ("feature_type", ["protein_coding", "lncRNA", "TR_V_gene"], "111"),  # biotypes
        ("feature_biotype", ["gene", "spike-in", "gene"], "101"),
        ("CodeClass", ["Endogenous", "Negative", "SystemControl"], "100"),
        ("type", ["custom", "predesigned", "x"], "111"),
        ("modality", ["RNA", "protein", "RNA"], "101"),
    ],
)
def test_types(column: str, types: list[str | None], is_gene: str) -> None:
    var = pd.DataFrame({column: pd.Categorical(types)}, index=["A1", "B1", "C1"])
    found = find_features(var)
    assert "".join(str(int(one)) for one in found.is_gene) == is_gene
    assert found.all_genes == ("0" not in is_gene)


def test_an_ensembl_id_makes_a_gene_and_symbols_are_looked_at() -> None:
    ids = ["ENSG00000141510.3", "Blank-1", "ENSG00000146648"]
    var = pd.DataFrame({"gene_ids": ids, "feature_name": ["Blank-1", "Blank-1", "EGFR"]}, index=ids)
    assert find_features(var).is_gene.tolist() == [True, False, True]
    named = pd.DataFrame({"gene_symbols": ["NegPrb1", "EGFR"]}, index=["0", "1"])
    assert find_features(named).is_gene.tolist() == [False, True]
    two = pd.DataFrame([["Gene Expression", "x"], ["Antibody Capture", "x"]], index=["A", "B"])
    two.columns = ["feature_types", "feature_types"]
    assert find_features(two).is_gene.tolist() == [True, False]


def test_the_note_counts_by_kind() -> None:
    var = pd.DataFrame(index=["A1", "Blank-1", "Blank-2", "NegPrb1", "ERCC-00002"])
    assert find_features(var).note == (
        "4 features that are not genes left out "
        "(2 blank barcodes, 1 control probes and codes, 1 spike-ins)"
    )
    assert find_features(var.iloc[:1]).note == ""
