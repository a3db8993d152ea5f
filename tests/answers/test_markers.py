"""Marker genes: the area under the curve, ranks, and names that tell regions apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import terrazzo as tz
from terrazzo.answers import markers as made
from terrazzo.answers.result import region_names
from terrazzo.expression import log_counts


@pytest.fixture(scope="module")
def table(simulated: Any) -> tuple[pd.DataFrame, Any, np.ndarray]:
    adata = simulated(300, n_genes=40, seed=2)
    tissue = tz.Slice.from_anndata(adata)
    labels = adata.obs["region"].cat.codes.to_numpy().astype(np.int64)
    k = int(labels.max()) + 1
    tested = [made.Tested(tissue, labels, "one")]
    return made.marker_genes(tested, k, None, only_markers=False), tissue, labels


def test_auc_is_that_of_the_cells(table: Any) -> None:
    markers, tissue, labels = table
    rest = markers[(markers["region"] == 1) & (markers["against"] == "rest")]
    genes = list(rest["gene"])
    values = log_counts(tissue, genes).toarray()
    expected = [roc_auc_score(labels == 1, column) for column in values.T]
    np.testing.assert_allclose(rest["auc"], expected, atol=1e-4)


def test_genes_of_one_slice_are_ranked_by_auc(table: Any) -> None:
    markers, _, _ = table
    for _, part in markers.groupby(["region", "against"]):
        assert part.sort_values("rank")["auc"].is_monotonic_decreasing


def test_genes_over_samples_are_ranked_by_the_mean_of_the_slices_own(table: Any) -> None:
    of_one, tissue, labels = table
    tested = [made.Tested(tissue, labels, "one"), made.Tested(tissue, labels, "two")]
    markers = made.marker_genes(tested, int(labels.max()) + 1, None, only_markers=False)
    for _, part in markers.groupby(["region", "against"]):
        assert part.sort_values("rank")["auc"].dropna().is_monotonic_decreasing
    keys = ["region", "against", "gene"]
    both = markers.merge(of_one, on=keys, suffixes=("", "_of_one")).dropna(subset="auc")
    assert len(both) > 20
    np.testing.assert_allclose(
        both["auc"], both["auc_of_one"], atol=1e-4
    )  # both slices are the same
    assert set(markers["n"]) == {2}


def test_a_region_of_one_sample_is_tested_by_its_cells(table: Any) -> None:
    of_one, tissue, labels = table
    others = np.where(labels == 1, 0, labels)
    tested = [made.Tested(tissue, labels, "one"), made.Tested(tissue, others, "two")]
    markers = made.marker_genes(tested, int(labels.max()) + 1, None, only_markers=False)
    own = markers[(markers["region"] == 1) & (markers["against"] == "rest")]
    expected = of_one[(of_one["region"] == 1) & (of_one["against"] == "rest")]
    assert list(own["gene"]) == list(expected["gene"])
    assert set(own["n"]) == {int((labels == 1).sum())}


def marker_table(rows: list[tuple[int, str, float]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["region", "gene", "auc"])
    return table.assign(against="rest", log2_fold_change=1.0)


def test_a_gene_names_the_region_that_it_marks_best() -> None:
    rows = [(0, "MBP", 0.98), (0, "PLP1", 0.97), (1, "MBP", 0.8), (1, "GFAP", 0.7), (1, "CNP", 0.6)]
    names = region_names("region", 3, marker_table(rows))
    assert names == ["R1 · MBP, PLP1", "R2 · GFAP, CNP", "R3"]


def test_a_shared_gene_is_better_than_none() -> None:
    rows = [(0, "MBP", 0.98), (0, "PLP1", 0.97), (1, "MBP", 0.8), (1, "CNP", 0.6)]
    names = region_names("region", 2, marker_table(rows))
    assert names == ["R1 · MBP, PLP1", "R2 · CNP, MBP"]
