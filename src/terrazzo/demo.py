"""The demo: a small simulated corpus, tiny training of each system, and the regions of a slice that was not in it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys, plot, report, simulate
from terrazzo.answers.result import Answer
from terrazzo.answers.run import regions
from terrazzo.corpus.build import build
from terrazzo.corpus.splits import Splits
from terrazzo.corpus.store import Corpus
from terrazzo.files import whole_folder, work_folder, write_text
from terrazzo.marks import Mark, find_mark, guard
from terrazzo.models.base import FoundationModel
from terrazzo.models.baselines import Baseline
from terrazzo.models.checkpoint import check_free, is_checkpoint
from terrazzo.models.embed_files import check_writable, write_atomically
from terrazzo.models.loading import load
from terrazzo.notices import Notices
from terrazzo.progress import Progress
from terrazzo.records import block
from terrazzo.systems.stalign.model import STAlign
from terrazzo.systems.stimage.model import STImage
from terrazzo.systems.stofm.model import SToFM
from terrazzo.tasks import domains
from terrazzo.tasks.retrieval import recall
from terrazzo.training import logs
from terrazzo.training.recipe import Recipe, recipe_from_dict
from terrazzo.training.run import pretrain

__all__ = ["run"]

ABOUT = (
    "SToFM, ST as images and ST-Align, preset tiny, trained for a few minutes on simulated slices, then used on a "
    "simulated slice that they never saw; ST-Align also sees its histology. These numbers show that the whole way "
    "works and what training does, not how good a system is: the tissue is simple, and PCA averaged over neighbors "
    "knows much of it already."
)
REPORT = "report.html"
SHOWN = "demo.h5ad"  # the slice that is shown
MARK = Mark("demo", "0" * 16, "0" * 16, "simulated slices")
SEEDS = 5
SLICES = 5  # to train on; one more is embedded
VALIDATION = 1  # slices to follow the losses on
FOUND_AMONG = 10  # spots, of which one may be the right one
IMAGE_PX = 800  # longer side of the histology
CROP_UM = 40.0  # what is seen of it around a cell
BIN_UM = 12.0  # about the distance between neighboring cells: one or two in a bin
SLICE = "slice_"  # and a number: names of the slices in the corpus
SYSTEMS = ("stofm", "stimage", "stalign")  # folders of the trained models
LAST_STAGE = {
    "stofm": "stofm-pretrain",
    "stimage": "stimage-pretrain",
    "stalign": "stalign-pretrain",
}


@dataclass(frozen=True)
class Choice:
    """What the report opens on, chosen on another slice than the one that is shown.

    Attributes
    ----------
    model
        A trained model, or a baseline.
    title
        Its title in the table.
    scores
        ARI of every candidate by title, on the slice that losses were followed on.
    """

    model: Any
    title: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Panel:
    """A stage, the loss of it that is drawn, and what that is of."""

    stage: str
    loss: str
    title: str


PANELS = (
    Panel("stofm-adapt", "own", "held-out counts of a cell"),
    Panel("stofm-pretrain", "masked_cells", "vectors of hidden cells"),
    Panel("stimage-pretrain", "masked_sites", "genes of hidden sites"),
    Panel("stalign-pretrain", "niche", "image and genes of niches"),
)
STAGES = tuple(panel.stage for panel in PANELS)
BASELINES = [Baseline("pca"), Baseline("pca-nb3", n_components=20)]
TRAINED = "trained"
UNTRAINED = "untrained"
BASELINE = "baseline"
NICHES = {  # systems to the titles of the vectors that regions are found in
    "stofm": "SToFM, niche block",
    "stimage": "ST as images, niche block",
    "stalign": "ST-Align, niche block",
}
METHODS = {  # title to obsm key
    "SToFM, niche block": "X_stofm_niche",
    "SToFM, own block": "X_stofm_own",
    "SToFM untrained": "X_stofm_untrained",
    "ST as images, niche block": "X_stimage_niche",
    "ST as images, own block": "X_stimage_own",
    "ST as images untrained": "X_stimage_untrained",
    "ST-Align, niche block": "X_stalign_niche",
    "ST-Align, own block": "X_stalign_own",
    "ST-Align untrained": "X_stalign_untrained",
    **{baseline.title: baseline.default_key for baseline in BASELINES},
}
DRAWN = (
    "X_stofm_niche",
    "X_stofm_untrained",
    "X_stimage_niche",
    "X_stalign_niche",
    *(baseline.default_key for baseline in BASELINES),
)
REPORTED = (keys.X_STOFM, keys.X_STIMAGE, keys.X_STALIGN, BASELINES[-1].default_key)


def run(
    out: str | Path,
    *,
    n_cells: int = 700,
    adapt_epochs: int = 4,
    pretrain_epochs: int = 30,
    window_epochs: int = 12,
    align_epochs: int = 8,
    seed: int = 0,
    progress: bool | None = None,
    overwrite: bool = False,
) -> Path:
    """Simulate slices, train on all but one, embed that one, find its regions, and write it with figures and a report.

    Parameters
    ----------
    out
        Folder; ``report.html``, ``demo.h5ad``, ``demo.png``, ``losses.png``, ``demo.md``, ``demo.csv``, a log for each
        stage (``stofm-adapt.csv``, ...) and the trained checkpoints ``stofm/``, ``stimage/`` and ``stalign/`` go there.
    n_cells
        Cells of each simulated slice.
    adapt_epochs, pretrain_epochs, window_epochs, align_epochs
        Passes over the corpus: SToFM's domain adaptation and multi-scale pretraining; windows of ST as images; spots
        of ST-Align.
    seed
        Seed of tissue and weights.
    progress
        Show progress bars; None: in a terminal and in a notebook.
    overwrite
        Replace files of these names that are not of a demo; folders stay in any case.

    Returns
    -------
    The folder.

    Raises
    ------
    OutputError
        The folder cannot be written, or has other files of these names.
    """
    folder = Path(out)
    _check_free(folder, overwrite)
    check_writable(folder)
    n_slices = SLICES + VALIDATION + 1
    bars = Progress(progress)
    with bars.stage("simulate tissue", None):
        *training, adata = simulate.corpus(
            n_slices, n_cells, seed=seed, n_donors=n_slices, image=True, image_px=IMAGE_PX
        )
    n_epochs = (adapt_epochs, pretrain_epochs, window_epochs, align_epochs)
    epochs = dict(zip(STAGES, n_epochs, strict=True))
    notices = Notices()
    with notices.once(), work_folder(folder) as work:
        done = work / "done"
        done.mkdir()
        corpus = build_corpus(work, training, seed, progress)
        models = train(work, epochs, seed, progress)
        for stage in STAGES:
            log = work / stage / logs.LOGS / logs.CSV
            shutil.copyfile(log, done / f"{stage}.csv")
        for system, model in models.items():
            model.save_pretrained(done / system)
        name, other = followed(corpus, training)
        with notices.about(name):
            choice = choose(other, models, bars)
        untrained = untrained_twins(models, corpus, seed)
        with notices.about(SHOWN):
            retrieved = embed_all(adata, models, untrained, progress)
            table = score(adata, bars)
            answer = regions(adata, model=choice.model, bootstraps=0, progress=progress)
        _write(done, answer, table, choice, retrieved, progress)
        _place(done, folder)
    return folder


def embed_all(
    adata: AnnData,
    models: dict[str, FoundationModel],
    untrained: dict[str, FoundationModel],
    progress: bool | None,
) -> dict[str, float]:
    """Embed a slice with all models and baselines; return how often ST-Align finds genes by image."""
    for model in models.values():
        model.embed(adata, progress=progress)
        for name in ("own", "niche"):
            adata.obsm[f"{model.default_key}_{name}"] = block(adata, model.default_key, name)
    retrieved = {
        "trained": found_by_image(adata, models["stalign"]),
        "untrained": found_by_image(adata, untrained["stalign"]),
    }
    for model in untrained.values():
        key = f"{model.default_key}_untrained"
        model.embed(adata, key_added=key, progress=progress)
    for baseline in BASELINES:
        baseline.embed(adata)
    return retrieved


def followed(corpus: Corpus, slices: list[AnnData]) -> tuple[str, AnnData]:
    """Return name and slice that losses were followed on, which no model was trained on and which is not shown."""
    (name,) = corpus.ids("validation")
    return name, slices[int(name.removeprefix(SLICE)) - 1]


def choose(adata: AnnData, models: dict[str, FoundationModel], bars: Progress) -> Choice:
    """Return the trained model or baseline whose domains agree best with the true regions of a slice."""
    candidates: dict[str, Any] = {}
    for system, title in NICHES.items():
        candidates[title] = models[system]
    for baseline in BASELINES:
        candidates[baseline.title] = Baseline(baseline.name, n_components=baseline.n_components)
    scores = {}
    other = adata.copy()
    for title, model in candidates.items():
        model.embed(other)
        use_rep = model.default_key
        if not isinstance(model, Baseline):
            use_rep = f"{use_rep}_niche"
            other.obsm[use_rep] = block(other, model.default_key, "niche")
        with bars.stage(f"choose: {title}", SEEDS, "fits") as advance:
            scores[title] = float(np.mean(agreements(other, use_rep, advance)["ARI"]))
    best = max(scores, key=lambda title: scores[title])
    return Choice(candidates[best], best, scores)


def choice_text(choice: Choice, answer: Answer) -> str:
    """Say what the report opens on, and how that was chosen."""
    kinds = kinds_of(list(choice.scores))
    listed = []
    for title, ari in choice.scores.items():
        listed.append(f"{title} ({kinds[title]}) {ari:.2f}")
    return (
        f"The report opens on {answer.k} regions from {choice.title} ({kinds[choice.title]}). It was chosen on another "
        "slice, the one that losses were followed on, by agreement with its true regions (ARI: "
        f"{'; '.join(listed)}). No label of the slice that is shown was read to find its regions or their number."
    )


def headline(choice: Choice, answer: Answer) -> str:
    """Return what the report begins with."""
    kind = kinds_of([choice.title])[choice.title]
    return (
        f"A simulated slice that no model was trained on: {answer.k} regions from {choice.title} ({kind}), which was "
        "best on another slice. How that was found, and what it does not show, is below the table of labels."
    )


def kinds_of(titles: list[str]) -> dict[str, str]:
    """Return what each row of the table is: trained, untrained, or a baseline."""
    baselines = {baseline.title for baseline in BASELINES}
    kinds = {}
    for title in titles:
        kind = BASELINE if title in baselines else TRAINED
        kinds[title] = UNTRAINED if title.endswith(UNTRAINED) else kind
    return kinds


def _write(
    done: Path,
    answer: Answer,
    table: pd.DataFrame,
    choice: Choice,
    retrieved: dict[str, Any],
    progress: bool | None,
) -> None:
    """Write the slice, its scores, figures and report beside the logs."""
    (adata,) = answer.slices
    write_atomically(adata, done / SHOWN, MARK)
    write_text(done / "demo.csv", table.to_csv(index=False))
    chosen = choice_text(choice, answer)
    parts = [ABOUT, chosen, markdown(table), retrieval_text(retrieved, adata.n_obs)]
    write_text(done / "demo.md", "\n\n".join(parts) + "\n")
    draw(adata, table, done / "demo.png")
    draw_losses(done, done / "losses.png")
    shown = [done / SHOWN, done / "demo.csv"]
    shown += [done / f"{stage}.csv" for stage in STAGES]
    report.write(
        shown,
        done / REPORT,
        title="terrazzo demo",
        about=headline(choice, answer),
        embeddings=REPORTED,
        answer=replace(answer, notes=(ABOUT, chosen, *answer.notes)),
        progress=progress,
    )


def _check_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder in which files of these names are not of an earlier demo."""
    files = [SHOWN, "demo.csv", "demo.md", "demo.png", "losses.png", REPORT]
    files += [f"{stage}.csv" for stage in STAGES]
    before = find_mark(folder / SHOWN)
    is_demo = before is not None and before.is_like(MARK)
    for name in files:
        path = folder / name
        if path.exists() and not path.is_dir() and is_demo:
            continue
        guard(path, MARK, overwrite=overwrite)
    for system in SYSTEMS:
        may_replace = is_demo or overwrite
        check_free(folder / system, overwrite=may_replace, is_replaceable=is_checkpoint)


def _place(done: Path, folder: Path) -> None:
    """Move finished files into the folder, that with the mark first."""
    for name in (SHOWN, *sorted(path.name for path in done.iterdir())):
        source = done / name
        if source.is_dir():
            with whole_folder(folder / name) as draft:
                shutil.copytree(source, draft, dirs_exist_ok=True)
        elif source.exists():
            source.replace(folder / name)


def build_corpus(work: Path, slices: list[AnnData], seed: int, progress: bool | None) -> Corpus:
    """Build a corpus of slices without labels in ``work/corpus``."""
    paths = []
    for number, adata in enumerate(slices):
        bare = adata.copy()
        bare.obs = bare.obs[["donor"]]  # no label gets near the training
        path = work / f"{SLICE}{number + 1}.h5ad"
        bare.write_h5ad(path)
        paths.append(path)
    splits = Splits(by="donor", validation=VALIDATION / len(slices), seed=seed)
    return build(
        paths,
        work / "corpus",
        min_genes=1,
        splits=splits,
        scheduler="synchronous",
        progress=progress,
    )


def train(
    work: Path, epochs: dict[str, int], seed: int, progress: bool | None
) -> dict[str, FoundationModel]:
    """Run each stage into ``work/<stage>``; returns the trained models by system."""
    adapted = ""
    trained: dict[str, Path] = {}
    for stage in STAGES:
        checkpoint = adapted if stage == "stofm-pretrain" else ""
        trained[stage] = pretrain(
            recipe(stage, work, checkpoint, epochs[stage], seed), progress=progress
        )
        adapted = str(trained["stofm-adapt"])
    return {system: load(trained[LAST_STAGE[system]]) for system in SYSTEMS}


def untrained_twins(
    models: dict[str, Any], corpus: Corpus, seed: int
) -> dict[str, FoundationModel]:
    """Return untrained models that differ from the trained ones by their weights, no more."""
    vocabulary = corpus.vocabulary()
    stimage = STImage(models["stimage"].config, vocabulary, seed=seed)
    channels = models["stimage"].module.autocorrelation
    cast(Any, stimage.module.autocorrelation).copy_(channels)
    stalign = STAlign(models["stalign"].config, vocabulary, seed=seed + 1)
    stalign.module.genes.copy_(models["stalign"].module.genes)
    for part in ("image_encoder", "gene_encoder"):
        frozen = getattr(models["stalign"].module, part).state_dict()
        getattr(stalign.module, part).load_state_dict(frozen)
    stofm = SToFM("tiny", vocabulary, seed=seed)
    return {"stofm": stofm, "stimage": stimage, "stalign": stalign}


def recipe(stage: str, work: Path, checkpoint: str, epochs: int, seed: int) -> Recipe:
    """Return the demo's recipe for one stage."""
    of_stage: dict[str, dict[str, Any]] = {
        "stofm-adapt": {
            "model": {"init": "informed"},
            "data": {"batch_cells": 64},
            "objective": {
                "own_weight": 1.0,
                "masked_weight": 0.0,
                "contrastive_weight": 0.0,
                "view": "thinned",
            },
        },
        "stofm-pretrain": {
            "model": {"init": "informed"},
            "data": {"batch_subslices": 2},
            "objective": {"kind": "own+niche", "mask_share": 0.5, "reencode": 0},
        },
        "stimage-pretrain": {
            "model": {
                "init": "informed",
                "windows": {"bin_um": BIN_UM, "channels": 200, "choose": "spatial"},
            },
            "data": {"batch_windows": 4},
            "objective": {"target": "thinned"},
        },
        "stalign-pretrain": {
            "model": {"image_encoder": "random"},  # another needs an extra, and minutes
            "data": {"batch_spots": 128},
            "objective": {"spot_um": CROP_UM, "temperature": 0.2},
        },
    }
    settings = of_stage[stage]
    return recipe_from_dict(
        {
            "stage": stage,
            "corpus": str(work / "corpus"),
            "out": str(work / stage),
            "model": {"preset": "tiny", "checkpoint": checkpoint, **settings["model"]},
            "data": settings["data"],
            "objective": settings["objective"],
            "optim": {"lr": 1e-3, "warmup_steps": 20, "epochs": epochs},
            "run": {"log_every": 5},
            "seed": seed,
        }
    )


def found_by_image(adata: AnnData, model: FoundationModel) -> float:
    """Return how often the genes of a cell are among the 10 of its slice that are most like its histology."""
    vectors = {}
    for modality in ("image", "genes"):
        embedded = model.embed(
            adata.copy(), modality=modality, scale="niche", shared=True, progress=False
        )
        vectors[modality] = embedded.obsm[keys.X_STALIGN]
    return recall(vectors["image"], vectors["genes"], [FOUND_AMONG])[FOUND_AMONG]


def retrieval_text(found: dict[str, float], n_cells: int) -> str:
    """Say what ST-Align finds by image."""
    return (
        f"By the histology around a cell ST-Align has the right genes among its {FOUND_AMONG} first of {n_cells} in "
        f"{found['trained']:.1%} of all cells, untrained in {found['untrained']:.1%}; "
        f"chance is {FOUND_AMONG / n_cells:.1%}."
    )


def score(adata: AnnData, bars: Progress) -> pd.DataFrame:
    """Find domains over several seeds and compare them with the true regions; keep the first seed's in ``obs``."""
    kinds = kinds_of(list(METHODS))
    rows = []
    for title, key in METHODS.items():
        with bars.stage(f"domains of {title}", SEEDS, "fits") as advance:
            spread = agreements(adata, key, advance).agg(["mean", "std"]).round(3) + 0.0  # -0 is 0
        row: dict[str, Any] = {"embedding": title, "kind": kinds[title]}
        for metric in ("ARI", "NMI"):
            row[metric] = spread.loc["mean", metric]
            row[f"{metric} sd"] = spread.loc["std", metric]
        row["seeds"] = SEEDS
        rows.append(row)
    return pd.DataFrame(rows)


def agreements(adata: AnnData, use_rep: str, advance: Any) -> pd.DataFrame:
    """Return ARI and NMI of domains with the true regions, a row for each seed; the first seed's stay in ``obs``."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    truth = adata.obs["region"]
    rows = []
    for seed in reversed(range(SEEDS)):
        domains(adata, use_rep=use_rep, n_domains=truth.nunique(), seed=seed, progress=False)
        labels = adata.obs[keys.domain_key(use_rep)]
        ari = adjusted_rand_score(truth, labels)
        nmi = normalized_mutual_info_score(truth, labels)
        rows.append({"ARI": ari, "NMI": nmi})
        advance(1)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Render a small table."""
    lines = ["| " + " | ".join(map(str, table)) + " |", "|" + "---|" * table.shape[1]]
    for row in table.itertuples(index=False):
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def draw(adata: AnnData, table: pd.DataFrame, path: Path) -> Path:
    """Draw truth and domains side by side."""
    import matplotlib.pyplot as plt

    shown = {title: key for title, key in METHODS.items() if key in DRAWN}
    n_columns = -(-(len(shown) + 1) // 2)
    figure, grid = plt.subplots(2, n_columns, figsize=(4.2 * n_columns, 7.6), layout="constrained")
    first, *axes = grid.ravel()
    for ax in axes[len(shown) :]:
        ax.remove()
    plot.spatial(adata, color="region", ax=first, title="true regions (simulated)")
    ari = table.set_index("embedding")["ARI"]
    kinds = table.set_index("embedding")["kind"]
    for ax, (title, key) in zip(axes, shown.items(), strict=False):
        label = f"{title}: ARI {ari[title]}"
        if kinds[title] == BASELINE:
            label = f"{BASELINE}: {label}"
        plot.spatial(adata, color=keys.domain_key(key), ax=ax, title=label, legend=False)
    return plot.save(figure, path)


def draw_losses(folder: Path, path: Path) -> Path:
    """Draw the losses of all stages, and on the slice held out for validation what trivial answers cost."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(20, 4), layout="constrained")
    for ax, panel in zip(axes, PANELS, strict=True):
        log = pd.read_csv(folder / f"{panel.stage}.csv")
        _draw_loss(ax, panel, log)
        ax.set(title=f"{panel.stage}: {panel.title}", xlabel="step", ylabel="loss")
        ax.legend(frameon=False)
    return plot.save(figure, path)


def _draw_loss(ax: Any, panel: Panel, log: pd.DataFrame) -> None:
    train_name = f"train/{panel.loss}"
    held_out_name = f"val/{panel.loss}"
    lines = {train_name: ("training", "C0"), held_out_name: ("held out", "C1")}
    for name in log:
        if name not in lines and not name.startswith(held_out_name):
            continue
        if "recall" in name:
            continue
        values = log[["step", name]].dropna()
        if name in lines:
            label, color = lines[
                name
            ]  # a color of its own: the order of the columns differs between the logs
            ax.plot(values["step"], values[name], marker=".", label=label, color=color)
            continue
        last = values[name].iloc[-1]
        ax.axhline(last, color="0.6", linewidth=0.8, linestyle="--")
        words = name.removeprefix(f"{held_out_name}_").replace("_", " ")
        ax.annotate(
            words,
            (values["step"].max(), last),
            ha="right",
            va="bottom",
            fontsize="x-small",
            color="0.4",
        )
