"""What each model can do with a slice, and what it lacks: asked of the same checks that the models make."""

from __future__ import annotations

import warnings

from terrazzo.errors import TerrazzoError, TerrazzoWarning
from terrazzo.images import check_spots, needed
from terrazzo.models.base import counted
from terrazzo.slices import Slice
from terrazzo.slices.grids import grid_of
from terrazzo.slices.niches import spot_diameter
from terrazzo.systems.stalign.aligned import microns_per_unit

READY, LACKS = "yes: ", "no: "
COUNTS = "it learns from counts"


def uses(tissue: Slice, spot_um: float | None = None) -> dict[str, str]:
    """Say what can be done with a slice, a line a model.

    Parameters
    ----------
    tissue
        The slice; normalized values and no image are no errors here.
    spot_um
        Diameter of a spot, where the platform's is not meant.

    Returns
    -------
    Model to a line that begins with ``"yes: "`` or ``"no: "``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TerrazzoWarning)  # what they say is in the lines
        no_counts, no_image, grid = _no_counts(tissue), _no_image(tissue, spot_um), _grid(tissue)
    unit = (
        "micrometers"
        if tissue.unit == "um"
        else "spacings (its micrometers are not known: --microns-per-unit)"
    )
    no = LACKS + no_counts
    ranks = f"{no} In Python, allow_normalized=True reads their ranks."
    return {
        "SToFM": ranks if no_counts else f"{READY}a vector for each cell; distances in {unit}",
        "ST as images": no if no_counts else grid,
        "ST-Align": _align(no_counts, no_image),
        "image to gene": _image_to_gene(no_counts, no_image),
    }


def _no_counts(tissue: Slice) -> str:
    try:
        counted(tissue, COUNTS)
    except TerrazzoError as error:
        return str(error)
    return ""


def _no_image(tissue: Slice, spot_um: float | None) -> str:
    try:
        picture = needed(tissue.image, tissue.name)
        per_native = microns_per_unit(tissue, picture)
        check_spots(picture, tissue.native_coords, tissue.name)
        if spot_um is None:
            spot_diameter(
                tissue.technology,
                tissue.lattice_kind,
                tissue.spacing / tissue.coord_scale * per_native,
            )
    except TerrazzoError as error:
        return (
            str(error) if tissue.image is not None else "no histology (--image FILE, --image-scale)"
        )
    return ""


def _grid(tissue: Slice) -> str:
    try:
        grid = grid_of(tissue)
    except TerrazzoError:
        side = max(1, round(tissue.spacing))
        unit = "um" if tissue.unit == "um" else "units of the coordinates"
        return f"{READY}a vector for each cell, in bins of e.g. {side} {unit}: --bin-um {side}"
    return f"{READY}a vector for each cell, on its {grid.layout} grid of {grid.shape[0]} x {grid.shape[1]} sites"


def _align(no_counts: str, no_image: str) -> str:
    if no_counts and no_image:
        return f"{LACKS}{no_counts} And {no_image}"
    if no_counts:
        return f"{READY}spots and niches, from histology alone (--modality image): {no_counts}"
    if no_image:
        return f"{READY}spots and niches, from genes alone (--modality genes): {no_image}"
    return f"{READY}spots and niches, from histology and genes"


def _image_to_gene(no_counts: str, no_image: str) -> str:
    if no_image:
        return LACKS + no_image
    if no_counts:
        return f"{READY}its expression can be predicted; not learned from, nor scored: {no_counts}"
    return f"{READY}its expression can be learned from, predicted and scored"
