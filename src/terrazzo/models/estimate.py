"""How long an embedding will take, from operation counts and this machine's measured rate."""

from __future__ import annotations

import logging
import time
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


Precision = Literal["float32", "bfloat16"]


ENCODER_SHARE = 0.7  # share of the matrix-product rate that the encoder reaches, for estimates


LONG_FLOPS = 1e12  # below this no machine is slow; measuring it would cost more than it tells


SLOW_SECONDS = 60.0  # advice is given for jobs longer than this


def matmul_rate(precision: Precision = "float32", device: torch.device | None = None) -> float:
    """Measure this machine's matrix-product rate, in operations a second (takes about 50 ms)."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left = torch.ones(1024, 512, dtype=dtype, device=device)
    right = torch.ones(512, 512, dtype=dtype, device=device)
    for _ in range(2):
        left @ right
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.05:
        float((left @ right)[0, 0])
        done += 1
    return done * 2 * 1024 * 512 * 512 / (time.perf_counter() - start)


def advice(
    seconds: float, device: torch.device, precision: Precision, rates: tuple[float, float]
) -> tuple[str, ...]:
    """Say what would make a long job shorter on this machine."""
    if seconds < SLOW_SECONDS:
        return ()
    out = []
    if device.type == "cpu" and torch.cuda.is_available():
        out.append('move the model to the GPU: model.to("cuda") or --device cuda')
    elif device.type == "cpu":
        out.append("a GPU")
    if precision == "float32" and rates[1] > 1.5 * rates[0]:
        out.append(
            f"precision='bfloat16' (measured here: {rates[1] / rates[0]:.1f} times the matrix-product rate)"
        )
    out.append("a smaller model (the presets `small` and `tiny`)")
    return tuple(out)


class Counting(Protocol):
    """An encoder that knows what sequences cost."""

    def flops(self, lengths: NDArray[np.int64]) -> float:
        """Return the operations that sequences of these lengths, ``<cls>`` included, take."""


def warn_if_long(
    encoder: Counting,
    lengths: NDArray[np.int64],
    precision: Precision,
    device: torch.device,
    name: str,
) -> None:
    """Log, before a long encoding begins, how long it will take and what would make it faster.

    ``lengths`` are those of the sequences, int64 ``(n_cells,)``, ``<cls>`` included.
    """
    if encoder.flops(lengths) < LONG_FLOPS:
        return
    seconds, rates = encoding_time(encoder, lengths, precision, device)
    if seconds >= SLOW_SECONDS:
        hints = "; ".join(advice(seconds, device, precision, rates))
        logger.warning(
            "%s: %s cells will take about %s. Faster: %s.",
            name,
            f"{len(lengths):,}",
            duration(seconds),
            hints,
        )


def encoding_time(
    encoder: Counting, lengths: NDArray[np.int64], precision: Precision, device: torch.device
) -> tuple[float, tuple[float, float]]:
    """Estimate the seconds that sequences take; also the rates measured (float32, bfloat16)."""
    rates = (matmul_rate("float32", device), matmul_rate("bfloat16", device))
    return encoder.flops(lengths) / (rates[precision == "bfloat16"] * ENCODER_SHARE), rates


def duration(seconds: float) -> str:
    """Return a time span in words a person reads at a glance."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
