"""SToFM as one model (Zhao et al., ICML 2025): tokens, cell vectors, virtual cells, then sub-slice by sub-slice."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import nn

from terrazzo import keys
from terrazzo.arrays import Ints, Vectors
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import InputError, TerrazzoWarning, did_you_mean
from terrazzo.genes import GeneMatch, Vocabulary
from terrazzo.models.base import Embedding, FoundationModel, Prepared
from terrazzo.models.estimate import (
    Plan,
    advice,
    encoding_seconds,
    measured_rates,
    warn_if_long,
)
from terrazzo.models.sequences import Tokens, check_vocabulary
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.systems.stofm.cell_encoder import CellEncoder
from terrazzo.systems.stofm.cell_model import CellModel, CellModelConfig, encode_cells, tokenize
from terrazzo.systems.stofm.config import SToFMConfig, preset
from terrazzo.systems.stofm.options import SToFMEmbedOptions
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

__all__ = [
    "SToFM",
    "canonical_order",
    "pair_tensors",
    "slice_length_unit",
    "subslice_blocks",
    "subslice_tensors",
]

# Sub-slices are packed up to this many tokens (one sub-slice at least).
PACK_TOKENS = {"cpu": 1, "cuda": 32_768}

# For estimates
SE2_SHARE = 0.45  # share of the matrix-product rate that the SE(2) Transformer reaches
TYPICAL_VIRTUAL_CELLS = 50


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
    >>> model.embed(adata, halo=2.0).obsm["X_stofm"]  # doctest: +SKIP

    Options of ``embed``: :class:`~terrazzo.systems.stofm.options.SToFMEmbedOptions`.
    """

    model_type: ClassVar[str] = "stofm"
    default_key = keys.X_STOFM
    config_class: ClassVar[type] = SToFMConfig
    options_class = SToFMEmbedOptions
    title = "SToFM"
    citation = (
        "Zhao, Luo, Yang, Zhong, Zhou and Nie, SToFM: a Multi-scale Foundation Model for Spatial Transcriptomics, "
        "ICML 2025, arXiv:2507.11588."
    )
    limits: ClassVar[tuple[str, ...]] = (
        "Cells in different sub-slices see each other through virtual cells only, unless `halo` is set.",
        "Human and mouse only; a slice of the other species is matched through orthologs.",
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
        if isinstance(config, str):
            config = preset(config, vocabulary.n_tokens)
        super().__init__(config, vocabulary, seed=seed, provenance=provenance)

    def _build(self) -> nn.Module:
        sizes = self.config.cell_encoder
        self.cls_token = check_vocabulary(sizes.vocab_size, self.vocabulary)
        return _SToFMModule(self.config)

    def cell_model(self) -> CellModel:
        """Return the cell encoder as a model of its own, "cell encoder" in the tables."""
        config = CellModelConfig(self.config.cell_encoder)
        provenance = {**self.provenance, "part": "cell encoder of SToFM"}
        alone = CellModel(config, self.vocabulary, provenance=provenance)
        alone.module.load_state_dict(self.module.cell_encoder.state_dict())
        return alone.to(self.device)

    def prepare(
        self,
        tissue: Slice,
        options: SToFMEmbedOptions | None = None,
        *,
        obs: pd.DataFrame | None = None,
    ) -> PreparedSToFM:
        """Match and tokenize one slice; see :meth:`terrazzo.models.base.FoundationModel.prepare`."""
        chosen = options or SToFMEmbedOptions()
        subslices = self._subslices(chosen)
        labels = None
        if chosen.clusters is not None:
            labels = _cluster_labels(obs, chosen.clusters)
        match = self.vocabulary.match(tissue, orthologs=chosen.orthologs)
        return PreparedSToFM(self, tissue, match, subslices, chosen, labels)

    def _subslices(self, options: SToFMEmbedOptions) -> SubSliceConfig:
        """Return the checkpoint's settings of sub-slices, those of the options in place of them."""
        settings = to_dict(self.config.subslices)
        for name in ("partition", "subslice_size", "halo", "pair"):
            value = getattr(options, name)
            if value is not None:
                settings[name] = value
        return from_dict(SubSliceConfig, settings, "embed")


class PreparedSToFM(Prepared):
    """A slice as ranked genes, with the settings of its sub-slices."""

    def __init__(
        self,
        model: SToFM,
        tissue: Slice,
        match: GeneMatch,
        subslices: SubSliceConfig,
        options: SToFMEmbedOptions,
        labels: Ints | None,
    ) -> None:
        tokens = tokenize(tissue, match, model.config.cell_encoder.max_length)
        self.model = model
        self.tissue = tissue
        self.match = match
        self.lengths = tokens.lengths
        self.order = canonical_order(tokens, tissue)
        self._tokens: Tokens | None = tokens.take(self.order)
        self.subslices = subslices
        self.options = options
        self.labels = labels
        self.settings = {
            "subslices": to_dict(subslices),
            "precision": options.precision,
            "seed": options.seed,
            "clusters": options.clusters or "",
        }

    def _plan(self) -> Plan:
        model = self.model
        precision = self.options.precision
        rates = measured_rates(model.device)
        encoding = encoding_seconds(model.module.cell_encoder, self.lengths + 1, precision, rates)
        n_cells = self.tissue.n_cells
        size = min(self.subslices.subslice_size, n_cells)
        n_parts = -(-n_cells // size)
        flops = n_parts * model.module.se2.flops(size + TYPICAL_VIRTUAL_CELLS)
        seconds = encoding + flops / (rates.float32 * SE2_SHARE)
        faster = advice(seconds, model.device, precision, rates)
        return Plan(n_cells, n_parts, self.match.coverage, seconds, faster)

    def _take_tokens(self) -> Tokens:
        """Return the tokens in canonical order, and store them no longer: they are as large as the counts."""
        tokens = self._tokens
        self._tokens = None
        if tokens is None:  # embedded before
            max_length = self.model.config.cell_encoder.max_length
            tokens = tokenize(self.tissue, self.match, max_length).take(self.order)
        return tokens

    def embed(self, bars: Progress | None = None) -> Embedding:
        """Encode the cells, make virtual cells, then run one sub-slice after the other.

        All work is done in an order that depends on the cells, not on their rows, so that shuffling the rows of a
        slice changes nothing, not even the last bit.
        """
        bars = bars or Progress(False)
        model = self.model
        config = self.subslices
        tissue = self.tissue
        encoder = model.module.cell_encoder
        precision = self.options.precision
        order = self.order
        warn_if_long(encoder, self.lengths + 1, precision, model.device, tissue.name)
        features, details = encode_cells(
            encoder, self._take_tokens(), model.cls_token, precision, bars
        )
        unit = slice_length_unit(tissue, config)
        positions = model_positions(tissue.coords[order], config, unit)
        labels = None if self.labels is None else self.labels[order]
        macro = macro_scale(features, positions, config, labels=labels, seed=self.options.seed)
        parts = split_cells(positions, config)
        niche = np.empty((len(order), model.config.se2.hidden_size), dtype=np.float32)
        with bars.stage("sub-slices", len(order)) as advance:
            subslices = iterate(positions, macro.positions, parts, config)
            for cells, vectors in _run_packed(model, subslices, features, macro.features):
                niche[order[cells]] = vectors
                advance(len(cells))
        details["n_subslices"] = len(parts)
        details["n_virtual_cells"] = len(macro.features)
        empty = self.lengths == 0
        coverage = self.match.coverage
        if model.config.output == "niche":
            return Embedding(niche, empty, coverage, details)
        own = np.empty_like(features)
        own[order] = features  # of unit length
        own_width = own.shape[1]
        details["blocks"] = {
            "own": [0, own_width],
            "niche": [own_width, own_width + niche.shape[1]],
        }
        niche /= np.float32(model.module.se2.typical_norm())
        return Embedding(np.hstack([own, niche]), empty, coverage, details)


class _SToFMModule(nn.Module):
    """The two trained parts, under the names of a checkpoint's tensors."""

    def __init__(self, config: SToFMConfig) -> None:
        super().__init__()
        self.cell_encoder = CellEncoder(config.cell_encoder)
        self.se2 = SE2Transformer(config.se2)


@torch.inference_mode()
def _run_packed(
    model: SToFM, subslices: Iterator[SubSlice], features: Vectors, virtual: Vectors
) -> Iterator[tuple[Ints, Vectors]]:
    """Run the SE(2) Transformer over a stream of sub-slices; yield each one's own cells and their vectors."""
    limit = PACK_TOKENS.get(model.device.type, PACK_TOKENS["cuda"])
    workspace = Workspace()
    pack: list[SubSlice] = []
    n_tokens = 0
    for sub in subslices:
        if pack and n_tokens + sub.n_tokens > limit:
            yield from _run_pack(model, pack, features, virtual, workspace)
            pack = []
            n_tokens = 0
        pack.append(sub)
        n_tokens += sub.n_tokens
    yield from _run_pack(model, pack, features, virtual, workspace)


def _run_pack(
    model: SToFM,
    pack: list[SubSlice],
    features: Vectors,
    virtual: Vectors,
    workspace: Workspace,
) -> Iterator[tuple[Ints, Vectors]]:
    x, types, pairs = subslice_tensors(pack, features, virtual, model.device)
    output = model.module.se2(x, types, pairs, workspace=workspace)
    hidden = output.hidden.cpu().numpy()
    start = 0
    for sub in pack:
        first_cell = start + 1 + sub.n_virtual
        yield sub.cells[: sub.n_core], hidden[first_cell : first_cell + sub.n_core]
        start += sub.n_tokens


def subslice_tensors(
    pack: list[SubSlice], features: Vectors, virtual: Vectors, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, list[Pairs]]:
    """Turn sub-slices into the inputs of the SE(2) Transformer, packed one after the other."""
    blocks: list[Vectors] = []
    for sub in pack:
        blocks.extend(subslice_blocks(virtual[: sub.n_virtual], features[sub.cells]))
    x = torch.from_numpy(np.concatenate(blocks))
    types = torch.from_numpy(np.concatenate([sub.token_types for sub in pack]))
    pairs = [pair_tensors(sub, device) for sub in pack]
    return x.to(device), types.to(device), pairs


def subslice_blocks(virtual: Vectors, features: Vectors) -> list[Vectors]:
    """Return the rows of a sub-slice's tokens: graph token, virtual cells, cells."""
    graph_token = np.zeros((1, features.shape[1]), dtype=np.float32)
    return [graph_token, virtual, features]


def pair_tensors(sub: SubSlice, device: torch.device) -> Pairs:
    """Turn a sub-slice's listed pairs into tensors."""
    positions = None
    if sub.full:
        positions = torch.from_numpy(sub.positions.astype(np.float32))
    row = torch.from_numpy(sub.row)
    column = torch.from_numpy(sub.col)
    distance = torch.from_numpy(sub.distance)
    return Pairs(sub.n_tokens, row, column, distance, positions).to(device)


def canonical_order(tokens: Tokens, tissue: Slice) -> Ints:
    """Order cells by their genes, ties by distance from the slice's center, then by position.

    The order is the same whichever way the rows are shuffled and, apart from exact ties, the slice is turned.
    """
    x, y = tissue.coords.T
    centered = tissue.coords - tissue.coords.mean(axis=0)
    spacing = max(tissue.spacing, np.finfo(float).tiny)
    radius = np.round(np.linalg.norm(centered, axis=1) / spacing, 6)
    return np.lexsort((y, x, radius, tokens.digests()))


def slice_length_unit(tissue: Slice, config: SubSliceConfig) -> float:
    """Return the length of one distance unit, in units of the slice's coordinates."""
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


def _cluster_labels(obs: pd.DataFrame | None, column: str) -> Ints:
    """Read clusters from ``obs``, numbered from 0 without gaps."""
    names = [] if obs is None else [str(name) for name in obs]
    if obs is None or column not in obs:
        hint = did_you_mean(column, names)
        existing = ", ".join(names) or "none"
        raise InputError(
            f"clusters={column!r} is not a column of obs; its columns are: {existing}.{hint}"
        )
    codes, _ = pd.factorize(obs[column], sort=True)
    n_missing = int((codes < 0).sum())
    if n_missing:
        raise InputError(
            f"obs[{column!r}] has no value for {n_missing} cells; every cell needs a cluster."
        )
    return codes.astype(np.int64)
