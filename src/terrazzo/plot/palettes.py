"""Colors: the values of a column or gene, and a color for each category that is the same in every figure."""

from __future__ import annotations

import difflib
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.arrays import Bools, Floats
from terrazzo.errors import ConfigError, InputError, did_you_mean
from terrazzo.sparse import check_matrix

__all__ = [
    "COLORS",
    "MAP",
    "MISSING",
    "MISSING_COLOR",
    "N_PATTERNS",
    "Palette",
    "as_hex",
    "by_name",
    "color_map",
    "colors",
    "in_order",
    "is_label",
    "joint_label_colors",
    "label_colors",
    "natural",
    "pattern_of",
    "read_values",
]

Palette = Mapping[str, Any] | Sequence[Any] | str
"""Colors by name; or in the order of the categories; or a matplotlib color map."""

COLORS = (
    "#003cb4",
    "#ffb42d",
    "#00b496",
    "#c32d0f",
    "#b496ff",
    "#5a2d5a",
    "#e17800",
    "#7869e1",
    "#965a87",
    "#870000",
    "#361b36",
    "#510000",
    "#b2c4e8",
    "#b76666",
    "#78486c",
    "#f3c999",
    "#002a7e",
    "#4ccbb6",
    "#668ad2",
    "#6054b4",
    "#99b1e1",
    "#ab4c4c",
    "#9f3333",
    "#9c819c",
    "#e79333",
    "#483f87",
    "#cf573f",
    "#7e69b2",
    "#809eda",
    "#482448",
    "#6c0000",
    "#009078",
    "#6c5a99",
    "#544a9d",
    "#c3abff",
    "#693f5e",
    "#e0ba77",
    "#00483c",
    "#00362d",
    "#ba8549",
)
"""Ten that people of every color vision tell apart, and white and gray from them; then shades of these, each as far as
can be from all before it."""

MISSING_COLOR = "#d9d9d9"
MISSING = "no label"
MAP = "viridis"
_MISSING_WORDS = ("", "nan", "<na>")  # what a missing label becomes on its way through text
# colors that names choose from; the shades of these are for names whose color is taken
_STRONG = 10
N_PATTERNS = 3  # of shades: stripes, stripes the other way, squares
# one with which no two region names of one of the usual annotated studies share a color
_SALT = 7451
_GOLDEN = 0.618034
_LISTED = 20  # color maps of at most so many colors (tab10 and the like) are lists of colors


def colors(adata: AnnData, color: str, *, palette: Palette | None = None) -> dict[str, str]:
    """Return the color of each category of an ``obs`` column, as the figures of this room use it.

    A category has its color by its name, so that subsets, other slices and later runs agree: names that differ in
    a number at their end follow one another in the palette. Where two names in one column would meet, the later one
    moves on, so a subset without the other may differ; to rule that out, pass the answer of the whole as ``palette``.

    Parameters
    ----------
    adata
        Its ``uns["<color>_colors"]``, where scanpy has left it and it fits, goes before the names. Never written to.
    color
        Column of ``obs`` that holds labels.
    palette
        Colors by name (names that it lacks keep their own), in the order of the categories, or a matplotlib color
        map. Goes before everything else.

    Returns
    -------
    dict
        ``"#rrggbb"`` of every category that occurs, in the order of a legend.

    Raises
    ------
    InputError
        There is no such column, or it holds numbers.
    ConfigError
        The palette holds something that is no color, or too few.
    """
    values = read_values(adata, color)
    if not is_label(values):
        raise InputError(f"{color!r} holds numbers; only labels have a color each.")
    return label_colors(adata, color, values, palette)


def read_values(adata: AnnData, color: str) -> pd.Series:
    """Return a column of ``obs`` or a gene: text categories (NaN: no label), or float64 (NaN: not finite).

    Raises
    ------
    InputError
        ``color`` is neither a column nor a gene.
    """
    if color in adata.obs:
        column = adata.obs[color]
        is_flag = pd.api.types.is_bool_dtype(column.dtype)
        if is_flag or not pd.api.types.is_numeric_dtype(column.dtype):
            return _as_labels(column)
        numbers = column.to_numpy(dtype=float, na_value=np.nan)
    else:
        numbers = _expression(adata, color)
    finite = np.where(np.isfinite(numbers), numbers, np.nan)
    return pd.Series(finite, index=adata.obs_names)


def is_label(values: pd.Series) -> bool:
    """Return whether :func:`read_values` read labels, not numbers."""
    return isinstance(values.dtype, pd.CategoricalDtype)


def label_colors(
    adata: AnnData, color: str, values: pd.Series, palette: Palette | None
) -> dict[str, str]:
    """Return the color of each category of :func:`read_values`; see :func:`colors`."""
    return joint_label_colors([adata], color, [values], palette)


def joint_label_colors(
    slices: Sequence[AnnData],
    color: str,
    values: Sequence[pd.Series],
    palette: Palette | None,
) -> dict[str, str]:
    """Return the color of each category of several slices; colors stored in the first of them go first."""
    names: list[str] = []
    for one in values:
        names += [name for name in one.cat.categories if name not in names]
    chosen: dict[str, str] = {}
    if isinstance(palette, Mapping):
        chosen = {str(name): as_hex(value) for name, value in palette.items()}
    elif palette is not None:
        declared = [name for adata in slices for name in _declared(adata.obs[color])]
        chosen = _by_place(list(dict.fromkeys(declared)), palette)
    else:
        for adata in slices:
            chosen = {**_from_scanpy(adata, color), **chosen}
    of_names = {name: chosen[name] for name in names if name in chosen}
    return by_name(names, of_names)


def by_name(names: Sequence[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """Give each name its color: the chosen one, its own, or, where another has that, the next free one."""
    taken = dict(chosen)
    used = set(taken.values())
    without = []
    for name in sorted(names, key=natural):
        if name in taken:
            continue
        own = COLORS[_slot(name)]
        if own in used:
            without.append(name)
        else:
            taken[name] = own
            used.add(own)
    for name in without:  # after all others, so that none of them loses its own color
        start = _slot(name) % _STRONG
        strong = (*COLORS[start:_STRONG], *COLORS[:start])
        candidates = itertools.chain(strong, COLORS, _beyond())
        free = next(color for color in candidates if color not in used)
        taken[name] = free
        used.add(free)
    return {name: taken[name] for name in names}


def in_order(n: int) -> list[str]:
    """Return the first ``n`` colors, for labels that have a number: ever new ones beyond the palette."""
    return list(itertools.islice(itertools.chain(COLORS, _beyond()), n))


def pattern_of(color: str) -> int:
    """Return the pattern that goes with a color where shades alone are hard to tell apart, as in the report.

    0: plain, for the ten strong colors and for all that are not of this palette; 1 to 3: for their shades.
    """
    if color not in COLORS:
        return 0
    place = COLORS.index(color)
    return min(place // _STRONG, N_PATTERNS)


def as_hex(color: Any) -> str:
    """Return ``"#rrggbb"``; ConfigError where it is not a color."""
    from matplotlib.colors import to_hex

    try:
        return to_hex(color)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"palette: {color!r} is not a color that matplotlib knows.") from error


def color_map(palette: Palette | None) -> Any:
    """Return the color map for numbers: ``palette``, where it is one.

    Raises
    ------
    ConfigError
        No color map of this name.
    """
    import matplotlib as mpl

    name = palette if isinstance(palette, str) else MAP
    if name in mpl.colormaps:
        return mpl.colormaps[name]
    near = difflib.get_close_matches(name, list(mpl.colormaps), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"palette: matplotlib has no color map {name!r}{hint}")


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts ``"2"`` before ``"10"``, and capitals beside small letters."""
    key: list[str | int] = []
    for i, part in enumerate(re.split(r"([0-9]+)", name)):
        is_number = i % 2 == 1
        key.append(int(part) if is_number else part.lower())
    return key, name


def has_label(values: pd.Series) -> Bools:
    """Return which entries of a column are labels, bool ``(n,)``."""
    words = values.astype(object).map(_word)
    return ~words.isin(_MISSING_WORDS).to_numpy(dtype=bool)


def _word(value: Any) -> str:
    """Return a label in small letters; "" where it is missing."""
    if pd.isna(value):
        return ""
    return str(value).strip().lower()


def _as_labels(column: pd.Series) -> pd.Series:
    """Return text categories that occur, in the declared order, or in the natural one where none was chosen."""
    known = has_label(column)
    words = []
    for value, is_known in zip(column, known, strict=True):
        words.append(str(value) if is_known else None)
    present = set(words)
    names = [name for name in _declared(column) if name in present]
    if names == sorted(names):  # alphabetical order was not chosen by anybody
        names.sort(key=natural)
    categories = pd.Categorical(words, categories=names)
    return pd.Series(categories, index=column.index)


def _declared(column: pd.Series) -> list[str]:
    """Return categories as scanpy counts them: all that are declared, the sorted ones of text."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return list(dict.fromkeys(map(str, column.cat.categories)))
    return sorted({str(value) for value in column.dropna()})


def _expression(adata: AnnData, gene: str) -> Floats:
    """Return values of a gene in ``X``, float64 ``(n,)``; columns that repeat its name are summed, as in a Slice."""
    for names in _gene_names(adata):
        columns = np.flatnonzero(np.asarray(names.astype(str)) == gene)
        if not len(columns):
            continue
        check_matrix(adata.X, "X")
        values = adata[:, columns].X
        if values is None:
            raise InputError(
                f"{gene!r} is a gene, but the AnnData has no X; set adata.X to what is to be drawn."
            )
        dense = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
        return dense.sum(axis=1, dtype=float)
    known = ", ".join(map(str, adata.obs))
    hint = did_you_mean(gene, [*adata.obs, *adata.var_names])
    raise InputError(f"{gene!r} is neither a column of obs ({known}) nor a gene.{hint}")


def _gene_names(adata: AnnData) -> Iterator[Any]:
    """Yield the names of all genes: the index, then symbols and ids."""
    yield adata.var_names
    for name in (*keys.SYMBOL_COLUMNS, *keys.ENSEMBL_COLUMNS):
        if name in adata.var:
            yield adata.var[name]


def _by_place(names: Sequence[str], palette: Sequence[Any] | str) -> dict[str, str]:
    """Give names the colors of a list or of a color map, in their order."""
    if isinstance(palette, str):
        return _of_map(names, palette)
    n_colors = len(palette)
    if n_colors < len(names):
        shown = ", ".join(names)
        raise ConfigError(
            f"palette has {n_colors} colors for {len(names)} categories; add {shown}."
        )
    return {name: as_hex(color) for name, color in zip(names, palette, strict=False)}


def _of_map(names: Sequence[str], palette: str) -> dict[str, str]:
    """Give names the colors of a color map: the first ones of a list, else evenly spaced ones."""
    scale = color_map(palette)
    n = len(names)
    is_list = scale.N <= _LISTED and getattr(scale, "colors", None) is not None
    takes_first = is_list and n <= scale.N
    places = range(n) if takes_first else np.linspace(0, 1, n)
    return {name: as_hex(scale(place)) for name, place in zip(names, places, strict=True)}


def _from_scanpy(adata: AnnData, color: str) -> dict[str, str]:
    """Return colors that scanpy stored; none where they do not fit the categories."""
    from matplotlib.colors import is_color_like

    stored = adata.uns.get(f"{color}_colors")
    if stored is None or isinstance(stored, str) or np.ndim(stored) != 1:
        return {}
    names = _declared(adata.obs[color])
    values = [str(value) for value in stored]
    are_colors = all(map(is_color_like, values))
    if len(values) < len(names) or not are_colors:
        return {}
    return {name: as_hex(value) for name, value in zip(names, values, strict=False)}


def _slot(name: str) -> int:
    """Return the place in the palette: hash of the name without the number at its end, plus that number."""
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    number = int(digits[-6:] or 0)
    start = 0
    if stem:
        checksum = zlib.crc32(f"{_SALT}{stem}".encode())
        start = checksum % _STRONG
    if number < _STRONG:
        return (start + number) % _STRONG
    return number % len(COLORS)


def _beyond() -> Iterator[str]:
    """Yield ever more colors; nobody can tell so many apart."""
    from matplotlib.colors import hsv_to_rgb, to_hex

    for turn in itertools.count(start=_GOLDEN, step=_GOLDEN):
        hue = turn % 1
        saturation = 0.45 + 0.5 * (turn * 7 % 1)
        value = 0.45 + 0.5 * (turn * 3 % 1)
        yield to_hex(tuple(hsv_to_rgb((hue, saturation, value))))
