"""Pretrain SToFM on real slices without labels, embed held-out ones, and score them beside the trivial baselines.

``python benchmarks/pretrain.py DATA --task dlpfc|merfish|starmap|simulated [--preset tiny] [--seeds 2] [--out FILE]``

DATA holds ``dlpfc/``, ``merfish_hypothalamus/`` and ``starmap_mpfc/`` with ``.h5ad`` slices; ``simulated`` needs
none. Read-outs: *blocked* = 16 spatial blocks, 4 folds, logistic regression in the test slice; *cross* = training
slices to the test slice, logistic regression; *few-shot* = random 20/80, k-NN (leaks space); *zero-shot* = tied-
covariance mixture, true K, five seeds, ARI. Scores are means over encoder seeds, sd beside them. The test slice is
the corpus's validation slice: its losses are logged beside what trivial answers cost, nothing is chosen by them, and
no label is seen in pretraining.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common

TASKS = {
    "dlpfc": ("dlpfc", ["151674", "151675", "151676"], "151673", ["region"]),
    "merfish": (
        "merfish_hypothalamus",
        ["animal1_bregma-0.29", "animal1_bregma0.21", "animal1_bregma0.26"],
        "animal1_bregma-0.09",
        ["cell_type"],
    ),
    "starmap": ("starmap_mpfc", ["BZ5"], "BZ9", ["region", "cell_type"]),
}
BLOCKS, FOLDS, SEEDS = 16, 4, 5
LEAST_SHARE = 0.01  # classes rarer than this are not scored


def spatial_blocks(coords: np.ndarray) -> np.ndarray:
    """Return the fold of each cell: 16 blocks of equal size (four strips along x, each cut in four along y).

    Blocks of a fold touch at corners only: one in each row and each column of blocks.
    """
    side = int(np.sqrt(BLOCKS))
    out = np.empty(len(coords), dtype=int)
    for i, strip in enumerate(np.array_split(np.argsort(coords[:, 0], kind="stable"), side)):
        for j, part in enumerate(
            np.array_split(strip[np.argsort(coords[strip, 1], kind="stable")], side)
        ):
            out[part] = (i + j) % FOLDS
    return out


def classifier():
    """Return the linear head."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1))


def score(
    train: list[np.ndarray],
    train_labels: list[np.ndarray],
    test: np.ndarray,
    labels: np.ndarray,
    coords,
) -> dict:
    """Score one embedding on one kind of label."""
    from sklearn.metrics import accuracy_score, adjusted_rand_score, f1_score
    from sklearn.neighbors import KNeighborsClassifier

    from terrazzo.tasks.clustering import cluster

    kept = scored(labels)
    x, y, block = test[kept], labels[kept], spatial_blocks(coords)[kept]
    out = {}
    predicted = np.empty(len(y), dtype=object)
    for fold in range(FOLDS):
        here = block == fold
        predicted[here] = classifier().fit(x[~here], y[~here]).predict(x[here])
    out["blocked acc"], out["blocked F1"] = (
        accuracy_score(y, predicted),
        f1_score(y, predicted, average="macro"),
    )
    if train:
        out |= cross(train, train_labels, x, y)
    few = []
    for seed in range(SEEDS):
        chosen = np.random.default_rng(seed).permutation(len(y)) < len(y) // 5
        few.append(
            accuracy_score(
                y[~chosen], KNeighborsClassifier(10).fit(x[chosen], y[chosen]).predict(x[~chosen])
            )
        )
    ari = [
        adjusted_rand_score(y, cluster(x.astype(float), len(np.unique(y)), "gmm", s))
        for s in range(SEEDS)
    ]
    out |= {
        "few-shot kNN acc": float(np.mean(few)),
        "zero-shot ARI": float(np.mean(ari)),
        "ARI sd": float(np.std(ari)),
    }
    return {k: round(float(v), 4) for k, v in out.items()}


def cross(
    train: list[np.ndarray], train_labels: list[np.ndarray], x: np.ndarray, y: np.ndarray
) -> dict[str, float]:
    """Fit on the training slices, predict the test slice."""
    from sklearn.metrics import accuracy_score, f1_score

    known = [scored(t) & np.isin(t, np.unique(y)) for t in train_labels]
    fitted = classifier().fit(
        np.concatenate([a[k] for a, k in zip(train, known, strict=True)]),
        np.concatenate([t[k] for t, k in zip(train_labels, known, strict=True)]),
    )
    found = fitted.predict(x)
    return {"cross acc": accuracy_score(y, found), "cross F1": f1_score(y, found, average="macro")}


def scored(labels: np.ndarray) -> np.ndarray:
    """Say which cells are scored: labeled, and of a class that is not rare."""
    names, counts = np.unique(labels, return_counts=True)
    rare = set(names[counts < LEAST_SHARE * len(labels)]) | {
        "nan",
        "",
        "Other",
        "Unknown",
        "Ambiguous",
    }
    return np.array([label not in rare for label in labels])


def baselines(slices: list, test) -> dict[str, list[np.ndarray]]:
    """Return the trivial embeddings of all slices, the test slice last."""
    from terrazzo.models.baselines import KINDS, fit_baselines

    names = [n for n in KINDS if n != "expression"]
    joint = [n for n in names if KINDS[n].joint]
    fitted = fit_baselines([n for n in names if n not in joint], slices)
    fitted |= fit_baselines(joint, [*slices, test])
    return {fitted[n].title: [fitted[n].transform(s) for s in [*slices, test]] for n in names}


# steps and epochs that a laptop bears: about 5 to 10 minutes a seed and objective with preset tiny on one core
BUDGETS = {
    "dlpfc": {"adapt_epochs": 4, "pretrain_epochs": 80},
    "merfish": {"adapt_epochs": 8, "pretrain_epochs": 40},
    "starmap": {"adapt_epochs": 80, "pretrain_epochs": 300},
    "simulated": {"adapt_epochs": 6, "pretrain_epochs": 60},
}
OBJECTIVES = ("own+niche", "paper", "paper, informed start")


def recipe(
    stage: str,
    objective: str,
    root: Path,
    out: Path,
    options,
    budget: dict,
    checkpoint: str,
    seed: int,
):
    """Return the recipe of one stage; the paper's objective starts from random weights by default."""
    from terrazzo.training.recipe import recipe_from_dict

    own = objective == "own+niche"
    of_stage = {
        "adapt": {
            "data": {"batch_cells": 64},
            "objective": {
                "own_weight": 1.0,
                "masked_weight": 0.0,
                "contrastive_weight": 0.0,
                "view": "thinned",
            }
            if own
            else {},
        },
        "pretrain": {
            "data": {"batch_subslices": 2},
            "objective": {
                "kind": "own+niche" if own else "paper",
                "mask_share": 0.5 if own else 0.1,
                "frozen_epochs": 10_000,
                "reencode": 0,
            },
        },
    }
    return recipe_from_dict(
        {
            "stage": f"stofm-{stage}",
            "corpus": str(root / "corpus"),
            "out": str(out),
            "model": {
                "preset": options.preset,
                "checkpoint": checkpoint,
                "init": "random" if objective == "paper" else "informed",
                "subslices": {"pair": options.pair},
            },
            "optim": {
                "lr": options.lr,
                "warmup_steps": 50,
                "epochs": budget[f"{stage}_epochs"],
                "max_steps": options.adapt_steps if stage == "adapt" else -1,
            },
            # validated at the end
            "run": {"log_every": 5, "validate_every": 10_000, "checkpoint_every": 10_000},
            "seed": seed,
            **of_stage[stage],
        }
    )


def train(objective: str, root: Path, options, budget: dict, seed: int):
    """Run both stages; returns the model, its seconds, and the losses on the held-out slice."""
    import terrazzo as tz

    seconds, losses, checkpoint = [], {}, ""
    for stage in ("adapt", "pretrain"):
        out = root / f"{objective}-{stage}-{seed}".replace(", ", "-").replace(" ", "-")
        start = time.perf_counter()
        if (out / "model" / "config.json").is_file():  # a kept run
            checkpoint = str(out / "model")
            seconds.append(float("nan"))
            losses |= held_out_losses(out)
            continue
        checkpoint = str(
            tz.pretrain(recipe(stage, objective, root, out, options, budget, checkpoint, seed))
        )
        seconds.append(time.perf_counter() - start)
        losses |= held_out_losses(out)
    return tz.load(checkpoint), seconds, losses


def held_out_losses(out: Path) -> dict[str, float]:
    """Return the last losses on the held-out slice."""
    from terrazzo.training import logs as log_files

    final = log_files.final(out / log_files.LOGS / log_files.CSV)
    return {
        k.removeprefix("val/"): v
        for k, v in final.items()
        if k.startswith("val/") and k != "val/loss"
    }


def vectors_of(model, slices: list, key: str = "X") -> list[np.ndarray]:
    """Embed copies of AnnData slices."""
    return [model.embed(a.copy(), key_added=key, progress=False).obsm[key] for a in slices]


def blocks_of(name: str, model, slices: list, coords: list) -> dict[str, list[np.ndarray]]:
    """Return every vector of a trained model that is scored, by name."""
    from terrazzo.models.states import nearest_in_rings, ring_means

    def rings(vectors: np.ndarray, xy: np.ndarray) -> np.ndarray:
        return np.concatenate([ring_means(vectors, index) for _, index in nearest_in_rings(xy)])

    whole, width = vectors_of(model, slices), model.config.se2.input_dim
    if model.config.output == "own+niche":
        own = [v[:, :width] for v in whole]
        return {
            f"{name}: SToFM [own ; niche]": whole,
            f"{name}: niche block": [v[:, width:] for v in whole],
            f"{name}: cell encoder alone (own block)": own,
            f"{name}: own block + its ring means (no SE(2))": [
                rings(v, c) for v, c in zip(own, coords, strict=True)
            ],
        }
    return {
        f"{name}: SToFM": whole,
        f"{name}: cell encoder alone": [encoder_only(model, a) for a in slices],
    }


def encoder_only(model, adata) -> np.ndarray:
    """Return the cell encoder's own vectors."""
    import terrazzo as tz
    from terrazzo.progress import Progress
    from terrazzo.systems.stofm.cell_model import encode_cells, tokenize

    tissue = tz.Slice.from_anndata(adata)
    tokens = tokenize(tissue, model.vocabulary.match(tissue), model.config.cell_encoder.max_length)
    return encode_cells(
        model.module.cell_encoder, tokens, model.cls_token, "float32", Progress(False)
    )[0]


def make_corpus(root: Path, slices: list, *, held_out: bool = True) -> None:
    """Build the corpus of all slices without labels, the last one held out or not."""
    import pandas as pd

    import terrazzo as tz

    rows = []
    for i, adata in enumerate(slices):
        bare = adata.copy()
        bare.obs = bare.obs[[c for c in ("array_row", "array_col") if c in bare.obs]]
        bare.write_h5ad(root / f"slice{i}.h5ad")
        last = held_out and i == len(slices) - 1
        rows.append({"path": f"slice{i}.h5ad", "split": "validation" if last else "train"})
    pd.DataFrame(rows).to_csv(root / "slices.csv", index=False)
    tz.build_corpus(
        root / "slices.csv", root / "corpus", min_genes=1, scheduler="synchronous", progress=False
    )


def run(slices: list, labels: list[str], options, budget: dict) -> tuple[list, list, dict]:
    """Train, embed and score; returns rows, notes and held-out losses."""
    import terrazzo as tz

    tissues = [tz.Slice.from_anndata(a) for a in slices]
    coords, given = (
        [t.coords for t in tissues],
        {x: [np.asarray(a.obs[x].astype(str)) for a in slices] for x in labels},
    )
    scores: dict[tuple[str, str], list[dict]] = {}

    def note(found: dict[str, list[np.ndarray]]) -> None:
        for label in labels:
            known = given[label]
            for name, v in found.items():
                row = score(v[:-1], known[-len(v) : -1], v[-1], known[-1], coords[-1])
                scores.setdefault((label, name), []).append(row)
                print(label, name, row, file=sys.stderr, flush=True)

    note(baselines(tissues[:-1], tissues[-1]))
    notes, losses = [], {}
    first = len(slices) - 1 if options.within else 0  # training slices are embedded for cross alone
    with contextlib.ExitStack() as stack:
        root = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "corpus" / "manifest.parquet").is_file():
            make_corpus(root, slices)
        if not options.no_untrained:
            untrained = tz.SToFM(
                options.preset, tz.Corpus.open(root / "corpus").vocabulary(), seed=0
            )
            note({"SToFM untrained (random weights)": vectors_of(untrained, slices)})
        for objective in options.objectives:
            for seed in range(options.seeds if objective == "own+niche" else options.paper_seeds):
                model, seconds, found = train(objective, root, options, budget, seed)
                losses.setdefault(objective, []).append(found)
                notes.append(
                    f"{objective}, seed {seed}: adaptation {seconds[0]:.0f} s, sub-slices {seconds[1]:.0f} s"
                )
                note(blocks_of(objective, model, slices[first:], coords[first:]))
    rows = [
        {"label": label, "embedding": name, "seeds": len(r), **summary(r)}
        for (label, name), r in scores.items()
    ]
    rows.sort(key=lambda r: labels.index(r["label"]))
    return rows, notes, losses


def summary(rows: list[dict]) -> dict[str, str | float]:
    """Return mean and, of several seeds, sd of every score."""
    out: dict[str, str | float] = {}
    for name in rows[0]:
        values = [r[name] for r in rows]
        if name == "ARI sd":
            continue
        spread = f" ± {np.std(values):.3f}" if len(values) > 1 else ""
        out[name] = f"{np.mean(values):.3f}{spread}"
    return out


def loss_notes(losses: dict[str, list[dict[str, float]]]) -> list[str]:
    """Say for each objective how far the held-out losses are from trivial answers."""
    out = []
    for objective, runs in losses.items():
        mean = {k: float(np.mean([r[k] for r in runs])) for k in runs[0]}
        parts = [k for k in mean if not any(k.startswith(f"{other}_") for other in mean)]
        for part in parts:
            beside = ", ".join(
                f"{k.removeprefix(part + '_')} {v:.4g}"
                for k, v in mean.items()
                if k.startswith(f"{part}_")
            )
            out.append(
                f"held-out loss of {objective}: {part} {mean[part]:.4g}, beside {beside or 'nothing'}"
            )
    return out


def main() -> None:
    """Run one task and print its table."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--task", choices=BUDGETS, default="dlpfc")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--paper-seeds", type=int, default=1, help="the paper's objective costs three times as much"
    )
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument(
        "--within", action="store_true", help="score trained models within the test slice only"
    )
    parser.add_argument("--no-untrained", action="store_true", help="leave out the untrained model")
    parser.add_argument(
        "--pair", choices=("knn", "full"), default="knn", help="distances that the model is shown"
    )
    parser.add_argument("--cells", type=int, default=800, help="of each simulated slice")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--keep", type=Path, help="folder for corpus and runs; finished ones there are used"
    )
    parser.add_argument("--adapt-steps", type=int, default=-1)
    parser.add_argument("--adapt-epochs", type=int)
    parser.add_argument("--pretrain-epochs", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import anndata

    import terrazzo as tz

    task = "simulated" if options.quick or options.data is None else options.task
    asked = {"adapt_epochs": options.adapt_epochs, "pretrain_epochs": options.pretrain_epochs}
    budget = BUDGETS[task] | {k: v for k, v in asked.items() if v is not None}
    if task == "simulated":
        labels = ["region", "cell_type"]
        slices = tz.simulate.corpus(5, options.cells, seed=0)
        if options.quick:
            slices = tz.simulate.corpus(3, 150, seed=0)
            budget, options.seeds = {"adapt_epochs": 1, "pretrain_epochs": 1}, 1
    else:
        folder, names, held_out, labels = TASKS[task]
        slices = [
            anndata.read_h5ad(options.data / folder / f"{n}.h5ad") for n in [*names, held_out]
        ]
    rows, notes, losses = run(slices, labels, options, budget)
    notes += loss_notes(losses)
    trivial = [
        r
        for r in rows
        if "SToFM" not in r["embedding"] and not r["embedding"].startswith(tuple(OBJECTIVES))
    ]
    result = {}
    for label in labels:
        for kind in ("blocked acc",) if options.within else ("blocked acc", "cross acc"):
            short = f"{label}_{kind.split()[0]}"
            one = [r for r in trivial if r["label"] == label]
            result[f"{short}_best_trivial"] = max(number(r[kind]) for r in one)
            result |= {
                f"{short}_{objective.replace(', ', '_').replace(' ', '_')}": number(r[kind])
                for objective in options.objectives
                for r in rows
                if r["label"] == label and r["embedding"].startswith(f"{objective}: SToFM")
            }
    said = {k: getattr(options, k) for k in ("preset", "lr", "pair", "adapt_steps")}
    notes.append(f"{said | budget}")
    notes.append(f"losses, all seeds: {json.dumps(losses)}")
    common.finish(
        f"Pretraining on {task}, preset {options.preset}: held-out slice",
        rows,
        notes,
        result,
        options.out,
    )


def number(text: str | float) -> float:
    """Return the mean of a score."""
    return float(str(text).split()[0])


if __name__ == "__main__":
    main()
