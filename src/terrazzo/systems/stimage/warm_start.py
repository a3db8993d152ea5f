"""Weights for ST as images that training slices suggest: genes by SVD, a decoder that takes the mean of what is near.

With random gene embeddings a masked autoencoder in small budgets is worse than PCA. Here it starts as what it should
beat: the components of a site, and for a hidden one the near mean of them; all else starts at zero.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terrazzo.arrays import Floats, Ints
from terrazzo.corpus.loader import spread
from terrazzo.errors import ConfigError
from terrazzo.expression import DIGITS, principal_directions
from terrazzo.systems.stimage.config import STImageConfig
from terrazzo.systems.stimage.network import Block, MaskedViT
from terrazzo.systems.stimage.sites import SiteStore, iterate_values
from terrazzo.systems.stofm.statistics import SAMPLE

COMPONENTS = 50


MOST_GENES = 2000  # of the SVD where all genes are channels


# of a prediction: a shown site's own components, and the near mean's, which a hidden site has alone (on DLPFC this
# costs .871 hidden, .475 shown against .884, .482 with halves, and .945, .558 of the genes' means)
OWN, AROUND = 0.25, 0.75


ALONE = 0.5  # of a site that sees no other


NEAR = 1.0  # radius, in pitches, of the head that hands on the near mean


def mean_autocorrelation(store: SiteStore, ids: list[str]) -> Floats:
    """Return each token's spatial autocorrelation, ``(n_tokens,)``: the mean over slices, 0 where not measured."""
    return np.mean([store.autocorrelation(i) for i in spread(ids)], axis=0).round(DIGITS)


def inform(vit: MaskedViT, config: STImageConfig, store: SiteStore, ids: list[str]) -> None:
    """Replace random starting weights by those that these slices suggest.

    Parameters
    ----------
    vit
        Changed in place; ``vit.autocorrelation`` chooses the genes.
    config
        Its settings.
    store, ids
        The training slices.

    Raises
    ------
    ConfigError
        A model with fixed positions, or whose values are not standardized.
    """
    if config.vit.positions != "distance" or not config.standardize:
        raise ConfigError(
            "model.init 'informed' needs standardized values and attention by distance (objective.flavor: terrazzo); "
            "take init: random."
        )
    score = cast(Tensor, vit.autocorrelation).double().numpy()
    known = np.unique(np.concatenate([store.measured(i) for i in spread(ids)]))
    most = MOST_GENES if config.windows.choose == "all" else config.windows.channels
    genes = np.sort(known[np.argsort(-score[known], kind="stable")[:most]])
    loadings, variance = gene_components(
        store, spread(ids), genes, min(COMPONENTS, config.vit.width // 2)
    )
    if loadings.shape[1]:  # of slices without variation there is none
        others = np.setdiff1d(known, genes)
        further = regressed(store, spread(ids), genes, loadings, variance, others)
        show_components(vit, genes, loadings, variance, others, further)


def gene_components(store: SiteStore, ids: list[str], genes: Ints, k: int) -> tuple[Floats, Floats]:
    """Return principal directions of standardized site values of a sample of these slices' sites.

    Returns
    -------
    ``(len(genes), k)``, orthonormal columns by falling variance, and the variances ``(k,)``; both may be shorter.
    """
    gram, n = np.zeros((len(genes), len(genes))), 0
    for id, found in iterate_values(store, ids, SAMPLE):
        values = store.scale(id).standardize(found[:, genes].toarray(), genes).astype(np.float64)
        gram += values.T @ values
        n += len(values)
    return principal_directions(gram / max(n, 1), k)


def regressed(
    store: SiteStore, ids: list[str], genes: Ints, loadings: Floats, variance: Floats, others: Ints
) -> Floats:
    """Return loadings of further genes on the same components, ``(len(others), k)``, by regression on the scores.

    So every gene that was measured has an embedding: other rules may draw it, and it can be predicted.
    """
    cross, n = np.zeros((len(others), loadings.shape[1])), 0
    for id, found in iterate_values(store, ids, SAMPLE):
        scale = store.scale(id)
        scores = scale.standardize(found[:, genes].toarray(), genes).astype(np.float64) @ loadings
        for at in range(0, len(others), MOST_GENES):  # never dense for all genes at once
            some = others[at : at + MOST_GENES]
            cross[at : at + MOST_GENES] += (
                scale.standardize(found[:, some].toarray(), some).T @ scores
            )
        n += len(scores)
    return (cross / max(n, 1) / variance).round(DIGITS)


def show_components(
    vit: MaskedViT,
    genes: Ints,
    loadings: Floats,
    variance: Floats,
    others: Ints | None = None,
    further: Any = None,
) -> None:
    """Let a masked autoencoder start as principal components and their mean over what is near.

    A token's first numbers are the site's component scores, of mean square 1. The encoder hands them on. In the first
    block of the decoder each head adds the leading scores of what it looks at, by distance alone: the one whose range
    is about a pitch to the same numbers, so that a hidden site has the mean of the shown sites around it, and a shown
    one something between that and its own; the others to numbers that are free, for later layers to use. Without
    context a site keeps its own.

    Parameters
    ----------
    vit
        Changed in place; with distances.
    genes
        Tokens ``(m,)``.
    loadings, variance
        ``(m, k)``, orthonormal columns, and the variance of the scores, ``(k,)``; from :func:`gene_components`.
    others, further
        More tokens and their loadings, from :func:`regressed`; None for none.
    """
    width, k, context = vit.config.width, loadings.shape[1], vit.config.context
    first = cast(Block, vit.decoder[0])
    # tokens are scores * width / (factor * k)
    factor = width / k * float(np.sqrt(variance.mean()))
    with torch.no_grad():
        vit.genes.weight.zero_()
        vit.genes.weight[torch.from_numpy(genes), :k] = _float(factor * loadings)
        if others is not None:
            vit.genes.weight[torch.from_numpy(others), :k] = _float(factor * further)
        blocks: list[Any] = [*vit.encoder, *vit.decoder]
        for block in blocks:
            _zero(block.out, block.fc2)
        if context:
            _zero(first.query, first.key, first.value)
            _look_near(first, k)
        _zero(vit.readout)
        own = OWN if context else ALONE
        vit.readout.weight[:k, :k] = torch.eye(k) * own * k / width
        if vit.fusion is not None:
            vit.fusion.weight.copy_(torch.cat([torch.eye(width), torch.eye(width)], dim=1) / 2)
            vit.fusion.bias.zero_()


def _look_near(block: Block, k: int) -> None:
    """Let each head hand on the leading numbers: the nearest to where they stand, the others to what is free."""
    width, heads = block.out.weight.shape[0], block.heads
    size = width // heads
    radius = cast(Tensor, block.log_radius).exp()
    near = int((radius.log() - float(np.log(NEAR))).abs().argmin()) if len(radius) else 0
    # the last head looks anywhere
    others = [h for h in [*radius.argsort().tolist(), heads - 1] if h != near]
    given, free = min(size, k), k
    for head in [near, *others]:
        at, count = head * size, given if head == near else min(given, width - free)
        block.value.weight[at : at + given, :given] = torch.eye(given)
        target, scale = (0, AROUND / OWN) if head == near else (free, 1.0)
        block.out.weight[target : target + count, at : at + count] = torch.eye(count) * scale
        free += 0 if head == near else count


def _zero(*layers: nn.Linear) -> None:
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()


def _float(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
