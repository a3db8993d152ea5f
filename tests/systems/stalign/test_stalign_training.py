"""ST-Align in training: what is read of a spot, what is contrasted, what is left out and said, what is logged."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import terrazzo as tz
from terrazzo.corpus.loader import Shard
from terrazzo.corpus.store import Corpus
from terrazzo.errors import ConfigError, CorpusError
from terrazzo.systems.stalign.loader import FeatureStore, StoredRows
from terrazzo.systems.stalign.recipe import SpotData, STAlignRecipe, STAlignSource
from terrazzo.systems.stalign.stages import Pretrain, turned
from terrazzo.training.logs import read
from terrazzo.training.recipe import OptimConfig
from terrazzo.training.run import make_stage

SHORT = {"accumulate": 1, "epochs": 1, "max_steps": 2}


@pytest.fixture
def short(recipe: Any, histology_folder: Path) -> Callable[..., STAlignRecipe]:
    """Make a short recipe on slices with histology."""

    def make(out: str = "run", **sections: Any) -> STAlignRecipe:
        made = recipe("stalign-pretrain", out, corpus=str(histology_folder), **sections)
        assert isinstance(made, STAlignRecipe)
        return made

    return make


@pytest.fixture
def opened(short: Any) -> Callable[..., Pretrain]:
    """Return a function that makes a stage; keywords change the sections of its recipe."""

    def make(**sections: Any) -> Pretrain:
        stage = make_stage(short(**sections), progress=False)
        assert isinstance(stage, Pretrain)
        return stage

    return make


@pytest.fixture
def objective(opened: Any) -> Callable[..., Any]:
    """Return a function that makes an objective in evaluation mode, and a batch."""

    def make(**settings: Any) -> Any:
        stage = opened(objective=settings)
        return stage.objective().eval(), next(iter(stage.loader("train")))

    return make


def by_hand(image: torch.Tensor, genes: torch.Tensor, tau: float = 0.07) -> torch.Tensor:
    scores = F.normalize(image, dim=1) @ F.normalize(genes, dim=1).T / tau
    return torch.stack([scores[i].logsumexp(0) - scores[i, i] for i in range(len(scores))]).mean()


# ---- what is read


def test_slices_without_histology_are_left_out_and_logged(
    opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stage = opened()
    with caplog.at_level(logging.WARNING, "terrazzo"):
        stage.prepare()
    logged = [record.getMessage() for record in caplog.records]
    assert "the frozen image encoder has random weights" in logged.pop(0)
    assert logged == ["s3 has no histology in the corpus and is left out of the split 'train'."]
    assert stage.corpus.ids("train") == ["s0", "s1", "s2", "s3"]
    seen = [name for batch in stage.loader("train") for name in batch.ids]
    assert set(seen) == {"s0", "s1", "s2"}
    assert len(seen) == 180 // 24 * 24
    held_out = stage.loader("validation")
    assert [name for batch in held_out for name in batch.ids] == ["s4"] * 60


def test_genes_alone_need_no_histology(opened: Any) -> None:
    stage = opened(objective={"modality": "genes"})
    model, batches = stage.model, list(stage.loader("train"))
    assert {name for batch in batches for name in batch.ids} == {"s0", "s1", "s2", "s3"}
    assert batches[0].spots.spot_image is None
    assert np.isin(model.genes, model.vocabulary.token).all()


def test_a_corpus_without_histology_says_what_it_needs(stage_of: Any) -> None:
    stage = stage_of("stalign-pretrain")
    with pytest.raises(
        CorpusError, match=r"none of the 3 slices of the split 'train' has histology: .*image_scale"
    ):
        stage.initial_model()


def test_spots_are_read_as_embed_reads_them(opened: Any) -> None:
    stage = opened(objective={"augment": False})
    model = stage.model
    pack = next(iter(stage.loader("train")))
    tissues = {name: stage.corpus.slice(name) for name in sorted(set(pack.ids))}
    read_alone = {n: model.reader(t, model.vocabulary.match(t)).read() for n, t in tissues.items()}
    for name, features in read_alone.items():
        rows = np.flatnonzero(np.array(pack.ids) == name)
        first = 60 * ["s0", "s1", "s2"].index(name)
        wanted = features.take(pack.spots.spots[rows].numpy() - first, first)
        for field in dataclasses.fields(wanted):
            ours, theirs = getattr(pack.spots, field.name)[rows], getattr(wanted, field.name)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=field.name)
    assert pack.to("cpu").ids == pack.ids


def test_features_are_made_once(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = opened()
    stage.prepare()
    folder = stage.cache_folder / "features"
    files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(files) >= 4 * 6
    monkeypatch.setattr(FeatureStore, "_aligned", lambda *a: pytest.fail("a slice was cut again"))
    opened().prepare()
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == files


def test_stored_rows_are_open_only_while_they_are_read(tmp_path: Path) -> None:
    import psutil

    values = np.arange(60, dtype=np.float32).reshape(12, 5)
    np.save(tmp_path / "a.npy", values)
    rows = StoredRows(np.load(tmp_path / "a.npy", mmap_mode="r"))
    assert np.array_equal(rows[[3, 1]], values[[3, 1]])
    assert len(rows) == 12
    assert str(tmp_path / "a.npy") not in {m.path for m in psutil.Process().memory_maps()}


def test_crops_are_turned_spot_by_spot(opened: Any) -> None:
    crops = torch.arange(8 * 3 * 3 * 1).view(8, 3, 3, 1)
    crops = crops[:1].expand(8, 3, 3, 1)
    out = turned(crops, torch.arange(8))
    assert torch.equal(out[0], crops[0])
    assert len({tuple(one.flatten().tolist()) for one in out}) == 8
    assert all(sorted(one.flatten().tolist()) == list(range(9)) for one in out)
    plain = list(opened(objective={"augment": False}).loader("train"))
    first = list(opened().loader("train"))
    same = [
        torch.equal(a, b)
        for p, q in zip(first, plain, strict=True)
        for a, b in zip(p.spots.spot_image, q.spots.spot_image, strict=True)
    ]
    assert 0.05 < np.mean(same) < 0.25  # one in eight stays
    halved = opened(data={"batch_spots": 12})
    for rank in range(2):  # the same turn whoever reads it
        part = next(iter(halved.loader("train", Shard(rank, 2))))
        at = [first[0].spots.spots.tolist().index(n) for n in part.spots.spots.tolist()]
        assert torch.equal(part.spots.spot_image, first[0].spots.spot_image[at])


# ---- what is contrasted


def test_the_loss_is_that_of_the_paper(objective: Any) -> None:
    made, pack = objective(residual=False)
    net, b = made.net, pack.spots
    r, e = net.spot_image(b.spot_image, b.colors), net.niche_image(b.niche_image)
    u, t = net.spot_genes(b.spot_genes), net.niche_genes(b.niche_genes, b.known)
    spot = (by_hand(r, u) + by_hand(u, r)) / 2
    niche = (by_hand(e, t) + by_hand(t, e)) / 2
    cross = by_hand(net.fuse("spot", r, u), net.fuse("niche", e, t))
    parts = made.losses(pack)
    for name, wanted in {"spot": spot, "niche": niche, "spot_niche": cross}.items():
        torch.testing.assert_close(parts[name], wanted)
        assert float(parts[f"{name}_chance"]) == pytest.approx(math.log(24))
    torch.testing.assert_close(parts["loss"], 0.4 * spot + 0.3 * niche + 0.3 * cross)
    assert set(made.train().losses(pack)) == {"loss", "spot", "niche", "spot_niche"}


def test_both_ways_and_another_temperature(objective: Any) -> None:
    made, pack = objective(symmetric=True, temperature=0.2, residual=False)
    found = made.vectors(pack.spots)
    own, around = (
        made.net.fuse(s, found[s]["image"], found[s]["genes"]) for s in ("spot", "niche")
    )
    wanted = (by_hand(own, around, 0.2) + by_hand(around, own, 0.2)) / 2
    torch.testing.assert_close(made.losses(pack)["spot_niche"], wanted)


def test_neighbors_may_be_no_negatives(objective: Any) -> None:
    made, pack = objective(exclude_neighbors=True)
    niches = [set(row) - {-1} for row in pack.spots.niches.tolist()]
    numbers = pack.spots.spots.tolist()
    candidates = [
        sum(i == j or not (numbers[j] in niches[i] or numbers[i] in niches[j]) for j in range(24))
        for i in range(24)
    ]
    chance = float(made.losses(pack)["spot_chance"])
    assert chance == pytest.approx(np.mean(np.log(candidates)))
    assert chance < math.log(24)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"cross_weight": 0.0}, {"spot", "niche"}),
        ({"spot_weight": 0.0}, {"niche", "spot_niche"}),
        ({"modality": "image"}, {"spot_niche"}),
        ({"modality": "genes"}, {"spot_niche"}),
    ],
)
def test_what_has_no_weight_is_not_computed(
    objective: Any, settings: dict[str, Any], parts: set[str]
) -> None:
    made, pack = objective(residual=False, **settings)
    found = made.losses(pack)
    assert {name for name in found if not name.endswith("_chance")} == {"loss", *parts}
    found["loss"].backward()
    assert torch.isfinite(found["loss"])
    grads = {
        n.split(".")[0]
        for n, p in made.net.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    images, genes = {"ae_image", "niche_image_map"}, {"ae_genes", "spot_gene_map"}
    if settings.get("modality") == "image":
        assert grads == images
    elif settings.get("modality") == "genes":
        assert grads == genes
    else:
        assert ("fusion" in grads) == ("spot_niche" in parts)
        assert grads >= images | genes


def test_frozen_parts_get_no_gradient_and_the_temperature_no_decay(objective: Any) -> None:
    made, pack = objective(learn_temperature=True)
    made.losses(pack)["loss"].backward()
    module = made.model.module
    frozen = [*module.image_encoder.parameters(), *module.gene_encoder.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    assert made.net.log_temperature.grad is not None
    made.__dict__["_trainer"] = type(
        "T", (), {"estimated_stepping_batches": 10, "global_step": 9}
    )()
    groups = made.configure_optimizers()["optimizer"].param_groups
    assert [len(g["params"]) for g in groups][-1] == 1
    assert [g["weight_decay"] for g in groups] == [0.01, 0.0]


# ---- where it starts


def test_genes_and_components_are_those_of_training_slices(opened: Any) -> None:
    stage = opened()
    corpus, model = stage.corpus, stage.model
    wanted = tz.STAlign(model.config, corpus.vocabulary(), seed=0).fit(
        [corpus.slice(f"s{i}") for i in range(3)]
    )
    assert np.array_equal(model.genes, wanted.genes)
    assert torch.equal(model.module.gene_encoder.loadings, wanted.module.gene_encoder.loadings)
    assert float(model.module.gene_encoder.loadings.abs().sum()) > 0


def test_impossible_starts_are_refused(opened: Any, tmp_path: Path) -> None:
    model = opened(objective={"neighbors": 4}).model
    own = str(model.save_pretrained(tmp_path / "own"))
    foreign = tz.STImage("tiny", model.vocabulary)
    other = str(foreign.save_pretrained(tmp_path / "other"))
    for source, says in (
        ({"checkpoint": other}, "starts from ST-Align"),
        ({"gene_encoder": other}, "encodes no single cell"),
        ({"checkpoint": own}, "was made with neighbors 4: set the same"),
        ({"checkpoint": own, "gene_encoder": own}, "brings its frozen encoders"),
    ):
        with pytest.raises(ConfigError, match=says):
            opened(model=source).initial_model()
    again = opened(
        model={"checkpoint": own}, objective={"neighbors": 4, "temperature": 0.1}
    ).initial_model()
    assert torch.equal(
        again.module.net.fusion.out_image.weight, model.module.net.fusion.out_image.weight
    )
    assert float(again.module.net.temperature) == pytest.approx(0.1)


def test_means_of_training_slices_where_the_paper_has_them(opened: Any) -> None:
    stage = opened(objective={"flavor": "paper"})
    corpus, model = stage.corpus, stage.model
    stage.start(stage.objective())
    rows = np.concatenate(
        [
            model.reader(t, model.vocabulary.match(t)).read().niche_image[:]
            for t in (corpus.slice(f"s{i}") for i in range(3))
        ]
    )
    net = model.module.net
    np.testing.assert_allclose(net.niche_image_map.mean, rows.mean(axis=0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        net.niche_image_map.deviation, rows.std(axis=0), rtol=1e-2, atol=1e-4
    )
    assert next(iter(stage.loader("train"))).spots.colors is None


# ---- runs


ABLATIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "without adaptive encoders": {"adaptive": False},
    "concatenation": {"fusion": "concatenation"},
    "nothing kept": {"residual": False, "components": "whitened"},
    "without an anchor": {"anchor_weight": 0.0},
    "without the spot-niche loss": {"cross_weight": 0.0},
    "image alone": {"modality": "image"},
    "genes alone": {"modality": "genes"},
    "as published": {"flavor": "paper", "genes": "variance"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ABLATIONS))
def test_every_ablation_trains_and_leaves_a_model(short: Any, name: str) -> None:
    config = short(objective=ABLATIONS[name], optim=SHORT)
    model = tz.load(tz.pretrain(config, progress=False))
    assert isinstance(model, tz.STAlign)
    assert model.provenance["steps"] == 2
    modality = config.objective.modality
    assert model.provenance["train slices"] == (4 if modality == "genes" else 3)
    assert f"modality {modality}" in model.provenance["objective"]
    adata = tz.simulate.tissue(40, layout="visium", n_genes=50, image=True, image_px=200, seed=9)
    vectors = model.embed(adata, modality=modality, progress=False).obsm["X_stalign"]
    assert np.isfinite(vectors).all()
    assert vectors.std() > 0
    rows = read(Path(config.out) / "logs" / "metrics.csv")
    logged = {name for row in rows for name, value in row.items() if value}
    assert {"train/loss", "val/loss"} <= logged
    assert ("val/spot_niche" in logged) == (config.objective.cross_weight > 0)
    assert (
        ("val/spot_recall_10" in logged)
        == ("val/niche_recall_10_chance" in logged)
        == (modality == "both")
    )
    assert np.isfinite([float(v) for row in rows for v in row.values() if v]).all()


@pytest.mark.slow
def test_encoders_from_folders(
    short: Any, histology_folder: Path, tmp_path: Path, tiny_model: Any
) -> None:
    from transformers import ViTConfig, ViTModel

    vit = ViTModel(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=16,
        )
    )
    vit.save_pretrained(tmp_path / "vit")
    cells = tz.SToFM(tiny_model().config, Corpus.open(histology_folder).vocabulary(), seed=4)
    cells.save_pretrained(tmp_path / "cells")
    given = {"image_encoder": str(tmp_path / "vit"), "gene_encoder": str(tmp_path / "cells")}
    config = short(model=given, optim=SHORT)
    model = tz.load(tz.pretrain(config, progress=False))
    assert (model.provenance["image encoder"], model.provenance["gene encoder"]) == ("vit", "cells")
    frozen = model.module.image_encoder.backbone.state_dict()
    assert all(torch.equal(frozen[name], value) for name, value in vit.state_dict().items())
    frozen = model.module.gene_encoder.encoder.state_dict()
    own = cells.module.cell_encoder.state_dict()
    assert all(torch.equal(frozen[name], value) for name, value in own.items())
    (tmp_path / "vit").rename(tmp_path / "moved")  # a checkpoint brings its encoders
    trained = {"checkpoint": str(Path(config.out) / "model")}
    again = short("again", model=trained, optim=SHORT)
    assert tz.load(tz.pretrain(again, progress=False)).provenance["image encoder"] == "vit"


@pytest.mark.slow
def test_retrieval_is_learned(tmp_path: Path) -> None:
    """The genes of a spot of a slice that was never seen are found by its image, far more often than by chance."""
    import pandas as pd

    from terrazzo.tasks.retrieval import recall

    *training, held_out = tz.simulate.corpus(
        5, 250, layout="visium", n_genes=150, seed=0, image=True, image_px=900
    )
    for i, adata in enumerate(training):
        adata.obs = adata.obs[["array_row", "array_col"]]  # no label gets near the training
        adata.write_h5ad(tmp_path / f"{i}.h5ad")
    rows = [{"path": f"{i}.h5ad", "split": "train"} for i in range(len(training))]
    pd.DataFrame(rows).to_csv(tmp_path / "slices.csv", index=False)
    tz.build_corpus(
        tmp_path / "slices.csv",
        tmp_path / "corpus",
        min_genes=1,
        scheduler="synchronous",
        progress=False,
    )
    recipe = STAlignRecipe(
        corpus=str(tmp_path / "corpus"),
        out=str(tmp_path / "run"),
        model=STAlignSource(preset="tiny", image_encoder="random"),
        data=SpotData(batch_spots=64),
        optim=OptimConfig(
            lr=2e-3,
            warmup_steps=10,
            schedule="cosine",
            epochs=1000,
            max_steps=80,
            weight_decay=0.04,
            weight_decay_end=0.4,
        ),
    )
    trained = tz.load(tz.pretrain(recipe, progress=False))
    assert isinstance(trained, tz.STAlign)
    untrained = tz.STAlign(trained.config, trained.vocabulary, seed=3)
    untrained.module.genes.copy_(trained.module.genes)
    untrained.module.gene_encoder.load_state_dict(
        trained.module.gene_encoder.state_dict()
    )  # weights differ, no more
    found = {}
    for name, model in (("trained", trained), ("untrained", untrained)):
        for scale in ("spot", "niche"):
            one, two = (
                model.embed(
                    held_out.copy(), modality=m, scale=scale, shared=True, progress=False
                ).obsm["X_stalign"]
                for m in ("image", "genes")
            )
            found[name, scale] = recall(one, two, [10])[10]
    chance = 10 / held_out.n_obs
    for scale in ("spot", "niche"):
        assert found["trained", scale] > 3 * chance, found
        assert found["trained", scale] > 2 * found["untrained", scale], found
