"""The entrance hall: every input is checked once here and becomes a frozen ``Slice``, the one thing models take."""

from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.reading import open_slice, read, read_anndata
from terrazzo.slices.slice import Slice

__all__ = ["Choices", "Opened", "Slice", "open_slice", "read", "read_anndata"]
