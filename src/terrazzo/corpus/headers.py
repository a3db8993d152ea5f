"""What a slice's file says of itself before it is loaded: cells, genes, technology, organism."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terrazzo import keys
from terrazzo.errors import ConfigError, CorpusError
from terrazzo.genes.names import parse_organism

_ASSAY = "assay"  # obs column in which CELLxGENE has the technology


@dataclass(frozen=True)
class Header:
    """Size of a slice, and what it states; None where it states nothing."""

    n_cells: int
    n_genes: int
    technology: str | None = None
    organism: str | None = None


def read_header(path: Path) -> Header:
    """Read the header of an ``.h5ad`` file or AnnData ``.zarr`` folder; no counts are read.

    Raises
    ------
    CorpusError
        It is damaged, or no AnnData.
    """
    try:
        if path.is_dir():
            import zarr

            return _header(zarr.open_group(path, mode="r"))
        import h5py

        with h5py.File(path, "r") as file:
            return _header(file)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CorpusError(f"it is damaged or no AnnData file ({type(error).__name__})") from error


def _header(root: Any) -> Header:
    sizes = [_length(root[axis]) for axis in ("obs", "var")]
    uns = root.get("uns", {})
    organism = _text(uns, keys.ORGANISM) or _single(root["obs"], keys.ORGANISM)
    try:
        organism = None if organism is None else parse_organism(organism)
    except ConfigError:
        organism = None
    technology = _text(uns, keys.TECHNOLOGY) or _single(root["obs"], _ASSAY)
    return Header(sizes[0], sizes[1], technology, organism)


def _length(table: Any) -> int:
    if not hasattr(table, "keys"):  # a structured array, as old files have it
        return int(table.shape[0])
    index = table.attrs["_index"]
    return int(table[index.decode() if isinstance(index, bytes) else str(index)].shape[0])


def _text(group: Any, name: str) -> str | None:
    if name not in group or getattr(group[name], "shape", None) != ():
        return None
    value = group[name][()]
    value = value.item() if hasattr(value, "item") else value
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return text if isinstance(text, str) else None


def _single(table: Any, name: str) -> str | None:
    """Return the only category of a column, None where it has several."""
    if not hasattr(table, "keys") or name not in table or not hasattr(table[name], "keys"):
        return None
    categories = table[name]["categories"]
    if categories.shape != (1,):
        return None
    value = categories[:][0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
