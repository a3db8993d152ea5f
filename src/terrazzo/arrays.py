"""Names for array types, once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["AnyFloats", "Bools", "Floats", "Int32s", "Ints", "Vectors", "Words"]

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
AnyFloats = NDArray[np.floating]
Ints = NDArray[np.int64]
Int32s = NDArray[np.int32]
Bools = NDArray[np.bool_]
Words = NDArray[np.object_]
