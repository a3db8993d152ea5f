"""Which slices go into a corpus: paths, folders and tables of paths become one list of sources with an id each."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from terrazzo.corpus.store import SPLITS
from terrazzo.errors import ConfigError, CorpusError, GeneError, InputError, did_you_mean
from terrazzo.files import hash_json
from terrazzo.genes import load_orthologs
from terrazzo.genes.names import ensembl_id, find_organism, read_gene_names
from terrazzo.images import TissueImage
from terrazzo.slices import Slice
from terrazzo.sparse import merge_columns

_TABLES = (".csv", ".tsv", ".parquet")


_SETTINGS = ("technology", "organism", "layer", "spatial_key", "unit", "microns_per_unit")


_NUMBERS = ("microns_per_unit", "image_scale", "image_scale_y")


@dataclass(frozen=True)
class Source:
    """A slice to be, and what its user or recipe states of it; None where the slice itself is asked.

    Attributes
    ----------
    path, id
        ``.h5ad`` file or ``.zarr`` folder; its name in the corpus.
    technology, organism, layer, spatial_key, unit, microns_per_unit
        As :meth:`terrazzo.Slice.from_anndata` takes them.
    tissue, donor
        For the manifest; several donors are joined by "|".
    image, image_scale, image_scale_y
        Histology beside the slice and its scale, as :meth:`terrazzo.TissueImage.from_file` takes them.
    split
        "train", "validation" or "test".
    origin
        Name of the recipe's source that it belongs to.
    organisms
        Organisms that the recipe takes; () for any.
    """

    path: Path
    id: str
    technology: str | None = None
    organism: str | None = None
    tissue: str | None = None
    donor: str | None = None
    split: str | None = None
    layer: str | None = None
    spatial_key: str | None = None
    unit: str | None = None
    microns_per_unit: float | None = None
    image: Path | None = None
    image_scale: float | None = None
    image_scale_y: float | None = None
    origin: str | None = None
    organisms: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        paths = {"path": str(self.path), "image": self.image and str(self.image)}
        return {**dataclasses.asdict(self), **paths, "organisms": list(self.organisms)}

    def slice_options(self) -> dict[str, Any]:
        """Return what is stated, as arguments of ``Slice.from_anndata``."""
        return {name: getattr(self, name) for name in _SETTINGS if getattr(self, name) is not None}

    def picture(self) -> TissueImage | None:
        """Open the histology beside the slice; a TIFF stays in its file. None where there is none.

        Raises
        ------
        InputError
            No picture, one that cannot be read, or an impossible scale.
        """
        if self.image is None:
            return None
        return TissueImage.from_file(
            self.image, scale=self.image_scale or 0.0, scale_y=self.image_scale_y
        )


COLUMNS = tuple(f.name for f in dataclasses.fields(Source) if f.name not in ("origin", "organisms"))


def gather(sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Source]:
    """List slices in a fixed order, each with an id of its own.

    Parameters
    ----------
    sources
        ``.h5ad`` files, AnnData ``.zarr`` folders, folders that hold such (at any depth), and tables (.csv, .tsv,
        .parquet) with a column ``path``, relative to the table, and any of ``id, technology, organism, tissue, donor,
        split, layer, spatial_key, unit, microns_per_unit, image, image_scale, image_scale_y``; an image is a path
        relative to the table too.

    Raises
    ------
    InputError
        A path that is not there, or of another kind.
    CorpusError
        Nothing found; an unknown column or split; two slices of one id.
    """
    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    found: list[tuple[Path, dict[str, Any]]] = []
    for path in map(Path, given):
        if not path.exists():
            raise InputError(f"{path} does not exist")
        if path.suffix.lower() in _TABLES and path.is_file():
            found += _read_table(path)
        elif is_slice(path):
            found.append((path, {}))
        elif path.is_dir():
            found += [(inner, {}) for inner in walk(path)]
        else:
            raise InputError(
                f"{path} is no .h5ad file, .zarr folder, folder of these, or table ({', '.join(_TABLES)})"
            )
    if not found:
        raise CorpusError(
            f"no .h5ad or .zarr slices in {', '.join(map(str, given)) or 'an empty list'}"
        )
    return name_sources(found)


def is_slice(path: Path) -> bool:
    """Say whether a path is an ``.h5ad`` file or an AnnData ``.zarr`` folder, by its look."""
    if path.is_dir():
        return (path / "zarr.json").is_file() or (path / ".zgroup").is_file()
    return path.suffix.lower() == ".h5ad"


def walk(folder: Path) -> Iterator[Path]:
    """Yield the slices below a folder, sorted; not what is inside a slice, and nothing hidden."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if is_slice(path):
            yield path
        elif path.is_dir():
            yield from walk(path)


def name_sources(found: list[tuple[Path, dict[str, Any]]]) -> list[Source]:
    """Give every path an id: the one stated, its name without suffix, or folder and name where names repeat."""
    stems = [clean_id(str(facts.get("id") or path.stem)) for path, facts in found]
    lower = [stem.lower() for stem in stems]
    repeated = (
        {name for name in lower if lower.count(name) > 1} if len(set(lower)) < len(lower) else set()
    )
    sources: dict[str, Source] = {}
    for (path, facts), stem in zip(found, stems, strict=True):
        longer = stem.lower() in repeated and not facts.get("id")
        name = clean_id(f"{path.resolve().parent.name}_{stem}") if longer else stem
        if name.lower() in sources:
            raise CorpusError(
                f"{sources[name.lower()].path} and {path} would both be called {name!r}: list them in a table with a "
                "column id (path,id)"
            )
        sources[name.lower()] = Source(**{**facts, "path": path, "id": name})
    return list(sources.values())


def clean_id(text: str) -> str:
    """Return a text as a file name: letters, digits, ``_ . + -``."""
    return re.sub(r"[^\w.+-]+", "_", text).strip(".") or "slice"


def _read_table(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    try:
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, sep="," if path.suffix.lower() == ".csv" else "\t", dtype=str)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from error
    for name in table.columns:
        if name not in COLUMNS:
            hint = did_you_mean(name, COLUMNS, f"Columns: {', '.join(COLUMNS)}.", cutoff=0.5)
            raise CorpusError(f"{path} has an unknown column {name!r}.{hint}")
    if "path" not in table.columns:
        raise CorpusError(f"{path} needs a column path; others may be {', '.join(COLUMNS[1:])}")
    rows = []
    for line, row in enumerate(table.to_dict("records"), start=2):
        facts = {
            str(k): str(v).strip() for k, v in row.items() if not pd.isna(v) and str(v).strip()
        }
        where = f"{path}, line {line}"
        if "path" not in facts:
            raise CorpusError(f"{where}: no path")
        if facts.get("split", "train") not in SPLITS:
            raise CorpusError(f"{where}: split {facts['split']!r} is none of {', '.join(SPLITS)}")
        files = {name: path.parent / facts[name] for name in ("path", "image") if name in facts}
        for file in files.values():
            if not file.exists():
                raise InputError(f"{where}: {file} does not exist")
        if ("image" in facts) != ("image_scale" in facts):
            raise CorpusError(
                f"{where}: image and image_scale (image_xy = spatial * image_scale) belong together"
            )
        told: dict[str, Any] = {**facts, **_numbers(facts, where)}
        rows.append((files["path"], told | files))
    return rows


def _numbers(facts: dict[str, str], where: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in _NUMBERS:
        try:
            if name in facts:
                found[name] = float(facts[name])
        except ValueError as error:
            raise CorpusError(f"{where}: {name} {facts[name]!r} is no number") from error
    return found


_BLOCK_VALUES = 2**22


@dataclass(frozen=True)
class QualityControl:
    """Which cells and slices are kept.

    Attributes
    ----------
    min_genes
        Expressed genes that a cell needs (SToFM, section 4.1: 100), before ortholog mapping.
    min_cells
        Cells that a slice needs after that.
    """

    min_genes: int = 100
    min_cells: int = 1

    def __post_init__(self) -> None:
        if self.min_genes < 0 or self.min_cells < 1:
            raise ConfigError(
                "quality control: min_genes must be at least 0, and min_cells at least 1."
            )

    def keep(self, piece: Slice) -> np.ndarray:
        """Say which cells stay, bool (n_cells,)."""
        return np.asarray(np.diff(piece.counts.indptr) >= self.min_genes)

    def reason(self, n_kept: int, n_cells: int) -> str:
        """Say why a slice of which so many cells stay is left out, "" if it is not."""
        if n_kept >= self.min_cells:
            return ""
        return (
            f"{n_kept:,} of {n_cells:,} cells have at least {self.min_genes} expressed genes; "
            f"a slice needs {self.min_cells:,}"
        )


@dataclass(frozen=True)
class Orthologs:
    """One-to-one pairs of genes, from those of other organisms to those of the corpus.

    Attributes
    ----------
    pairs
        Source gene -> gene of the corpus, ids without version or symbols.
    organism
        Organism of the genes of the corpus.
    """

    pairs: Mapping[str, str]
    organism: str

    @classmethod
    def from_table(
        cls, table: Mapping[str, str] | pd.DataFrame | str | os.PathLike[str]
    ) -> Orthologs:
        """Take the one-to-one pairs of a dict, a two-column table or a file of one (see ``genes.load_orthologs``).

        Raises
        ------
        InputError
            Not such a table, no one-to-one pair, or targets that do not tell human from mouse.
        """
        if isinstance(table, str | os.PathLike):
            table = load_orthologs(table)
        frame = pd.DataFrame(list(table.items())) if isinstance(table, Mapping) else table
        if not isinstance(frame, pd.DataFrame) or frame.shape[1] != 2:
            raise InputError(
                "orthologs must be a dict or a two-column table (slice gene, gene of the corpus)"
            )
        frame = (
            frame.set_axis(["source", "target"], axis=1)
            .dropna()
            .astype(str)
            .map(lambda s: ensembl_id(s) or s)
        )
        frame = frame.drop_duplicates()
        once = ~frame["source"].duplicated(keep=False) & ~frame["target"].duplicated(keep=False)
        pairs = dict(zip(frame.loc[once, "source"], frame.loc[once, "target"], strict=True))
        names = read_gene_names(pd.DataFrame(index=pd.Index(list(pairs.values()), dtype=object)))
        organism = find_organism(pd.DataFrame(), {}, names) if pairs else "unknown"
        if organism not in ("human", "mouse"):
            raise InputError(
                f"orthologs: {len(pairs)} one-to-one pairs whose second column reads as {organism} genes; "
                "give pairs from the slices' genes to human (or mouse) genes"
            )
        return cls(pairs, organism)

    def content_hash(self) -> str:
        """Return the sha256 (hex) of the pairs."""
        return hash_json([sorted(self.pairs.items()), self.organism])

    def apply(self, piece: Slice) -> tuple[Slice, str]:
        """Return the slice on genes of the corpus, and what was lost; genes without one-to-one ortholog are left out.

        Raises
        ------
        GeneError
            No gene of the slice is in the table.
        """
        names = zip(piece.gene_ids.tolist(), piece.gene_symbols.tolist(), strict=True)
        target = [self.pairs.get(gene, "") or self.pairs.get(symbol, "") for gene, symbol in names]
        known = np.flatnonzero([name != "" for name in target])
        if not len(known):
            raise GeneError(
                f"none of its {piece.n_genes} genes ({piece.organism}) is in the ortholog table"
            )
        kept = sorted({target[i] for i in known})
        place = {name: at for at, name in enumerate(kept)}
        column = np.asarray([place[target[i]] for i in known], dtype=np.int64)
        counts = merge_columns(sp.csr_matrix(piece.counts[:, known]), column, len(kept))
        ids = np.asarray([ensembl_id(name) for name in kept], dtype=np.str_)
        symbols = np.asarray(["" if ensembl_id(name) else name for name in kept], dtype=np.str_)
        share = float(counts.sum()) / max(1.0, float(piece.counts.sum()))
        note = (
            f"{len(known)} of {piece.n_genes} {piece.organism} genes have a one-to-one {self.organism} ortholog, "
            f"holding {share:.1%} of the counts; the others are left out"
        )
        return replace(
            piece, counts=counts, gene_ids=ids, gene_symbols=symbols, organism=self.organism
        ), note


def fingerprint(piece: Slice) -> str:
    """Return a sha256 (hex) of counts and native coordinates that does not depend on the order of cells or genes.

    Gene names do not count, so that a slice is known again where one database has symbols and another ids.
    """
    rows = _row_hashes(piece.counts)
    for axis in (0, 1):
        bits = (piece.native_coords[:, axis].astype(np.float32) + np.float32(0)).view(np.uint32)
        rows = _mix(rows ^ _mix(bits.astype(np.uint64) + np.uint64(axis + 1)))
    return hashlib.sha256(np.sort(rows).astype("<u8").tobytes()).hexdigest()


def _row_hashes(counts: sp.csr_matrix) -> np.ndarray:
    """Hash the set of values of each row, uint64 (n,)."""
    rows = np.empty(counts.shape[0], dtype=np.uint64)
    pointer = counts.indptr.astype(np.int64)
    start = 0
    while start < len(rows):
        stop = int(np.searchsorted(pointer, pointer[start] + _BLOCK_VALUES, side="right")) - 1
        stop = min(max(stop, start + 1), len(rows))
        values = counts.data[pointer[start] : pointer[stop]].astype(np.float64).view(np.uint64)
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mix(values), dtype=np.uint64)])
        at = pointer[start : stop + 1] - pointer[start]
        rows[start:stop] = total[at[1:]] - total[at[:-1]] + np.diff(at).astype(np.uint64)
        start = stop
    return _mix(rows)


def _mix(value: np.ndarray) -> np.ndarray:
    """Scramble 64 bits (the finalizer of splitmix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
