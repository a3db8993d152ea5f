"""Lines on what each system can do with a slice, by the same checks that the models make."""

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
        The slice; normalized values or a missing image are not errors.
    spot_um
        Diameter of a spot, in place of the platform's.

    Returns
    -------
    Title to a line that begins with ``"yes: "`` or ``"no: "``.
    """
    lines: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TerrazzoWarning)  # the lines state the same
        for system in registry.systems().values():
            if system.uses:
                uses_of_system = registry.resolve(system.uses)
                lines.update(uses_of_system(tissue, spot_um))
    return lines


def counts_problem(tissue: Slice) -> str:
    """Return why a slice cannot be trained on; "" where it has counts."""
    try:
        require_counts(tissue, WHY_COUNTS)
    except TerrazzoError as error:
        return str(error)
    return ""
