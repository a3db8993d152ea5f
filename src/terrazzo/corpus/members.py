"""One slice of a corpus, from its source to its place on disk: a pure function of a job, safe to kill at any point."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.io import write_elem
from zarr.codecs import BloscCodec

from terrazzo import keys
from terrazzo.corpus.histology import left_out, library_entry, write_image
from terrazzo.corpus.sources import Orthologs, QualityControl, Source, fingerprint
from terrazzo.corpus.store import FORMAT_VERSION, MANIFEST, MEMBERS, SCALE
from terrazzo.errors import CorpusError, InputError, TerrazzoWarning
from terrazzo.files import hash_file, hash_files, hash_json, hash_path, read_record, write_record
from terrazzo.images import check_spots
from terrazzo.slices import Slice, open_slice
from terrazzo.slices.slice import stated

CHUNK, SHARD = 2**14, 2**22  # values a compressed chunk, and at most a file


# With counts as integers as small as zstd, 2.5 times as quick to read; the price is paid once, by the build.
_PACKED = BloscCodec(cname="lz4hc", clevel=5, shuffle="shuffle")


_TISSUE = ("tissue", "organ")


_LOCAL = (
    "tissue",
    "donor",
    "split",
    "origin",
)  # facts that are not in the member: a change needs no new one


@dataclass(frozen=True)
class Job:
    """What one task needs.

    Attributes
    ----------
    source
        The slice and what is known of it.
    out
        Folder of the corpus.
    quality, orthologs
        As :func:`~terrazzo.corpus.build.build` takes them.
    """

    source: Source
    out: Path
    quality: QualityControl
    orthologs: Orthologs | None = None

    @property
    def target(self) -> Path:
        """The member's zarr folder."""
        return self.out / MEMBERS / f"{self.source.id}.zarr"

    @property
    def sidecar(self) -> Path:
        """The member's record, written last."""
        return self.out / MEMBERS / f"{self.source.id}.json"

    def options_hash(self) -> str:
        """Return the sha256 (hex) of all that decides what the member holds, but the source's bytes."""
        known = {
            k: v for k, v in self.source.to_dict().items() if k not in ("path", "image", *_LOCAL)
        }
        known = {
            k: v for k, v in known.items() if v is not None or not k.startswith("image_")
        }  # as before there were
        quality = [self.quality.min_genes, self.quality.min_cells]
        return hash_json(
            [FORMAT_VERSION, known, quality, self.orthologs and self.orthologs.content_hash()]
        )


def make_member(job: Job) -> dict[str, Any]:
    """Make one member, unless it is there from the same source and options, and undamaged; return its record.

    The store is written under another name, renamed, and then described by its sidecar: without a sidecar it is none.
    ``record["status"]`` is "kept", "dropped" (quality control) or "failed" (the slice cannot be used);
    ``record["made"]`` tells whether there was work to do.

    Raises
    ------
    OSError
        The disk is full, or cannot be written.
    """
    wanted = {"id": job.source.id, "options": job.options_hash()}
    try:
        wanted["source_sha256"] = _source_hash(job.source)
    except OSError as error:
        return _failed(wanted, InputError(f"cannot be read ({error.strerror or error})"))
    held = finished(job)
    if held is not None and all(held.get(name) == value for name, value in wanted.items()):
        return {**held, "made": False}
    remove_member(job.out, job.source.id)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TerrazzoWarning)
        try:
            record = {**wanted, **_make(job)}
        except InputError as error:
            return _failed(wanted, error)
        except Exception as error:
            error.add_note(
                f"in slice {job.source.id}: {job.source.path}"
            )  # among thousands, the one to look at
            raise
    notes = [str(w.message) for w in caught if issubclass(w.category, TerrazzoWarning)]
    record["notes"] = notes + record.get("notes", [])
    write_record(job.sidecar, record)
    return {**record, "made": True}


def _source_hash(source: Source) -> str:
    """Return the sha256 of a slice's bytes, and of those of the picture beside it."""
    own = hash_path(source.path)
    return own if source.image is None else hash_json([own, hash_file(source.image)])


def _failed(wanted: Mapping[str, Any], error: InputError) -> dict[str, Any]:
    """Describe a slice that cannot be used; not written, so that the next build tries again."""
    return {**wanted, "status": "failed", "reason": str(error), "made": True}


def finished(job: Job) -> dict[str, Any] | None:
    """Return the record of a member that is as it was written, or of a slice that was left out; None for neither."""
    try:
        record = read_record(job.sidecar)
    except CorpusError:
        return None
    return record if hash_files(job.target) == record.get("files", {}) else None


def remove_member(out: Path, id: str) -> None:
    """Delete a member; a manifest that may list it goes first."""
    target, sidecar = out / MEMBERS / f"{id}.zarr", out / MEMBERS / f"{id}.json"
    if target.exists() or sidecar.exists():
        (out / MANIFEST).unlink(missing_ok=True)
    sidecar.unlink(missing_ok=True)
    if target.exists():
        shutil.rmtree(target)


def _make(job: Job) -> dict[str, Any]:
    opened, picture = open_slice(job.source.path), job.source.picture()
    stated = {
        "name": job.source.id,
        **({} if picture is None else {"image": picture}),
        **job.source.slice_options(),
    }
    adata, piece = opened.adata, Slice.from_opened(opened, **stated)
    about, n_read = _about(adata), piece.n_cells
    if job.source.organisms and piece.organism not in job.source.organisms:
        return _dropped(
            f"its organism is {piece.organism}; the recipe takes {', '.join(job.source.organisms)}"
        )
    content, organism = fingerprint(piece), piece.organism
    rows = np.flatnonzero(job.quality.keep(piece))
    reason = job.quality.reason(len(rows), n_read)
    if reason:
        return {**_dropped(reason), "content": content}
    notes = (
        []
        if len(rows) == n_read
        else [f"{n_read - len(rows):,} of {n_read:,} cells left out: too few genes"]
    )
    if piece.image is not None and piece.image.offset != (0.0, 0.0):  # a corpus holds a scale only
        piece = dataclasses.replace(piece, image=None)
        notes.append("its picture is left out: it is shifted against the cells")
    median_genes = float(np.median(np.diff(piece.counts.indptr)[rows]))
    rows = rows[hilbert_order(piece.coords[rows])]
    obs, library = plain_table(adata.obs.iloc[rows]), library_entry(adata, piece.name, piece.image)
    notes += left_out(adata, piece.image)
    del adata, opened
    piece = _take(piece, rows)
    if picture is not None and piece.image is not None:
        check_spots(piece.image, piece.native_coords, piece.name)
    if job.orthologs is not None and piece.organism != job.orthologs.organism:
        piece, note = job.orthologs.apply(piece)
        notes.append(note)
    draft = job.target.with_name(f".{job.target.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_member(draft, piece, obs, library, organism)
    except BaseException:  # a picture that turns out damaged as it is copied, a full disk, Ctrl-C
        shutil.rmtree(draft, ignore_errors=True)
        raise
    files = hash_files(draft)
    draft.replace(job.target)
    facts = {
        "technology": piece.technology,
        "organism": organism,
        "gene_organism": piece.organism,
        **about,
        "n_cells": piece.n_cells,
        "n_genes": piece.n_genes,
        "n_cells_read": n_read,
        "median_genes": median_genes,
        "total_counts": float(piece.total_counts.sum()),
        "unit": piece.unit,
        "spacing": float(piece.spacing),
        "content": content,
    }
    return {"status": "kept", **facts, "files": files, "sha256": hash_json(files), "notes": notes}


def _dropped(reason: str) -> dict[str, Any]:
    return {"status": "dropped", "reason": reason}


def _take(piece: Slice, rows: np.ndarray) -> Slice:
    lattice = None if piece.lattice is None else piece.lattice[rows]
    counts = sp.csr_matrix(piece.counts[rows])
    return replace(
        piece,
        counts=counts,
        coords=piece.coords[rows],
        obs_names=piece.obs_names[rows],
        lattice=lattice,
    )


def _about(adata: AnnData) -> dict[str, str]:
    """Return donor and tissue where ``obs`` or ``uns`` tell them; several donors are joined by "|"."""
    return {
        fact: stated(adata, names) or "unknown"
        for fact, names in (("donor", keys.DONOR), ("tissue", _TISSUE))
    }


def write_member(
    path: Path, piece: Slice, obs: pd.DataFrame, library: Mapping[str, Any], organism: str
) -> None:
    """Write a slice as AnnData zarr v3, its large arrays in sharded chunks; equal input gives equal bytes.

    Parameters
    ----------
    path
        Folder to make.
    piece
        The slice, rows in the order wanted.
    obs
        Its cells' columns, in the same order.
    library
        ``uns["spatial"]`` but for the picture; {} for none.
    organism
        Of the tissue; ``piece.organism`` is that of the genes.
    """
    named = np.where(piece.gene_symbols != "", piece.gene_symbols, piece.gene_ids)
    columns = {
        "ensembl_id": piece.gene_ids.astype(object),
        "symbol": piece.gene_symbols.astype(object),
    }
    var = pd.DataFrame(columns, index=pd.Index(named.astype(object)))
    facts = {"unit": piece.unit, "coord_scale": piece.coord_scale, "organism": organism}
    uns = {
        keys.TECHNOLOGY: piece.technology,
        keys.ORGANISM: piece.organism,
        keys.UNS: {"corpus": facts},
    }
    if library:
        uns[keys.SPATIAL] = plain(library)
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    with anndata.settings.override(auto_shard_zarr_v3=True):
        empty: dict[str, Any] = {name: {} for name in ("layers", "obsp", "varm", "varp")}
        for name, value in {"obs": obs, "var": var, "uns": uns, "obsm": {}, **empty}.items():
            write_elem(root, name, value)
    if piece.image is not None:
        (place,) = library
        write_image(root[f"uns/{keys.SPATIAL}/{place}/images"], piece.image)
    matrix = root.create_group("X")
    matrix.attrs.update(
        {
            "encoding-type": "csr_matrix",
            "encoding-version": "0.1.0",
            "shape": list(piece.counts.shape),
        }
    )
    whole = piece.is_counts and piece.counts.dtype == np.float32  # else above 2**24: as they are
    _write_array(matrix, "data", piece.counts.data.astype(np.int32) if whole else piece.counts.data)
    _write_array(matrix, "indices", piece.counts.indices)
    _write_array(matrix, "indptr", piece.counts.indptr)
    spatial = _write_array(root["obsm"], keys.SPATIAL, piece.native_coords)
    spatial.attrs[SCALE] = float(piece.coord_scale)


def _write_array(group: Any, name: str, values: np.ndarray) -> zarr.Array:
    """Write an array in chunks along its first axis."""
    chunk = max(1, min(CHUNK, len(values)))
    shard = chunk * max(1, min(SHARD // CHUNK, -(-len(values) // chunk)))
    rest = values.shape[1:]
    cut = {"chunks": (chunk, *rest), "shards": (shard, *rest)}
    packed = {"compressors": _PACKED, "fill_value": 0, "config": {"write_empty_chunks": True}}
    array = group.create_array(name, shape=values.shape, dtype=values.dtype, **cut, **packed)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    array[:] = values
    return array


def plain_table(obs: pd.DataFrame) -> pd.DataFrame:
    """Return a table that zarr can hold: numbers, booleans and categories as they are, anything else as categories."""
    columns: dict[str, Any] = {}
    for name, column in obs.items():
        key = str(name).replace("/", "_")
        key = f"{key}_" if key in columns or key == "_index" else key
        if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
            columns[key] = column.to_numpy()
            continue
        if not isinstance(column.dtype, pd.CategoricalDtype):
            texts = [
                None if missing else str(value)
                for value, missing in zip(column, column.isna(), strict=True)
            ]
            column = pd.Series(pd.Categorical(texts))
        labels = column.cat.categories
        if labels.dtype.kind not in "biuf":
            labels = pd.Index(labels.astype(str).to_numpy(dtype=object), dtype=object)
        columns[key] = pd.Categorical.from_codes(
            column.cat.codes, labels, ordered=column.cat.ordered
        )
    return pd.DataFrame(
        columns, index=pd.Index(obs.index.astype(str).to_numpy(dtype=object), dtype=object)
    )


def plain(value: Any) -> Any:
    """Return what of a nested mapping zarr can hold: numbers, texts, and arrays of them."""
    if isinstance(value, Mapping):
        held = {str(k): plain(v) for k, v in value.items() if "/" not in str(k)}
        return {k: v for k, v in held.items() if v is not None}
    if isinstance(value, str | bool | int | float | np.number | np.bool_):
        return value
    return value if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else None


BITS = 20


"""Levels of the curve: a slice is seen as a square of 2**20 by 2**20 places (0.01 um of a centimeter)."""


def hilbert_index(coords: np.ndarray, bits: int = BITS) -> np.ndarray:
    """Return the place of each point along the Hilbert curve through the square around all points.

    Parameters
    ----------
    coords
        float64 (n, 2), finite.
    bits
        Levels of the curve, 1 to 31.

    Returns
    -------
    numpy.ndarray
        int64 (n,), in ``range(4**bits)``.
    """
    if not len(coords):
        return np.zeros(0, dtype=np.int64)
    low = coords.min(axis=0)
    extent = float((coords.max(axis=0) - low).max())
    places = (coords - low) / extent * (2**bits - 1) if extent > 0 else np.zeros_like(coords)
    x, y = np.rint(places).astype(np.int64).T.copy()
    index = np.zeros(len(coords), dtype=np.int64)
    for level in range(bits - 1, -1, -1):
        right, up = (x >> level) & 1, (y >> level) & 1
        index += (3 * right ^ up) << (2 * level)
        side = (1 << level) - 1  # only the bits below this level matter from here on
        x, y = x & side, y & side
        turned = (up == 0) & (right == 1)
        x, y = np.where(turned, side - x, x), np.where(turned, side - y, y)
        x, y = np.where(up == 0, y, x), np.where(up == 0, x, y)
    return index


def hilbert_order(coords: np.ndarray) -> np.ndarray:
    """Return the rows in Hilbert order, int64 (n,); points at one place keep their order."""
    return np.argsort(hilbert_index(coords), kind="stable")
