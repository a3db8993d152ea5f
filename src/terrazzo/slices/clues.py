"""What a slice brings along that says something of its unit, and which array its spots are on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from terrazzo.arrays import Floats, Ints
from terrazzo.slices.lattices import (
    DIAGONAL_STEPS,
    SQUARE_STEPS,
    Positions,
    is_lattice_itself,
    step_distance,
    step_spread,
)
from terrazzo.slices.limits import ST_NAMES, Measured, tag_of

__all__ = ["Array", "Clues", "Sureness", "array_of", "positive_number"]

_ST_SIDE = 36  # rows or columns that the square ST array has at most
_ST_EXTENT = 80  # a larger square lattice is not an ST array, whatever its name
_HEX_RATIOS = (0.85, 1.17)  # (0, 2) over (1, 1) spot distance: 1.00 on Visium, 1.34 on dense ST
_MEASURED_SPREAD = 0.03  # of distances: spots that were found on a picture, not computed
_FIX = "pass microns_per_unit= (--microns-per-unit) and technology= (--technology)"
_HD_NAME = re.compile(r"s_(\d{3})um_\d+_\d+")
_BARCODE = re.compile(r"[ACGT]{16}(-\d+)?")

Sureness = Literal["stated", "sure", "likely", "guess", "unknown"]


def positive_number(mapping: Any, key: str) -> float | None:
    """Return ``mapping[key]`` as a positive finite float, None where it is anything else (user data: never raises)."""
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    try:
        number = float(np.asarray(value).item()) if value is not None else 0.0
    except (TypeError, ValueError, OverflowError):
        return None
    return number if np.isfinite(number) and number > 0 else None


@dataclass(frozen=True)
class Clues:
    """What a slice brings along that says something of its unit.

    Attributes
    ----------
    native
        Coordinates, float64 (n, 2).
    lattice
        (row, col) on the array, int64 (n, 2), or None.
    names
        Names of the cells.
    uns
        ``uns`` of the slice.
    scale_factors
        Those of its library in ``uns["spatial"]``; anything, as it is foreign.
    has_library
        Whether ``uns["spatial"]`` describes the slice.
    technology
        The platform that is named, None where none is.
    """

    native: Floats
    lattice: Ints | None
    names: Sequence[str] | pd.Index
    uns: Mapping[str, Any]
    scale_factors: Any
    has_library: bool
    technology: str | None

    @property
    def tag(self) -> str:
        """The technology without case and signs; "" where it is unknown."""
        return tag_of(self.technology)

    @cached_property
    def measured(self) -> Measured:
        """Positions and array, to be measured."""
        return Measured(Positions(self.native), self.lattice)

    def factor(self, name: str) -> float | None:
        """Return a scale factor that is a positive number."""
        return positive_number(self.scale_factors, name)

    @property
    def has_barcodes(self) -> bool:
        """Whether the names of the cells are barcodes as 10x Genomics has them."""
        some = [str(name) for name in self.names[:20]]
        return bool(some) and all(_BARCODE.search(name) for name in some)

    @cached_property
    def bin_um(self) -> float | None:
        """Side of a bin of Visium HD in um, by the cell names (``s_008um_00301_00321-1``) or the scale factors."""
        if self.tag and "visium" not in self.tag:
            return None
        match = _HD_NAME.match(str(self.names[0])) if len(self.names) else None
        if match is None:
            return self.factor("bin_size_um")
        side = float(match.group(1))
        return side if side > 0 else None

    @property
    def is_hd(self) -> bool:
        """Whether this is Visium HD."""
        return self.bin_um is not None or "visiumhd" in self.tag


@dataclass(frozen=True)
class Array:
    """What the numbers on an array say.

    Attributes
    ----------
    kind
        "visium", "st" or None.
    sure, why
        How sure, and the evidence in words.
    doubt
        Why it is not the platform that is named, or not known; "".
    question
        What to warn of although the kind is believed; "".
    """

    kind: str | None = None
    sure: Sureness = "unknown"
    why: str = ""
    doubt: str = ""
    question: str = ""


def array_of(clues: Clues) -> Array:
    """Return which array the numbers are of: by the platform's name, and by which of them are used and where."""
    lattice = clues.lattice
    tag = clues.tag
    is_visium = "visium" in tag
    if clues.is_hd:
        return Array()
    if lattice is None:
        is_like_visium = is_visium or (not tag and clues.factor("spot_diameter_fullres"))
        return _without_numbers(clues) if is_like_visium else Array()
    is_staggered = len(np.unique(lattice.sum(axis=1) & 1)) == 1
    if tag in ST_NAMES:
        return _named_st(clues, lattice, is_staggered)
    if is_visium:
        return _named_visium(clues, lattice, is_staggered)
    if tag or len(lattice) < 2:
        return Array()
    if is_staggered:
        return _unnamed_staggered(clues, lattice)
    return _unnamed_square(clues, lattice)


def _without_numbers(clues: Clues) -> Array:
    if clues.measured.positions.shape == "square":
        return Array(doubt=f"{_square(clues)}, so it is not Visium's, which is hexagonal")
    return Array()


def _named_st(clues: Clues, lattice: Ints, is_staggered: bool) -> Array:
    why = f"{clues.technology} is named"
    if is_lattice_itself(clues.native, lattice):
        return Array("st", "sure", why)
    if is_staggered and _hex_ratio(clues, lattice) == "hex":
        return Array(doubt="the array is hexagonal, as Visium's, so it is not that of ST")
    if not is_staggered and _sides(lattice).max() > _ST_EXTENT:
        return Array(doubt=f"{_square(clues)}, larger than any of ST")
    if not is_staggered and _sides(lattice).max() > _ST_SIDE:
        question = f"{_square(clues)}, and ST's has at most 33 x 35; if it is not ST, {_FIX}"
        return Array("st", "guess", why, question=question)
    return Array("st", "sure", why)


def _named_visium(clues: Clues, lattice: Ints, is_staggered: bool) -> Array:
    why = f"{clues.technology} is named, and its array is staggered"
    if is_staggered:
        if is_lattice_itself(clues.native, lattice) or _hex_ratio(clues, lattice) in ("hex", ""):
            return Array("visium", "sure", why)
        return Array(doubt="the array is not hexagonal, so it is not Visium's")
    if clues.measured.positions.shape == "hex":
        return Array()
    return Array(doubt=f"{_square(clues)}, so it is not Visium's, which is hexagonal")


def _unnamed_staggered(clues: Clues, lattice: Ints) -> Array:
    if is_lattice_itself(clues.native, lattice):
        return Array("visium", "likely", "staggered numbers of an array")
    shape = _hex_ratio(clues, lattice)
    if shape == "square":
        return Array("st", "likely", "spots form squares on a staggered array, as dense ST alone")
    if shape == "other":
        return Array(doubt="spots on a staggered array that is neither Visium's nor that of ST")
    if shape == "hex":
        return Array("visium", "likely", "a staggered, hexagonal array")
    return Array("visium", "guess", "a staggered array")


def _unnamed_square(clues: Clues, lattice: Ints) -> Array:
    """Take a square lattice for ST only where spots were found on a picture and the array has ST's size."""
    pitch = step_distance(lattice, clues.native, SQUARE_STEPS)
    fits = lattice.min() >= 0 and lattice.max() <= _ST_SIDE
    if pitch is None or not fits or is_lattice_itself(clues.native, lattice):
        return Array(doubt=_square(clues))
    spread = step_spread(lattice, clues.native, SQUARE_STEPS)
    rounding = 1.0 / pitch if clues.measured.positions.is_whole else 0.0
    if spread < max(_MEASURED_SPREAD, rounding):
        return Array(doubt=_square(clues))
    why = (
        f"a square array of at most {_ST_SIDE} x {_ST_SIDE} spots whose positions were measured "
        f"(distances vary by {spread:.0%})"
    )
    return Array("st", "likely", why)


def _sides(lattice: Ints) -> Ints:
    return np.asarray(np.ptp(lattice, axis=0) + 1)


def _square(clues: Clues) -> str:
    """Describe a square array."""
    pitch = clues.measured.pitch("st")
    apart = "" if pitch is None else f" with neighbors {pitch:.4g} units apart"
    if clues.lattice is None:
        return f"the spots form a square array{apart}"
    rows, columns = _sides(clues.lattice)
    return f"the array is square ({rows} x {columns}{apart})"


def _hex_ratio(clues: Clues, lattice: Ints) -> str:
    """Return the shape of a staggered array: "hex", "square" (on its tip), "other", "" where spots are too few."""
    diagonal = step_distance(lattice, clues.native, DIAGONAL_STEPS)
    if diagonal is None:
        return ""
    straight = [step_distance(lattice, clues.native, (step,)) for step in ((0, 2), (2, 0))]
    ratios = [distance / diagonal for distance in straight if distance is not None]
    least, most = _HEX_RATIOS
    if len(ratios) == 2 and min(ratios) > most:
        return "square"
    if straight[0] is None:
        return ""
    return "hex" if least <= ratios[0] <= most else "other"
