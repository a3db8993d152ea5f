"""Fits before training of what ST-Align keeps: components of frozen features, and the maps of the contrasts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from terrazzo.arrays import Floats, Ints
from terrazzo.expression import DIGITS, principal_directions
from terrazzo.systems.stalign.features import Features, batches
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
        for features in slices:
            for rows in batches(len(features), BATCH):
                taken = rows[:: _step(slices)]
                frozen = getattr(features.take(taken), source)
                sums.add(net.frozen_part(part, frozen).numpy())
        _fit_part(kept, sums)


def _fit_part(kept: Components, sums: Moments) -> None:
    if sums.products is None:
        raise ValueError("components need the sums of products")
    moment = sums.products / max(float(sums.n.max(initial=0)), 1)
    loadings = kept.loadings.double().numpy()
    if not kept.narrow:
        loadings = _first_directions(moment, loadings.shape[1])
    square_length = float(np.trace(loadings.T @ moment @ loadings))
    scale = 1 / np.sqrt(square_length) if square_length > 0 else 1.0
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
    for features in slices:
        for rows in batches(len(features), BATCH):
            taken: Ints = rows[:: _step(slices)]
            vectors = objective.vectors(features.take(taken).to(objective.device))
            sides = {
                scale: list(pair.values()) for scale, pair in vectors.items() if len(pair) == 2
            }
            sides["spot_niche"] = [
                objective.joined("spot", vectors["spot"]),
                objective.joined("niche", vectors["niche"]),
            ]
            for name, both in sides.items():
                joined = torch.cat(both, dim=-1).float().cpu().numpy()
                moments = sums.setdefault(name, Moments(joined.shape[1], products=True))
                moments.add(joined)
    for name, moments in sums.items():
        heads = objective.net.heads[name]
        assert isinstance(heads, Heads)
        mean = moments.mean
        half = len(mean) // 2
        first, second = correlated_maps(moments, min(half, objective.net.config.dim))
        means = (_tensor(mean[:half]), _tensor(mean[half:]))
        heads.fit(_tensor(first), _tensor(second), means)
    objective.train(was_training)


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
    if moments.products is None:
        raise ValueError("correlations need the sums of products")
    n = max(float(moments.n.max(initial=0)), 1)
    mean = moments.mean
    covariance = moments.products / n - np.outer(mean, mean)
    half = len(mean) // 2
    white_first = _whitening(covariance[:half, :half])
    white_second = _whitening(covariance[half:, half:])
    across = white_first @ covariance[:half, half:] @ white_second
    left, correlation, right = np.linalg.svd(across)
    weight = np.sqrt(correlation[:k])
    first = white_first @ left[:, :k] * weight
    second = white_second @ right[:k].T * weight
    return first.round(DIGITS), second.round(DIGITS)


def _whitening(covariance: Floats) -> Floats:
    """Return the inverse root of a covariance with a ridge; columns that do not vary stay out."""
    variances = np.diag(covariance)
    varies = variances > 1e-9 * max(float(variances.max(initial=0)), 1e-12)
    ridge = RIDGE * variances[varies].mean() if varies.any() else 1.0
    values, vectors = np.linalg.eigh(covariance + ridge * np.eye(len(covariance)))
    root = vectors / np.sqrt(np.maximum(values, ridge)) @ vectors.T
    return root * np.outer(varies, varies)


def _step(slices: Sequence[Features]) -> int:
    """Return every how manieth spot is read."""
    n_spots = sum(len(features) for features in slices)
    return max(1, n_spots // SPOTS)


def _tensor(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
