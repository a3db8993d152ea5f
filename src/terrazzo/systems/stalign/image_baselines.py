"""What histology says without any training here: colors of the crops, and frozen encoders, behind the verb ``embed``.

Also the one way to a model that reads histology alone, whatever it is (:func:`image_model`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import datasets, keys
from terrazzo._version import __version__
from terrazzo.arrays import Vectors
from terrazzo.errors import CheckpointError, ConfigError, InputError, did_you_mean
from terrazzo.images import TissueImage
from terrazzo.models import checkpoint as ckpt
from terrazzo.models.loading import load
from terrazzo.progress import Progress
from terrazzo.slices import Slice, open_slice
from terrazzo.systems.stalign.aligned import AlignedSlice
from terrazzo.systems.stalign.config import STAlignConfig, preset
from terrazzo.systems.stalign.feature_cache import FeatureCache
from terrazzo.systems.stalign.feature_reader import FeatureReader, Identity
from terrazzo.systems.stalign.features import moments, standardized
from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder
from terrazzo.systems.stalign.model import STAlign

COLORS, OWN = "colors", "-own"


NAMES = (COLORS, COLORS + OWN)


_BATCH = 64  # crops that are read together


class ImageBaseline:
    """Vectors of the histology at each spot that nothing was trained for; counts are not looked at.

    Parameters
    ----------
    name
        ``"colors"``: mean and standard deviation of red, green and blue at two scales, the spot and its niche, 12
        numbers. ``"encoder"``: what a frozen encoder says of the niche. With ``-own``, ``"colors-own"``: each number
        standardized over its slice, which takes away most of what stains and scanners do.
    encoder
        Of ``"encoder"``: a loaded one, or the folder of a transformers vision model.
    config
        How spots and niches are cut, as :class:`STAlign` does; None: its preset ``tiny`` for colors, and niches as
        large as the encoder takes them.
    title
        For tables; None: from the name.

    Raises
    ------
    ConfigError
        No such baseline; an encoder is needed, or given and not looked at.
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
        known = (*NAMES, "encoder", "encoder" + OWN)
        if name not in known:
            hint = did_you_mean(name, known, f"There are: {', '.join(known)}.")
            raise ConfigError(f"there is no image baseline {name!r}.{hint}")
        if name.startswith("encoder") != (encoder is not None):
            raise ConfigError(
                f"image baseline {name!r}: encoder= belongs to 'encoder', which needs one."
            )
        self.name, self.own_scale = name, name.endswith(OWN)
        self.encoder = (
            FrozenImageEncoder.from_folder(encoder) if isinstance(encoder, str | Path) else encoder
        )
        self.config = config or _cut_for(self.encoder)
        plain = "Color statistics" if self.encoder is None else "Frozen image encoder"
        self.title = title or plain + (", by slice" if self.own_scale else "")

    @property
    def default_key(self) -> str:
        """Key that :meth:`embed` writes: ``X_colors``, ``X_encoder``, ..."""
        return keys.baseline_key(self.name)

    def embed(
        self,
        adata: AnnData,
        *,
        key_added: str | None = None,
        image: TissueImage | None = None,
        spot_um: float | None = None,
        cache: str | Path | None = None,
        progress: bool | None = None,
        **slice_options: Any,
    ) -> AnnData:
        """Write ``obsm["X_<name>"]``, float32 ``(n_cells, d)``.

        Parameters
        ----------
        adata
            A slice with its histology.
        key_added
            Another ``obsm`` key.
        image, spot_um, cache, progress, **slice_options
            As for :meth:`terrazzo.STAlign.embed`.

        Raises
        ------
        InputError
            No image, or one of unknown scale; spots outside it; x and y swapped.
        """
        tissue = Slice.from_anndata(
            adata, **(slice_options | ({} if image is None else {"image": image}))
        )
        cut = AlignedSlice.make(tissue, self.config, np.zeros(0, dtype=np.int64), spot_um=spot_um)
        key, bars = key_added or self.default_key, Progress(progress)
        found = (
            self._colors(cut, bars)
            if self.encoder is None
            else self._encoded(cut, cache, spot_um, bars)
        )
        if self.own_scale:
            found = standardized(found, *moments(found))
        adata.obsm[key] = found
        record = {
            "model": self.title,
            "model_type": f"image baseline:{self.name}",
            "checkpoint_sha256": "" if self.encoder is None else self.encoder.fingerprint(),
            "microns_per_pixel": cut.microns_per_pixel,
            "spot_um": cut.diameter,
            "terrazzo_version": __version__,
        }
        adata.uns[keys.UNS] = {**dict(adata.uns.get(keys.UNS, {})), key: record}
        return adata

    def _encoded(
        self, cut: AlignedSlice, cache: str | Path | None, spot_um: float | None, bars: Progress
    ) -> Vectors:
        """Return what the encoder says; found where a model with the same encoder and cut has left it."""
        held: Any = self.encoder
        nobody: Any = None  # no gene is read
        store = None if cache is None else FeatureCache(cache)
        reader = FeatureReader(
            self.config,
            cut.genes,
            held,
            nobody,
            lambda: cut,
            cache=store,
            spot_um=spot_um,
            bars=bars,
            identity=None if store is None else Identity.of(cut.tissue, None),
            marks=None if store is None else (held.fingerprint(), ""),
        )
        return np.asarray(reader.read("image", ("niche",)).niche_image)

    def _colors(self, cut: AlignedSlice, bars: Progress) -> Vectors:
        parts = [crops for crops in (cut.spots, cut.surroundings) if crops is not None]
        with bars.stage("colors", sum(map(len, parts))) as advance:
            return np.concatenate(
                [_statistics(crops.batches(_BATCH), advance) for crops in parts], axis=1
            )


def _cut_for(encoder: FrozenImageEncoder | None) -> STAlignConfig:
    if encoder is None:
        return preset("tiny", 1)
    return replace(
        preset("paper", 1, image_encoder=encoder), niche_pixels=encoder.image_size, square=True
    )


def _statistics(batches: Iterable[NDArray[np.uint8]], advance: Callable[[int], None]) -> Vectors:
    """Return mean and standard deviation of each channel of each crop, on a scale from 0 to 1, ``(n, 6)``."""
    out = []
    for crops in batches:
        pixels = crops.reshape(len(crops), -1, 3) / 255.0
        out.append(np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1))
        advance(len(crops))
    return np.concatenate(out).astype(np.float32)


@dataclass(frozen=True)
class ImageModel:
    """Something that reads the histology of a slice and nothing else.

    Attributes
    ----------
    title
        What it is.
    write
        Takes a slice, ``key_added`` and the other options of ``embed``.
    options
        Of every call.
    key
        ``obsm`` key that it writes.
    """

    title: str
    write: Callable[..., Any]
    options: dict[str, Any]
    key: str = "X_image"

    def embed(self, adata: AnnData, **more: Any) -> AnnData:
        """Write the vectors of a slice."""
        return self.write(adata, **{"key_added": self.key, **self.options, **more})

    def read(self, path: str | Path) -> tuple[AnnData, TissueImage | None]:
        """Read a slice and the picture beside it, and embed it; returns both, the picture not within the slice.

        Raises
        ------
        InputError
            As the model's ``embed``, with the path in front.
        """
        beside = datasets.picture(path)
        opened = open_slice(path)
        told = opened.arguments(**({} if beside is None else {"image": beside}))
        try:
            self.embed(opened.adata, **told)
        except InputError as error:
            sheet = Path(path).with_suffix(".json").name
            mend = (
                ""
                if told.get("image") is not None
                else f' Or say in {sheet} beside it: {{"image": "he.png", "scale": 1.0}}.'
            )
            raise type(error)(f"{path}: {error}{mend}") from error
        return opened.adata, told.get("image")


def image_model(
    source: str | Path, *, device: str = "cpu", cache: str | Path | None = None
) -> ImageModel:
    """Return what reads histology alone, by name or folder.

    Parameters
    ----------
    source
        ``"colors"`` or ``"colors-own"``; a checkpoint of ST-Align; or the folder of a transformers vision model,
        which then is a frozen encoder of niches.
    device
        Where encoders run.
    cache
        Folder in which frozen features are kept and found again.

    Raises
    ------
    CheckpointError
        No such folder, or neither of the two.
    ConfigError
        A checkpoint of a model that sees no images.
    """
    options: dict[str, Any] = {"cache": cache}
    if source in NAMES:
        baseline = ImageBaseline(str(source))
        return ImageModel(baseline.title, baseline.embed, options)
    folder = Path(source)
    if not folder.is_dir():
        raise CheckpointError(
            f"{source} is no folder here, and not {' or '.join(NAMES)}: give a checkpoint of ST-Align, or the folder "
            "of a transformers vision model."
        )
    if not (folder / ckpt.VOCABULARY).is_file():
        encoder = FrozenImageEncoder.from_folder(folder)
        baseline = ImageBaseline("encoder", encoder=encoder.to(device), title=folder.resolve().name)
        return ImageModel(baseline.title, baseline.embed, options)
    model = load(folder, device=device)
    if not isinstance(model, STAlign):
        raise ConfigError(
            f"{source} holds a {model.title}, which sees no image; give a checkpoint of ST-Align."
        )
    return ImageModel(model.title, model.embed, {**options, "modality": "image"})
