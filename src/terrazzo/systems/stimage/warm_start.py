"""Starting weights for ST as images from training slices: genes by SVD, a decoder that averages nearby sites.

With random gene embeddings a masked autoencoder in small budgets is worse than PCA. Here it starts as the baseline that
it should beat: a site's principal components, and for a hidden site the mean of those nearby; all else starts at zero.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from terrazzo.arrays import Floats, Ints
from terrazzo.corpus.loader import spread
from terrazzo.errors import ConfigError
from terrazzo.expression import DIGITS, principal_directions
from terrazzo.systems.stimage.config import STImageConfig
from terrazzo.systems.stimage.network import Block, MaskedViT
from terrazzo.systems.stimage.sites import SiteStore, iterate_values

__all__ = [
    "gene_components",
    "informed_start",
    "mean_autocorrelation",
    "regressed",
    "start_as_components",
]

COMPONENTS = 50

SAMPLE = 20_000  # sites that the SVD is made of

MOST_GENES = 2000  # of the SVD where all genes are channels

# Parts of a prediction: a shown site's own components, and the mean of those nearby, which a hidden site has alone.
# On DLPFC this costs .871 hidden, .475 shown, against .884, .482 with halves and .945, .558 with the genes' means.
OWN_SHARE = 0.25
NEIGHBOR_SHARE = 0.75

ALONE_SHARE = 0.5  # of a site that attends to no other

NEAR_PITCHES = 1.0  # radius of the head that averages nearby sites


def mean_autocorrelation(store: SiteStore, ids: list[str]) -> Floats:
    """Return each token's spatial autocorrelation, ``(n_tokens,)``: the mean over slices, 0 where not measured."""
    by_slice = [store.autocorrelation(id) for id in spread(ids)]
    mean: Floats = np.mean(by_slice, axis=0)
    return mean.round(DIGITS)


def informed_start(vit: MaskedViT, config: STImageConfig, store: SiteStore, ids: list[str]) -> None:
    """Replace random starting weights by weights computed from the training slices.

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
    some_ids = spread(ids)
    score = cast(Tensor, vit.autocorrelation).double().numpy()
    measured = [store.measured(id) for id in some_ids]
    known = np.unique(np.concatenate(measured))
    most = config.windows.channels
    if config.windows.choose == "all":
        most = MOST_GENES
    best_first = np.argsort(-score[known], kind="stable")
    genes = np.sort(known[best_first[:most]])
    n_components = min(COMPONENTS, config.vit.width // 2)
    loadings, variance = gene_components(store, some_ids, genes, n_components)
    if loadings.shape[1] == 0:  # slices without variation have no components
        return
    others = np.setdiff1d(known, genes)
    further = regressed(store, some_ids, genes, loadings, variance, others)
    start_as_components(vit, genes, loadings, variance, others, further)


def gene_components(store: SiteStore, ids: list[str], genes: Ints, k: int) -> tuple[Floats, Floats]:
    """Return principal directions of standardized site values of a sample of these slices' sites.

    Returns
    -------
    ``(len(genes), k)``, orthonormal columns by falling variance, and the variances ``(k,)``; both may be shorter.
    """
    gram = np.zeros((len(genes), len(genes)))
    n = 0
    for id, logs in iterate_values(store, ids, SAMPLE):
        dense = logs[:, genes].toarray()
        values = store.scale(id).standardize(dense, genes).astype(np.float64)
        gram += values.T @ values
        n += len(values)
    return principal_directions(gram / max(n, 1), k)


def regressed(
    store: SiteStore, ids: list[str], genes: Ints, loadings: Floats, variance: Floats, others: Ints
) -> Floats:
    """Return loadings of further genes on the same components, ``(len(others), k)``, by regression on the scores.

    So every gene that was measured has an embedding: other rules may draw it, and it can be predicted.
    """
    cross = np.zeros((len(others), loadings.shape[1]))
    n = 0
    for id, logs in iterate_values(store, ids, SAMPLE):
        scale = store.scale(id)
        values = scale.standardize(logs[:, genes].toarray(), genes)
        scores = values.astype(np.float64) @ loadings
        for start in range(0, len(others), MOST_GENES):  # never dense for all genes at once
            part = slice(start, start + MOST_GENES)
            other_values = scale.standardize(logs[:, others[part]].toarray(), others[part])
            cross[part] += other_values.T @ scores
        n += len(scores)
    slopes = cross / max(n, 1) / variance
    return slopes.round(DIGITS)


def start_as_components(
    vit: MaskedViT,
    genes: Ints,
    loadings: Floats,
    variance: Floats,
    others: Ints | None = None,
    further: Any = None,
) -> None:
    """Let a masked autoencoder start as principal components and their mean over nearby sites.

    A token's first numbers are the site's component scores, of mean square 1. The encoder passes them through. In the
    first block of the decoder each head adds the leading scores of the sites that it attends to, by distance alone: the
    head whose range is about a pitch to the same numbers, so that a hidden site has the mean of the shown sites around
    it, and a shown one something between that and its own; the others to unused numbers, for later layers. Without
    context a site keeps its own scores.

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
    width = vit.config.width
    context = vit.config.context
    k = loadings.shape[1]
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
        own_share = ALONE_SHARE
        if context:
            own_share = OWN_SHARE
            first = cast(Block, vit.decoder[0])
            _zero(first.query, first.key, first.value)
            _average_nearby(first, k)
        _zero(vit.readout)
        vit.readout.weight[:k, :k] = torch.eye(k) * own_share * k / width
        if vit.fusion is not None:
            halves = torch.cat([torch.eye(width), torch.eye(width)], dim=1) / 2
            vit.fusion.weight.copy_(halves)
            vit.fusion.bias.zero_()


def _average_nearby(block: Block, k: int) -> None:
    """Let each head pass on the leading numbers: the nearest head in place, the others to unused numbers."""
    width = block.out.weight.shape[0]
    size = width // block.heads
    passed = min(size, k)
    log_radius = cast(Tensor, block.log_radius).exp().log()
    near = 0
    if len(log_radius):
        off_by = (log_radius - float(np.log(NEAR_PITCHES))).abs()
        near = int(off_by.argmin())
    _copy_numbers(block, near, passed, passed, 0, NEIGHBOR_SHARE / OWN_SHARE)
    nearest_first = log_radius.argsort().tolist()
    last = block.heads - 1  # attends anywhere
    unused = k
    for head in [*nearest_first, last]:
        if head == near:
            continue
        count = min(passed, width - unused)
        _copy_numbers(block, head, passed, count, unused, 1.0)
        unused += count


def _copy_numbers(
    block: Block, head: int, passed: int, count: int, target: int, scale: float
) -> None:
    """Let a head read the first ``passed`` numbers and add ``count`` of them to those from ``target`` on."""
    size = block.out.weight.shape[0] // block.heads
    start = head * size
    block.value.weight[start : start + passed, :passed] = torch.eye(passed)
    copied = torch.eye(count) * scale
    block.out.weight[target : target + count, start : start + count] = copied


def _zero(*layers: nn.Linear) -> None:
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()


def _float(values: Floats) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
