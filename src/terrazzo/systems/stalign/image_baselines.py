"""Image baselines, which need no training: color statistics of the crops, and frozen encoders.

Also :func:`image_model`, which loads any model that reads histology alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import datasets, keys, records
from terrazzo._version import __version__
from terrazzo.arrays import Vectors
from terrazzo.errors import CheckpointError, ConfigError, InputError, did_you_mean
from terrazzo.images import TissueImage
from terrazzo.models import checkpoint as ckpt
from terrazzo.models.hub import is_hub_name
from terrazzo.models.inputs import check_image, embed_each
from terrazzo.models.loading import load
from terrazzo.models.projections import standardized
from terrazzo.progress import Progress
from terrazzo.slices import Choices, Slice, open_slice
from terrazzo.systems.stalign.aligned import AlignedSlice
from terrazzo.systems.stalign.config import STAlignConfig, preset
from terrazzo.systems.stalign.efficientnet import DEFAULT, LITE
from terrazzo.systems.stalign.feature_cache import FeatureCache
from terrazzo.systems.stalign.feature_reader import FeatureReader, Identity
from terrazzo.systems.stalign.features import moments
from terrazzo.systems.stalign.image_encoder import RANDOM, FrozenImageEncoder
from terrazzo.systems.stalign.model import STAlign

__all__ = ["BY_DEFAULT", "COLORS", "NAMES", "ImageBaseline", "ImageModel", "image_model"]

COLORS = "colors"

ENCODER = "encoder"

OWN = "-own"  # end of a name: standardized over each slice

NAMES = (COLORS, COLORS + OWN)

BY_DEFAULT = DEFAULT + OWN  # what reads histology where no other model is named

_LOADED = (*LITE, RANDOM)  # encoders that have a name

_ENCODERS = (*_LOADED, *(name + OWN for name in _LOADED))

BATCH = 64  # crops that are read together


class ImageBaseline:
    """Vectors of the histology at each spot, without training; counts are not read.

    Parameters
    ----------
    name
        ``"colors"``: mean and standard deviation of red, green and blue at two scales, the spot and its niche, 12
        numbers. ``"efficientnet-lite0"`` (``-lite1``, ``-lite2``; of the extra ``histology``): vectors of squares of
        112, 224 and 448 um around each spot, and their mean over the spot and its three neighbors. ``"encoder"``: the
        vector of another frozen encoder for the niche; ``"random"``: of one with random weights. With ``-own``
        (``"colors-own"``), each number is standardized over its slice, which removes most of the differences between
        stains and scanners.
    encoder
        Of ``"encoder"``: a loaded one, or the folder of a transformers vision model.
    config
        How spots and niches are cut, as in :class:`STAlign`; None: its preset ``tiny`` for colors, and niches as
        large as the encoder takes them.
    title
        For tables; None: from the name.

    Raises
    ------
    ConfigError
        No such baseline; an encoder is needed, or passed and not used; the extra ``histology`` is not installed.
    CheckpointError
        A folder that holds no vision model.
    """

    def __init__(
        self,
        name: str = COLORS,
        *,
        encoder: FrozenImageEncoder | str | Path | None = None,
        config: STAlignConfig | None = None,
        title: str | None = None,
    ) -> None:
        known = (*NAMES, *_ENCODERS, ENCODER, ENCODER + OWN)
        if name not in known:
            hint = did_you_mean(name, known, f"There are: {', '.join(known)}.")
            raise ConfigError(f"there is no image baseline {name!r}.{hint}")
        if name.startswith(ENCODER) != (encoder is not None):
            raise ConfigError(
                f"image baseline {name!r}: encoder= belongs to 'encoder', which needs one."
            )
        if name in _ENCODERS:
            encoder = FrozenImageEncoder.from_source(name.removesuffix(OWN))
        elif isinstance(encoder, str | Path):
            encoder = FrozenImageEncoder.from_folder(encoder)
        self.name = name
        self.own_scale = name.endswith(OWN)
        self.encoder = encoder
        self.config = config or _config_for(encoder)
        default_title = "Color statistics" if encoder is None else "Frozen image encoder"
        if name in _ENCODERS:
            default_title = _title(name.removesuffix(OWN))
        if self.own_scale:
            default_title += ", by slice"
        self.title = title or default_title

    @property
    def default_key(self) -> str:
        """Key that :meth:`embed` writes: ``X_colors``, ``X_encoder``, ..."""
        return keys.baseline_key(self.name)

    def embed(
        self,
        data: Any,
        *,
        key_added: str | None = None,
        spot_um: float | None = None,
        cache: str | Path | None = None,
        progress: bool | None = None,
        **slice_options: Any,
    ) -> Any:
        """Write one vector for every spot into ``obsm["X_<name>"]`` (float32, n x d), with provenance in ``uns``.

        Parameters
        ----------
        data
            AnnData, SpatialData, path, or a list of these; with histology.
        key_added
            Another ``obsm`` key.
        spot_um, cache
            As for :meth:`terrazzo.STAlign.embed`.
        progress
            Show progress bars; None: in a terminal and in a notebook.
        **slice_options
            Of :meth:`terrazzo.Slice.from_anndata` (``image``, ...) and :class:`terrazzo.slices.Choices`.

        Returns
        -------
        The AnnData (loaded, if ``data`` is a path), the SpatialData, or a list of them.

        Raises
        ------
        InputError
            No image, or one of unknown scale; spots outside it; x and y swapped.
        """
        key = key_added or self.default_key
        bars = Progress(progress)
        encoder_hash = "" if self.encoder is None else self.encoder.fingerprint()

        def embed_one(tissue: Slice, adata: AnnData) -> None:
            no_genes = np.zeros(0, dtype=np.int64)
            aligned = AlignedSlice.make(tissue, self.config, no_genes, spot_um=spot_um)
            vectors = self._vectors(aligned, cache, spot_um, bars)
            record = {
                "model": self.title,
                "model_type": f"image baseline:{self.name}",
                "checkpoint_sha256": encoder_hash,
                "microns_per_pixel": aligned.microns_per_pixel,
                "spot_um": aligned.diameter,
                "terrazzo_version": __version__,
            }
            records.write(adata, key, vectors, record)

        return embed_each(data, slice_options, embed_one)

    def _vectors(
        self, aligned: AlignedSlice, cache: str | Path | None, spot_um: float | None, bars: Progress
    ) -> Vectors:
        if self.encoder is None:
            vectors = self._colors(aligned, bars)
        else:
            vectors = self._encoded(self.encoder, aligned, cache, spot_um, bars)
        if not self.own_scale:
            return vectors
        mean, deviation = moments(vectors)
        return standardized(vectors, mean, deviation)

    def _encoded(
        self,
        encoder: FrozenImageEncoder,
        aligned: AlignedSlice,
        cache: str | Path | None,
        spot_um: float | None,
        bars: Progress,
    ) -> Vectors:
        """Return the encoder's vectors of niches; taken from the cache of a model with the same encoder and crops."""
        no_gene_encoder: Any = None
        store = None
        identity = None
        fingerprints = None
        if cache is not None:
            store = FeatureCache(cache)
            identity = Identity.of(aligned.tissue, None)
            fingerprints = (encoder.fingerprint(), "")
        reader = FeatureReader(
            self.config,
            aligned.genes,
            encoder,
            no_gene_encoder,
            lambda: aligned,
            cache=store,
            spot_um=spot_um,
            bars=bars,
            identity=identity,
            fingerprints=fingerprints,
        )
        features = reader.read("image", ("niche",))
        return np.asarray(features.niche_image)

    def _colors(self, aligned: AlignedSlice, bars: Progress) -> Vectors:
        parts = [crops for crops in (aligned.spots, aligned.surroundings) if crops is not None]
        n_crops = sum(len(crops) for crops in parts)
        with bars.stage("colors", n_crops) as advance:
            statistics = [_statistics(crops.batches(BATCH), advance) for crops in parts]
        return np.concatenate(statistics, axis=1)


def _title(name: str) -> str:
    """Return the name of an encoder for tables."""
    if name == RANDOM:
        return "Random vision transformer"
    return name.replace("efficientnet-lite", "EfficientNet-Lite")


def _config_for(encoder: FrozenImageEncoder | None) -> STAlignConfig:
    if encoder is None:
        return preset("tiny", 1)
    config = preset("paper", 1, image_encoder=encoder)
    return replace(config, niche_pixels=encoder.image_size, square=True)


def _statistics(batches: Iterable[NDArray[np.uint8]], advance: Callable[[int], None]) -> Vectors:
    """Return mean and standard deviation of each channel of each crop, on a scale from 0 to 1, ``(n, 6)``."""
    blocks = []
    for crops in batches:
        pixels = crops.reshape(len(crops), -1, 3) / 255.0
        means = pixels.mean(axis=1)
        deviations = pixels.std(axis=1)
        blocks.append(np.concatenate([means, deviations], axis=1))
        advance(len(crops))
    return np.concatenate(blocks).astype(np.float32)


@dataclass(frozen=True)
class ImageModel:
    """A model that reads the histology of a slice and nothing else.

    Attributes
    ----------
    title
        Its name in tables.
    model
        With the method ``embed``.
    options
        Of every call of ``embed``.
    key
        ``obsm`` key that it writes.
    """

    title: str
    model: ImageBaseline | STAlign
    options: dict[str, Any]
    key: str = "X_image"

    def embed(self, data: Any, **more: Any) -> Any:
        """Write the vectors of a slice; as the model's ``embed``."""
        options = {"key_added": self.key, **self.options, **more}
        return self.model.embed(data, **options)

    def read(
        self, path: str | Path, slice_key: str | None = None
    ) -> tuple[AnnData, TissueImage | None]:
        """Read a slice and the image beside it, and embed it; return the slice and the image apart.

        With ``slice_key``, the column of ``obs`` that tells its sections apart, each has its own image in
        ``uns["spatial"]``, and None is returned in place of one.

        Raises
        ------
        InputError
            As the model's ``embed``, with the path in front.
        """
        beside = datasets.picture(path)
        opened = open_slice(path, Choices(slice_key=slice_key))
        options = {} if beside is None else {"image": beside}
        check_image(opened, options)
        image = None if opened.is_split else opened.arguments(**options).get("image")
        try:
            opened.each(lambda one: self.embed(one.adata, **one.arguments(**options)))
        except InputError as error:
            fix = ""
            if image is None:
                sheet = Path(path).with_suffix(".json").name
                fix = f' Or write into {sheet} beside it: {{"image": "he.png", "scale": 1.0}}.'
            raise type(error)(f"{path}: {error}{fix}") from error
        return opened.adata, image


def image_model(
    source: str | Path, *, device: str = "cpu", cache: str | Path | None = None
) -> ImageModel:
    """Return a model that reads histology alone, by name or folder.

    Parameters
    ----------
    source
        ``"efficientnet-lite0"`` (``-lite1``, ``-lite2``), ``"colors"`` or ``"random"``, each with ``-own`` to
        standardize by slice; a checkpoint of ST-Align, by folder or name; or the folder of a transformers vision model,
        which then is a frozen encoder of niches.
    device
        Where encoders run.
    cache
        Folder for frozen features, which are read from it the next time.

    Raises
    ------
    CheckpointError
        No such folder, or neither of the two.
    ConfigError
        A checkpoint of a model that sees no images; the extra ``histology`` is not installed.
    """
    options: dict[str, Any] = {"cache": cache}
    if source in (*NAMES, *_ENCODERS):
        baseline = ImageBaseline(str(source))
        if baseline.encoder is not None:
            baseline.encoder.to(device)
        return ImageModel(baseline.title, baseline, options)
    folder = Path(source)
    has_name = is_hub_name(source)
    if not has_name and not folder.is_dir():
        raise CheckpointError(
            f"{source} is not a folder, and not {BY_DEFAULT}, {' or '.join(NAMES)}: pass a checkpoint of ST-Align, "
            "or the folder of a transformers vision model."
        )
    if not has_name and not (folder / ckpt.VOCABULARY).is_file():
        encoder = FrozenImageEncoder.from_folder(folder).to(device)
        title = folder.resolve().name
        return ImageModel(title, ImageBaseline(ENCODER, encoder=encoder, title=title), options)
    model = load(source, device=device)
    if not isinstance(model, STAlign):
        raise ConfigError(
            f"{source} holds a {model.title}, which sees no image; pass a checkpoint of ST-Align."
        )
    return ImageModel(model.title, model, {**options, "modality": "image"})
