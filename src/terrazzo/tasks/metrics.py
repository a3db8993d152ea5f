"""Scores of plain arrays: of classes, clusters and values, and of how contiguous domains are in space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from terrazzo.arrays import Floats, Ints
from terrazzo.errors import InputError
from terrazzo.sparse import check_matrix

__all__ = [
    "PAS_NEIGHBORS",
    "LabeledPlaces",
    "chaos",
    "classification",
    "clustering",
    "labeled_places",
    "level_and_pattern",
    "nearest",
    "pas",
    "regression",
    "regression_by_column",
]

# of SpatialPCA's fx_PAS: more than half of them in another domain makes a cell abnormal
PAS_NEIGHBORS = 10


def classification(
    true: ArrayLike, predicted: ArrayLike, classes: Sequence[Any] | None = None
) -> dict[str, float]:
    """Return ``accuracy`` and ``macro_f1``.

    Parameters
    ----------
    true, predicted
        ``(n,)``, one label a cell; words or integers, both alike.
    classes
        What the macro mean is taken over; by default every class that occurs in ``true``. A class that does not occur
        in ``true`` has no recall and is left out of the mean, also where it was predicted (each such prediction
        costs the true class its recall).

    Raises
    ------
    InputError
        Lengths differ, no cell, a label is missing, or ``true`` holds a class that is not in ``classes``.
    """
    from sklearn.metrics import accuracy_score, f1_score

    true_labels = _labels(true, "true")
    predicted_labels = _labels(predicted, "predicted")
    _same_length(true_labels, predicted_labels)
    _same_kind(true_labels, predicted_labels)
    both = np.concatenate([true_labels, predicted_labels])
    codes, names = pd.factorize(both)
    n_cells = len(true_labels)
    true_codes = codes[:n_cells]
    predicted_codes = codes[n_cells:]
    occurring = np.unique(true_codes)
    if classes is not None:
        _check_classes(names[occurring], classes)
    accuracy = accuracy_score(true_codes, predicted_codes)
    macro_f1 = f1_score(
        true_codes,
        predicted_codes,
        labels=occurring,
        average="macro",
        zero_division=0,
    )
    return {"accuracy": float(accuracy), "macro_f1": float(macro_f1)}


def clustering(true: ArrayLike, clusters: ArrayLike) -> dict[str, float]:
    """Return ``ari`` (adjusted Rand index) and ``nmi`` (normalized mutual information, arithmetic mean).

    Parameters
    ----------
    true, clusters
        ``(n,)``, one label a cell, words or integers; only which cells share one matters, not its name.

    Raises
    ------
    InputError
        Lengths differ, no cell, or a label is missing.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    true_labels = _labels(true, "true")
    cluster_labels = _labels(clusters, "clusters")
    _same_length(true_labels, cluster_labels, "clusters")
    true_codes, _ = pd.factorize(true_labels)
    cluster_codes, _ = pd.factorize(cluster_labels)
    ari = adjusted_rand_score(true_codes, cluster_codes)
    nmi = normalized_mutual_info_score(true_codes, cluster_codes)
    return {"ari": float(ari), "nmi": float(nmi)}


def regression(true: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Return the scores of predicted values.

    Parameters
    ----------
    true, predicted
        ``(n,)`` or ``(n, m)``: cells x genes, or cells x cell types.

    Returns
    -------
    ``pearson``
        Mean of the correlations of the columns. A column whose truth is constant has none and is left out of the mean;
        a column that varies but is predicted by a constant counts as 0, so that leaving out a hard gene gains nothing.
        NaN where every column is constant.
    ``pearson_overall``
        Correlation of all values together, whatever their column.
    ``rmse``, ``mae``, ``mse``
        Over all values.
    ``constant_columns``
        How many columns ``pearson`` leaves out.

    Raises
    ------
    InputError
        Shapes differ, no value, not numbers, or values that are not finite.
    """
    true_values, predicted_values = _matrices(true, predicted)
    by_column = _pearson(true_values, predicted_values)
    defined = by_column[~np.isnan(by_column)]
    n_defined = len(defined)
    n_constant = len(by_column) - n_defined
    pearson = defined.mean() if n_defined else np.nan
    overall = _pearson(
        true_values.reshape(-1, 1),
        predicted_values.reshape(-1, 1),
    )
    error = predicted_values - true_values
    mse = float(np.mean(error**2))
    mae = np.mean(np.abs(error))
    return {
        "pearson": float(pearson),
        "pearson_overall": float(overall[0]),
        "rmse": float(np.sqrt(mse)),
        "mae": float(mae),
        "mse": mse,
        "constant_columns": float(n_constant),
    }


def level_and_pattern(true: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Return the two parts of the mean squared error of one slice, whose sum it is.

    Parameters
    ----------
    true, predicted
        As in :func:`regression`; the cells of one slice.

    Returns
    -------
    ``mse_level``
        Squared difference between the slice's true and predicted mean, mean over columns.
    ``mse_pattern``
        Squared error of the differences from these means.

    Raises
    ------
    InputError
        As in :func:`regression`.
    """
    true_values, predicted_values = _matrices(true, predicted)
    error = predicted_values - true_values
    mean_error = error.mean(axis=0)
    return {
        "mse_level": float(np.mean(mean_error**2)),
        "mse_pattern": float(np.mean((error - mean_error) ** 2)),
    }


def regression_by_column(
    true: ArrayLike, predicted: ArrayLike, names: Sequence[str]
) -> pd.DataFrame:
    """Return ``pearson``, ``rmse``, ``mae`` and ``mse`` of every column.

    Parameters
    ----------
    true, predicted
        As in :func:`regression`.
    names
        One a column: genes, or cell types; the index of the table, in this order.

    Returns
    -------
    A table with one row a column; ``pearson`` is NaN where the truth is constant, 0 where only the prediction is.

    Raises
    ------
    InputError
        As in :func:`regression`, or another number of names than of columns.
    """
    true_values, predicted_values = _matrices(true, predicted)
    n_columns = true_values.shape[1]
    if len(names) != n_columns:
        n_names = len(names)
        raise InputError(f"there are {n_names} names for {n_columns} columns.")
    error = predicted_values - true_values
    mse = np.mean(error**2, axis=0)
    mae = np.mean(np.abs(error), axis=0)
    scores = {
        "pearson": _pearson(true_values, predicted_values),
        "rmse": np.sqrt(mse),
        "mae": mae,
        "mse": mse,
    }
    index = pd.Index([str(name) for name in names], name="part")
    return pd.DataFrame(scores, index=index)


def chaos(coords: ArrayLike, labels: ArrayLike) -> float:
    """Return CHAOS: the mean distance of a cell to the nearest other cell of its domain; smaller is more continuous.

    Coordinates are standardized axis by axis (standard deviation with n - 1, as R's ``scale``). The sum of the
    nearest-neighbor edges is divided by the number of all cells. A domain of one cell has no edge: as in the published
    code it adds nothing to the sum, while its cell counts among all cells. Shang & Zhou 2022 (SpatialPCA),
    ``fx_CHAOS``.

    Parameters
    ----------
    coords
        ``(n, 2)``, any unit.
    labels
        ``(n,)``, the domain of each cell.

    Raises
    ------
    InputError
        Lengths differ, no cell, a label is missing, or coordinates that are not finite.
    """
    from scipy.spatial import cKDTree

    cells = labeled_places(coords, labels)
    places = cells.places
    codes = cells.codes
    if len(places) == 1:
        return 0.0
    spread = places.std(axis=0, ddof=1)
    scale = np.where(spread > 0, spread, 1.0)
    scaled = (places - places.mean(axis=0)) / scale
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes))
    total = 0.0
    for rows in np.split(order, ends[:-1]):
        if len(rows) < 2:
            continue
        members = scaled[rows]
        distance, _ = cKDTree(members).query(members, k=2)
        total += float(distance[:, 1].sum())
    return total / len(places)


def pas(coords: ArrayLike, labels: ArrayLike) -> float:
    """Return PAS: the share of cells with at least 6 of their 10 nearest neighbors in another domain.

    Where there are fewer than eleven cells, more than half of all others. On a lattice the tenth neighbor is one of
    several that are equally far; which one is not specified. Shang & Zhou 2022 (SpatialPCA), ``fx_PAS``.

    Parameters
    ----------
    coords
        ``(n, 2)``, any unit.
    labels
        ``(n,)``, the domain of each cell.

    Raises
    ------
    InputError
        As in :func:`chaos`.
    """
    cells = labeled_places(coords, labels)
    codes = cells.codes
    n_neighbors = min(PAS_NEIGHBORS, len(codes) - 1)
    neighbors = nearest(cells.places, n_neighbors)
    differs = codes[neighbors] != codes[:, None]
    abnormal = differs.sum(axis=1) > n_neighbors / 2
    return float(np.mean(abnormal))


@dataclass(frozen=True, eq=False)
class LabeledPlaces:
    """Positions with labels.

    Attributes
    ----------
    places
        float64 ``(n, d)``: positions.
    codes
        int64 ``(n,)``: number of each cell's label.
    names
        The labels that the codes stand for.
    """

    places: Floats
    codes: Ints
    names: NDArray[Any]


def labeled_places(coords: ArrayLike, labels: ArrayLike) -> LabeledPlaces:
    """Check positions and labels, one each a cell.

    Raises
    ------
    InputError
        Lengths differ, no cell, a label is missing, or coordinates that are not finite.
    """
    places = _matrix(coords, "coords")
    groups = _labels(labels, "labels")
    if len(places) != len(groups):
        raise InputError(
            f"there are {len(places)} positions and {len(groups)} labels; there must be one a cell."
        )
    codes, names = pd.factorize(groups)
    return LabeledPlaces(places, codes.astype(np.int64), np.asarray(names))


def nearest(coords: ArrayLike, k: int) -> Ints:
    """Return the ``k`` nearest other cells of each cell, int64 ``(n, k)``, the nearest first.

    A cell is never its own neighbor, also where several are at one place. ``k`` is at most n - 1.
    """
    from scipy.spatial import cKDTree

    places = np.asarray(coords, dtype=np.float64)
    n = len(places)
    if k == 0:
        return np.empty((n, 0), dtype=np.int64)
    tree = cKDTree(places)
    _, index = tree.query(places, k=k + 1, workers=-1)
    is_other = index != np.arange(n)[:, None]
    # where more than k cells are at one place, the cell itself may be missing among its neighbors
    lacks_itself = is_other.all(axis=1)
    is_other[lacks_itself, -1] = False
    return index[is_other].reshape(n, k).astype(np.int64)


def _labels(values: ArrayLike, name: str) -> NDArray[Any]:
    """Return labels as an array, checked: one for each cell, none missing."""
    # lists as objects: numpy would turn a NaN among words into the word "nan"
    dtype = object if isinstance(values, list | tuple) else None
    labels = np.asarray(values, dtype=dtype)
    if labels.ndim != 1:
        raise InputError(f"{name} has shape {labels.shape}; it must be (n,): one label a cell.")
    if not len(labels):
        raise InputError(f"{name} is empty: there is no cell to score.")
    missing = np.asarray(pd.isna(labels))
    if name == "true" and _is_number(labels):
        missing |= np.asarray(labels < 0)  # how tasks.labels marks a cell that is not scored
    if missing.any():
        n_missing = int(missing.sum())
        first = int(np.argmax(missing))
        raise InputError(
            f"{name} has no label for {n_missing} of {len(labels)} cells (first: row {first}); "
            "leave these cells out of scoring."
        )
    return labels


def _is_number(labels: NDArray[Any]) -> bool:
    """Tell numbers from words."""
    if labels.dtype == object:
        numbers = (int, float, np.number)
        return all(isinstance(label, numbers) for label in labels)
    return bool(np.issubdtype(labels.dtype, np.number))


def _same_length(true: NDArray[Any], other: NDArray[Any], name: str = "predicted") -> None:
    """Refuse labels of different lengths."""
    n_true = len(true)
    n_other = len(other)
    if n_true != n_other:
        raise InputError(
            f"true has {n_true} labels and {name} {n_other}; there must be one a cell in both."
        )


def _same_kind(true: NDArray[Any], predicted: NDArray[Any]) -> None:
    """Refuse words on one side and numbers on the other."""
    true_kind = "numbers" if _is_number(true) else "words"
    predicted_kind = "numbers" if _is_number(predicted) else "words"
    if true_kind != predicted_kind:
        raise InputError(
            f"true holds {true_kind} and predicted {predicted_kind}; "
            "give both as codes or both as names."
        )


def _check_classes(occurring: NDArray[Any], classes: Sequence[Any]) -> None:
    """Refuse true labels that ``classes`` lacks."""
    known = set(classes)
    unknown = [str(name) for name in occurring if name not in known]
    if unknown:
        shown = ", ".join(unknown[:5])
        raise InputError(f"true holds {shown}, which classes does not name.")


def _matrices(true: ArrayLike, predicted: ArrayLike) -> tuple[Floats, Floats]:
    """Return both sides as matrices of one shape."""
    true_values = _matrix(true, "true")
    predicted_values = _matrix(predicted, "predicted")
    if true_values.shape != predicted_values.shape:
        raise InputError(
            f"true has shape {true_values.shape} and predicted {predicted_values.shape}; "
            "they must be the same."
        )
    return true_values, predicted_values


def _matrix(values: Any, name: str) -> Floats:
    """Return finite numbers as float64 ``(n, m)``."""
    check_matrix(values, name)
    dense = values.toarray() if hasattr(values, "toarray") else values
    try:
        matrix = np.asarray(dense, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} does not hold numbers ({error}).") from error
    if matrix.ndim not in (1, 2) or not matrix.size:
        raise InputError(
            f"{name} has shape {matrix.shape}; it must be (n,) or (n, m), with a value."
        )
    not_finite = ~np.isfinite(matrix)
    if not_finite.any():
        n_bad = int(not_finite.sum())
        first_row = int(np.argwhere(not_finite)[0][0])
        raise InputError(
            f"{name} holds {n_bad} values that are not finite (first: row {first_row})."
        )
    return matrix.reshape(len(matrix), -1)


def _pearson(true: Floats, predicted: Floats) -> Floats:
    """Return the correlation of each column: NaN where the truth is constant, 0 where only the prediction is."""
    products = _unit(true) * _unit(predicted)
    correlations = np.clip(products.sum(axis=0), -1.0, 1.0)
    is_constant = np.ptp(true, axis=0) == 0
    correlations[is_constant] = np.nan
    return np.asarray(correlations)


def _unit(columns: Floats) -> Floats:
    """Return columns centered and of length one; zero where constant (by the range: a mean may be off by rounding)."""
    is_constant = np.ptp(columns, axis=0) == 0
    centered = columns - columns.mean(axis=0)
    centered[:, is_constant] = 0.0
    # divide by the largest first, so that squares of tiny values do not vanish
    largest = np.abs(centered).max(axis=0)
    centered /= np.where(largest > 0, largest, 1.0)
    length = np.sqrt((centered**2).sum(axis=0))
    length = np.where(length > 0, length, 1.0)
    return np.asarray(centered / length)
