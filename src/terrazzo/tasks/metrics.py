"""Scores, on arrays alone: classes, clusters, values, and how well domains hang together in space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from terrazzo.arrays import Floats, Ints
from terrazzo.errors import InputError

PAS_NEIGHBORS = (
    10  # of SpatialPCA's fx_PAS: more than half of them in another domain makes a cell abnormal
)


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

    truth, guess = _labels(true, "true"), _labels(predicted, "predicted")
    _same_length(truth, guess)
    if _is_number(truth) != _is_number(guess):
        kinds = ["numbers" if _is_number(one) else "words" for one in (truth, guess)]
        raise InputError(
            f"true holds {kinds[0]} and predicted {kinds[1]}; give both as codes or both as names."
        )
    codes, names = pd.factorize(np.concatenate([truth, guess]))
    t, p = codes[: len(truth)], codes[len(truth) :]
    if classes is not None:
        unknown = [str(name) for name in names[np.unique(t)] if name not in set(classes)]
        if unknown:
            raise InputError(f"true holds {', '.join(unknown[:5])}, which the classes do not name.")
    scores = {
        "accuracy": accuracy_score(t, p),
        "macro_f1": f1_score(t, p, labels=np.unique(t), average="macro", zero_division=0),
    }
    return {name: float(value) for name, value in scores.items()}


def clustering(true: ArrayLike, found: ArrayLike) -> dict[str, float]:
    """Return ``ari`` (adjusted Rand index) and ``nmi`` (normalized mutual information, arithmetic mean).

    Parameters
    ----------
    true, found
        ``(n,)``, one label a cell, words or integers; only which cells share one matters, not its name.

    Raises
    ------
    InputError
        Lengths differ, no cell, or a label is missing.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    truth, groups = _labels(true, "true"), _labels(found, "found")
    _same_length(truth, groups, "found")
    t, f = pd.factorize(truth)[0], pd.factorize(groups)[0]
    return {
        "ari": float(adjusted_rand_score(t, f)),
        "nmi": float(normalized_mutual_info_score(t, f)),
    }


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
        a column that varies but is predicted by a constant counts as 0, so that saying nothing about a hard gene is
        no gain. NaN where every column is constant.
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
    t, p = _matrices(true, predicted)
    columns = _pearson(t, p)
    defined = columns[~np.isnan(columns)]
    error = p - t
    mse = float(np.mean(error**2))
    return {
        "pearson": float(defined.mean()) if len(defined) else float("nan"),
        "pearson_overall": float(_pearson(t.reshape(-1, 1), p.reshape(-1, 1))[0]),
        "rmse": float(np.sqrt(mse)),
        "mae": float(np.mean(np.abs(error))),
        "mse": mse,
        "constant_columns": float(len(columns) - len(defined)),
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
    t, p = _matrices(true, predicted)
    if len(names) != t.shape[1]:
        raise InputError(f"there are {len(names)} names for {t.shape[1]} columns.")
    error = p - t
    mse = np.mean(error**2, axis=0)
    scores = {
        "pearson": _pearson(t, p),
        "rmse": np.sqrt(mse),
        "mae": np.mean(np.abs(error), axis=0),
        "mse": mse,
    }
    return pd.DataFrame(scores, index=pd.Index([str(name) for name in names], name="part"))


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

    places, codes, _ = places_and_codes(coords, labels)
    if len(places) == 1:
        return 0.0
    spread = places.std(axis=0, ddof=1)
    scaled = (places - places.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    total = 0.0
    for rows in np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]):
        if len(rows) > 1:
            total += float(cKDTree(scaled[rows]).query(scaled[rows], k=2)[0][:, 1].sum())
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
    places, codes, _ = places_and_codes(coords, labels)
    near = nearest(places, min(PAS_NEIGHBORS, len(places) - 1))
    other = (codes[near] != codes[:, None]).sum(axis=1)
    return float(np.mean(other > near.shape[1] / 2))


def places_and_codes(coords: ArrayLike, labels: ArrayLike) -> tuple[Floats, Ints, NDArray[Any]]:
    """Check positions and labels; return positions, the code of each label, and the labels that the codes stand for.

    Raises
    ------
    InputError
        Lengths differ, no cell, a label is missing, or coordinates that are not finite.
    """
    places, groups = _matrix(coords, "coords"), _labels(labels, "labels")
    if len(places) != len(groups):
        raise InputError(
            f"there are {len(places)} positions and {len(groups)} labels; there must be one a cell."
        )
    codes, names = pd.factorize(groups)
    return places, np.asarray(codes, dtype=np.int64), np.asarray(names)


def nearest(coords: ArrayLike, k: int) -> Ints:
    """Return the ``k`` nearest other cells of each cell, int64 ``(n, k)``, the nearest first.

    A cell is never its own neighbor, also where several lie at one place. ``k`` is at most n - 1.
    """
    from scipy.spatial import cKDTree

    places = np.asarray(coords, dtype=np.float64)
    n = len(places)
    if k == 0:
        return np.empty((n, 0), dtype=np.int64)
    _, index = cKDTree(places).query(places, k=k + 1, workers=-1)
    keep = index != np.arange(n)[:, None]
    keep[keep.all(axis=1), -1] = (
        False  # more than k cells lie at this place and the cell itself is not among them
    )
    return np.asarray(index[keep].reshape(n, k), dtype=np.int64)


def _labels(values: ArrayLike, name: str) -> NDArray[Any]:
    plain = isinstance(
        values, list | tuple
    )  # as objects: numpy would make a NaN among words the word "nan"
    out = np.asarray(values, dtype=object) if plain else np.asarray(values)
    if out.ndim != 1:
        raise InputError(f"{name} has shape {out.shape}; it must be (n,): one label a cell.")
    if not len(out):
        raise InputError(f"{name} is empty: there is no cell to score.")
    missing = np.asarray(pd.isna(out))
    if _is_number(out) and name == "true":
        missing |= np.asarray(out < 0)  # how tasks.labels marks a cell that is not scored
    if missing.any():
        raise InputError(
            f"{name} has no label for {int(missing.sum())} of {len(out)} cells (first: row {int(np.argmax(missing))}); "
            "leave these cells out of scoring."
        )
    return out


def _is_number(values: NDArray[Any]) -> bool:
    if values.dtype == object:
        return all(isinstance(v, int | float | np.number) for v in values)
    return bool(np.issubdtype(values.dtype, np.number))


def _same_length(true: NDArray[Any], other: NDArray[Any], name: str = "predicted") -> None:
    if len(true) != len(other):
        raise InputError(
            f"true has {len(true)} labels and {name} {len(other)}; there must be one a cell in both."
        )


def _matrices(true: ArrayLike, predicted: ArrayLike) -> tuple[Floats, Floats]:
    t, p = _matrix(true, "true"), _matrix(predicted, "predicted")
    if t.shape != p.shape:
        raise InputError(
            f"true has shape {t.shape} and predicted {p.shape}; they must be the same."
        )
    return t, p


def _matrix(values: Any, name: str) -> Floats:
    dense = values.toarray() if hasattr(values, "toarray") else values
    try:
        out = np.asarray(dense, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} does not hold numbers ({error}).") from error
    if out.ndim not in (1, 2) or not out.size:
        raise InputError(f"{name} has shape {out.shape}; it must be (n,) or (n, m), with a value.")
    bad = ~np.isfinite(out)
    if bad.any():
        raise InputError(
            f"{name} holds {int(bad.sum())} values that are not finite (first: row {int(np.argwhere(bad)[0][0])})."
        )
    return out.reshape(len(out), -1)


def _pearson(true: Floats, predicted: Floats) -> Floats:
    """Correlation of each column: NaN where the truth is constant, 0 where only the prediction is."""
    r = np.clip((_unit(true) * _unit(predicted)).sum(axis=0), -1.0, 1.0)
    r[np.ptp(true, axis=0) == 0] = np.nan
    return np.asarray(r)


def _unit(columns: Floats) -> Floats:
    """Columns centered and of length one; zero where constant (by the range: a mean of equal values may be off)."""
    centered = columns - columns.mean(axis=0)
    centered[:, np.ptp(columns, axis=0) == 0] = 0.0
    largest = np.abs(centered).max(axis=0)
    centered /= np.where(
        largest > 0, largest, 1.0
    )  # first, so that squares of tiny values do not vanish
    length = np.sqrt((centered**2).sum(axis=0))
    return np.asarray(centered / np.where(length > 0, length, 1.0))
