"""scGPT, frozen, as the gene encoder of other systems; its random draws have seed 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scipy import sparse
from torch import Tensor

from terrazzo.arrays import Vectors
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import ConfigError
from terrazzo.genes import GeneMatch
from terrazzo.models.frozen import Advance, FrozenCells
from terrazzo.systems.scgpt.model import ScGPTConfig
from terrazzo.systems.scgpt.network import ScGPTEncoder
from terrazzo.systems.scgpt.tokens import bin_cells

__all__ = ["FrozenScGPT"]


class FrozenScGPT(FrozenCells):
    """scGPT over binned genes, frozen (ST-Align, eq 5).

    Raises
    ------
    ConfigError
        A vocabulary without the first token of a sequence, ``<cls>``.
    """

    encoder: ScGPTEncoder

    def __init__(self, settings: Mapping[str, Any], special: Mapping[str, int]) -> None:
        super().__init__(settings, special)
        self.sizes = from_dict(ScGPTConfig, settings, "scGPT")
        if "<cls>" not in special:
            raise ConfigError("the vocabulary has no <cls> token, which scGPT needs.")
        self.cls_token = special["<cls>"]
        self.output_dim = self.sizes.encoder.hidden_size
        self.encoder = ScGPTEncoder(self.sizes.encoder)

    @classmethod
    def settings_of(cls, model: Any) -> dict[str, Any]:
        """Return the hyperparameters of scGPT."""
        return to_dict(model.config)

    @classmethod
    def weights_of(cls, model: Any) -> Mapping[str, Tensor]:
        """Return the weights of scGPT."""
        return model.module.state_dict()

    def encode(
        self, counts: sparse.csr_matrix, match: GeneMatch, advance: Advance | None = None
    ) -> Vectors:
        """Return the cell vectors, float32 ``(n, hidden_size)``."""
        sizes = self.sizes
        cells = bin_cells(counts, match.column_token, sizes.n_bins, sizes.max_length, seed=0)
        tokens = cells.tokens
        return self.encoder.encode(
            tokens.flat, cells.values, tokens.offsets, cls_token=self.cls_token, advance=advance
        )
