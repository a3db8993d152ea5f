"""Slices, names, references and settings of which no answer can come, or not a whole one: one line, or a note."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import terrazzo as tz
from terrazzo.answers.result import names_from_csv
from terrazzo.errors import ConfigError, InputError

QUICK: dict[str, Any] = {"n_seeds": 1, "bootstraps": 0, "progress": False}
Spots = Callable[..., AnnData]
FINDS = pytest.mark.parametrize("find", [tz.regions, tz.types])


def renamed(adata: AnnData, n_kept: int) -> AnnData:
    """Give all genes but the first ones names that no other slice has."""
    other = [f"OTHER{number}" for number in range(adata.n_vars - n_kept)]
    adata.var["ensembl_id"] = [*adata.var["ensembl_id"].iloc[:n_kept], *other]
    adata.var_names = [*adata.var_names[:n_kept], *other]
    return adata


def without_counts(adata: AnnData, n_cells: int) -> AnnData:
    """Take the counts of the first cells away."""
    counts = adata.X.toarray()
    counts[:n_cells] = 0
    adata.X = sparse.csr_matrix(counts)
    return adata


def alike(adata: AnnData) -> AnnData:
    """Give all cells the counts of the first."""
    adata.X = sparse.csr_matrix(np.tile(adata.X[0].toarray(), (adata.n_obs, 1)))
    return adata


def check_unchanged(adata: AnnData) -> None:
    assert not [name for name in adata.obs if name.startswith("terrazzo_")]
    assert "terrazzo" not in adata.uns


@FINDS
@pytest.mark.case(
    "N",
    given="`regions` or `types` of a slice without counts, with one gene, or whose cells are all alike",
    gets="Refused, with what is missing; nothing is written",
)
def test_slices_with_nothing_to_find(spots: Spots, find: Any) -> None:
    cases = {
        "has no counts": without_counts(spots(), 300),
        "fewer than two genes": spots()[:, :1].copy(),
        "alike|varies|different cells": alike(spots()),
        "20 cells are too few": spots()[:20].copy(),
    }
    for message, adata in cases.items():
        for k in (3, "auto"):
            with pytest.raises(InputError, match=message):
                find(adata, k=k, **QUICK)
        check_unchanged(adata)


@pytest.mark.case(
    "N",
    given="`regions` of a slice whose cells are all at one place",
    gets="Refused; `types` are found, for they need no places",
)
@pytest.mark.filterwarnings("ignore:the seeds disagree")
def test_cells_at_one_place(spots: Spots) -> None:
    adata = spots()
    adata.obsm["spatial"] = np.full((adata.n_obs, 2), 5.0)
    with pytest.raises(InputError, match="at one place"):
        tz.regions(adata, k=3, **QUICK)
    check_unchanged(adata)
    assert tz.types(adata, k=3, **QUICK).k == 3


@FINDS
@pytest.mark.case(
    "N",
    given="Two slices with no genes in common, or one",
    gets="Refused: it takes two, and a question about species and names",
)
def test_slices_without_common_genes(spots: Spots, find: Any) -> None:
    for n_kept in (0, 1):
        slices = [spots(1), renamed(spots(2), n_kept)]
        with pytest.raises(InputError, match=r"fewer than two genes in common.*species"):
            find(slices, k=3, **QUICK)
        for adata in slices:
            check_unchanged(adata)


@pytest.mark.filterwarnings("ignore:the seeds disagree")
@pytest.mark.case(
    "N",
    given="Some cells without counts, in `regions`, `types` and `annotate`",
    gets="Every cell has a row; a note says how many they are. `annotate` by the cell alone calls them unknown",
)
def test_some_cells_without_counts(spots: Spots) -> None:
    adata = without_counts(spots(), 40)
    answer = tz.regions(adata, k=3, **QUICK)
    assert any("40 of 300 cells have no counts" in note for note in answer.notes)
    assert adata.obs["terrazzo_region"].notna().all()
    answer = tz.types(adata, k=3, **QUICK)
    assert any("means nothing" in note for note in answer.notes)
    result = tz.annotate(adata, dissociated(spots(2)), "region", threshold=0)
    assert (adata.obs["terrazzo_label"].iloc[:40] == "unknown").all()
    assert "unknown" not in set(adata.obs["terrazzo_label"].iloc[40:])
    assert any("they have no label" in note for note in result.notes)


def dissociated(adata: AnnData) -> AnnData:
    """Return the cells without their places."""
    del adata.obsm["spatial"]
    adata.uns = {}
    return adata


@FINDS
@pytest.mark.case(
    "N",
    given="A number of regions above that of the cells, or below 1",
    gets="Refused, with the largest number",
)
def test_numbers(spots: Spots, find: Any) -> None:
    adata = spots()
    with pytest.raises(ConfigError, match="at most 300"):
        find(adata, k=301, **QUICK)
    with pytest.raises(ConfigError, match="whole number from 1"):
        find(adata, k=0, **QUICK)
    check_unchanged(adata)
    one = find(adata, k=1, **QUICK)
    assert one.k == 1
    assert one.table["share"].tolist() == [1.0]
    assert len(one.markers) == 0


@pytest.mark.case(
    "N",
    given="An earlier result that has other genes, is of the other kind, or comes with `-k` or `--model`",
    gets="Refused, with how many of its genes are there",
)
def test_an_earlier_answer_that_does_not_fit(answer: Any, spots: Spots) -> None:
    with pytest.raises(InputError, match="has 3 of the 120 genes"):
        tz.regions(renamed(spots(2), 3), to=answer, **QUICK)
    with pytest.raises(ConfigError, match="has regions, not types"):
        tz.types(spots(2), to=answer, **QUICK)
    for more in ({"k": 4}, {"model": "t3"}):
        with pytest.raises(ConfigError, match="without k= and model="):
            tz.regions(spots(2), to=answer, **more, **QUICK)
    with pytest.raises(InputError, match="has no counts"):
        tz.regions(without_counts(spots(2), 300), to=answer, **QUICK)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("region,name\nR9,x\n", "there is no region 'R9'"),
        ("region,name\nR1,x\nR2,x\n", "one name"),
        ("region,name\nR1,x\nR1,y\n", "'R1' twice"),
        ("region\nR1\n", "two columns"),
        ("", "not readable"),
    ],
)
@pytest.mark.case(
    "N",
    given="A `names.csv` with unknown regions, one name for two, one region twice, or one column",
    gets="Refused, with the regions that there are; an empty name keeps the region's own",
)
def test_names(answer: Any, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "names.csv"
    path.write_text(text)
    before = list(answer.slices[0].obs["terrazzo_region"])
    with pytest.raises(InputError, match=message):
        answer.renamed(names_from_csv(path))
    assert list(answer.slices[0].obs["terrazzo_region"]) == before
    path.write_text("region,name\nR1,\n,x\nR2,  \n")
    assert names_from_csv(path) == {}


@pytest.mark.case(
    "N",
    given="A reference whose labels occur once, without counts, or with fewer than ten genes of the slices",
    gets="Refused, with the reason; a label with fewer than ten cells is left out, and named",
)
def test_references(spots: Spots) -> None:
    adata = spots(1)
    once = spots(2)
    once.obs["once"] = [f"label {number}" for number in range(once.n_obs)]
    with pytest.raises(InputError, match="0 labels with at least 10 cells"):
        tz.annotate(adata, once, "once")
    with pytest.raises(InputError, match="1 gene in common"):
        tz.annotate(adata, renamed(spots(2), 1), "region")
    with pytest.raises(InputError, match="has no counts"):
        tz.annotate(adata, without_counts(spots(2), 300), "region")
    with pytest.raises(InputError, match="has no counts"):
        tz.annotate(without_counts(spots(3), 300), spots(2), "region")
    with pytest.raises(InputError, match=r"alike|varies|do not tell"):
        tz.annotate(adata, alike(spots(2)), "region")
    check_unchanged(adata)
