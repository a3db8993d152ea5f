"""The blocks of an embedding are read by name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import terrazzo as tz
from terrazzo.errors import InputError
from terrazzo.systems.stofm.config import preset


@pytest.fixture(scope="module")
def embedded() -> object:
    adata = tz.simulate.tissue(120, n_genes=60, seed=3)
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(adata)])
    for output, key in (("own+niche", "both"), ("niche", "one")):
        config = dataclasses.replace(preset("tiny", vocabulary.n_tokens), output=output)
        tz.SToFM(config, vocabulary).embed(adata, key_added=key, progress=False)
    adata.obsm["X_foreign"] = np.zeros((120, 2))
    return adata


def test_own_and_niche(embedded: object) -> None:
    own, niche = (tz.block(embedded, "both", name) for name in ("own", "niche"))
    np.testing.assert_array_equal(np.hstack([own, niche]), embedded.obsm["both"])
    np.testing.assert_allclose(np.linalg.norm(own, axis=1), 1, rtol=1e-5)
    scale = np.median(embedded.obsm["one"] / niche)
    np.testing.assert_allclose(niche * scale, embedded.obsm["one"], atol=1e-4)


@pytest.mark.parametrize(
    ("key", "name", "says"),
    [
        ("both", "region", "own, niche"),
        ("one", "own", "one block"),
        ("X_foreign", "own", "not written"),
    ],
)
def test_what_is_not_there(embedded: object, key: str, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        tz.block(embedded, key, name)
