"""Embeddings in two dimensions, confusion and predicted against true: the numbers behind the pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from terrazzo import plot
from terrazzo.errors import InputError
from terrazzo.plot import results
from terrazzo.plot.palettes import MISSING_COLOR, as_hex

pytestmark = pytest.mark.usefixtures("quiet_figures")


@pytest.fixture
def embedded(simulated: Any) -> Any:
    adata = simulated()
    adata.obsm["X_test"] = np.random.default_rng(0).normal(size=(adata.n_obs, 6)).astype(np.float32)
    return adata


@pytest.fixture
def quick_layout(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """UMAP that returns its first two columns: the compiled one takes many seconds to start."""
    seen: list[np.ndarray] = []

    def layout(vectors: np.ndarray, seed: int) -> np.ndarray:
        seen.append(vectors)
        return vectors[:, :2]

    monkeypatch.setattr(results, "umap_layout", layout)
    return seen


def dots(axes: Any) -> dict[tuple[float, float], str]:
    """Color of every dot by its place."""
    result = {}
    for cells in axes.collections:
        colors = (
            np.broadcast_to(cells.get_facecolor(), (len(cells.get_offsets()), 4))
            if len(cells.get_offsets())
            else ()
        )
        result |= {
            tuple(map(float, xy)): as_hex(c)
            for xy, c in zip(cells.get_offsets(), colors, strict=True)
        }
    return result


def test_umap_draws_every_cell_in_its_color(embedded: Any, quick_layout: list[np.ndarray]) -> None:
    embedded.obs["gaps"] = embedded.obs["region"].astype(object)
    embedded.obs.iloc[:9, embedded.obs.columns.get_loc("gaps")] = None
    axes = plot.umap(embedded, use_rep="X_test", color="gaps", seed=4)
    colors = plot.colors(embedded, "region")
    expected = [MISSING_COLOR] * 9 + [colors[r] for r in embedded.obs["region"][9:]]
    assert dots(axes) == {
        tuple(map(float, xy)): c
        for xy, c in zip(embedded.obsm["X_test"][:, :2], expected, strict=True)
    }
    np.testing.assert_array_equal(quick_layout[0], embedded.obsm["X_test"])
    assert len(axes.get_legend().get_texts()) == 6


def test_umap_of_numbers_and_of_an_array(embedded: Any, quick_layout: list[np.ndarray]) -> None:
    axes = plot.umap(
        embedded, use_rep=embedded.obsm["X_test"][:, ::-1], color="SIM2", title="shown"
    )
    at = {tuple(map(float, xy)): i for i, xy in enumerate(embedded.obsm["X_test"][:, :-3:-1])}
    cells = axes.collections[-1]
    order = [at[tuple(map(float, xy))] for xy in cells.get_offsets()]
    np.testing.assert_allclose(cells.get_array(), embedded[:, "SIM2"].X.toarray().ravel()[order])
    assert axes.get_title() == "shown"
    embedded.obs["nothing"] = np.nan
    assert set(dots(plot.umap(embedded, use_rep="X_test", color="nothing")).values()) == {
        MISSING_COLOR
    }


def test_a_large_umap_is_sampled_and_says_so(
    embedded: Any, quick_layout: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "MAX_CELLS", 50)
    axes = plot.umap(embedded, use_rep="X_test", color="region", seed=1)
    assert len(dots(axes)) == len(quick_layout[0]) == 50
    assert "50 of 200 cells" in axes.get_title()
    assert dots(plot.umap(embedded, use_rep="X_test", color="region", seed=1)) == dots(axes)
    assert dots(plot.umap(embedded, use_rep="X_test", color="region", seed=2)) != dots(axes)


def test_umap_refuses(embedded: Any, quick_layout: list[np.ndarray]) -> None:
    with pytest.raises(InputError, match="at least 5 cells; there are 4"):
        plot.umap(embedded[:4].copy(), use_rep="X_test", color="region")
    with pytest.raises(InputError, match="Did you mean 'X_test'"):
        plot.umap(embedded, use_rep="X_tset", color="region")
    with pytest.raises(InputError, match="neither a column"):
        plot.umap(embedded, use_rep="X_test", color="nothing")


@pytest.mark.slow
@pytest.mark.parametrize("n_cells", [5, 120])
def test_the_real_umap_is_quiet_repeatable_and_writes_nothing(embedded: Any, n_cells: int) -> None:
    adata = embedded[:n_cells].copy()
    before = adata.copy()
    first, second, other = (
        plot.umap(adata, use_rep="X_test", color="region", seed=seed) for seed in (0, 0, 1)
    )
    assert len(dots(first)) == n_cells
    assert dots(first) == dots(second) != dots(other)
    for part in ("obs", "obsm", "obsp", "uns"):
        assert list(getattr(adata, part)) == list(getattr(before, part))


def test_confusion_is_by_true_class() -> None:
    true = pd.Series(["b", "b", "b", "a", None, "a", "c"], index=list("stuvwxy"))
    predicted = np.array(["b", "a", "b", "a", "a", "", "d"], dtype=object)
    axes = plot.confusion(true, predicted)
    expected = np.array([[1, 0, 0, 0], [1 / 3, 2 / 3, 0, 0], [0, 0, 0, 1], [np.nan] * 4])
    np.testing.assert_allclose(np.ma.filled(axes.images[0].get_array(), np.nan), expected)
    names = [
        [t.get_text() for t in side] for side in (axes.get_xticklabels(), axes.get_yticklabels())
    ]
    assert names == [["a", "b", "c", "d"]] * 2
    assert "2 of 7 cells" in axes.get_xlabel()
    assert axes.get_ylabel() == "true"
    assert sorted(t.get_text() for t in axes.texts) == ["0.33", "0.67", "1.00", "1.00"]


def test_confusion_in_counts_on_given_axes() -> None:
    import matplotlib.pyplot as plt

    own_axes = plt.subplots()[1]
    axes = plot.confusion(
        pd.Categorical(["10", "2", "2"]), ["10", "2", "10"], normalize=False, ax=own_axes
    )
    assert axes is own_axes
    np.testing.assert_array_equal(axes.images[0].get_array(), [[1, 1], [0, 1]])
    assert [t.get_text() for t in axes.get_yticklabels()] == ["2", "10"]
    assert axes.get_xlabel() == "predicted"


def test_confusion_refuses() -> None:
    with pytest.raises(InputError, match="2 true labels and 1 predicted"):
        plot.confusion(["a", "b"], ["a"])
    with pytest.raises(InputError, match="no cell has both"):
        plot.confusion(["a", None], [None, "a"])
    with pytest.raises(InputError, match="dimensions"):
        plot.confusion(np.array([["a"]]), ["a"])


@pytest.mark.parametrize("n", [50, 3000])
def test_predicted_against_true(n: int) -> None:
    rng = np.random.default_rng(0)
    true = rng.gamma(2, size=(n, 2))
    predicted = true + rng.normal(size=true.shape)
    axes = plot.predicted_against_true(sp.csr_matrix(true), predicted, name="all")
    r = np.corrcoef(true.ravel(), predicted.ravel())[0, 1]
    assert axes.get_title() == f"all: Pearson {r:.3f}"
    cells = axes.collections[0]
    if n == 50:
        np.testing.assert_allclose(
            cells.get_offsets(), np.column_stack([true.ravel(), predicted.ravel()])
        )
    else:
        assert cells.get_array().sum() == 2 * n  # every pair is in one hexagon
    (line,) = axes.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())
    assert axes.get_xlim() == axes.get_ylim()


def test_one_column_of_tables() -> None:
    true = pd.DataFrame({"A": [0.0, 1, 2], "B": [5.0, 6, 7]})
    predicted = pd.DataFrame({"A": [0.0, 2, 4], "B": [7.0, 6, 5]})
    axes = plot.predicted_against_true(true, predicted, name="B")
    assert axes.get_title() == "B: Pearson -1.000"
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [[5, 7], [6, 6], [7, 5]])
    assert len(plot.predicted_against_true(true, predicted).collections[0].get_offsets()) == 6
    with pytest.raises(InputError, match="no column 'C'"):
        plot.predicted_against_true(true, predicted, name="C")
    with pytest.raises(InputError, match="other columns"):
        plot.predicted_against_true(true, predicted[["B", "A"]])


def test_pairs_that_are_not_finite_are_counted() -> None:
    axes = plot.predicted_against_true([1.0, 2, np.nan, 3], [1.0, 2, 3, np.inf])
    assert len(axes.collections[0].get_offsets()) == 2
    assert "2 of 4 pairs left out" in axes.get_xlabel()
    assert "undefined" in plot.predicted_against_true([1.0, 2], [3.0, 3]).get_title()
    for true, predicted, words in (
        ([1.0, np.nan], [1.0, 2], "1 pairs of finite"),
        ([1.0, 2], [1.0], "the same"),
        (["a", "b"], [1.0, 2], "must be numbers"),
    ):
        with pytest.raises(InputError, match=words):
            plot.predicted_against_true(true, predicted)
