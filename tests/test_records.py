"""Embeddings and their provenance: blocks by name, what a task reads, and what is written beside it."""

from __future__ import annotations

import datetime
import json
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

import terrazzo as tz
from terrazzo import records
from terrazzo.errors import InputError


@pytest.fixture
def embedded() -> AnnData:
    """Make a slice with an embedding of two blocks, one of one block, and one that is not terrazzo's."""
    adata = AnnData(np.zeros((12, 1), dtype=np.float32))
    adata.obsm["both"] = np.arange(84, dtype=np.float32).reshape(12, 7)
    adata.obsm["one"] = np.ones((12, 3), dtype=np.float32)
    adata.obsm["X_foreign"] = np.zeros((12, 2))
    ranges = {"own": [0, 3], "niche": [3, 7]}
    records.add_record(adata, "both", {"details": json.dumps({"blocks": ranges})})
    records.add_record(adata, "one", {"details": "{}"})
    return adata


def test_blocks_are_columns(embedded: AnnData) -> None:
    assert records.blocks(embedded, "both") == {"own": (0, 3), "niche": (3, 7)}
    assert records.blocks(embedded, "one") == {}
    assert records.blocks(embedded, "X_foreign") == {}
    own, niche = (records.block(embedded, "both", name) for name in ("own", "niche"))
    np.testing.assert_array_equal(np.hstack([own, niche]), embedded.obsm["both"])
    own[0, 0] = -5  # a view
    assert embedded.obsm["both"][0, 0] == -5


@pytest.mark.parametrize(
    ("key", "name", "says"),
    [
        ("both", "region", "own, niche"),
        ("one", "own", "one block"),
        ("X_foreign", "own", "not written"),
        ("X_missing", "own", "not written"),
    ],
)
def test_a_missing_block(embedded: AnnData, key: str, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        records.block(embedded, key, name)


@pytest.mark.parametrize(
    ("use_rep", "purpose", "columns"),
    [
        ("both", "all", slice(0, 7)),
        ("both", "own", slice(0, 3)),
        ("both", "niche", slice(3, 7)),
        ("both:niche", "own", slice(3, 7)),
        ("both:all", "own", slice(0, 7)),
        ("one", "niche", slice(0, 3)),
    ],
)
def test_a_bare_key_is_what_its_purpose_says(
    embedded: AnnData, use_rep: str, purpose: Any, columns: slice
) -> None:
    key = use_rep.partition(":")[0]
    expected = embedded.obsm[key][:, columns]
    np.testing.assert_array_equal(records.vectors(embedded, use_rep, purpose=purpose), expected)


def test_arrays_are_read_as_floats(embedded: AnnData) -> None:
    whole = np.arange(24).reshape(12, 2)
    read = records.vectors(embedded, whole)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, whole)
    embedded.obsm["sparse"] = sp.csr_matrix(np.eye(12))
    np.testing.assert_array_equal(records.vectors(embedded, "sparse"), np.eye(12))


@pytest.mark.parametrize(
    ("use_rep", "says"),
    [
        (np.zeros((3, 2)), r"the array passed as use_rep has shape \(3, 2\)"),
        (np.zeros((12, 0)), r"must be \(12, d\)"),
        (np.full((12, 1), "a"), "does not hold numbers"),
        (np.where(np.arange(24) == 9, np.nan, 0).reshape(12, 2), "in 1 of 12 cells .first: 4"),
        ("boht", "Did you mean 'both'"),
        ("X_else", "Embed first"),
    ],
)
def test_what_is_no_embedding(embedded: AnnData, use_rep: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        records.vectors(embedded, use_rep)


def test_a_record_has_version_and_time_and_leaves_the_others(embedded: AnnData) -> None:
    record = {"task": "domains"}
    records.add_record(embedded, "new", record)
    written = embedded.uns["terrazzo"]
    assert list(written) == ["both", "one", "new"]
    assert written["new"]["task"] == "domains"
    assert written["new"]["terrazzo_version"] == tz.__version__
    time = datetime.datetime.fromisoformat(written["new"]["date"])
    assert time.tzinfo is not None
    assert record == {"task": "domains"}
