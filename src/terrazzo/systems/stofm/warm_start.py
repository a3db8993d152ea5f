"""Weights that training slices suggest: genes by SVD, vectors without their common part, heads that look near.

A BERT with random gene embeddings spends its first thousands of steps on finding that genes go together, which a
truncated SVD of a few thousand training cells says at once; an SE(2) Transformer whose heads all look everywhere
spends them on finding that neighbors matter.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terrazzo.expression import DIGITS
from terrazzo.models.sequences import Tokens
from terrazzo.systems.stofm.cell_encoder import CellEncoder
from terrazzo.systems.stofm.pair_bias import GaussianBias
from terrazzo.systems.stofm.se2 import SE2Transformer

NEAREST, FARTHEST, GRID = 0.05, 100.0, 400  # distances at which the heads' bias is fitted


LEAST_BIAS = 10.0  # far cells keep a little weight


RIDGE = 1e-4  # of that fit: errors of at most .3, without weights that the first steps would upset


HIDDEN_LOGIT = 4.0  # by which a hidden cell's weight is less than a shown one's


LEAST_TYPE = 0.02  # token types start small beside vectors of unit length


STATE, RANKED = (
    1.025,
    0.5,
)  # length of a token's embedding (loadings at most 1), and that of the last rank


CONSTANT = 0.5  # last number of a cell's vector, in typical lengths of the others


HANDED_ON = 3.0  # by which the mean over genes stands above <cls>'s own state


def show_components(
    encoder: CellEncoder, loadings: NDArray[np.float32], sample: Tokens, cls_token: int, seed: int
) -> None:
    """Let a cell encoder start as the SVD of ranked genes: its vector is a cell's component scores, of unit length.

    ``<cls>`` attends to all genes of the first layer with weights ``1 / sqrt(rank)``, which the position embeddings
    carry, and hands on their loadings; every other branch starts at zero. All token states have one length, of which
    the loadings are a part, so that LayerNorm does not blow up genes that say little.

    Parameters
    ----------
    encoder
        Changed in place.
    loadings
        ``(vocab_size, components)``, from :func:`gene_loadings`; at most ``hidden_size - 3`` of them are used.
    sample
        Cells whose mean vector is taken off.
    cls_token
        Token in front of every cell.
    seed
        Of the rotation that spreads the components over the state.
    """
    embedded, width = encoder.bert.embeddings, encoder.config.hidden_size
    kept = min(loadings.shape[1], width - 3)
    # directions without a mean, which LayerNorm would take off: components, filling, rank
    drawn = np.random.default_rng(seed).normal(size=(width, width - 1))
    basis = np.linalg.qr(np.concatenate([np.ones((width, 1)), drawn], axis=1))[0].round(DIGITS)
    components, filling, rank = basis[:, 1 : 1 + kept], basis[:, 1 + kept], basis[:, 2 + kept]
    length = np.linalg.norm(loadings[:, :kept], axis=1)
    most = np.quantile(length[length > 0], 0.99) if length.any() else 1.0
    shrunk = loadings[:, :kept] / np.maximum(length, most)[:, None]
    rest = np.sqrt(np.maximum(STATE**2 - (shrunk**2).sum(axis=1), 0))
    places = embedded.position_embeddings.weight
    falls = -0.5 * np.log(
        np.maximum(np.arange(len(places)), 1)
    )  # <cls> stands at 0, the first gene at 1
    reach = max(-float(falls.min()), 1e-6)
    with torch.no_grad():
        embedded.word_embeddings.weight.copy_(
            _float(shrunk @ components.T + rest[:, None] * filling)
        )
        places.copy_(_float(RANKED * falls[:, None] / reach * rank))
        embedded.token_type_embeddings.weight.zero_()
        layers: list[Any] = list(encoder.bert.encoder.layer)
        for layer in layers:
            for linear in (layer.attention.output.dense, layer.output.dense):
                linear.weight.zero_()
                linear.bias.zero_()
        first, heads = layers[0].attention, encoder.config.num_heads
        first.output.dense.weight.copy_(torch.eye(width) * HANDED_ON)
        first.self.value.weight.copy_(torch.eye(width))
        for linear in (first.self.query, first.self.key):
            linear.weight.zero_()
        for linear in (first.self.query, first.self.key, first.self.value):
            linear.bias.zero_()
        for place in range(0, width, width // heads):
            first.self.query.bias[place] = math.sqrt(width / heads)
            first.self.key.weight[place] = _float(
                rank * reach * STATE / (RANKED * math.sqrt(width))
            )
        _project(encoder, _float(components.T), sample, cls_token)


def _project(encoder: CellEncoder, rows: Tensor, sample: Tokens, cls_token: int) -> None:
    """Read the components out, less their mean over the sample, and a constant."""
    if encoder.proj is None:
        return
    encoder.proj.weight.zero_()
    encoder.proj.bias.zero_()
    count = min(len(rows), len(encoder.proj.weight))
    encoder.proj.weight[:count] = rows[:count]
    center(encoder, sample, cls_token, free=count)


def center(encoder: CellEncoder, sample: Tokens, cls_token: int, free: int | None = None) -> None:
    """Take the mean of a sample's vectors off the projection, and add a constant in the last place.

    Training moves all cells' vectors alike, which no linear read-out minds and every cosine does. By the constant a
    cell differs from a hidden one, a vector of zeros, wherever its components lie.

    Parameters
    ----------
    encoder
        Changed in place; one without a projection is left as it is.
    sample
        Cells whose mean vector is taken off.
    cls_token
        Token in front of every cell.
    free
        Numbers of the vector that are in use; where it is all of them no constant is added. None: the last is free.
    """
    if encoder.proj is None or not len(sample):
        return
    seen: list[Tensor] = []
    hook = encoder.proj.register_forward_hook(
        lambda module, given, out: seen.append(out.float().cpu())
    )
    try:
        encoder.encode(sample.flat, sample.offsets, cls_token=cls_token)
    finally:
        hook.remove()
    scores = torch.cat(seen).double().numpy()
    mean = scores.mean(axis=0)
    with torch.no_grad():
        encoder.proj.bias.sub_(_float(mean.round(DIGITS)))
        if free is None or free < len(mean):
            spread = np.sqrt(((scores - mean) ** 2).sum(axis=1).mean())
            encoder.proj.bias[-1] += round(CONSTANT * float(spread), DIGITS)


def _float(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def look_near(bias: GaussianBias, radii: NDArray[np.float64]) -> None:
    """Let each head start with weights that fall with distance as ``exp(-distance / radius)``; the last looks anywhere.

    Parameters
    ----------
    bias
        Changed in place: its two linear maps, so that the kernels add up to the wanted bias.
    radii
        One a head but the last, in the units of the model's distances.
    """
    first, last = cast("nn.Linear", bias.proj[0]), cast("nn.Linear", bias.proj[2])
    grid = torch.logspace(math.log10(NEAREST), math.log10(FARTHEST), GRID)
    wanted = torch.zeros(GRID, bias.heads, dtype=torch.float64)
    wanted[:, :-1] = -(grid[:, None] / torch.from_numpy(radii)).clamp_max(LEAST_BIAS)
    with torch.no_grad():
        kernels = torch.cat([bias.kernels(grid), torch.ones(GRID, 1)], dim=1).double()
        gram = kernels.T @ kernels + RIDGE * torch.eye(kernels.shape[1], dtype=torch.float64)
        solved = torch.linalg.solve(gram, kernels.T @ wanted).float()
        first.weight.copy_(
            torch.eye(len(bias.means))
        )  # kernels are positive: they pass the ReLU as they are
        first.bias.zero_()
        last.weight.copy_(solved[:-1].T)
        last.bias.copy_(solved[-1])


def show_neighbors(se2: SE2Transformer, mean: Tensor, covariance: Tensor) -> None:
    """Let an SE(2) Transformer start as what a regression on neighbors would be given, and as nothing else.

    Each head of the first layer hands on the leading components of the cells it looks at, hidden cells left out; with
    the heads' ranges of :func:`look_near` a token's first state holds means over wider and wider surroundings, side by
    side. All other branches start at zero. From random weights a short run ends behind the mean of six neighbors.

    Parameters
    ----------
    se2
        Changed in place.
    mean, covariance
        Of the cells' vectors, ``(input_dim,)`` and ``(input_dim, input_dim)``.
    """
    config, first = se2.config, se2.blocks()[0]
    width, wide = se2.head_dim, covariance.double()
    values, vectors = torch.linalg.eigh(wide)
    kept = min(width, len(values))
    values, vectors = values.flip(0)[:kept].clamp_min(1e-12), vectors.flip(1)[:, :kept]
    # between whitening and leaving as they are: noise must not lead, and the first component not drown the others
    components = (vectors / (values * values[0]).pow(0.25)).T
    # the direction in which all cells are alike, and a hidden cell (a vector of zeros) is not
    floor = 1e-2 * wide.diagonal().mean() * torch.eye(len(wide), dtype=torch.float64)
    alike = torch.linalg.solve(wide + floor, mean.double())
    contrast = float(
        alike @ mean.double()
    )  # squared; in standard deviations of the cells along that direction
    alike = alike / max(contrast, 1e-6)
    logit = min(
        HIDDEN_LOGIT, math.sqrt(contrast)
    )  # so that cells differ by about one among themselves
    with torch.no_grad():
        se2.token_types.weight.mul_(LEAST_TYPE)
        se2.embedding.weight.copy_(torch.eye(*se2.embedding.weight.shape))
        se2.embedding.bias.zero_()
        for layer in se2.blocks():
            for linear in (layer.out, layer.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
        first.out.weight.copy_(torch.eye(config.hidden_size))
        for linear in (first.query, first.key, first.value):
            linear.weight.zero_()
            linear.bias.zero_()
        strength = math.sqrt(logit * math.sqrt(width))
        for head in range(config.num_heads):
            place, size = head * width, len(mean)
            first.value.weight[place : place + kept, :size] = components.float()
            first.value.bias[place : place + kept] = -(components @ mean.double()).float()
            first.query.bias[place] = strength
            first.key.weight[place, :size] = (alike * strength).float()
