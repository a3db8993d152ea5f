"""Vocabulary: the genes that a model knows, with tokens and medians; built from slices or published files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from terrazzo.errors import CheckpointError, ConfigError, shortened
from terrazzo.files import whole_file
from terrazzo.genes.matching import (
    Counted,
    Coverage,
    GeneMatch,
    GeneTable,
    check_floor,
    match_genes,
    warn_few,
)
from terrazzo.genes.medians import survey
from terrazzo.genes.names import ORGANISMS, ensembl_id, parse_organism
from terrazzo.parsing import parse_json, read_object
from terrazzo.safe_pickle import safe_unpickle
from terrazzo.safe_tables import check_parquet

__all__ = ["Vocabulary"]

_FORMAT_VERSION = 1
_METADATA_KEY = b"terrazzo_vocabulary"
_GENE_NAMES = "gene_name_id_dict.pkl"  # symbol -> Ensembl id
_SCGPT_SPECIAL = ("<pad>", "<cls>", "<eoc>")
_DTYPES = {
    "ensembl_id": np.str_,
    "symbol": np.str_,
    "token": np.int32,
    "median": np.float64,
}
_COLUMNS = {
    "ensembl_id": pa.string(),
    "symbol": pa.string(),
    "token": pa.int32(),
    "median": pa.float64(),
}


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Genes a model knows: Ensembl id, symbol, token and non-zero median of the normalized expression.

    Parameters
    ----------
    ensembl_id, symbol
        str (n,); "" where unknown, but never both.
    token
        int32 (n,), distinct, non-negative.
    median
        float64 (n,), positive; in counts per 10,000 of the cell unless built otherwise.
    special
        Special tokens by name, e.g. ``{"<pad>": 0, "<mask>": 1, "<cls>": 25426}``; distinct from the genes' tokens.
    organism
        "human", "mouse", "mixed" or "unknown".

    Raises
    ------
    ConfigError
        Columns of unequal length, genes without a name, repeated tokens or ids, medians that are not positive.
    """

    ensembl_id: np.ndarray
    symbol: np.ndarray
    token: np.ndarray
    median: np.ndarray
    special: Mapping[str, int] = field(default_factory=dict)
    organism: str = "human"

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            column: NDArray[Any] = np.asarray(getattr(self, name), dtype=dtype)
            object.__setattr__(self, name, column.reshape(-1))
        special = {str(name): int(token) for name, token in self.special.items()}
        object.__setattr__(self, "special", special)
        fault = self._fault()
        if fault:
            raise ConfigError(f"this is not a vocabulary: {fault}")

    def _fault(self) -> str:
        """Say what is wrong with the table, "" if nothing is."""
        lengths = {len(getattr(self, name)) for name in _DTYPES}
        if len(lengths) > 1:
            return "ensembl_id, symbol, token and median differ in length"
        special = np.asarray(list(self.special.values()), dtype=np.int64)
        tokens, n_rows = np.unique(np.concatenate([self.token, special]), return_counts=True)
        repeated = tokens[n_rows > 1]
        if len(repeated):
            return f"token {int(repeated[0])} is used more than once"
        if len(tokens) and tokens[0] < 0:
            return "a token is negative"
        has_id = self.ensembl_id != ""
        has_symbol = self.symbol != ""
        ids = self.ensembl_id[has_id]
        if len(np.unique(ids)) < len(ids):
            return "an Ensembl id is in more than one row"
        if not (has_id | has_symbol).all():
            return "a gene has neither Ensembl id nor symbol"
        is_fine = np.isfinite(self.median) & (self.median > 0)
        if not is_fine.all():
            return "medians must be positive finite numbers"
        if self.organism not in ORGANISMS:
            return f"organism {self.organism!r} is not one of {', '.join(ORGANISMS)}"
        return ""

    def __len__(self) -> int:
        """Return the number of genes (special tokens not counted)."""
        return len(self.token)

    def __repr__(self) -> str:
        """Describe the vocabulary in one line."""
        genes = f"{len(self)} genes, {self.organism}"
        return f"Vocabulary({genes}, n_tokens={self.n_tokens}, special={self.special})"

    @property
    def n_tokens(self) -> int:
        """Rows that an embedding table needs: the largest token, special ones included, plus one."""
        return _next_token([*self.token.tolist(), *self.special.values()])

    def content_hash(self) -> str:
        """Return the sha256 (hex) of all that is in the vocabulary."""
        table = [getattr(self, name).tolist() for name in _DTYPES]
        special = sorted(self.special.items())
        text = json.dumps([table, special, self.organism])
        return hashlib.sha256(text.encode()).hexdigest()

    def match(
        self,
        tissue: Counted,
        *,
        orthologs: GeneTable | None = None,
        aliases: GeneTable | None = None,
        floor: float = 0.05,
        min_genes: int = 5,
    ) -> GeneMatch:
        """Find the token of every gene of a slice.

        Under 50 shared genes (of a vocabulary of under 100: half of it) get a warning.

        Order: Ensembl id; exact symbol; symbol without regard to case; ``aliases``. Between mouse and human: Ensembl
        id; ``orthologs``; orthologs by the table of the library, first those that are one-to-one or share the symbol;
        symbol without regard to case; the other orthologs of the library, the most confident first, if their gene is
        still free; ``aliases``. Without ``orthologs`` a warning says how many. With them every gene is matched that
        would be without. A mixed slice matches by id and exact symbol only, with a warning.

        Parameters
        ----------
        tissue
            The slice.
        orthologs
            Slice gene -> vocabulary gene (ids or symbols, whichever the slice has), as dict, two-column table or path;
            one-to-one pairs are used, genes of others are matched without it, or reported as lost. Ignored where both
            are human, or both mouse.
        aliases
            Other name -> symbol or id; ambiguous ones are not used.
        floor
            Smallest accepted share of all counts on matched genes.
        min_genes
            Smallest accepted number of matched genes (or all genes of a smaller slice).

        Raises
        ------
        GeneError
            Coverage under ``floor`` or ``min_genes``.
        InputError
            ``orthologs`` or ``aliases`` that are not a two-column table.
        """
        match = match_genes(self, tissue, orthologs, aliases)
        check_floor(match, self, tissue, floor, min_genes)
        warn_few(match, self, tissue)
        return match

    def coverage(
        self,
        tissue: Counted,
        *,
        orthologs: GeneTable | None = None,
        aliases: GeneTable | None = None,
    ) -> Coverage:
        """Report how much of a slice the vocabulary knows; never raises for too little."""
        return match_genes(self, tissue, orthologs, aliases).coverage

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write one row a gene (``ensembl_id, symbol, token, median``); special tokens go to the schema's metadata."""
        about = {
            "format_version": _FORMAT_VERSION,
            "organism": self.organism,
            "special": dict(self.special),
        }
        metadata = {_METADATA_KEY: json.dumps(about).encode()}
        schema = pa.schema(list(_COLUMNS.items()), metadata=metadata)
        arrays = []
        for name, kind in _COLUMNS.items():
            column = getattr(self, name)
            is_text = column.dtype.kind == "U"
            arrays.append(pa.array(column.tolist() if is_text else column, kind))
        with whole_file(path) as draft:
            pq.write_table(pa.table(arrays, schema=schema), draft)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read what :meth:`to_parquet` wrote.

        Raises
        ------
        CheckpointError
            Missing, truncated or foreign file, wrong columns, unknown format version, repeated tokens, bad medians.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist or is not a file")
        try:
            check_parquet(path, CheckpointError)
            table = pq.read_table(path)
        except (OSError, pa.ArrowException, ValueError, MemoryError) as error:
            reason = shortened(error, 200, quoted=False)
            raise CheckpointError(
                f"{path} is damaged, truncated or not a parquet file ({reason})"
            ) from error
        about = _read_about(path, table)
        types = {name: table.schema.field(name).type for name in table.column_names}
        has_missing = any(column.null_count for column in table.columns)
        if types != _COLUMNS or has_missing:
            raise CheckpointError(
                f"{path} has columns {shortened(table.column_names, 300)} of unexpected types or with missing values; "
                f"a vocabulary has {list(_COLUMNS)}"
            )
        columns = {name: table.column(name).to_numpy() for name in _COLUMNS}
        try:
            return cls(**columns, special=about["special"], organism=about["organism"])
        except (ConfigError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: {shortened(error, 300, quoted=False)}") from error

    @classmethod
    def from_slices(
        cls,
        slices: Iterable[Counted],
        *,
        organism: str | None = None,
        special: Sequence[str] = ("<pad>", "<mask>", "<cls>"),
        target_sum: float = 10_000.0,
    ) -> Vocabulary:
        """Build a vocabulary from slices, one pass, one slice in memory at a time.

        Genes are the union by Ensembl id (by symbol where no id is known), sorted; the median is over the non-zero
        values of counts / total * ``target_sum`` of all cells (exact up to 33 million values, then within 0.7 %). A
        gene without any count gets the median of all medians.

        Parameters
        ----------
        slices
            Slices with counts; any iterable.
        organism
            None: that of the slices, "mixed" where they differ.
        special
            Names of the special tokens, numbered from 0; genes follow.
        target_sum
            Total that a cell is scaled to.

        Raises
        ------
        InputError
            A slice that does not hold counts.
        ConfigError
            No slices or no named genes; an unknown organism.
        """
        organism = None if organism is None else parse_organism(organism)
        union, share, organisms = survey(slices)
        if not union.gene_ids:
            raise ConfigError("a vocabulary needs at least one slice with named genes")
        median = share * target_sum
        has_counts = np.isfinite(median)
        usual = np.median(median[has_counts]) if has_counts.any() else 1.0
        median = np.where(has_counts, median, usual)
        ids = np.asarray(union.gene_ids, dtype=np.str_)
        symbols = np.asarray(union.gene_symbols, dtype=np.str_)
        order = np.lexsort((symbols, ids))
        n_special = len(special)
        token = np.arange(len(order), dtype=np.int32) + n_special
        return cls(
            ensembl_id=ids[order],
            symbol=symbols[order],
            token=token,
            median=median[order],
            special=dict(zip(special, range(n_special), strict=True)),
            organism=organism or _common_organism(organisms),
        )

    @classmethod
    def from_geneformer(cls, folder: str | os.PathLike[str]) -> Vocabulary:
        """Import Geneformer's dictionaries (V1 file names), as SToFM uses them.

        Parameters
        ----------
        folder
            With ``token_dictionary.pkl``, ``gene_median_dictionary.pkl`` and ``gene_name_id_dict.pkl``. ``<cls>`` gets
            the first free token (25,426 for these files) unless it is in the dictionary.

        Raises
        ------
        CheckpointError
            A file is missing, damaged or unsafe, or the files contradict each other.
        """
        folder = Path(folder)
        tokens = _geneformer_dict(folder / "token_dictionary.pkl", int)
        medians = _geneformer_dict(folder / "gene_median_dictionary.pkl", float)
        names = _geneformer_dict(folder / _GENE_NAMES, str)
        special = _special_tokens(tokens)
        genes = [name for name in tokens if name not in special]
        missing = [name for name in genes if name not in medians]
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} genes have a token but no median, e.g. {missing[0]}"
            )
        symbol_of: dict[str, str] = {}
        for symbol, gene in names.items():
            symbol_of.setdefault(ensembl_id(gene) or gene, symbol)
        if "<cls>" not in special:
            special["<cls>"] = _next_token(tokens.values())
        ids = [ensembl_id(name) or name for name in genes]
        symbols = [symbol_of.get(gene, "") for gene in ids]
        gene_tokens = [tokens[name] for name in genes]
        gene_medians = [medians[name] for name in genes]
        try:
            return cls(
                ensembl_id=np.asarray(ids, dtype=np.str_),
                symbol=np.asarray(symbols, dtype=np.str_),
                token=np.asarray(gene_tokens, dtype=np.int32),
                median=np.asarray(gene_medians, dtype=np.float64),
                special=special,
                organism="human",
            )
        except (ConfigError, OverflowError) as error:
            raise CheckpointError(f"{folder}: {error}") from error

    @classmethod
    def from_scgpt(
        cls, path: str | os.PathLike[str], gene_dictionaries: str | os.PathLike[str] | None = None
    ) -> Vocabulary:
        """Import scGPT's ``vocab.json``: symbol -> token. Medians, which scGPT does not use, are 1.

        Parameters
        ----------
        path
            The file. ``<pad>``, ``<cls>`` and ``<eoc>`` are appended where they are not in it, as scGPT does.
        gene_dictionaries
            Folder with Geneformer's ``gene_name_id_dict.pkl``: gives the symbols their Ensembl ids, for slices or
            orthologs that come without symbols. None: genes are known by symbol only.

        Raises
        ------
        CheckpointError
            A file is missing, damaged or unsafe, or holds anything but tokens by name.
        """
        path = Path(path)
        tokens = _scgpt_tokens(path)
        special = _special_tokens(tokens)
        genes = [name for name in tokens if name not in special]
        id_of: dict[str, str] = {}
        if gene_dictionaries is not None:
            id_of = _geneformer_dict(Path(gene_dictionaries) / _GENE_NAMES, str)
        ids = []
        symbols = []
        taken = set()
        for name in genes:
            own_id = ensembl_id(name)
            gene = own_id or ensembl_id(id_of.get(name, ""))
            ids.append("" if gene in taken else gene)
            taken.add(gene)
            symbols.append("" if own_id else name)
        gene_tokens = [tokens[name] for name in genes]
        try:
            return cls(
                ensembl_id=np.asarray(ids, dtype=np.str_),
                symbol=np.asarray(symbols, dtype=np.str_),
                token=np.asarray(gene_tokens, dtype=np.int32),
                median=np.ones(len(genes)),
                special=special,
                organism="human",
            )
        except (ConfigError, OverflowError) as error:
            raise CheckpointError(f"{path}: {shortened(error, 300, quoted=False)}") from error


def _next_token(tokens: Iterable[int]) -> int:
    """Return the first number above all tokens."""
    return 1 + max(tokens, default=-1)


def _special_tokens(tokens: Mapping[str, int]) -> dict[str, int]:
    """Return the tokens that are not genes, such as ``<pad>``."""
    return {name: int(token) for name, token in tokens.items() if name.startswith("<")}


def _common_organism(organisms: set[str]) -> str:
    """Return the organism of slices: "mixed" where they differ."""
    known = organisms - {"unknown"}
    if not known:
        return "unknown"
    if len(known) > 1:
        return "mixed"
    return next(iter(known))


def _read_about(path: Path, table: pa.Table) -> dict[str, Any]:
    """Read organism and special tokens from the metadata of a parquet file."""
    metadata = table.schema.metadata or {}
    if _METADATA_KEY not in metadata:
        raise CheckpointError(f"{path} is a parquet file but no terrazzo vocabulary")
    try:
        about = parse_json(metadata[_METADATA_KEY], str(path), CheckpointError)
        version = about["format_version"]
        is_complete = {"special", "organism"} <= set(about)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: the vocabulary's metadata is damaged ({error})") from error
    if version != _FORMAT_VERSION or not is_complete:
        raise CheckpointError(
            f"{path} has vocabulary format {version!r}; this terrazzo reads {_FORMAT_VERSION}: install a newer one"
        )
    return dict(about)


def _geneformer_dict(path: Path, kind: type) -> dict[str, Any]:
    """Read a pickled dict of names to values of this kind."""
    content = safe_unpickle(path)
    kinds = (int, float) if kind is float else (kind,)
    is_fine = isinstance(content, dict)
    if is_fine:
        named = all(isinstance(name, str) for name in content)
        is_fine = named and all(isinstance(value, kinds) for value in content.values())
    if not is_fine:
        raise CheckpointError(f"{path} is not a dict of names to {kind.__name__}")
    return content


def _scgpt_tokens(path: Path) -> dict[str, int]:
    """Read scGPT's tokens by name, with its special tokens appended where they are missing."""
    tokens = read_object(path, CheckpointError)
    is_fine = all(type(token) is int for token in tokens.values())
    if not is_fine:
        raise CheckpointError(
            f"{path} is not scGPT's vocabulary: it must have one whole number for each gene name"
        )
    for name in _SCGPT_SPECIAL:
        tokens.setdefault(name, len(tokens))
    return tokens
