"""SToFM: ranked genes, virtual cells, sub-slices, SE(2) Transformer (Zhao et al., ICML 2025), as one model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import nn

from terrazzo import keys
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import InputError, TerrazzoWarning, did_you_mean
from terrazzo.genes import GeneMatch, Vocabulary
from terrazzo.models.base import Embedding, FoundationModel, Plan
from terrazzo.models.estimate import Precision, advice, warn_if_long
from terrazzo.models.sequences import Tokens, check_vocabulary
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.systems.stofm.cell_encoder import CellEncoder
from terrazzo.systems.stofm.cell_model import (
    CellModel,
    CellModelConfig,
    encode_cells,
    plan_encoder,
    tokenize,
)
from terrazzo.systems.stofm.config import SToFMConfig, preset
from terrazzo.systems.stofm.pair_bias import Pairs
from terrazzo.systems.stofm.se2 import SE2Transformer, Workspace
from terrazzo.systems.stofm.subslices import (
    SubSlice,
    SubSliceConfig,
    iterate,
    length_unit,
    macro_scale,
    model_positions,
    split_cells,
)

PACK_TOKENS = {
    "cpu": 1,
    "cuda": 32_768,
}  # sub-slices are packed up to this many tokens (one at least)


SE2_SHARE = 0.45  # share of the matrix-product rate that it reaches, for estimates


TYPICAL_VIRTUAL_CELLS = 50


@dataclass(frozen=True)
class EmbedSettings:
    """What a call of ``embed`` may choose; it is recorded in ``uns``."""

    subslices: SubSliceConfig
    precision: Precision = "float32"
    seed: int = 0
    clusters: str = ""


class SToFM(FoundationModel):
    """Multi-scale foundation model: gene scale, micro scale (sub-slices) and macro scale (virtual cells).

    Parameters
    ----------
    config
        :class:`~terrazzo.systems.stofm.config.SToFMConfig`, or the name of a preset (``"tiny"``, ``"small"``,
        ``"paper"``).
    vocabulary
        Genes, tokens and medians.
    seed
        Seed of the random initial weights.
    provenance
        Where the weights come from.

    Examples
    --------
    >>> model = terrazzo.SToFM.from_pretrained("checkpoint")  # doctest: +SKIP
    >>> model.embed(adata).obsm["X_stofm"]  # doctest: +SKIP
    """

    model_type: ClassVar[str] = "stofm"
    default_key: ClassVar[str] = keys.X_STOFM
    config_class: ClassVar[type] = SToFMConfig
    title: ClassVar[str] = "SToFM"
    citation: ClassVar[str] = (
        "Zhao, Luo, Yang, Zhong, Zhou and Nie, SToFM: a Multi-scale Foundation Model for Spatial Transcriptomics, "
        "ICML 2025, arXiv:2507.11588."
    )
    limits: ClassVar[tuple[str, ...]] = (
        "Cells in different sub-slices see each other through virtual cells only, unless `halo` is set.",
        "Human and mouse only; a slice of the other species needs a table of orthologs.",
        "Histology and the third dimension are not used.",
    )
    module: _SToFMModule

    def __init__(
        self,
        config: SToFMConfig | str,
        vocabulary: Vocabulary,
        *,
        seed: int = 0,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        chosen = preset(config, vocabulary.n_tokens) if isinstance(config, str) else config
        super().__init__(chosen, vocabulary, seed=seed, provenance=provenance)

    def _build(self) -> nn.Module:
        self.cls_token = check_vocabulary(self.config.cell_encoder.vocab_size, self.vocabulary)
        return _SToFMModule(self.config)

    def embed(
        self,
        data: Any,
        *,
        key_added: str | None = None,
        clusters: str | None = None,
        split: Literal["balanced", "grid"] | None = None,
        split_size: int | None = None,
        halo: float | None = None,
        pair: Literal["knn", "full", "none"] | None = None,
        precision: Precision = "float32",
        seed: int = 0,
        orthologs: Any = None,
        progress: bool | None = None,
        **slice_options: Any,
    ) -> Any:
        """Give every cell its vector, in ``obsm["X_stofm"]`` (float32, n x d), with provenance in ``uns``.

        Parameters
        ----------
        data
            AnnData, SpatialData, path, or a list of these. Nothing is dropped: n cells in, n rows out, same order.
        key_added
            Another name for the ``obsm`` key.
        clusters
            Column of ``obs`` to make virtual cells from, instead of running Leiden.
        split, split_size, halo, pair
            Override the checkpoint's :class:`~terrazzo.systems.stofm.subslices.SubSliceConfig`.
        precision
            ``"float32"``, or ``"bfloat16"`` for the cell encoder (its measured error is recorded in ``uns``).
        seed
            Seed of Leiden.
        orthologs
            Two-column table (dict, DataFrame or file) from the slice's genes to the vocabulary's, for another organism.
        progress
            Show progress bars; None: only on a terminal.
        **slice_options
            Passed to :meth:`terrazzo.Slice.from_anndata` (``layer``, ``spatial_key``, ``organism``, ...).

        Returns
        -------
        The AnnData (loaded, if a path was given), the SpatialData, or a list of them.

        Raises
        ------
        InputError, GeneError, ConfigError
            The slice, its genes, or the settings cannot be used; the message says how to mend it.
        """
        overrides = {"split": split, "split_size": split_size, "halo": halo, "pair": pair}
        settings = self._settings(overrides, precision, seed, clusters)
        bars = Progress(progress)

        def run(tissue: Slice, adata: AnnData) -> Embedding:
            labels = None if clusters is None else _cluster_labels(adata, clusters)
            match = self.vocabulary.match(tissue, orthologs=orthologs)
            return self.embed_slice(tissue, match, settings, labels=labels, bars=bars)

        return self._embed_all(
            data, key_added or self.default_key, to_dict(settings), slice_options, run
        )

    def cell_model(self) -> CellModel:
        """Return the cell encoder alone as a model of its own: what the tables call "cell encoder"."""
        config = CellModelConfig(self.config.cell_encoder)
        alone = CellModel(
            config, self.vocabulary, provenance={**self.provenance, "part": "cell encoder of SToFM"}
        )
        alone.module.load_state_dict(self.module.cell_encoder.state_dict())
        return alone.to(self.device)

    def _settings(
        self, overrides: dict[str, Any], precision: Precision, seed: int, clusters: str | None
    ) -> EmbedSettings:
        chosen = {k: float(v) if k == "halo" else v for k, v in overrides.items() if v is not None}
        subslices = from_dict(SubSliceConfig, {**to_dict(self.config.subslices), **chosen}, "embed")
        return EmbedSettings(subslices, precision, seed, clusters or "")

    def embed_slice(
        self,
        tissue: Slice,
        match: GeneMatch,
        settings: EmbedSettings,
        *,
        labels: NDArray[np.int64] | None = None,
        bars: Progress,
    ) -> Embedding:
        """Embed one checked slice: tokens, cell vectors, virtual cells, then one sub-slice after the other.

        All work is done in an order that depends on the cells, not on their rows, so that shuffling the rows of a
        slice changes nothing, not even the last bit.
        """
        config = settings.subslices
        tokens = tokenize(tissue, match, self.config.cell_encoder.max_length)
        encoder = self.module.cell_encoder
        warn_if_long(encoder, tokens.lengths + 1, settings.precision, self.device, tissue.name)
        empty, order = tokens.lengths == 0, canonical_order(tokens, tissue)
        tokens = tokens.take(order)
        features, details = encode_cells(encoder, tokens, self.cls_token, settings.precision, bars)
        del tokens  # as large as the counts, and done with
        positions = model_positions(tissue.coords[order], config, slice_length_unit(tissue, config))
        given = None if labels is None else labels[order]
        macro = macro_scale(features, positions, config, labels=given, seed=settings.seed)
        parts = split_cells(positions, config)
        out = np.empty((len(order), self.config.se2.hidden_size), dtype=np.float32)
        with bars.stage("sub-slices", len(order)) as advance:
            subslices = iterate(positions, macro.positions, parts, config)
            for cells, vectors in self._stream(subslices, features, macro.features, advance):
                out[order[cells]] = vectors
        details |= {"n_subslices": len(parts), "n_virtual_cells": len(macro.features)}
        if self.config.output == "own+niche":
            own = np.empty_like(features)
            own[order] = features  # unit length
            details["blocks"] = {
                "own": [0, own.shape[1]],
                "niche": [own.shape[1], own.shape[1] + out.shape[1]],
            }
            out = np.hstack([own, out / np.float32(self.module.se2.typical_norm())])
        return Embedding(out, empty, match.coverage, details)

    @torch.inference_mode()
    def _stream(
        self,
        subslices: Any,
        features: NDArray[np.float32],
        virtual: NDArray[np.float32],
        advance: Callable[[int], None],
    ) -> Any:
        """Run the SE(2) Transformer over a stream of sub-slices; yield (cells, vectors) of each."""
        pack: list[SubSlice] = []
        workspace = Workspace()
        limit = PACK_TOKENS.get(self.device.type, PACK_TOKENS["cuda"])
        for sub in subslices:
            if pack and sum(s.n_tokens for s in pack) + sub.n_tokens > limit:
                yield from self._forward(pack, features, virtual, advance, workspace)
                pack = []
            pack.append(sub)
        yield from self._forward(pack, features, virtual, advance, workspace)

    def _forward(
        self,
        pack: list[SubSlice],
        features: NDArray[np.float32],
        virtual: NDArray[np.float32],
        advance: Callable[[int], None],
        workspace: Workspace,
    ) -> Any:
        x, types, pairs = subslice_tensors(pack, features, virtual, self.device)
        hidden = self.module.se2(x, types, pairs, workspace=workspace).hidden.cpu().numpy()
        start = 0
        for sub in pack:
            first = start + 1 + sub.n_virtual
            yield sub.cells[: sub.n_core], hidden[first : first + sub.n_core]
            start += sub.n_tokens
            advance(sub.n_core)

    def plan(
        self,
        data: AnnData | Slice,
        *,
        precision: Precision = "float32",
        orthologs: Any = None,
        split_size: int | None = None,
        **options: Any,
    ) -> Plan:
        """Say what :meth:`embed` would do and how long it would take, without doing it; same options.

        Counts operations and measures this machine's matrix-product rate for a moment.
        """
        unused = ("key_added", "clusters", "split", "halo", "pair", "seed", "progress")
        slice_options = {k: v for k, v in options.items() if k not in unused}
        tissue = data if isinstance(data, Slice) else Slice.from_anndata(data, **slice_options)
        encoder, precise, rates = plan_encoder(
            self, self.module.cell_encoder, tissue, orthologs, precision
        )
        size = min(split_size or self.config.subslices.split_size, tissue.n_cells)
        parts = -(-tissue.n_cells // size)
        seconds = encoder + parts * self.module.se2.flops(size + TYPICAL_VIRTUAL_CELLS) / (
            rates[0] * SE2_SHARE
        )
        return Plan(
            tissue.n_cells, parts, precise, seconds, advice(seconds, self.device, precision, rates)
        )


class _SToFMModule(nn.Module):
    """The two trained parts, under the names that a checkpoint's tensors carry."""

    def __init__(self, config: SToFMConfig) -> None:
        super().__init__()
        self.cell_encoder = CellEncoder(config.cell_encoder)
        self.se2 = SE2Transformer(config.se2)


def subslice_tensors(
    pack: list[SubSlice],
    features: NDArray[np.float32],
    virtual: NDArray[np.float32],
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor, list[Pairs]]:
    """Turn sub-slices into the tensors that the SE(2) Transformer takes, packed one after the other."""
    graph_token = np.zeros((1, features.shape[1]), dtype=np.float32)
    x = np.concatenate(
        [block for s in pack for block in (graph_token, virtual[: s.n_virtual], features[s.cells])]
    )
    types = torch.from_numpy(np.concatenate([s.token_types for s in pack])).to(device)
    return torch.from_numpy(x).to(device), types, [pair_tensors(sub, device) for sub in pack]


def pair_tensors(sub: SubSlice, device: torch.device) -> Pairs:
    """Turn a sub-slice's listed pairs into tensors."""
    positions = torch.from_numpy(sub.positions.astype(np.float32)) if sub.full else None
    row, col, distance = (torch.from_numpy(a) for a in (sub.row, sub.col, sub.distance))
    return Pairs(sub.n_tokens, row, col, distance, positions).to(device)


def canonical_order(tokens: Tokens, tissue: Slice) -> NDArray[np.int64]:
    """Order cells by their genes, ties by distance from the slice's center, then by position.

    The order is the same whichever way the rows are shuffled and, apart from exact ties, the slice is turned.
    """
    centered = tissue.coords - tissue.coords.mean(axis=0)
    radius = np.round(
        np.linalg.norm(centered, axis=1) / max(tissue.spacing, np.finfo(float).tiny), 6
    )
    return np.lexsort((tissue.coords[:, 1], tissue.coords[:, 0], radius, tokens.digests()))


def slice_length_unit(tissue: Slice, config: SubSliceConfig) -> float:
    """Length of one distance unit in units of the slice's coordinates."""
    length = length_unit(tissue.unit, tissue.spacing, config)
    if config.geometry != "published" and tissue.unit != "um":
        warnings.warn(
            f"{tissue.name}: coordinates are in {tissue.unit} units and micrometers could not be derived; the median "
            f"distance between neighbors ({length:.4g}) is taken as the unit. Pass microns_per_unit= or technology= "
            "if you know it.",
            TerrazzoWarning,
            stacklevel=2,
        )
    return length


def _cluster_labels(adata: AnnData, column: str) -> NDArray[np.int64]:
    """Read clusters from ``obs``, numbered from 0 without gaps."""
    if column not in adata.obs:
        names = [str(name) for name in adata.obs]
        hint = did_you_mean(column, names)
        raise InputError(
            f"clusters={column!r} is not a column of obs; there are: {', '.join(names) or 'none'}.{hint}"
        )
    codes, _ = pd.factorize(adata.obs[column], sort=True)
    if (codes < 0).any():
        missing = int((codes < 0).sum())
        raise InputError(
            f"obs[{column!r}] has no value for {missing} cells; every cell needs a cluster."
        )
    return codes.astype(np.int64)
