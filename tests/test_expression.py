"""Log expression by gene name, on each slice's own totals; genes that vary most within slices."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from terrazzo.errors import InputError
from terrazzo.expression import expression, most_variable
from terrazzo.slices.panel import Panel


def panel(counts: list[list[float]], names: list[str], **columns: list[str]) -> Panel:
    return Panel.read(
        AnnData(sp.csr_matrix(np.array(counts, float)), var=pd.DataFrame(columns, index=names))
    )


def test_values_by_hand() -> None:
    held = panel([[1, 3, 0], [0, 0, 0], [2, 2, 4]], ["A", "B", "C"])
    found = expression(held, ["C", "A"])
    assert list(found.columns) == ["C", "A"]
    expected = [[0, np.log1p(2500)], [np.nan, np.nan], [np.log1p(5000), np.log1p(2500)]]
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-6)
    assert found.to_numpy().dtype == np.float32
    by_median = expression(held, ["B"], "median")  # of totals 4 and 8, the empty cell left out
    np.testing.assert_allclose(
        by_median["B"], [np.log1p(3 / 4 * 6), np.nan, np.log1p(2 / 8 * 6)], rtol=1e-6
    )
    np.testing.assert_allclose(
        expression(held, ["B"], 8.0)["B"], [np.log1p(6), np.nan, np.log1p(2)], rtol=1e-6
    )


def test_a_gene_is_found_by_any_of_its_names_and_its_columns_are_one() -> None:
    ids = ["ENSG00000000001", "ENSG00000000001.2", "ENSG00000000002"]
    held = panel([[1, 2, 5]], ["x", "y", "z"], ensembl_id=ids, gene_symbol=["A", "A", "z2"])
    assert held.counts.shape == (1, 2)
    assert held.names == ("x", "z")
    for name in ("x", "y", "A", "ENSG00000000001"):
        np.testing.assert_allclose(expression(held, [name], 8.0)[name], np.log1p(3), rtol=1e-6)
    with pytest.raises(InputError, match="gene 'q' is not among the 2 genes"):
        expression(held, ["q"])


def test_an_index_goes_before_what_another_gene_is_also_called() -> None:
    held = panel([[1, 2]], ["a", "b"], gene_symbol=["b", "c"])
    assert held.place["b"] == 1
    assert held.place["a"] == 0


def test_what_varies_most_varies_within_slices() -> None:
    rng = np.random.default_rng(0)
    n = 60
    flat = np.full(n, 50.0)

    def made(level: float, names: list[str]) -> Panel:
        within, little = rng.integers(0, 100, n), rng.integers(45, 55, n)
        between = np.full(n, level)  # differs between the slices alone
        rest = 10_000 - within - little - between - flat  # so that totals are equal
        columns = {
            "within": within,
            "little": little,
            "between": between,
            "flat": flat,
            "rest": rest,
        }
        return panel(np.stack([columns[name] for name in names], axis=1).tolist(), names)

    names = ["flat", "between", "little", "rest", "within"]
    panels = [made(0, names), made(3000, list(reversed(names)))]
    assert most_variable(panels, 2) == ["within", "little"]
    assert set(most_variable(panels, 9)) == {"within", "little", "rest"}  # the others never vary
    alone = [panels[0], made(0, ["between", "flat", "rest", "little"])]
    assert most_variable(alone, 1) == ["little"]  # only what all of them have
    with pytest.raises(InputError, match="nothing to predict"):
        most_variable([panel([[5, 5], [5, 5], [0, 0]], ["a", "b"])], 1)
