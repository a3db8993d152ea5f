"""The demo: a small simulated corpus, tiny SToFM training, and the domains of a slice that was not in it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from terrazzo import keys, plot, simulate
from terrazzo.corpus.build import build
from terrazzo.corpus.splits import Splits
from terrazzo.models.baselines import Baseline
from terrazzo.models.convert import load
from terrazzo.models.files import check_writable, write_atomically
from terrazzo.models.stofm import SToFM
from terrazzo.representation import block
from terrazzo.tasks import domains
from terrazzo.training import config as recipes
from terrazzo.training import logs
from terrazzo.training.run import pretrain

ABOUT = (
    "SToFM, preset tiny, trained for a few minutes on simulated slices, then used on a simulated slice that it never "
    "saw. These numbers show that the whole way works and that training helps, not how good the model is: so little "
    "training does not beat PCA averaged over neighbours."
)
SEEDS = 5
SLICES, VALIDATION = 5, 1  # slices to train on, and to follow the losses on; one more is embedded
NICHE, OWN, UNTRAINED = "X_stofm_niche", "X_stofm_own", "X_stofm_untrained"


def run(
    out: str | Path,
    *,
    n_cells: int = 700,
    adapt_epochs: int = 4,
    pretrain_epochs: int = 30,
    seed: int = 0,
    progress: bool | None = None,
) -> Path:
    """Simulate slices, train on all but one, embed that one, find domains, and write it with a figure and a table.

    Parameters
    ----------
    out
        Folder; ``demo.h5ad``, ``demo.png``, ``losses.png``, ``demo.md``, ``demo.csv``, the logs ``adapt.csv`` and
        ``pretrain.csv`` and the trained checkpoint ``model/`` go there.
    n_cells
        Cells of each simulated slice.
    adapt_epochs, pretrain_epochs
        Passes over the corpus in domain adaptation and in multi-scale pretraining.
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
    folder.mkdir(parents=True, exist_ok=True)
    *training, adata = simulate.corpus(SLICES + VALIDATION + 1, n_cells, seed=seed, n_donors=SLICES + VALIDATION + 1)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=folder) as work:
        untrained = train(Path(work), training, adapt_epochs, pretrain_epochs, seed, progress)
        for stage in ("adapt", "pretrain"):
            shutil.copyfile(Path(work) / stage / "logs" / logs.CSV, folder / f"{stage}.csv")
        model: Any = load(Path(work) / "pretrain" / "model")
        model.save_pretrained(folder / "model", overwrite=True)
    model.embed(adata, progress=progress)
    adata.obsm[OWN], adata.obsm[NICHE] = block(adata, keys.X_STOFM, "own"), block(adata, keys.X_STOFM, "niche")
    untrained.embed(adata, key_added=UNTRAINED, progress=progress)
    for baseline in BASELINES:
        baseline.embed(adata)
    table = score(adata, METHODS)
    write_atomically(adata, folder / "demo.h5ad")
    table.to_csv(folder / "demo.csv", index=False)
    (folder / "demo.md").write_text(f"{ABOUT}\n\n{markdown(table)}\n", encoding="utf-8")
    draw(adata, table, folder / "demo.png")
    draw_losses(folder, folder / "losses.png")
    return folder


BASELINES = [Baseline("pca"), Baseline("pca-nb3", n_components=20)]
METHODS = [
    ("SToFM, niche block", NICHE),
    ("SToFM, own block", OWN),
    ("SToFM untrained", UNTRAINED),
    *((baseline.title, baseline.default_key) for baseline in BASELINES),
]


def train(work: Path, slices: list[AnnData], adapt: int, multi: int, seed: int, progress: bool | None) -> SToFM:
    """Build a corpus, and run both stages into ``work/adapt`` and ``work/pretrain``; returns an untrained model."""
    paths = []
    for number, adata in enumerate(slices):
        bare = adata.copy()
        bare.obs = bare.obs[["donor"]]  # no label gets near the training
        bare.write_h5ad(work / f"slice_{number + 1}.h5ad")
        paths.append(work / f"slice_{number + 1}.h5ad")
    splits = Splits(by="donor", validation=VALIDATION / len(slices), seed=seed)
    corpus = build(paths, work / "corpus", min_genes=1, splits=splits, scheduler="synchronous", progress=progress)
    adapted = pretrain(recipe("adapt", work, "", adapt, seed), progress=progress)
    pretrain(recipe("pretrain", work, str(adapted), multi, seed), progress=progress)
    return SToFM("tiny", corpus.vocabulary(), seed=seed)


def recipe(stage: Any, work: Path, checkpoint: str, epochs: int, seed: int) -> recipes.PretrainConfig:
    """Return the demo's recipe for one stage."""
    return recipes.PretrainConfig(
        stage=stage,
        corpus=str(work / "corpus"),
        out=str(work / stage),
        model=recipes.ModelSource(preset="tiny", checkpoint=checkpoint, init="informed"),
        data=recipes.DataConfig(batch_cells=64, batch_subslices=2),
        optim=recipes.OptimConfig(lr=1e-3, warmup_steps=20, epochs=epochs),
        adapt=recipes.AdaptObjective(own_weight=1, masked_weight=0, contrastive_weight=0, view="thinned"),
        pretrain=recipes.MultiScaleObjective(objective="own+niche", mask_share=0.5, reencode=0),
        run=recipes.RunConfig(log_every=5),
        seed=seed,
    )


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


def draw(adata: AnnData, table: pd.DataFrame, path: Path) -> Path:
    """Draw truth and domains side by side."""
    import matplotlib.pyplot as plt

    shown = [(title, key) for title, key in METHODS if key != OWN]
    figure, axes = plt.subplots(1, len(shown) + 1, figsize=(4 * len(shown) + 5, 4), layout="constrained")
    plot.spatial(adata, color="region", ax=axes[0], title="true regions (simulated)")
    ari = table.set_index("embedding")["ARI"]
    for ax, (title, key) in zip(axes[1:], shown, strict=True):
        plot.spatial(adata, color=keys.domain_key(key), ax=ax, title=f"{title}: ARI {ari[title]}", legend=False)
    return plot.save(figure, path)


def draw_losses(folder: Path, path: Path) -> Path:
    """Draw the losses of both stages, and on the slice held out for validation what trivial answers cost."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels = (("adapt", "own", "held-out counts of a cell"), ("pretrain", "masked_cells", "vectors of hidden cells"))
    for ax, (stage, part, title) in zip(axes, panels, strict=True):
        table = pd.read_csv(folder / f"{stage}.csv")
        for name in (c for c in table if c == f"train/{part}" or c.startswith(f"val/{part}")):
            values = table[["step", name]].dropna()
            trivial = name not in (f"train/{part}", f"val/{part}")
            last = values[name].iloc[-1]
            if trivial:
                ax.axhline(last, color="0.6", linewidth=0.8, linestyle="--")
                words = name.removeprefix(f"val/{part}_").replace("_", " ")
                ax.annotate(
                    words, (values["step"].max(), last), ha="right", va="bottom", fontsize="x-small", color="0.4"
                )
            else:
                # a colour of its own: the order of the columns differs between the logs
                label, colour = ("training", "C0") if name.startswith("train") else ("held out", "C1")
                ax.plot(values["step"], values[name], marker=".", label=label, color=colour)
        ax.set(title=f"{stage}: {title}", xlabel="step", ylabel="loss")
        ax.legend(frameon=False)
    return plot.save(figure, path)
