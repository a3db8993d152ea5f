"""A corpus on disk: a folder of slices as AnnData zarr stores, a manifest of them, and rows straight from the arrays.

::

    corpus.json         format and library version, options, checksums of the two tables below, what was left out
    manifest.parquet    one row a slice; written last, so that only whole corpora have one
    vocab.parquet       genes and medians of the training slices
    members/<id>.zarr   AnnData, zarr v3; rows in Hilbert order; opens with anndata.read_zarr
    members/<id>.json   checksums of its files, and what it was made from
"""

from __future__ import annotations

import hashlib
import html
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.io import read_elem
from numpy.typing import ArrayLike

from terrazzo import keys
from terrazzo.arrays import Floats, Ints
from terrazzo.corpus.histology import libraries
from terrazzo.corpus.shards import RowReader
from terrazzo.corpus.splits import SPLITS
from terrazzo.errors import CheckpointError, CorpusError, InputError, shortened
from terrazzo.files import hash_file, hash_json, read_record
from terrazzo.genes import Vocabulary
from terrazzo.safe_files import check_inside, check_name
from terrazzo.safe_zarr import refuse_code, refuse_links, refuse_sizes
from terrazzo.slices import Slice
from terrazzo.slices.geometry import Geometry, find_geometry, find_image
from terrazzo.slices.sections import NO_KEY
from terrazzo.sparse import check_matrix

if TYPE_CHECKING:
    from terrazzo.images import TissueImage

__all__ = [
    "ABOUT",
    "COLUMNS",
    "FORMAT_VERSION",
    "MANIFEST",
    "MEMBERS",
    "SCALE",
    "VOCABULARY",
    "Corpus",
    "content_hash",
    "manifest_bytes",
    "read_about",
    "read_manifest",
]

FORMAT_VERSION = 1
MANIFEST = "manifest.parquet"
VOCABULARY = "vocab.parquet"
ABOUT = "corpus.json"
MEMBERS = "members"
SCALE = "coord_scale"  # in the attributes of obsm/spatial: unit = stored * coord_scale
COLUMNS = {
    "id": pa.string(),
    "file": pa.string(),
    "technology": pa.string(),
    "organism": pa.string(),
    "tissue": pa.string(),
    "donor": pa.string(),
    "n_cells": pa.int64(),
    "n_genes": pa.int64(),
    "total_counts": pa.float64(),
    "unit": pa.string(),
    "spacing": pa.float64(),
    "source": pa.string(),
    "sha256": pa.string(),
    "split": pa.string(),
    "origin": pa.string(),  # source of the published corpus it came from, "" without one
    "gene_organism": pa.string(),  # of the genes: differs from `organism` after ortholog mapping
    "n_cells_read": pa.int64(),  # before quality control
    "median_genes": pa.float64(),  # expressed genes a cell
    "content": pa.string(),  # sha256 of counts and coordinates, whatever their order
}


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Many slices on disk. Cheap to open, to copy and to pickle: arrays are opened where they are first used.

    Attributes
    ----------
    folder
        Where it is.
    manifest
        One row a slice: id, file, technology, organism, tissue, donor, n_cells, n_genes, total_counts, unit, spacing,
        source, sha256, split ("train", "validation" or "test"); also origin, gene_organism, n_cells_read,
        median_genes, content.
    about
        Format, library version, published corpus, options; under "dropped" what was left out, and why.
    """

    folder: Path
    manifest: pd.DataFrame
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Corpus:
        """Open a corpus.

        Raises
        ------
        CorpusError
            Not a corpus; one whose build was not finished; a damaged or foreign manifest; a missing member.
        """
        folder = Path(folder)
        about = read_about(folder)
        manifest = read_manifest(folder, about)
        missing = []
        for name in manifest["file"]:
            if not (folder / name / "zarr.json").is_file():
                missing.append(name)
        if missing:
            raise CorpusError(
                f"{folder}: {len(missing)} of {len(manifest)} members are missing, e.g. {missing[0]}. Copy the whole "
                "folder again, or run the same `terrazzo corpus build`, which makes what is missing."
            )
        return cls(folder, manifest, about)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest, "about": self.about}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.manifest)

    def __repr__(self) -> str:
        """Return what the corpus is in one line."""
        return f"Corpus({str(self.folder)!r}, {len(self)} slices, {self.n_cells():,} cells)"

    def _repr_html_(self) -> str:
        """Return slices and cells by technology as a table, for notebooks; texts are escaped."""
        rows = []
        for technology, part in self.manifest.groupby("technology"):
            n_cells = int(part["n_cells"].sum())
            rows.append({"technology": technology, "slices": len(part), "cells": n_cells})
        total = {"technology": "total", "slices": len(self), "cells": self.n_cells()}
        rows.append(total)
        numbers = dict.fromkeys(("slices", "cells"), "{:,}".format)
        table = pd.DataFrame(rows).to_html(index=False, escape=True, formatters=numbers)
        folder = html.escape(str(self.folder))
        return f"<p>Corpus <code>{folder}</code></p>{table}"

    def ids(self, split: str | None = None) -> list[str]:
        """Return the ids of all slices, or of those of one split, in the order of the manifest."""
        return [str(name) for name in self._of(split)["id"]]

    def n_cells(self, split: str | None = None) -> int:
        """Return the number of cells in all slices, or in those of one split."""
        return int(self._of(split)["n_cells"].sum())

    def row(self, id: str) -> pd.Series:
        """Return the manifest's row of a slice.

        Raises
        ------
        CorpusError
            No such slice.
        """
        return self.manifest.iloc[self._at(id)]

    def _at(self, id: str) -> int:
        if id not in self._number:
            some = ", ".join(self.ids()[:5])
            raise CorpusError(f"{self.folder} has no slice {id!r}; it has {some}, ...")
        return self._number[id]

    def path(self, id: str) -> Path:
        """Return the zarr folder of a slice.

        Raises
        ------
        CorpusError
            No such slice; its folder has pickles or links out of it, or claims sizes that it does not have.
        """
        path = self.folder / str(self.row(id)["file"])
        if id not in self._checked:
            _check_member(path, self.folder)
            self._checked.add(id)
        return path

    def genes(self, id: str) -> tuple[np.ndarray, np.ndarray]:
        """Return Ensembl ids and symbols of a slice's columns, str (n_genes,) both, "" where unknown."""
        folder = self.path(id) / "var"
        with _reading(folder):
            return _read_texts(folder / "ensembl_id"), _read_texts(folder / "symbol")

    def rows(self, id: str, start: int, stop: int) -> sp.csr_matrix:
        """Return rows ``start:stop`` of a slice's counts, CSR float32 (float64 where a count exceeds 2**24).

        Neighboring rows are near each other in the tissue, so a part of a slice is few such reads.
        """
        n_cells = int(self.row(id)["n_cells"])
        first, last, _ = slice(start, stop).indices(n_cells)
        wanted = np.arange(first, last)
        return self._reader.take(id, wanted, once=True)

    def take(self, id: str, rows: ArrayLike) -> sp.csr_matrix:
        """Return any rows of a slice's counts in the order of ``rows``, as :meth:`rows` does.

        Parameters
        ----------
        id
            The slice.
        rows
            Integers from 0, below its ``n_cells``; those of one part of the tissue are a few contiguous reads.

        Raises
        ------
        CorpusError
            No such slice or row.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        n_cells = int(self._sizes[self._at(id)])  # not from `row`, which takes 0.1 ms
        if len(wanted):
            first = wanted.min()
            last = wanted.max()
            if first < 0 or last >= n_cells:
                raise CorpusError(
                    f"slice {id!r} has rows 0 to {n_cells - 1}, not {first} to {last}"
                )
        return self._reader.take(id, wanted)

    def coords(self, id: str) -> Floats:
        """Return the positions of a slice's cells, float64 (n_cells, 2), in the manifest's unit (um where known)."""
        path = self.path(id)
        with _reading(path):
            array = self._spatial(id)
            native = np.asarray(array[:], dtype=np.float64)
            coords = native * _scale(array)
        if not np.isfinite(coords).all():
            raise CorpusError(f"{path}: coordinates that are not finite; build it again.")
        return coords

    def image(self, id: str) -> TissueImage | None:
        """Return a slice's histology, None where it has none; its tiles stay on disk until a crop covers them.

        Raises
        ------
        CorpusError
            A file of it is missing.
        """
        adata = self._read(id)
        return find_image(adata, self._geometry(id, adata))

    def lattice(self, id: str) -> tuple[Ints | None, str | None]:
        """Return (row, column) of a slice's cells on its array, int64 (n_cells, 2), and the array's kind.

        As ``lattice`` and ``lattice_kind`` of the :meth:`slice`, without reading its counts; None where it has none.
        """
        path = self.path(id)
        with _reading(path):
            root: Any = zarr.open_group(path, mode="r")
            obs = root["obs"]
        if keys.ARRAY_ROW not in obs or keys.ARRAY_COL not in obs:
            return None, None
        geometry = self._geometry(id, self._read(id))
        return geometry.lattice, geometry.lattice_kind

    def _geometry(self, id: str, adata: AnnData) -> Geometry:
        """Return what is known of where the cells of a slice are."""
        native = np.asarray(adata.obsm[keys.SPATIAL])
        return find_geometry(adata, native, **self._unit(id), technology=None, check=False)

    def slice(self, id: str) -> Slice:
        """Return a whole slice, rows in Hilbert order; of its histology no pixel is read.

        Raises
        ------
        CorpusError
            No such slice, or a damaged one.
        """
        unit = self._unit(id)
        stated = {name: value for name, value in unit.items() if value is not None}
        adata = self._read(id, whole=True)
        return Slice.from_anndata(adata, layer="X", name=id, slice_key=NO_KEY, **stated)

    def _read(self, id: str, whole: bool = False) -> AnnData:
        """Return a member, its pictures still on disk; unless ``whole``, only what tells where its cells are."""
        folder = self.path(id)
        with _reading(folder):
            root: Any = zarr.open_group(folder, mode="r")
            uns = {}
            for name in (keys.TECHNOLOGY, keys.ORGANISM):
                uns[name] = read_elem(root["uns"][name])
            uns[keys.SPATIAL] = libraries(root, folder)
            spatial = root["obsm"][keys.SPATIAL]
            obsm = {keys.SPATIAL: spatial[:]}
            if not whole:
                obs = _read_places(root["obs"])
                return AnnData(obs=obs, obsm=obsm, uns=uns)
            counts = read_elem(root["X"])
            check_matrix(counts, f"{folder}: X", CorpusError)
            obs = read_elem(root["obs"])
            var = read_elem(root["var"])
            return AnnData(X=counts, obs=obs, var=var, obsm=obsm, uns=uns)

    def _spatial(self, id: str) -> zarr.Array:
        path = self.path(id) / "obsm" / keys.SPATIAL
        return zarr.open_array(path, mode="r")

    def _unit(self, id: str) -> dict[str, Any]:
        """Return what is known of a slice's native coordinates, as :meth:`Slice.from_anndata` takes it."""
        unit = str(self.row(id)["unit"])
        if unit != "um":
            return {"unit": unit, "microns_per_unit": None}
        with _reading(self.path(id)):
            return {"unit": None, "microns_per_unit": _scale(self._spatial(id))}

    def parts(self, id: str, n_rows: int) -> Iterator[Slice]:
        """Yield a slice as consecutive parts of at most ``n_rows`` cells: counts, genes and organism; no positions."""
        ids, symbols = self.genes(id)
        row = self.row(id)
        n_cells = int(row["n_cells"])
        organism = str(row["gene_organism"])
        for start in range(0, n_cells, n_rows):
            counts = self.rows(id, start, start + n_rows)
            n_part = counts.shape[0]
            coords = np.zeros((n_part, 2))
            names = np.full(n_part, "")
            yield Slice(counts, ids, symbols, coords, names, name=id, organism=organism)

    def vocabulary(self) -> Vocabulary:
        """Return the genes and medians of the training slices.

        Raises
        ------
        CorpusError
            There is none, or it is damaged.
        """
        path = self.folder / VOCABULARY
        if not path.is_file():
            raise CorpusError(
                f"{self.folder} has no {VOCABULARY}: build it without vocabulary=False (--no-vocabulary)."
            )
        hashes = self.about["files"].get(VOCABULARY, [])
        if hash_file(path) not in hashes:
            raise CorpusError(
                f"{path} is damaged: run the same `terrazzo corpus build` again to fix it."
            )
        try:
            return Vocabulary.from_parquet(path)
        except CheckpointError as error:
            raise CorpusError(str(error)) from error

    def content_hash(self) -> str:
        """Return the sha256 (hex) of which slices are in the corpus, their bytes and their splits."""
        return content_hash(self.manifest)

    def _of(self, split: str | None) -> pd.DataFrame:
        """Return the manifest's rows of a split; None: all."""
        if split is None:
            return self.manifest
        if split not in SPLITS:
            raise CorpusError(f"there is no split {split!r}; use one of {', '.join(SPLITS)}")
        return self.manifest[self.manifest["split"] == split]

    def _locate(self, id: str) -> tuple[Path, int]:
        """Return the folder of a slice's counts, and its number of genes."""
        n_genes = int(self.row(id)["n_genes"])
        return self.path(id) / "X", n_genes

    @cached_property
    def _checked(self) -> set[str]:
        """Slices whose folders were checked in this process."""
        return set()

    @cached_property
    def _reader(self) -> RowReader:
        return RowReader(self._locate)

    @cached_property
    def _sizes(self) -> Ints:
        return self.manifest["n_cells"].to_numpy(dtype=np.int64)

    @cached_property
    def _number(self) -> dict[str, int]:
        return {id: number for number, id in enumerate(self.ids())}


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn whatever readers of damaged files raise into a CorpusError that says where."""
    try:
        yield
    except CorpusError:
        raise
    except Exception as error:
        reason = shortened(error, 200, quoted=False) or type(error).__name__
        raise CorpusError(
            f"{folder} cannot be read ({reason}): run the same `terrazzo corpus build` again."
        ) from error


def _check_member(path: Path, folder: Path) -> None:
    """Check the folder of a slice before any of it is read; its pictures, read by tile, may be of any size."""
    check_inside(path, folder, CorpusError)
    try:
        refuse_links(path)
        refuse_code(path)
        for part in ("X", "obs", "var", "obsm"):
            refuse_sizes(path / part)
    except InputError as error:
        raise CorpusError(str(error)) from error


def _scale(array: zarr.Array) -> float:
    """Return what stored positions are multiplied by to be in the manifest's unit."""
    return float(array.attrs[SCALE])  # type: ignore[arg-type]


def _read_places(obs: Any) -> pd.DataFrame:
    """Read those columns of ``obs`` that tell where cells are."""
    columns = {}
    for name in (keys.ARRAY_ROW, keys.ARRAY_COL, keys.LIBRARY):
        if name in obs:
            columns[name] = read_elem(obs[name])
    index = read_elem(obs[obs.attrs["_index"]])
    return pd.DataFrame(columns, index=index)


def _read_texts(path: Path) -> np.ndarray:
    values: Any = zarr.open_array(path, mode="r")[:]
    return np.asarray(values.tolist(), dtype=np.str_)


def content_hash(manifest: pd.DataFrame) -> str:
    """Return the sha256 (hex) of id, bytes and split of every row."""
    columns = manifest[["id", "sha256", "split"]].astype(str)
    rows = columns.to_numpy().tolist()
    return hash_json(sorted(rows))


def read_about(folder: Path) -> dict[str, Any]:
    """Read ``corpus.json``.

    Raises
    ------
    CorpusError
        Not a corpus, an unfinished or damaged one, or one of another format.
    """
    if not (folder / ABOUT).is_file():
        if (folder / MEMBERS).is_dir():
            raise CorpusError(
                f"{folder}: the build of this corpus was not finished; run the same build again."
            )
        reason = f"is not a corpus: it has no {ABOUT}" if folder.exists() else "does not exist"
        raise CorpusError(f"{folder} {reason}. Make a corpus with `terrazzo corpus build`.")
    about = read_record(folder / ABOUT)
    version = about.get("format_version")
    if version != FORMAT_VERSION:
        raise CorpusError(
            f"{folder} has corpus format {version!r}; this terrazzo reads {FORMAT_VERSION}: "
            "install the version that wrote it, or build it again."
        )
    return about


def read_manifest(folder: Path, about: dict[str, Any]) -> pd.DataFrame:
    """Read ``manifest.parquet`` and prove that it is as written.

    Raises
    ------
    CorpusError
        It is missing, damaged or has other columns.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CorpusError(
            f"{folder}: the build of this corpus was not finished (no {MANIFEST}); run it again."
        )
    check_inside(path, folder, CorpusError)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest not in about["files"][MANIFEST]:
        raise CorpusError(
            f"{path} is damaged: it is not as it was written. Run the same build again to fix it."
        )
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError, MemoryError) as error:
        reason = shortened(error, 200, quoted=False)
        raise CorpusError(f"{path} is not a readable table ({reason})") from error
    columns = dict(zip(table.column_names, table.schema.types, strict=True))
    if columns != COLUMNS:
        raise CorpusError(
            f"{path} has unexpected columns {shortened(table.column_names)}; a manifest has {list(COLUMNS)}"
        )
    manifest = table.to_pandas()
    for id, file in zip(manifest["id"], manifest["file"], strict=True):
        check_name(id, f"{path}: an id", CorpusError)
        if file != f"{MEMBERS}/{id}.zarr":
            raise CorpusError(f"{path}: the file of slice {id!r} is {shortened(file)}, not its own")
    return manifest


def manifest_bytes(rows: list[dict[str, Any]]) -> bytes:
    """Return the manifest of these rows as parquet."""
    schema = pa.schema(list(COLUMNS.items()))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return bytes(sink.getvalue().to_pybytes())
