"""How fast a corpus feeds training: random cells and sub-slices, against backed .h5ad files and against a model's need.

Simulated slices, written as plain .h5ad and built into a corpus; then the same rows are read from both, in one process,
all files warm. ``python benchmarks/corpus.py [--quick] [--million] [--shards] [--out FILE]``; ``--million`` also builds
and streams a corpus of a million cells, and reads from one of 88 million; more than 4 GB is an error. ``--shards``
measures only the reader of sharded arrays, beside zarr alone and, where it is installed, zarr with ``zarrs``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common

# slices, cells of each, genes
PANEL, SEQUENCED = (8, 20_000, 300), (8, 5_000, 8_000)
QUICK_PANEL, QUICK_SEQUENCED = (3, 4_000, 300), (3, 1_200, 4_000)
MILLION = (20, 50_000, 300)
SHARDS, QUICK_SHARDS = (
    ((4, 20_000, 300), (4, 5_000, 5_000)),
    ((2, 3_000, 300), (2, 1_500, 2_000)),
)
COPIES = 88  # of each slice, under other names: 1,760 slices, 88 million cells
LIMIT_GB = 4.0
PEAKS = ("million_build_gb", "million_stream_gb", "88_million_gb")
SHARD_NOTES = [
    "values and columns of the same rows, read in turn in one process; files in the page cache, nothing decoded kept",
    "zarr: the better of one call for each run of chunks, and one call for all stretches",
    "/ corpus: times as long as the corpus's own reader, the median over the rounds",
    f"on {len(os.sched_getaffinity(0))} of the machine's cores; zarrs decodes with all of them, the others with one",
]
BATCH_CELLS, BATCH_SLICES, WIDTH = 32, 16, 256
PRESET = "small"


def simulate(folder: Path, slices: int, cells: int, genes: int, first: int = 0) -> list[Path]:
    """Write slices as plain .h5ad; their rows are in no spatial order, as in files of most platforms."""
    from terrazzo import simulate

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"slice{number}.h5ad" for number in range(first, first + slices)]
    for number, path in enumerate(paths, start=first):
        simulate.tissue(cells, n_genes=genes, seed=number, name=path.stem).write_h5ad(path)
    return paths


def built(folder: Path, workers: int) -> dict[str, float]:
    """Build the corpus; memory is that of this process and of its workers together, at most."""
    from terrazzo.corpus.build import build

    start = time.perf_counter()
    corpus = build(sorted(folder.glob("*.h5ad")), folder / "corpus", min_genes=1, workers=workers)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "cells": float(corpus.n_cells()),
        "seconds": time.perf_counter() - start,
        "peak_mb": common.peak_mb() + workers * children,
    }


def streamed(folder: Path) -> dict[str, float]:
    """Stream every cell once, tokenized."""
    from terrazzo.corpus import Corpus
    from terrazzo.corpus.genes import member_match
    from terrazzo.systems.stofm.loaders import CellLoader

    corpus = Corpus.open(folder / "corpus")
    start, seen = time.perf_counter(), 0
    for batch in CellLoader(
        corpus, member_match(corpus, corpus.vocabulary()), batch_cells=BATCH_CELLS
    ):
        seen += len(batch)
    seconds = time.perf_counter() - start
    return {"cells": float(seen), "seconds": seconds, "peak_mb": common.peak_mb()}


def large(folder: Path) -> dict[str, float]:
    """Read a million random cells of a corpus 88 times as large: each slice stands in its manifest so many times."""
    import pandas as pd

    from terrazzo.corpus import Corpus
    from terrazzo.corpus.genes import member_match
    from terrazzo.systems.stofm.loaders import CellLoader

    one = Corpus.open(folder / "corpus")
    copies = [one.manifest.assign(id=one.manifest["id"] + f"-{number}") for number in range(COPIES)]
    corpus = Corpus(one.folder, pd.concat(copies, ignore_index=True), one.about)
    loader = CellLoader(corpus, member_match(corpus, one.vocabulary()), batch_cells=BATCH_CELLS)
    start, seen = time.perf_counter(), 0
    for batch in loader:
        seen += len(batch)
        if seen >= one.n_cells():
            break
    return {
        "cells": float(seen),
        "seconds": time.perf_counter() - start,
        "peak_mb": common.peak_mb(),
    }


def stored(corpus: Any, folder: Path) -> tuple[Any, Any]:
    """Store random vectors and clusters by position for every member."""
    from terrazzo.systems.stofm import subslices
    from terrazzo.systems.stofm.cache import CacheKey, EmbeddingCache

    config = subslices.SubSliceConfig()
    cache, rng = (
        EmbeddingCache(folder / "cache", CacheKey("random vectors", config)),
        np.random.default_rng(0),
    )
    for member in corpus.ids():
        positions = subslices.model_positions(corpus.coords(member), config, config.length_scale)
        features = rng.standard_normal((len(positions), WIDTH), dtype=np.float32)
        labels = (
            np.arange(len(positions), dtype=np.int64) * 50 // len(positions)
        )  # Hilbert order: 50 regions
        macro = subslices.macro_scale(features, positions, config, labels=labels)
        cache.write(
            member,
            features,
            macro,
            subslices.split_cells(positions, config),
            source=sha(corpus, member),
        )
    return cache, config


def sha(corpus: Any, member: str) -> str:
    """Return the content hash that the manifest states."""
    return str(corpus.manifest.set_index("id").at[member, "sha256"])


class Backed:
    """The plain files, opened in backed mode, with the place of every row of the corpus."""

    def __init__(self, corpus: Any, folder: Path) -> None:
        import anndata

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.files = {
                m: anndata.read_h5ad(folder / f"{m}.h5ad", backed="r") for m in corpus.ids()
            }
        self.place = {
            m: f.obs_names.get_indexer(corpus.slice(m).obs_names) for m, f in self.files.items()
        }
        assert all((place >= 0).all() for place in self.place.values())

    def read(self, member: str, rows: np.ndarray) -> Any:
        """Read rows, which .h5ad wants sorted."""
        return self.files[member][np.sort(self.place[member][rows])].X


def rate(batches: Iterator[Any], cells: Callable[[Any], int]) -> float:
    """Return cells a second over all batches."""
    start = time.perf_counter()
    seen = sum(cells(batch) for batch in batches)
    return seen / (time.perf_counter() - start)


def random_cells(corpus: Any, match: Any, backed: Backed, quick: bool) -> list[dict[str, Any]]:
    """Random cells: ours read, tokenized and mixed, over a whole epoch; theirs read only, over some batches."""
    from terrazzo.systems.stofm.loaders import CellLoader

    loader = CellLoader(corpus, match, batch_cells=BATCH_CELLS)
    same = [batch for batch, _ in zip(loader, range(20 if quick else 100), strict=False)]
    ours = max(
        rate(iter(CellLoader(corpus, match, batch_cells=BATCH_CELLS, seed=s)), len) for s in (1, 2)
    )

    def theirs() -> Iterator[int]:
        for batch in same:
            for member in np.unique(batch.member):
                backed.read(loader.ids[member], batch.rows[batch.member == member])
            yield len(batch)

    return [row("random cells, read and tokenized", ours, rate(theirs(), int))]


def sub_slices(
    corpus: Any, backed: Backed, cache: Any, config: Any, quick: bool
) -> list[dict[str, Any]]:
    """Sub-slices: their rows alone from both; then what training takes from the stored vectors."""
    from terrazzo.systems.stofm.loaders import SubSliceLoader

    loader = SubSliceLoader(corpus, cache, config, batch_slices=BATCH_SLICES)
    items = [(item.id, item.sub.cells) for batch in loader for item in batch]
    some, ours, theirs = items[: 3 if quick else 10], 0.0, 0.0
    for _ in range(3):  # in turn, the best of each: other work on the machine hits both
        ours = max(
            ours, rate((corpus.take(*item) for item in items), lambda counts: counts.shape[0])
        )
        theirs = max(
            theirs, rate((backed.read(*item) for item in some), lambda counts: counts.shape[0])
        )
    cut = rate(iter(loader), lambda batch: sum(len(item.sub.cells) for item in batch))
    both = SubSliceLoader(corpus, cache, config, batch_slices=BATCH_SLICES, with_counts=True)
    counted = rate(iter(both), lambda batch: sum(len(item.sub.cells) for item in batch))
    return [
        row("sub-slices, rows of counts", ours, theirs),
        row("sub-slices, stored vectors, pairs cut", cut, None),
        row("sub-slices, stored vectors, pairs cut, counts", counted, None),
    ]


def row(what: str, ours: float, theirs: float | None) -> dict[str, Any]:
    """Return a row of the table."""
    return {
        "what": what,
        "corpus cells/s": ours,
        "backed .h5ad cells/s": "" if theirs is None else theirs,
        "ratio": "" if theirs is None else ours / theirs,
    }


def consumed(corpus: Any, match: Any, cache: Any, subs: Any, quick: bool) -> dict[str, float]:
    """Measure what one training step of the small preset takes on this machine, forward and backward, cells/s."""
    import torch

    from terrazzo.systems.stofm.cell_encoder import CellEncoder
    from terrazzo.systems.stofm.config import preset
    from terrazzo.systems.stofm.loaders import CellLoader, SubSliceLoader
    from terrazzo.systems.stofm.model import subslice_tensors
    from terrazzo.systems.stofm.se2 import SE2Transformer

    vocabulary = corpus.vocabulary()
    config = preset(PRESET, vocabulary.n_tokens)
    torch.manual_seed(0)
    encoder, se2 = CellEncoder(config.cell_encoder), SE2Transformer(config.se2)
    length = config.cell_encoder.max_length
    batch = next(
        iter(CellLoader(corpus, match, batch_cells=4 if quick else BATCH_CELLS, max_length=length))
    )
    longest = int(batch.tokens.lengths.max())
    ids = torch.full((len(batch), longest + 1), vocabulary.special["<pad>"])
    for i in range(len(batch)):
        ids[i, 1 : 1 + len(batch.tokens[i])] = torch.from_numpy(batch.tokens[i].astype(np.int64))
    ids[:, 0] = vocabulary.special["<cls>"]
    mask = (ids != vocabulary.special["<pad>"]).long()
    item = next(iter(SubSliceLoader(corpus, cache, subs, batch_slices=1)))[0]
    features = np.zeros(
        (len(item.features) + int(item.sub.cells.max()) + 1, config.se2.input_dim), dtype=np.float32
    )
    x, types, pairs = subslice_tensors([item.sub], features, features, torch.device("cpu"))

    def steps(run: Callable[[], Any], cells: int) -> float:
        run()
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < (0.5 if quick else 5.0):
            run()
            done += 1
        return done * cells / (time.perf_counter() - start)

    return {
        "cells": steps(lambda: encoder(ids, mask).square().mean().backward(), len(batch)),
        "sub-slices": steps(
            lambda: se2(x, types, pairs).hidden.square().mean().backward(), len(item.sub.cells)
        ),
    }


def compare(folder: Path, quick: bool) -> dict[str, Any]:
    """Read the same rows from both, and measure a model's need."""
    from terrazzo.corpus import Corpus
    from terrazzo.corpus.genes import member_match

    corpus = Corpus.open(folder / "corpus")
    match = member_match(corpus, corpus.vocabulary())
    backed = Backed(corpus, folder)
    cache, config = stored(corpus, folder)
    rows = random_cells(corpus, match, backed, quick) + sub_slices(
        corpus, backed, cache, config, quick
    )
    need = consumed(corpus, match, cache, config, quick)
    for one, name in zip(rows, ("cells", "", "sub-slices", "sub-slices"), strict=True):
        one[f"{PRESET} trains cells/s"] = need.get(name, "")
        one["over training"] = one["corpus cells/s"] / need[name] if name else ""
    return {"rows": rows}


PIPELINES = {
    "zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "zarr with zarrs": "zarrs.ZarrsCodecPipeline",
}


def in_turn(array: Any, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Read stretches that share chunks with one call of zarr, and others with another."""
    chunk = array.chunks[0]
    apart = np.flatnonzero(starts[1:] // chunk > stops[:-1] // chunk) + 1
    parts = []
    for group in np.split(np.arange(len(starts)), apart):
        first = starts[group[0]]
        block = array[first : stops[group[-1]]]
        parts += [block[starts[i] - first : stops[i] - first] for i in group]
    return np.concatenate(parts)


def at_once(array: Any, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Read all stretches with one call, which zarr has for indexers of its own only."""
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.indexing import BasicIndexer, ChunkProjection, Indexer
    from zarr.core.sync import sync

    grid, ends = array.metadata.chunk_grid, np.cumsum(stops - starts)

    class Stretches(Indexer):
        shape, drop_axes = (int(ends[-1]),), ()

        def __iter__(self) -> Iterator[ChunkProjection]:
            for start, stop, end in zip(
                starts.tolist(), stops.tolist(), ends.tolist(), strict=True
            ):
                before = end - (stop - start)
                for part in BasicIndexer((slice(start, stop),), array.shape, grid):
                    (place,) = part.out_selection
                    moved = slice(place.start + before, place.stop + before)
                    yield part._replace(out_selection=(moved,))

    asynchronous = array._async_array
    return sync(asynchronous._get_selection(Stretches(), prototype=default_buffer_prototype()))


def stretches(indptr: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and stops of the values of sorted rows; neighboring rows are one stretch."""
    first, last = indptr[rows], indptr[rows + 1]
    new = np.flatnonzero(first[1:] != last[:-1]) + 1
    return first[np.append(0, new)], last[np.append(new, len(last)) - 1]


def access(corpus: Any, cells: int, n: int) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Return slices and rows to read: single cells, 1,000 neighbors, 256 rows that stand beside each other on disk."""
    from scipy.spatial import cKDTree

    rng, ids = np.random.default_rng(0), corpus.ids()
    trees = {member: cKDTree(corpus.coords(member)) for member in ids}
    out: dict[str, list[tuple[str, np.ndarray]]] = {name: [] for name in ACCESS}
    for number in range(n):
        member, middle = ids[number % len(ids)], rng.integers(cells)
        near = trees[member].query(trees[member].data[middle], 1000)[1]
        start = rng.integers(cells - 256)
        rows = (np.array([middle]), np.sort(near), np.arange(start, start + 256))
        for name, some in zip(ACCESS, rows, strict=True):
            out[name].append((member, some))
    return out


ACCESS = ("one random cell", "1,000 neighbors", "256 rows in a block")


def readers() -> list[str]:
    """Return the ways of zarr that can be measured here."""
    return [name for name in PIPELINES if name == "zarr" or importlib.util.find_spec("zarrs")]


def shards(folder: Path, cells: int, n: int, rounds: int) -> dict[str, Any]:
    """Read values and columns of the same rows with each reader, in turn; nothing decoded is kept by any of them."""
    import zarr

    from terrazzo.corpus import Corpus
    from terrazzo.corpus.shards import gather, open_flat

    corpus = Corpus.open(folder / "corpus")
    names, opened, pointer = ("data", "indices"), {}, {}
    for member in corpus.ids():
        place = corpus.path(member) / "X"
        pointer[member] = np.asarray(zarr.open_array(place / "indptr", mode="r")[:], dtype=np.int64)
        opened["corpus", member] = [open_flat(place / name) for name in names]
        for way in readers():
            with zarr.config.set({"codec_pipeline.path": PIPELINES[way]}):
                opened[way, member] = [zarr.open_array(place / name, mode="r") for name in names]

    def ours(array: Any, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        return gather(array, starts, stops, array.dtype.newbyteorder("="))

    ways = [("corpus", ours), *((way, how) for way in readers() for how in (in_turn, at_once))]
    rows = []
    for what, reads in access(corpus, cells, n).items():
        places = [(member, *stretches(pointer[member], some)) for member, some in reads]
        seconds: dict[tuple[str, str], list[float]] = {}
        for repeat in range(rounds + 1):
            for way, how in ways:
                start = time.perf_counter()
                got = [[how(a, *cut) for a in opened[way, m]] for m, *cut in places]
                took = time.perf_counter() - start
                if repeat:
                    seconds.setdefault((way, how.__name__), []).append(took)
                elif way == "corpus":
                    wanted = got
                for one, other in zip(got, wanted, strict=True):
                    assert all(map(np.array_equal, one, other)), (way, how)
        rows.append({"what": what, **compared(seconds, n)})
    return {"rows": rows}


def compared(seconds: dict[tuple[str, str], list[float]], n: int) -> dict[str, float]:
    """Return milliseconds a read, and times as long as ours: medians; of zarr's two ways the better."""
    (own,) = (took for (way, _), took in seconds.items() if way == "corpus")
    out = {"corpus ms": 1e3 * statistics.median(own) / n}
    for way in readers():
        took = [times for (name, _), times in seconds.items() if name == way]
        ratios = [
            statistics.median(a / b for a, b in zip(times, own, strict=True)) for times in took
        ]
        out[f"{way} ms"] = 1e3 * min(map(statistics.median, took)) / n
        out[f"{way} / corpus"] = min(ratios)
    return out


def shard_rows(quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure the readers on both kinds of slices."""
    rows: list[dict[str, Any]] = []
    result: dict[str, float] = {}
    for name, (slices, cells, genes) in zip(
        ("panel", "sequenced"), QUICK_SHARDS if quick else SHARDS, strict=True
    ):
        with tempfile.TemporaryDirectory() as folder:
            fresh("simulate", Path(folder), slices, cells, genes)
            fresh("build", Path(folder), 1)
            repeats = (8, 2) if quick else (40, 9)
            found = fresh("shards", Path(folder), cells, *repeats)["rows"]
        rows += [{"slices": f"{slices} x {cells:,} x {genes:,}", **one} for one in found]
        for one, short in zip(found, ("cell", "neighbors", "block"), strict=True):
            for way in readers():
                result[f"{name}_{short}_{way.split()[-1]}"] = one[f"{way} / corpus"]
    return rows, result


def work(what: str, folder: Path, arguments: list[int]) -> dict[str, Any]:
    """Do one thing in this process."""
    if what == "simulate":
        return {"files": len(simulate(folder, *arguments))}
    if what == "compare":
        quick, *size = arguments
        simulate(folder, *size)
        built(folder, 1)
        return compare(folder, bool(quick))
    if what == "shards":
        return shards(folder, *arguments)
    return (
        built(folder, *arguments)
        if what == "build"
        else {"stream": streamed, "large": large}[what](folder)
    )


def fresh(what: str, folder: Path, *arguments: int) -> dict[str, Any]:
    """Do one thing in a process of its own."""
    return common.in_fresh_process(__file__, what, str(folder), *map(str, arguments))


def million(folder: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Build and stream a million cells; memory against 4 GB."""
    slices, cells, genes = MILLION
    for number in range(slices):
        fresh("simulate", folder, 1, cells, genes, number)
    rows = []
    for what, got in (
        ("build, 2 workers", fresh("build", folder, 2)),
        ("stream once, tokenized", fresh("stream", folder)),
        (
            f"{COPIES} times as many slices: a million random cells, tokenized",
            fresh("large", folder),
        ),
    ):
        rate_of = got["cells"] / got["seconds"]
        rows.append(
            {
                "slices": f"{slices} x {cells:,} x {genes}",
                "what": what,
                "corpus cells/s": rate_of,
                "peak GB": got["peak_mb"] / 1024,
            }
        )
    return rows, {name: row["peak GB"] for name, row in zip(PEAKS, rows, strict=True)}


def main() -> None:
    """Measure both kinds of slices, then a million cells where asked."""
    options = common.parser(__doc__ or "")
    options.add_argument(
        "--million", action="store_true", help="also build and stream a million cells"
    )
    options.add_argument(
        "--shards", action="store_true", help="measure the reader of sharded arrays only"
    )
    chosen = options.parse_args()
    if chosen.shards:
        rows, result = shard_rows(chosen.quick)
        found = [f"{way.split()[-1]} {version(way.split()[-1])}" for way in readers()]
        notes = [*SHARD_NOTES, ", ".join(found)]
        common.finish("Corpus: its reader of sharded arrays", rows, notes, result, chosen.out)
        return
    sizes = (QUICK_PANEL, QUICK_SEQUENCED) if chosen.quick else (PANEL, SEQUENCED)
    rows: list[dict[str, Any]] = []
    result: dict[str, float] = {}
    for name, (slices, cells, genes) in zip(("panel", "sequenced"), sizes, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            found = fresh("compare", Path(folder), int(chosen.quick), slices, cells, genes)["rows"]
        rows += [{"slices": f"{slices} x {cells:,} x {genes:,}", **one} for one in found]
        result |= {f"{name}_cells": found[0]["ratio"], f"{name}_subslices": found[1]["ratio"]}
        result |= {f"{name}_cells_over_training": found[0]["over training"]}
        result |= {f"{name}_subslices_over_training": found[2]["over training"]}
    if chosen.million:
        with tempfile.TemporaryDirectory() as folder:
            more, peaks = million(Path(folder))
        rows, result = rows + more, result | peaks
    notes = [
        "ratio: corpus over backed .h5ad (anndata.read_h5ad(backed='r')[rows].X, uncompressed), the same rows",
        f"random cells: batches of {BATCH_CELLS}; ours are tokenized as well, theirs only read",
        f"training: forward and backward of the {PRESET} preset's cell encoder, and of its SE(2) Transformer",
        "peak GB of the build: this process and its workers, each at its own peak",
    ]
    notes.append(f"on {len(os.sched_getaffinity(0))} of the machine's cores")
    common.finish("Corpus: what it feeds", rows, notes, result, chosen.out)
    above = [name for name in PEAKS if result.get(name, 0) > LIMIT_GB]
    if above:
        raise SystemExit(f"above {LIMIT_GB} GB: {', '.join(above)}")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        print(json.dumps(work(sys.argv[2], Path(sys.argv[3]), [int(a) for a in sys.argv[4:]])))
    else:
        main()
