"""Train SToFM or ST as images for the tables of one slice or of few; no label is read.

``python benchmarks/weights.py DATA --task her2st|liver|xenium|cosmx|osmfish|seqfish|... --keep FOLDER [--seeds 1]
[--system stofm|stimage]``

The checkpoints ``FOLDER/own+niche-pretrain-SEED/model`` are what ``terrazzo bench TABLE --models stofm=...`` takes, and
``FOLDER/patch-SEED/model`` what ``stimage=...`` takes. Hidden genes and test slices are left out of the training. A
dataset of one slice is trained on that slice, as every baseline is fitted on it; for imputation on the slice without
the genes that the table hides. The other datasets are trained on the tables' training slices.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common
import patches
import pretrain

HIDDEN = 50  # genes that an imputation table hides


@dataclass(frozen=True)
class Weights:
    """What is trained on, and for how long."""

    folder: str
    names: tuple[str, ...]
    adapt_steps: int
    pretrain_epochs: int
    bin_um: float = 0.0  # ST as images: about the distance between neighbors; 0: an array
    hides: bool = False
    seen: bool = True  # the last slice, which is scored, is trained on as well


TASKS = {
    "her2st": Weights(
        "her2st", ("A1", "A2", "B1", "B4", "C2", "C3", "C4", "D1", "E1", "H1"), 250, 80, seen=False
    ),
    "liver": Weights(
        "st_mouse_liver", ("CN16_D2", "CN16_E2", "CN65_D2", "CN65_D1"), 250, 120, seen=False
    ),
    "xenium": Weights("xenium_breast_idc", ("IDC_subregion",), 600, 80, bin_um=8.5),
    "cosmx": Weights("cosmx_nsclc", ("CosMx_subset",), 400, 120, bin_um=50.0),
    "osmfish": Weights("osmfish_ssctx", ("SScortex",), 800, 80, bin_um=190.0),
    "seqfish": Weights("seqfish_mouse_embryo", ("embryo2",), 500, 30, bin_um=0.018),
    "xenium-hidden": Weights(
        "xenium_breast_idc", ("IDC_subregion",), 600, 80, bin_um=8.5, hides=True
    ),
    "cosmx-hidden": Weights("cosmx_nsclc", ("CosMx_subset",), 400, 120, bin_um=50.0, hides=True),
}


def main() -> None:
    """Train one task's weights."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--system", choices=("stofm", "stimage"), default="stofm")
    parser.add_argument("--steps", type=int, default=600, help="of ST as images")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import anndata

    from terrazzo.tasks import hide_genes

    task = TASKS[options.task]
    slices = [anndata.read_h5ad(options.data / task.folder / f"{n}.h5ad") for n in task.names]
    if task.hides:
        slices = [hidden.visible for hidden in hide_genes(slices, HIDDEN, seed=0)]
    options.keep.mkdir(parents=True, exist_ok=True)
    if not (options.keep / "corpus" / "manifest.parquet").is_file():
        pretrain.make_corpus(options.keep, slices, held_out=not task.seen)
    options.adapt_steps, options.lr, options.pair = task.adapt_steps, 1e-3, "knn"
    options.bin, options.window, options.batch = task.bin_um, 16, 4
    budget = {"adapt_epochs": 10_000, "pretrain_epochs": task.pretrain_epochs}
    for seed in range(options.seeds):
        start = time.perf_counter()
        if options.system == "stofm":
            _, seconds, losses = pretrain.train("own+niche", options.keep, options, budget, seed)
        else:
            _, seconds, losses = patches.train("patch", options.keep, options, seed)
        print(
            options.task, seed, seconds, losses, f"{time.perf_counter() - start:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
