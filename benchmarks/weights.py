"""Train the weights that the tables of ``terrazzo bench`` take, of one system; no label is read.

``python benchmarks/weights.py DATA --task TASK --keep FOLDER [--system stofm|stimage|stalign] [--seeds 1]``

- ``--system stofm`` (``FOLDER/own+niche-pretrain-SEED/model``) and ``stimage`` (``FOLDER/patch-SEED/model``), tasks
  her2st, liver, xenium, cosmx, osmfish, seqfish, xenium-hidden, cosmx-hidden: hidden genes and test slices are left out
  of the training. A dataset of one slice is trained on that slice, as every baseline is fitted on it; for imputation on
  the slice without the genes that the table hides. The others are trained on the tables' training slices.
- ``--system stalign`` (``FOLDER/VARIANT-SEED/model``), tasks her2st-A, her2st-B, her2st-C (a patient held out in each)
  and dlpfc: what is held out is the corpus's validation split, whose losses and recall are logged; nothing is chosen by
  them. The picture of A2 is about two spots beside its spots: it is left out.

``--quick``: two slices of few cells, three steps; only to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import common
import patches
import pretrain

HIDDEN = 50  # genes that an imputation table hides
QUICK_STEPS = 3
QUICK_CELLS = 250


@dataclass(frozen=True)
class Weights:
    """What SToFM and ST as images are trained on, and for how long."""

    folder: str
    names: tuple[str, ...]
    adapt_steps: int
    pretrain_epochs: int
    bin_um: float = 0.0  # ST as images: about the distance between neighbors; 0: an array
    hides: bool = False
    seen: bool = True  # the last slice, which is scored, is trained on as well


@dataclass(frozen=True)
class Aligned:
    """What ST-Align is trained on, and what is held out."""

    folder: str
    names: tuple[str, ...]
    held_out: tuple[str, ...]


HER2ST = ("A1", "A2", "B1", "B4", "C2", "C3", "C4", "D1", "E1", "H1")
LIVER = ("CN16_D2", "CN16_E2", "CN65_D2", "CN65_D1")
XENIUM = ("IDC_subregion",)
COSMX = ("CosMx_subset",)
TASKS = {
    "her2st": Weights("her2st", HER2ST, 250, 80, seen=False),
    "liver": Weights("st_mouse_liver", LIVER, 250, 120, seen=False),
    "xenium": Weights("xenium_breast_idc", XENIUM, 600, 80, bin_um=8.5),
    "cosmx": Weights("cosmx_nsclc", COSMX, 400, 120, bin_um=50.0),
    "osmfish": Weights("osmfish_ssctx", ("SScortex",), 800, 80, bin_um=190.0),
    "seqfish": Weights("seqfish_mouse_embryo", ("embryo2",), 500, 30, bin_um=0.018),
    "xenium-hidden": Weights("xenium_breast_idc", XENIUM, 600, 80, bin_um=8.5, hides=True),
    "cosmx-hidden": Weights("cosmx_nsclc", COSMX, 400, 120, bin_um=50.0, hides=True),
}
ALIGNED = {
    "her2st-A": Aligned("her2st", ("B4", "C2", "C3", "C4"), ("A1",)),
    "her2st-B": Aligned("her2st", ("A1", "C2", "C3", "C4"), ("B4",)),
    "her2st-C": Aligned("her2st", ("A1", "B4"), ("C2", "C3", "C4")),
    "dlpfc": Aligned("dlpfc", ("151674", "151675", "151676"), ("151673",)),
}


def fewer_cells(adata: Any, quick: bool) -> Any:
    """Return a slice, or with --quick its cells nearest to the middle."""
    if not quick or adata.n_obs <= QUICK_CELLS:
        return adata
    xy = adata.obsm["spatial"]
    distance = ((xy - xy.mean(axis=0)) ** 2).sum(axis=1)
    return adata[distance.argsort()[:QUICK_CELLS]].copy()


def train_genes(options: argparse.Namespace) -> None:
    """Train SToFM or ST as images."""
    import anndata

    from terrazzo.tasks import hide_genes

    task = TASKS[options.task]
    names = task.names[-2:] if options.quick else task.names
    slices = [anndata.read_h5ad(options.data / task.folder / f"{name}.h5ad") for name in names]
    slices = [fewer_cells(adata, options.quick) for adata in slices]
    if task.hides:
        slices = [hidden.visible for hidden in hide_genes(slices, HIDDEN, seed=0)]
    if not (options.keep / "corpus" / "manifest.parquet").is_file():
        pretrain.make_corpus(options.keep, slices, held_out=not task.seen and len(slices) > 1)
    options.adapt_steps, options.pair = task.adapt_steps, "knn"
    options.bin, options.window, options.batch = task.bin_um, 16, 4
    options.lr = options.lr or 1e-3
    budget = {"adapt_epochs": 10_000, "pretrain_epochs": task.pretrain_epochs}
    if options.quick:
        options.adapt_steps = options.steps = QUICK_STEPS
        budget["pretrain_epochs"] = 1
    for seed in range(options.seeds):
        start = time.perf_counter()
        if options.system == "stofm":
            _, seconds, losses = pretrain.train("own+niche", options.keep, options, budget, seed)
        else:
            _, seconds, losses = patches.train("patch", options.keep, options, seed)
        took = f"{time.perf_counter() - start:.0f} s"
        print(options.task, seed, seconds, losses, took, flush=True)


def make_aligned_corpus(options: argparse.Namespace) -> None:
    """Build the corpus of a task with its histology, without labels."""
    import anndata
    import pandas as pd

    import terrazzo as tz

    task = ALIGNED[options.task]
    folder = options.data / task.folder
    train, held_out = task.names, task.held_out
    if options.quick:
        train, held_out = train[:1], held_out[:1]
    rows = []
    for name in (*train, *held_out):
        bare = fewer_cells(anndata.read_h5ad(folder / f"{name}.h5ad"), options.quick)
        bare.obs = bare.obs[[c for c in ("array_row", "array_col") if c in bare.obs]]
        for key in [k for k in bare.obsm if k != "spatial"]:
            del bare.obsm[key]
        bare.write_h5ad(options.keep / f"{name}.h5ad")
        sheet = json.loads((folder / f"{name}.json").read_text())
        rows.append(
            {
                "path": f"{name}.h5ad",
                "split": "train" if name in train else "validation",
                "donor": name[0],
                "image": str((folder / sheet["image"]).resolve()),
                "image_scale": sheet["scale"],
                "image_scale_y": sheet.get("scale_y", sheet["scale"]),
            }
        )
    table = options.keep / "slices.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    tz.build_corpus(
        table, options.keep / "corpus", min_genes=1, scheduler="synchronous", progress=False
    )


def aligned_recipe(options: argparse.Namespace, out: Path, seed: int) -> Any:
    """Return the recipe of one run of ST-Align."""
    from terrazzo.training.recipe import recipe_from_dict

    return recipe_from_dict(
        {
            "stage": "stalign-pretrain",
            "corpus": str(options.keep / "corpus"),
            "out": str(out),
            "model": {"preset": options.preset},
            "data": {"batch_spots": 32 if options.quick else options.batch},
            "optim": {
                "lr": options.lr or 5e-4,
                "warmup_steps": 20,
                "epochs": options.epochs,
                "max_steps": QUICK_STEPS if options.quick else -1,
                "schedule": "cosine",
                "weight_decay": 0.04,
                "weight_decay_end": 0.4,
            },
            "objective": json.loads(options.objective),
            "run": {
                "log_every": 1 if options.quick else 5,
                "validate_every": options.every,
                "checkpoint_every": 100_000,
            },
            "seed": seed,
        }
    )


def train_aligned(options: argparse.Namespace) -> None:
    """Train ST-Align."""
    import terrazzo as tz

    if not (options.keep / "corpus" / "manifest.parquet").is_file():
        make_aligned_corpus(options)
    for seed in range(options.seeds):
        out = options.keep / f"{options.variant}-{seed}"
        start = time.perf_counter()
        if not (out / "model" / "config.json").is_file():
            tz.pretrain(aligned_recipe(options, out, seed))
        took = f"{time.perf_counter() - start:.0f} s"
        print(options.task, options.variant, seed, took, pretrain.held_out_losses(out))


def main() -> None:
    """Train one task's weights."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", choices=[*TASKS, *ALIGNED], required=True)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--system", choices=("stofm", "stimage", "stalign"), default="stofm")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--lr", type=float, help="default 1e-3; of ST-Align 5e-4")
    parser.add_argument("--steps", type=int, default=600, help="of ST as images")
    parser.add_argument("--variant", default="full", help="ST-Align: name of the run's folder")
    parser.add_argument("--objective", default="{}", help="ST-Align: settings of it, JSON")
    parser.add_argument("--epochs", type=int, default=40, help="of ST-Align")
    parser.add_argument("--batch", type=int, default=128, help="ST-Align: spots a step")
    parser.add_argument(
        "--every", type=int, default=100_000, help="ST-Align: steps between validations"
    )
    options = parser.parse_args()
    known = ALIGNED if options.system == "stalign" else TASKS
    if options.task not in known:
        parser.error(f"tasks of --system {options.system}: {', '.join(known)}")
    warnings.simplefilter("ignore")
    options.keep.mkdir(parents=True, exist_ok=True)
    if options.system == "stalign":
        train_aligned(options)
    else:
        train_genes(options)


if __name__ == "__main__":
    main()
