"""Frozen encoders of cells behind one interface, so that one system can read cells through another's encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from scipy import sparse
from torch import Tensor, nn

from terrazzo.arrays import Vectors
from terrazzo.errors import ConfigError
from terrazzo.genes import GeneMatch, Vocabulary
from terrazzo.models.base import FoundationModel
from terrazzo.models.loading import load
from terrazzo.systems import registry

__all__ = ["Advance", "FrozenCells", "FrozenEncoder", "cells_class", "frozen_cells"]

Advance = Callable[[int], None]  # called with the number of rows done


class FrozenEncoder(nn.Module):
    """Encoder of cells or spots from their counts: no gradient, always in evaluation mode.

    Attributes
    ----------
    settings
        All settings that decide its vectors beside the weights, JSON-able.
    output_dim
        Width of its vectors.
    origin
        Where the weights come from, in words.
    """

    origin: str = "random weights"
    output_dim: int

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)

    def encode(
        self, counts: sparse.csr_matrix, match: GeneMatch, advance: Advance | None = None
    ) -> Vectors:
        """Encode the rows of a slice.

        Parameters
        ----------
        counts
            CSR ``(n, n_genes)``, all genes of the slice and all its rows; means of several spots need not be whole.
        match
            Match of these genes to the model's vocabulary.
        advance
            Called with the number of rows done.

        Returns
        -------
        float32 ``(n, output_dim)``; a row without counts has a vector, too.
        """
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def freeze(self) -> Self:
        """Disable training of all weights."""
        self.requires_grad_(False)
        return self.train(False)

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of settings and weights: all that vectors depend on but counts and genes."""
        settings = json.dumps(self.settings, sort_keys=True)
        digest = hashlib.sha256(f"terrazzo-gene-encoder-1 {settings}".encode())
        for name, tensor in sorted(self.state_dict().items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


class FrozenCells(FrozenEncoder):
    """The cell encoder of a model, frozen; a system subclasses it and registers it as ``cell_encoders``.

    Parameters
    ----------
    settings
        From :meth:`settings_of`.
    special
        Special tokens of the vocabulary.
    """

    encoder: nn.Module

    def __init__(self, settings: Mapping[str, Any], special: Mapping[str, int]) -> None:
        super().__init__(settings)

    @classmethod
    def settings_of(cls, model: Any) -> dict[str, Any]:
        """Return the settings that a model's cell encoder is built from."""
        raise NotImplementedError

    @classmethod
    def weights_of(cls, model: Any) -> Mapping[str, Tensor]:
        """Return the weights of a model's cell encoder, as :attr:`encoder` takes them."""
        raise NotImplementedError


def cells_class(model_type: str) -> type[FrozenCells]:
    """Return the class of the frozen cell encoder of a type of model.

    Raises
    ------
    ConfigError
        No system has such a model, or it encodes no single cell.
    """
    known: list[str] = []
    for system in registry.systems().values():
        if model_type in system.cell_encoders:
            encoder_class: type[FrozenCells] = registry.resolve(system.cell_encoders[model_type])
            return encoder_class
        known.extend(system.cell_encoders)
    raise ConfigError(
        f"a {model_type!r} model encodes no single cell; models that do: {', '.join(known)}."
    )


def frozen_cells(
    source: str | Path | FoundationModel,
) -> tuple[str, FrozenCells, Vocabulary]:
    """Return a model's type, its cell encoder, frozen, and the vocabulary that it reads.

    Parameters
    ----------
    source
        A model that encodes single cells (SToFM, a cell encoder such as Geneformer, scGPT); a checkpoint folder, or
        loaded.

    Raises
    ------
    ConfigError
        A model that encodes no single cell.
    CheckpointError
        A folder that is not a checkpoint.
    """
    model = source if isinstance(source, FoundationModel) else load(source)
    encoder_class = cells_class(model.model_type)
    cells = encoder_class(encoder_class.settings_of(model), model.vocabulary.special)
    cells.encoder.load_state_dict(encoder_class.weights_of(model))
    weights = model.provenance.get("weights", "unknown")
    cells.origin = f"{model.title}, {model.provenance.get('source', weights)}"
    return model.model_type, cells.freeze(), model.vocabulary
