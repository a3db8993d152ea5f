"""Features of a slice, made or found: what each depends on, and nothing that lies there is made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrazzo.arrays import Ints
from terrazzo.files import hash_json
from terrazzo.genes import GeneMatch
from terrazzo.images import Crops
from terrazzo.models.frozen import FrozenEncoder
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.systems.stalign.aligned import AlignedSlice
from terrazzo.systems.stalign.config import STAlignConfig
from terrazzo.systems.stalign.feature_cache import FeatureCache, Made
from terrazzo.systems.stalign.features import (
    Features,
    Modality,
    NicheValues,
    Rows,
    Scale,
    Standards,
    batches,
    moments,
)
from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder

CROPS = 64  # that are read, or encoded, together


ROWS = 4096


@dataclass(frozen=True)
class Identity:
    """What a slice is, in hashes: its features are found again by them.

    Attributes
    ----------
    counts
        Of counts and coordinates.
    image
        Of the histology, and of how it lies on the slice.
    genes
        Of how its genes meet the vocabulary.
    """

    counts: str
    image: str = ""
    genes: str = ""

    @classmethod
    def of(cls, tissue: Slice, match: GeneMatch | None) -> Identity:
        """Hash a slice in memory; a corpus has hashes of its members already."""
        held, image = tissue.image, ""
        if held is not None:
            place = [
                *held.scales.tolist(),
                *held.offset,
                held.microns_per_pixel,
                tissue.coord_scale,
                tissue.unit,
            ]
            spots = [tissue.technology, tissue.lattice_kind]
            image = hash_json([held.content_hash, place, spots])
        if match is None:
            return cls(tissue.content_hash(), image)
        return cls.of_hashes(tissue.content_hash(), image, match.column_token, match.column_median)

    @classmethod
    def of_hashes(
        cls, counts: str, image: str, token: NDArray[Any], median: NDArray[Any]
    ) -> Identity:
        """Take hashes that are known already, and hash token and median of each gene (column) of the slice."""
        return cls(counts, image, hash_json([token.tolist(), median.tolist()]))


class FeatureReader:
    """Reads the features of one slice.

    Parameters
    ----------
    config, genes, image_encoder, gene_encoder
        The model's settings, tokens of AE-Gene and frozen parts.
    make
        Cuts the slice; called only where something must be made.
    identity, cache
        Where features are kept, and as what; None: in memory, and crops and values are made when they are asked for.
    spot_um
        In place of the config's.
    bars
        Progress.
    marks
        Fingerprints of both encoders, where they are known: of large ones they take seconds.
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
        marks: tuple[str, str] | None = None,
    ) -> None:
        self.config, self.genes = config, genes
        self.image_encoder, self.gene_encoder = image_encoder, gene_encoder
        self._make, self._identity, self._cache = make, identity or Identity(""), cache
        self.bars = bars or Progress(False)
        self._given_marks = marks
        about = self._identity
        self._cut = [about.counts, config.neighbors]
        self._placed = [
            *self._cut,
            about.image,
            config.spot_um if spot_um is None else spot_um,
            config.square,
        ]
        self._read = [*self._cut, about.genes]

    @cached_property
    def aligned(self) -> AlignedSlice:
        """The slice, cut."""
        return self._make()

    def read(
        self, modality: Modality = "both", scales: Sequence[Scale] = ("spot", "niche")
    ) -> Features:
        """Return the features that these vectors need."""
        parts: dict[str, Rows] = {}
        adaptive, standards, colors = self.config.net.adaptive, {}, None
        members = self._array(["members", *self._cut], lambda: _whole(self.aligned.niches.members))
        if modality != "genes" and "spot" in scales:
            parts["spot_image"] = (
                self._spot_crops() if adaptive else self._images("spots", self.config.spot_pixels)
            )
            if adaptive and self.config.colors == "slice":
                key = ["colors", *self._placed, self.config.spot_pixels]
                colors = self._array(key, lambda: _whole(self.aligned.colors()))
        if modality != "genes" and "niche" in scales:
            parts["niche_image"] = self._images("surroundings", self.config.niche_pixels)
        if modality != "image" and "spot" in scales:
            parts["spot_genes"] = self._gene_features("spot")
        if modality != "image" and "niche" in scales:
            parts["niche_genes"] = (
                self._niche_values() if adaptive else self._gene_features("niche")
            )
        if self.config.standardize == "slice":
            standards = {
                name: self._standards(name, rows)
                for name, rows in parts.items()
                if name in self._keys
            }
        return Features(members, self._known(modality), colors=colors, standards=standards, **parts)

    @cached_property
    def _keys(self) -> dict[str, Any]:
        """What decides each part that can be standardized."""
        net, pixels = self.config.net, self.config.niche_pixels
        frozen = {
            "niche_image": self._image_key("surroundings", pixels),
            "spot_genes": self._gene_key("spot"),
        }
        if net.adaptive:
            return {**frozen, "niche_genes": self._value_key}
        spots = self._image_key("spots", self.config.spot_pixels)
        return {**frozen, "spot_image": spots, "niche_genes": self._gene_key("niche")}

    @cached_property
    def _marks(self) -> tuple[str, str]:
        """Fingerprints of the frozen encoders; without a cache nothing is found by them."""
        if self._cache is None:
            return "", ""
        return self._given_marks or (
            self.image_encoder.fingerprint(),
            self.gene_encoder.fingerprint(),
        )

    @cached_property
    def _value_key(self) -> list[Any]:
        return ["values", *self._read, self.config.normalize, self.genes.tolist()]

    def _image_key(self, which: str, pixels: int) -> list[Any]:
        return ["images", which, *self._placed, pixels, self._marks[0]]

    def _gene_key(self, scale: Scale) -> list[Any]:
        return ["genes", scale, *self._read, self._marks[1]]

    def _array(self, key: Any, make: Callable[[], Made]) -> NDArray[Any]:
        if self._cache is not None:
            return self._cache.array(key, make)
        shape, dtype, blocks = make()
        held = list(blocks)
        return np.asarray(np.concatenate(held) if held else np.zeros(shape), dtype=dtype)

    def _known(self, modality: Modality) -> NDArray[np.bool_]:
        if modality == "image":
            return np.zeros(len(self.genes), dtype=bool)
        return self._array(["known", *self._value_key], lambda: _whole(self.aligned.known))

    def _standards(self, name: str, rows: Rows) -> Standards:
        both = self._array(
            ["standards", self._keys[name]], lambda: _whole(np.stack(moments(rows, ROWS)))
        )
        return both[0], both[1]

    def _crops(self, which: str) -> Crops:
        found: Crops | None = getattr(self.aligned, which)
        if found is None:
            raise ValueError("the slice was cut without its image")
        return found

    def _spot_crops(self) -> Rows:
        if self._cache is None:
            return self._crops("spots")
        side = self.config.spot_pixels

        def made() -> Made:
            crops = self._crops("spots")
            return (
                (len(crops), side, side, 3),
                np.uint8,
                self._counted(crops.batches(CROPS), "spot crops", len(crops)),
            )

        return self._array(["crops", *self._placed, side], made)

    def _images(self, which: str, pixels: int) -> Rows:
        def made() -> Made:
            crops = self._crops(which)
            label = "spot images" if which == "spots" else "niche images"
            found = self._counted(map(self._encode, crops.batches(CROPS)), label, len(crops))
            return (len(crops), self.image_encoder.output_dim), np.float32, found

        return self._array(self._image_key(which, pixels), made)

    def _encode(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.image_encoder.features([crops])

    def _gene_features(self, scale: Scale) -> Rows:
        def made() -> Made:
            cut = self.aligned
            counts = cut.tissue.counts if scale == "spot" else cut.niche_counts()
            with self.bars.stage(f"{scale} genes", len(cut)) as advance:
                return _whole(self.gene_encoder.encode(counts, cut.matched, advance))

        return self._array(self._gene_key(scale), made)

    def _niche_values(self) -> Rows:
        if self._cache is None:
            return NicheValues(self.aligned)

        def made() -> Made:
            cut = self.aligned
            return (
                (len(cut), len(self.genes)),
                np.float32,
                map(cut.niche_values, batches(len(cut), ROWS)),
            )

        return self._array(self._value_key, made)

    def _counted(self, blocks: Iterator[Any], label: str, n: int) -> Iterator[Any]:
        with self.bars.stage(label, n) as advance:
            for block in blocks:
                yield block
                advance(len(block))


def _whole(array: NDArray[Any]) -> Made:
    return array.shape, array.dtype, [array]
