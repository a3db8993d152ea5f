"""Read and check slices: every input becomes a frozen ``Slice``, the one thing that models take."""

from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.parts import takes_all
from terrazzo.slices.platforms import sample_name
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
from terrazzo.slices.spatialdata_writing import copy_with_table, write_table

__all__ = [
    "Choices",
    "Opened",
    "Slice",
    "content_files",
    "copy_with_table",
    "open_slice",
    "open_spatialdata",
    "read",
    "read_anndata",
    "sample_name",
    "split_choices",
    "store_of",
    "takes_all",
    "write_table",
]
