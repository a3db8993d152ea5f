"""Numbers and texts inside a page: compressed, as base64, which holds no character that HTML knows."""

from __future__ import annotations

import base64
import io
import json
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "f4": np.float32}
FINE = 65_535  # steps between the ends of what is stored in two bytes


class Blocks:
    """The binary blocks of one page; ``held`` is the base64 of each by its name."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}

    def numbers(self, values: NDArray[Any], kind: str) -> dict[str, str]:
        """Keep an array; returns what the page's script needs to find it.

        Parameters
        ----------
        values
            Any shape; stored flat, little-endian.
        kind
            One of :data:`KINDS`.
        """
        return {
            "block": self._keep(np.ascontiguousarray(values, dtype=f"<{kind}").tobytes()),
            "kind": kind,
        }

    def places(self, values: NDArray[np.floating]) -> dict[str, Any]:
        """Keep numbers ``(n,)`` in 65,536 even steps between the least and the greatest."""
        low, high = float(values.min()), float(values.max())
        step = (high - low) / FINE or 1.0
        return {**self.numbers(np.rint((values - low) / step), "u2"), "low": low, "step": step}

    def texts(self, values: list[str]) -> dict[str, str]:
        """Keep a list of texts."""
        return {"block": self._keep(json.dumps(values).encode()), "kind": "json"}

    def _keep(self, content: bytes) -> str:
        name = f"block-{len(self.held)}"
        # counts are mostly runs of zeros, which run lengths hold best; texts and labels repeat in longer patterns
        tried = (_deflate(content, strategy) for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_RLE))
        self.held[name] = base64.b64encode(min(tried, key=len)).decode()
        return name


def _deflate(content: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return packer.compress(content) + packer.flush()


def smallest(values: NDArray[np.integer]) -> str:
    """Return the smallest of the unsigned kinds that holds whole numbers from 0."""
    most = int(values.max(initial=0))
    return "u1" if most < 2**8 else "u2" if most < 2**16 else "u4"


def jpeg(pixels: NDArray[np.uint8]) -> str:
    """Return a picture (H, W, 3) as a data address."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=85, optimize=True)
    return address(stream.getvalue(), "jpeg")


def address(content: bytes, kind: str) -> str:
    """Return the bytes of a picture as a data address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
