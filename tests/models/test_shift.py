"""Genes and depth of labeled slices and targets compared; slices cut and thinned."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.models.shift import check_common_genes, compare, compare_anndata
from terrazzo.slices import Slice
from terrazzo.splitting import thin_counts

Make = Callable[..., AnnData]


def shallow(adata: AnnData, n_genes: int, rate: float) -> AnnData:
    """Return a slice with its first genes and a part of its counts."""
    out = adata[:, :n_genes].copy()
    out.X, _ = thin_counts(out.X, rate, np.random.default_rng(0))
    return out


@pytest.fixture
def pair(simulated: Make) -> tuple[Slice, Slice]:
    """A slice with 150 genes, and another with a third of them and a tenth of the depth."""
    labeled = simulated(120, 150, seed=1, depth=900)
    target = shallow(simulated(120, 150, seed=2, depth=900), 50, 0.1)
    return Slice.from_anndata(labeled), Slice.from_anndata(target)


def test_the_numbers(pair: tuple[Slice, Slice]) -> None:
    labeled, target = pair
    panels = compare([labeled], [target]).panels
    shared = np.asarray(labeled.counts[:, :50].sum(axis=1)).ravel()
    totals = target.total_counts
    assert (panels.n_labeled, panels.n_target, panels.n_shared) == (150, 50, 50)
    assert panels.share_labeled == pytest.approx(shared.sum() / labeled.total_counts.sum())
    assert panels.share_target == 1
    assert panels.depth_labeled == np.median(shared)
    assert panels.depth_target == np.median(totals[totals > 0])
    with pytest.warns(TerrazzoWarning, match=r"150 genes that are used and the target 50; 50 in"):
        panels.warn("")


def test_nothing_is_said_of_equal_panels(simulated: Make) -> None:
    first = simulated(120, 150, seed=1)
    second = simulated(120, 150, seed=2)
    second = second[:, ::-1].copy()  # in another order
    panels = compare([Slice.from_anndata(first)], [Slice.from_anndata(second)]).panels
    known = compare_anndata([first], [second])
    assert known == panels
    assert not panels.differs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        panels.warn("")


def test_cut_and_thinned(pair: tuple[Slice, Slice]) -> None:
    labeled, target = pair
    shift = compare([labeled], [target])
    copies = [slices[0] for slices in shift.copies(common=False).values()]
    assert [tissue.n_genes for tissue in copies] == [150, 50, 150, 50]
    assert copies[0] is labeled
    assert (copies[1].gene_ids == target.gene_ids).all()
    nearest = np.median(copies[3].total_counts)
    assert nearest == pytest.approx(shift.panels.depth_target, rel=0.1)
    assert [tissue.n_cells for tissue in copies] == [120] * 4
    cut = [slices[0].n_genes for slices in shift.copies(common=True).values()]
    assert cut == [50, 50]
    assert shift.cut_targets[0].n_genes == 50
    assert shift.arms("auto") == [True, False]
    assert shift.arms(True) == [True]
    assert shift.arms(False) == [False]


def test_a_deeper_target_is_said_and_not_thinned(pair: tuple[Slice, Slice]) -> None:
    shallow_one, deep = pair[1], pair[0]
    shift = compare([shallow_one], [deep])
    assert shift.panels.other_depth
    assert not shift.panels.other_genes  # a baseline of the labeled slice knows no more
    assert list(shift.copies(common=False)) == ["as they are"]


def test_genes_that_the_model_knows_count(pair: tuple[Slice, Slice], simulated: Make) -> None:
    labeled, target = pair
    vocabulary = tz.Vocabulary.from_slices([Slice.from_anndata(simulated(120, 60))])
    panels = compare([labeled], [target], SimpleNamespace(vocabulary=vocabulary)).panels
    assert (panels.n_labeled, panels.n_target, panels.n_shared) == (60, 50, 50)
    both = compare([labeled, target], [labeled]).panels
    assert (both.n_labeled, both.n_target, both.other_genes) == (50, 50, False)
    baseline = tz.Baseline("pca").fit([target])
    assert compare([labeled], [target], baseline).panels.n_labeled == len(baseline.genes)


def test_too_few_in_common(simulated: Make) -> None:
    first = simulated(120, 150, seed=1)
    few = shallow(simulated(120, 150, seed=2), 30, 1.0)
    panels = compare([Slice.from_anndata(first)], [Slice.from_anndata(few)]).panels
    with pytest.raises(InputError, match="30 genes in common"):
        panels.refuse_too_few()
    alike = compare([Slice.from_anndata(few)], [Slice.from_anndata(few)]).panels
    alike.refuse_too_few()  # a small panel is one


def test_slices_without_counts_or_with_other_names_are_not_compared(simulated: Make) -> None:
    first = simulated(120, 150, seed=1)
    empty = AnnData(obs=first.obs)
    assert compare_anndata([first], [empty]) is None
    other = first.copy()
    other.var_names = [f"X{number}" for number in range(150)]
    other.var = other.var[[]]
    assert compare_anndata([first], [other]) is None


@pytest.mark.parametrize("value", ["yes", None, 1])
def test_common_genes_is_checked(value: Any) -> None:
    with pytest.raises(ConfigError, match="True, False or 'auto'"):
        check_common_genes(value)
