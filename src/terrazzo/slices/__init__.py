"""The entrance hall: every input is checked once here and becomes a frozen ``Slice``, the one thing models take."""

from terrazzo.slices.reading import read, read_anndata
from terrazzo.slices.slice import Slice

__all__ = ["Slice", "read", "read_anndata"]
