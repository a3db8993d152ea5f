"""The entrance hall: every input is checked once here and becomes a frozen ``Slice``, the one thing models take."""

from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.reading import (
    content_files,
    open_slice,
    read,
    read_anndata,
    split_choices,
    store_of,
)
from terrazzo.slices.slice import Slice
from terrazzo.slices.spatialdata import open_spatialdata

__all__ = [
    "Choices",
    "Opened",
    "Slice",
    "content_files",
    "open_slice",
    "open_spatialdata",
    "read",
    "read_anndata",
    "split_choices",
    "store_of",
]
