"""What is drawn in which color: values out of an AnnData, and a color for each category, the same in every figure."""

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
from terrazzo.errors import ConfigError, InputError, did_you_mean

Palette = Mapping[str, Any] | Sequence[Any] | str
"""Colors by name; or in the order of the categories; or a matplotlib color map."""

COLORS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#bcbd22",
    "#17becf",
    "#4b5a00",
    "#e1a55a",
    "#87004b",
    "#00e1b4",
    "#ff8787",
    "#2d695a",
    "#960f96",
    "#96c378",
    "#f02d78",
    "#1e87ff",
    "#0f3cb4",
    "#963c00",
    "#4b3c69",
    "#b4b4ff",
    "#96875a",
    "#c387a5",
    "#00692d",
    "#a5e15a",
    "#5ac3ff",
    "#f0b41e",
    "#876900",
    "#870f1e",
    "#2da587",
    "#e1d278",
    "#3ce178",
    "#d287ff",
    "#5a8700",
    "#d22d96",
    "#004b69",
    "#ffb4a5",
    "#693c00",
)
"""Matplotlib's ten without the gray; then each about as far as can be (CIELAB) from all before it, white and gray."""

MISSING_COLOR = "#d9d9d9"
MISSING = "no label"
MAP = "viridis"
_MISSING_WORDS = ("", "nan", "<na>")  # what a missing label becomes on its way through text
_STRONG = (
    len(COLORS) // 2
)  # colors that names choose from; the later ones, less far apart, are for those that meet
_SALT = 86558  # one at which no two region names of the slices in reach meet, and few cell types
_GOLDEN = 0.618034


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
    if not isinstance(values.dtype, pd.CategoricalDtype):
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
        is_label = pd.api.types.is_bool_dtype(column.dtype) or not pd.api.types.is_numeric_dtype(
            column.dtype
        )
        if is_label:
            return _as_labels(column)
        numbers = column.to_numpy(dtype=float, na_value=np.nan)
    else:
        numbers = _expression(adata, color)
    return pd.Series(np.where(np.isfinite(numbers), numbers, np.nan), index=adata.obs_names)


def label_colors(
    adata: AnnData, color: str, values: pd.Series, palette: Palette | None
) -> dict[str, str]:
    """Return the color of each category of :func:`read_values`; see :func:`colors`."""
    names = list(values.cat.categories)
    if isinstance(palette, Mapping):
        given = {str(k): as_hex(v) for k, v in palette.items()}
    elif palette is not None:
        given = _by_place(_declared(adata.obs[color]), palette)
    else:
        given = _from_scanpy(adata, color)
    return by_name(names, {name: given[name] for name in names if name in given})


def by_name(names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Give each name its color: the given one, its own, or, where another has that, the next free one."""
    taken = dict(given)
    used = set(taken.values())
    moved = []
    for name in sorted(names, key=natural):
        if name not in taken:
            wish = COLORS[_slot(name)]
            if wish in used:
                moved.append(name)
            else:
                taken[name] = wish
                used.add(wish)
    for name in moved:  # after all others, so that none of them loses its own color
        start = _STRONG + _slot(name) % _STRONG
        choices = itertools.chain(COLORS[start:], COLORS[_STRONG:start], COLORS, _beyond())
        taken[name] = next(color for color in choices if color not in used)
        used.add(taken[name])
    return {name: taken[name] for name in names}


def as_hex(color: Any) -> str:
    """Return ``"#rrggbb"``; ConfigError where it is no color."""
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
    if name not in mpl.colormaps:
        near = difflib.get_close_matches(name, list(mpl.colormaps), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"palette: matplotlib has no color map {name!r}{hint}")
    return mpl.colormaps[name]


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts ``"2"`` before ``"10"``, and capitals beside small letters."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part.lower() for i, part in enumerate(parts)], name


def said(values: pd.Series) -> np.ndarray:
    """Return which entries of a column are labels, bool ``(n,)``."""
    words = values.astype(object).map(lambda v: "" if pd.isna(v) else str(v).strip().lower())
    return ~words.isin(_MISSING_WORDS).to_numpy(dtype=bool)


def _as_labels(column: pd.Series) -> pd.Series:
    """Text categories that occur, in the declared order, or in the natural one where none was chosen."""
    words = [
        str(value) if known else None for value, known in zip(column, said(column), strict=True)
    ]
    present = set(words)
    names = [name for name in _declared(column) if name in present]
    if names == sorted(names):  # the order of the alphabet is nobody's choice
        names.sort(key=natural)
    return pd.Series(pd.Categorical(words, categories=names), index=column.index)


def _declared(column: pd.Series) -> list[str]:
    """Categories as scanpy counts them: all that are declared, the sorted ones of text."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return list(dict.fromkeys(map(str, column.cat.categories)))
    return sorted({str(v) for v in column.dropna()})


def _expression(adata: AnnData, gene: str) -> np.ndarray:
    """Values of a gene in ``X``, float64 ``(n,)``; columns that repeat its name are summed, as a Slice does."""
    columns = [c for c in (*keys.SYMBOL_COLUMNS, *keys.ENSEMBL_COLUMNS) if c in adata.var]
    for names in (adata.var_names, *(adata.var[c] for c in columns)):
        at = np.flatnonzero(np.asarray(names.astype(str)) == gene)
        if len(at):
            block = adata[:, at].X
            if block is None:
                raise InputError(
                    f"{gene!r} is a gene, but the AnnData has no X; set adata.X to what is to be drawn."
                )
            block = block.toarray() if hasattr(block, "toarray") else np.asarray(block)
            return block.sum(axis=1, dtype=float)
    hint = did_you_mean(gene, [*adata.obs, *adata.var_names])
    raise InputError(
        f"{gene!r} is neither a column of obs ({', '.join(map(str, adata.obs))}) nor a gene.{hint}"
    )


def _by_place(names: Sequence[str], palette: Sequence[Any] | str) -> dict[str, str]:
    if isinstance(palette, str):
        scale = color_map(palette)
        n = len(names)
        listed = (
            getattr(scale, "colors", None) if scale.N <= 20 else None
        )  # tab10 and its kin are lists of colors
        places = range(n) if listed is not None and n <= scale.N else np.linspace(0, 1, n)
        return {name: as_hex(scale(place)) for name, place in zip(names, places, strict=True)}
    if len(palette) < len(names):
        raise ConfigError(
            f"palette has {len(palette)} colors for {len(names)} categories; add {', '.join(names)}."
        )
    return {name: as_hex(color) for name, color in zip(names, palette, strict=False)}


def _from_scanpy(adata: AnnData, color: str) -> dict[str, str]:
    """Colors that scanpy stored; none where they do not fit the categories."""
    from matplotlib.colors import is_color_like

    stored = adata.uns.get(f"{color}_colors")
    names = _declared(adata.obs[color])
    if (
        stored is None
        or isinstance(stored, str)
        or np.ndim(stored) != 1
        or len(stored) < len(names)
    ):
        return {}
    found = [str(color) for color in stored]
    if not all(map(is_color_like, found)):
        return {}
    return {name: as_hex(color) for name, color in zip(names, found, strict=False)}


def _slot(name: str) -> int:
    """Place in the palette: hash of the name without the number at its end, plus that number."""
    stem = name.rstrip("0123456789")
    number = int(name[len(stem) :][-6:] or 0)
    return ((zlib.crc32(f"{_SALT}{stem}".encode()) % _STRONG if stem else 0) + number) % len(COLORS)


def _beyond() -> Iterator[str]:
    """Yield ever more colors; nobody can tell so many apart."""
    from matplotlib.colors import hsv_to_rgb, to_hex

    for turn in itertools.count(start=_GOLDEN, step=_GOLDEN):
        yield to_hex(
            tuple(hsv_to_rgb((turn % 1, 0.45 + 0.5 * (turn * 7 % 1), 0.45 + 0.5 * (turn * 3 % 1))))
        )
