"""The cell encoder as a model of its own: Geneformer as published, or SToFM's gene scale.

Its input is one cell at a time and no tissue: the baseline "cell encoder" and "Geneformer" of SToFM's tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
from torch import nn

from terrazzo import keys
from terrazzo.arrays import Ints, Vectors
from terrazzo.genes import Coverage, GeneMatch
from terrazzo.models.base import Embedding, FoundationModel, Prepared
from terrazzo.models.estimate import (
    Plan,
    Precision,
    advice,
    encoding_seconds,
    measured_rates,
    warn_if_long,
)
from terrazzo.models.sequences import Tokens, check_vocabulary, encode_measured
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.systems.stofm.cell_encoder import CellEncoder, CellEncoderConfig
from terrazzo.systems.stofm.options import CellEmbedOptions
from terrazzo.systems.stofm.tokens import rank_tokens

__all__ = ["CellModel", "CellModelConfig", "encode_cells", "tokenize"]


@dataclass(frozen=True)
class CellModelConfig:
    """Hyperparameters of a cell encoder alone."""

    cell_encoder: CellEncoderConfig = field(default_factory=CellEncoderConfig)


def tokenize(tissue: Slice, match: GeneMatch, max_length: int) -> Tokens:
    """Return the ranked genes of every cell of a slice, as tokens of the matched vocabulary."""
    return rank_tokens(tissue.counts, match.column_token, match.column_median, max_length)


def encode_cells(
    encoder: CellEncoder, tokens: Tokens, cls_token: int, precision: Precision, bars: Progress
) -> tuple[Vectors, dict[str, Any]]:
    """Encode all cells; with bfloat16 also measure its error on a few of them.

    Returns
    -------
    float32 ``(n_cells, output_dim)``, and details for the provenance.
    """

    def encode(rows: Ints | None, **options: Any) -> Vectors:
        part = tokens if rows is None else tokens.take(rows)
        return encoder.encode(part.flat, part.offsets, cls_token=cls_token, **options)

    return encode_measured(encode, len(tokens), precision, bars)


class CellModel(FoundationModel):
    """A cell encoder alone: one vector per cell from its own genes, no neighborhood.

    Parameters
    ----------
    config
        :class:`CellModelConfig`.
    vocabulary
        Genes, tokens and medians.
    seed
        Seed of random initial weights.
    provenance
        Where the weights come from.
    """

    model_type: ClassVar[str] = "cell_encoder"
    default_key = keys.X_CELL
    config_class: ClassVar[type] = CellModelConfig
    options_class = CellEmbedOptions
    title = "SToFM cell encoder"
    limits: ClassVar[tuple[str, ...]] = ("A cell is seen alone: its neighborhood changes nothing.",)
    module: CellEncoder

    def _build(self) -> nn.Module:
        sizes = self.config.cell_encoder
        self.cls_token = check_vocabulary(sizes.vocab_size, self.vocabulary)
        return CellEncoder(sizes)

    def prepare(
        self,
        tissue: Slice,
        options: CellEmbedOptions | None = None,
        *,
        obs: pd.DataFrame | None = None,
    ) -> PreparedCells:
        """Match and tokenize one slice; see :meth:`terrazzo.models.base.FoundationModel.prepare`."""
        chosen = options or CellEmbedOptions()
        match = self.vocabulary.match(tissue, orthologs=chosen.orthologs)
        tokens = tokenize(tissue, match, self.config.cell_encoder.max_length)
        return PreparedCells(self, tissue, match.coverage, tokens, chosen.precision)


class PreparedCells(Prepared):
    """A slice as ranked genes."""

    def __init__(
        self,
        model: CellModel,
        tissue: Slice,
        coverage: Coverage,
        tokens: Tokens,
        precision: Precision,
    ) -> None:
        self.model = model
        self.tissue = tissue
        self.coverage = coverage
        self.tokens = tokens
        self.precision = precision
        self.settings = {"precision": precision}

    def _plan(self) -> Plan:
        device = self.model.device
        rates = measured_rates(device)
        lengths = self.tokens.lengths + 1
        seconds = encoding_seconds(self.model.module, lengths, self.precision, rates)
        faster = advice(seconds, device, self.precision, rates)
        return Plan(self.tissue.n_cells, 0, self.coverage, seconds, faster)

    def embed(self, bars: Progress | None = None) -> Embedding:
        """Encode every cell."""
        model = self.model
        lengths = self.tokens.lengths
        warn_if_long(model.module, lengths + 1, self.precision, model.device, self.tissue.name)
        bars = bars or Progress(False)
        vectors, details = encode_cells(
            model.module, self.tokens, model.cls_token, self.precision, bars
        )
        return Embedding(vectors, lengths == 0, self.coverage, details)
