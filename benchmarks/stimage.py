"""ST as images: windows a second for loading and training, what waits for what, and memory for a large binned slice.

``python benchmarks/stimage.py [--quick] [--preset tiny] [--cells 1000000] [--out FILE]``

Simulated Visium slices of 8,000 genes. The baseline of loading is algorithm 1 as the paper prints it: a slice becomes a
dense array of rows x columns x genes, windows are cropped from it and their variance is taken over all genes. Both draw
the same windows and channels. Memory is measured in fresh processes, above what the slice's own counts take.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common

GENES, SPOTS, SLICES = 8000, 3000, 3


def corpus_of(folder: Path, spots: int, genes: int, slices: int):
    """Simulate Visium slices and build their corpus."""
    import pandas as pd

    import terrazzo as tz

    made = tz.simulate.corpus(slices, spots, layout="visium", n_genes=genes, depth=4000, seed=0)
    for i, adata in enumerate(made):
        adata.write_h5ad(folder / f"{i}.h5ad")
    rows = [{"path": f"{i}.h5ad", "split": "train"} for i in range(slices)]
    pd.DataFrame(rows).to_csv(folder / "slices.csv", index=False)
    return tz.build_corpus(
        folder / "slices.csv",
        folder / "corpus",
        min_genes=1,
        scheduler="synchronous",
        progress=False,
    ), made


def recipe_of(folder: Path, preset: str, choose: str, batch: int, steps: int):
    """Return a recipe: the paper's channels, or the fixed ones."""
    from terrazzo.training.recipe import recipe_from_dict

    paper = choose == "weighted"
    windows = {"choose": choose, "channels": 512 if paper else 1000}
    return recipe_from_dict(
        {
            "stage": "stimage-pretrain",
            "corpus": str(folder / "corpus"),
            "out": str(folder / "run"),
            "model": {"preset": preset, "windows": windows},
            "data": {"batch_windows": batch, "windows_per_slice": steps * batch},
            "objective": {"flavor": "paper", "mask": "entry"} if paper else {"target": "thinned"},
        }
    )


def dense_windows(adata, n: int, m: int, seed: int = 0) -> float:
    """Return the seconds of algorithm 1 with dense arrays, per window."""
    from terrazzo.slices import Slice
    from terrazzo.slices.grids import grid_of

    tissue = Slice.from_anndata(adata)
    start = time.perf_counter()
    grid, rng = grid_of(tissue), np.random.default_rng(seed)
    values = tissue.counts.toarray()
    values = np.log1p(values / np.maximum(values.sum(axis=1, keepdims=True), 1) * 1e4).astype(
        np.float32
    )
    picture = np.zeros((*grid.shape, values.shape[1]), dtype=np.float32)
    picture.reshape(-1, values.shape[1])[grid.site] = values
    for _ in range(n):
        row, column = (int(rng.integers(size - 16 + 1)) for size in grid.shape)
        window = picture[row : row + 16, column : column + 16]
        variance = window.reshape(-1, window.shape[2]).var(axis=0) + 1e-6
        chosen = rng.choice(len(variance), m, replace=False, p=variance / variance.sum())
        np.ascontiguousarray(window[:, :, chosen])
    return (time.perf_counter() - start) / n


def speeds(options) -> tuple[list[dict], dict[str, float]]:
    """Time loading, training and both together, and the dense way of loading."""
    import torch

    from terrazzo.training.resuming import seed_everything
    from terrazzo.training.run import make_stage

    spots, genes, steps = (600, 1500, 6) if options.quick else (SPOTS, GENES, 30)
    rows, result = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _, made = corpus_of(folder, spots, genes, SLICES)
        dense = dense_windows(made[0], 3 * steps, 512)
        for choose in ("weighted", "spatial"):
            recipe = recipe_of(folder, options.preset, choose, 4, steps)
            seed_everything(0)
            stage = make_stage(recipe)
            model = stage.model
            stage.prepare()
            objective = stage.objective()
            objective.log_dict = lambda *a, **k: None
            optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4)

            def step(batch, objective=objective, optimizer=optimizer) -> None:
                optimizer.zero_grad()
                objective.losses(batch)["loss"].backward()
                optimizer.step()

            loader = stage.loader("train")
            found = []
            start = time.perf_counter()
            for batch, _ in zip(loader, range(steps), strict=False):
                found.append(batch)
            loading = (time.perf_counter() - start) / steps
            start = time.perf_counter()
            for batch in found:
                step(batch)
            training = (time.perf_counter() - start) / steps
            batches = iter(stage.loader("train"))
            step(next(batches))
            waiting, start = 0.0, time.perf_counter()
            for _ in range(steps - 1):
                before = time.perf_counter()
                batch = next(batches)
                waiting += time.perf_counter() - before
                step(batch)
            share = waiting / (time.perf_counter() - start)
            row = {
                "channels": choose,
                "load, windows/s": 4 / loading,
                "train, windows/s": 4 / training,
            }
            rows.append(
                {**row, "waits for data": f"{share:.1%}", "dense load, windows/s": 1 / dense}
            )
            result[f"{choose}_load_vs_train"] = training / loading
            result[f"{choose}_waits"] = share
            if choose == "weighted":
                result["load_vs_dense"] = dense * 4 / loading
        model.provenance = {"weights": "trained"}
        start = time.perf_counter()
        model.embed(made[0], progress=False)
        rows.append(
            {"channels": f"embed {spots} spots, s", "load, windows/s": time.perf_counter() - start}
        )
    return rows, result


def memory(cells: int) -> dict[str, float]:
    """Embed a slice of so many single cells in bins; memory counts what is added to the slice's own counts."""
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    import terrazzo as tz
    from terrazzo.systems.stimage.config import preset
    from terrazzo.systems.stimage.windows import WindowConfig

    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(cells)))
    genes, each = 200, 20
    indices = rng.integers(0, genes, (cells, each)).astype(np.int32)
    counts = sp.csr_matrix(
        (
            rng.poisson(1.5, indices.size).astype(np.float32) + 1,
            indices.ravel(),
            np.arange(0, indices.size + 1, each),
        ),
        shape=(cells, genes),
    )
    counts.sum_duplicates()
    place = np.stack(np.divmod(np.arange(cells), side), axis=1) * 10.0 + rng.uniform(
        -4, 4, (cells, 2)
    )
    names = [f"ENSG{i:011d}" for i in range(genes)]
    adata = anndata.AnnData(
        counts, obs=pd.DataFrame(index=[str(i) for i in range(cells)]), obsm={"spatial": place}
    )
    adata.var_names = names
    adata.uns["technology"] = "MERFISH"
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(adata[:2000].copy())])
    windows = WindowConfig(bin_um=10.0, choose="spatial", channels=genes)
    model = tz.STImage(preset("tiny", vocabulary.n_tokens, windows=windows), vocabulary)
    model.provenance = {"weights": "trained"}
    model.embed(adata[:2000].copy(), progress=False)
    before, start = common.peak_mb(), time.perf_counter()
    model.embed(adata, progress=False)
    stored = (counts.data.nbytes + counts.indices.nbytes + adata.obsm["X_stimage"].nbytes) / 2**20
    return {
        "seconds": time.perf_counter() - start,
        "added_mb": common.peak_mb() - before,
        "stored_mb": stored,
    }


def main() -> None:
    """Print the table."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--worker", type=int)
    options = parser.parse_args()
    if options.worker:
        import json

        print(json.dumps(memory(options.worker)))
        return
    rows, result = speeds(options)
    sizes = [5_000, 10_000] if options.quick else [options.cells // 5, options.cells]
    for cells in sizes:
        found = common.in_fresh_process(__file__, str(cells))
        rows.append({"channels": f"{cells:,} cells in bins", **found})
        result[f"cells_{cells}_added_mb_per_stored"] = found["added_mb"] / found["stored_mb"]
    notes = [
        "waits for data: share of training time in which the model has no batch; the loader reads ahead in a thread"
    ]
    common.finish(
        f"ST as images: speed and memory, preset {options.preset}", rows, notes, result, options.out
    )


if __name__ == "__main__":
    main()
