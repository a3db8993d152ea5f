"""What each system can do with a slice, a line each: asked of the same checks that the models make."""

from __future__ import annotations

import warnings

from terrazzo.errors import TerrazzoError, TerrazzoWarning
from terrazzo.models.base import require_counts
from terrazzo.slices import Slice
from terrazzo.systems import registry

__all__ = ["LACKS", "READY", "counts_problem", "uses"]

READY = "yes: "
LACKS = "no: "
WHY_COUNTS = "it learns from counts"


def uses(tissue: Slice, spot_um: float | None = None) -> dict[str, str]:
    """Return what can be done with a slice, a line a system.

    Parameters
    ----------
    tissue
        The slice; normalized values and no image are no errors here.
    spot_um
        Diameter of a spot, where the platform's is not meant.

    Returns
    -------
    Title to a line that begins with ``"yes: "`` or ``"no: "``.
    """
    out: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TerrazzoWarning)  # what they say is in the lines
        for system in registry.systems().values():
            if system.uses:
                out.update(registry.resolve(system.uses)(tissue, spot_um))
    return out


def counts_problem(tissue: Slice) -> str:
    """Return why a slice cannot be learned from; "" where it has counts."""
    try:
        require_counts(tissue, WHY_COUNTS)
    except TerrazzoError as error:
        return str(error)
    return ""
