"""Starting weights from training slices: genes by SVD, centered cell vectors, heads that attend to near cells.

A BERT with random gene embeddings spends its first thousands of steps on learning that genes go together, which a
truncated SVD of a few thousand training cells gives at once; an SE(2) Transformer whose heads attend to all cells alike
spends them on learning that neighbors matter.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from terrazzo.arrays import AnyFloats, Floats, Vectors
from terrazzo.expression import DIGITS
from terrazzo.models.sequences import Tokens
from terrazzo.systems.stofm.cell_encoder import CellEncoder
from terrazzo.systems.stofm.pair_bias import GaussianBias
from terrazzo.systems.stofm.se2 import SE2Transformer

__all__ = ["center", "set_attention_radii", "start_as_components", "start_as_neighbor_means"]

# Of a cell encoder
TOKEN_LENGTH = 1.025  # length of a token's embedding (loadings at most 1)
RANK_LENGTH = 0.5  # length of the position embedding of the last rank
CONSTANT = 0.5  # last number of a cell's vector, in typical lengths of the others
PASSED_ON = 3.0  # by which the mean over genes exceeds <cls>'s own state

# Of the heads' bias: distances at which it is fitted
NEAREST = 0.05
FARTHEST = 100.0
N_DISTANCES = 400
LEAST_BIAS = 10.0  # far cells keep a little weight
RIDGE = 1e-4  # errors of at most .3, without weights that the first steps would upset

# Of an SE(2) Transformer
HIDDEN_LOGIT = 4.0  # by which a hidden cell's logit is below a shown one's
LEAST_TYPE = 0.02  # token types start small beside vectors of unit length
LEAST_VARIANCE = 1e-12
FLOOR = 1e-2  # ridge of the common direction, in mean variances


def start_as_components(
    encoder: CellEncoder, loadings: Vectors, sample: Tokens, cls_token: int, seed: int
) -> None:
    """Let a cell encoder start as the SVD of ranked genes: its vector is a cell's component scores, of unit length.

    ``<cls>`` attends to all genes of the first layer with weights ``1 / sqrt(rank)``, which the position embeddings
    carry, and passes on their loadings; every other branch starts at zero. All token states have one length, of which
    the loadings are a part, so that LayerNorm does not blow up genes with small loadings.

    Parameters
    ----------
    encoder
        Changed in place.
    loadings
        ``(vocab_size, components)``, from :func:`terrazzo.systems.stofm.statistics.gene_loadings`; at most
        ``hidden_size - 3`` of them are used.
    sample
        Cells whose mean vector is subtracted.
    cls_token
        Token in front of every cell.
    seed
        Of the rotation that spreads the components over the state.
    """
    embeddings = encoder.bert.embeddings
    positions = embeddings.position_embeddings.weight
    width = encoder.config.hidden_size
    n_components = min(loadings.shape[1], width - 3)
    basis = _directions(width, seed)
    components = basis[:, 1 : 1 + n_components]
    filling = basis[:, 1 + n_components]
    rank = basis[:, 2 + n_components]
    shrunk = _shrunk(loadings[:, :n_components])
    squared_length = (shrunk**2).sum(axis=1)
    squared_rest = np.maximum(TOKEN_LENGTH**2 - squared_length, 0)
    filler = np.outer(np.sqrt(squared_rest), filling)
    words = shrunk @ components.T + filler
    ranks = np.arange(len(positions))  # the first gene is at 1
    ranks[0] = 1  # <cls>
    log_weight = -0.5 * np.log(ranks)
    reach = max(-float(log_weight.min()), 1e-6)
    log_weight_share = RANK_LENGTH * log_weight / reach
    key_scale = RANK_LENGTH * math.sqrt(width)
    rank_key = rank * reach * TOKEN_LENGTH / key_scale
    layers: list[Any] = list(encoder.bert.encoder.layer)
    n_heads = encoder.config.num_heads
    with torch.no_grad():
        embeddings.word_embeddings.weight.copy_(_float(words))
        positions.copy_(_float(np.outer(log_weight_share, rank)))
        embeddings.token_type_embeddings.weight.zero_()
        for layer in layers:
            _zero(layer.attention.output.dense, layer.output.dense)
        _attend_by_rank(layers[0].attention, _float(rank_key), n_heads)
        _project(encoder, _float(components.T), sample, cls_token)


def _directions(width: int, seed: int) -> Floats:
    """Return an orthonormal basis whose first column is the mean, which LayerNorm removes."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(width, width - 1))
    constant = np.ones((width, 1))
    columns = np.hstack([constant, drawn])
    basis: Floats = np.linalg.qr(columns)[0]
    return basis.round(DIGITS)


def _shrunk(loadings: Vectors) -> AnyFloats:
    """Return loadings with rows of length 1 at most: those above the 99th percentile are cut to it."""
    length = np.linalg.norm(loadings, axis=1)
    positive = length[length > 0]
    most = 1.0
    if len(positive):
        most = np.quantile(positive, 0.99)
    divisor = np.maximum(length, most)
    return loadings / divisor[:, None]


def _attend_by_rank(attention: Any, rank_key: Tensor, n_heads: int) -> None:
    """Let ``<cls>`` attend to all genes by their rank alone, and pass on their states."""
    width = len(rank_key)
    head_width = width // n_heads
    query = attention.self.query
    key = attention.self.key
    value = attention.self.value
    _zero(query, key)
    _pass_on(value)
    _pass_on(attention.output.dense, PASSED_ON)
    root = math.sqrt(width / n_heads)
    for start in range(0, width, head_width):
        query.bias[start] = root
        key.weight[start] = rank_key


def _project(encoder: CellEncoder, rows: Tensor, sample: Tokens, cls_token: int) -> None:
    """Let the projection return the components, less their mean over the sample, and a constant."""
    projection = encoder.proj
    if projection is None:
        return
    _zero(projection)
    count = min(len(rows), projection.out_features)
    projection.weight[:count] = rows[:count]
    center(encoder, sample, cls_token, free=count)


def center(encoder: CellEncoder, sample: Tokens, cls_token: int, free: int | None = None) -> None:
    """Subtract the mean of a sample's vectors in the projection, and add a constant in the last place.

    Training moves all cells' vectors alike, which changes no linear head and every cosine. By the constant a cell
    differs from a hidden one, a vector of zeros, whatever its components are.

    Parameters
    ----------
    encoder
        Changed in place; one without a projection is left as it is.
    sample
        Cells whose mean vector is subtracted.
    cls_token
        Token in front of every cell.
    free
        Numbers of the vector that are in use; where it is all of them no constant is added. None: the last is free.
    """
    projection = encoder.proj
    if projection is None or len(sample) == 0:
        return
    projected: list[Tensor] = []

    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        projected.append(output.float().cpu())

    hook = projection.register_forward_hook(record)
    try:
        encoder.encode(sample.flat, sample.offsets, cls_token=cls_token)
    finally:
        hook.remove()
    scores = torch.cat(projected).double().numpy()
    mean = scores.mean(axis=0)
    shift = _float(mean.round(DIGITS))
    with torch.no_grad():
        projection.bias.sub_(shift)
        if free is None or free < len(mean):
            deviation = scores - mean
            squared_distance = (deviation**2).sum(axis=1)
            spread = float(np.sqrt(squared_distance.mean()))
            projection.bias[-1] += round(CONSTANT * spread, DIGITS)


def set_attention_radii(bias: GaussianBias, radii: Floats) -> None:
    """Let attention fall with distance, in each head as ``exp(-distance / radius)``; the last attends anywhere.

    Parameters
    ----------
    bias
        Changed in place: its two linear maps, so that the kernels add up to the wanted bias.
    radii
        One a head but the last, in the units of the model's distances.
    """
    first = cast("nn.Linear", bias.proj[0])
    last = cast("nn.Linear", bias.proj[2])
    start = math.log10(NEAREST)
    stop = math.log10(FARTHEST)
    distances = torch.logspace(start, stop, N_DISTANCES)
    in_radii = distances[:, None] / torch.from_numpy(radii)
    wanted = torch.zeros(N_DISTANCES, bias.heads, dtype=torch.float64)
    fall = in_radii.clamp_max(LEAST_BIAS)
    wanted[:, :-1] = -fall
    with torch.no_grad():
        constant = torch.ones(N_DISTANCES, 1)
        kernels = bias.kernels(distances)
        predictors = torch.cat([kernels, constant], dim=1).double()
        identity = torch.eye(predictors.shape[1], dtype=torch.float64)
        gram = predictors.T @ predictors + RIDGE * identity
        cross = predictors.T @ wanted
        solved = torch.linalg.solve(gram, cross).float()
        _pass_on(first)  # kernels are positive: the ReLU changes none
        last.weight.copy_(solved[:-1].T)
        last.bias.copy_(solved[-1])


def start_as_neighbor_means(se2: SE2Transformer, mean: Tensor, covariance: Tensor) -> None:
    """Let an SE(2) Transformer start as the predictors of a regression on neighbors, and as nothing else.

    Each head of the first layer passes on the leading components of the cells it attends to, hidden cells left out;
    with the heads' ranges of :func:`set_attention_radii` a token's first state holds means over wider and wider
    surroundings, side by side. All other branches start at zero. From random weights a short run ends behind the mean
    of six neighbors.

    Parameters
    ----------
    se2
        Changed in place.
    mean, covariance
        Of the cells' vectors, ``(input_dim,)`` and ``(input_dim, input_dim)``.
    """
    wide_mean = mean.double()
    wide_covariance = covariance.double()
    components = _leading_components(wide_covariance, se2.head_dim)
    common, contrast = _common_direction(wide_mean, wide_covariance)
    # so that cells differ by about one among themselves
    logit = min(HIDDEN_LOGIT, math.sqrt(contrast))
    root = math.sqrt(se2.head_dim)
    strength = math.sqrt(logit * root)
    value_weight = components.float()
    value_bias = -(components @ wide_mean).float()
    key_weight = (common * strength).float()
    first = se2.blocks()[0]
    query = first.query
    key = first.key
    value = first.value
    with torch.no_grad():
        se2.token_types.weight.mul_(LEAST_TYPE)
        _pass_on(se2.embedding)
        for layer in se2.blocks():
            _zero(layer.out, layer.fc2)
        _pass_on(first.out)
        _zero(query, key, value)
        n_inputs = len(mean)
        for head in range(se2.config.num_heads):
            start = head * se2.head_dim
            stop = start + len(components)
            value.weight[start:stop, :n_inputs] = value_weight
            value.bias[start:stop] = value_bias
            query.bias[start] = strength
            key.weight[start, :n_inputs] = key_weight


def _leading_components(covariance: Tensor, most: int) -> Tensor:
    """Return at most so many leading components, ``(components, d)``.

    They are between whitened and as they are: noise must not lead, and the first must not drown the others.
    """
    values, vectors = torch.linalg.eigh(covariance)
    count = min(most, len(values))
    variances = values.flip(0)  # the largest first
    variances = variances[:count].clamp_min(LEAST_VARIANCE)
    directions = vectors.flip(1)
    directions = directions[:, :count]
    lengths = (variances * variances[0]).pow(0.25)
    return (directions / lengths).T


def _common_direction(mean: Tensor, covariance: Tensor) -> tuple[Tensor, float]:
    """Return the direction in which all cells are alike, and a hidden cell (a vector of zeros) is not.

    Returns
    -------
    The direction ``(d,)``, scaled so that the mean is 1 along it, and the squared distance of the mean from zero, in
    standard deviations of the cells along it.
    """
    mean_variance = covariance.diagonal().mean()
    identity = torch.eye(len(covariance), dtype=torch.float64)
    floor = FLOOR * mean_variance * identity
    direction = torch.linalg.solve(covariance + floor, mean)
    contrast = float(direction @ mean)
    return direction / max(contrast, 1e-6), contrast


def _zero(*layers: nn.Linear) -> None:
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()


def _pass_on(layer: nn.Linear, scale: float = 1.0) -> None:
    """Let a layer pass on its input as it is, or scaled."""
    identity = torch.eye(*layer.weight.shape)
    layer.weight.copy_(identity * scale)
    layer.bias.zero_()


def _float(values: AnyFloats) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
