"""Sources of a corpus: paths, folders and tables of paths as one list of slices, each with an id and what is stated."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from terrazzo.corpus.splits import SPLITS
from terrazzo.errors import CorpusError, GeneError, InputError, did_you_mean, shortened
from terrazzo.files import hash_json
from terrazzo.genes import load_orthologs
from terrazzo.genes.names import ensembl_id, read_gene_names
from terrazzo.genes.organism import find_organism
from terrazzo.genes.orthologs import PairFinder, candidates, shipped
from terrazzo.images import TissueImage
from terrazzo.safe_tables import read_csv, read_parquet
from terrazzo.slices import Choices, Slice, open_slice, takes_all
from terrazzo.slices.parts import section_labels
from terrazzo.sparse import merge_columns

__all__ = [
    "Orthologs",
    "Source",
    "by_section",
    "clean_id",
    "fingerprint",
    "is_slice",
    "list_sources",
    "name_sources",
    "walk",
]

Hashes = NDArray[np.uint64]

_TABLES = (".csv", ".tsv", ".parquet")
_SETTINGS = ("technology", "organism", "layer", "spatial_key", "unit", "microns_per_unit")
_NUMBERS = ("microns_per_unit", "image_scale", "image_scale_y")
_LONGEST_ID = 200  # bytes
_HASHED_VALUES = 2**22  # counts that are hashed at a time


@dataclass(frozen=True, repr=False)
class Source:
    """A slice to read, and what the user or a published corpus states of it; None: as the slice itself says.

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
    slice_key, section
        Column of ``obs`` that tells sections apart, and the one that this slice is; see :func:`by_section`.
    origin
        Name of the source of a published corpus that it belongs to.
    organisms
        Organisms that the published corpus takes; () for any.
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
    slice_key: str | None = None
    section: str | None = None
    origin: str | None = None
    organisms: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Source({self.id!r}, {str(self.path)!r})"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        fields = dataclasses.asdict(self)
        fields["path"] = str(self.path)
        if self.image is not None:
            fields["image"] = str(self.image)
        fields["organisms"] = list(self.organisms)
        return fields

    def slice_options(self) -> dict[str, Any]:
        """Return what is stated, as arguments of ``Slice.from_anndata``."""
        options = {}
        for name in _SETTINGS:
            value = getattr(self, name)
            if value is not None:
                options[name] = value
        return options

    def picture(self) -> TissueImage | None:
        """Open the histology beside the slice; a TIFF stays in its file. None where there is none.

        Raises
        ------
        InputError
            Not a picture, one that cannot be read, or an impossible scale.
        """
        if self.image is None:
            return None
        scale = self.image_scale or 0.0
        return TissueImage.from_file(self.image, scale=scale, scale_y=self.image_scale_y)


_COLUMNS = [field.name for field in dataclasses.fields(Source)]
_COLUMNS.remove("origin")
_COLUMNS.remove("organisms")


def list_sources(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[Source]:
    """List slices in a fixed order, each with an id of its own.

    Parameters
    ----------
    sources
        ``.h5ad`` files, AnnData ``.zarr`` folders, folders that hold such (at any depth), and tables (.csv, .tsv,
        .parquet) with a column ``path``, relative to the table, and any of ``id, technology, organism, tissue, donor,
        split, layer, spatial_key, unit, microns_per_unit, image, image_scale, image_scale_y, slice_key, section``; an
        image is a path relative to the table too.

    Raises
    ------
    InputError
        A path that does not exist, or of another kind.
    CorpusError
        No slice among them; an unknown column or split; two slices of one id.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    paths = [Path(source) for source in sources]
    named: list[tuple[Path, dict[str, Any]]] = []
    for path in paths:
        named += _expand(path)
    if not named:
        listed = ", ".join(map(str, paths)) or "an empty list"
        raise CorpusError(f"no .h5ad or .zarr slices in {listed}")
    return name_sources(named)


def by_section(sources: list[Source], slice_key: str | None = None) -> list[Source]:
    """Replace sources with several sections by one for each, called after slice and section.

    Parameters
    ----------
    sources
        Of :func:`list_sources`; ``slice_key`` of one goes before the common one.
    slice_key
        Column of ``obs`` that tells sections apart. A slice that cannot be read, or does not have it, stays one source,
        which fails as it is made.

    Raises
    ------
    CorpusError
        Two sections would have one id; a picture is stated for several sections.
    """
    expanded: dict[str, Source] = {}
    for source in sources:
        for one in _sections(source, source.slice_key or slice_key):
            key = one.id.lower()
            if key in expanded:
                raise CorpusError(
                    f"{expanded[key].path} and {one.path} would both have a slice called {one.id!r}: list them in a "
                    "table with a column id (path,id)"
                )
            expanded[key] = one
    return list(expanded.values())


def _sections(source: Source, slice_key: str | None) -> list[Source]:
    """Return one source for each section of a slice."""
    source = replace(source, slice_key=slice_key)
    if takes_all(slice_key) or source.section is not None:
        return [source]
    try:
        obs = open_slice(source.path, Choices(slice_key=slice_key)).adata.obs
        values = section_labels(obs, str(slice_key)).values
    except InputError:
        return [source]
    if source.image is not None and len(values) > 1:
        raise CorpusError(
            f"{source.path}: one image is stated for {len(values)} sections; give each section a row of its own "
            "(columns slice_key, section, image, image_scale)"
        )
    sections = []
    for value in values:
        id = clean_id(f"{source.id}_{value}")
        sections.append(replace(source, id=id, section=value))
    return sections


def _expand(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the slices of a path, and what is stated of each."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.suffix.lower() in _TABLES and path.is_file():
        return _read_table(path)
    if is_slice(path):
        return [(path, {})]
    if path.is_dir():
        return [(inner, {}) for inner in walk(path)]
    tables = ", ".join(_TABLES)
    raise InputError(
        f"{path} is not an .h5ad file, a .zarr folder, a folder of these, or a table ({tables})"
    )


def is_slice(path: Path) -> bool:
    """Return whether a path looks like an ``.h5ad`` file or an AnnData ``.zarr`` folder."""
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


def name_sources(named: list[tuple[Path, dict[str, Any]]]) -> list[Source]:
    """Make sources of paths and what is stated of them.

    The id is the one stated, else the path's name without suffix, or folder and name where names repeat.
    """
    ids = []
    for path, facts in named:
        stated = facts.get("id")
        ids.append(clean_id(stated or path.stem))
    times = Counter(id.lower() for id in ids)
    sources: dict[str, Source] = {}
    for (path, facts), id in zip(named, ids, strict=True):
        if times[id.lower()] > 1 and "id" not in facts:
            folder = path.resolve().parent
            id = clean_id(f"{folder.name}_{id}")
        key = id.lower()
        if key in sources:
            first = sources[key].path
            raise CorpusError(
                f"{first} and {path} would both be called {id!r}: list them in a table with a column id (path,id)"
            )
        facts = {**facts, "path": path, "id": id}
        sources[key] = Source(**facts)
    return list(sources.values())


def clean_id(text: str) -> str:
    """Return a text as a file name: letters, digits, ``_ . + -``."""
    name = re.sub(r"[^\w.+-]+", "_", text).strip(".")
    if (
        len(name.encode()) > _LONGEST_ID
    ):  # with what is added to it, a name of a file has at most 255 bytes
        digest = hashlib.sha256(name.encode()).hexdigest()
        name = f"{name[: _LONGEST_ID // 4]}-{digest[:12]}"
    return name or "slice"


def _read_table(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return path and stated facts of each row of a table of sources."""
    table = _load_table(path)
    rows = []
    for line, row in enumerate(table.to_dict("records"), start=2):
        where = f"{path}, line {line}"
        facts = {}
        for column, value in row.items():
            text = "" if pd.isna(value) else str(value).strip()
            if text:
                facts[str(column)] = text
        rows.append(_parse_row(facts, path.parent, where))
    return rows


def _load_table(path: Path) -> pd.DataFrame:
    """Read a table of sources and check its columns."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            table = read_parquet(path)
        else:
            separator = "," if suffix == ".csv" else "\t"
            table = read_csv(path, sep=separator, dtype=str)
    except InputError:
        raise
    except (OSError, ValueError, MemoryError) as error:
        reason = shortened(error, 200, quoted=False)
        raise InputError(f"{path} cannot be read as a table: {reason}") from error
    listed = ", ".join(_COLUMNS)
    for name in table.columns:
        if name not in _COLUMNS:
            hint = did_you_mean(name, _COLUMNS, f"Columns: {listed}.", cutoff=0.5)
            raise CorpusError(f"{path} has an unknown column {name!r}.{hint}")
    if "path" not in table.columns:
        others = listed.removeprefix("path, ")
        raise CorpusError(f"{path} needs a column path; others may be {others}")
    return table


def _parse_row(facts: dict[str, str], folder: Path, where: str) -> tuple[Path, dict[str, Any]]:
    """Return the slice's path and what is stated of it, checked; ``where`` is for messages."""
    if "path" not in facts:
        raise CorpusError(f"{where}: no path")
    split = facts.get("split")
    if split is not None and split not in SPLITS:
        known = ", ".join(SPLITS)
        raise CorpusError(f"{where}: split {split!r} is none of {known}")
    parsed: dict[str, Any] = dict(facts)
    for name in ("path", "image"):
        if name in facts:
            file = folder / facts[name]
            if not file.exists():
                raise InputError(f"{where}: {file} does not exist")
            parsed[name] = file
    if ("image" in facts) != ("image_scale" in facts):
        raise CorpusError(
            f"{where}: image and image_scale (image_xy = spatial * image_scale) belong together"
        )
    for name in _NUMBERS:
        if name in facts:
            parsed[name] = _number(facts[name], name, where)
    return parsed["path"], parsed


def _number(text: str, name: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise CorpusError(f"{where}: {name} {text!r} is not a number") from error


@dataclass(frozen=True, repr=False)
class Orthologs:
    """One-to-one pairs of genes, from those of other organisms to those of the corpus.

    Genes that they do not have go by the table that comes with the library (:mod:`terrazzo.genes.orthologs`).

    Attributes
    ----------
    pairs
        Source gene -> gene of the corpus, ids without version or symbols.
    organism
        Organism of the genes of the corpus.
    """

    pairs: Mapping[str, str]
    organism: str

    def __repr__(self) -> str:
        n_pairs = len(self.pairs)
        return f"Orthologs({n_pairs:,} pairs to {self.organism} genes)"

    @classmethod
    def from_table(
        cls, table: Mapping[str, str] | pd.DataFrame | str | os.PathLike[str]
    ) -> Orthologs:
        """Take the one-to-one pairs of a dict, a two-column table or a file of one (see ``genes.load_orthologs``).

        "human" or "mouse": no pairs but those of the library, to the genes of that organism.

        Raises
        ------
        InputError
            Not such a table, no one-to-one pair, or targets that do not tell human from mouse.
        """
        if isinstance(table, str | os.PathLike):
            organism = os.fspath(table)
            if organism in ("human", "mouse") and not os.path.exists(organism):
                return cls({}, organism)
            table = load_orthologs(table)
        if isinstance(table, Mapping):
            table = pd.DataFrame(list(table.items()))
        if not isinstance(table, pd.DataFrame) or table.shape[1] != 2:
            raise InputError(
                "orthologs must be a dict or a two-column table (slice gene, gene of the corpus)"
            )
        frame = table.set_axis(["source", "target"], axis=1)
        frame = frame.dropna().astype(str)
        frame = frame.map(lambda name: ensembl_id(name) or name)
        frame = frame.drop_duplicates()
        repeated_source = frame["source"].duplicated(keep=False)
        repeated_target = frame["target"].duplicated(keep=False)
        frame = frame[~repeated_source & ~repeated_target]
        pairs = dict(zip(frame["source"], frame["target"], strict=True))
        organism = _organism_of(list(pairs.values()))
        if organism not in ("human", "mouse"):
            raise InputError(
                f"orthologs: {len(pairs)} one-to-one pairs whose second column reads as {organism} genes; "
                "give pairs from the slices' genes to human (or mouse) genes"
            )
        return cls(pairs, organism)

    def content_hash(self) -> str:
        """Return the sha256 (hex) of the pairs, and of those of the library."""
        pairs = sorted(self.pairs.items())
        return hash_json([pairs, self.organism, shipped().digest])

    def apply(self, piece: Slice) -> tuple[Slice, str]:
        """Return the slice on genes of the corpus, and what was lost; genes without an ortholog are left out.

        A gene of the corpus is one gene of the slice, unless the pairs say otherwise.

        Raises
        ------
        GeneError
            No gene of the slice has an ortholog.
        """
        names = list(zip(piece.gene_ids.tolist(), piece.gene_symbols.tolist(), strict=True))
        targets = self._targets(names, piece.organism)
        n_given = len(targets)
        self._add_shipped(targets, names, piece.organism)
        if not targets:
            raise GeneError(
                f"none of its {piece.n_genes} genes ({piece.organism}) is in the ortholog table, or in that of "
                "terrazzo. State organism in the table of sources if it is another one"
            )
        known = sorted(targets)  # columns of the slice that have an ortholog
        genes = sorted(set(targets.values()))
        number_of = {gene: number for number, gene in enumerate(genes)}
        columns = np.array([number_of[targets[column]] for column in known], dtype=np.int64)
        counts = sp.csr_matrix(piece.counts[:, known])
        counts = merge_columns(counts, columns, len(genes))
        n_counts = float(piece.counts.sum())
        share = float(counts.sum()) / max(1.0, n_counts)
        note = (
            f"{len(known)} of {piece.n_genes} {piece.organism} genes have a {self.organism} ortholog of their own "
            f"({n_given} by the table given, {len(known) - n_given} by that of terrazzo), holding {share:.1%} of the "
            "counts; the others are left out"
        )
        mapped = replace(
            piece,
            counts=counts,
            gene_ids=np.array([gene for gene, _ in genes], dtype=np.str_),
            gene_symbols=np.array([symbol for _, symbol in genes], dtype=np.str_),
            organism=self.organism,
        )
        return mapped, note

    def _targets(self, names: list[tuple[str, str]], organism: str) -> dict[int, tuple[str, str]]:
        """Return id and symbol of the genes of the corpus by column of the slice, by the pairs that were given."""
        finder = PairFinder(self.pairs, organism)
        own_genes = shipped().genes[self.organism]
        targets = {}
        for column, (gene, symbol) in enumerate(names):
            target = finder.find(gene, symbol)
            if not target:
                continue
            id = ensembl_id(target)
            if id:
                targets[column] = (id, own_genes.symbol_of.get(id, ""))
            else:
                targets[column] = ("", target)
        return targets

    def _add_shipped(
        self, targets: dict[int, tuple[str, str]], names: list[tuple[str, str]], organism: str
    ) -> None:
        """Add the orthologs of the library for columns without one, to genes that no other column has."""
        if organism not in ("human", "mouse") or organism == self.organism:
            return
        taken: set[str] = set()
        for gene, symbol in targets.values():
            taken.update((gene, symbol))
        taken.discard("")
        for ortholog in candidates(names, organism):
            is_free = ortholog.gene not in taken and ortholog.symbol not in taken
            if ortholog.column not in targets and is_free:
                targets[ortholog.column] = (ortholog.gene, ortholog.symbol)
                taken.update((ortholog.gene, ortholog.symbol))
                taken.discard("")


def _organism_of(genes: list[str]) -> str:
    """Return the organism that the names of genes tell, "unknown" for none."""
    if not genes:
        return "unknown"
    var = pd.DataFrame(index=pd.Index(genes, dtype=object))
    names = read_gene_names(var)
    return find_organism(pd.DataFrame(), {}, names).name


def fingerprint(piece: Slice) -> str:
    """Return a sha256 (hex) of counts and native coordinates that does not depend on the order of cells or genes.

    Gene names do not count, so that a slice is recognized where one database has symbols and another ids.
    """
    rows = _row_hashes(piece.counts)
    for axis in (0, 1):
        positions = piece.native_coords[:, axis].astype(np.float32)
        positions += np.float32(0)  # -0 becomes 0
        bits = positions.view(np.uint32).astype(np.uint64)
        hashes = _mix(bits + np.uint64(axis + 1))
        rows = _mix(rows ^ hashes)
    content = np.sort(rows).astype("<u8")
    return hashlib.sha256(content.tobytes()).hexdigest()


def _row_hashes(counts: sp.csr_matrix) -> Hashes:
    """Hash the set of values of each row, uint64 (n,)."""
    rows = np.empty(counts.shape[0], dtype=np.uint64)
    indptr = counts.indptr.astype(np.int64)
    start = 0
    while start < len(rows):
        most = indptr[start] + _HASHED_VALUES
        stop = int(np.searchsorted(indptr, most, side="right")) - 1
        stop = max(stop, start + 1)
        bounds = indptr[start : stop + 1]
        values = counts.data[bounds[0] : bounds[-1]].astype(np.float64)
        hashes = _mix(values.view(np.uint64))
        total = np.zeros(len(hashes) + 1, dtype=np.uint64)
        np.cumsum(hashes, dtype=np.uint64, out=total[1:])
        ends = total[bounds - bounds[0]]
        n_values = np.diff(bounds).astype(np.uint64)
        rows[start:stop] = np.diff(ends) + n_values
        start = stop
    return _mix(rows)


def _mix(value: Hashes) -> Hashes:
    """Scramble 64 bits (the finalizer of splitmix64)."""
    value = value ^ (value >> np.uint64(30))
    value = value * np.uint64(0xBF58476D1CE4E5B9)
    value = value ^ (value >> np.uint64(27))
    value = value * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
