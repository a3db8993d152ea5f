"""Frozen gene encoders of ST-Align behind one interface: counts of spots to vectors that nothing trains (eq 5)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from terrazzo.arrays import Ints, Vectors
from terrazzo.config import to_dict
from terrazzo.errors import ConfigError
from terrazzo.expression import Normalize, SliceScale, log_values
from terrazzo.genes import GeneMatch, Vocabulary
from terrazzo.models.base import FoundationModel
from terrazzo.systems.scgpt.model import ScGPTConfig
from terrazzo.systems.scgpt.network import ScGPTEncoder
from terrazzo.systems.scgpt.tokens import bin_cells
from terrazzo.systems.stofm.cell_encoder import CellEncoder, CellEncoderConfig
from terrazzo.systems.stofm.tokens import rank_tokens

Standardize = Literal["slice", "training"]


Advance = Callable[[int], None]


@dataclass(frozen=True)
class GeneEncoderConfig:
    """What encodes the genes of a spot, frozen.

    Attributes
    ----------
    kind
        ``"pca"``: principal components of log values of the model's genes, fitted on the training slices.
        ``"cell-encoder"``: SToFM's or Geneformer's, over ranked genes. ``"scgpt"``: scGPT, over binned ones.
    output_dim
        Width of the vector.
    n_genes, normalize, standardize
        Of ``"pca"``: genes used; counts scaled to the slice's median total or to 10,000 (``"paper"``); each gene
        brought to mean 0 and sd 1 within its slice or by the training slices' mean and sd.
    cell_encoder, scgpt
        Of ``"cell-encoder"`` and of ``"scgpt"``.

    Raises
    ------
    ConfigError
        Sizes below 1; a cell encoder or scGPT that is not described, or of another width.
    """

    kind: Literal["pca", "cell-encoder", "scgpt"] = "pca"
    output_dim: int = 50
    n_genes: int = 1000
    normalize: Normalize = "median"
    standardize: Standardize = "slice"
    cell_encoder: CellEncoderConfig | None = None
    scgpt: ScGPTConfig | None = None

    def __post_init__(self) -> None:
        if min(self.output_dim, self.n_genes) < 1:
            raise ConfigError("gene encoder: output_dim and n_genes must be at least 1.")
        if self.kind == "cell-encoder" and (
            self.cell_encoder is None or self.cell_encoder.output_dim != self.output_dim
        ):
            raise ConfigError(
                "gene encoder: kind 'cell-encoder' needs cell_encoder, of the same output_dim."
            )
        if self.kind == "scgpt" and (
            self.scgpt is None or self.scgpt.encoder.hidden_size != self.output_dim
        ):
            raise ConfigError(
                "gene encoder: kind 'scgpt' needs scgpt, whose hidden_size is output_dim."
            )


class GeneEncoder(nn.Module):
    """What ST-Align asks of a gene encoder: no gradient, always in evaluation mode.

    Attributes
    ----------
    config
        All but the weights.
    origin
        Where the weights come from, in words.
    """

    origin: str = "random weights"

    def __init__(self, config: GeneEncoderConfig) -> None:
        super().__init__()
        self.config = config

    def encode(
        self, counts: sparse.csr_matrix, match: GeneMatch, advance: Advance | None = None
    ) -> Vectors:
        """Encode the rows of a slice.

        Parameters
        ----------
        counts
            CSR ``(n, n_genes)``, all genes of the slice and all its rows; means of several spots need not be whole.
        match
            How these genes meet the model's vocabulary.
        advance
            Called with the number of rows done.

        Returns
        -------
        float32 ``(n, output_dim)``; a row without counts has a vector, too.
        """
        raise NotImplementedError

    def train(self, mode: bool = True) -> GeneEncoder:
        """Stay in evaluation mode."""
        return super().train(False)

    def freeze(self) -> GeneEncoder:
        """Let nothing be trained."""
        self.requires_grad_(False)
        return self.train(False)

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of settings and weights: what vectors depend on beside counts and genes."""
        digest = hashlib.sha256(
            f"terrazzo-gene-encoder-1 {json.dumps(to_dict(self.config), sort_keys=True)}".encode()
        )
        for name, tensor in sorted(self.state_dict().items()):
            held = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {held.dtype} {tuple(held.shape)}".encode())
            digest.update(held.view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


class GenePCA(GeneEncoder):
    """Principal components of log values: Z50 of the baselines, in a fixed list of genes.

    Genes that a slice lacks count as average. Until :meth:`fit` the components are random directions.
    """

    origin = "principal components of the training slices"
    genes: Tensor
    loadings: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: GeneEncoderConfig, tokens: Ints) -> None:
        super().__init__(config)
        n, k = config.n_genes, config.output_dim
        self.register_buffer("genes", torch.from_numpy(tokens[:n].astype(np.int64)))
        self.register_buffer("loadings", torch.randn(n, k) / n**0.5)
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("deviation", torch.ones(n))

    def fit(
        self, genes: Ints, loadings: NDArray[Any], mean: NDArray[Any], deviation: NDArray[Any]
    ) -> None:
        """Set genes, components ``(n_genes, k)`` with k up to ``output_dim``, and the training slices' mean and sd."""
        self.genes.copy_(torch.from_numpy(np.asarray(genes, dtype=np.int64)))
        self.loadings.zero_()
        self.loadings[:, : loadings.shape[1]] = torch.from_numpy(
            np.asarray(loadings, dtype=np.float32)
        )
        self.mean.copy_(torch.from_numpy(np.asarray(mean, dtype=np.float32)))
        self.deviation.copy_(torch.from_numpy(np.asarray(deviation, dtype=np.float32)))

    def encode(
        self, counts: sparse.csr_matrix, match: GeneMatch, advance: Advance | None = None
    ) -> Vectors:
        """Return the components, float32 ``(n, output_dim)``."""
        genes = self.genes.cpu().numpy()
        values, scale = scaled_values(counts, match, genes, self.config.normalize)
        known = known_genes(match, genes)
        mean, sd = self.mean.double().cpu().numpy(), self.deviation.double().cpu().numpy()
        if self.config.standardize == "slice":
            mean, sd = scale.mean, scale.sd
        stretch = np.divide(1.0, sd, out=np.zeros(len(sd)), where=(sd > 0) & known)
        weights = self.loadings.double().cpu().numpy() * stretch[:, None]
        if advance is not None:
            advance(counts.shape[0])
        return np.asarray(values @ weights - mean @ weights, dtype=np.float32)  # never dense


class FrozenCells(GeneEncoder):
    """SToFM's or Geneformer's cell encoder, frozen."""

    def __init__(self, config: GeneEncoderConfig, special: Mapping[str, int]) -> None:
        super().__init__(config)
        sizes = cast(CellEncoderConfig, config.cell_encoder)
        if sizes.pooling == "cls" and "<cls>" not in special:
            raise ConfigError("the vocabulary has no <cls> token, which this cell encoder needs.")
        self.cls_token = special.get("<cls>", 0)
        self.encoder = CellEncoder(sizes)

    def encode(
        self, counts: sparse.csr_matrix, match: GeneMatch, advance: Advance | None = None
    ) -> Vectors:
        """Return the cell vectors, float32 ``(n, output_dim)``."""
        length = self.encoder.config.max_length
        tokens = rank_tokens(counts, match.column_token, match.column_median, length)
        return self.encoder.encode(
            tokens.flat, tokens.offsets, cls_token=self.cls_token, advance=advance
        )


class FrozenScGPT(GeneEncoder):
    """scGPT, frozen (eq 5 of the paper); what it leaves to chance is drawn with seed 0."""

    def __init__(self, config: GeneEncoderConfig, special: Mapping[str, int]) -> None:
        super().__init__(config)
        self.sizes = cast(ScGPTConfig, config.scgpt)
        if "<cls>" not in special:
            raise ConfigError("the vocabulary has no <cls> token, which scGPT needs.")
        self.cls_token = special["<cls>"]
        self.encoder = ScGPTEncoder(self.sizes.encoder)

    def encode(
        self, counts: sparse.csr_matrix, match: GeneMatch, advance: Advance | None = None
    ) -> Vectors:
        """Return the cell vectors, float32 ``(n, output_dim)``."""
        cells = bin_cells(counts, match.column_token, self.sizes.n_bins, self.sizes.max_length, 0)
        tokens = cells.tokens
        return self.encoder.encode(
            tokens.flat, cells.values, tokens.offsets, cls_token=self.cls_token, advance=advance
        )


def frozen_genes(source: str | Path | FoundationModel) -> tuple[GeneEncoder, Vocabulary]:
    """Return the gene encoder of a model, frozen, and the vocabulary that it reads.

    Parameters
    ----------
    source
        SToFM, a cell encoder (Geneformer) or scGPT; a checkpoint folder, or loaded.

    Raises
    ------
    ConfigError
        A model that encodes no single cell.
    CheckpointError
        A folder that is no checkpoint.
    """
    from terrazzo.models.loading import load

    held: Any = source if isinstance(source, FoundationModel) else load(source)
    special = held.vocabulary.special
    made: Any
    if held.model_type == "scgpt":
        width = held.config.encoder.hidden_size
        made, cells = (
            FrozenScGPT(GeneEncoderConfig("scgpt", width, scgpt=held.config), special),
            held.module,
        )
    elif held.model_type in ("stofm", "cell_encoder"):
        sizes = held.config.cell_encoder
        made = FrozenCells(
            GeneEncoderConfig("cell-encoder", sizes.output_dim, cell_encoder=sizes), special
        )
        cells = held.module.cell_encoder if held.model_type == "stofm" else held.module
    else:
        raise ConfigError(
            f"{held.title} encodes no single cell; a gene encoder is SToFM's, a cell encoder or scGPT."
        )
    made.encoder.load_state_dict(cells.state_dict())
    made.origin = (
        f"{held.title}, {held.provenance.get('source', held.provenance.get('weights', 'unknown'))}"
    )
    return made.freeze(), held.vocabulary


def build(config: GeneEncoderConfig, tokens: Ints, special: Mapping[str, int]) -> GeneEncoder:
    """Make a gene encoder with random weights from its config, the genes' tokens and the special ones."""
    if config.kind == "pca":
        return GenePCA(config, tokens).freeze()
    kind = FrozenScGPT if config.kind == "scgpt" else FrozenCells
    return kind(config, special).freeze()


def scaled_values(
    counts: sparse.csr_matrix, match: GeneMatch, genes: Ints, normalize: Normalize
) -> tuple[sparse.csr_matrix, SliceScale]:
    """Return log values of some genes of a slice, CSR float32 ``(n, len(genes))``, and their scale over its rows.

    Columns that share a token are summed; a gene that the slice lacks is an empty column.
    """
    at = np.full(
        int(max(genes.max(initial=0), match.column_token.max(initial=0))) + 1, -1, dtype=np.int64
    )
    at[genes] = np.arange(len(genes))
    column = np.where(match.column_token >= 0, at[match.column_token], -1)
    used = np.flatnonzero(column >= 0)
    pick = sparse.csr_matrix(
        (np.ones(len(used)), (used, column[used])), shape=(counts.shape[1], len(genes))
    )
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    chosen = sparse.csr_matrix(counts @ pick)
    scale = SliceScale.fit([chosen], totals, normalize)
    return log_values(chosen, scale.total, totals), scale


def known_genes(match: GeneMatch, genes: Ints) -> NDArray[np.bool_]:
    """Say which of some tokens a slice has measured."""
    return np.isin(genes, match.column_token)
