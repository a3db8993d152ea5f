"""How many regions: where a curve bends, and that slices, seeds and genes do not decide it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from terrazzo import Slice
from terrazzo.answers import finding
from terrazzo.answers.finding import Settings, find
from terrazzo.answers.numbers import around, best_number, choose, explained, halves
from terrazzo.answers.sources import CellRecipe, Recipe, candidates
from terrazzo.arrays import Floats
from terrazzo.expression import chosen_genes
from terrazzo.models import projections


def curve(score: Sequence[float] | Floats) -> pd.DataFrame:
    numbers = np.arange(2, 2 + len(score))
    return pd.DataFrame({"k": numbers, "score": score, "stability": 0.8})


@pytest.mark.parametrize("bend", [3, 5, 8])
def test_the_number_at_a_bend(bend: int) -> None:
    numbers = np.arange(2, 16)
    score = np.where(numbers <= bend, 0.1 * numbers, 0.1 * bend + 0.005 * (numbers - bend))
    assert best_number(curve(score)) == bend


def test_of_numbers_that_are_as_good_the_smallest() -> None:
    score = [0.1, 0.4, 0.44, 0.485, 0.49, 0.49, 0.5, 0.5]
    table = curve(score)
    assert best_number(table) == 3
    table.loc[1, "score"] = 0.32
    assert best_number(table) == 4
    table.loc[2, "score"] = 0.36
    assert best_number(table) == 5


def test_a_curve_that_hardly_bends() -> None:
    cortex = [0.569, 0.651, 0.666, 0.699, 0.730, 0.751, 0.767, 0.777]  # seven layers
    cortex += [0.788, 0.798, 0.805, 0.808, 0.815, 0.818]
    assert best_number(curve(cortex)) in (6, 7)


@pytest.mark.parametrize("score", [[0.5], [0.5, 0.6], [0.5, 0.4, 0.3], [0.0, 0.0, 0.0, 0.0]])
def test_a_curve_without_a_bend_gives_the_smallest(score: list[float]) -> None:
    assert best_number(curve(score)) == 2


def test_halves_add_up(spots: Callable[..., AnnData]) -> None:
    tissue = Slice.from_anndata(spots())
    first, second = halves(tissue, 3)
    assert ((first.counts + second.counts) != tissue.counts).nnz == 0
    assert first.counts.sum() / tissue.counts.sum() == pytest.approx(0.5, abs=0.01)
    again, _ = halves(tissue, 3)
    assert (again.counts != first.counts).nnz == 0


def test_regions_that_follow_slices_explain_nothing(spots: Callable[..., AnnData]) -> None:
    slices = [Slice.from_anndata(spots(seed, batch=0.5)) for seed in (1, 2)]
    components = around(Recipe().expression(slices), slices)
    by_slice = np.repeat([0, 1], 300)
    assert explained(components, components, by_slice) == pytest.approx(0, abs=1e-9)
    truth = np.concatenate([spots(seed, batch=0.5).obs["region"] for seed in (1, 2)])
    _, by_region = np.unique(truth.astype(str), return_inverse=True)
    assert explained(components, components, by_region) > 0.2


def test_a_number_that_was_asked_for_is_taken(spots: Callable[..., AnnData]) -> None:
    tissue = Slice.from_anndata(spots())
    for k in (1, 2, 5):
        chosen = choose([tissue], [CellRecipe(36)], k)
        assert chosen.k == k
        assert k in list(chosen.curve["k"])


def test_genes_are_chosen_once(
    spots: Callable[..., AnnData], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = []

    def counted(*given: Any) -> list[str]:
        times.append(1)
        return chosen_genes(*given)

    monkeypatch.setattr(finding, "chosen_genes", counted)
    monkeypatch.setattr(projections, "chosen_genes", counted)
    slices = [Slice.from_anndata(spots(seed)) for seed in (1, 2)]
    find(slices, candidates("region"), Settings(3, (0,), bootstraps=1), False)
    assert len(times) == 1
