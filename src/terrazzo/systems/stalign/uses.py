"""Lines on what ST-Align can do with a slice, for ``terrazzo info``."""

from __future__ import annotations

from terrazzo.errors import TerrazzoError
from terrazzo.images import check_spots, needed
from terrazzo.models.uses import LACKS, READY, counts_problem
from terrazzo.slices import Slice
from terrazzo.slices.niches import spot_diameter
from terrazzo.systems.stalign.aligned import microns_per_unit

__all__ = ["uses"]


def uses(tissue: Slice, spot_um: float | None = None) -> dict[str, str]:
    """Return a line for embedding and one for genes from histology; see :func:`terrazzo.models.uses.uses`."""
    no_counts = counts_problem(tissue)
    no_image = _image_problem(tissue, spot_um)
    return {
        "ST-Align": _align_line(no_counts, no_image),
        "image to gene": _image_to_gene_line(no_counts, no_image),
    }


def _image_problem(tissue: Slice, spot_um: float | None) -> str:
    try:
        image = needed(tissue.image, tissue.name)
        per_native = microns_per_unit(tissue, image)
        check_spots(image, tissue.native_coords, tissue.name)
        if spot_um is None:
            spacing = tissue.spacing / tissue.coord_scale * per_native
            spot_diameter(tissue.technology, tissue.lattice_kind, spacing)
    except TerrazzoError as error:
        if tissue.image is None:
            return "no histology (--image FILE, --image-scale)"
        return str(error)
    return ""


def _align_line(no_counts: str, no_image: str) -> str:
    if no_counts and no_image:
        return f"{LACKS}{no_counts} And {no_image}"
    if no_counts:
        return f"{READY}spots and niches, from histology alone (--modality image): {no_counts}"
    if no_image:
        return f"{READY}spots and niches, from genes alone (--modality genes): {no_image}"
    return f"{READY}spots and niches, from histology and genes"


def _image_to_gene_line(no_counts: str, no_image: str) -> str:
    if no_image:
        return LACKS + no_image
    if no_counts:
        return f"{READY}its expression can be predicted; not learned from, nor scored: {no_counts}"
    return f"{READY}its expression can be learned from, predicted and scored"
