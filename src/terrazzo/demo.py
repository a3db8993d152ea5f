"""The demo: a small simulated corpus, tiny training of each system, and the domains of a slice that was not in it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from terrazzo import keys, plot, report, simulate
from terrazzo.corpus.build import build
from terrazzo.corpus.splits import Splits
from terrazzo.files import write_text
from terrazzo.models.baselines import Baseline
from terrazzo.models.embed_files import check_writable, write_atomically
from terrazzo.models.loading import load
from terrazzo.progress import Progress
from terrazzo.records import block
from terrazzo.systems.stalign.model import STAlign
from terrazzo.systems.stimage.model import STImage
from terrazzo.systems.stimage.windows import PatchConfig
from terrazzo.systems.stofm.model import SToFM
from terrazzo.tasks import domains
from terrazzo.tasks.retrieval import recall
from terrazzo.training import logs as log_files
from terrazzo.training import recipe as recipes
from terrazzo.training.run import pretrain

ABOUT = (
    "SToFM, ST as images and ST-Align, preset tiny, trained for a few minutes on simulated slices, then used on a "
    "simulated slice that they never saw; ST-Align also sees its histology. These numbers show that the whole way "
    "works and what training does, not how good a system is: the tissue is simple, and PCA averaged over neighbors "
    "knows much of it already."
)
REPORT = "report.html"
SEEDS = 5
SLICES, VALIDATION = 5, 1  # slices to train on, and to follow the losses on; one more is embedded
STAGES = ("adapt", "pretrain", "patches", "align")  # two of SToFM, one of each other system
FOUND_AMONG = 10  # spots, of which one may be the right one
IMAGE_PX, CROP_UM = 800, 40.0  # histology: its longer side, and what is seen around a cell
BIN_UM = 12.0  # about the distance between neighboring cells: one or two in a bin
BLOCKS = {  # obsm key: (what is embedded, block)
    "X_stofm_own": (keys.X_STOFM, "own"),
    "X_stofm_niche": (keys.X_STOFM, "niche"),
    "X_stimage_own": (keys.X_STIMAGE, "own"),
    "X_stimage_niche": (keys.X_STIMAGE, "niche"),
    "X_stalign_own": (keys.X_STALIGN, "own"),
    "X_stalign_niche": (keys.X_STALIGN, "niche"),
}


def run(
    out: str | Path,
    *,
    n_cells: int = 700,
    adapt_epochs: int = 4,
    pretrain_epochs: int = 30,
    patch_epochs: int = 12,
    align_epochs: int = 8,
    seed: int = 0,
    progress: bool | None = None,
) -> Path:
    """Simulate slices, train on all but one, embed that one, find domains, and write it with figures and a report.

    Parameters
    ----------
    out
        Folder; ``report.html``, ``demo.h5ad``, ``demo.png``, ``losses.png``, ``demo.md``, ``demo.csv``, the logs
        ``adapt.csv``, ``pretrain.csv``, ``patches.csv`` and ``align.csv`` and the trained checkpoints ``stofm/``,
        ``stimage/`` and ``stalign/`` go there.
    n_cells
        Cells of each simulated slice.
    adapt_epochs, pretrain_epochs, patch_epochs, align_epochs
        Passes over the corpus: SToFM's domain adaptation and multi-scale pretraining; windows of ST as images; spots
        of ST-Align.
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
    n = SLICES + VALIDATION + 1
    bars = Progress(progress)
    with bars.stage("simulate tissue", None):
        *training, adata = simulate.corpus(
            n, n_cells, seed=seed, n_donors=n, image=True, image_px=IMAGE_PX
        )
    with tempfile.TemporaryDirectory(prefix=".work-", dir=folder) as work:
        epochs = dict(
            zip(STAGES, (adapt_epochs, pretrain_epochs, patch_epochs, align_epochs), strict=True)
        )
        untrained = train(Path(work), training, epochs, seed, progress)
        for stage in STAGES:
            shutil.copyfile(
                Path(work) / stage / log_files.LOGS / log_files.CSV, folder / f"{stage}.csv"
            )
        for name, stage in (("stofm", "pretrain"), ("stimage", "patches"), ("stalign", "align")):
            model: Any = load(Path(work) / stage / "model")
            model.save_pretrained(folder / name, overwrite=True)
            model.embed(adata, progress=progress)
    found = {
        "trained": found_by_image(adata, model),
        "untrained": found_by_image(adata, untrained[-1]),
    }
    for key, (whole, name) in BLOCKS.items():
        adata.obsm[key] = block(adata, whole, name)
    for model in untrained:
        model.embed(adata, key_added=f"{model.default_key}_untrained", progress=progress)
    for baseline in BASELINES:
        baseline.embed(adata)
    table = score(adata, METHODS, bars)
    write_atomically(adata, folder / "demo.h5ad")
    write_text(folder / "demo.csv", table.to_csv(index=False))
    text = f"{ABOUT}\n\n{markdown(table)}\n\n{told(found, adata.n_obs)}\n"
    write_text(folder / "demo.md", text)
    draw(adata, table, folder / "demo.png")
    draw_losses(folder, folder / "losses.png")
    shown = [
        folder / "demo.h5ad",
        folder / "demo.csv",
        *(folder / f"{stage}.csv" for stage in STAGES),
    ]
    report.write(
        shown,
        folder / REPORT,
        title="terrazzo demo",
        about=ABOUT,
        embeddings=REPORTED,
        progress=progress,
    )
    return folder


BASELINES = [Baseline("pca"), Baseline("pca-nb3", n_components=20)]
METHODS = [
    ("SToFM, niche block", "X_stofm_niche"),
    ("SToFM, own block", "X_stofm_own"),
    ("SToFM untrained", "X_stofm_untrained"),
    ("ST as images, niche block", "X_stimage_niche"),
    ("ST as images, own block", "X_stimage_own"),
    ("ST as images untrained", "X_stimage_untrained"),
    ("ST-Align, niche block", "X_stalign_niche"),
    ("ST-Align, own block", "X_stalign_own"),
    ("ST-Align untrained", "X_stalign_untrained"),
    *((baseline.title, baseline.default_key) for baseline in BASELINES),
]
DRAWN = (
    "X_stofm_niche",
    "X_stofm_untrained",
    "X_stimage_niche",
    "X_stalign_niche",
    *(b.default_key for b in BASELINES),
)
REPORTED = (keys.X_STOFM, keys.X_STIMAGE, keys.X_STALIGN, BASELINES[-1].default_key)


def train(
    work: Path, slices: list[AnnData], epochs: dict[str, int], seed: int, progress: bool | None
) -> list[SToFM | STImage | STAlign]:
    """Build a corpus, and run each stage into ``work/<stage>``; returns untrained models."""
    paths = []
    for number, adata in enumerate(slices):
        bare = adata.copy()
        bare.obs = bare.obs[["donor"]]  # no label gets near the training
        bare.write_h5ad(work / f"slice_{number + 1}.h5ad")
        paths.append(work / f"slice_{number + 1}.h5ad")
    splits = Splits(by="donor", validation=VALIDATION / len(slices), seed=seed)
    corpus = build(
        paths,
        work / "corpus",
        min_genes=1,
        splits=splits,
        scheduler="synchronous",
        progress=progress,
    )
    adapted = pretrain(recipe("adapt", work, "", epochs["adapt"], seed), progress=progress)
    pretrain(recipe("pretrain", work, str(adapted), epochs["pretrain"], seed), progress=progress)
    trained: Any = load(
        pretrain(recipe("patches", work, "", epochs["patches"], seed), progress=progress)
    )
    aligned: Any = load(
        pretrain(recipe("align", work, "", epochs["align"], seed), progress=progress)
    )
    vocabulary = corpus.vocabulary()
    untrained: Any = STImage(trained.config, vocabulary, seed=seed)
    untrained.module.autocorrelation.copy_(
        trained.module.autocorrelation
    )  # the same channels: weights differ, no more
    unaligned = STAlign(aligned.config, vocabulary, seed=seed + 1)
    unaligned.module.genes.copy_(aligned.module.genes)  # likewise
    for part in ("image_encoder", "gene_encoder"):
        getattr(unaligned.module, part).load_state_dict(getattr(aligned.module, part).state_dict())
    return [SToFM("tiny", vocabulary, seed=seed), untrained, unaligned]


def recipe(
    stage: Any, work: Path, checkpoint: str, epochs: int, seed: int
) -> recipes.PretrainConfig:
    """Return the demo's recipe for one stage."""
    patches = (
        PatchConfig(bin_um=BIN_UM, channels=200, choose="spatial") if stage == "patches" else None
    )
    return recipes.PretrainConfig(
        stage=stage,
        corpus=str(work / "corpus"),
        out=str(work / stage),
        model=recipes.ModelSource(
            preset="tiny",
            checkpoint=checkpoint,
            init="random" if stage == "align" else "informed",
            patches=patches,
        ),
        data=recipes.DataConfig(
            batch_cells=64, batch_subslices=2, batch_windows=4, batch_spots=128
        ),
        optim=recipes.OptimConfig(lr=1e-3, warmup_steps=20, epochs=epochs),
        adapt=recipes.AdaptObjective(
            own_weight=1, masked_weight=0, contrastive_weight=0, view="thinned"
        ),
        pretrain=recipes.MultiScaleObjective(objective="own+niche", mask_share=0.5, reencode=0),
        patches=recipes.PatchObjective(target="thinned"),
        align=recipes.AlignObjective(spot_um=CROP_UM, temperature=0.2),
        run=recipes.RunConfig(log_every=5),
        seed=seed,
    )


def found_by_image(adata: AnnData, model: Any) -> float:
    """Return how often the genes of a cell are among the 10 of its slice that are most like its histology."""
    image, genes = (
        model.embed(adata.copy(), modality=one, scale="niche", progress=False).obsm[keys.X_STALIGN]
        for one in ("image", "genes")
    )
    return recall(image, genes, [FOUND_AMONG])[FOUND_AMONG]


def told(found: dict[str, float], n: int) -> str:
    """Say what ST-Align finds by image."""
    return (
        f"By the histology around a cell ST-Align has the right genes among its {FOUND_AMONG} first of {n} in "
        f"{found['trained']:.1%} of all cells, untrained in {found['untrained']:.1%}; chance is {FOUND_AMONG / n:.1%}."
    )


def score(adata: AnnData, methods: list[tuple[str, str]], bars: Progress) -> pd.DataFrame:
    """Find domains over several seeds and compare them with the true regions; keep the first seed's in ``obs``."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    truth = adata.obs["region"]
    k = truth.nunique()
    rows = []
    for title, key in methods:
        ari, nmi = [], []
        with bars.stage(f"domains of {title}", SEEDS, "fits") as advance:
            for seed in reversed(range(SEEDS)):
                found = domains(adata, use_rep=key, n_domains=k, seed=seed, progress=False).obs[
                    keys.domain_key(key)
                ]
                ari.append(adjusted_rand_score(truth, found))
                nmi.append(normalized_mutual_info_score(truth, found))
                advance(1)
        spread = pd.DataFrame({"ARI": ari, "NMI": nmi}).agg(["mean", "std"]).round(3)
        rows.append(
            {
                "embedding": title,
                "ARI": spread.loc["mean", "ARI"],
                "ARI sd": spread.loc["std", "ARI"],
                "NMI": spread.loc["mean", "NMI"],
                "NMI sd": spread.loc["std", "NMI"],
                "seeds": SEEDS,
            }
        )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Render a small table."""
    lines = ["| " + " | ".join(map(str, table)) + " |", "|" + "---|" * table.shape[1]]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def draw(adata: AnnData, table: pd.DataFrame, path: Path) -> Path:
    """Draw truth and domains side by side."""
    import matplotlib.pyplot as plt

    shown = [(title, key) for title, key in METHODS if key in DRAWN]
    columns = -(-(len(shown) + 1) // 2)
    figure, grid = plt.subplots(2, columns, figsize=(4.2 * columns, 7.6), layout="constrained")
    first, *axes = grid.ravel()
    for ax in axes[len(shown) :]:
        ax.remove()
    plot.spatial(adata, color="region", ax=first, title="true regions (simulated)")
    ari = table.set_index("embedding")["ARI"]
    for ax, (title, key) in zip(axes, shown, strict=False):
        plot.spatial(
            adata,
            color=keys.domain_key(key),
            ax=ax,
            title=f"{title}: ARI {ari[title]}",
            legend=False,
        )
    return plot.save(figure, path)


def draw_losses(folder: Path, path: Path) -> Path:
    """Draw the losses of all stages, and on the slice held out for validation what trivial answers cost."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(20, 4), layout="constrained")
    panels = (
        ("adapt", "own", "held-out counts of a cell"),
        ("pretrain", "masked_cells", "vectors of hidden cells"),
        ("patches", "masked_sites", "genes of hidden sites"),
        ("align", "niche", "image and genes of niches"),
    )
    for ax, (stage, part, title) in zip(axes, panels, strict=True):
        table = pd.read_csv(folder / f"{stage}.csv")
        names = [c for c in table if c == f"train/{part}" or c.startswith(f"val/{part}")]
        for name in (c for c in names if "recall" not in c):
            values = table[["step", name]].dropna()
            trivial = name not in (f"train/{part}", f"val/{part}")
            last = values[name].iloc[-1]
            if trivial:
                ax.axhline(last, color="0.6", linewidth=0.8, linestyle="--")
                words = name.removeprefix(f"val/{part}_").replace("_", " ")
                ax.annotate(
                    words,
                    (values["step"].max(), last),
                    ha="right",
                    va="bottom",
                    fontsize="x-small",
                    color="0.4",
                )
            else:
                # a color of its own: the order of the columns differs between the logs
                label, color = (
                    ("training", "C0") if name.startswith("train") else ("held out", "C1")
                )
                ax.plot(values["step"], values[name], marker=".", label=label, color=color)
        ax.set(title=f"{stage}: {title}", xlabel="step", ylabel="loss")
        ax.legend(frameon=False)
    return plot.save(figure, path)
