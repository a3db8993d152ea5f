"""SToFM's or Geneformer's cell encoder, frozen, as the gene encoder of other systems."""

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
from terrazzo.systems.stofm.cell_encoder import CellEncoder, CellEncoderConfig
from terrazzo.systems.stofm.model import SToFM
from terrazzo.systems.stofm.tokens import rank_tokens

__all__ = ["FrozenCellEncoder"]


class FrozenCellEncoder(FrozenCells):
    """A cell encoder over ranked genes, frozen.

    Raises
    ------
    ConfigError
        A vocabulary without the first token of a sequence, ``<cls>``.
    """

    encoder: CellEncoder

    def __init__(self, settings: Mapping[str, Any], special: Mapping[str, int]) -> None:
        super().__init__(settings, special)
        sizes = from_dict(CellEncoderConfig, settings, "cell encoder")
        if sizes.pooling == "cls" and "<cls>" not in special:
            raise ConfigError("the vocabulary has no <cls> token, which this cell encoder needs.")
        self.cls_token = special.get("<cls>", 0)
        self.output_dim = sizes.output_dim
        self.encoder = CellEncoder(sizes)

    @classmethod
    def settings_of(cls, model: Any) -> dict[str, Any]:
        """Return the sizes of the cell encoder."""
        return to_dict(model.config.cell_encoder)

    @classmethod
    def weights_of(cls, model: Any) -> Mapping[str, Tensor]:
        """Return the weights of SToFM's cell encoder, or of one alone."""
        module = model.module.cell_encoder if isinstance(model, SToFM) else model.module
        return module.state_dict()

    def encode(
        self, counts: sparse.csr_matrix, match: GeneMatch, advance: Advance | None = None
    ) -> Vectors:
        """Return the cell vectors, float32 ``(n, output_dim)``."""
        max_length = self.encoder.config.max_length
        tokens = rank_tokens(counts, match.column_token, match.column_median, max_length)
        return self.encoder.encode(
            tokens.flat, tokens.offsets, cls_token=self.cls_token, advance=advance
        )
