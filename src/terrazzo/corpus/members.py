"""Members of a corpus: one slice, from its source to its place on disk; safe to kill at any point."""

from __future__ import annotations

import math
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
from anndata.io import write_elem
from zarr.codecs import BloscCodec

from terrazzo import keys
from terrazzo.arrays import Floats, Ints
from terrazzo.corpus.histology import left_out, library_entry, write_image
from terrazzo.corpus.quality import QualityControl
from terrazzo.corpus.sources import Orthologs, Source, fingerprint
from terrazzo.corpus.store import FORMAT_VERSION, MANIFEST, MEMBERS, SCALE
from terrazzo.errors import CorpusError, InputError, TerrazzoWarning
from terrazzo.files import hash_file, hash_files, hash_json, hash_path, read_record, write_record
from terrazzo.images import TissueImage, check_spots
from terrazzo.slices import Choices, Opened, Slice, open_slice
from terrazzo.slices.apart import in_work
from terrazzo.slices.reading import recognize
from terrazzo.slices.slice import stated

__all__ = [
    "WAITING",
    "Job",
    "Record",
    "finished",
    "hilbert_index",
    "hilbert_order",
    "make_member",
    "plain",
    "plain_table",
    "remove_member",
    "swap_member",
    "write_member",
]

Record = dict[str, Any]  # what is known of a member; JSON-able

WAITING = ".new"  # folder of members that wait until a build is complete

CHUNK = 2**14  # values that are compressed together
SHARD = 2**22  # values in a file, at most
HILBERT_BITS = 20  # a slice is seen as a square of 2**20 by 2**20 places (0.01 um of a centimeter)

# With counts as integers as small as zstd, 2.5 times as quick to read; the price is paid once, by the build.
_COMPRESSOR = BloscCodec(cname="lz4hc", clevel=5, shuffle="shuffle")
_TISSUE = ("tissue", "organ")
_NUMBERS = "biuf"  # kinds of dtypes, booleans included
_SCALARS = (str, bool, int, float, np.number, np.bool_)
# What is stated of a source but not part of its member: a change needs no new member. Pictures count by their bytes.
_NOT_IN_MEMBER = ("path", "image", "tissue", "donor", "split", "origin")


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
    waits
        Its member waits beside the older one, until the build is complete.
    """

    source: Source
    out: Path
    quality: QualityControl
    orthologs: Orthologs | None = None
    waits: bool = False

    @property
    def folder(self) -> Path:
        """Where its member and its record are."""
        members = self.out / MEMBERS
        return members / WAITING if self.waits else members

    @property
    def target(self) -> Path:
        """The member's zarr folder."""
        return self.folder / f"{self.source.id}.zarr"

    @property
    def sidecar(self) -> Path:
        """The member's record, written last."""
        return self.folder / f"{self.source.id}.json"

    def waiting(self) -> Job:
        """Return the job whose member waits until the build is complete."""
        return replace(self, waits=True)

    def exists(self) -> bool:
        """Return whether there is a member or a record in its place."""
        return self.target.exists() or self.sidecar.exists()

    def place(self) -> Job:
        """Return the job for a new member: it waits where it would take the place of one of a complete corpus."""
        is_complete = (self.out / MANIFEST).is_file()
        return self.waiting() if is_complete and self.exists() else self

    def options_hash(self) -> str:
        """Return the sha256 (hex) of all that decides what the member holds, but the source's bytes."""
        options = {}
        for name, value in self.source.to_dict().items():
            # not what is not stated: corpora that were built before there were pictures and sections stay valid
            is_newer = name.startswith("image_") or name in ("slice_key", "section")
            without_picture = value is None and is_newer
            if name not in _NOT_IN_MEMBER and not without_picture:
                options[name] = value
        quality = [self.quality.min_genes, self.quality.min_cells]
        orthologs = None
        if self.orthologs is not None:
            orthologs = self.orthologs.content_hash()
        return hash_json([FORMAT_VERSION, options, quality, orthologs])


def make_member(job: Job) -> Record:
    """Make one member, unless it exists from the same source and options, and is undamaged; return its record.

    The store is written under another name, renamed, and then described by its sidecar: without one it does not count.
    A member of a complete corpus stays until the build is done; the new one waits beside it.
    ``record["status"]`` is "kept", "dropped" (quality control) or "failed" (the slice cannot be used);
    ``record["made"]`` tells whether there was work to do, ``record["waits"]`` whether the member waits.

    Raises
    ------
    OSError
        The disk is full, or cannot be written.
    """
    wanted = {"id": job.source.id, "options": job.options_hash()}
    try:
        wanted["source_sha256"] = _source_hash(job.source)
    except OSError as error:
        reason = error.strerror or error
        return _failed(wanted, f"cannot be read ({reason})")
    old = finished(job)
    if old is not None and _agrees(old, wanted):
        return {**old, "made": False, "waits": False}
    waiting = finished(job.waiting())  # of a build that was stopped
    if waiting is not None and _agrees(waiting, wanted):
        return {**waiting, "made": False, "waits": True}
    job = job.place()
    remove_member(job)
    with in_work(job.target, job.source.path), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TerrazzoWarning)
        try:
            record = {**wanted, **_make(job)}
        except InputError as error:
            return _failed(wanted, str(error))
        except Exception as error:
            # among thousands of slices, the one to look at
            error.add_note(f"in slice {job.source.id}: {job.source.path}")
            raise
    notes = []
    for warning in caught:
        if issubclass(warning.category, TerrazzoWarning):
            notes.append(str(warning.message))
    record["notes"] = notes + record.get("notes", [])
    write_record(job.sidecar, record)
    return {**record, "made": True, "waits": job.waits}


def _source_hash(source: Source) -> str:
    """Return the sha256 of a slice's bytes, and of those of the picture beside it."""
    slice_hash = hash_path(source.path)
    if source.image is None:
        return slice_hash
    return hash_json([slice_hash, hash_file(source.image)])


def _failed(wanted: Mapping[str, str], reason: str) -> Record:
    """Describe a slice that cannot be used; not written, so that the next build tries again."""
    return {**wanted, "status": "failed", "reason": reason, "made": True, "waits": False}


def _agrees(record: Record, wanted: Mapping[str, str]) -> bool:
    """Return whether a record is of this source and these options."""
    return all(record.get(name) == value for name, value in wanted.items())


def finished(job: Job) -> Record | None:
    """Return the record of a member that is as it was written, or of a slice that was left out; None for neither."""
    try:
        record = read_record(job.sidecar)
    except CorpusError:
        return None
    files = record.get("files", {})
    return record if hash_files(job.target) == files else None


def remove_member(job: Job) -> None:
    """Delete a member that no manifest lists."""
    job.folder.mkdir(parents=True, exist_ok=True)
    job.sidecar.unlink(missing_ok=True)
    if job.target.exists():
        shutil.rmtree(job.target)


def swap_member(job: Job) -> None:
    """Give the member that waits its place; the manifest that lists the older one is gone already."""
    new = job.waiting()
    remove_member(job)
    if new.target.exists():
        new.target.rename(job.target)
    new.sidecar.replace(job.sidecar)


def _open(source: Source) -> tuple[Opened, list[str]]:
    """Read a slice; of the pictures beside it only that of a table is taken, as only its content is compared."""
    opened = open_slice(source.path, Choices(slice_key=source.slice_key))
    is_beside = opened.store is None and recognize(source.path) is None
    if opened.image is None or not is_beside:
        return opened, []
    note = ""
    if source.image is None:
        note = "the picture that the JSON file beside it names is not taken: name it in a table of sources"
    return replace(opened, image=None), [note] if note else []


def _make(job: Job) -> Record:
    """Read, check, order and write a slice; return what its record says beside the job."""
    opened, notes = _open(job.source)
    if job.source.section is not None and opened.is_split:
        opened = opened.of_section(job.source.section)
    picture = job.source.picture()
    options = job.source.slice_options()
    if picture is not None:
        options["image"] = picture
    piece = Slice.from_opened(opened, name=job.source.id, **options)
    adata = opened.adata
    organisms = job.source.organisms
    if organisms and piece.organism not in organisms:
        taken = ", ".join(organisms)
        return _dropped(f"its organism is {piece.organism}; the published corpus takes {taken}")
    n_read = piece.n_cells
    facts: Record = {
        "organism": piece.organism,
        "donor": stated(adata, keys.DONOR) or "unknown",
        "tissue": stated(adata, _TISSUE) or "unknown",
        "n_cells_read": n_read,
        "content": fingerprint(piece),
    }
    floor = job.quality.floor(piece)
    rows = np.flatnonzero(floor.keep(piece))
    reason = job.quality.reason(len(rows), n_read, floor)
    if reason:
        return {**_dropped(reason), "content": facts["content"]}
    facts["floor"] = floor.n_genes
    facts["floor_of_panel"] = floor.is_lowered
    if floor.note():
        notes.append(floor.note())
    n_poor = n_read - len(rows)
    if n_poor:
        notes.append(f"{n_poor:,} of {n_read:,} cells left out: fewer than {floor}")
    if _is_shifted(piece.image):
        piece = replace(piece, image=None)
        notes.append("its picture is left out: it is shifted against the cells")
    n_expressed = np.diff(piece.counts.indptr)
    facts["median_genes"] = float(np.median(n_expressed[rows]))
    order = hilbert_order(piece.coords[rows])
    rows = rows[order]
    obs = plain_table(adata.obs.iloc[rows])
    library = library_entry(adata, piece.name, piece.image)
    notes += left_out(adata, piece.image)
    del adata, opened  # before the counts are copied
    piece = _take(piece, rows)
    if picture is not None and piece.image is not None:
        check_spots(piece.image, piece.native_coords, piece.name)
    orthologs = job.orthologs
    if orthologs is not None and piece.organism != orthologs.organism:
        piece, note = orthologs.apply(piece)
        notes.append(note)
    files = _write_whole(job.target, piece, obs, library, facts["organism"])
    record = {
        "status": "kept",
        "files": files,
        "sha256": hash_json(files),
        "notes": notes,
    }
    return {**record, **facts, **_slice_facts(piece)}


def _dropped(reason: str) -> Record:
    return {"status": "dropped", "reason": reason}


def _is_shifted(image: TissueImage | None) -> bool:
    """Return whether a picture has an offset; a corpus can store a scale only."""
    return image is not None and image.offset != (0.0, 0.0)


def _slice_facts(piece: Slice) -> Record:
    """Return what the manifest says of a slice as it is stored."""
    return {
        "technology": piece.technology,
        "gene_organism": piece.organism,
        "n_cells": piece.n_cells,
        "n_genes": piece.n_genes,
        "total_counts": float(piece.total_counts.sum()),
        "unit": piece.unit,
        "spacing": float(piece.spacing),
    }


def _take(piece: Slice, rows: Ints) -> Slice:
    """Return some cells of a slice, in the order of ``rows``."""
    return replace(
        piece,
        counts=sp.csr_matrix(piece.counts[rows]),
        coords=piece.coords[rows],
        obs_names=piece.obs_names[rows],
        lattice=None if piece.lattice is None else piece.lattice[rows],
    )


def _write_whole(
    target: Path, piece: Slice, obs: pd.DataFrame, library: Mapping[str, Any], organism: str
) -> dict[str, str]:
    """Write a member under another name and rename it; return the hashes of its files."""
    draft = target.with_name(f".{target.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_member(draft, piece, obs, library, organism)
    except BaseException:  # a picture that turns out damaged as it is copied, a full disk, Ctrl-C
        shutil.rmtree(draft, ignore_errors=True)
        raise
    files = hash_files(draft)
    draft.replace(target)
    return files


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
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    elements: dict[str, Any] = {
        "obs": obs,
        "var": _gene_table(piece),
        "uns": _unstructured(piece, library, organism),
        "obsm": {},
    }
    for name in ("layers", "obsp", "varm", "varp"):
        elements[name] = {}
    with anndata.settings.override(auto_shard_zarr_v3=True):
        for name, value in elements.items():
            write_elem(root, name, value)
    if piece.image is not None:
        (name,) = library
        images = root[f"uns/{keys.SPATIAL}/{name}/images"]
        write_image(images, piece.image)
    _write_counts(root.create_group("X"), piece)
    spatial = _write_array(root["obsm"], keys.SPATIAL, piece.native_coords)
    spatial.attrs[SCALE] = float(piece.coord_scale)


def _gene_table(piece: Slice) -> pd.DataFrame:
    """Return ``var`` of a member: ids and symbols, named by symbol where there is one."""
    ids = piece.gene_ids.astype(object)
    symbols = piece.gene_symbols.astype(object)
    names = np.where(symbols != "", symbols, ids)
    columns = {"ensembl_id": ids, "symbol": symbols}
    return pd.DataFrame(columns, index=pd.Index(names))


def _unstructured(piece: Slice, library: Mapping[str, Any], organism: str) -> dict[str, Any]:
    """Return ``uns`` of a member."""
    facts = {"unit": piece.unit, "coord_scale": piece.coord_scale, "organism": organism}
    uns = {
        keys.TECHNOLOGY: piece.technology,
        keys.ORGANISM: piece.organism,
        keys.UNS: {"corpus": facts},
    }
    if library:
        uns[keys.SPATIAL] = plain(library)
    return uns


def _write_counts(group: Any, piece: Slice) -> None:
    """Write the counts as CSR; whole numbers are stored as integers."""
    counts = piece.counts
    group.attrs.update(
        {
            "encoding-type": "csr_matrix",
            "encoding-version": "0.1.0",
            "shape": list(counts.shape),
        }
    )
    data = counts.data
    if piece.is_counts and data.dtype == np.float32:  # float64: some are above 2**24
        data = data.astype(np.int32)
    _write_array(group, "data", data)
    _write_array(group, "indices", counts.indices)
    _write_array(group, "indptr", counts.indptr)


def _write_array(group: Any, name: str, values: np.ndarray) -> zarr.Array:
    """Write an array in chunks along its first axis."""
    n_values = len(values)
    chunk = max(1, min(CHUNK, n_values))
    n_chunks = max(1, math.ceil(n_values / chunk))
    shard = chunk * min(SHARD // CHUNK, n_chunks)
    rest = values.shape[1:]
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(chunk, *rest),
        shards=(shard, *rest),
        compressors=_COMPRESSOR,
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    array[:] = values
    return array


def plain_table(obs: pd.DataFrame) -> pd.DataFrame:
    """Return a table that zarr can hold: numbers, booleans and categories as they are, anything else as categories."""
    columns: dict[str, Any] = {}
    for name, column in obs.items():
        key = str(name).replace("/", "_")
        if key in columns or key == "_index":
            key = f"{key}_"
        kind = column.dtype.kind if isinstance(column.dtype, np.dtype) else ""
        if kind and kind in _NUMBERS:
            columns[key] = column.to_numpy()
        else:
            columns[key] = _plain_categories(column)
    names = obs.index.astype(str).to_numpy(dtype=object)
    return pd.DataFrame(columns, index=pd.Index(names, dtype=object))


def _plain_categories(column: pd.Series) -> pd.Categorical:
    """Return a column as categories that are numbers or texts."""
    if not isinstance(column.dtype, pd.CategoricalDtype):
        texts = []
        for value, missing in zip(column, column.isna(), strict=True):
            texts.append(None if missing else str(value))
        column = pd.Series(pd.Categorical(texts))
    categories = column.cat
    labels = categories.categories
    if labels.dtype.kind not in _NUMBERS:
        texts = labels.astype(str).to_numpy(dtype=object)
        labels = pd.Index(texts, dtype=object)
    return pd.Categorical.from_codes(categories.codes, labels, ordered=categories.ordered)


def plain(value: Any) -> Any:
    """Return what of a nested mapping zarr can hold: numbers, texts, and arrays of numbers."""
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind in _NUMBERS else None
    if not isinstance(value, Mapping):
        return None
    entries = {}
    for key, inner in value.items():
        name = str(key)
        stored = plain(inner)
        if stored is not None and "/" not in name:
            entries[name] = stored
    return entries


def hilbert_index(coords: Floats, bits: int = HILBERT_BITS) -> Ints:
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
    high = coords.max(axis=0)
    extent = float((high - low).max())
    places = np.zeros_like(coords)
    if extent > 0:
        last = 2**bits - 1
        places = (coords - low) / extent * last
    places = np.rint(places).astype(np.int64)
    x, y = places.T.copy()
    index = np.zeros(len(coords), dtype=np.int64)
    for level in range(bits - 1, -1, -1):
        right = (x >> level) & 1
        up = (y >> level) & 1
        index += (3 * right ^ up) << (2 * level)
        side = (1 << level) - 1
        x = x & side  # only the bits below this level matter from here on
        y = y & side
        lower = up == 0
        mirrored = lower & (right == 1)
        x = np.where(mirrored, side - x, x)
        y = np.where(mirrored, side - y, y)
        swapped = np.where(lower, y, x)
        y = np.where(lower, x, y)
        x = swapped
    return index


def hilbert_order(coords: Floats) -> Ints:
    """Return the rows in Hilbert order, int64 (n,); points at one place keep their order."""
    return np.argsort(hilbert_index(coords), kind="stable")
