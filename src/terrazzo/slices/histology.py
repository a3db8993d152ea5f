"""Histology that a slice brings along: images in its ``uns``, and the one that a JSON file beside it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo.errors import InputError, shortened
from terrazzo.images import TissueImage
from terrazzo.images.files import open_later, open_pixels
from terrazzo.parsing import read_json
from terrazzo.safe_files import check_inside, is_plain_name
from terrazzo.slices.clues import positive_number

__all__ = [
    "Beside",
    "beside",
    "describe_images",
    "files_beside",
    "find_scale",
    "library_image",
    "read_sheet",
    "sheet_image",
    "sheet_of",
]

_FIRST = ("hires", "lowres")  # as Space Ranger and scanpy name them
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_NOT_HISTOLOGY = ("mask", "label", "segment")  # in the names of images that are numbers of cells
_USE = "pass image= (--image FILE --image-scale)"


@dataclass(frozen=True)
class Beside:
    """The image beside the file of a slice; None, and a note where there is one that cannot be used."""

    image: TissueImage | None = None
    note: str = ""


def library_image(images: Any, factors: Any) -> tuple[TissueImage | None, str]:
    """Return the image of a library in ``uns["spatial"]``: hires, else lowres, else the largest other with a scale.

    Parameters
    ----------
    images
        Arrays by name; foreign.
    factors
        Scale factors of the library; foreign.

    Returns
    -------
    The image, None where none can be used; and what was seen and is not used, with the reasons, "" where all is well.
    """
    if not isinstance(images, Mapping):
        return None, ""
    problems = []
    for key in _in_order(images):
        array = images[key]
        try:
            image = _read(key, array, factors)
        except (InputError, TypeError, ValueError) as error:
            problems.append(f"the {key} image in uns['spatial'] is not used: {error}")
            continue
        return image, "; ".join(problems)
    return None, "; ".join(problems)


def _in_order(images: Mapping[str, Any]) -> list[str]:
    """Return the names of images: those that everyone writes first, the others by size."""
    present = {str(key): images[key] for key in images if images[key] is not None}
    first = [key for key in _FIRST if key in present]
    others = [key for key in present if key not in first]
    others.sort(key=lambda key: (_is_mask(key), -_size(present[key])))
    return first + others


def _is_mask(key: str) -> bool:
    """Say whether an image is numbers of cells, by its name."""
    return any(part in key.lower() for part in _NOT_HISTOLOGY)


def _size(array: Any) -> int:
    shape = getattr(array, "shape", ())
    return int(np.prod(shape, dtype=object)) if len(shape) in (2, 3) else 0


def _read(key: str, array: Any, factors: Any) -> TissueImage:
    """Return an image with its scale; InputError says why it cannot be used."""
    if isinstance(array, str | bytes):
        raise InputError(f"it is a path, not pixels; {_USE}")
    if np.ndim(array) not in (2, 3):
        raise InputError(f"it has {np.ndim(array)} axes, not rows, columns and colors")
    if _is_mask(key):
        raise InputError("by its name it is no histology")
    scale, name = find_scale(key, factors)
    if scale is None:
        raise InputError(
            f"its scale is not there; write image_xy / obsm['spatial'] as tissue_{key}_scalef into the library's "
            f"scalefactors, or {_USE}"
        )
    # terrazzo's own key, where pixels are not squares
    scale_y = positive_number(factors, f"{name}_y")
    is_lazy = not isinstance(array, np.ndarray)  # zarr, dask
    read = TissueImage.from_lazy if is_lazy else TissueImage.from_array
    return read(array, scale=scale, scale_y=scale_y)


def find_scale(key: str, factors: Any) -> tuple[float | None, str]:
    """Return the scale of an image by its name (``tissue_<name>_scalef``), and the key that it was found under."""
    bare = key.removeprefix("tissue_")
    names = [key, bare]
    for part in ("image", "img"):
        names.append(bare.removesuffix(f"_{part}"))
        names.append(bare.removeprefix(f"{part}_"))
    for name in names:
        for full in (f"tissue_{name}_scalef", f"{name}_scalef"):
            scale = positive_number(factors, full)
            if scale is not None:
                return scale, full
    return None, ""


def describe_images(spatial: Any) -> str:
    """Return the names of all images of several libraries; "" where there are none."""
    names: list[str] = []
    for library, entry in spatial.items():
        images = entry.get("images") if isinstance(entry, Mapping) else None
        if isinstance(images, Mapping):
            names.extend(f"{library}/{key}" for key in images)
    return ", ".join(names[:4])


# beside the file


def sheet_of(path: Path) -> Path:
    """Return the JSON file that describes the image beside a slice, whether it is there or not."""
    return path.with_suffix(".json")


def beside(path: Path) -> Beside:
    """Return the image that the JSON file beside a slice names; its pixels stay in their file.

    A JSON file that names no image belongs to something else. Nothing raises: a note says what cannot be used.
    """
    sheet = sheet_of(path)
    if not sheet.is_file():
        return Beside()
    try:
        content = read_sheet(sheet)
        if "image" not in content:
            return Beside()
        image = sheet_image(sheet, content, later=True)
    except InputError as error:
        return Beside(note=f"the image beside the slice is not used: {error}; {_USE}")
    return Beside(image)


def files_beside(path: Path) -> list[Path]:
    """Return the files that the image beside a slice is in: the JSON file and the picture; none where there is none."""
    found = beside(path)
    if found.image is None:
        return []
    sheet = sheet_of(path)
    return [sheet, sheet.with_name(read_sheet(sheet)["image"])]


def read_sheet(sheet: Path) -> dict[str, Any]:
    """Read the JSON file that describes the image of a slice.

    Raises
    ------
    InputError
        It is not readable.
    """
    check_inside(sheet, sheet.parent)
    content = read_json(sheet, InputError)
    return content if isinstance(content, dict) else {}


def sheet_image(sheet: Path, content: Mapping[str, Any], *, later: bool = False) -> TissueImage:
    """Open the image that a JSON file describes; with ``later`` its pixels are decoded when they are needed.

    Raises
    ------
    InputError
        It names no image of its folder, or one that cannot be read; a scale that is not a positive number.
    """
    name = content.get("image", "")
    if not is_plain_name(name) or Path(name).suffix.lower() not in _SUFFIXES:
        kinds = ", ".join(_SUFFIXES)
        raise InputError(
            f"{sheet}: image is {shortened(name)}; it must name a file of the same folder ({kinds})."
        )
    picture = sheet.with_name(name)
    check_inside(picture, sheet.parent)
    scale = _factor(content, "scale", sheet) or 0.0
    scale_y = _factor(content, "scale_y", sheet)
    open_file = open_later if later else open_pixels
    return TissueImage(open_file(picture), scale=scale, scale_y=scale_y)


def _factor(content: Mapping[str, Any], name: str, sheet: Path) -> float | None:
    """Return a scale that a JSON file states; None for none."""
    value = content.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise InputError(
            f"{sheet}: {name} must be a positive finite number, not {shortened(value)}."
        )
    return float(value)
