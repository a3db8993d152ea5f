"""The unit of a slice's coordinates: one place that weighs the evidence, says how sure it is, and checks the result.

Evidence is what the user states, the platform that is named, numbers on an array, the shape that positions form, names
of cells, and scale factors in ``uns``. The first that leads to something that the platform can be is believed; what
cannot be is refused, or left in the unit that it has with a request for the option that answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from terrazzo.errors import ConfigError
from terrazzo.slices.clues import Array, Clues, Sureness, array_of, positive_number
from terrazzo.slices.lattices import (
    DIAGONAL_STEPS,
    HEX_STEPS,
    SQUARE_STEPS,
    is_lattice_itself,
    lattice_distance,
    step_distance,
)
from terrazzo.slices.limits import (
    ANYTHING,
    DBIT_SEQ,
    FINE,
    ST,
    ST_DENSE_PITCH,
    ST_NAMES,
    ST_PITCH,
    STEREO_SEQ,
    VISIUM,
    VISIUM_HD,
    VISIUM_PITCH,
    Platform,
    Verdict,
    check_scale,
    check_stereo_bins,
    likely_scales,
    platform_of,
)

__all__ = ["UM_WORDS", "Judgment", "weigh"]

UM_WORDS = (
    "um",
    "\u00b5m",
    "\u03bcm",
    "micron",
    "microns",
    "micrometer",
    "micrometers",
    "micrometre",
    "micrometres",
)
_UNITS = ("um", "pixel", "array", "unknown")
_LENGTHS = {"mm": 1000.0, "nm": 0.001}  # micrometers in other units that may be stated
_SPOT_DIAMETER = 65.0  # um that Space Ranger's spot_diameter_fullres spans (the printed spot is 55)
_SPOT_DIAMETERS = (40.0, 90.0)  # um: what that diameter is on any Visium array
_MIN_VISIUM_SPACING = 80.0  # um; closer spots: spot_diameter_fullres is not a Visium value
_ASK = "pass microns_per_unit= (--microns-per-unit)"


@dataclass(frozen=True)
class Judgment:
    """The unit of a slice, how sure it is, and why.

    Attributes
    ----------
    unit, scale
        "um", "pixel", "array" or "unknown"; micrometers per native unit (1.0 where they are not known).
    technology, lattice_kind
        As :class:`terrazzo.Slice` has them.
    sure
        "stated" (by the user, or a file that says it of itself), "sure" (evidence that nothing else gives), "likely",
        "guess", "unknown".
    reasons
        The evidence, in words.
    question
        What to warn of and ask for; "".
    refusal
        Why this cannot be; "".
    """

    unit: str
    scale: float
    technology: str
    lattice_kind: str | None = None
    sure: Sureness = "unknown"
    reasons: tuple[str, ...] = ()
    question: str = ""
    refusal: str = ""

    @property
    def evidence(self) -> str:
        """How sure, and why, in one line."""
        return f"{self.sure}: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class _Candidate:
    """Micrometers per unit that one piece of evidence gives."""

    scale: float
    sure: Sureness
    why: str


def weigh(clues: Clues, unit: str | None = None, microns_per_unit: float | None = None) -> Judgment:
    """Decide the unit of a slice's coordinates; nothing is warned of or refused here.

    Parameters
    ----------
    clues
        What the slice brings along.
    unit, microns_per_unit
        What the caller states; None where unknown.

    Raises
    ------
    ConfigError
        An unknown unit or an impossible ``microns_per_unit``.
    """
    array = array_of(clues)
    if unit is not None or microns_per_unit is not None:
        return _stated(clues, array, unit, microns_per_unit)
    is_whole_lattice = clues.lattice is not None and is_lattice_itself(clues.native, clues.lattice)
    if array.kind == "visium" and is_whole_lattice:
        return Judgment(
            unit="array",
            scale=1.0,
            technology=_technology(clues, array),
            lattice_kind=array.kind,
            sure="sure",
            reasons=("the coordinates are the numbers of the Visium array",),
        )
    return _derived(clues, array, "array" if is_whole_lattice else "")


def _technology(clues: Clues, array: Array) -> str:
    """Return the platform's name: the one that is stated, unless the slice cannot be of it."""
    if array.doubt:
        is_array_platform = clues.tag in ST_NAMES or "visium" in clues.tag
        return "unknown" if is_array_platform else clues.technology or "unknown"
    if clues.technology is not None:
        return clues.technology
    if clues.is_hd:
        return VISIUM_HD.name
    return {"visium": VISIUM.name, "st": ST.name}.get(array.kind or "", "unknown")


# What is not stated


def _derived(clues: Clues, array: Array, own_unit: str) -> Judgment:
    """Believe the first evidence that leads to something that the platform can be."""
    platform = _expected(clues, array)
    technology = _technology(clues, array)
    best: tuple[_Candidate, Verdict] | None = None
    contradicted = []
    for candidate in _candidates(clues, array):
        verdict = _check(clues, platform, candidate)
        if not verdict.level:
            best = (candidate, verdict)
            break
        contradicted.append((candidate, verdict))
    if best is None:
        plausible = [pair for pair in contradicted if pair[1].level == "implausible"]
        best = plausible[0] if plausible else None
    if best is not None:
        candidate, verdict = best
        reasons = [candidate.why]
        reasons.extend(_agreements(clues, array, candidate))
        reasons.extend(
            f"not {one.why}: {other.why}" for one, other in contradicted if one != candidate
        )
        question = ""
        sure = _raised(clues, array, candidate)
        if verdict.level:
            sure = "guess"
            reasons.append(verdict.why)
            question = _question(clues, platform, candidate, verdict)
        elif array.kind is not None:
            question = array.question or _of_factors(clues, array, candidate)
        return Judgment(
            "um", candidate.scale, technology, array.kind, sure, tuple(reasons), question
        )
    if contradicted:
        return _contradicted(clues, array, own_unit, *contradicted[0])
    return _unknown(clues, array, own_unit)


def _expected(clues: Clues, array: Array) -> Platform:
    """Return the platform that the result is checked against."""
    if clues.is_hd:
        return VISIUM_HD
    if array.doubt and (clues.tag in ST_NAMES or "visium" in clues.tag):
        return ANYTHING
    named = platform_of(clues.tag)
    if named is not None:
        return named
    return {"visium": VISIUM, "st": ST}.get(array.kind or "", ANYTHING)


def _candidates(clues: Clues, array: Array) -> Iterator[_Candidate]:
    """Yield what each piece of evidence gives, the best first; none is measured that is not asked for."""
    makers: tuple[Callable[[Clues, Array], _Candidate | None], ...] = (
        _by_platform_and_file,
        _by_platform,
        _by_array,
        _by_pixel_size,
        _by_spot_diameter,
        _by_shape,
    )
    for make in makers:
        candidate = make(clues, array)
        if candidate is not None:
            yield candidate


def _by_platform_and_file(clues: Clues, array: Array) -> _Candidate | None:
    platform = platform_of(clues.tag)
    if platform is None or platform.factor in (None, 1.0):
        return None
    stated = clues.factor("microns_per_pixel")
    if stated is None:  # pixels differ between instruments
        return None
    return _Candidate(stated, "sure", f"{platform.name}, and microns_per_pixel in uns['spatial']")


def _by_platform(clues: Clues, array: Array) -> _Candidate | None:
    platform = platform_of(clues.tag)
    if platform is None or platform.factor is None:
        return None
    factor = platform.factor
    why = f"{platform.name} counts in {platform.what}"
    if platform is STEREO_SEQ:
        resolution = positive_number(clues.uns, "resolution")  # nanometers, as Stereopy has it
        if resolution is not None and 50 <= resolution <= 50_000:
            factor = resolution / 1000
            why = f"{why}, of {resolution:g} nm by uns['resolution']"
    if factor != 1.0:
        why = f"{why} of {factor:g} um"
    return _Candidate(factor, "likely", why)


def _by_array(clues: Clues, array: Array) -> _Candidate | None:
    """Micrometers per unit from the distance of spots that are lattice neighbors."""
    lattice = clues.lattice
    if lattice is None:
        return None
    distance = None
    if clues.bin_um:
        pitch = clues.bin_um
        name = f"bins of {pitch:g} um by their names or uns['spatial']"
        distance = step_distance(lattice, clues.native, SQUARE_STEPS)
        sure: Sureness = "sure"
    elif array.kind == "visium":
        pitch = VISIUM_PITCH
        distance = step_distance(lattice, clues.native, HEX_STEPS)
        name = array.why
        sure = array.sure
    elif array.kind == "st":
        pitch = ST_PITCH
        distance = step_distance(lattice, clues.native, SQUARE_STEPS)
        if distance is None:
            pitch = ST_DENSE_PITCH
            distance = step_distance(lattice, clues.native, DIAGONAL_STEPS)
        name = array.why
        sure = array.sure
    if distance is None:
        return None
    return _Candidate(
        pitch / distance, sure, f"{name}: neighbors {distance:.4g} units apart are {pitch:g} um"
    )


def _by_pixel_size(clues: Clues, array: Array) -> _Candidate | None:
    stated = clues.factor("microns_per_pixel")
    if stated is None:
        return None
    return _Candidate(stated, "likely", f"microns_per_pixel in uns['spatial'] is {stated:.4g}")


def _by_spot_diameter(clues: Clues, array: Array) -> _Candidate | None:
    """Micrometers per unit from the diameter that Space Ranger states, of Visium alone."""
    diameter = clues.factor("spot_diameter_fullres")
    could_be_visium = not clues.is_hd and not array.doubt and array.kind != "st"
    named = platform_of(clues.tag)
    if diameter is None or not could_be_visium or named not in (None, VISIUM):
        return None
    positions = clues.measured.positions
    if positions.shape == "square":
        return None
    scale = _SPOT_DIAMETER / diameter
    pitch = positions.spacing * scale
    if positions.n_places > 1 and pitch <= _MIN_VISIUM_SPACING:
        return None
    return _Candidate(
        scale,
        "likely",
        f"spot_diameter_fullres, taken as {_SPOT_DIAMETER:g} um, puts spots {pitch:.3g} um apart",
    )


def _by_shape(clues: Clues, array: Array) -> _Candidate | None:
    """Micrometers per unit from the lattice that the coordinates themselves form."""
    native = clues.native
    if array.doubt:
        return None
    if clues.bin_um:
        pitch = clues.bin_um
        is_square = clues.measured.positions.shape == "square"
        distance = lattice_distance(native, 4) if is_square else None
        what = f"bins of {pitch:g} um form a square lattice"
    elif "visium" in clues.tag and not clues.is_hd:
        pitch = VISIUM_PITCH
        distance = lattice_distance(native, 6)
        what = f"{clues.technology} is named, and spots form a lattice"
    elif clues.tag in ST_NAMES:
        pitch = ST_DENSE_PITCH if clues.tag == "st2k" else ST_PITCH
        distance = lattice_distance(native, 4)
        what = f"{clues.technology} is named, and spots form a lattice"
    else:
        return None
    if distance is None:
        return None
    return _Candidate(pitch / distance, "likely", f"{what}: {distance:.4g} units are {pitch:g} um")


def _check(clues: Clues, platform: Platform, candidate: _Candidate) -> Verdict:
    """Check a candidate against the platform, and bins of Stereo-seq against what is known of them."""
    measured = clues.measured
    bin_um = clues.bin_um if platform is VISIUM_HD else None
    is_cells = str(clues.uns.get("bin_type")) == "cell_bins"
    verdict = check_scale(platform, measured, candidate.scale, bin_um)
    is_of_bins = platform is STEREO_SEQ and not is_cells
    if verdict.level or candidate.sure == "sure" or not is_of_bins:
        return verdict
    size = positive_number(clues.uns, "bin_size")
    return check_stereo_bins(measured, candidate.scale, size)


def _agreements(clues: Clues, array: Array, candidate: _Candidate) -> list[str]:
    """Return other evidence for a unit that was believed."""
    notes = []
    if array.kind is None and not clues.is_hd:
        spacing = clues.measured.positions.spacing * candidate.scale
        if spacing > 0:
            notes.append(f"neighbors are {spacing:.3g} um apart")
    if array.kind == "visium" and clues.has_barcodes:
        notes.append("cells are named by barcodes of 10x Genomics")
    diameter = clues.factor("spot_diameter_fullres")
    if array.kind == "visium" and diameter is not None:
        um = diameter * candidate.scale
        least, most = _SPOT_DIAMETERS
        agrees = "agrees" if least <= um <= most else "does not agree"
        notes.append(f"spot_diameter_fullres {agrees} ({um:.3g} um)")
    return notes


def _of_factors(clues: Clues, array: Array, candidate: _Candidate) -> str:
    """Return a question where scale factors do not fit a hexagonal array that is taken for Visium's."""
    diameter = clues.factor("spot_diameter_fullres")
    if array.kind != "visium" or clues.tag or clues.has_barcodes:
        return ""
    stated = clues.factor("microns_per_pixel")
    if stated is not None and not 0.75 < stated / candidate.scale < 1.25:
        um = VISIUM_PITCH * stated / candidate.scale
        return (
            "a staggered, hexagonal array is taken for Visium's, of 100 um, but by microns_per_pixel in "
            f"uns['spatial'] spots are {um:.4g} um apart; if it is another's, {_ASK}: {stated:g}"
        )
    if diameter is None:
        return ""
    um = diameter * candidate.scale
    least, most = _SPOT_DIAMETERS
    if least <= um <= most:
        return ""
    return (
        f"a staggered, hexagonal array is taken for Visium's, of 100 um, but spot_diameter_fullres would be {um:.3g} "
        f"um, not 55 to 70; if it is another's, {_ASK}"
    )


def _raised(clues: Clues, array: Array, candidate: _Candidate) -> Sureness:
    """Return how sure a unit is, with what agrees and what does not."""
    platform = platform_of(clues.tag)
    if platform is not None and platform.form == "cells" and platform.factor == 1.0:
        return "sure"  # and cells are as far apart as in tissue
    if array.kind != "visium":
        return candidate.sure
    diameter = clues.factor("spot_diameter_fullres")
    least, most = _SPOT_DIAMETERS
    agrees = diameter is not None and least <= diameter * candidate.scale <= most
    if diameter is not None and not agrees:
        return "guess" if candidate.sure == "guess" else "likely"
    if candidate.sure == "likely" and (clues.has_barcodes or agrees):
        return "sure"
    return candidate.sure


def _fitting(clues: Clues, platform: Platform, refused: float) -> str:
    bin_um = clues.bin_um if platform is VISIUM_HD else None
    return likely_scales(platform, clues.measured, refused, bin_um)


def _suggestion(clues: Clues, platform: Platform, refused: float) -> str:
    fits = _fitting(clues, platform, refused)
    return f"{_ASK}: {fits}" if fits else _ASK


def _question(clues: Clues, platform: Platform, candidate: _Candidate, verdict: Verdict) -> str:
    fix = _suggestion(clues, platform, candidate.scale)
    return f"{_assumed(candidate, verdict)}; else {fix}"


def _assumed(candidate: _Candidate, verdict: Verdict) -> str:
    unit = f"a unit of the coordinates is {candidate.scale:.4g} um"
    return f"if {unit} ({candidate.why}), {verdict.why}"


def _contradicted(
    clues: Clues, array: Array, own_unit: str, candidate: _Candidate, verdict: Verdict
) -> Judgment:
    """Refuse the unit of a named platform that cannot be; else leave the coordinates as they are, and ask."""
    platform = _expected(clues, array)
    fix = _suggestion(clues, platform, candidate.scale)
    judgment = _unknown(clues, array, own_unit)
    why = _assumed(candidate, verdict)
    question = f"{why}; {fix}"
    refusal = ""
    is_named = platform_of(clues.tag) is platform and platform.factor is not None
    if is_named and verdict.level == "impossible":
        go_on = "or go on without micrometers, unit='unknown' (--unit unknown)"
        refusal = f"{why}; that cannot be: {fix}; {go_on}"
        question = ""
    elif is_named:
        judgment = replace(judgment, unit="unknown")
    return replace(judgment, reasons=(why,), question=question, refusal=refusal)


def _unknown(clues: Clues, array: Array, own_unit: str) -> Judgment:
    """Leave coordinates in the unit that they have; ask where there is an array whose pitch is not known."""
    unit = own_unit or ("pixel" if clues.has_library else "unknown")
    technology = _technology(clues, array)
    question = ""
    why = "nothing tells the micrometers"
    if array.doubt:
        pitch = clues.measured.pitch("st")
        per_pitch = "" if pitch is None else f", the pitch in um / {pitch:.4g}"
        why = f"{array.doubt}; ST has a pitch of 200 um, DBiT-seq of 10 to 50, bins and pseudo-spots any"
        question = f"micrometers are not known: {why}; {_ASK}{per_pitch}"
    elif clues.is_hd or platform_of(clues.tag) is DBIT_SEQ:
        pitch = clues.measured.pitch("hd")
        per_pitch = "" if pitch is None else f", the pitch in um / {pitch:.4g}"
        sizes = "2, 8, 16 ... um" if clues.is_hd else "10 to 50 um"
        why = f"the pitch of {technology} differs ({sizes}), and nothing tells that of this slice"
        question = f"micrometers are not known: {why}; {_ASK}{per_pitch}"
    elif platform_of(clues.tag) is None:
        why = f"{why}; {_ASK}, or technology= (--technology)"
    else:
        why = f"{why}; {_ASK}"
    return Judgment(unit, 1.0, technology, array.kind, "unknown", (why,), question)


# What is stated


def _stated(
    clues: Clues, array: Array, unit: str | None, microns_per_unit: float | None
) -> Judgment:
    """Believe what the caller states, and check it too."""
    name, scale = _read_stated(unit, microns_per_unit)
    technology = _technology(clues, array)
    what = f"unit={unit!r}" if microns_per_unit is None else f"microns_per_unit={scale:g}"
    judgment = Judgment(name, scale, technology, array.kind, "stated", (what,))
    if name != "um":
        return judgment
    platform = _expected(clues, array)
    candidate = _Candidate(scale, "sure", what)
    verdict = _check(clues, platform, candidate)
    is_certain = platform_of(clues.tag) is platform or clues.is_hd or platform is ANYTHING
    is_numbers = microns_per_unit is None and scale == 1.0 and _are_numbers(clues)
    if is_numbers:
        verdict = Verdict("impossible", "the coordinates are the numbers of the array")
        is_certain = True
    if verdict == FINE:
        return judgment
    reasons = (what, verdict.why)
    fits = _fitting(clues, platform, scale)
    fix = f"microns_per_unit= (--microns-per-unit) {fits}" if fits else "check microns_per_unit="
    if is_numbers:
        fix = "pass unit='array' (--unit array), or in microns_per_unit= the micrometers of a step"
    text = f"{what}: {verdict.why}"
    if verdict.level == "impossible" and is_certain:
        refusal = f"{text}; that cannot be. {fix}"
        return Judgment(name, scale, technology, array.kind, "stated", reasons, "", refusal)
    question = f"{text}; if that is not so, {fix}"
    return Judgment(name, scale, technology, array.kind, "stated", reasons, question)


def _are_numbers(clues: Clues) -> bool:
    """Say whether the coordinates are the numbers of the array, of more than one place."""
    if clues.lattice is None or clues.measured.positions.n_places < 2:
        return False
    return is_lattice_itself(clues.native, clues.lattice)


def _read_stated(unit: str | None, microns_per_unit: float | None) -> tuple[str, float]:
    """Return the unit that is stated, and micrometers in it."""
    name = "um" if unit is None else unit.strip().lower()
    scale = 1.0
    if name in UM_WORDS:
        name = "um"
    elif name in _LENGTHS:
        scale = _LENGTHS[name]
        name = "um"
    if name not in _UNITS:
        listed = ", ".join((*_UNITS, *_LENGTHS))
        raise ConfigError(f"unit {unit!r} is not known; use one of {listed}, or microns_per_unit=")
    if microns_per_unit is None:
        return name, scale
    is_length = np.isfinite(microns_per_unit) and microns_per_unit > 0
    if not is_length:
        raise ConfigError(f"microns_per_unit must be a positive number, not {microns_per_unit!r}")
    return "um", float(microns_per_unit)
