"""Pretrain SToFM on real slices without labels, embed held-out ones, and score them beside the trivial baselines.

``python benchmarks/pretrain.py DATA --task dlpfc|merfish|starmap [--preset tiny] [--quick] [--out FILE]``

DATA holds ``dlpfc/``, ``merfish_hypothalamus/`` and ``starmap_mpfc/`` with ``.h5ad`` slices; ``--quick`` needs none, it
trains on simulated slices. Read-outs: *blocked* = 16 spatial blocks, 4 folds, logistic regression in the test slice;
*cross* = training slices to the test slice, logistic regression; *few-shot* = random 20/80, k-NN (leaks space);
*zero-shot* = tied-covariance mixture on 20 dimensions, true K, five seeds, ARI. No label is seen in pretraining.
"""

from __future__ import annotations

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
        for j, part in enumerate(np.array_split(strip[np.argsort(coords[strip, 1], kind="stable")], side)):
            out[part] = (i + j) % FOLDS
    return out


def classifier():
    """Return the linear read-out."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1))


def score(
    train: list[np.ndarray], train_labels: list[np.ndarray], test: np.ndarray, labels: np.ndarray, coords
) -> dict:
    """Score one embedding on one kind of label."""
    from sklearn.metrics import accuracy_score, adjusted_rand_score, f1_score
    from sklearn.neighbors import KNeighborsClassifier

    from terrazzo.tasks.domains import cluster

    kept = scored(labels)
    x, y, block = test[kept], labels[kept], spatial_blocks(coords)[kept]
    out = {}
    predicted = np.empty(len(y), dtype=object)
    for fold in range(FOLDS):
        here = block == fold
        predicted[here] = classifier().fit(x[~here], y[~here]).predict(x[here])
    out["blocked acc"], out["blocked F1"] = accuracy_score(y, predicted), f1_score(y, predicted, average="macro")
    known = [scored(t) & np.isin(t, np.unique(y)) for t in train_labels]
    fitted = classifier().fit(
        np.concatenate([a[k] for a, k in zip(train, known, strict=True)]),
        np.concatenate([t[k] for t, k in zip(train_labels, known, strict=True)]),
    )
    crossed = fitted.predict(x)
    out["cross acc"], out["cross F1"] = accuracy_score(y, crossed), f1_score(y, crossed, average="macro")
    few = []
    for seed in range(SEEDS):
        chosen = np.random.default_rng(seed).permutation(len(y)) < len(y) // 5
        few.append(accuracy_score(y[~chosen], KNeighborsClassifier(10).fit(x[chosen], y[chosen]).predict(x[~chosen])))
    ari = [adjusted_rand_score(y, cluster(x.astype(float), len(np.unique(y)), "gmm", s)) for s in range(SEEDS)]
    out |= {"few-shot kNN acc": float(np.mean(few)), "zero-shot ARI": float(np.mean(ari)), "ARI sd": float(np.std(ari))}
    return {k: round(float(v), 4) for k, v in out.items()}


def scored(labels: np.ndarray) -> np.ndarray:
    """Say which cells are scored: labelled, and of a class that is not rare."""
    names, counts = np.unique(labels, return_counts=True)
    rare = set(names[counts < LEAST_SHARE * len(labels)]) | {"nan", "", "Other", "Unknown", "Ambiguous"}
    return np.array([label not in rare for label in labels])


def baselines(slices: list, test) -> dict[str, list[np.ndarray]]:
    """Return the trivial embeddings of all slices, the test slice last."""
    from terrazzo.models.baselines import expression_pca, neighbour_mean
    from terrazzo.models.strong_baselines import StrongBaselines

    fitted = StrongBaselines.fit(slices)
    out: dict[str, list[np.ndarray]] = {}
    for tissue in [*slices, test]:
        for name, vectors in fitted.embed(tissue).items():
            out.setdefault(name, []).append(vectors)
        # plain PCA is fitted on each slice alone, so it is not comparable across slices: blocked and zero-shot only
        plain = expression_pca(tissue, 50, 0)
        for name, k in (("PCA (own slice)", 0), ("PCA + nb1 (own slice)", 6), ("PCA + nb3 (own slice)", 36)):
            out.setdefault(name, []).append(neighbour_mean(plain, tissue.coords, k))
    return out


def train(corpus_dir: Path, out: Path, preset: str, objective: str, budget: dict, adapted: Path | None, seed: int):
    """Run one stage and return the checkpoint folder."""
    from terrazzo.training import config as c
    from terrazzo.training.run import pretrain

    stage = "adapt" if adapted is None else "pretrain"
    own = objective == "own+niche"
    config = c.PretrainConfig(
        stage=stage,
        corpus=str(corpus_dir),
        out=str(out),
        model=c.ModelSource(preset=preset, checkpoint="" if adapted is None else str(adapted)),
        data=c.DataConfig(batch_cells=budget["batch_cells"], batch_subslices=budget["batch_subslices"]),
        optim=c.OptimConfig(
            lr=budget["lr"],
            warmup_steps=50,
            epochs=budget[f"{stage}_epochs"],
            max_steps=budget.get(f"{stage}_steps", -1),
        ),
        adapt=c.AdaptObjective(
            own_weight=1.0, masked_weight=0.0, contrastive_weight=budget["contrastive"], view="thinned"
        )
        if own
        else c.AdaptObjective(),
        pretrain=c.MultiScaleObjective(
            objective=objective, mask_share=0.5 if own else 0.1, frozen_epochs=10_000, reencode=0
        ),
        seed=seed,
    )
    return pretrain(config)


def vectors_of(model, slices: list, key: str = "X") -> list[np.ndarray]:
    """Embed copies of AnnData slices."""
    return [model.embed(a.copy(), key_added=key, progress=False).obsm[key] for a in slices]


def run(train_slices: list, test_slice, labels: list[str], preset: str, budget: dict, seed: int) -> tuple[list, list]:
    """Train, embed and score; returns rows and notes."""
    import terrazzo as tz
    from terrazzo.corpus.build import build

    slices = [tz.Slice.from_anndata(a) for a in [*train_slices, test_slice]]
    found = baselines(slices[:-1], slices[-1])
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = []
        for i, adata in enumerate(train_slices):  # labels never reach the corpus
            bare = adata.copy()
            bare.obs = bare.obs[[c for c in ("array_row", "array_col") if c in bare.obs]]
            bare.write_h5ad(root / f"slice{i}.h5ad")
            paths.append(root / f"slice{i}.h5ad")
        build(paths, root / "corpus", min_genes=1, scheduler="synchronous")
        everything = [*train_slices, test_slice]
        untrained = tz.SToFM(preset, tz.Vocabulary.from_slices(slices[:-1]), seed=seed)
        found["SToFM untrained"] = vectors_of(untrained, everything)
        for objective in ("paper", "own+niche"):
            start = time.perf_counter()
            adapted = train(root / "corpus", root / f"{objective}-adapt", preset, objective, budget, None, seed)
            halfway = time.perf_counter()
            final = train(root / "corpus", root / f"{objective}-full", preset, objective, budget, adapted, seed)
            spent = (halfway - start, time.perf_counter() - halfway)
            notes.append(f"{objective}: adaptation {spent[0]:.0f} s, sub-slices {spent[1]:.0f} s; {losses(final)}")
            model = tz.load(final)
            found[f"{objective}: cell encoder alone"] = [encoder_only(model, a) for a in everything]
            whole = vectors_of(model, everything)
            found[f"{objective}: SToFM"] = whole
            if objective == "own+niche":
                width = model.config.se2.input_dim
                found["own+niche: niche block"] = [v[:, width:] for v in whole]
    rows = []
    for label in labels:
        given = [np.asarray(a.obs[label].astype(str)) for a in everything]
        for name, v in found.items():
            rows.append(
                {"label": label, "embedding": name, **score(v[:-1], given[:-1], v[-1], given[-1], slices[-1].coords)}
            )
    return rows, notes


def encoder_only(model, adata) -> np.ndarray:
    """Return the cell encoder's own vectors."""
    import terrazzo as tz
    from terrazzo.models.cells import encode_cells, tokenise
    from terrazzo.progress import Progress

    tissue = tz.Slice.from_anndata(adata)
    tokens = tokenise(tissue, model.vocabulary.match(tissue), model.config.cell_encoder.max_length)
    return encode_cells(model.module.cell_encoder, tokens, model.cls_token, "float32", Progress(False))[0]


def losses(folder: Path) -> str:
    """Return the final losses that the checkpoint's card records."""
    import json

    held = json.loads((folder / "config.json").read_text())["provenance"]
    return ", ".join(f"{k} {v}" for k, v in held.items() if "loss" in k)


def main() -> None:
    """Run one task and print its table."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--task", choices=TASKS, default="dlpfc")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--adapt-epochs", type=int, default=6)
    parser.add_argument("--pretrain-epochs", type=int, default=40)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import anndata

    import terrazzo as tz

    budget = {"batch_cells": 64, "batch_subslices": 2, "lr": 1e-3, "contrastive": 0.1,
              "adapt_epochs": options.adapt_epochs, "pretrain_epochs": options.pretrain_epochs}  # fmt: skip
    if options.quick or options.data is None:
        made = tz.simulate.corpus(3, 250, seed=0)
        budget |= {"adapt_epochs": 1, "pretrain_epochs": 3}
        train_slices, test_slice, labels = made[:2], made[2], ["region", "cell_type"]
    else:
        folder, names, held_out, labels = TASKS[options.task]
        train_slices = [anndata.read_h5ad(options.data / folder / f"{n}.h5ad") for n in names]
        test_slice = anndata.read_h5ad(options.data / folder / f"{held_out}.h5ad")
    rows, notes = run(train_slices, test_slice, labels, options.preset, budget, options.seed)
    by_name = {(r["label"], r["embedding"]): r for r in rows}
    trivial = [r for r in rows if r["embedding"][0] in "ZTP" and r["label"] == labels[0]]
    ours = by_name[(labels[0], "own+niche: SToFM")]
    result = {
        "blocked_ours": ours["blocked acc"],
        "blocked_best_trivial": max(r["blocked acc"] for r in trivial),
        "cross_ours": ours["cross acc"],
        "cross_best_trivial": max(r["cross acc"] for r in trivial if r["embedding"][0] in "ZT"),
        "paper_blocked": by_name[(labels[0], "paper: SToFM")]["blocked acc"],
    }
    notes.append(
        f"preset {options.preset}, budget {budget}, seed {options.seed}; one encoder seed moves scores by ~.01"
    )
    common.finish(f"Pretraining on {options.task}: held-out slice", rows, notes, result, options.out)


if __name__ == "__main__":
    main()
