"""The demo: a simulated tissue, embedded by an untrained SToFM and by PCA + neighbour mean, and its domains."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from anndata import AnnData

from terrazzo import keys, plot, simulate
from terrazzo.genes import Vocabulary
from terrazzo.models.baselines import PCANeighbours
from terrazzo.models.files import check_writable, write_atomically
from terrazzo.models.stofm import SToFM
from terrazzo.slices import Slice
from terrazzo.tasks import domains

UNTRAINED = (
    "The SToFM in this demo has random weights: nothing was trained. Its domains show only that the pipeline runs; "
    "expect PCA + neighbour mean to be better."
)
SEEDS = 5


def run(out: str | Path, *, n_cells: int = 2000, seed: int = 0, progress: bool | None = None) -> Path:
    """Simulate, embed, find domains, and write a slice, a figure and a table.

    Parameters
    ----------
    out
        Folder; ``demo.h5ad``, ``demo.png``, ``demo.md``, ``demo.csv`` and the checkpoint ``model/`` go there.
    n_cells
        Size of the simulated tissue.
    seed
        Seed of tissue and weights.
    progress
        Show progress bars; None: only on a terminal.

    Returns
    -------
    The folder.
    """
    folder = Path(out)
    check_writable(folder)
    adata = simulate.tissue(n_cells, seed=seed)
    model = SToFM("tiny", Vocabulary.from_slices([Slice.from_anndata(adata)]), seed=seed)
    model.save_pretrained(folder / "model", overwrite=True)
    model.embed(adata, progress=progress)
    PCANeighbours().embed(adata)
    table = score(adata, [(f"{SToFM.title} (untrained)", keys.X_STOFM), (PCANeighbours.title, keys.X_PCA_NB)])
    write_atomically(adata, folder / "demo.h5ad")
    table.to_csv(folder / "demo.csv", index=False)
    (folder / "demo.md").write_text(f"{UNTRAINED}\n\n{markdown(table)}\n", encoding="utf-8")
    draw(adata, folder / "demo.png")
    return folder


def score(adata: AnnData, methods: list[tuple[str, str]]) -> pd.DataFrame:
    """Find domains over several seeds and compare them with the true regions; keep the first seed's in ``obs``."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    truth = adata.obs["region"]
    k = truth.nunique()
    rows = []
    for title, key in methods:
        ari, nmi = [], []
        for seed in reversed(range(SEEDS)):
            found = domains(adata, use_rep=key, n_domains=k, seed=seed).obs[keys.domain_key(key)]
            ari.append(adjusted_rand_score(truth, found))
            nmi.append(normalized_mutual_info_score(truth, found))
        spread = pd.DataFrame({"ARI": ari, "NMI": nmi}).agg(["mean", "std"]).round(3)
        rows.append({
            "embedding": title,
            "ARI": spread.loc["mean", "ARI"], "ARI sd": spread.loc["std", "ARI"],
            "NMI": spread.loc["mean", "NMI"], "NMI sd": spread.loc["std", "NMI"],
            "seeds": SEEDS,
        })  # fmt: skip
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Render a small table."""
    lines = ["| " + " | ".join(map(str, table)) + " |", "|" + "---|" * table.shape[1]]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def draw(adata: AnnData, path: Path) -> Path:
    """Draw truth and both sets of domains side by side."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    panels = [
        ("region", "true regions (simulated)"),
        (keys.domain_key(keys.X_STOFM), "domains: SToFM, UNTRAINED weights"),
        (keys.domain_key(keys.X_PCA_NB), "domains: PCA + neighbour mean"),
    ]
    for ax, (color, title) in zip(axes, panels, strict=True):
        plot.spatial(adata, color=color, ax=ax, title=title)
    return plot.save(figure, path)
