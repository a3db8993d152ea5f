"""Slices with regions and an answer about them, made without finding any: for tests of the page."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

KEY = "terrazzo_region"
N_MISTAKEN = 5  # every fifth cell of a known region is of the next one


def with_regions(adata: AnnData, names: list[str]) -> AnnData:
    """Write regions that nearly follow the known ones, their reproducibility, and a record."""
    known = adata.obs["region"].astype("category").cat.codes.to_numpy()
    codes = known.copy()
    codes[::N_MISTAKEN] += 1
    codes = codes % len(names)
    adata.obs[KEY] = pd.Categorical.from_codes(codes, categories=names)
    adata.obs[KEY + "_agreement"] = np.where(codes == known, 0.9, 0.4).astype(np.float32)
    adata.uns.setdefault("terrazzo", {})[KEY] = {
        "task": "regions",
        "vectors": "states (T4)",
        "names": names,
    }
    return adata


def answer_of(slices: list[AnnData], slice_names: list[str], names: list[str]) -> Any:
    """Return what a report reads of an answer: three markers for each region."""
    rows = []
    genes = [str(gene) for gene in slices[0].var_names]
    for region in range(len(names)):
        for rank, against in ((1, "rest"), (2, "rest"), (1, "touching")):
            gene = genes[(3 * region + rank) % len(genes)]
            rows.append((region, against, gene, rank, 0.9, 1.5, 0.8, 0.1, 1e-5, 40))
    columns = [
        "region",
        "against",
        "gene",
        "rank",
        "auc",
        "log2_fold_change",
        "share_in",
        "share_out",
    ]
    markers = pd.DataFrame(rows, columns=[*columns, "p_adjusted", "n"])
    codes = np.concatenate([adata.obs[KEY].cat.codes for adata in slices])
    sizes = np.bincount(codes, minlength=len(names))
    table = pd.DataFrame({"n_cells": sizes, "gene_agreement": np.linspace(0.5, 0.9, len(names))})
    return SimpleNamespace(
        key=KEY,
        slices=slices,
        slice_names=slice_names,
        names=names,
        markers=markers,
        vectors="states (T4)",
        notes=("5 regions: where the score of held-out counts bends.",),
        table=table,
    )
