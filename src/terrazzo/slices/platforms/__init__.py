"""Readers of the folders that vendors' software writes, one file a vendor."""

from terrazzo.slices.platforms.cosmx import COSMX
from terrazzo.slices.platforms.merscope import MERSCOPE
from terrazzo.slices.platforms.parts import Platform, name_of, sample_name
from terrazzo.slices.platforms.slideseq import SLIDE_SEQ
from terrazzo.slices.platforms.spaceranger import SPACE_RANGER
from terrazzo.slices.platforms.stereoseq import STEREO_SEQ
from terrazzo.slices.platforms.xenium import XENIUM

PLATFORMS = (XENIUM, SPACE_RANGER, MERSCOPE, COSMX, STEREO_SEQ, SLIDE_SEQ)

__all__ = ["PLATFORMS", "Platform", "name_of", "sample_name"]
