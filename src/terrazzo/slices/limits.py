"""What distances a platform can have: conventional units of its coordinates, and a check of micrometers against it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from terrazzo.arrays import Ints
from terrazzo.slices.lattices import (
    DIAGONAL_STEPS,
    HEX_STEPS,
    SQUARE_STEPS,
    Positions,
    lattice_distance,
    step_distance,
)

__all__ = [
    "ANYTHING",
    "DBIT_SEQ",
    "FINE",
    "ST",
    "STEREO_SEQ",
    "ST_DENSE_PITCH",
    "ST_NAMES",
    "ST_PITCH",
    "VISIUM",
    "VISIUM_HD",
    "VISIUM_PITCH",
    "Measured",
    "Platform",
    "Verdict",
    "check_scale",
    "check_stereo_bins",
    "likely_scales",
    "platform_of",
    "tag_of",
]

VISIUM_PITCH = 100.0  # um, center to center, hexagonal
ST_PITCH = 200.0  # um, square array of about 1,000 spots
ST_DENSE_PITCH = 150.0  # um, between diagonal neighbors of the staggered array of about 2,000 spots
ST_NAMES = ("st", "st1k", "st2k", "legacyst", "spatialtranscriptomics")

Form = Literal["cells", "beads", "hex", "st", "hd", "stereo", "channels", "any"]


@dataclass(frozen=True)
class Platform:
    """What is known of the coordinates of a platform.

    Attributes
    ----------
    name
        As messages have it.
    tags
        Parts of its name, without case and signs, any of which says that a slice is of it.
    form
        What one row of it is, which tells the distances that there can be.
    factor
        Micrometers per unit that the vendor's files count in; None: that differs.
    what
        What that unit is, in words.
    """

    name: str
    tags: tuple[str, ...]
    form: Form
    factor: float | None = None
    what: str = ""


STEREO_SEQ = Platform("Stereo-seq", ("stereoseq",), "stereo", 0.5, "spots of the chip")
VISIUM_HD = Platform("Visium HD", ("visiumhd",), "hd")
VISIUM = Platform("Visium", ("visium",), "hex")
DBIT_SEQ = Platform("DBiT-seq", ("dbit",), "channels")
ST = Platform("ST", ST_NAMES, "st")
ANYTHING = Platform("any platform", (), "any")

# The first whose tag is part of a slice's technology; those of ST must be all of it.
_PLATFORMS = (
    Platform("Xenium", ("xenium",), "cells", 1.0, "micrometers"),
    Platform("MERFISH", ("merfish", "merscope", "vizgen"), "cells", 1.0, "micrometers"),
    Platform("CosMx", ("cosmx", "nanostringsmi"), "cells", 0.12028, "pixels"),
    STEREO_SEQ,
    Platform("Slide-seq", ("slideseq",), "beads", 0.65, "pixels"),
    VISIUM_HD,
    VISIUM,
    DBIT_SEQ,
    Platform("seqFISH", ("seqfish",), "cells"),
    Platform("STARmap", ("starmap",), "cells"),
    Platform("osmFISH", ("osmfish",), "cells"),
    Platform("ISS", ("insitusequencing", "hybiss"), "cells"),
)

# Units that coordinates are met in, the likeliest first, in micrometers
_UNITS_MET = (
    (1.0, "micrometers"),
    (1000.0, "millimeters"),
    (0.2125, "pixels of Xenium"),
    (0.12028, "pixels of CosMx"),
    (0.108, "pixels of MERSCOPE"),
    (0.001, "nanometers"),
)
_STEREO_STEPS = (  # where positions on a Stereo-seq chip are 1 apart
    (0.5, "single spots"),
    (10.0, "numbers of bins of 20"),
    (25.0, "of bins of 50"),
    (50.0, "of bins of 100"),
)
_BIN_SIZES = (1, 2, 3, 4, 5, 10, 14, 15, 20, 30, 40, 50, 80, 100, 140, 150, 200, 300, 500)
_UNIT_STEP = 1e-6  # what counts as a distance of 1

_MANY = 30  # places from which their distances say something of all
_CLOSEST = 1.0  # um: two cells cannot be closer, however few there are
_CLOSEST_OF_MANY = 2.0  # um: nor can half of many
_CLOSE = 3.5  # um: so close are few tissues
_FAR = 40.0  # um: so far apart are the cells of no tissue of which all are there
_FAR_IN_TISSUE = 25.0  # um: nor so far, where they fill the plane as cells of a tissue do
_TISSUE_SPREAD = (
    0.45  # of their distances then: 0.30 to 0.39 in tissue, 0.5 where most are left out
)
_FARTHEST = 2500.0  # um: however few cells of a section are left
_BEAD = 7.0  # um: beads of 10 um lie side by side
_FAR_BEADS = 60.0
_CLOSEST_OF_ALL = 0.2  # um: no platform resolves less
_CLOSE_OF_ALL = 1.5
_LONGEST = 300_000.0  # um: several slides in a row
_SLIDE = 80_000.0  # um: a slide has 75 x 25 mm
_IMPOSSIBLE = 0.25  # deviation from a known pitch, as a share of it
_IMPLAUSIBLE = 0.1
_CHANNELS = (8.0, 110.0)  # um: pitch of DBiT-seq
_USUAL_CHANNEL = 55.0
_SPOT = 0.5  # um between spots of a Stereo-seq chip


@dataclass(frozen=True)
class Measured:
    """Positions of a slice, and their numbers on its array if it has any."""

    positions: Positions
    lattice: Ints | None = None

    def pitch(self, form: Form) -> float | None:
        """Return the distance of lattice neighbors in native units; None where there is no such lattice."""
        steps = HEX_STEPS if form == "hex" else SQUARE_STEPS
        if self.lattice is not None:
            distance = step_distance(self.lattice, self.positions.native, steps)
            if distance is not None:
                return distance
        shape = "hex" if form == "hex" else "square"
        if self.positions.shape != shape:
            return None
        return lattice_distance(self.positions.native, 6 if form == "hex" else 4)

    def spot_pitch(self, form: Form) -> tuple[float | None, tuple[float, ...]]:
        """Return the distance of neighboring spots of Visium or ST in native units, and what it can be in um."""
        if form == "hex":
            return self.pitch("hex"), (VISIUM_PITCH,)
        if self.lattice is None:
            return self.pitch("st"), (ST_PITCH, ST_DENSE_PITCH)
        native = self.positions.native
        straight = step_distance(self.lattice, native, SQUARE_STEPS)
        if straight is not None:
            return straight, (ST_PITCH,)
        return step_distance(self.lattice, native, DIAGONAL_STEPS), (ST_DENSE_PITCH,)


@dataclass(frozen=True)
class Verdict:
    """What a check found: "" (fine), "implausible", "unclear" (ask) or "impossible", and why in words."""

    level: Literal["", "implausible", "unclear", "impossible"] = ""
    why: str = ""


FINE = Verdict()


def tag_of(technology: str | None) -> str:
    """Return a technology's name without case and signs; "" where it is unknown."""
    tag = re.sub(r"[^a-z0-9]", "", technology.lower()) if technology else ""
    return "" if tag == "unknown" else tag


def platform_of(tag: str) -> Platform | None:
    """Return what is known of the platform with this tag; None where it is not known here."""
    if tag in ST_NAMES:
        return ST
    for platform in _PLATFORMS:
        if any(name in tag for name in platform.tags):
            return platform
    return None


def check_stereo_bins(measured: Measured, scale: float, size: float | None) -> Verdict:
    """Ask what positions 1 apart are: single spots of a Stereo-seq chip and numbers of bins look the same.

    Parameters
    ----------
    measured, scale
        As in :func:`check_scale`.
    size
        Spots along the side of a bin, where that is known.
    """
    pitch = measured.pitch("stereo")
    if pitch is None or (size is not None and abs(pitch / size - 1) < _IMPLAUSIBLE):
        return FINE
    why = f"bins would be {pitch * scale:g} um apart"
    if size is not None:
        return Verdict("unclear", f"{why}, and by uns['bin_size'] they have {size * scale:g} um")
    if abs(pitch - 1) < _UNIT_STEP:
        return Verdict("unclear", f"{why}, as single spots are, or the numbers of larger bins")
    if np.abs(pitch - np.array(_BIN_SIZES)).min() > _IMPLAUSIBLE:
        return Verdict("implausible", f"{why}, {pitch:.4g} spots, which is not a usual size")
    return FINE


def check_scale(
    platform: Platform, measured: Measured, scale: float, bin_um: float | None = None
) -> Verdict:
    """Check micrometers per unit against what a platform can be.

    Parameters
    ----------
    platform
        Of the slice, or :data:`ANYTHING`.
    measured
        Its positions.
    scale
        Micrometers per native unit.
    bin_um
        Side of a bin, where that is known.
    """
    positions = measured.positions
    if positions.n_places < 2:
        return FINE
    extent = positions.extent * scale
    if extent > _LONGEST:
        why = f"the slice would be {extent / 1000:,.4g} mm long"
        return Verdict("impossible", why)
    form = platform.form
    if form in ("hex", "st"):
        verdict = _check_array(platform, measured, scale)
    elif form in ("hd", "stereo"):
        verdict = _check_bins(platform, measured, scale, bin_um)
    elif form == "channels":
        verdict = _check_channels(measured, scale)
    elif form == "any":
        verdict = _check_anything(positions, scale)
    else:
        verdict = _check_cells(platform, positions, scale)
    if not verdict.level and extent > _SLIDE:
        why = f"the slice would be {extent / 1000:,.4g} mm long, and a slide has 75 mm"
        return Verdict("implausible", why)
    return verdict


def _check_array(platform: Platform, measured: Measured, scale: float) -> Verdict:
    """Check the pitch of Visium or ST; where no lattice is left, that spots are not closer."""
    distance, expected = measured.spot_pitch(platform.form)
    if distance is not None:
        pitch = distance * scale
        nearest = min(expected, key=lambda one: abs(pitch / one - 1))
        listed = " or ".join(f"{one:g}" for one in expected)
        why = f"neighboring spots would be {pitch:.4g} um apart; those of {platform.name} are {listed}"
        return _by_deviation(pitch / nearest, why)
    spacing = measured.positions.spacing * scale
    least = VISIUM_PITCH if platform.form == "hex" else ST_DENSE_PITCH
    if spacing < least * (1 - _IMPOSSIBLE):
        why = f"spots would be {spacing:.3g} um apart; those of {platform.name} are at least {least:g}"
        return Verdict("impossible", why)
    return FINE


def _by_deviation(ratio: float, why: str) -> Verdict:
    if abs(ratio - 1) > _IMPOSSIBLE:
        return Verdict("impossible", why)
    if abs(ratio - 1) > _IMPLAUSIBLE:
        return Verdict("implausible", why)
    return FINE


def _check_bins(
    platform: Platform, measured: Measured, scale: float, bin_um: float | None
) -> Verdict:
    """Check the side of bins, or the distance of cells where the positions are on no lattice."""
    distance = measured.pitch("hd")
    if distance is None:
        return _check_cells(platform, measured.positions, scale)
    pitch = distance * scale
    if bin_um is not None:
        why = f"bins would be {pitch:.4g} um apart, and they have {bin_um:g} um"
        return _by_deviation(pitch / bin_um, why)
    smallest = 2.0 if platform.form == "hd" else _SPOT
    nearest = max(1.0, np.rint(pitch / smallest)) * smallest
    if abs(pitch / nearest - 1) > _IMPLAUSIBLE:
        why = f"bins would be {pitch:.4g} um apart; those of {platform.name} are multiples of {smallest:g}"
        return Verdict("impossible", why)
    return FINE


def _check_channels(measured: Measured, scale: float) -> Verdict:
    distance = measured.pitch("channels")
    if distance is None:
        distance = measured.positions.spacing
    pitch = distance * scale
    least, most = _CHANNELS
    why = f"neighbors would be {pitch:.4g} um apart; those of DBiT-seq are 10 to 50"
    if not least <= pitch <= most:
        return Verdict("impossible", why)
    if pitch > _USUAL_CHANNEL:
        return Verdict("implausible", why)
    return FINE


def _check_cells(platform: Platform, positions: Positions, scale: float) -> Verdict:
    """Check the median distance between cells, or between beads."""
    spacing = positions.spacing * scale
    is_many = positions.n_places >= _MANY
    what = "beads" if platform.form == "beads" else "cells"
    why = f"{what} would be {spacing:.3g} um apart"
    closest = _CLOSEST_OF_MANY if is_many else _CLOSEST
    if platform.form == "beads" and is_many:
        closest = _BEAD
    if spacing < closest:
        return Verdict("impossible", why)
    if not is_many:
        return FINE
    if spacing > _FARTHEST:
        return Verdict("impossible", why)
    if spacing < _CLOSE:
        return Verdict("implausible", why)
    far = _FAR_IN_TISSUE if positions.spread < _TISSUE_SPREAD else _FAR
    if platform.form == "beads":
        far = _FAR_BEADS
    if spacing > far:
        return Verdict("implausible", f"{why}, farther than in tissue")
    return FINE


def _check_anything(positions: Positions, scale: float) -> Verdict:
    spacing = positions.spacing * scale
    why = f"neighbors would be {spacing:.3g} um apart"
    if spacing < _CLOSEST_OF_ALL:
        return Verdict("impossible", why)
    if spacing < _CLOSE_OF_ALL and positions.n_places >= _MANY:
        return Verdict("implausible", why)
    return FINE


def likely_scales(
    platform: Platform, measured: Measured, refused: float, bin_um: float | None = None
) -> str:
    """Say which micrometers per unit would fit a platform, the likeliest first; "" where none is known."""
    if platform.form in ("hex", "st"):
        distance, expected = measured.spot_pitch(platform.form)
        return "" if distance is None else f"{expected[0] / distance:.4g} fits"
    pitch = measured.pitch(platform.form)
    if bin_um is not None and pitch is not None:
        return f"{bin_um / pitch:.4g} fits"
    if platform.form == "stereo" and pitch is not None and abs(pitch - 1) < _UNIT_STEP:
        return ", ".join(f"{scale:g} if they are {what}" for scale, what in _STEREO_STEPS)
    if measured.positions.is_whole and pitch is not None and abs(pitch - 1) < _UNIT_STEP:
        return "the side of a bin in um if they are numbers of bins"
    met = [] if platform.factor is None else [(platform.factor, platform.what)]
    met.extend(_UNITS_MET)
    for tolerated in ("", "implausible"):
        fitting: dict[float, str] = {}
        for scale, what in met:
            level = check_scale(platform, measured, scale).level
            is_other = abs(scale / refused - 1) > 0.01
            if is_other and scale not in fitting and level in ("", tolerated):
                fitting[scale] = f"{scale:g} if they are {what}"
        if fitting:
            return ", ".join(list(fitting.values())[:3])
    return ""
