"""Retrieval: the genes of a spot are sought among those of its slice by its histology, and the reverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from terrazzo import records as representation
from terrazzo.arrays import AnyFloats, Floats
from terrazzo.errors import ConfigError, InputError
from terrazzo.tasks.results import TaskResult, tidy

KS = (1, 5, 10, 50)


DIRECTIONS = ("image to genes", "genes to image")


_CHUNK = 2**24  # similarities held at once


_DIGITS = 9  # similarities that differ by rounding alone are equal


def retrieval(
    adata: AnnData, *, image: str | AnyFloats, genes: str | AnyFloats, ks: Sequence[int] = KS
) -> TaskResult:
    """Score how often the partner of a spot is among the k most similar of its slice, by cosine, in both directions.

    Parameters
    ----------
    adata
        One slice: every spot is sought among the spots of the same slice.
    image, genes
        ``obsm`` keys or arrays ``(n_cells, d)`` of one width: vectors of a model that brought both into one space.
    ks
        How many answers may be looked at.

    Returns
    -------
    Metrics ``recall@k``; ``chance@k``, that of answers drawn at random; ``median_rank``, 1 the best. ``split`` is
    ``"image to genes"`` or ``"genes to image"``. Predictions: the rank of every spot's partner, the middle one of those
    that are equally similar.

    Raises
    ------
    InputError
        Vectors that cannot be used, or of different widths.
    ConfigError
        A k below 1.
    """
    pictures, expression = (representation.vectors(adata, given) for given in (image, genes))
    rows: list[dict[str, Any]] = []
    ranks: dict[str, Floats] = {}
    for name, queries, answers in zip(
        DIRECTIONS, (pictures, expression), (expression, pictures), strict=True
    ):
        better, equal = places(queries, answers)
        rank = ranks[f"rank, {name}"] = better + equal / 2 + 1
        scores = {f"recall@{k}": value for k, value in _recall(better, equal, ks).items()}
        scores |= {f"chance@{k}": min(k / adata.n_obs, 1.0) for k in ks}
        rows += tidy({**scores, "median_rank": float(np.median(rank))}, name, 0)
    given = {"image": image, "genes": genes}
    config = {k: v if isinstance(v, str) else "array" for k, v in given.items()}
    predictions = pd.DataFrame(ranks, index=adata.obs_names)
    return TaskResult(
        "retrieval",
        pd.DataFrame(rows),
        predictions,
        {**config, "ks": [int(k) for k in ks], "n_cells": adata.n_obs},
    )


def recall(queries: ArrayLike, answers: ArrayLike, ks: Sequence[int] = KS) -> dict[int, float]:
    """Return how often row i of the answers is among the k most similar to row i of the queries, by cosine.

    Where answers are equally similar the score is the mean over their orders, so that vectors that say nothing score as
    chance does, ``k / n``.

    Parameters
    ----------
    queries, answers
        ``(n, d)`` each.
    ks
        How many answers may be looked at.

    Raises
    ------
    InputError
        Shapes that differ, or no row.
    ConfigError
        A k below 1.
    """
    return _recall(*places(np.asarray(queries), np.asarray(answers)), ks)


def places(queries: NDArray[Any], answers: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return how many answers are more similar to each query than its own is, and how many others are equally so."""
    if queries.shape != answers.shape or queries.ndim != 2 or not len(queries):
        raise InputError(
            f"vectors of images and of genes have shapes {queries.shape} and {answers.shape}; they must be (n, d) and "
            "alike: both by one model, which brought them into one space."
        )
    q, a = _unit(queries), _unit(answers)
    better, equal = np.zeros(len(q)), np.zeros(len(q))
    step = max(1, _CHUNK // len(q))
    for start in range(0, len(q), step):
        similar = np.round(q[start : start + step] @ a.T, _DIGITS)
        own = np.diagonal(similar, start)[:, None]
        better[start : start + step] = (similar > own).sum(axis=1)
        equal[start : start + step] = (similar == own).sum(axis=1) - 1
    return better, equal


def _recall(better: Floats, equal: Floats, ks: Sequence[int]) -> dict[int, float]:
    if not ks or min(ks) < 1:
        raise ConfigError(
            f"ks are {list(ks)}; name at least one number of answers, each at least 1."
        )
    return {int(k): float(np.clip((k - better) / (equal + 1), 0.0, 1.0).mean()) for k in ks}


def _unit(rows: NDArray[Any]) -> Floats:
    wide = rows.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
