"""scGPT: genes and their binned values to one vector a cell, without tissue; a system to compare with.

Its input is one cell at a time. Its published weights are read by :mod:`terrazzo.systems.scgpt.convert`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
from torch import nn

from terrazzo import keys
from terrazzo.arrays import Ints, Vectors
from terrazzo.config import SIZE, within
from terrazzo.errors import ConfigError
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
from terrazzo.models.sequences import check_vocabulary, encode_measured
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.systems.scgpt.network import ScGPTEncoder, ScGPTEncoderConfig
from terrazzo.systems.scgpt.options import ScGPTEmbedOptions
from terrazzo.systems.scgpt.tokens import Binned, bin_cells

__all__ = ["ScGPT", "ScGPTConfig"]


@dataclass(frozen=True)
class ScGPTConfig:
    """Hyperparameters of scGPT.

    Attributes
    ----------
    encoder
        Sizes of the transformer.
    n_bins
        Bins of a cell's values, the one of 0 included.
    max_length
        Longest sequence, ``<cls>`` included; of a cell with more genes a random part is read.

    Raises
    ------
    ConfigError
        Fewer than 2 bins, or no place for a gene.
    """

    encoder: ScGPTEncoderConfig = field(default_factory=ScGPTEncoderConfig)
    n_bins: int = 51
    max_length: int = 1200

    def __post_init__(self) -> None:
        if self.n_bins < 2 or self.max_length < 2:
            raise ConfigError(
                f"scGPT: n_bins ({self.n_bins}) and max_length ({self.max_length}) must be at least 2."
            )
        within(self, n_bins=SIZE, max_length=SIZE)


class ScGPT(FoundationModel):
    """scGPT (Cui et al., 2024): one vector per cell from its own genes, no neighborhood.

    Parameters
    ----------
    config
        :class:`ScGPTConfig`.
    vocabulary
        Genes and tokens; the medians are not used.
    seed
        Seed of random initial weights.
    provenance
        Where the weights come from.
    """

    model_type: ClassVar[str] = "scgpt"
    default_key = keys.X_SCGPT
    config_class: ClassVar[type] = ScGPTConfig
    options_class = ScGPTEmbedOptions
    title = "scGPT"
    citation = (
        "Cui, Wang, Maan, Pang, Luo, Duan and Wang, scGPT: toward building a foundation model for single-cell "
        "multi-omics using generative AI, Nature Methods 21 (2024)."
    )
    limits: ClassVar[tuple[str, ...]] = (
        "A cell is seen alone: its neighborhood changes nothing.",
        "Of a cell with more genes than fit into a sequence a random part is read; `seed` decides which.",
        "Human; a mouse slice is matched through orthologs, another species needs a table of them.",
    )
    module: ScGPTEncoder

    def _build(self) -> nn.Module:
        self.cls_token = check_vocabulary(
            self.config.encoder.vocab_size, self.vocabulary, "encoder.vocab_size"
        )
        return ScGPTEncoder(self.config.encoder)

    def prepare(
        self,
        tissue: Slice,
        options: ScGPTEmbedOptions | None = None,
        *,
        obs: pd.DataFrame | None = None,
    ) -> PreparedScGPT:
        """Match and bin one slice; see :meth:`terrazzo.models.base.FoundationModel.prepare`."""
        chosen = options or ScGPTEmbedOptions()
        match = self.vocabulary.match(tissue, orthologs=chosen.orthologs)
        cells = self.bin(tissue, match, seed=chosen.seed)
        return PreparedScGPT(self, tissue, match.coverage, cells, chosen)

    def bin(self, tissue: Slice, match: GeneMatch, *, seed: int = 0) -> Binned:
        """Return the binned genes of every cell of a slice, as this model's vocabulary numbers them."""
        return bin_cells(
            tissue.counts, match.column_token, self.config.n_bins, self.config.max_length, seed
        )

    def encode_binned(
        self, cells: Binned, precision: Precision, bars: Progress
    ) -> tuple[Vectors, dict[str, Any]]:
        """Return the vectors of binned cells, float32 ``(n, hidden_size)``, and details for the provenance."""

        def encode(rows: Ints | None, **how: Any) -> Vectors:
            part = cells if rows is None else cells.take(rows)
            tokens = part.tokens
            return self.module.encode(
                tokens.flat, part.values, tokens.offsets, cls_token=self.cls_token, **how
            )

        return encode_measured(encode, len(cells), precision, bars)


class PreparedScGPT(Prepared):
    """A slice as binned genes."""

    def __init__(
        self,
        model: ScGPT,
        tissue: Slice,
        coverage: Coverage,
        cells: Binned,
        options: ScGPTEmbedOptions,
    ) -> None:
        self.model = model
        self.tissue = tissue
        self.coverage = coverage
        self.cells = cells
        self.precision = options.precision
        self.settings = {"precision": options.precision, "seed": options.seed}

    def _plan(self) -> Plan:
        device = self.model.device
        rates = measured_rates(device)
        lengths = self.cells.tokens.lengths + 1
        seconds = encoding_seconds(self.model.module, lengths, self.precision, rates)
        faster = advice(seconds, device, self.precision, rates)
        return Plan(self.tissue.n_cells, 0, self.coverage, seconds, faster)

    def embed(self, bars: Progress | None = None) -> Embedding:
        """Encode every cell."""
        model = self.model
        lengths = self.cells.tokens.lengths
        warn_if_long(model.module, lengths + 1, self.precision, model.device, self.tissue.name)
        vectors, details = model.encode_binned(self.cells, self.precision, bars or Progress(False))
        details["n_sampled"] = int(self.cells.sampled.sum())
        return Embedding(vectors, lengths == 0, self.coverage, details)
