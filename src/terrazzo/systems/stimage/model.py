"""ST as images: a slice as a croppable multi-channel picture, a masked autoencoder, one vector for every cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor, nn

from terrazzo import keys
from terrazzo.arrays import Floats, Ints
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import ConfigError
from terrazzo.genes import Vocabulary
from terrazzo.models.base import Embedding, FoundationModel, Plan, counted, joined
from terrazzo.models.estimate import advice, matmul_rate
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.slices.grids import Grid, grid_of
from terrazzo.systems.stimage.config import Recipe, Scheme, STImageConfig, preset
from terrazzo.systems.stimage.gridded import GriddedSlice, WindowBatch
from terrazzo.systems.stimage.macro_domains import macro_domains
from terrazzo.systems.stimage.network import MaskedViT, scheme_states
from terrazzo.systems.stimage.windows import PatchConfig, tile_corners, window_sites

BATCH_SITES = {"cpu": 4096, "cuda": 65536}  # sites that are worked on together


PARTS = 4  # a site and its neighbors are never hidden together: rows and columns, each by two


REACH = 0.5  # share of the matrix-product rate, for estimates


WHY = "ST as images scales counts and takes their logarithm"


class STImage(FoundationModel):
    """ST as images (Zhu et al. 2026).

    Parameters
    ----------
    config
        :class:`STImageConfig`, or the name of a preset (``"tiny"``, ``"small"``, ``"paper"``).
    vocabulary
        Genes and their tokens.
    seed
        Seed of random initial weights.
    provenance
        Where the weights come from.
    recipe, scheme, patches
        Of a preset: ``"terrazzo"`` or ``"paper"``; what a training sample is; :class:`terrazzo.PatchConfig` in place of
        the recipe's. See :func:`terrazzo.systems.stimage.config.preset`.

    Raises
    ------
    ConfigError
        No such preset; fewer gene embeddings than tokens.
    """

    model_type: ClassVar[str] = "stimage"
    default_key: ClassVar[str] = keys.X_STIMAGE
    config_class: ClassVar[type] = STImageConfig
    title: ClassVar[str] = "ST as images"
    citation: ClassVar[str] = (
        "Zhu, Qi, Wang, Zheng and Huang, Spatial Transcriptomics as Images for Large-Scale Pretraining, 2026."
    )
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
        recipe: Recipe = "terrazzo",
        scheme: Scheme = "patch",
        patches: PatchConfig | None = None,
    ) -> None:
        chosen = (
            preset(config, vocabulary.n_tokens, recipe=recipe, scheme=scheme, patches=patches)
            if isinstance(config, str)
            else config
        )
        if vocabulary.n_tokens > chosen.vit.n_genes:
            raise ConfigError(
                f"The vocabulary has {vocabulary.n_tokens:,} tokens, the model only {chosen.vit.n_genes:,}: set "
                "vit.n_genes to the vocabulary's n_tokens."
            )
        super().__init__(chosen, vocabulary, seed=seed, provenance=provenance)

    def _build(self) -> nn.Module:
        return MaskedViT(self.config.vit)

    def embed(
        self,
        data: Any,
        *,
        key_added: str | None = None,
        layout: str | None = None,
        bin_um: float | None = None,
        window: int | None = None,
        seed: int = 0,
        orthologs: Any = None,
        progress: bool | None = None,
        **slice_options: Any,
    ) -> Any:
        """Give every cell its vector, in ``obsm["X_stimage"]`` (float32, n x d), with provenance in ``uns``.

        A vector is the mean over all overlapping windows that hold the cell's site. Cells that share a bin are shown
        one at a time, each for its own vector; cells that share a position of an array share their vector.

        Parameters
        ----------
        data
            AnnData, SpatialData, path, or a list of these. Nothing is dropped: n cells in, n rows out, same order.
        key_added
            Another name for the ``obsm`` key.
        layout, bin_um, window
            In place of the checkpoint's :class:`~terrazzo.systems.stimage.windows.PatchConfig`: platforms differ in their grid.
        seed
            Of the channels, where they are drawn.
        orthologs
            Two-column table from the slice's genes to the vocabulary's, for another organism.
        progress
            Show progress bars; None: only on a terminal.
        **slice_options
            Passed to :meth:`terrazzo.Slice.from_anndata`.

        Returns
        -------
        The AnnData (loaded, if a path was given), the SpatialData, or a list of them.

        Raises
        ------
        InputError, GeneError, ConfigError
            The slice, its genes, or the settings cannot be used; the message says how to mend it.
        """
        config, bars = (
            self._with({"layout": layout, "bin_um": bin_um, "window": window}),
            Progress(progress),
        )

        def run(tissue: Slice, adata: AnnData) -> Embedding:
            match = self.vocabulary.match(counted(tissue, WHY), orthologs=orthologs)
            held = GriddedSlice.make(tissue, match, config, self.config.vit.n_genes)
            blocks = self._vectors(held, config, seed, bars)
            known = tissue.counts @ (match.column_token >= 0).astype(
                np.float64
            )  # no copy of the counts
            details = {
                "grid": held.grid.layout,
                "sites": len(held.grid.occupied),
                "shape": held.grid.shape,
            }
            if list(blocks) == [""]:
                return Embedding(blocks[""], known == 0, match.coverage, details)
            vectors, places = joined(blocks)
            return Embedding(vectors, known == 0, match.coverage, {**details, "blocks": places})

        settings = {**to_dict(config.patches), "seed": seed}
        return self._embed_all(data, key_added or self.default_key, settings, slice_options, run)

    def reconstruct(
        self,
        adata: AnnData,
        hidden: NDArray[np.bool_],
        genes: str | Sequence[str],
        *,
        layout: str | None = None,
        bin_um: float | None = None,
        window: int | None = None,
        seed: int = 0,
        orthologs: Any = None,
        **slice_options: Any,
    ) -> NDArray[np.float32]:
        """Predict genes of hidden cells from the cells around them.

        Parameters
        ----------
        adata
            The slice. Of hidden cells nothing but the position is read.
        hidden
            bool ``(n_cells,)``.
        genes
            Names as in ``adata.var_names``. One that the model does not know is answered with its mean.
        layout, bin_um, window, orthologs
            As in :meth:`embed`.
        seed
            Of the channels, where they are drawn.
        **slice_options
            Passed to :meth:`terrazzo.Slice.from_anndata`.

        Returns
        -------
        float32 ``(hidden.sum(), len(genes))``: log1p of counts scaled to 10,000.

        Raises
        ------
        InputError
            No cell is shown; a gene that the slice does not have; as :meth:`embed`.
        """
        from terrazzo.systems.stimage.reconstruct import reconstruct

        config = self._with({"layout": layout, "bin_um": bin_um, "window": window})
        tissue = counted(Slice.from_anndata(adata, **slice_options), WHY)
        names = [genes] if isinstance(genes, str) else list(genes)
        match = self.vocabulary.match(tissue, orthologs=orthologs)
        return reconstruct(self, tissue, match, adata, hidden, names, config, seed)

    def _with(self, changes: dict[str, Any]) -> STImageConfig:
        chosen = {k: float(v) if k == "bin_um" else v for k, v in changes.items() if v is not None}
        return replace(
            self.config,
            patches=from_dict(PatchConfig, {**to_dict(self.config.patches), **chosen}, "embed"),
        )

    def _vectors(
        self, held: GriddedSlice, config: STImageConfig, seed: int, bars: Progress
    ) -> dict[str, NDArray[np.float32]]:
        """Return the blocks of all cells' vectors, each the mean over windows."""
        out: dict[str, NDArray[np.float32]] = {}
        units = _units(held.grid, config, seed)
        depth = _depth(held.grid, units)
        for layer in range(int(held.layer.max()) + 1):
            cells = np.flatnonzero(held.layer == layer)
            sites, back = np.unique(held.grid.site[cells], return_inverse=True)
            deep = [unit for unit, n in zip(units, depth.tolist(), strict=True) if n > layer]
            for name, vectors in self._site_vectors(
                held, config, seed, bars, deep, sites, layer
            ).items():
                if name not in out:
                    out[name] = np.zeros((len(held.layer), vectors.shape[1]), dtype=np.float32)
                out[name][cells] = vectors[back]
        return out

    def _site_vectors(
        self,
        held: GriddedSlice,
        config: STImageConfig,
        seed: int,
        bars: Progress,
        units: list[Ints],
        sites: Ints,
        layer: int,
    ) -> dict[str, NDArray[np.float32]]:
        """Return the blocks of the vectors of some sites, ascending, in one layer."""
        total: dict[str, NDArray[np.float32]] = {}
        count: NDArray[np.float32] = np.zeros(len(sites), dtype=np.float32)
        with bars.stage("windows", len(units)) as advance:
            for batch, blocks in self._windows(held, config, units, seed, layer):
                kept, at = _among(batch.sites, sites)
                np.add.at(count, at, 1)
                for name, states in blocks.items():
                    if name not in total:
                        total[name] = np.zeros((len(sites), states.shape[2]), dtype=np.float32)
                    np.add.at(total[name], at, states[kept])
                advance(len(batch.sites))
        for sums in total.values():
            sums /= np.maximum(count, np.float32(1))[:, None]
        return total

    @torch.inference_mode()
    def _windows(
        self, held: GriddedSlice, config: STImageConfig, units: list[Ints], seed: int, layer: int
    ) -> Iterator[tuple[WindowBatch, dict[str, NDArray[np.float32]]]]:
        size = max(
            1, BATCH_SITES.get(self.device.type, BATCH_SITES["cuda"]) // config.patches.window**2
        )
        for batch in held.batches(units, config, self.autocorrelation, seed, size, layer):
            yield batch, {k: v.cpu().numpy() for k, v in self.states(batch, seed).items()}

    def states(self, batch: WindowBatch, seed: int = 0) -> dict[str, Tensor]:
        """Return what ``embed`` writes for the sites of windows, ``(B, S, d)`` each, by name of block."""
        values, genes = batch.values.to(self.device), batch.genes.to(self.device)
        places, present = batch.places.to(self.device), batch.present.to(self.device)
        if self.config.scheme != "patch":
            near = self.config.neighbors if self.config.scheme == "multi-spot" else 0
            domain = (
                _domains(batch, self.config.domains, seed).to(self.device)
                if self.config.scheme == "slice"
                else None
            )
            return {
                "": scheme_states(
                    self.module, values, genes, places, present, neighbors=near, domain=domain
                )
            }
        tokens = self.module.tokens(values, genes, present)
        encoded = self.module.encode(tokens, places, present)
        if self.config.output == "encoder":
            return {"": encoded}
        own = self.module.decode(encoded, places, present)
        if self.config.output == "decoder":
            return {"": own}
        niche = torch.zeros_like(own)
        for part in range(PARTS):
            hidden = torch.from_numpy(_part(batch.sites) == part).to(self.device)
            shown = present & ~hidden
            states = self.module.decode(self.module.encode(tokens, places, shown), places, shown)
            niche = torch.where(hidden[..., None], states, niche)
        return {"own": own, "niche": niche}

    @property
    def autocorrelation(self) -> Floats:
        """Spatial autocorrelation of every token in the training slices, ``(n_tokens,)``."""
        return cast(Tensor, self.module.autocorrelation).double().cpu().numpy()

    def plan(self, data: AnnData | Slice, *, orthologs: Any = None, **options: Any) -> Plan:
        """Say what :meth:`embed` would do and how long it would take, without doing it; same options."""
        changes = {k: options.pop(k, None) for k in ("layout", "bin_um", "window")}
        slice_options = {
            k: v for k, v in options.items() if k not in ("key_added", "seed", "progress")
        }
        tissue = data if isinstance(data, Slice) else Slice.from_anndata(data, **slice_options)
        config = self._with(changes)
        coverage = self.vocabulary.match(counted(tissue, WHY), orthologs=orthologs).coverage
        grid = grid_of(tissue, layout=config.patches.layout, bin_um=config.patches.bin_um)
        passes = int(_depth(grid, _units(grid, config, 0)).sum()) * (
            1 + PARTS if config.output == "own+niche" else 1
        )
        rate = matmul_rate("float32", self.device)
        seconds = (
            passes
            * self.module.flops(config.patches.window**2, config.patches.channels)
            / (rate * REACH)
        )
        return Plan(
            tissue.n_cells,
            0,
            coverage,
            seconds,
            advice(seconds, self.device, "float32", (rate, rate)),
        )


def _units(grid: Grid, config: STImageConfig, seed: int) -> list[Ints]:
    """Return the sets of sites that are looked at together: overlapping windows, or what slice-based training sees."""
    side = config.patches.window
    if config.scheme != "slice":
        return [window_sites(grid, c, side) for c in tile_corners(grid, side, max(side // 2, 1))]
    mixed = np.random.default_rng(seed).permutation(grid.occupied)
    padded = np.pad(mixed, (0, -len(mixed) % side**2), constant_values=-1)
    return list(padded.reshape(-1, side**2))


def _depth(grid: Grid, units: list[Ints]) -> Ints:
    """Return in how many layers each set is looked at: as many as its fullest bin has cells."""
    if grid.layout != "bin":
        return np.ones(len(units), dtype=np.int64)
    cells = np.unique(grid.site, return_counts=True)[1]
    return np.array([cells[_among(unit, grid.occupied)[1]].max() for unit in units], dtype=np.int64)


def _among(sites: Ints, some: Ints) -> tuple[NDArray[np.bool_], Ints]:
    """Say which sites are among some others, ascending, and where each of these is; in time that hardly grows."""
    at = np.minimum(np.searchsorted(some, sites), len(some) - 1)
    there = some[at] == sites
    return there, at[there].astype(np.int64)


def _domains(batch: WindowBatch, k: int, seed: int) -> Tensor:
    """Return the macro-domain of each site, ``(B, S)``, -1 for none, as training makes them."""
    out = np.full(batch.sites.shape, -1, dtype=np.int64)
    for row, here in enumerate(batch.present.numpy()):
        values, places = batch.values[row].numpy()[here], batch.places[row].numpy()[here]
        rng = np.random.default_rng(
            [seed, int(batch.sites[row].max())]
        )  # whatever else is in the batch
        out[row, here] = macro_domains(values, places, k, rng)
    return torch.from_numpy(out)


def _part(sites: Ints) -> NDArray[np.int64]:
    """Return the part of each place of a window: neighbors have different ones."""
    side = round(sites.shape[1] ** 0.5)
    row, column = np.divmod(np.arange(side * side), side)
    return np.broadcast_to((row % 2) * 2 + column % 2, sites.shape)
