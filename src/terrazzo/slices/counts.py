"""Where a slice's counts come from, and how any matrix becomes one canonical CSR."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from terrazzo import keys
from terrazzo.errors import InputError, TerrazzoWarning, shortened
from terrazzo.genes.features import find_features
from terrazzo.genes.names import read_gene_names
from terrazzo.sparse import canonical, check_matrix

__all__ = ["CountsFound", "find_counts", "to_csr", "warn_found"]

logger = logging.getLogger(__name__)

_CHUNK_VALUES = 2**22  # values checked, or densified, at a time
_MIN_MEASURED = 0.5  # share of the cells that counts must be of, where others are of more
_MIN_VALUES = 100  # fewer values do not show a scale
_MIN_CELLS = 20
_MAX_ROWS = 2_000  # cells on which scales are looked for
_MAX_VALUE = 2.0**53
_SAME_TOTAL = 0.02  # spread of totals, as a share of their median, that normalized cells stay below
_OTHER_GENES = "has none of the genes in var"
_SCALED = "holds whole numbers that look scaled"
_SERIOUS = (_OTHER_GENES, _SCALED)  # doubts that are reported
_FAULTS = {
    "empty": "holds no count, only zeros",
    "nonfinite": "holds NaN or infinite values",
    "negative": "holds negative values",
    "fractional": "holds values that are not integers",
}


@dataclass(frozen=True)
class CountsFound:
    """Counts of one slice before gene names are read.

    Attributes
    ----------
    matrix
        CSR (n_cells, n_genes), of the features that are genes.
    var
        The table of its columns.
    source
        "X", "raw.X" or "layers['...']".
    is_counts
        False where normalized values were allowed.
    left_out
        How many features are not genes, and of which kinds; "" for none.
    passed_over
        Matrices that come before this one, and why they are not taken; "" for none, and for a ``raw`` of normalized
        values, which is usual.
    no_count
        Every value is zero, and there was no other matrix.
    doubt
        Why this may not be what was meant, where nothing better was there; "" for nothing.
    """

    matrix: sp.csr_matrix
    var: pd.DataFrame
    source: str
    is_counts: bool
    left_out: str = ""
    passed_over: str = ""
    doubt: str = ""
    no_count: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What to report, in words."""
        notes = []
        if self.passed_over:
            notes.append(f"counts taken from {self.source}: {self.passed_over}")
        if self.left_out:
            notes.append(self.left_out)
        if self.no_count:
            notes.append(f"{self.source} holds no count: every value is zero")
        if self.doubt:
            notes.append(f"{self.source} {self.doubt}: if raw counts are elsewhere, pass layer=")
        return tuple(notes)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A matrix that may hold counts: as it is stored, the ``var`` of its columns, and its name."""

    matrix: Any
    var: pd.DataFrame
    source: str


@dataclass(frozen=True, eq=False)
class _Weighed:
    """A candidate that was read.

    Attributes
    ----------
    found
        Its genes; None where it has none that can be read.
    fault
        What keeps it from being counts: "shape", "values", "genes", "empty", "nonfinite", "negative", "fractional"; ""
        for nothing.
    seen
        What it holds, in words.
    n_measured
        Cells that it has counts of.
    doubts
        Reasons to prefer another candidate.
    """

    found: CountsFound | None
    source: str
    fault: str = ""
    seen: str = "counts"
    n_measured: int = 0
    doubts: tuple[str, ...] = ()


def find_counts(adata: AnnData, layer: str | None, allow_normalized: bool) -> CountsFound:
    """Return the counts of ``adata``: named layer, ``layers["counts"]``, ``raw.X``, ``X``, in this order.

    The first that holds counts of these cells is taken: finite, non-negative whole numbers, not all of them zero, of
    genes, a row a cell. One that is doubtful (counts of less than half of the cells that another has counts of; none of
    the genes of ``var``; values that were scaled, or cut to zero and one) is taken only where there is no better.

    Parameters
    ----------
    adata
        n cells x g genes, in memory or backed; never modified.
    layer
        Name of a layer; ``"X"`` and ``"raw"`` mean ``adata.X`` and ``adata.raw.X`` where no layer has that name.
    allow_normalized
        Accept non-negative values that are not integers.

    Raises
    ------
    InputError
        Missing layer; no matrix; no genes; several matrices and nothing but zeros in them; NaN, infinite, negative or
        (unless allowed) non-integer values; not numbers.
    """
    weighed: list[_Weighed] = []
    for candidate in _candidates(adata, layer):
        one = _weigh(adata, candidate)
        weighed.append(one)
        if not one.fault and not one.doubts:
            break
    if not weighed:
        raise InputError(
            "the AnnData holds no expression matrix: X is empty and there is no layers['counts'] and no raw. "
            "Put the raw counts in adata.X or pass layer=."
        )
    chosen = _choose(weighed)
    if chosen is None:
        chosen = _nearest(weighed)
        if len(weighed) == 1 and chosen.fault == "empty" and chosen.found is not None:
            return replace(chosen.found, is_counts=True, no_count=True)  # cells without counts
        if chosen.fault != "fractional" or not allow_normalized:
            raise InputError(_fault_message(adata, chosen, weighed))
    return _with_reasons(chosen, weighed)


def warn_found(found: CountsFound, stacklevel: int) -> None:
    """Warn of features that are left out, of matrices that are empty or damaged, and of doubtful counts."""
    surprising = replace(found, no_count=False)  # cells without counts are reported as such
    for note in surprising.notes:
        warnings.warn(note, TerrazzoWarning, stacklevel=stacklevel)


def _candidates(adata: AnnData, layer: str | None) -> list[_Candidate]:
    """Return matrices that may hold counts, in order."""
    layers = list(adata.layers)
    if layer is not None:
        if layer in layers:
            return [_Candidate(adata.layers[layer], adata.var, f"layers[{layer!r}]")]
        if layer == "X" and adata.X is not None:
            return [_Candidate(adata.X, adata.var, "X")]
        if layer == "raw" and adata.raw is not None:
            return [_Candidate(adata.raw.X, adata.raw.var, "raw.X")]
        raise InputError(f"there is no layer {layer!r}; layers in this AnnData: {layers or 'none'}")
    candidates = []
    if keys.COUNTS_LAYER in layers:
        counts = adata.layers[keys.COUNTS_LAYER]
        candidates.append(_Candidate(counts, adata.var, f"layers[{keys.COUNTS_LAYER!r}]"))
    if adata.raw is not None:
        candidates.append(_Candidate(adata.raw.X, adata.raw.var, "raw.X"))
    if adata.X is not None:
        candidates.append(_Candidate(adata.X, adata.var, "X"))
    return candidates


def _weigh(adata: AnnData, candidate: _Candidate) -> _Weighed:
    """Read a candidate and say whether it holds counts of these cells."""
    source = candidate.source
    expected = (adata.n_obs, len(candidate.var))
    shape = tuple(getattr(candidate.matrix, "shape", ()))
    if len(shape) == 2 and shape != expected:
        seen = f"has the shape {shape}, not {expected} (cells, genes)"
        return _Weighed(None, source, "shape", seen)
    features = find_features(candidate.var)
    if not features.is_gene.any():
        seen = "has zero genes"
        if features.left_out:
            seen = f"has zero genes, only {features.left_out}"
        return _Weighed(None, source, "genes", seen)
    try:
        matrix = to_csr(candidate.matrix, source)
    except InputError as error:
        return _Weighed(None, source, "values", str(error))
    var = candidate.var
    if not features.all_genes:
        columns = np.flatnonzero(features.is_gene)
        matrix = canonical(sp.csr_matrix(matrix[:, columns]))
        var = var.iloc[columns]
    fault = _fault(matrix)
    found = CountsFound(matrix, var, source, fault == "", features.note)
    if fault:
        return _Weighed(found, source, fault, _FAULTS[fault])
    n_measured = int((np.diff(matrix.indptr) > 0).sum())
    doubts = _doubts(adata, found, n_measured)
    return _Weighed(found, source, "", "holds counts", n_measured, tuple(doubts))


def _with_reasons(chosen: _Weighed, weighed: list[_Weighed]) -> CountsFound:
    """Return what was chosen, with the reasons why others were not, and doubts that remain."""
    found = chosen.found
    if found is None:
        raise InputError(chosen.seen)
    passed_over = []
    for one in weighed[: weighed.index(chosen)]:
        reason = ", ".join(one.doubts) or one.seen
        logger.info("counts taken from %s: %s %s", chosen.source, one.source, reason)
        is_usual = one.source == "raw.X" and one.fault in ("fractional", "negative")
        if not is_usual:
            passed_over.append(f"{one.source} {reason}")
    doubts = [doubt for doubt in chosen.doubts if doubt.startswith(_SERIOUS)]
    return replace(found, passed_over="; ".join(passed_over), doubt=", ".join(doubts))


def _choose(weighed: list[_Weighed]) -> _Weighed | None:
    """Return the first candidate of those with the fewest doubts; None where none holds counts."""
    enough = _MIN_MEASURED * max(one.n_measured for one in weighed)
    best = None
    for one in weighed:
        if one.fault or one.n_measured < enough:
            continue
        if best is None or len(one.doubts) < len(best.doubts):
            best = one
    return best


def _nearest(weighed: list[_Weighed]) -> _Weighed:
    """Return the candidate to report where none holds counts: the first with fractions, else with values, else any."""
    for kinds in (("fractional",), ("nonfinite", "negative")):
        for one in weighed:
            if one.fault in kinds:
                return one
    return weighed[0]


def _doubts(adata: AnnData, found: CountsFound, n_measured: int) -> list[str]:
    """Return reasons to take other counts, if there are any."""
    doubts = []
    if found.source == "raw.X" and adata.X is not None and _other_genes(found.var, adata.var):
        doubts.append(_OTHER_GENES)
    scaled = _scaling_of(found.matrix)
    if scaled:
        doubts.append(f"{_SCALED}, {scaled}")
    elif found.matrix.nnz >= _MIN_VALUES and found.matrix.data.max() == 1:
        doubts.append("holds only zeros and ones")
    if n_measured < _MIN_MEASURED * adata.n_obs:
        doubts.append(f"has counts of only {n_measured:,} of {adata.n_obs:,} cells")
    return doubts


def _other_genes(var: pd.DataFrame, of_x: pd.DataFrame) -> bool:
    """Say whether two tables name their genes alike, by id or by symbol, and have none in common."""
    names = read_gene_names(var)
    names_of_x = read_gene_names(of_x)
    is_comparable = False
    pairs = (
        (names.gene_ids, names_of_x.gene_ids),
        (names.gene_symbols, names_of_x.gene_symbols),
    )
    for mine, others in pairs:
        my_names = set(mine.tolist())
        my_names.discard("")
        other_names = set(others.tolist())
        other_names.discard("")
        if my_names and other_names:
            is_comparable = True
            if my_names & other_names:
                return False
    return is_comparable


def _scaling_of(csr: sp.csr_matrix) -> str:
    """Say what shows that whole numbers were scaled, "" for nothing; on the first cells, if they have enough values.

    Either all are multiples of one number, or cells that have no small values all have the same total.
    """
    measured = np.flatnonzero(np.diff(csr.indptr))[:_MAX_ROWS]
    some = csr[measured]
    values = np.unique(some.data)
    if some.nnz < _MIN_VALUES or len(values) < 3 or values[-1] > _MAX_VALUE:
        return ""
    divisor = int(np.gcd.reduce(values.astype(np.int64)))
    if divisor > 1:
        return f"all are multiples of {divisor:,}"
    smallest = np.minimum.reduceat(some.data, some.indptr[:-1])
    if len(measured) < _MIN_CELLS or np.median(smallest) < 2:
        return ""
    totals = np.asarray(some.sum(axis=1, dtype=np.float64)).ravel()
    low, middle, high = np.quantile(totals, [0.05, 0.5, 0.95])
    if high - low > _SAME_TOTAL * middle:
        return ""
    return f"the values of every cell sum to about {middle:,.0f}"


def _fault(csr: sp.csr_matrix) -> str:
    """Name what keeps the values from being counts ("" if nothing), in bounded memory."""
    if csr.nnz == 0:
        return "empty"
    fractional = False
    for start in range(0, csr.nnz, _CHUNK_VALUES):
        values = csr.data[start : start + _CHUNK_VALUES]
        if not np.isfinite(values).all():
            return "nonfinite"
        if values.min() < 0:
            return "negative"
        fractional = fractional or bool((values != np.rint(values)).any())
    return "fractional" if fractional else ""


def _fault_message(adata: AnnData, main: _Weighed, weighed: list[_Weighed]) -> str:
    """Say why no matrix can be used: what is wrong with one, and what the others hold."""
    others = [f"{one.source} {one.seen}" for one in weighed if one is not main]
    also = f" ({'; '.join(others)})" if others else ""
    if main.found is None:
        if main.fault == "genes":
            return f"the AnnData has zero genes; check the filter that made it: {main.source} {main.seen}{also}"
        if main.fault == "values":
            return f"{main.seen}{also}"
        return f"{main.source} {main.seen}{also}; put the raw counts in adata.X"
    where = main.source
    layers = [f"layer={name!r}" for name in adata.layers if f"layers[{name!r}]" != where]
    if layers:
        fix = f"Pass the layer that holds raw counts: {' or '.join(layers)}"
    else:
        fix = "There is no other layer: put the raw counts in adata.layers['counts'] (or adata.X)"
    values = main.found.matrix.data
    if main.fault == "empty":
        return f"{where} holds no count: every value is zero{also}. {fix}."
    if main.fault == "fractional":
        examples = values[values != np.rint(values)][:3]
        shown = ", ".join(f"{value:g}" for value in examples)
        return (
            f"{where} does not hold counts: values are not integers (e.g. {shown}), as after normalization{also}. "
            f"{fix}, or pass allow_normalized=True where a model takes ranks only."
        )
    if main.fault == "nonfinite":
        is_bad = ~np.isfinite(values)
        what = "NaN or infinite values"
    else:
        is_bad = values < 0
        what = "negative values, as after scaling; counts cannot be negative"
    bad = np.flatnonzero(is_bad)
    rows = np.unique(np.searchsorted(main.found.matrix.indptr, bad, side="right") - 1)
    cells = ", ".join(shortened(adata.obs_names[row], quoted=False) for row in rows[:3])
    return f"{where} holds {len(bad)} {what} (first cells: {cells}){also}. {fix}."


def to_csr(matrix: Any, where: str = "X") -> sp.csr_matrix:
    """Return any two-dimensional matrix as a new canonical CSR of float32 (float64 where a value exceeds 2**24).

    Parameters
    ----------
    matrix
        scipy sparse (any format), numpy (array, matrix, memmap), h5py dataset, backed sparse dataset of anndata, or
        dask array. A sparse matrix is never densified; a dense one is read some rows at a time.
    where
        Name used in error messages.

    Raises
    ------
    InputError
        If the values are not real numbers or the matrix is not two-dimensional.
    """
    if hasattr(matrix, "to_memory"):  # anndata's backed sparse datasets
        matrix = _in_memory(matrix, where)
    if len(getattr(matrix, "shape", ())) != 2:
        raise InputError(f"{where} is not a two-dimensional matrix (found {type(matrix).__name__})")
    dtype = np.dtype(matrix.dtype)
    if dtype.kind not in "biuf":
        raise InputError(
            f"{where} does not hold numbers (dtype {dtype}); convert it to a numeric matrix"
        )
    if sp.issparse(matrix):
        return canonical(_sparse_copy(matrix, where))
    if hasattr(matrix, "map_blocks"):  # dask: a block is checked before rows of it are taken
        matrix = matrix.map_blocks(_checked, where, dtype=matrix.dtype, meta=matrix._meta)
    n_rows, n_cols = matrix.shape
    step = max(1, _CHUNK_VALUES // max(1, n_cols))
    blocks = []
    for start in range(0, n_rows, step):
        block = _block(matrix, start, start + step)
        blocks.append(_sparse_copy(block, where))
    if not blocks:
        return sp.csr_matrix((n_rows, n_cols), dtype=np.float32)
    if len(blocks) == 1:
        return canonical(blocks[0])
    return canonical(sp.vstack(blocks, format="csr"))


def _in_memory(matrix: Any, where: str) -> Any:
    """Read a matrix that is in a file."""
    try:
        return matrix.to_memory()
    except (OSError, KeyError, ValueError, TypeError, IndexError, MemoryError) as error:
        raise InputError(f"{where} cannot be read ({shortened(error, quoted=False)})") from error


def _checked(block: Any, where: str) -> Any:
    """Return a block that no compiled code has read yet, checked."""
    check_matrix(block, where)
    return block


def _block(matrix: Any, start: int, stop: int) -> Any:
    block = matrix[start:stop]
    if hasattr(block, "compute"):  # dask
        block = block.compute()
    if sp.issparse(block):
        return block
    return sp.csr_matrix(np.asarray(block, dtype=np.float64))


def _native(array: np.ndarray) -> np.ndarray:
    """Return an array in the byte order of this machine."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _sparse_copy(matrix: Any, where: str) -> sp.csr_matrix:
    """Check a sparse matrix and copy it to CSR, wide enough that summing duplicates cannot overflow or round."""
    check_matrix(matrix, where)
    if matrix.format in (
        "csr",
        "csc",
    ):  # a new one: flags that were set before its arrays changed are not its
        n_values = int(matrix.indptr[-1])  # behind them there may be room
        data, indices = matrix.data[:n_values], matrix.indices[:n_values]
        arrays = (_native(data), _native(indices), _native(matrix.indptr))
        matrix = type(matrix)(arrays, shape=matrix.shape, copy=False)
    exact = (
        matrix.format in ("csr", "csc")
        and matrix.dtype == np.float32
        and matrix.has_canonical_format
    )
    wide = matrix.astype(np.float32 if exact else np.float64, copy=True)
    csr = sp.csr_matrix(wide.tocsr())
    check_matrix(csr, where)
    return csr
