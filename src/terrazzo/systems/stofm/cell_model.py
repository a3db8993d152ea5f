"""The cell encoder by itself: Geneformer as published, or SToFM's gene scale, as a model of its own.

It sees one cell at a time and no tissue: the baseline that SToFM's tables call "cell encoder" and "Geneformer".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from torch import nn

from terrazzo import keys
from terrazzo.genes import Coverage, GeneMatch
from terrazzo.models.base import Embedding, FoundationModel, Plan
from terrazzo.models.estimate import Precision, advice, encoding_time, warn_if_long
from terrazzo.models.sequences import Tokens, check_vocabulary, encode_measured
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.systems.stofm.cell_encoder import CellEncoder, CellEncoderConfig
from terrazzo.systems.stofm.tokens import rank_tokens


@dataclass(frozen=True)
class CellModelConfig:
    """Hyperparameters of a cell encoder on its own."""

    cell_encoder: CellEncoderConfig = field(default_factory=CellEncoderConfig)


def tokenize(tissue: Slice, match: GeneMatch, max_length: int) -> Tokens:
    """Return the ranked genes of every cell of a slice, as this model's vocabulary numbers them."""
    return rank_tokens(tissue.counts, match.column_token, match.column_median, max_length)


def encode_cells(
    encoder: CellEncoder,
    tokens: Tokens,
    cls_token: int,
    precision: Precision,
    progress: Progress,
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Encode all cells; with bfloat16 also measure its error on a few of them.

    Returns
    -------
    float32 ``(n_cells, output_dim)``, and details for the provenance.
    """

    def encode(rows: NDArray[np.int64] | None, **how: Any) -> NDArray[np.float32]:
        part = tokens if rows is None else tokens.take(rows)
        return encoder.encode(part.flat, part.offsets, cls_token=cls_token, **how)

    return encode_measured(encode, len(tokens), precision, progress)


def plan_encoder(
    model: FoundationModel,
    encoder: CellEncoder,
    tissue: Slice,
    orthologs: Any,
    precision: Precision,
) -> tuple[float, Coverage, tuple[float, float]]:
    """Estimate the cell encoder's seconds on a slice; also the coverage and the rates (float32, bfloat16)."""
    match = model.vocabulary.match(tissue, orthologs=orthologs)
    lengths = tokenize(tissue, match, encoder.config.max_length).lengths + 1
    seconds, rates = encoding_time(encoder, lengths, precision, model.device)
    return seconds, match.coverage, rates


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
    default_key: ClassVar[str] = keys.X_CELL
    config_class: ClassVar[type] = CellModelConfig
    title: ClassVar[str] = "Cell encoder"
    limits: ClassVar[tuple[str, ...]] = ("A cell is seen alone: its neighborhood changes nothing.",)
    module: CellEncoder

    def _build(self) -> nn.Module:
        self.cls_token = check_vocabulary(self.config.cell_encoder.vocab_size, self.vocabulary)
        return CellEncoder(self.config.cell_encoder)

    def embed(
        self,
        data: Any,
        *,
        key_added: str | None = None,
        precision: Precision = "float32",
        orthologs: Any = None,
        progress: bool | None = None,
        **slice_options: Any,
    ) -> Any:
        """Write ``obsm["X_cell"]``; arguments as in :meth:`terrazzo.SToFM.embed`."""
        bars = Progress(progress)

        def run(tissue: Slice, adata: AnnData) -> Embedding:
            match = self.vocabulary.match(tissue, orthologs=orthologs)
            tokens = tokenize(tissue, match, self.config.cell_encoder.max_length)
            warn_if_long(self.module, tokens.lengths + 1, precision, self.device, tissue.name)
            vectors, details = encode_cells(self.module, tokens, self.cls_token, precision, bars)
            return Embedding(vectors, tokens.lengths == 0, match.coverage, details)

        return self._embed_all(
            data, key_added or self.default_key, {"precision": precision}, slice_options, run
        )

    def plan(
        self, data: Any, *, precision: Precision = "float32", orthologs: Any = None, **options: Any
    ) -> Plan:
        """Say what :meth:`embed` would do and how long it would take; same options."""
        slice_options = {k: v for k, v in options.items() if k not in ("key_added", "progress")}
        tissue = data if isinstance(data, Slice) else Slice.from_anndata(data, **slice_options)
        seconds, coverage, rates = plan_encoder(self, self.module, tissue, orthologs, precision)
        return Plan(
            tissue.n_cells, 0, coverage, seconds, advice(seconds, self.device, precision, rates)
        )
