"""ST-Align: one vector for each spot from image and genes of the spot and its niche, aligned and fused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor, nn

from terrazzo import keys
from terrazzo.arrays import Ints, Vectors
from terrazzo.errors import ConfigError
from terrazzo.genes import Coverage, GeneMatch, Vocabulary
from terrazzo.models.base import Embedding, FoundationModel, Prepared, joined, require_counts
from terrazzo.models.estimate import Plan, Rates, advice, matmul_rate
from terrazzo.models.frozen import FrozenEncoder, frozen_cells
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.systems.stalign.aligned import AlignedSlice
from terrazzo.systems.stalign.config import (
    Components,
    Flavor,
    STAlignConfig,
    preset,
    size_of,
)
from terrazzo.systems.stalign.feature_cache import FeatureCache
from terrazzo.systems.stalign.feature_reader import FeatureReader, Identity
from terrazzo.systems.stalign.features import AlignBatch, Features, Modality, Scale, batches
from terrazzo.systems.stalign.gene_encoders import GenePCA, cells_config
from terrazzo.systems.stalign.gene_encoders import build as build_gene_encoder
from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder
from terrazzo.systems.stalign.network import AlignNet
from terrazzo.systems.stalign.options import STAlignEmbedOptions
from terrazzo.systems.stalign.start import Choice, choose_genes, fit_genes, fit_values

__all__ = ["AlignModule", "STAlign"]

BATCH = 256  # spots whose vectors are computed together

TRIED = 16  # crops that are read for an estimate of the time

REACH = 0.3  # share of the matrix-product rate, for estimates

WHY_COUNTS = "ST-Align scales counts and takes their logarithm"

SCALES: tuple[Scale, ...] = ("spot", "niche")

BLOCKS: dict[Scale, str] = {"spot": "own", "niche": "niche"}


class AlignModule(nn.Module):
    """All weights of ST-Align: the trained part, both frozen encoders, and the genes that AE-Gene reads."""

    genes: Tensor

    def __init__(self, config: STAlignConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        tokens = vocabulary.token.astype(np.int64)
        n_genes = config.net.niche_genes.n_genes
        self.net = AlignNet(config.net)
        self.image_encoder = FrozenImageEncoder.from_description(config.image_encoder)
        self.gene_encoder = build_gene_encoder(config.gene_encoder, tokens, vocabulary.special)
        self.register_buffer("genes", torch.from_numpy(tokens[:n_genes].copy()))

    def states(
        self,
        batch: AlignBatch,
        modality: Modality = "both",
        scales: Sequence[Scale] = SCALES,
        shared: bool = False,
    ) -> dict[Scale, Tensor]:
        """Return what ``embed`` writes for some spots by scale; with gradient unless it is disabled.

        ``(n, dim)``; of both modalities ``(n, fused_dim)``.
        """
        out: dict[Scale, Tensor] = {}
        for scale in scales:
            parts = []
            if modality != "genes":
                parts.append(self._image_state(batch, scale))
            if modality != "image":
                parts.append(self._gene_state(batch, scale))
            if len(parts) == 2:
                out[scale] = self.net.fuse(scale, *parts)
            elif shared:
                of_image, of_genes = self.net.shared(scale, parts[0], parts[0])
                out[scale] = of_image if modality == "image" else of_genes
            else:
                out[scale] = parts[0]
        return out

    def _image_state(self, batch: AlignBatch, scale: Scale) -> Tensor:
        if scale == "spot":
            crops = _present(batch.spot_image)
            return self.net.spot_image(crops, batch.colors, batch.niche_image)
        return self.net.niche_image(_present(batch.niche_image))

    def _gene_state(self, batch: AlignBatch, scale: Scale) -> Tensor:
        if scale == "spot":
            return self.net.spot_genes(_present(batch.spot_genes))
        values = _present(batch.niche_genes)
        return self.net.niche_genes(values, batch.known, batch.niche_components)


def _present(part: Tensor | None) -> Tensor:
    if part is None:
        raise ConfigError("these features were read for another modality or scale.")
    return part


class STAlign(FoundationModel):
    """ST-Align (Lin et al. 2026).

    Parameters
    ----------
    config
        :class:`~terrazzo.systems.stalign.config.STAlignConfig`, or the name of a preset (``"tiny"``, ``"small"``,
        ``"paper"``).
    vocabulary
        Genes and their tokens. None: those of ``gene_encoder``.
    seed
        Seed of random initial weights, also of frozen encoders that are not passed.
    provenance
        Where the weights come from.
    image_encoder
        Of a preset: the frozen encoder of niche crops, as
        :meth:`~terrazzo.systems.stalign.image_encoder.FrozenImageEncoder.from_source` takes it: a name, the folder of a
        transformers vision model, or a loaded one. None: EfficientNet-Lite0, of the extra ``histology``; ``"random"``:
        a small vision transformer with random weights.
    gene_encoder
        Of a preset: the frozen encoder of a spot's genes: a model that encodes single cells (SToFM, a cell encoder,
        scGPT), as a checkpoint folder or loaded. None: principal components, which :meth:`fit` computes.
    flavor, adaptive, fusion, residual, components
        Of a preset; see :func:`terrazzo.systems.stalign.config.preset`.

    Raises
    ------
    ConfigError
        No such preset; no vocabulary; fewer genes in it than the model reads; no image encoder is installed.
    CheckpointError
        A folder that holds no vision model.

    Examples
    --------
    >>> model = terrazzo.STAlign.from_pretrained("checkpoint")  # doctest: +SKIP
    >>> model.embed(adata, modality="genes").obsm["X_stalign"]  # doctest: +SKIP

    Options of ``embed``: :class:`~terrazzo.systems.stalign.options.STAlignEmbedOptions`.
    """

    model_type: ClassVar[str] = "stalign"
    default_key = keys.X_STALIGN
    config_class: ClassVar[type] = STAlignConfig
    options_class = STAlignEmbedOptions
    title = "ST-Align"
    citation = (
        "Lin, Luo, Chen, Zhang, Wang and Yu, ST-Align: Multi-Scale Image-Gene Foundation Modeling for Spatial "
        "Transcriptomics via Spot-Niche Alignment, 2026."
    )
    limits: ClassVar[tuple[str, ...]] = (
        "Histology must be registered to the slice by a scale and an offset, with known micrometers per pixel.",
        "Single cells have no spot: the side of their crops is stated by the user.",
        "The frozen encoders inside keep their own licenses.",
    )
    module: AlignModule
    config: STAlignConfig

    def __init__(
        self,
        config: STAlignConfig | str,
        vocabulary: Vocabulary | None = None,
        *,
        seed: int = 0,
        provenance: dict[str, Any] | None = None,
        image_encoder: FrozenImageEncoder | str | Path | None = None,
        gene_encoder: FoundationModel | str | Path | None = None,
        flavor: Flavor = "terrazzo",
        adaptive: bool = True,
        fusion: Literal["attention", "concatenation"] = "attention",
        residual: bool = True,
        components: Components = "kept",
    ) -> None:
        cells = None
        cells_settings = None
        if gene_encoder is not None:
            model_type, cells, known = frozen_cells(gene_encoder)
            cells_settings = cells_config(model_type, cells)
            if vocabulary is not None and vocabulary.content_hash() != known.content_hash():
                raise ConfigError(
                    "the gene encoder reads another vocabulary than this; leave vocabulary out."
                )
            vocabulary = known
        if vocabulary is None:
            raise ConfigError("ST-Align needs a vocabulary, or a gene encoder that has one.")
        if isinstance(config, str):
            sizes = size_of(config)["vit"]
            image_encoder = FrozenImageEncoder.from_source(image_encoder, **sizes)
        elif image_encoder is not None:
            image_encoder = FrozenImageEncoder.from_source(image_encoder)
        if isinstance(config, str):
            config = preset(
                config,
                len(vocabulary),
                flavor=flavor,
                image_encoder=image_encoder,
                gene_encoder=cells_settings,
                adaptive=adaptive,
                fusion=fusion,
                residual=residual,
                components=components,
            )
        n_read = config.net.niche_genes.n_genes
        if n_read > len(vocabulary):
            raise ConfigError(
                f"The vocabulary has {len(vocabulary):,} genes, fewer than the model reads "
                f"({n_read:,}): lower net.niche_genes.n_genes."
            )
        super().__init__(config, vocabulary, seed=seed, provenance=provenance)
        if image_encoder is not None:
            self.module.image_encoder.load_state_dict(image_encoder.state_dict())
            self.provenance = {**self.provenance, "image_encoder": image_encoder.origin}
        if cells is not None:
            self.module.gene_encoder.load_state_dict(cells.state_dict())
            self.provenance = {**self.provenance, "gene_encoder": cells.origin}

    def _build(self) -> nn.Module:
        return AlignModule(self.config, self.vocabulary)

    def prepare(
        self,
        tissue: Slice,
        options: STAlignEmbedOptions | None = None,
        *,
        obs: pd.DataFrame | None = None,
    ) -> PreparedSTAlign:
        """Match one slice and cut its crops; see :meth:`terrazzo.models.base.FoundationModel.prepare`."""
        options = options or STAlignEmbedOptions()
        if options.modality == "image":
            match = None
            coverage = self.vocabulary.coverage(tissue, orthologs=options.orthologs)
        else:
            counts = require_counts(tissue, WHY_COUNTS)
            match = self.vocabulary.match(counts, orthologs=options.orthologs)
            coverage = match.coverage
        return PreparedSTAlign(self, tissue, match, coverage, options)

    def reader(
        self,
        tissue: Slice,
        match: GeneMatch | None,
        *,
        modality: Modality = "both",
        spot_um: float | None = None,
        cache: FeatureCache | None = None,
        bars: Progress | None = None,
    ) -> FeatureReader:
        """Return the reader of the features of a slice in memory."""
        identity = None if cache is None else Identity.of(tissue, match)
        with_image = modality != "genes"
        aligned = AlignedSlice.make(
            tissue, self.config, self.genes, match=match, image=with_image, spot_um=spot_um
        )
        return self.stored_reader(lambda: aligned, identity, cache, spot_um=spot_um, bars=bars)

    def stored_reader(
        self,
        make: Callable[[], AlignedSlice],
        identity: Identity | None,
        cache: FeatureCache | None,
        *,
        fingerprints: tuple[str, str] | None = None,
        spot_um: float | None = None,
        bars: Progress | None = None,
    ) -> FeatureReader:
        """Return the reader of the features of a slice, which ``make`` returns only where something must be computed.

        ``fingerprints``: of the image and the gene encoder, where they are known already.
        """
        return FeatureReader(
            self.config,
            self.genes,
            self.module.image_encoder,
            self.module.gene_encoder,
            make,
            identity=identity,
            cache=cache,
            fingerprints=fingerprints,
            spot_um=spot_um,
            bars=bars,
        )

    def fit(
        self,
        slices: Sequence[AnnData | Slice] | Callable[[], Iterable[Slice]],
        *,
        choose: Choice = "autocorrelation",
    ) -> Self:
        """Choose the genes, and fit the components and the means of values, on slices without labels.

        Images are not read. It is done before training; afterwards the trained weights would no longer fit.

        Parameters
        ----------
        slices
            Training slices; or a function that returns an iterable of them, called twice, for more than fit in memory.
        choose
            Genes of the highest spatial autocorrelation, or of the highest variance.

        Raises
        ------
        InputError, GeneError
            No slice; one without counts, or whose genes the vocabulary does not know.
        """
        if callable(slices):
            iterate = slices
        else:
            checked = [s if isinstance(s, Slice) else Slice.from_anndata(s) for s in slices]

            def iterate() -> Iterable[Slice]:
                return checked

        def with_counts() -> Iterator[Slice]:
            for tissue in iterate():
                yield require_counts(tissue, WHY_COUNTS)

        tokens = choose_genes(with_counts(), self.vocabulary, self.config, choose)
        encoder: FrozenEncoder = self.module.gene_encoder
        pca = encoder if isinstance(encoder, GenePCA) else None
        moments = fit_genes(with_counts(), self.vocabulary, self.config, tokens, pca)
        self.module.genes.copy_(torch.from_numpy(tokens))
        if self.config.standardize == "training":
            fit_values(self.module.net, moments)
        self._fingerprint = None
        return self

    @property
    def genes(self) -> Ints:
        """Tokens of the genes that AE-Gene reads, int64 ``(G,)``."""
        return self.module.genes.cpu().numpy()

    @torch.inference_mode()
    def vectors(
        self,
        features: Features,
        modality: Modality = "both",
        scales: Sequence[Scale] = SCALES,
        bars: Progress | None = None,
        shared: bool = False,
    ) -> dict[str, Vectors]:
        """Return the vectors of all spots of a slice by name of block, float32; see :meth:`AlignModule.states`."""
        net = self.config.net
        shape = (len(features), net.fused_dim if modality == "both" else net.dim)
        blocks = {BLOCKS[scale]: np.empty(shape, dtype=np.float32) for scale in scales}
        bars = bars or Progress(False)
        with bars.stage("vectors", len(features)) as advance:
            for rows in batches(len(features), BATCH):
                batch = features.take(rows).to(self.device)
                for scale, states in self.module.states(batch, modality, scales, shared).items():
                    blocks[BLOCKS[scale]][rows] = states.float().cpu().numpy()
                advance(len(rows))
        return blocks


class PreparedSTAlign(Prepared):
    """A slice with the crops and values of its spots and niches."""

    def __init__(
        self,
        model: STAlign,
        tissue: Slice,
        match: GeneMatch | None,
        coverage: Coverage,
        options: STAlignEmbedOptions,
    ) -> None:
        self.model = model
        self.tissue = tissue
        self.match = match
        self.coverage = coverage
        self.modality = options.modality
        if options.shared and options.modality == "both":
            raise ConfigError(
                "shared vectors are of one modality: pass modality='image' or 'genes' (--modality)."
            )
        self.reads_counts = match is not None
        self.scales: tuple[Scale, ...] = SCALES
        if options.scale != "both":
            self.scales = (options.scale,)
        self.options = options
        self.reader = model.reader(
            tissue,
            match,
            modality=options.modality,
            spot_um=options.spot_um,
            cache=None if options.cache is None else FeatureCache(options.cache),
        )
        self.settings = {
            "modality": options.modality,
            "scale": options.scale,
            "spot_um": options.spot_um,
            "shared": options.shared,
        }

    def _plan(self) -> Plan:
        device = self.model.device
        rate = matmul_rate("float32", device)
        seconds = self._seconds(self.reader.aligned, rate)
        faster = advice(seconds, device, "float32", Rates(rate, rate))
        return Plan(self.tissue.n_cells, 0, self.coverage, seconds, faster)

    def embed(self, bars: Progress | None = None) -> Embedding:
        """Read the features, then run the trained part."""
        bars = bars or Progress(False)
        model = self.model
        reader = self.reader
        reader.bars = bars
        features = reader.read(self.modality, self.scales)
        shared = self.options.shared
        blocks = model.vectors(features, self.modality, self.scales, bars, shared)
        details: dict[str, Any] = {
            "modality": self.modality,
            "scale": self.options.scale,
            "neighbors": model.config.neighbors,
            "shared": shared,
        }
        if self.modality != "genes":
            details["microns_per_pixel"] = reader.aligned.microns_per_pixel
            details["spot_um"] = reader.aligned.diameter
        empty = np.zeros(self.tissue.n_cells, dtype=bool)
        if self.match is not None:
            known = (self.match.column_token >= 0).astype(np.float64)
            empty = self.tissue.counts @ known == 0  # no copy of the counts
        if len(self.scales) == 1:
            return Embedding(blocks[BLOCKS[self.scales[0]]], empty, self.coverage, details)
        vectors, details["blocks"] = joined(blocks)
        return Embedding(vectors, empty, self.coverage, details)

    def _seconds(self, aligned: AlignedSlice, rate: float) -> float:
        """Estimate the time of a slice from the operations of one spot and the time to read some crops."""
        from torch.utils.flop_counter import FlopCounterMode

        start = time.perf_counter()
        n_spots = len(aligned)
        steps = np.linspace(0, n_spots - 1, min(TRIED, n_spots))
        rows = np.unique(steps.astype(int))
        spot_image = None
        niche_image = None
        if aligned.spots is not None and "spot" in self.scales:
            spot_image = torch.from_numpy(aligned.spots[rows])[:1].to(self.model.device)
        spot_starts_from_niche = self.model.config.net.residual and self.model.config.net.own_first
        if aligned.surroundings is not None and ("niche" in self.scales or spot_starts_from_niche):
            niche_image = torch.from_numpy(aligned.surroundings[rows])[:1].to(self.model.device)
        reading = (time.perf_counter() - start) / len(rows)
        with FlopCounterMode(display=False) as counter:
            self._run_one(aligned, rows[:1], spot_image, niche_image)
        computing = counter.get_total_flops() / (rate * REACH)
        return n_spots * (reading + computing)

    def _run_one(
        self,
        aligned: AlignedSlice,
        row: Ints,
        spot_image: Tensor | None,
        niche_image: Tensor | None,
    ) -> None:
        """Run one spot through all parts, for its operations to be counted."""
        module = self.model.module
        net = self.model.config.net
        if niche_image is not None:
            n_squares = max(len(self.model.config.niche_um), 1)
            encoded = module.image_encoder(niche_image.repeat(n_squares, 1, 1, 1)).view(1, -1)
            niche_image = encoded.repeat(1, self.model.config.niche_vectors // n_squares)
        if spot_image is not None and not net.adaptive:
            spot_image = module.image_encoder(spot_image)
        if aligned.match is not None and not isinstance(module.gene_encoder, GenePCA):
            module.gene_encoder.encode(aligned.tissue.counts[row], aligned.match)
        n_genes = net.niche_genes.n_genes
        niche_width = n_genes if net.adaptive else net.spot_gene_dim
        number = torch.zeros(1, dtype=torch.int64)
        batch = AlignBatch(
            spot_image=spot_image,
            niche_image=niche_image,
            spot_genes=torch.zeros(1, net.spot_gene_dim),
            niche_genes=torch.zeros(1, niche_width),
            known=torch.ones(1, n_genes, dtype=torch.bool),
            colors=None,
            spots=number,
            niches=number[:, None],
            niche_components=torch.zeros(1, net.spot_gene_dim),
        )
        module.states(batch.to(self.model.device), self.modality, self.scales)
