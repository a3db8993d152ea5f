"""Fits before training of what ST-Align keeps: components of frozen features, and the maps of the contrasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from terrazzo.arrays import Floats
from terrazzo.expression import DIGITS, principal_directions
from terrazzo.systems.stalign.features import AlignBatch, Features, batches
from terrazzo.systems.stalign.kept import Components, Heads
from terrazzo.systems.stalign.network import AlignNet, Part
from terrazzo.systems.stalign.objective import SpotNiche
from terrazzo.systems.stalign.start import Moments

__all__ = ["correlated_maps", "fit_heads", "fit_kept"]

SPOTS = 6000  # of all training slices that are read

BATCH = 256  # spots that are read together

WIDE = 1000  # columns above which only the first directions are computed

RIDGE = 0.1  # added to the variance of every column, relative to their mean

SOURCES: dict[Part, str] = {
    "spot_image": "niche_image",
    "niche_image": "niche_image",
    "spot_genes": "spot_genes",
    "niche_genes": "niche_components",
}


def fit_kept(net: AlignNet, slices: Sequence[Features]) -> None:
    """Fit the components of frozen features and their scale: the root mean square length of a vector is then 1.

    Parameters
    ----------
    net
        Changed in place.
    slices
        Features of training slices; a part that was not read is not fitted.
    """
    for part, source in SOURCES.items():
        if part not in net.kept or getattr(slices[0], source) is None:
            continue
        kept = net.kept[part]
        assert isinstance(kept, Components)
        sums = Moments(len(kept.loadings), products=True)
        for batch in _some_spots(slices):
            frozen = getattr(batch, source)
            of_part = net.frozen_part(part, frozen)
            sums.add(of_part.numpy())
        _fit_part(kept, sums)


def _fit_part(kept: Components, sums: Moments) -> None:
    moment = sums.moment
    loadings = kept.loadings.double().numpy()
    if not kept.narrow:
        loadings = _first_directions(moment, loadings.shape[1])
    of_components = loadings.T @ moment @ loadings
    square_length = float(np.trace(of_components))
    scale = 1.0
    if square_length > 0:
        scale = 1 / np.sqrt(square_length)
    kept.fit(_tensor(loadings), round(scale, DIGITS))


def _first_directions(moment: Floats, k: int) -> Floats:
    """Return the first principal directions; of many columns without the others."""
    if len(moment) <= WIDE:
        directions, _ = principal_directions(moment, k)
        return directions
    start = np.ones(len(moment))
    _, rising = eigsh(moment, k, v0=start)
    directions = rising[:, ::-1]
    skewness = (directions**3).sum(axis=0)
    return (directions * np.sign(skewness)).round(DIGITS)


@torch.no_grad()
def fit_heads(objective: SpotNiche, slices: Sequence[Features]) -> None:
    """Start the maps of every contrast from the canonical correlations of its two sides over training spots.

    Parameters
    ----------
    objective
        Its network is changed in place.
    slices
        Features of training slices.
    """
    was_training = objective.training
    objective.eval()
    sums: dict[str, Moments] = {}
    for batch in _some_spots(slices):
        for name, sides in _contrasted(objective, batch).items():
            joined = torch.cat(sides, dim=-1)
            rows = joined.float().cpu().numpy()
            if name not in sums:
                sums[name] = Moments(rows.shape[1], products=True)
            sums[name].add(rows)
    for name, moments in sums.items():
        heads = objective.net.heads[name]
        assert isinstance(heads, Heads)
        _fit_maps(heads, moments, objective.net.config.dim)
    objective.train(was_training)


def _contrasted(objective: SpotNiche, batch: AlignBatch) -> dict[str, list[Tensor]]:
    """Return both sides of every contrast, by its name."""
    vectors = objective.vectors(batch.to(objective.device))
    sides: dict[str, list[Tensor]] = {}
    for scale, pair in vectors.items():
        if len(pair) == 2:
            sides[scale] = [pair["image"], pair["genes"]]
    own = objective.joined("spot", vectors["spot"])
    around = objective.joined("niche", vectors["niche"])
    sides["spot_niche"] = [own, around]
    return sides


def _fit_maps(heads: Heads, moments: Moments, dim: int) -> None:
    mean = moments.mean
    half = len(mean) // 2
    first, second = correlated_maps(moments, min(half, dim))
    mean_of_first = _tensor(mean[:half])
    mean_of_second = _tensor(mean[half:])
    heads.fit(_tensor(first), _tensor(second), (mean_of_first, mean_of_second))


def correlated_maps(moments: Moments, k: int) -> tuple[Floats, Floats]:
    """Return maps of two sides whose products are the regression of one on the other (canonical correlations).

    Parameters
    ----------
    moments
        Of rows ``[first ; second]``, both of one width.
    k
        Canonical pairs; each is weighted by the root of its correlation, so that pairs without any count little.

    Returns
    -------
    ``(width, k)`` each.
    """
    mean = moments.mean
    covariance = moments.moment - np.outer(mean, mean)
    half = len(mean) // 2
    upper, lower = np.vsplit(covariance, [half])
    of_first, between = np.hsplit(upper, [half])
    _, of_second = np.hsplit(lower, [half])
    white_first = _whitening(of_first)
    white_second = _whitening(of_second)
    left, correlation, right = np.linalg.svd(white_first @ between @ white_second)
    weight = np.sqrt(correlation[:k])
    first = white_first @ left[:, :k] * weight
    second = white_second @ right[:k].T * weight
    return first.round(DIGITS), second.round(DIGITS)


def _whitening(covariance: Floats) -> Floats:
    """Return the inverse root of a covariance with a ridge; columns that do not vary stay out."""
    variances = np.diag(covariance)
    largest = float(variances.max(initial=0))
    varies = variances > max(1e-9 * largest, 1e-12)
    ridge = 1.0
    if varies.any():
        ridge = RIDGE * variances[varies].mean()
    identity = np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance + ridge * identity)
    deviations = np.sqrt(np.maximum(values, ridge))
    root = vectors / deviations @ vectors.T
    return root * np.outer(varies, varies)


def _some_spots(slices: Sequence[Features]) -> Iterator[AlignBatch]:
    """Yield spots spread over all slices, about ``SPOTS`` at most."""
    n_spots = sum(len(features) for features in slices)
    step = max(1, n_spots // SPOTS)
    for features in slices:
        chosen = np.arange(0, len(features), step)
        for positions in batches(len(chosen), BATCH):
            yield features.take(chosen[positions])


def _tensor(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
