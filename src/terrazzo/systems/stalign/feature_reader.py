"""Reader of the features of one slice: what each depends on; what the cache has is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrazzo.arrays import Bools, Ints, Vectors
from terrazzo.files import hash_json
from terrazzo.genes import GeneMatch
from terrazzo.images import Crops, TissueImage
from terrazzo.models.frozen import FrozenEncoder
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.systems.stalign.aligned import AlignedSlice
from terrazzo.systems.stalign.config import STAlignConfig
from terrazzo.systems.stalign.feature_cache import FeatureCache, NewArray
from terrazzo.systems.stalign.features import (
    Features,
    Modality,
    NicheValues,
    Rows,
    Scale,
    Standards,
    batches,
    moments,
    one_scale,
)
from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder

__all__ = ["FeatureReader", "Identity"]

CROPS = 64  # that are read, or encoded, together

ROWS = 4096  # of values that are computed together

_COMPONENTS = (
    "spot_genes",
    "niche_components",
)  # frozen features of genes, which may keep their proportions


@dataclass(frozen=True)
class Identity:
    """Hashes of a slice, which name its features in a cache.

    Attributes
    ----------
    counts
        Of counts and coordinates.
    image
        Of the histology, and of its place on the slice.
    genes
        Of the match of its genes to the vocabulary.
    """

    counts: str
    image: str = ""
    genes: str = ""

    @classmethod
    def of(cls, tissue: Slice, match: GeneMatch | None) -> Identity:
        """Hash a slice in memory; a corpus has hashes of its members already."""
        counts = tissue.content_hash()
        image = "" if tissue.image is None else _image_hash(tissue, tissue.image)
        if match is None:
            return cls(counts, image)
        return cls.of_hashes(counts, image, match.column_token, match.column_median)

    @classmethod
    def of_hashes(
        cls, counts: str, image: str, token: NDArray[Any], median: NDArray[Any]
    ) -> Identity:
        """Take hashes that are known already, and hash token and median of each gene (column) of the slice."""
        genes = hash_json([token.tolist(), median.tolist()])
        return cls(counts, image, genes)


def _image_hash(tissue: Slice, image: TissueImage) -> str:
    place = [
        *image.scales.tolist(),
        *image.offset,
        image.microns_per_pixel,
        tissue.coord_scale,
        tissue.unit,
    ]
    spots = [tissue.technology, tissue.lattice_kind]
    return hash_json([image.content_hash, place, spots])


class FeatureReader:
    """Reader of the features of one slice.

    Parameters
    ----------
    config, genes, image_encoder, gene_encoder
        The model's settings, tokens of AE-Gene and frozen parts.
    make
        Returns the slice with niches and crops; called only where something must be computed.
    identity, cache
        Hashes of the slice, and where features are stored; None: in memory, and crops and values are computed when
        they are indexed.
    spot_um
        In place of the config's.
    bars
        Progress.
    fingerprints
        Of both encoders, where they are known: of large ones they take seconds.
    """

    def __init__(
        self,
        config: STAlignConfig,
        genes: Ints,
        image_encoder: FrozenImageEncoder,
        gene_encoder: FrozenEncoder,
        make: Callable[[], AlignedSlice],
        *,
        identity: Identity | None = None,
        cache: FeatureCache | None = None,
        spot_um: float | None = None,
        bars: Progress | None = None,
        fingerprints: tuple[str, str] | None = None,
    ) -> None:
        self.config = config
        self.genes = genes
        self.image_encoder = image_encoder
        self.gene_encoder = gene_encoder
        self.bars = bars or Progress(False)
        self._make = make
        self._cache = cache
        self._known_fingerprints = fingerprints
        identity = identity or Identity("")
        side = config.spot_um if spot_um is None else spot_um
        # parts of the keys: what niches depend on, what crops do, what values do
        self._niche_key: list[Any] = [identity.counts, config.neighbors]
        self._crop_key: list[Any] = [*self._niche_key, identity.image, side, config.square]
        self._match_key: list[Any] = [*self._niche_key, identity.genes]

    @cached_property
    def aligned(self) -> AlignedSlice:
        """The slice with niches and crops."""
        return self._make()

    def read(
        self, modality: Modality = "both", scales: Sequence[Scale] = ("spot", "niche")
    ) -> Features:
        """Return the features that these vectors need."""
        adaptive = self.config.net.adaptive
        members = self._array(
            ["members", *self._niche_key], lambda: NewArray.of(self.aligned.niches.members)
        )
        parts: dict[str, Rows] = {}
        colors = None
        if modality != "genes" and "spot" in scales:
            if adaptive:
                parts["spot_image"] = self._spot_crops()
                colors = self._colors()
            else:
                parts["spot_image"] = self._images("spots", self.config.spot_pixels)
        net = self.config.net
        spot_starts_from_niche = net.residual and net.own_first
        if modality != "genes" and ("niche" in scales or spot_starts_from_niche):
            parts["niche_image"] = self._niche_images()
        if modality != "image" and "spot" in scales:
            parts["spot_genes"] = self._gene_features("spot")
        if modality != "image" and "niche" in scales:
            if adaptive:
                parts["niche_genes"] = self._niche_values()
            else:
                parts["niche_genes"] = self._gene_features("niche")
            if net.residual:
                parts["niche_components"] = self._niche_components()
        standards: dict[str, Standards] = {}
        if self.config.standardize == "slice":
            for name, rows in parts.items():
                if name in self._keys:
                    standards[name] = self._standards(name, rows)
        return Features(members, self._known(modality), colors=colors, standards=standards, **parts)

    @cached_property
    def _keys(self) -> dict[str, Any]:
        """Key of each part that can be standardized."""
        keys: dict[str, Any] = {
            "niche_image": self._niche_key_of_images,
            "spot_genes": self._gene_key("spot"),
            "niche_components": ["mean over niches", *self._gene_key("spot")],
        }
        if self.config.net.adaptive:
            keys["niche_genes"] = self._value_key
        else:
            keys["niche_genes"] = self._gene_key("niche")
            keys["spot_image"] = self._image_key("spots", self.config.spot_pixels)
        return keys

    @cached_property
    def _fingerprints(self) -> tuple[str, str]:
        """Fingerprints of the frozen encoders; without a cache no key is used, and these are empty."""
        if self._cache is None:
            return "", ""
        if self._known_fingerprints is not None:
            return self._known_fingerprints
        return self.image_encoder.fingerprint(), self.gene_encoder.fingerprint()

    @cached_property
    def _value_key(self) -> list[Any]:
        return ["values", *self._match_key, self.config.normalize, self.genes.tolist()]

    def _image_key(self, which: str, pixels: int) -> list[Any]:
        image_fingerprint, _ = self._fingerprints
        return ["images", which, *self._crop_key, pixels, image_fingerprint]

    def _gene_key(self, scale: Scale) -> list[Any]:
        _, gene_fingerprint = self._fingerprints
        return ["genes", scale, *self._match_key, gene_fingerprint]

    def _array(self, key: Any, make: Callable[[], NewArray]) -> NDArray[Any]:
        """Return an array from the cache, or computed."""
        if self._cache is not None:
            return self._cache.array(key, make)
        array = make()
        blocks = list(array.blocks)
        if not blocks:
            return np.zeros(array.shape, dtype=array.dtype)
        return np.asarray(np.concatenate(blocks), dtype=array.dtype)

    def _known(self, modality: Modality) -> Bools:
        if modality == "image":
            return np.zeros(len(self.genes), dtype=bool)
        return self._array(["known", *self._value_key], lambda: NewArray.of(self.aligned.known))

    def _colors(self) -> Vectors | None:
        if self.config.colors != "slice":
            return None
        key = ["colors", *self._crop_key, self.config.spot_pixels]
        return self._array(key, lambda: NewArray.of(self.aligned.colors()))

    def _standards(self, name: str, rows: Rows) -> Standards:
        def make() -> NewArray:
            return NewArray.of(np.stack(moments(rows, ROWS)))

        mean, deviation = self._array(["standards", self._keys[name]], make)
        if self.config.components == "kept" and name in _COMPONENTS:
            return one_scale((mean, deviation))
        return mean, deviation

    def _crops(self, which: str) -> Crops:
        crops: Crops | None = getattr(self.aligned, which)
        if crops is None:
            raise ValueError("the slice was cut without its image")
        return crops

    def _spot_crops(self) -> Rows:
        if self._cache is None:
            return self._crops("spots")
        side = self.config.spot_pixels

        def make() -> NewArray:
            crops = self._crops("spots")
            shape = (len(crops), side, side, 3)
            blocks = self._with_bar(crops.batches(CROPS), "spot crops", len(crops))
            return NewArray(shape, np.uint8, blocks)

        return self._array(["crops", *self._crop_key, side], make)

    def _images(self, which: str, pixels: int) -> Rows:
        def make() -> NewArray:
            crops = self._crops(which)
            label = "spot images" if which == "spots" else "niche images"
            encoded = map(self._encode, crops.batches(CROPS))
            shape = (len(crops), self.image_encoder.output_dim)
            return NewArray(shape, np.float32, self._with_bar(encoded, label, len(crops)))

        return self._array(self._image_key(which, pixels), make)

    @property
    def _niche_key_of_images(self) -> list[Any]:
        key = self._image_key("surroundings", self.config.niche_pixels)
        if not self.config.niche_um:
            return key
        return ["squares", list(self.config.niche_um), *key]

    def _niche_images(self) -> Rows:
        """Return the vectors of niches: of their box, or of squares around each spot and their mean over the niche."""
        if not self.config.niche_um:
            return self._images("surroundings", self.config.niche_pixels)

        def make() -> NewArray:
            aligned = self.aligned
            sizes = []
            for side, crops in zip(self.config.niche_um, aligned.squares, strict=True):
                encoded = map(self._encode, crops.batches(CROPS))
                label = f"images of {side:g} um"
                sizes.append(np.concatenate(list(self._with_bar(encoded, label, len(crops)))))
            own = np.concatenate(sizes, axis=1)
            around: Any = aligned.niches.mean(own)
            return NewArray.of(np.concatenate([own, around], axis=1))

        return self._array(self._niche_key_of_images, make)

    def _encode(self, crops: NDArray[np.uint8]) -> Vectors:
        return self.image_encoder.features([crops])

    def _gene_features(self, scale: Scale) -> Rows:
        def make() -> NewArray:
            aligned = self.aligned
            counts = aligned.tissue.counts if scale == "spot" else aligned.niche_counts()
            with self.bars.stage(f"{scale} genes", len(aligned)) as advance:
                features = self.gene_encoder.encode(counts, aligned.matched, advance)
            return NewArray.of(features)

        return self._array(self._gene_key(scale), make)

    def _niche_components(self) -> Rows:
        """Return the mean over each niche of the frozen vectors of its spots' genes."""

        def make() -> NewArray:
            means: Any = self.aligned.niches.mean(np.asarray(self._gene_features("spot")[:]))
            return NewArray.of(means)

        return self._array(self._keys["niche_components"], make)

    def _niche_values(self) -> Rows:
        if self._cache is None:
            return NicheValues(self.aligned)

        def make() -> NewArray:
            aligned = self.aligned
            blocks = map(aligned.niche_values, batches(len(aligned), ROWS))
            return NewArray((len(aligned), len(self.genes)), np.float32, blocks)

        return self._array(self._value_key, make)

    def _with_bar(self, blocks: Iterator[Any], label: str, n: int) -> Iterator[Any]:
        """Yield blocks of rows, and advance a progress bar."""
        with self.bars.stage(label, n) as advance:
            for block in blocks:
                yield block
                advance(len(block))
