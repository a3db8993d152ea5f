"""Samples of many cells: the same regions as of all cells, and parts of slices that are as those of the whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score

import terrazzo as tz
from terrazzo.answers import partition
from terrazzo.expression import log_counts
from terrazzo.models import projections
from terrazzo.models.baselines import neighbor_mean

Spots = Callable[..., AnnData]
QUICK = {"n_seeds": 2, "bootstraps": 2, "progress": False}


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take samples of small slices, too."""
    monkeypatch.setattr("terrazzo.models.projections.MAX_FIT", 300)
    monkeypatch.setattr("terrazzo.models.projections.SAMPLE", 250)
    monkeypatch.setattr("terrazzo.answers.space.MANY_CELLS", 300)
    monkeypatch.setattr("terrazzo.answers.partition.MANY_CELLS", 300)
    monkeypatch.setattr("terrazzo.answers.partition.MAX_FIT", 250)
    monkeypatch.setattr("terrazzo.answers.finding.MAX_BOOTSTRAP_CELLS", 200)


@pytest.mark.parametrize("find", [tz.regions, tz.types])
@pytest.mark.filterwarnings("ignore:the seeds disagree")
def test_a_sample_finds_the_same(spots: Spots, small_limits: None, find: object) -> None:
    adata = spots(n_cells=500)
    answer = find(adata, k=4, **QUICK)  # type: ignore[operator]
    assert len(answer.found.labels[0]) == 500
    assert answer.found.by_region.min() > 0
    if find is tz.regions:
        assert adjusted_rand_score(adata.obs["region"], answer.found.labels[0]) > 0.4


@pytest.mark.filterwarnings("ignore:the seeds disagree")
def test_samples_of_several_slices(spots: Spots, small_limits: None) -> None:
    slices = [spots(1, n_cells=400), spots(2, n_cells=100, batch=0.2, donor="other")]
    answer = tz.regions(slices, k=4, **QUICK)
    assert [len(own) for own in answer.found.labels] == [400, 100]
    assert answer.projection is not None
    again = tz.regions(spots(1, n_cells=400), to=answer, progress=False)
    same = again.found.labels[0] == answer.found.labels[0]
    assert same.mean() > 0.95


def test_how_many_are_sampled(small_limits: None) -> None:
    assert projections.sampled_rows([100, 200]) is None
    rows = projections.sampled_rows([300, 100])
    assert rows is not None
    first, second = rows
    assert (len(first), len(second)) == (188, 62)
    assert (np.diff(first) > 0).all()
    assert first.max() < 300


def test_some_rows_are_those_of_the_whole(spots: Spots) -> None:
    tissue = tz.Slice.from_anndata(spots())
    rows = np.array([3, 50, 51, 299])
    genes = [str(gene) for gene in tissue.gene_ids[[5, 2, 9]]]
    whole = log_counts(tissue, genes).toarray()
    assert np.array_equal(log_counts(tissue, genes, rows).toarray(), whole[rows])
    for k in (0, 1, 6, 400):
        means = neighbor_mean(whole, tissue.coords, k)
        assert np.array_equal(neighbor_mean(whole, tissue.coords, k, rows), means[rows])


def test_one_tree_serves_every_number() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 4)) + 4 * rng.integers(0, 3, 200)[:, None]
    tree = partition.tree_of(vectors, 1)
    for k in (2, 5):
        with_tree = partition.fit_mixtures(vectors, k, 1, tree)
        without = partition.fit_mixtures(vectors, k, 1)
        for one, other in zip(with_tree, without, strict=True):
            assert np.array_equal(one.means, other.means)
