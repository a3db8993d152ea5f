"""What every figure needs: axes of the right size, a legend that can be read, and a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from terrazzo.errors import OutputError
from terrazzo.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

MAX_LEGEND = 40
_ROW = 0.165  # inches: a line of the legend
_LETTER = 0.06  # inches: a letter of it, about
_BAR = 0.7  # inches: a scale and its numbers
_TAIL = 0.5  # per cent of the numbers that may lie beyond either end of their scale
_MARKER = 7.0  # points: the same dot in every legend, whatever the size of a cell


def new_axes(width: float = 5.0, height: float = 5.0) -> Axes:
    """Make a figure (inches) with one pair of axes."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def legend_width(names: Collection[str], height: float) -> float:
    """Inches that a legend beside axes of this height takes, about; without names: that a scale takes."""
    if not names:
        return _BAR
    if len(names) > MAX_LEGEND:
        return 0.0
    lengths = [len(name) for name in names]
    rows = -(-len(lengths) // _legend_columns(len(lengths), height))
    return sum(
        0.4 + _LETTER * max(lengths[start : start + rows]) for start in range(0, len(lengths), rows)
    )


def add_legend(axes: Axes, colors: Mapping[str, str]) -> None:
    """Name the colors beside the axes; not where there are more than anybody can tell apart."""
    from matplotlib.lines import Line2D

    if not colors or len(colors) > MAX_LEGEND:
        return
    dots = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=_MARKER,
            markeredgewidth=0,
            color=color,
            label=name,
        )
        for name, color in colors.items()
    ]
    axes.legend(
        handles=dots,
        ncols=_legend_columns(len(dots), size_of(axes)[1]),
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        frameon=False,
        fontsize="small",
        handletextpad=0.2,
        columnspacing=1.0,
        borderaxespad=0.3,
    )


def scale_of(numbers: NDArray[np.float64]) -> Normalize:
    """Return the ends of a color scale: all but the extreme half per cent, or all where nothing else varies.

    One cell of a thousand would otherwise leave all others in the dark.
    """
    from matplotlib.colors import Normalize

    low, high = np.percentile(numbers, (_TAIL, 100 - _TAIL))
    if low == high:
        low, high = numbers.min(), numbers.max()
    return Normalize(float(low), float(high))


def add_scale(axes: Axes, drawn: Any, numbers: NDArray[np.float64]) -> None:
    """Draw the scale of colors beside the axes; an end beyond which there are numbers is an arrow."""
    below, above = numbers.min() < drawn.norm.vmin, numbers.max() > drawn.norm.vmax
    ends = {
        (False, False): "neither",
        (True, False): "min",
        (False, True): "max",
        (True, True): "both",
    }
    # inside the axes' own frame: it stays beside a tissue that is narrower than its panel
    beside = axes.inset_axes((1.03, 0.2, 0.035, 0.6))
    axes.figure.colorbar(drawn, cax=beside, extend=ends[bool(below), bool(above)])
    beside.tick_params(labelsize="small")


def size_of(axes: Axes) -> tuple[float, float]:
    """Width and height in inches."""
    box = axes.get_window_extent().transformed(axes.figure.dpi_scale_trans.inverted())
    return float(box.width), float(box.height)


def _legend_columns(n: int, height: float) -> int:
    return -(-n // max(8, int(height / _ROW)))


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure, with all that stands beside its axes, and close it.

    Raises
    ------
    OutputError
        It cannot be written there, or not in this format.
    """
    import matplotlib.pyplot as plt

    target = Path(path)
    try:
        if not target.suffix:
            raise ValueError("its name has no ending; take .png, .pdf or .svg")
        with whole_file(target) as draft:
            figure.savefig(draft, dpi=150, bbox_inches="tight", format=target.suffix[1:].lower())
    except OSError as error:
        raise OutputError(f"{path} could not be written ({error.strerror or error}).") from error
    except ValueError as error:  # matplotlib names the formats it knows
        raise OutputError(f"{path} could not be written ({error}).") from error
    finally:
        plt.close(figure)
    return target
