"""The blocks of a SToFM embedding: own and niche."""

from __future__ import annotations

import dataclasses

import numpy as np

import terrazzo as tz
from terrazzo.records import blocks
from terrazzo.systems.stofm.config import preset


def test_own_and_niche() -> None:
    adata = tz.simulate.tissue(120, n_genes=60, seed=3)
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(adata)])
    for output, key in (("own+niche", "both"), ("niche", "one")):
        config = dataclasses.replace(preset("tiny", vocabulary.n_tokens), output=output)
        tz.SToFM(config, vocabulary).embed(adata, key_added=key, progress=False)
    own, niche = (tz.get(adata, f"both:{name}") for name in ("own", "niche"))
    np.testing.assert_array_equal(np.hstack([own, niche]), adata.obsm["both"])
    np.testing.assert_allclose(np.linalg.norm(own, axis=1), 1, rtol=1e-5)
    scale = np.median(adata.obsm["one"] / niche)
    np.testing.assert_allclose(niche * scale, adata.obsm["one"], atol=1e-4)
    assert blocks(adata, "one") == {}
