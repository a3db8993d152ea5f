"""How fast a corpus feeds training: random cells and sub-slices, against backed .h5ad files and against a model's need.

Simulated slices, written as plain .h5ad and built into a corpus; then the same rows are read from both, in one process,
all files warm. ``python benchmarks/corpus.py [--quick] [--million] [--out FILE]``; ``--million`` also builds and
streams a corpus of a million cells, and reads from one of 88 million; more than 4 GB is an error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common

# slices, cells of each, genes
PANEL, SEQUENCED = (8, 20_000, 300), (8, 5_000, 8_000)
QUICK_PANEL, QUICK_SEQUENCED = (3, 4_000, 300), (3, 1_200, 4_000)
MILLION = (20, 50_000, 300)
COPIES = 88  # of each slice, under other names: 1,760 slices, 88 million cells
LIMIT_GB = 4.0
PEAKS = ("million_build_gb", "million_stream_gb", "88_million_gb")
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


def work(what: str, folder: Path, arguments: list[int]) -> dict[str, Any]:
    """Do one thing in this process."""
    if what == "simulate":
        return {"files": len(simulate(folder, *arguments))}
    if what == "compare":
        quick, *size = arguments
        simulate(folder, *size)
        built(folder, 1)
        return compare(folder, bool(quick))
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
    chosen = options.parse_args()
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
