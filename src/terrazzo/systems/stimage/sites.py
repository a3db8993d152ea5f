"""Grids, site counts and scales of a corpus's slices, measured once and stored.

The measures of a slice are in a small file beside the corpus, ``<corpus>/cache/sites/<hash>.npz``, named after all
that decides its content and written whole or not at all: one file of grid and scale, and one of the autocorrelation
where it is needed. A run's first process measures what is missing; all others read. No step has more counts in memory
than those of a few thousand cells, so a slice of a million cells fits.
"""

from __future__ import annotations

import math
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from terrazzo.arrays import Floats, Int32s, Ints
from terrazzo.corpus.genes import Match, member_match
from terrazzo.errors import OutputError, TerrazzoWarning
from terrazzo.expression import Normalize, SliceScale, log_values, spatial_autocorrelation
from terrazzo.files import hash_json, whole_file
from terrazzo.genes import Vocabulary
from terrazzo.slices.grids import Grid, lay_out, observed
from terrazzo.systems.stimage.counts import SiteCounts
from terrazzo.systems.stimage.windows import Window, WindowConfig, corners, window_sites

if TYPE_CHECKING:
    from terrazzo.corpus.store import Corpus


__all__ = [
    "SiteStore",
    "iterate_values",
    "member_grid",
    "read_sites",
    "sample_sites",
    "site_counts",
    "site_scale",
]

FORMAT = 2

BLOCK = 8192  # cells whose counts are read at a time

SAMPLE = 6000  # sites that autocorrelation is measured on

SIDE = 32  # of the squares of sites that are measured where a slice has more

KEPT_CELLS = 4_000_000  # cells whose grids stay in memory

KEPT_SCALES = 128

UNREADABLE = (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile)


def member_grid(corpus: Corpus, id: str, config: WindowConfig) -> Grid:
    """Put a slice's cells on a grid; where micrometers are not known a bin's side is in the unit of its coordinates."""
    lattice, kind = corpus.lattice(id)
    unit = str(corpus.row(id)["unit"])
    binned = config.layout == "bin" or (config.layout == "auto" and kind is None)
    if config.bin_um > 0 and binned and unit != "um":
        warnings.warn(
            f"{id}: micrometers are not known, so the bin's side, {config.bin_um:g}, is in units of the coordinates; "
            "build the corpus with microns_per_unit or technology of this slice if you know them.",
            TerrazzoWarning,
            stacklevel=3,
        )
    return lay_out(
        corpus.coords(id),
        lattice=lattice,
        lattice_kind=kind,
        layout=config.layout,
        bin_size=config.bin_um,
        name=id,
    )


def read_sites(
    corpus: Corpus, id: str, grid: Grid, sites: Ints, token: Int32s, n_tokens: int
) -> tuple[SiteCounts, Floats]:
    """Read the counts of some sites, summed over each one's cells.

    Parameters
    ----------
    corpus, id, grid
        A slice and its grid.
    sites
        Sites of the grid; -1 for none.
    token
        int32 ``(n_genes,)``: token of each of the slice's genes, -1 for none.
    n_tokens
        Tokens of the vocabulary.

    Returns
    -------
    Counts of ``len(sites)`` sites, and float64 totals over all genes of the slice, those without a token too.
    """
    cells, where = grid.cells(sites)
    order = np.argsort(cells)  # neighboring rows are read together
    cells = cells[order]
    where = where[order]
    blocks: list[SiteCounts] = []
    block_totals: list[Floats] = []
    for start in range(0, max(len(cells), 1), BLOCK):
        rows = corpus.take(id, cells[start : start + BLOCK])
        site = where[start : start + BLOCK]
        counts, totals = SiteCounts.summed(
            rows, np.arange(len(site)), site, len(sites), token, n_tokens
        )
        blocks.append(counts)
        block_totals.append(totals)
    if len(blocks) == 1:
        return blocks[0], block_totals[0]
    summed = sum(counts.by_token() for counts in blocks)
    return SiteCounts.of(summed), np.sum(block_totals, axis=0)


def site_counts(
    corpus: Corpus, id: str, grid: Grid, sites: Ints, token: Int32s, n_tokens: int
) -> tuple[sparse.csr_matrix, Floats]:
    """Return the same as :func:`read_sites` with counts as CSR ``(len(sites), n_tokens)``."""
    counts, totals = read_sites(corpus, id, grid, sites, token, n_tokens)
    return counts.by_token(), totals


def site_scale(
    corpus: Corpus,
    id: str,
    grid: Grid,
    token: Int32s,
    n_tokens: int,
    normalize: Normalize,
) -> SliceScale:
    """Measure total, means and standard deviations of a slice's values over its occupied sites.

    Cells of a site may be anywhere in the slice's rows, so counts are read by sites, some rows of the grid at a time;
    the totals, which the values are scaled by, in a pass of their own before.

    Parameters
    ----------
    corpus, id, grid, token, n_tokens
        As in :func:`site_counts`.
    normalize
        As in :meth:`terrazzo.expression.SliceScale.fit`.
    """
    totals = _totals(corpus, id, grid)
    pieces = _pieces(grid)
    blocks = (site_counts(corpus, id, grid, piece, token, n_tokens)[0] for piece in pieces)
    return SliceScale.fit(blocks, totals, normalize)


def _totals(corpus: Corpus, id: str, grid: Grid) -> Floats:
    """Return the total counts of every occupied site."""
    place = np.searchsorted(grid.occupied, grid.site)
    totals = np.zeros(len(grid.occupied))
    for start in range(0, len(place), BLOCK):
        end = min(start + BLOCK, len(place))
        rows = corpus.rows(id, start, end)
        row_totals = np.asarray(rows.sum(axis=1, dtype=np.float64))
        np.add.at(totals, place[start:end], row_totals.ravel())
    return totals


def _pieces(grid: Grid) -> list[Ints]:
    """Cut the occupied sites into stretches with about as many cells as are read at a time."""
    sites, n_cells = np.unique(grid.site, return_counts=True)
    piece = (np.cumsum(n_cells) - 1) // BLOCK
    starts = np.flatnonzero(np.diff(piece)) + 1
    return np.split(sites, starts)


def sample_sites(grid: Grid, most: int) -> Ints:
    """Return at most so many occupied sites, ascending: all of them, else squares full of neighbors."""
    if len(grid.occupied) <= most:
        return grid.occupied
    counts = observed(grid, SIDE)
    rng = np.random.default_rng(0)
    full_corners = np.argwhere(counts >= 0.75 * counts.max())
    n_squares = 4 * math.ceil(most / SIDE**2)
    order = rng.permutation(len(full_corners))[:n_squares]
    sample: Ints = np.empty(0, dtype=np.int64)
    for corner in full_corners[order]:
        square = np.intersect1d(window_sites(grid, corner, SIDE), grid.occupied)
        sample = np.union1d(sample, square)
        if len(sample) >= most:
            break
    return sample[: max(most, 1)]


@dataclass(frozen=True)
class _MemberGrid:
    """A member's grid, and where windows may begin."""

    grid: Grid
    corners: Ints


class SiteStore:
    """Grids, scales and autocorrelation of the slices of a corpus, measured once and stored beside it.

    Parameters
    ----------
    corpus, vocabulary
        Slices, and the genes that the model knows.
    config
        How slices are put on grids, and where windows may begin.
    normalize
        Of the values.
    n_tokens
        Columns of counts by token; None: as many as the vocabulary has.

    Raises
    ------
    InputError, ConfigError
        When a slice is first read: it has no such grid.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        config: WindowConfig,
        normalize: Normalize,
        n_tokens: int | None = None,
    ) -> None:
        self.config = config
        self.normalize = normalize
        self.n_tokens = vocabulary.n_tokens if n_tokens is None else n_tokens
        self.match: Match = member_match(corpus, vocabulary)
        self._corpus = corpus
        self._key = [
            FORMAT,
            config.layout,
            config.bin_um,
            normalize,
            self.n_tokens,
            vocabulary.content_hash(),
        ]
        self._grids: OrderedDict[str, _MemberGrid] = OrderedDict()
        self._lock = threading.Lock()  # slices are read in the loaders' threads
        self.scale = lru_cache(KEPT_SCALES)(self._scale)
        self.measured = lru_cache(KEPT_SCALES)(self._measured)

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide windows, in plain values."""
        return {"windows": str(asdict(self.config)), "normalize": self.normalize}

    def path(self, id: str, kind: str = "scale") -> Path:
        """Return the file of a slice."""
        sha256 = str(self._corpus.row(id)["sha256"])
        name = hash_json([*self._key, kind, id, sha256])[:24]
        return Path(self._corpus.folder) / "cache" / "sites" / f"{name}.npz"

    def n_sites(self, id: str) -> int:
        """Return how many sites of a slice hold a cell."""
        record = self._read(id, "scale", "n_sites")
        return int(record["n_sites"])

    def grid(self, id: str) -> Grid:
        """Return a slice's grid; those used last stay in memory."""
        return self._open(id).grid

    def corners(self, id: str) -> Ints:
        """Return where a slice's windows may begin (eq 6), ``(n, 2)``."""
        return self._open(id).corners

    def _scale(self, id: str) -> SliceScale:
        """Return the scale of a slice's values."""
        record = self._read(id, "scale", "total", "mean", "sd")
        return SliceScale(float(record["total"]), record["mean"], record["sd"])

    def _measured(self, id: str) -> Ints:
        """Return the tokens of a slice's genes, ascending."""
        token = self.match(id)[0]
        return np.unique(token[token >= 0]).astype(np.int64)

    def autocorrelation(self, id: str) -> Floats:
        """Return each token's spatial autocorrelation in a slice, ``(n_tokens,)``; 0 where it was not measured."""
        return self._read(id, "near", "autocorrelation")["autocorrelation"]

    def window(self, id: str, sites: Ints, token: Int32s | None = None) -> Window:
        """Read some sites of a slice, -1 for none. Places are counted from the first of them.

        ``token`` of each column, -1 for one that is not needed; None: of all that the vocabulary has.
        """
        grid = self.grid(id)
        if token is None:
            token = self.match(id)[0]
        counts, totals = read_sites(self._corpus, id, grid, sites, token, self.n_tokens)
        place = np.minimum(np.searchsorted(grid.occupied, sites), len(grid.occupied) - 1)
        present = grid.occupied[place] == sites
        return Window(counts, totals, present, grid.window_places(sites))

    def values(self, id: str, sites: Ints) -> sparse.csr_matrix:
        """Return normalized values of some sites, CSR float32 ``(len(sites), n_tokens)``."""
        counts, totals = site_counts(
            self._corpus, id, self.grid(id), sites, self.match(id)[0], self.n_tokens
        )
        return log_values(counts, self.scale(id).total, totals)

    def measure(self, id: str) -> None:
        """Measure a slice's grid and scale and store them, unless that was done before.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        self._store(id, "scale")

    def _store(self, id: str, kind: str) -> None:
        path = self.path(id, kind)
        if path.is_file():
            return
        arrays = self._sites_and_scale(id) if kind == "scale" else self._near(id)
        _write(path, arrays, id)

    def _sites_and_scale(self, id: str) -> dict[str, Any]:
        grid = member_grid(self._corpus, id, self.config)
        scale = site_scale(self._corpus, id, grid, self.match(id)[0], self.n_tokens, self.normalize)
        small = np.uint32 if grid.shape[0] * grid.shape[1] < 2**32 else np.int64
        return {
            "n_sites": np.int64(len(grid.occupied)),
            "site": grid.site.astype(small),
            "shape": np.array(grid.shape, dtype=np.int64),
            "layout": np.array(grid.layout),
            "total": np.float64(scale.total),
            "mean": scale.mean,
            "sd": scale.sd,
        }

    def _near(self, id: str) -> dict[str, Any]:
        grid = self.grid(id)
        measured = self.measured(id)
        sites = sample_sites(grid, SAMPLE)
        values = self.values(id, sites)[:, measured]
        autocorrelation = np.zeros(self.n_tokens)
        autocorrelation[measured] = spatial_autocorrelation(values, grid.places(sites))
        return {"autocorrelation": autocorrelation}

    def _read(self, id: str, kind: str, *names: str) -> dict[str, Any]:
        self._store(id, kind)
        try:
            return self._load(id, kind, names)
        except UNREADABLE:  # cut short by a copy or a full disk: it is measured again
            self.path(id, kind).unlink(missing_ok=True)
            self._store(id, kind)
            return self._load(id, kind, names)

    def _load(self, id: str, kind: str, names: tuple[str, ...]) -> dict[str, Any]:
        path = self.path(id, kind)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}

    def _open(self, id: str) -> _MemberGrid:
        with self._lock:
            opened = self._grids.pop(id, None) or self._read_grid(id)
            self._grids[id] = opened
            n_cells = sum(len(one.grid.site) for one in self._grids.values())
            while len(self._grids) > 1 and n_cells > KEPT_CELLS:
                _, oldest = self._grids.popitem(last=False)
                n_cells -= len(oldest.grid.site)
            return opened

    def _read_grid(self, id: str) -> _MemberGrid:
        record = self._read(id, "scale", "site", "shape", "layout")
        rows, columns = record["shape"].tolist()
        site = record["site"].astype(np.int64)
        grid = Grid((rows, columns), site, str(record["layout"]))
        return _MemberGrid(grid, corners(grid, self.config))


def _write(path: Path, arrays: dict[str, Any], id: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as draft, draft.open("wb") as stream:
            np.savez(stream, **arrays)
    except OSError as error:
        raise OutputError(f"measures of {id} cannot be written to {path} ({error}).") from error


def iterate_values(
    store: SiteStore, ids: list[str], sites: int
) -> Iterator[tuple[str, sparse.csr_matrix]]:
    """Yield values of a sample of about so many sites of all these slices together, slice by slice."""
    sizes = np.array([store.n_sites(id) for id in ids])
    for id, size in zip(ids, sizes.tolist(), strict=True):
        most = max(50, int(sites * size / sizes.sum()))
        yield id, store.values(id, sample_sites(store.grid(id), most))
