"""Numbers and texts inside a page: compressed, as base64, which has no character that HTML interprets."""

from __future__ import annotations

import base64
import io
import json
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrazzo.arrays import AnyFloats

__all__ = ["FINE", "KINDS", "Blocks", "address", "jpeg", "smallest"]

KINDS = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "f4": np.float32}
FINE = 65_535  # steps between the ends of what is stored in two bytes


class Blocks:
    """The binary blocks of one page.

    Attributes
    ----------
    encoded
        Name of each block to its base64.
    """

    def __init__(self) -> None:
        self.encoded: dict[str, str] = {}

    def numbers(self, values: NDArray[Any], kind: str) -> dict[str, str]:
        """Store an array; returns what the page's script needs to find it.

        Parameters
        ----------
        values
            Any shape; stored flat, little-endian.
        kind
            One of :data:`KINDS`.
        """
        content = np.ascontiguousarray(values, dtype=f"<{kind}").tobytes()
        return {"block": self._store(content), "kind": kind}

    def places(self, values: AnyFloats) -> dict[str, Any]:
        """Store numbers ``(n,)`` in 65,536 even steps between the least and the greatest."""
        low = float(values.min())
        high = float(values.max())
        step = (high - low) / FINE or 1.0
        steps = np.rint((values - low) / step)
        return {**self.numbers(steps, "u2"), "low": low, "step": step}

    def texts(self, values: list[str]) -> dict[str, str]:
        """Store a list of texts."""
        content = json.dumps(values).encode()
        return {"block": self._store(content), "kind": "json"}

    def _store(self, content: bytes) -> str:
        name = f"block-{len(self.encoded)}"
        # counts are mostly runs of zeros, which run lengths pack best; texts and labels repeat in longer patterns
        by_pattern = _deflate(content, zlib.Z_DEFAULT_STRATEGY)
        by_runs = _deflate(content, zlib.Z_RLE)
        smaller = min(by_pattern, by_runs, key=len)
        self.encoded[name] = base64.b64encode(smaller).decode()
        return name


def _deflate(content: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return packer.compress(content) + packer.flush()


def smallest(values: NDArray[np.integer]) -> str:
    """Return the smallest of the unsigned kinds that holds whole numbers from 0."""
    most = int(values.max(initial=0))
    if most < 2**8:
        return "u1"
    return "u2" if most < 2**16 else "u4"


def jpeg(pixels: NDArray[np.uint8]) -> str:
    """Return a picture (H, W, 3) as a data address."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=85, optimize=True)
    return address(stream.getvalue(), "jpeg")


def address(content: bytes, kind: str) -> str:
    """Return the bytes of a picture as a data address."""
    encoded = base64.b64encode(content).decode()
    return f"data:image/{kind};base64,{encoded}"
