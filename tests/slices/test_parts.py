"""An AnnData split into its sections, and what was written to them put back."""

from __future__ import annotations

import json
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from terrazzo import records
from terrazzo.errors import InputError
from terrazzo.slices.parts import each_part, put_back, split


@pytest.fixture
def whole() -> AnnData:
    """Two sections, rows mixed, with whatever an AnnData can hold."""
    rng = np.random.default_rng(0)
    adata = AnnData(sp.csr_matrix(rng.poisson(2, (30, 4)).astype(np.float32)))
    adata.obs["sample"] = pd.Categorical(rng.permutation(["B", "A"] * 15), categories=["B", "A"])
    adata.obs["type"] = pd.Categorical(rng.choice(["x", "y"], 30))
    adata.obsm["spatial"] = rng.uniform(0, 1, (30, 2))
    adata.obsm["table"] = pd.DataFrame({"a": np.arange(30.0)}, index=adata.obs_names)
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata.copy()
    adata.obsp["graph"] = sp.eye(30, format="csr")
    adata.uns["spatial"] = {"A": {"images": {"hires": np.ones((2, 2))}}, "B": {}}
    adata.uns["kept"] = {"any": "thing"}
    return adata


def test_each_section_is_an_anndata_of_its_own(whole: AnnData) -> None:
    parts = split(whole, "sample")
    assert [part.value for part in parts] == ["B", "A"]
    for part in parts:
        rows = np.flatnonzero(whole.obs["sample"] == part.value)
        np.testing.assert_array_equal(part.rows, rows)
        other = whole[rows].copy()
        np.testing.assert_array_equal(part.adata.X.toarray(), other.X.toarray())
        np.testing.assert_array_equal(part.adata.raw.X.toarray(), other.raw.X.toarray())
        counts = part.adata.layers["counts"]
        np.testing.assert_array_equal(counts.toarray(), other.layers["counts"].toarray())
        np.testing.assert_array_equal(part.adata.obsm["spatial"], other.obsm["spatial"])
        assert part.adata.obsm["table"].equals(other.obsm["table"])
        assert list(part.adata.obs["sample"].cat.categories) == [part.value]
        assert list(part.adata.uns["spatial"]) == [part.value]


def test_what_is_written_comes_back_in_place(whole: AnnData) -> None:
    before = whole.copy()

    def write(part: Any) -> str:
        adata = part.adata
        adata.obsm["X_new"] = np.c_[adata.obsm["spatial"], adata.X.toarray().sum(axis=1)].astype(
            np.float32
        )
        adata.obsm["wide"] = adata.obsm["table"] * 2
        adata.obs["flag"] = adata.X.toarray()[:, 0] > 1
        adata.obs["number"] = np.arange(adata.n_obs)
        names = [f"{part.value}1", f"{part.value}2"]
        adata.obs["class"] = pd.Categorical(np.resize(names, adata.n_obs), categories=names)
        adata.uns["new"] = np.array([1, 2])
        return str(part.value)

    assert each_part(whole, "sample", write) == ["B", "A"]
    sums = np.asarray(before.X.sum(axis=1)).ravel()
    np.testing.assert_allclose(whole.obsm["X_new"][:, 2], sums)
    assert whole.obsm["X_new"].dtype == np.float32
    np.testing.assert_allclose(whole.obsm["X_new"][:, :2], whole.obsm["spatial"], rtol=1e-6)
    assert whole.obsm["wide"].equals(before.obsm["table"] * 2)
    assert whole.obs["flag"].dtype == bool
    assert whole.obs["number"].dtype.kind == "i"
    assert list(whole.obs["class"].cat.categories) == ["B1", "B2", "A1", "A2"]
    assert (whole.obs["class"].str[0] == whole.obs["sample"].astype(str)).all()
    assert whole.obs[["sample", "type"]].equals(before.obs)
    assert list(whole.uns["spatial"]) == ["A", "B"]
    assert "graph" in whole.obsp


def test_records_are_joined_and_split_again(whole: AnnData) -> None:
    def write(part: Any) -> None:
        record = {"model": "M", "n_empty": len(part.rows), "coverage": json.dumps([part.value])}
        records.write(part.adata, "X_m", np.ones((part.adata.n_obs, 2), np.float32), record)

    each_part(whole, "sample", write)
    record = whole.uns["terrazzo"]["X_m"]
    assert record["n_empty"] == 30
    assert record["slice_key"] == "sample"
    assert set(json.loads(record["parts"])) == {"A", "B"}
    (first, second) = split(whole, "sample")
    assert second.adata.uns["terrazzo"]["X_m"]["coverage"] == '["A"]'
    assert "parts" not in second.adata.uns["terrazzo"]["X_m"]
    first.adata.obs["more"] = 1
    second.adata.obs["more"] = 2
    put_back(whole, "sample", [first, second])
    assert whole.uns["terrazzo"]["X_m"] == record
    assert (whole.obs["more"] == np.where(whole.obs["sample"] == "B", 1, 2)).all()


def test_nothing_is_written_if_a_section_fails(whole: AnnData) -> None:
    def write(part: Any) -> None:
        part.adata.obsm["X_new"] = np.ones((part.adata.n_obs, 1 if part.value == "A" else 2))

    with pytest.raises(InputError, match="different widths"):
        each_part(whole, "sample", write)

    def fail(part: Any) -> None:
        part.adata.obsm["X_new"] = np.ones((part.adata.n_obs, 1))
        if part.value == "A":
            raise InputError("no")

    with pytest.raises(InputError, match="sample 'A': no"):
        each_part(whole, "sample", fail)
    assert "X_new" not in whole.obsm


def test_names_that_repeat_and_backed_files(whole: AnnData, tmp_path: Any) -> None:
    whole.obs_names = ["same"] * 30
    assert sum(part.adata.n_obs for part in split(whole, "sample")) == 30
    whole.obs_names = [str(i) for i in range(30)]
    del whole.raw
    whole.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    (first, _) = split(backed, "sample")
    np.testing.assert_array_equal(
        first.adata.X.toarray(), whole[whole.obs["sample"] == "B"].X.toarray()
    )
    backed.file.close()


def test_libraries_of_other_names_stay(whole: AnnData) -> None:
    whole.uns["spatial"] = {"one": {}, "two": {}}
    (first, _) = split(whole, "sample")
    assert list(first.adata.uns["spatial"]) == ["one", "two"]
    whole.uns["spatial"] = {"A": {}}
    (first, second) = split(whole, "sample")
    assert "spatial" not in first.adata.uns
    assert list(second.adata.uns["spatial"]) == ["A"]
