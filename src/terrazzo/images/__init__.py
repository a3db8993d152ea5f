"""Histology images: their scale against the slice, crops of any physical size, and a check that spots are on tissue."""

from terrazzo.images.crops import Crops
from terrazzo.images.pixels import MAX_PIXELS
from terrazzo.images.placement import Placement, check_spots, needed
from terrazzo.images.tissue import TissueImage

__all__ = [
    "MAX_PIXELS",
    "Crops",
    "Placement",
    "TissueImage",
    "check_spots",
    "needed",
]
