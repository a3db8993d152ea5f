"""Cache of cell vectors, virtual cells and sub-slices of each member: computed once, then read from disk.

One folder a key, one folder a member in it, written under another name and renamed when it is complete, so that a
killed writer leaves nothing that reads as finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from terrazzo.arrays import Ints, Vectors
from terrazzo.errors import CorpusError, OutputError
from terrazzo.files import whole_folder
from terrazzo.parsing import read_object
from terrazzo.systems.stofm.subslices import SubSliceConfig
from terrazzo.systems.stofm.virtual_cells import VirtualCells

__all__ = ["CacheKey", "CachedMember", "EmbeddingCache"]

FORMAT = 1

ABOUT = "about.json"
FEATURES = "features"

CHUNK = 2**24  # bytes read at a time for a checksum

# Settings of sub-slices that change nothing that is stored
UNSTORED = ("halo", "n_neighbors", "pair")

DTYPES = {
    FEATURES: "<f4",
    "labels": "<i8",
    "virtual_features": "<f4",
    "virtual_positions": "<f8",
    "parts": "<i8",
    "offsets": "<i8",
}


@dataclass(frozen=True)
class CacheKey:
    """Key of the stored arrays: another model, macro scale, partition or seed never reads them.

    Attributes
    ----------
    fingerprint
        Of the cell encoder: its weights, vocabulary, maximal length and precision.
    config
        Settings of sub-slices; those that matter only when a sub-slice is cut (neighbors, halo) do not count.
    seed
        Of Leiden.
    """

    fingerprint: str
    config: SubSliceConfig = field(default_factory=SubSliceConfig)
    seed: int = 0

    @property
    def stored(self) -> dict[str, Any]:
        """The settings that count."""
        settings = asdict(self.config)
        for name in UNSTORED:
            del settings[name]
        return settings

    def digest(self) -> str:
        """Return 24 hex digits of a sha256."""
        content = [FORMAT, self.fingerprint, self.stored, self.seed]
        text = json.dumps(content, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return digest[:24]


@dataclass(frozen=True)
class CachedMember:
    """Stored arrays of one slice.

    Attributes
    ----------
    features
        float32 ``(n_cells, d)``, memory-mapped, read-only.
    macro
        Clusters and virtual cells.
    parts
        int64, the cells of all sub-slices, one sub-slice after the other.
    offsets
        int64 ``(n_parts + 1,)``: sub-slice ``i`` is ``parts[offsets[i]:offsets[i + 1]]``.
    """

    features: Vectors
    macro: VirtualCells
    parts: Ints
    offsets: Ints

    @property
    def n_parts(self) -> int:
        """Number of sub-slices."""
        return len(self.offsets) - 1

    def part(self, number: int) -> Ints:
        """Return the cells of one sub-slice, without its halo."""
        start = self.offsets[number]
        stop = self.offsets[number + 1]
        return self.parts[start:stop]


class EmbeddingCache:
    """Stored embeddings of the members of a corpus.

    Parameters
    ----------
    folder
        Shared by all keys; made on the first write.
    key
        :class:`CacheKey`.
    """

    def __init__(self, folder: str | os.PathLike[str], key: CacheKey) -> None:
        self.key = key
        self.folder = Path(folder) / key.digest()

    def path(self, member: str) -> Path:
        """Return the folder of one member."""
        name = quote(member, safe="")
        if name.startswith("."):
            name = name.replace(".", "%2E")
        return self.folder / name

    def has(self, member: str, source: str = "") -> bool:
        """Return whether a member is stored; with ``source``, whether from this content.

        Raises
        ------
        CorpusError
            Its files are damaged.
        """
        if not (self.path(member) / ABOUT).is_file():
            return False
        return source in ("", self._about(member)["source"])

    def n_parts(self, member: str) -> int:
        """Return the number of sub-slices of a member, without opening its arrays."""
        files = self._about(member)["files"]
        n_offsets = files["offsets"]["shape"][0]
        return int(n_offsets) - 1

    def write(
        self,
        member: str,
        features: Vectors,
        macro: VirtualCells,
        parts: list[Ints],
        *,
        source: str = "",
    ) -> None:
        """Store a member, in place of what was stored before; all of it or nothing.

        Parameters
        ----------
        member
            Its id.
        features
            float32 ``(n_cells, d)``.
        macro
            From :func:`terrazzo.systems.stofm.subslices.macro_scale`.
        parts
            From :func:`terrazzo.systems.stofm.subslices.split_cells`: every cell in exactly one.
        source
            Content hash of the member (the manifest's ``sha256``).

        Raises
        ------
        CorpusError
            Arrays that do not belong together.
        OutputError
            The files cannot be written, for instance on a full disk.
        """
        n_cells = len(features)
        flat = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        covers = np.array_equal(np.sort(flat), np.arange(n_cells))
        if not covers or len(macro.labels) != n_cells:
            raise CorpusError(
                f"{member}: the sub-slices or clusters do not cover its {n_cells} cells exactly once."
            )
        sizes = [len(part) for part in parts]
        arrays: dict[str, NDArray[Any]] = {
            FEATURES: features,
            "labels": macro.labels,
            "virtual_features": macro.features,
            "virtual_positions": macro.positions,
            "parts": flat,
            "offsets": np.concatenate([[0], np.cumsum(sizes)]),
        }
        target = self.path(member)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_folder(target) as draft:
                files = {name: _save(draft, name, array) for name, array in arrays.items()}
                about = {
                    "format": FORMAT,
                    "key": self.key.digest(),
                    "member": member,
                    "source": source,
                    "files": files,
                }
                text = json.dumps(about, indent=1) + "\n"
                (draft / ABOUT).write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"the embeddings of {member} cannot be written to {target}: {error}"
            ) from error

    def read(self, member: str, source: str = "") -> CachedMember:
        """Open a member: small arrays in memory and checked, the cell vectors memory-mapped.

        Raises
        ------
        CorpusError
            Not stored, from another content than ``source``, damaged, or of another key; the message names the file.
        """
        about = self._about(member)
        folder = self.path(member)
        if source not in ("", about["source"]):
            raise CorpusError(
                f"{folder} was computed from another content of {member}; compute it again."
            )
        arrays = {name: _load(folder, name, about["files"]) for name in DTYPES}
        macro = VirtualCells(
            arrays["labels"], arrays["virtual_features"], arrays["virtual_positions"]
        )
        return CachedMember(arrays[FEATURES], macro, arrays["parts"], arrays["offsets"])

    def verify(self, member: str) -> None:
        """Check every byte of a member, cell vectors included.

        Raises
        ------
        CorpusError
            As :meth:`read`; also a changed byte among the cell vectors.
        """
        self.read(member)
        path = self.path(member) / f"{FEATURES}.npy"
        record = self._about(member)["files"][FEATURES]
        if _checksum(path) != record["crc32"]:
            raise _damaged(path, "its checksum differs")

    def _about(self, member: str) -> dict[str, Any]:
        """Read what is stored of a member, and check that it belongs to this key and is complete."""
        path = self.path(member) / ABOUT
        if not path.is_file():
            raise CorpusError(
                f"{member} has no stored embeddings for this model and these settings ({path.parent})."
            )
        expected = {"format": FORMAT, "key": self.key.digest(), "member": member}
        try:
            about = read_object(path, CorpusError)
            belongs = {name: about[name] for name in expected} == expected
            complete = isinstance(about["source"], str) and set(about["files"]) == set(DTYPES)
        except (CorpusError, KeyError, TypeError) as error:
            raise _damaged(path, str(error)) from error
        if not belongs:
            raise CorpusError(
                f"{path} belongs to another model, setting or slice; delete its folder."
            )
        if not complete:
            raise _damaged(path, "it does not list the arrays that it should")
        return dict(about)


def _save(folder: Path, name: str, array: NDArray[Any]) -> dict[str, Any]:
    """Write one array; return what is needed to check it."""
    path = folder / f"{name}.npy"
    contiguous = np.ascontiguousarray(array, dtype=DTYPES[name])
    with path.open("wb") as file:
        np.save(file, contiguous, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return {"shape": list(array.shape), "bytes": path.stat().st_size, "crc32": _checksum(path)}


def _load(folder: Path, name: str, files: dict[str, Any]) -> NDArray[Any]:
    """Read one array and check it; a large one is memory-mapped, its content unchecked."""
    path = folder / f"{name}.npy"
    record = files[name]
    try:
        shape = record["shape"]
        n_bytes = path.stat().st_size
        if n_bytes != record["bytes"]:
            raise _damaged(path, f"it has {n_bytes:,} bytes instead of {record['bytes']:,}")
        is_mapped = name == FEATURES and 0 not in shape
        array = np.load(path, mmap_mode="r" if is_mapped else None, allow_pickle=False)
        if list(array.shape) != shape or array.dtype.str != DTYPES[name]:
            raise _damaged(path, f"it has {array.dtype} {array.shape}")
        if not is_mapped and _checksum(path) != record["crc32"]:
            raise _damaged(path, "its checksum differs")
    except (OSError, ValueError, EOFError, KeyError, TypeError, MemoryError) as error:
        if isinstance(error, CorpusError):
            raise
        raise _damaged(path, str(error)) from error
    return array


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _damaged(path: Path, why: str) -> CorpusError:
    return CorpusError(
        f"{path} is damaged or not a file of this cache ({why}); delete its folder and compute it again."
    )
