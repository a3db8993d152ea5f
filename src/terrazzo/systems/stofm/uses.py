"""Uses of SToFM for a slice, for ``terrazzo info``."""

from __future__ import annotations

from terrazzo.models.uses import LACKS, READY, counts_problem
from terrazzo.slices import Slice

__all__ = ["uses"]


def uses(tissue: Slice, spot_um: float | None = None) -> dict[str, str]:
    """Return one line; see :func:`terrazzo.models.uses.uses`."""
    problem = counts_problem(tissue)
    if problem:
        line = f"{LACKS}{problem} In Python, allow_normalized=True reads their ranks."
    elif tissue.unit == "um":
        line = f"{READY}a vector for each cell; distances in micrometers"
    else:
        line = (
            f"{READY}a vector for each cell; distances in spacings "
            "(its micrometers are not known: --microns-per-unit)"
        )
    return {"SToFM": line}
