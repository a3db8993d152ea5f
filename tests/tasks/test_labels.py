"""Labels: what is scored, what is left out, and how it is reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from terrazzo.errors import InputError, TerrazzoWarning
from terrazzo.tasks import labels


def slice_with(values: Any) -> AnnData:
    adata = AnnData(np.zeros((len(values), 1), dtype=np.float32))
    adata.obs["region"] = values
    return adata


def test_classes_are_sorted_and_coded() -> None:
    parsed = labels.read(slice_with(["b", "a", "b", "c", "a", "c"]), "region")
    assert parsed.classes == ("a", "b", "c")
    assert parsed.codes.tolist() == [1, 0, 1, 2, 0, 2]
    assert parsed.names.tolist() == ["b", "a", "b", "c", "a", "c"]
    assert parsed.known.all()
    assert (parsed.missing, parsed.rare) == (0, {})


@pytest.mark.parametrize(
    "nothing",
    [
        np.nan,
        None,
        "",
        "  ",
        "Unknown",
        "unknown",
        "Other",
        "NA",
        "nan",
        "Ambiguous",
        "unassigned",
        pd.NA,
    ],
)
@pytest.mark.parametrize("categorical", [False, True])
def test_cells_without_label_are_not_scored(nothing: Any, categorical: bool) -> None:
    values = pd.Series(["a", "b", nothing, "a", "b", "a"], dtype=object)
    parsed = labels.parse(values.astype("category") if categorical else values)
    assert parsed.codes.tolist() == [0, 1, -1, 0, 1, 0]
    assert parsed.names[2] is None
    assert parsed.missing == 1


def test_numbers_and_blanks_are_words() -> None:
    assert labels.parse(pd.Series([2, 1, 2, 1])).classes == ("1", "2")
    assert labels.parse(pd.Series(["a ", "b", " a", "b"])).classes == ("a", "b")
    assert labels.parse(pd.Series([True, False, True, False])).classes == ("False", "True")


def test_rare_classes_are_left_out_of_scoring() -> None:
    values = pd.Series(["a"] * 600 + ["b"] * 391 + ["c"] * 9 + [None] * 500)
    parsed = labels.parse(values)
    assert parsed.classes == ("a", "b")
    assert parsed.rare == {"c": 9}  # of 1,000 labeled cells at least 1 % are needed
    assert parsed.known.sum() == 991
    values = pd.Series(["a"] * 600 + ["b"] * 390 + ["c"] * 10)
    assert labels.parse(values).classes == ("a", "b", "c")
    assert labels.parse(values, least_share=0.1).rare == {"c": 10}


def test_a_single_member_is_left_out_with_a_warning() -> None:
    with pytest.warns(TerrazzoWarning, match=r"c has a single cell and is left out"):
        parsed = labels.parse(pd.Series(["a", "b", "a", "b", "c"]), least_share=0.0)
    assert parsed.rare == {"c": 1}
    with pytest.warns(TerrazzoWarning, match=r"(c, d|d, c) have a single cell and are left out"):
        labels.parse(pd.Series(["a", "b", "a", "b", "c", "d"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"] * 5, "one class, 'a' with enough cells; two or more"),
        ([np.nan] * 5, "holds no label"),
        (["Unknown"] * 5, "holds no label"),
        (["a"] * 4 + [None], "one class, 'a'"),
        (
            ["a", "b", "c", "d", "e"],
            "no class with enough cells; too rare to be scored: a, b, c, d, e",
        ),
    ],
)
def test_labels_that_cannot_be_scored(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        labels.read(slice_with(pd.Series(values, dtype=object).to_numpy()), "region")


def test_columns_and_arrays() -> None:
    adata = slice_with(["a", "b", "a", "b"])
    by_array = labels.read(adata, adata.obs["region"].to_numpy())
    assert by_array.codes.tolist() == labels.read(adata, "region").codes.tolist()
    with pytest.raises(
        InputError, match=r"no column 'regoin'; there are: region\. Did you mean 'region'"
    ):
        labels.read(adata, "regoin")
    with pytest.raises(InputError, match="there are: none"):
        labels.column(AnnData(np.zeros((2, 1), dtype=np.float32)), "region")
    with pytest.raises(InputError, match="3 labels for 4 cells"):
        labels.read(adata, ["a", "b", "a"])


def test_recoding() -> None:
    parsed = labels.parse(pd.Series(["b", "a", None, "c", "c", "a", "b"]))
    assert parsed.recoded(["c", "b"]).tolist() == [1, -1, -1, 0, 0, -1, 1]


def test_shared_classes() -> None:
    one, two, three = (labels.parse(pd.Series(list(text) * 2)) for text in ("abc", "bcd", "xy"))
    assert labels.shared_classes([one], one) == (("a", "b", "c"), "")
    common, difference = labels.shared_classes([one], two)
    assert common == ("b", "c")
    assert difference == "a only in the training slices; d only in the test slices"
    assert labels.shared_classes([one, two], two)[0] == ("b", "c", "d")
    with pytest.raises(InputError, match=r"share 0 scored classes.*Training: a, b, c. Test: x, y"):
        labels.shared_classes([one], three)
