"""scGPT: genes and their binned values to one vector a cell, without tissue; a system to compare with.

It sees one cell at a time. Its published weights are read by :mod:`terrazzo.systems.scgpt.convert`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from torch import nn

from terrazzo import keys
from terrazzo.errors import ConfigError
from terrazzo.genes import GeneMatch
from terrazzo.models.base import Embedding, FoundationModel, Plan
from terrazzo.models.estimate import Precision, advice, encoding_time, warn_if_long
from terrazzo.models.sequences import check_vocabulary, encode_measured
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.systems.scgpt.network import ScGPTEncoder, ScGPTEncoderConfig
from terrazzo.systems.scgpt.tokens import Binned, bin_cells


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
        Longest sequence, ``<cls>`` included; of a cell with more genes a random part is kept.

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
    default_key: ClassVar[str] = keys.X_SCGPT
    config_class: ClassVar[type] = ScGPTConfig
    title: ClassVar[str] = "scGPT"
    citation: ClassVar[str] = (
        "Cui, Wang, Maan, Pang, Luo, Duan and Wang, scGPT: toward building a foundation model for single-cell "
        "multi-omics using generative AI, Nature Methods 21 (2024)."
    )
    limits: ClassVar[tuple[str, ...]] = (
        "A cell is seen alone: its neighborhood changes nothing.",
        "Of a cell with more genes than fit into a sequence a random part is read; `seed` decides which.",
        "Human; a slice of another species needs a table of orthologs.",
    )
    module: ScGPTEncoder

    def _build(self) -> nn.Module:
        self.cls_token = check_vocabulary(
            self.config.encoder.vocab_size, self.vocabulary, "encoder.vocab_size"
        )
        return ScGPTEncoder(self.config.encoder)

    def embed(
        self,
        data: Any,
        *,
        key_added: str | None = None,
        precision: Precision = "float32",
        seed: int = 0,
        orthologs: Any = None,
        progress: bool | None = None,
        **slice_options: Any,
    ) -> Any:
        """Write ``obsm["X_scgpt"]``, float32 ``(n, hidden_size)``, rows of length 1.

        Parameters
        ----------
        seed
            Of what scGPT leaves to chance: among which of several bins equal values fall, and which genes are kept of a
            cell that has more than fit.
        data, key_added, precision, orthologs, progress, **slice_options
            As in :meth:`terrazzo.SToFM.embed`.
        """
        bars = Progress(progress)

        def run(tissue: Slice, adata: AnnData) -> Embedding:
            match = self.vocabulary.match(tissue, orthologs=orthologs)
            cells = self.bin(tissue, match, seed=seed)
            warn_if_long(self.module, cells.tokens.lengths + 1, precision, self.device, tissue.name)
            vectors, details = self._encode(cells, precision, bars)
            details["n_sampled"] = int(cells.sampled.sum())
            return Embedding(vectors, cells.tokens.lengths == 0, match.coverage, details)

        settings = {"precision": precision, "seed": seed}
        return self._embed_all(data, key_added or self.default_key, settings, slice_options, run)

    def plan(
        self,
        data: Any,
        *,
        precision: Precision = "float32",
        seed: int = 0,
        orthologs: Any = None,
        **options: Any,
    ) -> Plan:
        """Say what :meth:`embed` would do and how long it would take; same options."""
        slice_options = {k: v for k, v in options.items() if k not in ("key_added", "progress")}
        tissue = data if isinstance(data, Slice) else Slice.from_anndata(data, **slice_options)
        match = self.vocabulary.match(tissue, orthologs=orthologs)
        lengths = self.bin(tissue, match, seed=seed).tokens.lengths + 1
        seconds, rates = encoding_time(self.module, lengths, precision, self.device)
        return Plan(
            tissue.n_cells,
            0,
            match.coverage,
            seconds,
            advice(seconds, self.device, precision, rates),
        )

    def bin(self, tissue: Slice, match: GeneMatch, *, seed: int = 0) -> Binned:
        """Return the binned genes of every cell of a slice, as this model's vocabulary numbers them."""
        return bin_cells(
            tissue.counts, match.column_token, self.config.n_bins, self.config.max_length, seed
        )

    def encode(
        self,
        tissue: Slice,
        match: GeneMatch,
        *,
        precision: Precision = "float32",
        seed: int = 0,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """Return the vectors of a slice's cells, float32 ``(n, hidden_size)``: scGPT as a frozen encoder."""
        return self._encode(self.bin(tissue, match, seed=seed), precision, Progress(progress))[0]

    def _encode(
        self, cells: Binned, precision: Precision, progress: Progress
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        def encode(rows: NDArray[np.int64] | None, **how: Any) -> NDArray[np.float32]:
            part = cells if rows is None else cells.take(rows)
            flat, offsets = part.tokens.flat, part.tokens.offsets
            return self.module.encode(flat, part.values, offsets, cls_token=self.cls_token, **how)

        return encode_measured(encode, len(cells), precision, progress)
