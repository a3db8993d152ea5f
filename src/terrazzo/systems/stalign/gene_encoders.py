"""Frozen gene encoders of ST-Align: principal components, or the cell encoder of another system (eq 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from terrazzo.arrays import Bools, Floats, Ints, Vectors
from terrazzo.config import SIZE, TOKENS, to_dict, within
from terrazzo.errors import ConfigError
from terrazzo.expression import Normalize, SliceScale, log_values
from terrazzo.genes import GeneMatch
from terrazzo.models.frozen import Advance, FrozenEncoder, cells_class

__all__ = [
    "GeneEncoderConfig",
    "GenePCA",
    "Standardize",
    "build",
    "cells_config",
    "known_genes",
    "scaled_values",
]

Standardize = Literal["slice", "training"]


@dataclass(frozen=True)
class GeneEncoderConfig:
    """The frozen encoder of a spot's genes.

    Attributes
    ----------
    kind
        ``"pca"``: principal components of log values of the model's genes, fitted on the training slices.
        ``"cells"``: the cell encoder of another model.
    output_dim
        Width of the vector.
    n_genes, normalize, standardize
        Of ``"pca"``: genes used; counts scaled to the slice's median total or to 10,000 (``"paper"``); each gene
        brought to mean 0 and sd 1 within its slice or by the training slices' mean and sd.
    model_type, settings
        Of ``"cells"``: which model's (``"stofm"``, ``"cell_encoder"``, ``"scgpt"``, ...), and the settings that it is
        built from.

    Raises
    ------
    ConfigError
        Sizes below 1; a cell encoder without a model.
    """

    kind: Literal["pca", "cells"] = "pca"
    output_dim: int = 50
    n_genes: int = 1000
    normalize: Normalize = "median"
    standardize: Standardize = "slice"
    model_type: str = ""
    settings: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.output_dim, self.n_genes) < 1:
            raise ConfigError("gene encoder: output_dim and n_genes must be at least 1.")
        if self.kind == "cells" and not self.model_type:
            raise ConfigError("gene encoder: kind 'cells' needs model_type and settings.")
        within(self, output_dim=SIZE, n_genes=TOKENS)


class GenePCA(FrozenEncoder):
    """Principal components of log values, in a fixed list of genes (the baseline Z50).

    Genes that a slice lacks count as average. Until :meth:`fit` the components are random directions.
    """

    origin = "principal components of the training slices"
    genes: Tensor
    loadings: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: GeneEncoderConfig, tokens: Ints) -> None:
        super().__init__(to_dict(config))
        self.config = config
        self.output_dim = config.output_dim
        n_genes = config.n_genes
        self.register_buffer("genes", torch.from_numpy(tokens[:n_genes].astype(np.int64)))
        self.register_buffer("loadings", torch.randn(n_genes, config.output_dim) / n_genes**0.5)
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("deviation", torch.ones(n_genes))

    def fit(self, genes: Ints, loadings: Floats, mean: Floats, deviation: Floats) -> None:
        """Set genes, components ``(n_genes, k)`` with k up to ``output_dim``, and the training slices' mean and sd."""
        tokens = np.asarray(genes, dtype=np.int64)
        self.genes.copy_(torch.from_numpy(tokens))
        self.loadings.zero_()
        n_fitted = loadings.shape[1]
        self.loadings[:, :n_fitted] = _float(loadings)
        self.mean.copy_(_float(mean))
        self.deviation.copy_(_float(deviation))

    def encode(
        self, counts: sparse.csr_matrix, match: GeneMatch, advance: Advance | None = None
    ) -> Vectors:
        """Return the components, float32 ``(n, output_dim)``."""
        genes = self.genes.cpu().numpy()
        values, scale = scaled_values(counts, match, genes, self.config.normalize)
        if self.config.standardize == "slice":
            mean = scale.mean
            sd = scale.sd
        else:
            mean = self.mean.double().cpu().numpy()
            sd = self.deviation.double().cpu().numpy()
        varies = (sd > 0) & known_genes(match, genes)
        stretch = np.divide(1.0, sd, out=np.zeros(len(sd)), where=varies)
        loadings = self.loadings.double().cpu().numpy()
        weights = loadings * stretch[:, None]
        if advance is not None:
            advance(counts.shape[0])
        components = values @ weights - mean @ weights  # values are never dense
        return np.asarray(components, dtype=np.float32)


def _float(values: Floats) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def build(config: GeneEncoderConfig, tokens: Ints, special: Mapping[str, int]) -> FrozenEncoder:
    """Return a gene encoder with random weights from its config, the genes' tokens and the special ones.

    Raises
    ------
    ConfigError
        The cell encoder of a model that is not installed or encodes no single cell; one of another width.
    """
    if config.kind == "pca":
        return GenePCA(config, tokens).freeze()
    encoder_class = cells_class(config.model_type)
    encoder = encoder_class(config.settings, special)
    if encoder.output_dim != config.output_dim:
        raise ConfigError(
            f"gene encoder: output_dim is {config.output_dim}, but the cell encoder's is {encoder.output_dim}."
        )
    return encoder.freeze()


def scaled_values(
    counts: sparse.csr_matrix, match: GeneMatch, genes: Ints, normalize: Normalize
) -> tuple[sparse.csr_matrix, SliceScale]:
    """Return log values of some genes of a slice, CSR float32 ``(n, len(genes))``, and their scale over its rows.

    Columns that share a token are summed; a gene that the slice lacks is an empty column.
    """
    column_token = match.column_token
    last_token = max(genes.max(initial=0), column_token.max(initial=0))
    place_of_token = np.full(int(last_token) + 1, -1, dtype=np.int64)
    place_of_token[genes] = np.arange(len(genes))
    place = np.where(column_token >= 0, place_of_token[column_token], -1)
    used = np.flatnonzero(place >= 0)
    ones = np.ones(len(used))
    shape = (counts.shape[1], len(genes))
    pick = sparse.csr_matrix((ones, (used, place[used])), shape=shape)
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    chosen = sparse.csr_matrix(counts @ pick)
    scale = SliceScale.fit([chosen], totals, normalize)
    return log_values(chosen, scale.total, totals), scale


def known_genes(match: GeneMatch, genes: Ints) -> Bools:
    """Say which of some tokens a slice has measured."""
    return np.isin(genes, match.column_token)


def cells_config(model_type: str, cells: Any) -> GeneEncoderConfig:
    """Return the config of a gene encoder that is another model's cell encoder."""
    return GeneEncoderConfig(
        "cells", cells.output_dim, model_type=model_type, settings=cells.settings
    )
