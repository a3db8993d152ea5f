"""The pantry: cell vectors, virtual cells and sub-slices of each member, computed once and read from disk ever after.

One folder a key, one folder a member in it, written beside its place and renamed into it, so that a killed writer
leaves nothing that reads as finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from terrazzo.arrays import Ints
from terrazzo.errors import CorpusError, OutputError
from terrazzo.systems.stofm.subslices import SubSliceConfig
from terrazzo.systems.stofm.virtual_cells import VirtualCells

FORMAT = 1


ABOUT = "about.json"


FEATURES = "features"


PIECE = 2**24  # bytes looked at at a time when a file is checked


UNSTORED = (
    "halo",
    "n_neighbors",
    "pair",
)  # settings of sub-slices that change nothing that is stored


_DTYPES = {
    FEATURES: "<f4",
    "labels": "<i8",
    "virtual_features": "<f4",
    "virtual_positions": "<f8",
    "parts": "<i8",
    "offsets": "<i8",
}


@dataclass(frozen=True)
class CacheKey:
    """What decides the stored arrays: another model, macro scale, split or seed never reads them.

    Attributes
    ----------
    fingerprint
        Of the cell encoder: its weights, vocabulary, maximal length and precision.
    config
        Sub-slices; what is decided only when a sub-slice is cut (neighbors, halo) does not count.
    seed
        Of Leiden.
    """

    fingerprint: str
    config: SubSliceConfig = field(default_factory=SubSliceConfig)
    seed: int = 0

    @property
    def stored(self) -> dict[str, Any]:
        """The settings that count."""
        return {k: v for k, v in asdict(self.config).items() if k not in UNSTORED}

    def digest(self) -> str:
        """Return 24 hex digits of a sha256."""
        text = json.dumps([FORMAT, self.fingerprint, self.stored, self.seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class CachedMember:
    """What is stored of one slice.

    Attributes
    ----------
    features
        float32 ``(n_cells, d)``, memory-mapped, read-only.
    macro
        Clusters and virtual cells.
    parts
        int64, the cells of all sub-slices, one after the other.
    offsets
        int64 ``(n_parts + 1,)``: sub-slice ``i`` is ``parts[offsets[i]:offsets[i + 1]]``.
    """

    features: NDArray[np.float32]
    macro: VirtualCells
    parts: Ints
    offsets: Ints

    @property
    def n_parts(self) -> int:
        """Number of sub-slices."""
        return len(self.offsets) - 1

    def part(self, number: int) -> Ints:
        """Return the cells of one sub-slice, without its halo."""
        return self.parts[self.offsets[number] : self.offsets[number + 1]]


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
        return self.folder / (name.replace(".", "%2E") if name.startswith(".") else name)

    def has(self, member: str, source: str = "") -> bool:
        """Say whether a member is stored; with ``source``, whether from this content.

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
        return int(self._about(member)["files"]["offsets"]["shape"][0]) - 1

    def write(
        self,
        member: str,
        features: NDArray[np.float32],
        macro: VirtualCells,
        parts: list[Ints],
        *,
        source: str = "",
    ) -> None:
        """Store a member, in place of what was stored of it; all of it or nothing.

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
        n = len(features)
        flat = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        if not len(macro.labels) == len(flat) == n or not np.array_equal(
            np.sort(flat), np.arange(n)
        ):
            raise CorpusError(
                f"{member}: the sub-slices or clusters do not cover its {n} cells exactly once."
            )
        arrays: dict[str, NDArray[Any]] = {
            FEATURES: features,
            "labels": macro.labels,
            "virtual_features": macro.features,
            "virtual_positions": macro.positions,
            "parts": flat,
            "offsets": np.concatenate([[0], np.cumsum([len(p) for p in parts])]),
        }
        place, made = self.path(member), self.folder / f".{uuid.uuid4().hex}"
        try:
            made.mkdir(parents=True)
            files = {name: _save(made, name, array) for name, array in arrays.items()}
            about = {
                "format": FORMAT,
                "key": self.key.digest(),
                "member": member,
                "source": source,
                "files": files,
            }
            (made / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            _replace(made, place)
        except OSError as error:
            raise OutputError(
                f"the embeddings of {member} cannot be written to {place}: {error}"
            ) from error
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def read(self, member: str, source: str = "") -> CachedMember:
        """Open a member: small arrays in memory and checked, the cell vectors memory-mapped.

        Raises
        ------
        CorpusError
            Not stored, from another content than ``source``, damaged, or of another key; the message names the file.
        """
        about = self._about(member)
        if source not in ("", about["source"]):
            raise CorpusError(
                f"{self.path(member)} was computed from another content of {member}; compute it again."
            )
        got = {name: _load(self.path(member), name, about["files"]) for name in _DTYPES}
        macro = VirtualCells(got["labels"], got["virtual_features"], got["virtual_positions"])
        return CachedMember(got[FEATURES], macro, got["parts"], got["offsets"])

    def verify(self, member: str) -> None:
        """Check every byte of a member, cell vectors included.

        Raises
        ------
        CorpusError
            As :meth:`read`; also a changed byte among the cell vectors.
        """
        self.read(member)
        path = self.path(member) / f"{FEATURES}.npy"
        if _checksum(path) != self._about(member)["files"][FEATURES]["crc32"]:
            raise _damaged(path, "its checksum differs")

    def _about(self, member: str) -> dict[str, Any]:
        path = self.path(member) / ABOUT
        if not path.is_file():
            raise CorpusError(
                f"{member} has no stored embeddings for this model and these settings ({path.parent})."
            )
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            mine = (about["format"], about["key"], about["member"]) == (
                FORMAT,
                self.key.digest(),
                member,
            )
            fine = isinstance(about["source"], str) and set(about["files"]) == set(_DTYPES)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise _damaged(path, str(error)) from error
        if not mine:
            raise CorpusError(
                f"{path} belongs to another model, setting or slice; delete its folder."
            )
        if not fine:
            raise _damaged(path, "it does not list the arrays that belong here")
        return dict(about)


def _save(folder: Path, name: str, array: NDArray[Any]) -> dict[str, Any]:
    """Write one array; return what is needed to check it."""
    path = folder / f"{name}.npy"
    with path.open("wb") as file:
        np.save(file, np.ascontiguousarray(array, dtype=_DTYPES[name]), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return {"shape": list(array.shape), "bytes": path.stat().st_size, "crc32": _checksum(path)}


def _load(folder: Path, name: str, files: dict[str, Any]) -> NDArray[Any]:
    path, known = folder / f"{name}.npy", files[name]
    try:
        if path.stat().st_size != known["bytes"]:
            raise _damaged(
                path, f"it has {path.stat().st_size:,} bytes instead of {known['bytes']:,}"
            )
        large = name == FEATURES and 0 not in known["shape"]
        array = np.load(path, mmap_mode="r" if large else None, allow_pickle=False)
        if [list(array.shape), array.dtype.str] != [known["shape"], _DTYPES[name]]:
            raise _damaged(path, f"it holds {array.dtype} {array.shape}")
        if not large and _checksum(path) != known["crc32"]:
            raise _damaged(path, "its checksum differs")
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        if isinstance(error, CorpusError):
            raise
        raise _damaged(path, str(error)) from error
    return array


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            value = zlib.crc32(piece, value)
    return value


def _damaged(path: Path, why: str) -> CorpusError:
    return CorpusError(
        f"{path} is damaged or no file of this cache ({why}); delete its folder and compute it again."
    )


def _replace(made: Path, place: Path) -> None:
    """Rename a finished folder into its place, moving aside what is there."""
    for _ in range(100):  # another process may write the same member at the same time
        try:
            made.rename(place)
            return
        except OSError:
            if not place.exists():
                raise
        aside = made.with_name(f"{made.name}-old")
        try:
            place.rename(aside)
        except FileNotFoundError:
            continue
        shutil.rmtree(aside, ignore_errors=True)
    raise OutputError(f"{place} is being rewritten by other processes without end.")
