"""Every obs / obsm / uns key that terrazzo reads or writes, in one place."""

from __future__ import annotations

__all__ = [
    "COUNTS_LAYER",
    "DOMAIN_SUFFIX",
    "DONOR",
    "EMPTY",
    "ENSEMBL_COLUMNS",
    "LIBRARY",
    "ORGANISM",
    "SPATIAL",
    "SYMBOL_COLUMNS",
    "TECHNOLOGY",
    "UNS",
    "X_BASELINE",
    "X_CELL",
    "X_COMPLETED",
    "X_SCGPT",
    "X_STALIGN",
    "X_STIMAGE",
    "X_STOFM",
    "baseline_key",
    "domain_key",
]

# read
SPATIAL = "spatial"  # obsm: coordinates, (n, 2) or more columns
COUNTS_LAYER = "counts"  # layers: raw counts, looked for first
ENSEMBL_COLUMNS = (
    "ensembl_id",
    "gene_ids",
    "gene_id",
    "ensembl",
)  # var: Ensembl ids, in this order
SYMBOL_COLUMNS = (
    "gene_symbols",
    "gene_symbol",
    "gene_name",
    "feature_name",
    "symbol",
)  # var: symbols
ARRAY_ROW, ARRAY_COL = "array_row", "array_col"  # obs: lattice position on Visium and ST
LIBRARY = "library_id"  # obs: which of several uns["spatial"] libraries a cell belongs to
ORGANISM = "organism"  # uns or obs: organism of the slice
DONOR = ("donor", "donor_id", "patient")  # obs or uns: the person or animal, in this order
TECHNOLOGY = "technology"  # uns: platform of the slice

# written
X_STOFM = "X_stofm"  # obsm: SToFM, float32 (n, d)
X_STIMAGE = "X_stimage"  # obsm: ST as images
X_STALIGN = "X_stalign"  # obsm: ST-Align
X_SCGPT = "X_scgpt"  # obsm: scGPT, no tissue context
X_COMPLETED = "X_completed"  # obsm: completion without another model
X_CELL = "X_cell"  # obsm: a cell encoder alone, no tissue context
X_BASELINE = "X_"  # obsm["X_<name>"]: a baseline, dashes as underscores: X_pca_nb3, X_t3
UNS = "terrazzo"  # uns["terrazzo"][key]: provenance of obsm[key]
DOMAIN_SUFFIX = "_domain"  # obs["<key>_domain"]: tissue domains found from obsm[key]
EMPTY = "terrazzo_empty"  # obs: True where the cell has no counts the model can use


def domain_key(key: str) -> str:
    """Return the obs column that holds the domains found from ``obsm[key]``."""
    return f"{key}{DOMAIN_SUFFIX}"


def baseline_key(name: str) -> str:
    """Return the obsm key of a baseline's vectors."""
    return X_BASELINE + name.replace("-", "_")
