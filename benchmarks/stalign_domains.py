"""Zero-shot domains and retrieval of ST-Align on slices that it was not trained on, beside what needs no training.

``python benchmarks/stalign_domains.py DATA --a1 MODEL... --dlpfc MODEL... [--out FILE]``

``--a1``: trained on patients B and C of her2st, scored on the annotated slice A1; ``--dlpfc``: trained on 151674 to
151676, scored on 151673, whose picture has 600 pixels: a spot is 3.4 of them. Clusters: tied-covariance mixture, true
number, five seeds, ARI; of each of the model's vectors the niche block, which is what a task takes for regions.
Recall@10: how often the genes of a spot are among the ten that are most like its image, in its own slice.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common

PARTS = {"a1": ("her2st", "A1"), "dlpfc": ("dlpfc", "151673")}
TRIVIAL = ("pca", "pca-nb1", "pca-nb3", "t1", "t2", "t3")
MODALITIES = ("both", "genes", "image")


def ari(adata, use_rep: str) -> list[float]:
    """Return the scores of five seeds."""
    import terrazzo as tz

    k = adata.obs["region"].nunique()
    found = tz.tasks.evaluate_domains(adata, use_rep=use_rep, label="region", n_domains=k)
    scores = found.metrics
    return scores[(scores["metric"] == "ari") & (scores["split"] == "whole")]["value"].tolist()


def score(adata, slice_name: str, models: list) -> list[dict]:
    """Return a row for each embedding of one slice."""
    import terrazzo as tz

    found: dict[str, list[float]] = {}
    recall: dict[str, list[float]] = {}
    for name in TRIVIAL:
        baseline = tz.Baseline(name)
        baseline.embed(adata)
        found[baseline.title] = ari(adata, baseline.default_key)
    for model in models:
        untrained = tz.STAlign(model.config, model.vocabulary, seed=0)
        untrained.module.load_state_dict(
            {k: v for k, v in model.module.state_dict().items() if not k.startswith("net.")},
            strict=False,
        )
        for title, one in (("ST-Align", model), ("ST-Align before training", untrained)):
            for modality in MODALITIES:
                one.embed(adata, key_added=modality, modality=modality, progress=False)
                found.setdefault(f"{title}, {modality}", []).extend(ari(adata, f"{modality}:niche"))
            for modality in ("genes", "image"):
                one.embed(adata, key_added=modality, modality=modality, shared=True, progress=False)
            for block in ("own", "niche"):
                places = tz.tasks.retrieval(
                    adata, image=f"image:{block}", genes=f"genes:{block}"
                ).metrics
                hit = places[
                    (places["metric"] == "recall@10") & (places["split"] == "image to genes")
                ]
                recall.setdefault(f"{title}, {block}", []).append(float(hit["value"].iloc[0]))
    rows = [
        {
            "slice": slice_name,
            "score": "ARI",
            "what": name,
            "mean": np.mean(v),
            "sd": np.std(v),
            "n": len(v),
        }
        for name, v in found.items()
    ]
    rows += [
        {
            "slice": slice_name,
            "score": "recall@10",
            "what": name,
            "mean": np.mean(v),
            "sd": np.std(v),
            "n": len(v),
        }
        for name, v in recall.items()
    ]
    chance = {
        "slice": slice_name,
        "score": "recall@10",
        "what": "chance",
        "mean": 10 / adata.n_obs,
        "sd": 0,
        "n": 1,
    }
    return [*rows, chance]


def main() -> None:
    """Score the slices for which there is a model."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("data", type=Path)
    for part in PARTS:
        parser.add_argument(f"--{part}", type=Path, nargs="+", default=[])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import terrazzo as tz

    rows, result = [], {}
    for part, (folder, name) in PARTS.items():
        if not getattr(options, part):
            continue
        adata = tz.datasets.load(folder, name, options.data, image=True)
        adata = adata[adata.obs["region"].notna()].copy()
        some = score(adata, name, [tz.load(path) for path in getattr(options, part)])
        rows += some
        trivial = [
            r["mean"] for r in some if r["score"] == "ARI" and not r["what"].startswith("ST-Align")
        ]
        result[f"{name}_best_trivial"] = max(trivial)
        result |= {
            f"{name}_{r['what'].replace(', ', '_')}": r["mean"]
            for r in some
            if r["what"].startswith("ST-Align, ")
        }
    common.finish(
        "ST-Align: zero-shot domains and retrieval",
        rows,
        ["published, 151673: ARI .278"],
        result,
        options.out,
    )


if __name__ == "__main__":
    main()
