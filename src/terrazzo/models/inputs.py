"""Inputs of ``embed``: AnnData, SpatialData, a path, or a list of these; each is opened, and written back into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from anndata import AnnData

from terrazzo.errors import ConfigError, InputError
from terrazzo.images import TissueImage
from terrazzo.slices import Opened, Slice, open_slice, open_spatialdata, split_choices

__all__ = ["check_image", "embed_each", "image_of"]

EmbedOne = Callable[[Slice, AnnData], None]  # a checked slice, and the AnnData that is written to


def embed_each(data: Any, slice_options: dict[str, Any], embed_one: EmbedOne) -> Any:
    """Call ``embed_one`` for each slice, and return the data in the form they came in.

    Parameters
    ----------
    data
        AnnData, SpatialData, path, or a list of these.
    slice_options
        Of :meth:`terrazzo.Slice.from_anndata` and :class:`terrazzo.slices.Choices`.
    embed_one
        Called with a checked slice and the AnnData that it came from; writes into that.

    With ``slice_key`` it is called for each section, and its results are put into the whole, rows in their places.

    Returns
    -------
    The AnnData (loaded, if ``data`` is a path; of a store its table), the SpatialData, or a list of them.

    Raises
    ------
    InputError
        Something else, or a slice that cannot be used.
    ConfigError
        One ``image=`` for several slices.
    """
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        if slice_options.get("image") is not None and len(data) > 1:
            raise ConfigError(
                f"one image cannot belong to {len(data)} slices; embed them one by one."
            )
        return [embed_each(one, slice_options, embed_one) for one in data]
    if slice_options.get("image") is not None:
        image = image_of(slice_options["image"], data)
        slice_options = {**slice_options, "image": image}
    opened, remaining = _open(data, slice_options)
    if isinstance(data, AnnData) and not opened.is_split:
        tissue = Slice.from_anndata(data, **slice_options)
        embed_one(tissue, data)
        return data
    check_image(opened, remaining)

    def embed_opened(one: Opened) -> None:
        tissue = Slice.from_opened(one, **remaining)
        embed_one(tissue, one.adata)

    opened.each(embed_opened)
    if isinstance(data, AnnData):
        return data
    table = opened.copy_results_to_table()
    return table if isinstance(data, str | Path) else data


def check_image(opened: Opened, options: dict[str, Any]) -> None:
    """Refuse one image in ``options`` for several sections.

    Raises
    ------
    ConfigError
        ``image=`` beside ``slice_key=``.
    """
    if options.get("image") is not None and opened.is_split:
        raise ConfigError(
            "one image cannot belong to several sections (slice_key=); it is taken from uns['spatial'] of each, or "
            "embed them one by one."
        )


def image_of(image: TissueImage | str | Path, data: Any = None) -> TissueImage | str:
    """Return an image: a path is read with a scale of 1; the name of one within a store or folder stays a name."""
    if isinstance(image, TissueImage):
        return image
    in_memory = data is None or isinstance(data, AnnData | Slice)
    if isinstance(image, str) and not Path(image).suffix and not in_memory:
        return image
    return TissueImage.from_file(image)


def _open(data: Any, options: dict[str, Any]) -> tuple[Opened, dict[str, Any]]:
    """Open a path, or a SpatialData without importing its package; also return the options that remain."""
    choices, rest = split_choices(options)
    if isinstance(data, AnnData):
        name = rest.pop("name", "slice")
        return Opened(data, "AnnData in memory", name, slice_key=choices.slice_key), rest
    if isinstance(data, str | Path):
        return open_slice(data, choices), rest
    if hasattr(data, "tables"):
        return open_spatialdata(data, choices), rest
    raise InputError(
        f"embed takes an AnnData, a SpatialData, a path, or a list of these, not {type(data).__name__}."
    )
