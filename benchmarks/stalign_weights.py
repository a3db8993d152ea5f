"""Train ST-Align for the tables: one patient of her2st held out in each rotation, or slices of DLPFC; no label is read.

``python benchmarks/stalign_weights.py DATA --task her2st-A|her2st-B|her2st-C|dlpfc --keep FOLDER [--seeds 1]``

``FOLDER/VARIANT-SEED/model`` is what ``terrazzo bench st-align-2 --models stalign@PATIENT=...`` takes. The patient that
is held out (her2st-A: trained on B and C; ...) is the corpus's validation split: its losses and recall are logged,
nothing is chosen by them. The picture of A2 lies about two spots beside its spots: it is left out.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common
import pretrain

TASKS = {  # dataset, slices trained on, slices held out
    "her2st-A": ("her2st", ("B4", "C2", "C3", "C4"), ("A1",)),
    "her2st-B": ("her2st", ("A1", "C2", "C3", "C4"), ("B4",)),
    "her2st-C": ("her2st", ("A1", "B4"), ("C2", "C3", "C4")),
    "dlpfc": ("dlpfc", ("151674", "151675", "151676"), ("151673",)),
}


def make_corpus(data: Path, task: str, root: Path) -> None:
    """Build the corpus of a task with its histology, without labels."""
    import anndata
    import pandas as pd

    import terrazzo as tz

    folder, train, held_out = TASKS[task]
    rows = []
    for name in (*train, *held_out):
        bare = anndata.read_h5ad(data / folder / f"{name}.h5ad")
        bare.obs = bare.obs[[c for c in ("array_row", "array_col") if c in bare.obs]]
        for key in [k for k in bare.obsm if k != "spatial"]:
            del bare.obsm[key]
        bare.write_h5ad(root / f"{name}.h5ad")
        said = json.loads((data / folder / f"{name}.json").read_text())
        rows.append(
            {
                "path": f"{name}.h5ad",
                "split": "train" if name in train else "validation",
                "donor": name[0],
                "image": str((data / folder / said["image"]).resolve()),
                "image_scale": said["scale"],
                "image_scale_y": said.get("scale_y", said["scale"]),
            }
        )
    pd.DataFrame(rows).to_csv(root / "slices.csv", index=False)
    tz.build_corpus(
        root / "slices.csv", root / "corpus", min_genes=1, scheduler="synchronous", progress=False
    )


def recipe(root: Path, out: Path, options, seed: int):
    """Return the recipe of one run."""
    from terrazzo.training import recipe as c

    return c.PretrainConfig(
        stage="align",
        corpus=str(root / "corpus"),
        out=str(out),
        model=c.ModelSource(preset=options.preset, init="random"),
        data=c.DataConfig(batch_spots=options.batch),
        optim=c.OptimConfig(
            lr=options.lr,
            warmup_steps=20,
            epochs=options.epochs,
            schedule="cosine",
            weight_decay=0.04,
            weight_decay_end=0.4,
        ),
        align=c.AlignObjective(**json.loads(options.align)),
        run=c.RunConfig(log_every=5, validate_every=options.every, checkpoint_every=100_000),
        seed=seed,
    )


def main() -> None:
    """Train one task's weights."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--variant", default="full", help="name of the run's folder")
    parser.add_argument("--align", default="{}", help="settings of the objective, JSON")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--every", type=int, default=100_000, help="steps between validations")
    parser.add_argument("--lr", type=float, default=5e-4)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import terrazzo as tz

    options.keep.mkdir(parents=True, exist_ok=True)
    if not (options.keep / "corpus" / "manifest.parquet").is_file():
        make_corpus(options.data, options.task, options.keep)
    for seed in range(options.seeds):
        out, start = options.keep / f"{options.variant}-{seed}", time.perf_counter()
        if not (out / "model" / "config.json").is_file():
            tz.pretrain(recipe(options.keep, out, options, seed))
        print(
            options.task,
            options.variant,
            seed,
            f"{time.perf_counter() - start:.0f} s",
            pretrain.held_out_losses(out),
        )


if __name__ == "__main__":
    main()
