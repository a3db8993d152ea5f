"""Retrieval: the genes of a spot are searched by its histology among those of its slice, and the reverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from terrazzo import records
from terrazzo.arrays import AnyFloats, Floats
from terrazzo.errors import ConfigError, InputError
from terrazzo.tasks.results import TaskResult, tidy

__all__ = ["KS", "recall", "retrieval"]

KS = (1, 5, 10, 50)
_CHUNK = 2**24  # similarities in memory at once
_DIGITS = 9  # similarities that differ by rounding alone are equal


def retrieval(
    adata: AnnData,
    *,
    image: str | AnyFloats,
    genes: str | AnyFloats,
    ks: Sequence[int] = KS,
) -> TaskResult:
    """Score how often the partner of a spot is among the k most similar of its slice, by cosine, in both directions.

    Parameters
    ----------
    adata
        One slice: every spot is searched among the spots of the same slice.
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
    pictures = records.vectors(adata, image)
    expression = records.vectors(adata, genes)
    directions = {
        "image to genes": (pictures, expression),
        "genes to image": (expression, pictures),
    }
    rows: list[dict[str, Any]] = []
    ranks: dict[str, Floats] = {}
    for name, (queries, answers) in directions.items():
        better, equal = _places(queries, answers)
        rank = better + equal / 2 + 1
        ranks[f"rank, {name}"] = rank
        scores = {}
        for k, value in _recall(better, equal, ks).items():
            scores[f"recall@{k}"] = value
        for k in ks:
            scores[f"chance@{k}"] = min(k / adata.n_obs, 1.0)
        scores["median_rank"] = float(np.median(rank))
        rows += tidy(scores, name, 0)
    config = {
        "image": records.source_name(image),
        "genes": records.source_name(genes),
        "ks": [int(k) for k in ks],
        "n_cells": adata.n_obs,
    }
    predictions = pd.DataFrame(ranks, index=adata.obs_names)
    return TaskResult("retrieval", pd.DataFrame(rows), predictions, config)


def recall(queries: ArrayLike, answers: ArrayLike, ks: Sequence[int] = KS) -> dict[int, float]:
    """Return how often row i of the answers is among the k most similar to row i of the queries, by cosine.

    Where answers are equally similar the score is the mean over their orders, so that vectors without
    information score as chance does, ``k / n``.

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
    query_vectors = np.asarray(queries)
    answer_vectors = np.asarray(answers)
    better, equal = _places(query_vectors, answer_vectors)
    return _recall(better, equal, ks)


def _places(queries: NDArray[Any], answers: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return how many answers are more similar to each query than its own is, and how many others are equally so."""
    if queries.shape != answers.shape or queries.ndim != 2 or not len(queries):
        raise InputError(
            f"vectors of images and of genes have shapes {queries.shape} and {answers.shape}; "
            "they must be (n, d) and alike: both by one model, which brought them into one space."
        )
    unit_queries = _unit(queries)
    unit_answers = _unit(answers)
    n = len(queries)
    better = np.zeros(n)
    equal = np.zeros(n)
    step = max(1, _CHUNK // n)
    for start in range(0, n, step):
        part = slice(start, start + step)
        similar = np.round(unit_queries[part] @ unit_answers.T, _DIGITS)
        own = np.diagonal(similar, start)[:, None]
        better[part] = (similar > own).sum(axis=1)
        equal[part] = (similar == own).sum(axis=1) - 1
    return better, equal


def _recall(better: Floats, equal: Floats, ks: Sequence[int]) -> dict[int, float]:
    """Return the share of queries whose own answer is among the first k, of equally similar ones the mean."""
    if not ks or min(ks) < 1:
        raise ConfigError(
            f"ks are {list(ks)}; name at least one number of answers, each at least 1."
        )
    shares = {}
    for k in ks:
        chance = (k - better) / (equal + 1)
        chance = np.clip(chance, 0.0, 1.0)
        shares[int(k)] = float(chance.mean())
    return shares


def _unit(rows: NDArray[Any]) -> Floats:
    """Scale every row to length one."""
    wide = rows.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.maximum(length, 1e-12)
