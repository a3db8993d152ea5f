"""The picture room: histology, its scale against the slice, crops of any physical size, and whether spots lie on it."""

from terrazzo.images.crops import Crops
from terrazzo.images.pixels import MAX_PIXELS
from terrazzo.images.placement import Placement, check_spots, needed
from terrazzo.images.stains import IMAGENET, ChannelStatistics
from terrazzo.images.tissue import TissueImage

__all__ = [
    "IMAGENET",
    "MAX_PIXELS",
    "ChannelStatistics",
    "Crops",
    "Placement",
    "TissueImage",
    "check_spots",
    "needed",
]
