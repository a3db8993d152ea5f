"""Estimates of the time of an embedding: operation counts over this machine's measured rate."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from terrazzo.arrays import Ints
from terrazzo.genes import Coverage

__all__ = [
    "Counting",
    "Plan",
    "Precision",
    "Rates",
    "advice",
    "duration",
    "encoding_seconds",
    "matmul_rate",
    "measured_rates",
    "warn_if_long",
]

logger = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16"]

ENCODER_SHARE = 0.7  # share of the matrix-product rate that the encoder reaches, for estimates

LONG_FLOPS = 1e12  # below this no machine is slow, and its rate is not measured

SLOW_SECONDS = 60.0  # there is advice on jobs longer than this

MEASURED_SECONDS = 0.05


@dataclass(frozen=True)
class Plan:
    """Size and estimated time of the embedding of one slice.

    Attributes
    ----------
    cells, subslices
        Sizes of the work; ``subslices`` 0 for a system without them.
    coverage
        Genes and counts that the vocabulary covers.
    seconds
        Estimated time, from operation counts and this machine's measured rate.
    faster
        Advice on making it faster, in words; empty where it is fast already.
    """

    cells: int
    subslices: int
    coverage: Coverage
    seconds: float
    faster: tuple[str, ...] = ()

    def __str__(self) -> str:
        hint = f" Faster: {'; '.join(self.faster)}." if self.faster else ""
        parts = ""
        if self.subslices:
            plural = "s" if self.subslices != 1 else ""
            parts = f" in {self.subslices:,} sub-slice{plural}"
        coverage = self.coverage
        covered = (
            f"{coverage.n_matched:,} of {coverage.n_genes:,} genes, "
            f"{coverage.share_counts:.1%} of counts"
        )
        return f"{self.cells:,} cells{parts}; {covered}; about {duration(self.seconds)}.{hint}"

    @classmethod
    def summed(cls, plans: Sequence[Plan]) -> Plan:
        """Return the plan of several slices, with the worst of their coverages and all advice."""
        advice = dict.fromkeys(line for plan in plans for line in plan.faster)
        return cls(
            cells=sum(plan.cells for plan in plans),
            subslices=sum(plan.subslices for plan in plans),
            coverage=min((plan.coverage for plan in plans), key=lambda one: one.share_counts),
            seconds=sum(plan.seconds for plan in plans),
            faster=tuple(advice),
        )


@dataclass(frozen=True)
class Rates:
    """Matrix-product rates of a device, in operations a second."""

    float32: float
    bfloat16: float

    def of(self, precision: Precision) -> float:
        """Return the rate of a precision."""
        return self.bfloat16 if precision == "bfloat16" else self.float32


def matmul_rate(precision: Precision = "float32", device: torch.device | None = None) -> float:
    """Measure a device's matrix-product rate, in operations a second (takes about 50 ms)."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    rows, inner, columns = 1024, 512, 512
    left = torch.ones(rows, inner, dtype=dtype, device=device)
    right = torch.ones(inner, columns, dtype=dtype, device=device)
    for _ in range(2):
        left @ right
    n_done = 0
    start = time.perf_counter()
    while time.perf_counter() - start < MEASURED_SECONDS:
        float((left @ right)[0, 0])
        n_done += 1
    seconds = time.perf_counter() - start
    return n_done * 2 * rows * inner * columns / seconds


def measured_rates(device: torch.device) -> Rates:
    """Measure a device in both precisions."""
    return Rates(matmul_rate("float32", device), matmul_rate("bfloat16", device))


def advice(
    seconds: float, device: torch.device, precision: Precision, rates: Rates
) -> tuple[str, ...]:
    """Return advice on making a long job shorter on this machine, in words."""
    if seconds < SLOW_SECONDS:
        return ()
    lines = []
    if device.type == "cpu" and torch.cuda.is_available():
        lines.append('move the model to the GPU: model.to("cuda") or --device cuda')
    elif device.type == "cpu":
        lines.append("a GPU")
    gain = rates.bfloat16 / rates.float32
    if precision == "float32" and gain > 1.5:
        lines.append(
            f"precision='bfloat16' (measured here: {gain:.1f} times the matrix-product rate)"
        )
    lines.append("a smaller model (the presets `small` and `tiny`)")
    return tuple(lines)


class Counting(Protocol):
    """An encoder that counts its operations."""

    def flops(self, lengths: Ints) -> float:
        """Return the operations that sequences of these lengths, ``<cls>`` included, take."""


def encoding_seconds(encoder: Counting, lengths: Ints, precision: Precision, rates: Rates) -> float:
    """Estimate the seconds that sequences of these lengths, ``<cls>`` included, take."""
    return encoder.flops(lengths) / (rates.of(precision) * ENCODER_SHARE)


def warn_if_long(
    encoder: Counting, lengths: Ints, precision: Precision, device: torch.device, name: str
) -> None:
    """Log, before a long encoding begins, how long it will take, with advice on making it faster.

    ``lengths`` are those of the sequences, int64 ``(n_cells,)``, ``<cls>`` included.
    """
    if encoder.flops(lengths) < LONG_FLOPS:
        return
    rates = measured_rates(device)
    seconds = encoding_seconds(encoder, lengths, precision, rates)
    if seconds < SLOW_SECONDS:
        return
    logger.warning(
        "%s: %s cells will take about %s. Faster: %s.",
        name,
        f"{len(lengths):,}",
        duration(seconds),
        "; ".join(advice(seconds, device, precision, rates)),
    )


def duration(seconds: float) -> str:
    """Return a time span as a short text: ``"40 s"``, ``"12 min"``, ``"1.5 h"``."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
