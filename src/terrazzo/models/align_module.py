"""All weights of ST-Align in one module, and the way of a batch of spots through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from terrazzo.errors import ConfigError
from terrazzo.genes import Vocabulary
from terrazzo.models.feature_reader import Scale
from terrazzo.models.features import AlignBatch, Modality
from terrazzo.models.gene_encoders import build as build_gene_encoder
from terrazzo.models.stalign_config import STAlignConfig
from terrazzo.nn.align import AlignNet
from terrazzo.nn.image_encoder import FrozenImageEncoder


class AlignModule(nn.Module):
    """All weights of ST-Align: what is trained, both frozen encoders, and which genes AE-Gene reads."""

    genes: Tensor

    def __init__(self, config: STAlignConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        tokens = vocabulary.token.astype(np.int64)
        self.net = AlignNet(config.net)
        self.image_encoder = FrozenImageEncoder.from_description(config.image_encoder)
        self.gene_encoder = build_gene_encoder(config.gene_encoder, tokens, vocabulary.special)
        self.register_buffer("genes", torch.from_numpy(tokens[: config.net.niche_genes.n_genes].copy()))

    def states(
        self, batch: AlignBatch, modality: Modality = "both", scales: Sequence[Scale] = ("spot", "niche")
    ) -> dict[Scale, Tensor]:
        """Return what ``embed`` writes for some spots, ``(n, dim)`` by scale; with gradient where it is asked for."""
        net, out = self.net, cast(dict[Scale, Tensor], {})
        for scale in scales:
            parts = []
            if modality != "genes":
                parts.append(
                    net.spot_image(_there(batch.spot_image), batch.colours)
                    if scale == "spot"
                    else net.niche_image(_there(batch.niche_image))
                )
            if modality != "image":
                parts.append(
                    net.spot_genes(_there(batch.spot_genes))
                    if scale == "spot"
                    else net.niche_genes(_there(batch.niche_genes), batch.known)
                )
            out[scale] = parts[0] if len(parts) == 1 else net.fuse(scale, *parts)
        return out


def _there(part: Tensor | None) -> Tensor:
    if part is None:
        raise ConfigError("these features were read for another modality or scale.")
    return part
