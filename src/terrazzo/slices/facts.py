"""What a slice says of itself beside counts and places: whom it is of, of which tissue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData


def stated(adata: AnnData, names: Sequence[str]) -> str:
    """Return what the first of these columns of ``obs`` holds, several values joined by "|"; else the first of ``uns``.

    "" where nothing says it.
    """
    columns = [adata.obs[name] for name in names if name in adata.obs.columns]
    values = sorted({str(v).strip() for v in columns[0].dropna().unique()}) if columns else []
    texts = [str(adata.uns[name]).strip() for name in names if isinstance(adata.uns.get(name), str | np.str_)]
    return "|".join(values) or next(iter(texts), "")
