"""What ST-Align keeps of its inputs: zero-shot domains before and after training, by what its vectors start from.

``python benchmarks/stalign_keeps.py DATA [--steps N] [--keep FOLDER] [--out FILE]``

Three settings: genes of DLPFC (trained on 151674 and 151675, held out 151676, scored on 151673; preset small); the same
with pictures of 600 pixels and a random image encoder (tiny); her2st with EfficientNet-Lite0 (trained on B4, C2 and C3,
held out C4, scored on A1; tiny). Labels are read for the scores alone: defaults are chosen by the held-out loss of the
contrasts, which is beside the scores. Scores: ARI of the niche block, true number of regions, five seeds, of a mixture
and of k-means.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
import common

STEPS = 60

SEEDS = 5

NOTES = (
    "contrast: held-out sum of the weighted contrasts without the anchor's part, by which defaults are chosen",
    "moved: mean square of what training added to the components, relative to theirs, on the held-out slice",
    "before: with frozen components whitened and without residual sides, as in the releases before",
)


@dataclass(frozen=True)
class Setting:
    """Slices that are trained on, held out and scored, and what is read of them."""

    name: str
    folder: str
    train: tuple[str, ...]
    held_out: str
    scored: str
    modality: str
    image_encoder: str
    preset: str
    variants: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """A name, and what it changes of the recipe."""

    name: str
    objective: dict[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant("before", {"residual": False, "components": "whitened"}),
    Variant("kept, attention, anchor 1", {"fusion": "attention"}),
    Variant("kept, concatenation, anchor 0", {"fusion": "concatenation", "anchor_weight": 0.0}),
    Variant("kept, concatenation, anchor 1", {"fusion": "concatenation", "anchor_weight": 1.0}),
    Variant("kept, concatenation, anchor 10", {"fusion": "concatenation", "anchor_weight": 10.0}),
    Variant(
        "whitened, concatenation, anchor 1", {"fusion": "concatenation", "components": "whitened"}
    ),
)

DLPFC = ("dlpfc", ("151674", "151675"), "151676", "151673")

HER2ST = ("her2st", ("B4", "C2", "C3"), "C4", "A1")

ALL = tuple(variant.name for variant in VARIANTS)

FIRST = (ALL[0], "kept, attention, anchor 1", "kept, concatenation, anchor 1")

SETTINGS = (
    Setting("dlpfc genes", *DLPFC, "genes", "random", "small", (ALL[0], *ALL[2:])),
    Setting("her2st both", *HER2ST, "both", "efficientnet-lite0", "tiny", ALL[:-1]),
    Setting("dlpfc both", *DLPFC, "both", "random", "tiny", FIRST),
)


def scores(adata: Any, use_rep: str) -> dict[str, Any]:
    """Return mean and deviation of the ARI over seeds, of two clusterings."""
    import terrazzo as tz

    row: dict[str, Any] = {}
    k = adata.obs["region"].nunique()
    for method in ("gmm", "kmeans"):
        result = tz.tasks.evaluate_domains(
            adata, use_rep=use_rep, label="region", n_domains=k, method=method
        )
        metrics = result.metrics
        of_whole = metrics[(metrics["metric"] == "ari") & (metrics["split"] == "whole")]["value"]
        row[f"ARI {method}"] = float(of_whole.mean())
        row[f"sd {method}"] = float(of_whole.std(ddof=0))
    return row


def make_corpus(setting: Setting, data: Path, root: Path) -> Path:
    """Build the corpus of training and held-out slices, without labels."""
    import terrazzo as tz

    folder = root / "corpus"
    if (folder / "manifest.parquet").is_file():
        return folder
    rows = []
    root.mkdir(parents=True, exist_ok=True)
    for name in (*setting.train, setting.held_out):
        adata = tz.datasets.load(setting.folder, name, data, image=setting.modality != "genes")
        adata.obs = adata.obs.drop(columns=["region"], errors="ignore")
        adata.write_h5ad(root / f"{name}.h5ad")
        split = "validation" if name == setting.held_out else "train"
        rows.append({"path": f"{name}.h5ad", "split": split})
    pd.DataFrame(rows).to_csv(root / "slices.csv", index=False)
    tz.build_corpus(
        root / "slices.csv", folder, min_genes=1, scheduler="synchronous", progress=False
    )
    return folder


def recipe(setting: Setting, variant: Variant, corpus: Path, out: Path, steps: int) -> Any:
    """Return the recipe of a run."""
    from terrazzo.training.recipe import recipe_from_dict

    objective = {"modality": setting.modality, "temperature": 0.2, **variant.objective}
    return recipe_from_dict(
        {
            "stage": "stalign-pretrain",
            "corpus": str(corpus),
            "out": str(out),
            "model": {"preset": setting.preset, "image_encoder": setting.image_encoder},
            "data": {"batch_spots": 128},
            "optim": {
                "lr": 5e-4,
                "warmup_steps": 10,
                "schedule": "cosine",
                "weight_decay": 0.04,
                "weight_decay_end": 0.4,
                "clip": 1.0,
                "accumulate": 1,
                "max_steps": steps,
            },
            "objective": objective,
        }
    )


def held_out(stage: Any, objective: Any) -> dict[str, float]:
    """Return the held-out loss of the contrasts, and how far the vectors moved."""
    import torch

    objective.eval()
    weights = stage.recipe.objective
    by_name = {
        "spot": weights.spot_weight,
        "niche": weights.niche_weight,
        "spot_niche": weights.cross_weight,
    }
    contrasts = []
    moved = []
    with torch.no_grad():
        for pack in stage.loader("validation"):
            if len(pack) < 128:
                continue
            parts = objective.losses(pack)
            contrasts.append(
                sum(by_name[name] * float(parts[name]) for name in by_name if name in parts)
            )
            moved.append(float(parts.get("anchor", np.nan)))
    return {"contrast": float(np.mean(contrasts)), "moved": float(np.mean(moved))}


def row_of(
    setting: Setting, what: str, when: str, model: Any, stage: Any, adata: Any, cache: str
) -> dict:
    """Score a model on the held-out slice and on the one with labels."""
    objective = stage.objective_class(model, stage.recipe)
    row: dict[str, Any] = {"setting": setting.name, "what": what, "when": when}
    row |= held_out(stage, objective)
    model.embed(adata, key_added="now", modality=setting.modality, cache=cache, progress=False)
    row |= scores(adata, "now:niche")
    if setting.modality == "both":
        model.embed(adata, key_added="genes", modality="genes", progress=False)
        row["ARI gmm, genes"] = scores(adata, "genes:niche")["ARI gmm"]
    return row


def run(setting: Setting, variant: Variant, root: Path, adata: Any, steps: int) -> list[dict]:
    """Train once; return the rows before and after."""
    import terrazzo as tz
    from terrazzo.training.run import make_stage

    corpus = root / "corpus"
    cache = str(root / "features")
    out = root / variant.name.replace(" ", "-").replace(",", "")
    made = recipe(setting, variant, corpus, out, steps)
    stage = make_stage(made, progress=False)
    start = stage.objective_class(stage.model, stage.recipe)
    stage.start(start)
    rows = [row_of(setting, variant.name, "start", stage.model, stage, adata, cache)]
    folder = out / "model"
    trained = tz.load(folder if folder.is_dir() else tz.pretrain(made, progress=False))
    rows.append(row_of(setting, variant.name, "trained", trained, stage, adata, cache))
    print(pd.DataFrame(rows).to_string(), flush=True)
    return rows


def trivial(setting: Setting, adata: Any) -> list[dict]:
    """Return the rows of what needs no training."""
    import terrazzo as tz

    rows = []
    for name in ("pca-nb1", "t1"):
        baseline = tz.Baseline(name)
        baseline.embed(adata)
        row = {"setting": setting.name, "what": baseline.title, "when": "no training"}
        rows.append(row | scores(adata, baseline.default_key))
    return rows


def main() -> None:
    """Train and score every variant of every setting."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--keep", type=Path, help="folder for corpora and runs")
    parser.add_argument("--only", nargs="+", default=[s.name for s in SETTINGS])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import terrazzo as tz

    root = options.keep or Path(tempfile.mkdtemp())
    rows: list[dict] = []
    for setting in SETTINGS:
        if setting.name not in options.only:
            continue
        adata = tz.datasets.load(
            setting.folder, setting.scored, options.data, image=setting.modality != "genes"
        )
        adata = adata[adata.obs["region"].notna()].copy()
        here = root / setting.name.replace(" ", "-")
        make_corpus(setting, options.data, here)
        rows += trivial(setting, adata)
        for variant in VARIANTS:
            if variant.name not in setting.variants:
                continue
            rows += run(setting, variant, here, adata, 5 if options.quick else options.steps)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    full = [{name: row.get(name, "") for name in columns} for row in rows]
    result = {}
    for row in rows:
        if row["when"] == "trained":
            result[f"{row['setting']}_{row['what']}".replace(",", "").replace(" ", "-")] = row[
                "ARI gmm"
            ]
    common.finish("ST-Align: what is kept", full, list(NOTES), result, options.out)


if __name__ == "__main__":
    main()
