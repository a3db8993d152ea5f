"""ST as images: one vector for every cell from a masked autoencoder over windows of a slice's grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor, nn

from terrazzo import keys
from terrazzo.arrays import Bools, Floats, Ints, Vectors
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import ConfigError
from terrazzo.genes import GeneMatch, Vocabulary
from terrazzo.models.base import Embedding, FoundationModel, Prepared, joined, require_counts
from terrazzo.models.estimate import Plan, Rates, advice, matmul_rate
from terrazzo.models.options import split_options
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.slices.grids import Grid
from terrazzo.systems.stimage.config import Flavor, Scheme, STImageConfig, preset
from terrazzo.systems.stimage.gridded import GriddedSlice, WindowBatch
from terrazzo.systems.stimage.macro_domains import macro_domains
from terrazzo.systems.stimage.network import MaskedViT, scheme_states
from terrazzo.systems.stimage.options import STImageEmbedOptions
from terrazzo.systems.stimage.windows import WindowConfig, tile_corners, window_sites

__all__ = ["STImage"]

BATCH_SITES = {"cpu": 4096, "cuda": 65536}  # sites of the windows of one batch

PARTS = 4  # a site and its neighbors are never hidden together: rows and columns, each by two

REACH = 0.5  # share of the matrix-product rate, for estimates

WHY_COUNTS = "ST as images scales counts and takes their logarithm"


class STImage(FoundationModel):
    """ST as images (Zhu et al. 2026).

    A vector is the mean over all overlapping windows with the cell's site. Cells that share a bin are shown one at
    a time, each for its own vector; cells that share a position of an array share their vector.

    Parameters
    ----------
    config
        :class:`~terrazzo.systems.stimage.config.STImageConfig`, or the name of a preset (``"tiny"``, ``"small"``,
        ``"paper"``).
    vocabulary
        Genes and their tokens.
    seed
        Seed of random initial weights.
    provenance
        Where the weights come from.
    flavor, scheme, windows
        Of a preset: ``"terrazzo"`` or ``"paper"``; what a training sample is;
        :class:`~terrazzo.systems.stimage.windows.WindowConfig` in place of the flavor's. See
        :func:`terrazzo.systems.stimage.config.preset`.

    Raises
    ------
    ConfigError
        No such preset; fewer gene embeddings than tokens.

    Examples
    --------
    >>> model = terrazzo.STImage.from_pretrained("checkpoint")  # doctest: +SKIP
    >>> model.embed(adata, bin_um=20.0).obsm["X_stimage"]  # doctest: +SKIP

    Options of ``embed``: :class:`~terrazzo.systems.stimage.options.STImageEmbedOptions`.
    """

    model_type: ClassVar[str] = "stimage"
    default_key = keys.X_STIMAGE
    config_class: ClassVar[type] = STImageConfig
    options_class = STImageEmbedOptions
    title = "ST as images"
    citation = "Zhu, Qi, Wang, Zheng and Huang, Spatial Transcriptomics as Images for Large-Scale Pretraining, 2026."
    limits: ClassVar[tuple[str, ...]] = (
        "Single cells are put into bins, whose side is stated by the user.",
        "Vectors of platforms with another grid than the training slices' may not be comparable.",
        "Histology is not used.",
    )
    module: MaskedViT
    config: STImageConfig

    def __init__(
        self,
        config: STImageConfig | str,
        vocabulary: Vocabulary,
        *,
        seed: int = 0,
        provenance: dict[str, Any] | None = None,
        flavor: Flavor = "terrazzo",
        scheme: Scheme = "patch",
        windows: WindowConfig | None = None,
    ) -> None:
        if isinstance(config, str):
            config = preset(
                config, vocabulary.n_tokens, flavor=flavor, scheme=scheme, windows=windows
            )
        if vocabulary.n_tokens > config.vit.n_genes:
            raise ConfigError(
                f"The vocabulary has {vocabulary.n_tokens:,} tokens, the model only {config.vit.n_genes:,}: set "
                "vit.n_genes to the vocabulary's n_tokens."
            )
        super().__init__(config, vocabulary, seed=seed, provenance=provenance)

    def _build(self) -> nn.Module:
        return MaskedViT(self.config.vit)

    def prepare(
        self,
        tissue: Slice,
        options: STImageEmbedOptions | None = None,
        *,
        obs: pd.DataFrame | None = None,
    ) -> PreparedSTImage:
        """Match one slice and put it on its grid; see :meth:`terrazzo.models.base.FoundationModel.prepare`."""
        options = options or STImageEmbedOptions()
        config = self._with_windows(options)
        counted = require_counts(tissue, WHY_COUNTS)
        match = self.vocabulary.match(counted, orthologs=options.orthologs)
        return PreparedSTImage(self, tissue, match, config, options.seed)

    def reconstruct(
        self,
        adata: AnnData,
        hidden: Bools,
        genes: str | Sequence[str],
        **options: Any,
    ) -> Vectors:
        """Predict genes of hidden cells from the cells around them.

        Parameters
        ----------
        adata
            The slice. Of hidden cells nothing but the position is read.
        hidden
            bool ``(n_cells,)``.
        genes
            Names as in ``adata.var_names``. Of one that the model does not know its mean is returned.
        **options
            As of :meth:`embed`.

        Returns
        -------
        float32 ``(hidden.sum(), len(genes))``: log1p of counts scaled to 10,000.

        Raises
        ------
        InputError
            No cell is shown; a gene that the slice does not have; as :meth:`embed`.
        """
        from terrazzo.systems.stimage.reconstruct import reconstruct

        model_options, slice_options = split_options(options)
        checked = STImageEmbedOptions.checked(model_options, self.title)
        tissue = require_counts(Slice.from_anndata(adata, **slice_options), WHY_COUNTS)
        names = [genes] if isinstance(genes, str) else list(genes)
        match = self.vocabulary.match(tissue, orthologs=checked.orthologs)
        config = self._with_windows(checked)
        return reconstruct(self, tissue, match, adata, hidden, names, config, checked.seed)

    def _with_windows(self, options: STImageEmbedOptions) -> STImageConfig:
        settings = to_dict(self.config.windows)
        for name in ("layout", "bin_um", "window"):
            value = getattr(options, name)
            if value is not None:
                settings[name] = value
        return replace(self.config, windows=from_dict(WindowConfig, settings, "embed"))

    def states(self, batch: WindowBatch, seed: int = 0) -> dict[str, Tensor]:
        """Return what ``embed`` writes for the sites of windows, ``(B, S, d)`` each, by name of block."""
        values = batch.values.to(self.device)
        genes = batch.genes.to(self.device)
        places = batch.places.to(self.device)
        present = batch.present.to(self.device)
        config = self.config
        if config.scheme != "patch":
            neighbors = config.neighbors if config.scheme == "multi-spot" else 0
            domain = None
            if config.scheme == "slice":
                domain = _domains(batch, config.domains, seed).to(self.device)
            states = scheme_states(
                self.module, values, genes, places, present, neighbors=neighbors, domain=domain
            )
            return {"": states}
        tokens = self.module.tokens(values, genes, present)
        encoded = self.module.encode(tokens, places, present)
        if config.output == "encoder":
            return {"": encoded}
        own = self.module.decode(encoded, places, present)
        if config.output == "decoder":
            return {"": own}
        niche = torch.zeros_like(own)
        for part in range(PARTS):
            is_part = _part(batch.sites) == part
            hidden = torch.from_numpy(is_part).to(self.device)
            shown = present & ~hidden
            encoded = self.module.encode(tokens, places, shown)
            states = self.module.decode(encoded, places, shown)
            niche = torch.where(hidden[..., None], states, niche)
        return {"own": own, "niche": niche}

    @property
    def autocorrelation(self) -> Floats:
        """Spatial autocorrelation of every token in the training slices, ``(n_tokens,)``."""
        buffer = cast(Tensor, self.module.autocorrelation)
        return buffer.double().cpu().numpy()


@dataclass(frozen=True)
class _Task:
    """Sites of one layer whose vectors are wanted.

    Attributes
    ----------
    units
        Sets of sites that attend to each other.
    sites
        Those whose vectors are wanted, ascending.
    layer
        Which cell of a bin is shown.
    """

    units: list[Ints]
    sites: Ints
    layer: int


class PreparedSTImage(Prepared):
    """A slice on its grid."""

    def __init__(
        self, model: STImage, tissue: Slice, match: GeneMatch, config: STImageConfig, seed: int
    ) -> None:
        self.model = model
        self.tissue = tissue
        self.match = match
        self.config = config
        self.seed = seed
        self.gridded = GriddedSlice.make(tissue, match, config, config.vit.n_genes)
        self.units = _units(self.gridded.grid, config, seed)
        self.settings = {**to_dict(config.windows), "seed": seed}

    def _plan(self) -> Plan:
        config = self.config
        model = self.model
        depth = _depth(self.gridded.grid, self.units)
        n_passes = int(depth.sum())
        if config.output == "own+niche":
            n_passes *= 1 + PARTS
        rate = matmul_rate("float32", model.device)
        flops = n_passes * model.module.flops(config.windows.window**2, config.windows.channels)
        seconds = flops / (rate * REACH)
        faster = advice(seconds, model.device, "float32", Rates(rate, rate))
        return Plan(self.tissue.n_cells, 0, self.match.coverage, seconds, faster)

    def embed(self, bars: Progress | None = None) -> Embedding:
        """Run the model on all windows, and average each cell's states over them."""
        blocks = self._blocks(bars or Progress(False))
        known = (self.match.column_token >= 0).astype(np.float64)
        empty = self.tissue.counts @ known == 0  # no copy of the counts
        grid = self.gridded.grid
        details: dict[str, Any] = {
            "grid": grid.layout,
            "sites": len(grid.occupied),
            "shape": grid.shape,
        }
        coverage = self.match.coverage
        if list(blocks) == [""]:
            return Embedding(blocks[""], empty, coverage, details)
        vectors, details["blocks"] = joined(blocks)
        return Embedding(vectors, empty, coverage, details)

    def _blocks(self, bars: Progress) -> dict[str, Vectors]:
        """Return the blocks of all cells' vectors, each the mean over windows."""
        out: dict[str, Vectors] = {}
        gridded = self.gridded
        depth = _depth(gridded.grid, self.units).tolist()
        for layer in range(int(gridded.layer.max()) + 1):
            cells = np.flatnonzero(gridded.layer == layer)
            sites, back = np.unique(gridded.grid.site[cells], return_inverse=True)
            units = [unit for unit, n in zip(self.units, depth, strict=True) if n > layer]
            means = self._site_means(_Task(units, sites, layer), bars)
            for name, vectors in means.items():
                if name not in out:
                    out[name] = np.zeros((len(gridded.layer), vectors.shape[1]), dtype=np.float32)
                out[name][cells] = vectors[back]
        return out

    def _site_means(self, task: _Task, bars: Progress) -> dict[str, Vectors]:
        """Return the blocks of the vectors of some sites in one layer."""
        total: dict[str, Vectors] = {}
        count: Vectors = np.zeros(len(task.sites), dtype=np.float32)
        with bars.stage("windows", len(task.units), "windows") as advance:
            for batch, blocks in self._batch_states(task):
                wanted, place = _among(batch.sites, task.sites)
                np.add.at(count, place, 1)
                for name, states in blocks.items():
                    if name not in total:
                        shape = (len(task.sites), states.shape[2])
                        total[name] = np.zeros(shape, dtype=np.float32)
                    np.add.at(total[name], place, states[wanted])
                advance(len(batch.sites))
        weight = np.maximum(count, np.float32(1))[:, None]
        for sums in total.values():
            sums /= weight
        return total

    @torch.inference_mode()
    def _batch_states(self, task: _Task) -> Iterator[tuple[WindowBatch, dict[str, Vectors]]]:
        """Yield batches of a task's units, and the blocks of their sites' states."""
        model = self.model
        config = self.config
        sites_at_once = BATCH_SITES.get(model.device.type, BATCH_SITES["cuda"])
        size = max(1, sites_at_once // config.windows.window**2)
        batches = self.gridded.batches(
            task.units, config, model.autocorrelation, self.seed, size, task.layer
        )
        for batch in batches:
            states = model.states(batch, self.seed)
            yield batch, {name: one.cpu().numpy() for name, one in states.items()}


def _units(grid: Grid, config: STImageConfig, seed: int) -> list[Ints]:
    """Return the sets of sites that attend to each other: overlapping windows, or sets as in slice-based training."""
    side = config.windows.window
    if config.scheme != "slice":
        stride = max(side // 2, 1)
        return [window_sites(grid, corner, side) for corner in tile_corners(grid, side, stride)]
    rng = np.random.default_rng(seed)
    mixed = rng.permutation(grid.occupied)
    padded = np.pad(mixed, (0, -len(mixed) % side**2), constant_values=-1)
    return list(padded.reshape(-1, side**2))


def _depth(grid: Grid, units: list[Ints]) -> Ints:
    """Return the number of layers of each set: as many as its fullest bin has cells."""
    if grid.layout != "bin":
        return np.ones(len(units), dtype=np.int64)
    _, n_cells = np.unique(grid.site, return_counts=True)
    depths = []
    for unit in units:
        _, place = _among(unit, grid.occupied)
        depths.append(n_cells[place].max())
    return np.array(depths, dtype=np.int64)


def _among(sites: Ints, some: Ints) -> tuple[Bools, Ints]:
    """Return a mask of the sites that are among ``some`` (ascending), and the index in ``some`` of each of these."""
    place = np.minimum(np.searchsorted(some, sites), len(some) - 1)
    present = some[place] == sites
    return present, place[present].astype(np.int64)


def _domains(batch: WindowBatch, k: int, seed: int) -> Tensor:
    """Return the macro-domain of each site, ``(B, S)``, -1 for none, as training makes them."""
    domain = np.full(batch.sites.shape, -1, dtype=np.int64)
    for row, present in enumerate(batch.present.numpy()):
        values = batch.values[row].numpy()[present]
        places = batch.places[row].numpy()[present]
        last_site = int(batch.sites[row].max())
        rng = np.random.default_rng([seed, last_site])  # whatever else is in the batch
        domain[row, present] = macro_domains(values, places, k, rng)
    return torch.from_numpy(domain)


def _part(sites: Ints) -> Ints:
    """Return the part of each place of a window: neighbors have different ones."""
    side = round(sites.shape[1] ** 0.5)
    row, column = np.divmod(np.arange(side * side), side)
    part = (row % 2) * 2 + column % 2
    return np.broadcast_to(part, sites.shape)
