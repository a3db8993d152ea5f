"""Parts of every figure: axes of the right size, a readable legend, a scale of colors, and a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from terrazzo.arrays import Floats
from terrazzo.errors import OutputError
from terrazzo.files import whole_file
from terrazzo.marks import ATTRIBUTE, Mark, guard

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

__all__ = [
    "MAX_LEGEND",
    "add_legend",
    "add_scale",
    "legend_width",
    "new_axes",
    "save",
    "scale_of",
    "size_of",
]

MAX_LEGEND = 40
_ROW = 0.165  # inches: a line of the legend
_LETTER = 0.06  # inches: a letter of it, about
_DOT = 0.4  # inches: the dot before a name, and the space around both
_BAR = 0.7  # inches: a scale and its numbers
_TAIL = 0.5  # per cent of the numbers that may be beyond either end of their scale
_ANY = Mark("figure", "0" * 16, "0" * 16, "a figure")  # drawn by a script
_MARKER = 7.0  # points: the same dot in every legend, whatever the size of a cell


def new_axes(width: float = 5.0, height: float = 5.0) -> Axes:
    """Make a figure (inches) with one pair of axes."""
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(width, height), layout="constrained")
    return axes


def legend_width(names: Collection[str], height: float) -> float:
    """Return the inches that a legend beside axes of this height takes, about; without names, those of a scale."""
    if not names:
        return _BAR
    if len(names) > MAX_LEGEND:
        return 0.0
    lengths = [len(name) for name in names]
    n_columns = _legend_columns(len(lengths), height)
    n_rows = -(-len(lengths) // n_columns)
    width = 0.0
    for start in range(0, len(lengths), n_rows):
        longest = max(lengths[start : start + n_rows])
        width += _DOT + _LETTER * longest
    return width


def add_legend(axes: Axes, colors: Mapping[str, str]) -> None:
    """Name the colors beside the axes; not where there are more than anybody can tell apart."""
    from matplotlib.lines import Line2D

    if not colors or len(colors) > MAX_LEGEND:
        return
    dots = []
    for name, color in colors.items():
        dot = Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=_MARKER,
            markeredgewidth=0,
            color=color,
            label=name,
        )
        dots.append(dot)
    _, height = size_of(axes)
    axes.legend(
        handles=dots,
        ncols=_legend_columns(len(dots), height),
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        frameon=False,
        fontsize="small",
        handletextpad=0.2,
        columnspacing=1.0,
        borderaxespad=0.3,
    )


def scale_of(numbers: Floats) -> Normalize:
    """Return the ends of a color scale: all but the extreme half per cent, or all where nothing else varies.

    One cell of a thousand would otherwise leave all others in the dark.
    """
    from matplotlib.colors import Normalize

    tails = (_TAIL, 100 - _TAIL)
    low, high = np.percentile(numbers, tails)
    if low == high:
        low = numbers.min()
        high = numbers.max()
    return Normalize(float(low), float(high))


def add_scale(axes: Axes, drawn: Any, numbers: Floats) -> None:
    """Draw the scale of colors beside the axes; an end beyond which there are numbers is an arrow."""
    goes_below = numbers.min() < drawn.norm.vmin
    goes_above = numbers.max() > drawn.norm.vmax
    if goes_below and goes_above:
        arrows = "both"
    elif goes_below:
        arrows = "min"
    else:
        arrows = "max" if goes_above else "neither"
    # inside the axes' own frame: it stays beside a tissue that is narrower than its panel
    beside = axes.inset_axes((1.03, 0.2, 0.035, 0.6))
    axes.figure.colorbar(drawn, cax=beside, extend=arrows)
    beside.tick_params(labelsize="small")


def size_of(axes: Axes) -> tuple[float, float]:
    """Return width and height in inches."""
    to_inches = axes.figure.dpi_scale_trans.inverted()
    box = axes.get_window_extent().transformed(to_inches)
    return float(box.width), float(box.height)


def _legend_columns(n: int, height: float) -> int:
    """Return the columns of a legend of ``n`` names beside axes of this height."""
    n_rows = max(8, int(height / _ROW))
    return -(-n // n_rows)


def save(
    figure: Figure, path: str | Path, *, overwrite: bool = False, mark: Mark | None = None
) -> Path:
    """Write a figure, with all that is beside its axes, and close it.

    Parameters
    ----------
    figure
        Of matplotlib.
    path
        Its ending is the format.
    overwrite
        Replace a file that is not a figure of terrazzo; without it only figures that this function wrote are replaced.
    mark
        Of the command line: what it was drawn from.

    Raises
    ------
    OutputError
        It cannot be written there, or not in this format; there is another file.
    """
    import matplotlib.pyplot as plt

    target = Path(path)
    mark = mark or _ANY
    try:
        guard(target, mark, overwrite=overwrite)
        if not target.suffix:
            raise ValueError("its name has no ending; take .png, .pdf or .svg")
        file_format = target.suffix[1:].lower()
        with whole_file(target) as draft:
            figure.savefig(
                draft,
                dpi=150,
                bbox_inches="tight",
                format=file_format,
                **_marked(file_format, mark),
            )
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        reason = error.strerror or error
        raise OutputError(f"{path} could not be written ({reason}).") from error
    except ValueError as error:  # matplotlib names the formats it knows
        raise OutputError(f"{path} could not be written ({error}).") from error
    finally:
        plt.close(figure)
    return target


def _marked(file_format: str, mark: Mark) -> dict[str, Any]:
    """Return the argument of ``savefig`` that puts a mark into a file; {} where the format has no place for one."""
    text = mark.text()
    if file_format == "png":
        return {"metadata": {ATTRIBUTE: text}}
    if file_format in ("pdf", "svg"):
        return {"metadata": {"Keywords": text}}
    if file_format in ("eps", "ps"):
        return {"metadata": {"Creator": text}}
    if file_format in ("jpg", "jpeg"):
        return {"pil_kwargs": {"comment": text.encode()}}
    if file_format in ("tif", "tiff"):
        return {"pil_kwargs": {"description": text}}
    return {}
