"""Which features of an assay are genes: the one list of antibodies, guides, control probes, blanks and spike-ins.

Every door uses it: AnnData in memory and on disk, SpatialData, vendors' folders, corpora. Features are left out of what
models see, never of the data.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from terrazzo import keys
from terrazzo.arrays import Bools
from terrazzo.genes.names import ensembl_id, strip_genome

__all__ = ["GENE_EXPRESSION", "Features", "find_features", "kind_by_name"]

GENE_EXPRESSION = (
    "Gene Expression"  # type of the features that are genes, as 10x Genomics writes it
)
_TYPE_COLUMNS = (
    "feature_types",  # 10x Genomics, as scanpy reads it
    "feature_type",
    "feature_biotype",  # CELLxGENE: gene, spike-in
    "feature_class",
    "Type",
    "type",
    "modality",
    "probe_type",
    "CodeClass",  # NanoString, Bruker
    "code_class",
    "codeclass",
)
_GENE_TYPES = frozenset(
    {"gene expression", "gene", "genes", "gex", "rna", "mrna", "transcriptome", "endogenous"}
)
# types that are no genes in any column; others may be biotypes (protein_coding, lncRNA), which are genes
_OTHER_TYPES = frozenset(
    {
        "antibody",
        "antibodies",
        "antibody capture",
        "antigen capture",
        "adt",
        "blank",
        "blank codeword",
        "chromatin accessibility",
        "control",
        "control codeword",
        "control probe",
        "crispr guide capture",
        "deprecated codeword",
        "falsecode",
        "false code",
        "genomic control",
        "guide",
        "hashtag",
        "hto",
        "isotype control",
        "multiplexing capture",
        "negative",
        "negative control",
        "negative control codeword",
        "negative control probe",
        "negative probe",
        "peaks",
        "protein",
        "protein expression",
        "spike in",
        "system control",
        "systemcontrol",
        "unassigned codeword",
        "vdj",
        "vdj b",
        "vdj t",
        "vdj t gd",
    }
)
_END = r"(?:[-_. ]?\d+)*"  # the number of a probe, and that of a name made unique
_KINDS = {
    # CosMx and GeoMx: NegPrb, Negative, SystemControl, FalseCode. Xenium: NegControlProbe, NegControlCodeword,
    # UnassignedCodeword, DeprecatedCodeword, antisense_, Intergenic_Region. None is the beginning of a symbol: NEGR1
    # and its like go on otherwise.
    "control probes and codes": (
        r"neg(?:ative)?[-_. ]?(?:prb|probe|control|ctrl|ctl|codeword|add)s?(?:[-_. ]?\w+)*",
        rf"negative{_END}",
        rf"(?:system|genomic|positive)[-_. ]?(?:control|ctrl)(?:[-_. ]?(?:probe|codeword))?{_END}",
        rf"false[-_. ]?code(?:word)?{_END}",
        rf"(?:unassigned|deprecated)[-_. ]?codeword{_END}",
        rf"(?:unassigned|deprecated){_END}",
        rf"control[-_. ]?(?:probe|codeword)?[-_. ]?\d+{_END}",
        r"antisense[-_.]\S+",
        r"intergenic(?:[-_. ]?\w+)*",
    ),
    # MERSCOPE and MERFISH: Blank-1, blank1. Xenium before 1.4: BLANK_0001
    "blank barcodes": (rf"blanks?(?:[-_. ]?(?:code|codeword|barcode))?{_END}",),
    # ERCC-00002 is RNA that was added; ERCC1 to ERCC8 and ERCC6L are genes
    "spike-ins": (r"ercc[-_.]\d{5}(?:[-_.]\d+)?", r"sirv[-_.]?\d{1,4}"),
    # rows of htseq-count, STARsolo and the ST pipeline
    "tallies of reads": (
        r"__(?:no_feature|ambiguous|too_low_aqual|not_aligned|alignment_not_unique)\b.*",
        r"n_(?:unmapped|multimapping|nofeature|ambiguous)",
    ),
}
_PATTERNS = {kind: re.compile("|".join(names), re.IGNORECASE) for kind, names in _KINDS.items()}
_BEGINNINGS = (
    "neg", "sys", "gen", "pos", "fal", "una", "dep", "con", "ant", "int", "bla", "erc", "sir",
    "__", "n_",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Features:
    """The features of a matrix.

    Attributes
    ----------
    is_gene
        bool (g,).
    left_out
        How many of each kind are not genes; "" for none.
    """

    is_gene: Bools
    left_out: str

    @property
    def all_genes(self) -> bool:
        """Whether every feature is a gene."""
        return bool(self.is_gene.all())

    @property
    def note(self) -> str:
        """What is left out, in words; "" for nothing."""
        n_others = int((~self.is_gene).sum())
        if not n_others:
            return ""
        return f"{n_others} features that are not genes left out ({self.left_out})"


def find_features(var: pd.DataFrame, *, of_10x: bool = False) -> Features:
    """Tell the genes of a ``var`` table from all else.

    A feature is not a gene if a column of types says so (``feature_types`` and its like; any type but "Gene Expression"
    where that is among them, else types that are known), or if its name in the index or a column of symbols is that of
    a control. A feature that a column identifies by an Ensembl id is a gene whatever its symbol.

    Parameters
    ----------
    var
        A row a feature.
    of_10x
        Types are those of a file of 10x Genomics: every one but "Gene Expression" is of no gene.
    """
    kinds = [""] * len(var)
    for column in _TYPE_COLUMNS:
        values = _texts(var, column)
        if values:
            _add_types(kinds, values, of_10x)
    id_columns = [_texts(var, name) for name in keys.ENSEMBL_COLUMNS]
    name_columns = [_texts(var, name) for name in keys.SYMBOL_COLUMNS]
    name_columns.append([str(name) for name in var.index])
    for names in name_columns:
        for i, name in enumerate(names):
            kind = "" if kinds[i] else kind_by_name(name)
            if kind and not any(ids and ensembl_id(ids[i]) for ids in id_columns):
                kinds[i] = kind
    is_gene = np.array([kind == "" for kind in kinds], dtype=bool)
    numbers = Counter(kind for kind in kinds if kind)
    left_out = ", ".join(f"{number} {kind}" for kind, number in sorted(numbers.items()))
    return Features(is_gene, left_out)


def kind_by_name(name: str) -> str:
    """Return what a feature of this name is where it is not a gene ("blank barcodes"), "" for a gene."""
    name = name.strip()
    if not name.lower().startswith(_BEGINNINGS):
        name = strip_genome(name)
        if not name.lower().startswith(_BEGINNINGS):
            return ""
    for kind, pattern in _PATTERNS.items():
        if pattern.fullmatch(name):
            return kind
    return ""


def _add_types(kinds: list[str], values: list[str], of_10x: bool) -> None:
    """Note features whose type says that they are not genes."""
    plain = {value: re.sub(r"[\s_-]+", " ", value.strip().lower()) for value in set(values)}
    has_genes = of_10x or GENE_EXPRESSION.lower() in plain.values()
    others = set()
    for value, word in plain.items():
        is_other = word in _OTHER_TYPES
        if has_genes:
            is_other = word not in _GENE_TYPES and word not in ("", "nan", "none", "unknown")
        if is_other:
            others.add(value)
    for i, value in enumerate(values):
        if value in others and not kinds[i]:
            kinds[i] = value.strip()


def _texts(var: pd.DataFrame, column: str) -> list[str]:
    """Return a column as texts, "" where missing; [] where the table has no such column."""
    if column not in var.columns:
        return []
    values = var[column]
    if not isinstance(values, pd.Series):  # two columns of one name
        values = values.iloc[:, 0]
    texts = []
    for value, is_missing in zip(values, pd.isna(values), strict=True):
        texts.append("" if is_missing else str(value))
    return texts
