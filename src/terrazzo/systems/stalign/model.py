"""All weights of ST-Align in one module, and the way of a batch of spots through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor, nn

from terrazzo import keys
from terrazzo.arrays import Ints
from terrazzo.errors import ConfigError
from terrazzo.genes import Coverage, GeneMatch, Vocabulary
from terrazzo.images import TissueImage
from terrazzo.models.base import Embedding, FoundationModel, Plan, counted, joined
from terrazzo.models.estimate import advice, matmul_rate
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.systems.stalign.aligned import AlignedSlice
from terrazzo.systems.stalign.config import Recipe, STAlignConfig, preset
from terrazzo.systems.stalign.feature_cache import FeatureCache
from terrazzo.systems.stalign.feature_reader import FeatureReader, Identity, Scale
from terrazzo.systems.stalign.features import AlignBatch, Features, Modality, batches
from terrazzo.systems.stalign.gene_encoders import GeneEncoder, GenePCA, frozen_genes
from terrazzo.systems.stalign.gene_encoders import build as build_gene_encoder
from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder
from terrazzo.systems.stalign.network import AlignNet
from terrazzo.systems.stalign.start import Choice, choose_genes, fit_genes, fit_values


class AlignModule(nn.Module):
    """All weights of ST-Align: what is trained, both frozen encoders, and which genes AE-Gene reads."""

    genes: Tensor

    def __init__(self, config: STAlignConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        tokens = vocabulary.token.astype(np.int64)
        self.net = AlignNet(config.net)
        self.image_encoder = FrozenImageEncoder.from_description(config.image_encoder)
        self.gene_encoder = build_gene_encoder(config.gene_encoder, tokens, vocabulary.special)
        self.register_buffer(
            "genes", torch.from_numpy(tokens[: config.net.niche_genes.n_genes].copy())
        )

    def states(
        self,
        batch: AlignBatch,
        modality: Modality = "both",
        scales: Sequence[Scale] = ("spot", "niche"),
    ) -> dict[Scale, Tensor]:
        """Return what ``embed`` writes for some spots, ``(n, dim)`` by scale; with gradient where it is asked for."""
        net, out = self.net, cast(dict[Scale, Tensor], {})
        for scale in scales:
            parts = []
            if modality != "genes":
                parts.append(
                    net.spot_image(_there(batch.spot_image), batch.colors)
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


BATCH = 256  # spots that are worked on together


TRIED, REACH = (
    16,
    0.3,
)  # crops that are read for an estimate of the time; share of the matrix-product rate


WHY = "ST-Align scales counts and takes their logarithm"


NAMES: dict[Scale, str] = {"spot": "own", "niche": "niche"}


class STAlign(FoundationModel):
    """ST-Align (Lin et al. 2026).

    Parameters
    ----------
    config
        :class:`STAlignConfig`, or the name of a preset (``"tiny"``, ``"small"``, ``"paper"``).
    vocabulary
        Genes and their tokens. None: those of ``gene_encoder``.
    seed
        Seed of random initial weights, those of frozen encoders that are not given too.
    provenance
        Where the weights come from.
    image_encoder
        Of a preset: the frozen encoder of niche crops; a folder of a transformers vision model, or a loaded one. None:
        a small vision transformer with random weights.
    gene_encoder
        Of a preset: the frozen encoder of a spot's genes: SToFM's or a cell encoder's, as a checkpoint folder, a model,
        or out of :func:`terrazzo.systems.stalign.gene_encoders.frozen_genes`. None: principal components, which :meth:`fit`
        finds.
    recipe, adaptive, fusion
        Of a preset; see :func:`terrazzo.systems.stalign.config.preset`.

    Raises
    ------
    ConfigError
        No such preset; no vocabulary; fewer genes in it than the model reads.
    CheckpointError
        A folder that holds no vision model.
    """

    model_type: ClassVar[str] = "stalign"
    default_key: ClassVar[str] = keys.X_STALIGN
    config_class: ClassVar[type] = STAlignConfig
    title: ClassVar[str] = "ST-Align"
    citation: ClassVar[str] = (
        "Lin, Luo, Chen, Zhang, Wang and Yu, ST-Align: Multi-Scale Image-Gene Foundation Modeling for Spatial "
        "Transcriptomics via Spot-Niche Alignment, 2026."
    )
    limits: ClassVar[tuple[str, ...]] = (
        "Histology must lie on the slice by a scale and an offset, with known micrometers per pixel.",
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
        gene_encoder: GeneEncoder | FoundationModel | str | Path | None = None,
        recipe: Recipe = "terrazzo",
        adaptive: bool = True,
        fusion: Literal["attention", "concatenation"] = "attention",
    ) -> None:
        if isinstance(image_encoder, str | Path):
            image_encoder = FrozenImageEncoder.from_folder(image_encoder)
        if gene_encoder is not None and not isinstance(gene_encoder, GeneEncoder):
            gene_encoder, theirs = frozen_genes(gene_encoder)
            if vocabulary is not None and vocabulary.content_hash() != theirs.content_hash():
                raise ConfigError(
                    "the gene encoder reads another vocabulary than this; leave vocabulary out."
                )
            vocabulary = theirs
        if vocabulary is None:
            raise ConfigError("ST-Align needs a vocabulary, or a gene encoder that brings one.")
        if isinstance(config, str):
            config = preset(
                config,
                len(vocabulary),
                recipe=recipe,
                image_encoder=image_encoder,
                gene_encoder=None if gene_encoder is None else gene_encoder.config,
                adaptive=adaptive,
                fusion=fusion,
            )
        if config.net.niche_genes.n_genes > len(vocabulary):
            raise ConfigError(
                f"The vocabulary has {len(vocabulary):,} genes, fewer than the model reads "
                f"({config.net.niche_genes.n_genes:,}): lower net.niche_genes.n_genes."
            )
        super().__init__(config, vocabulary, seed=seed, provenance=provenance)
        for name, given in (("image_encoder", image_encoder), ("gene_encoder", gene_encoder)):
            if given is not None:
                getattr(self.module, name).load_state_dict(given.state_dict())
                self.provenance = {**self.provenance, name: given.origin}

    def _build(self) -> nn.Module:
        return AlignModule(self.config, self.vocabulary)

    def embed(
        self,
        data: Any,
        *,
        key_added: str | None = None,
        scale: Literal["both", "spot", "niche"] = "both",
        modality: Modality = "both",
        image: TissueImage | str | Path | None = None,
        spot_um: float | None = None,
        cache: str | Path | None = None,
        orthologs: Any = None,
        progress: bool | None = None,
        **slice_options: Any,
    ) -> Any:
        """Give every spot its vector, in ``obsm["X_stalign"]`` (float32, n x d), with provenance in ``uns``.

        Parameters
        ----------
        data
            AnnData, SpatialData, path, or a list of these. Nothing is dropped: n spots in, n rows out, same order.
        key_added
            Another name for the ``obsm`` key.
        scale
            ``"spot"`` or ``"niche"``: that vector. ``"both"``: side by side as the blocks ``own`` and ``niche``, each
            of mean norm one.
        modality
            ``"both"``: image and genes fused (h of eq 9). ``"genes"``: u and t, no image is looked at. ``"image"``: r
            and e, no gene is looked at.
        image
            Histology; a path is read with a scale of 1; the name of a picture in a SpatialData or a vendor's folder.
            None: that of ``uns["spatial"]``, or the one in colors that belongs to the cells of a SpatialData.
        spot_um
            Diameter of a spot's crop, in place of the checkpoint's and the platform's; needed for single cells.
        cache
            Folder in which frozen features are kept and found again.
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
            The slice, its image, its genes, or the settings cannot be used; the message says how to mend it.
        """
        scales = _scales(scale, modality)
        if (
            image is not None
            and isinstance(data, Sequence)
            and not isinstance(data, str | bytes)
            and len(data) > 1
        ):
            raise ConfigError(
                f"one image cannot belong to {len(data)} slices; embed them one by one."
            )
        options = slice_options | ({} if image is None else {"image": _opened(image, data)})
        bars, store = Progress(progress), None if cache is None else FeatureCache(cache)

        def run(tissue: Slice, adata: AnnData) -> Embedding:
            match, coverage = self._match(tissue, modality, orthologs)
            reader = self.reader(
                tissue, match, modality=modality, spot_um=spot_um, cache=store, bars=bars
            )
            blocks = self.vectors(reader.read(modality, scales), modality, scales, bars)
            empty = np.zeros(tissue.n_cells, dtype=bool)
            details: dict[str, Any] = {
                "modality": modality,
                "scale": scale,
                "neighbors": self.config.neighbors,
            }
            if match is not None:
                empty = (
                    tissue.counts @ (match.column_token >= 0).astype(np.float64) == 0
                )  # no copy of the counts
            if modality != "genes":
                details |= {
                    "microns_per_pixel": reader.aligned.microns_per_pixel,
                    "spot_um": reader.aligned.diameter,
                }
            if len(scales) == 1:
                return Embedding(blocks[NAMES[scales[0]]], empty, coverage, details)
            vectors, places = joined(blocks)
            return Embedding(vectors, empty, coverage, {**details, "blocks": places})

        settings = {"modality": modality, "scale": scale, "spot_um": spot_um}
        return self._embed_all(data, key_added or self.default_key, settings, options, run)

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
        """Return what reads the features of a slice in memory."""
        identity = None if cache is None else Identity.of(tissue, match)
        cut = AlignedSlice.make(
            tissue, self.config, self.genes, match=match, image=modality != "genes", spot_um=spot_um
        )
        return self.stored_reader(lambda: cut, identity, cache, spot_um=spot_um, bars=bars)

    def stored_reader(
        self,
        make: Callable[[], AlignedSlice],
        identity: Identity | None,
        cache: FeatureCache | None,
        *,
        marks: tuple[str, str] | None = None,
        spot_um: float | None = None,
        bars: Progress | None = None,
    ) -> FeatureReader:
        """Return what reads the features of a slice that is cut only where something must be made.

        ``marks``: fingerprints of the image and the gene encoder, where they are known already.
        """
        module = self.module
        return FeatureReader(
            self.config,
            self.genes,
            module.image_encoder,
            module.gene_encoder,
            make,
            identity=identity,
            cache=cache,
            marks=marks,
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

        Images are not looked at. It is done before training; afterwards the trained weights would no longer fit.

        Parameters
        ----------
        slices
            Training slices; or what gives them one by one, called twice, for more than fit in memory.
        choose
            Genes of the highest spatial autocorrelation, or of the highest variance.

        Raises
        ------
        InputError, GeneError
            No slice; one that holds no counts, or whose genes the vocabulary does not know.
        """
        given = (
            slices
            if callable(slices)
            else [s if isinstance(s, Slice) else Slice.from_anndata(s) for s in slices]
        )

        def held() -> Iterator[Slice]:
            yield from (counted(one, WHY) for one in (given() if callable(given) else given))

        tokens = choose_genes(held(), self.vocabulary, self.config, choose)
        encoder = self.module.gene_encoder
        moments = fit_genes(
            held(),
            self.vocabulary,
            self.config,
            tokens,
            encoder if isinstance(encoder, GenePCA) else None,
        )
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
        scales: Sequence[Scale] = ("spot", "niche"),
        bars: Progress | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Return the vectors of all spots of a slice by name of block, float32 ``(n, dim)``."""
        out = {
            NAMES[s]: np.empty((len(features), self.config.net.dim), dtype=np.float32)
            for s in scales
        }
        with (bars or Progress(False)).stage("vectors", len(features)) as advance:
            for rows in batches(len(features), BATCH):
                states = self.module.states(features.take(rows).to(self.device), modality, scales)
                for scale, found in states.items():
                    out[NAMES[scale]][rows] = found.float().cpu().numpy()
                advance(len(rows))
        return out

    def plan(self, data: AnnData | Slice, *, orthologs: Any = None, **options: Any) -> Plan:
        """Say what :meth:`embed` would do and how long it would take; same options."""
        scale, modality = options.pop("scale", "both"), options.pop("modality", "both")
        spot_um, image = options.pop("spot_um", None), options.pop("image", None)
        scales = _scales(scale, modality)
        slice_options = {
            k: v for k, v in options.items() if k not in ("key_added", "cache", "progress")
        }
        slice_options |= {} if image is None else {"image": _opened(image)}
        tissue = data if isinstance(data, Slice) else Slice.from_anndata(data, **slice_options)
        match, coverage = self._match(tissue, modality, orthologs)
        reader = self.reader(tissue, match, modality=modality, spot_um=spot_um)
        rate = matmul_rate("float32", self.device)
        seconds = self._seconds(reader.aligned, modality, scales, rate)
        return Plan(
            tissue.n_cells,
            0,
            coverage,
            seconds,
            advice(seconds, self.device, "float32", (rate, rate)),
        )

    def _match(
        self, tissue: Slice, modality: Modality, orthologs: Any
    ) -> tuple[GeneMatch | None, Coverage]:
        if modality == "image":
            return None, self.vocabulary.coverage(tissue, orthologs=orthologs)
        counted(tissue, WHY)
        match = self.vocabulary.match(tissue, orthologs=orthologs)
        return match, match.coverage

    def _seconds(
        self, cut: AlignedSlice, modality: Modality, scales: Sequence[Scale], rate: float
    ) -> float:
        """Estimate the time of a slice, from the operations that one spot costs and the reading of some crops."""
        from torch.utils.flop_counter import FlopCounterMode

        net, start, frozen, spots = self.config.net, time.perf_counter(), None, None
        rows = np.unique(np.linspace(0, len(cut) - 1, min(TRIED, len(cut))).astype(int))
        if cut.spots is not None and "spot" in scales:
            spots = torch.from_numpy(cut.spots[rows])[:1].to(self.device)
        if cut.surroundings is not None and "niche" in scales:
            frozen = torch.from_numpy(cut.surroundings[rows])[:1].to(self.device)
        reading = (time.perf_counter() - start) / len(rows)
        with FlopCounterMode(display=False) as counter:
            if frozen is not None:
                frozen = self.module.image_encoder(frozen)
            if spots is not None and not net.adaptive:
                spots = self.module.image_encoder(spots)
            if cut.match is not None and not isinstance(self.module.gene_encoder, GenePCA):
                self.module.gene_encoder.encode(cut.tissue.counts[rows[:1]], cut.match)
            genes = net.niche_genes.n_genes
            zeros = (
                torch.zeros(1, net.spot_gene_dim),
                torch.zeros(1, genes if net.adaptive else net.spot_gene_dim),
            )
            known, number = (
                torch.ones(1, genes, dtype=torch.bool),
                torch.zeros(1, dtype=torch.int64),
            )
            batch = AlignBatch(spots, frozen, *zeros, known, None, number, number[:, None])
            self.module.states(batch.to(self.device), modality, scales)
        return len(cut) * (reading + counter.get_total_flops() / (rate * REACH))


def _scales(scale: str, modality: str) -> tuple[Scale, ...]:
    if scale not in ("both", "spot", "niche"):
        raise ConfigError(f"scale is {scale!r}; it must be 'both', 'spot' or 'niche'.")
    if modality not in ("both", "genes", "image"):
        raise ConfigError(f"modality is {modality!r}; it must be 'both', 'genes' or 'image'.")
    return ("spot", "niche") if scale == "both" else cast(tuple[Scale, ...], (scale,))


def _opened(image: TissueImage | str | Path, data: Any = None) -> TissueImage | str:
    """Open a picture; the name of one within what is no AnnData stays a name."""
    if isinstance(image, TissueImage):
        return image
    if (
        isinstance(image, str)
        and not Path(image).suffix
        and not isinstance(data, AnnData | Slice | None)
    ):
        return image
    return TissueImage.from_file(image)
