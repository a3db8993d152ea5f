"""What ST-Align keeps of its inputs: the start is the frozen components, and an anchor keeps training near it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import terrazzo as tz
from terrazzo.errors import ConfigError
from terrazzo.systems.stalign.config import preset
from terrazzo.systems.stalign.image_encoder import SpotEncoderConfig
from terrazzo.systems.stalign.kept import Components
from terrazzo.systems.stalign.kept_start import correlated_maps
from terrazzo.systems.stalign.network import AlignConfig, AlignNet
from terrazzo.systems.stalign.recipe import STAlignRecipe
from terrazzo.systems.stalign.start import Moments
from terrazzo.systems.stalign.value_encoder import ValueEncoderConfig
from terrazzo.training.run import make_stage

Make = Callable[..., Any]


@pytest.fixture
def started(recipe: Any, histology_folder: Path) -> Make:
    """Return a function that makes a stage and its objective, started on the training slices."""

    def make(out: str = "run", steps: int = 3, **settings: Any) -> Any:
        made = recipe(
            "stalign-pretrain",
            out,
            corpus=str(histology_folder),
            objective=settings,
            optim={"accumulate": 1, "epochs": 1, "max_steps": steps, "lr": 1e-3},
        )
        assert isinstance(made, STAlignRecipe)
        stage = make_stage(made, progress=False)
        objective = stage.objective_class(stage.model, made)
        stage.start(objective)
        return stage, objective.eval()

    return make


def components(model: Any, tissue: Any, name: str) -> np.ndarray:
    """Return the frozen components of a slice, of mean norm one."""
    match = model.vocabulary.match(tissue)
    vectors = model.module.gene_encoder.encode(tissue.counts, match)
    if name == "niche":
        reader = model.reader(tissue, match, modality="genes")
        vectors = reader.aligned.niches.mean(vectors)
        vectors = vectors - vectors.mean(axis=0)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1).mean())


def test_before_training_the_gene_vectors_are_the_frozen_components(started: Make) -> None:
    stage, _ = started()
    model = stage.model
    tissue = stage.corpus.slice("s4")
    features = model.reader(tissue, model.vocabulary.match(tissue), modality="genes").read("genes")
    blocks = model.vectors(features, "genes")
    for name in ("own", "niche"):
        vectors = blocks[name] / np.linalg.norm(blocks[name], axis=1).mean()
        wanted = components(model, tissue, name)
        np.testing.assert_allclose(vectors[:, : wanted.shape[1]], wanted, atol=1e-5)
        assert not vectors[:, wanted.shape[1] :].any()
    assert len(set(np.round(blocks["own"].std(axis=0)[:5], 6))) == 5  # not whitened


@pytest.mark.parametrize("fusion", ["attention", "concatenation"])
def test_a_vector_of_both_is_its_sides(started: Make, fusion: str) -> None:
    stage, _ = started(fusion=fusion)
    model = stage.model
    tissue = stage.corpus.slice("s4")
    features = model.reader(tissue, model.vocabulary.match(tissue)).read()
    both = model.vectors(features)
    image = model.vectors(features, "image")
    genes = model.vectors(features, "genes")
    for name in ("own", "niche"):
        sides = np.concatenate([image[name], genes[name]], axis=1)
        np.testing.assert_allclose(both[name], sides, atol=1e-6)


def test_the_contrast_starts_below_chance(started: Make) -> None:
    stage, objective = started()
    pack = next(iter(stage.loader("train")))
    with torch.no_grad():
        parts = objective.losses(pack)
    assert float(parts["spot_niche"]) < 0.9 * float(parts["spot_niche_chance"])
    assert float(parts["niche"]) < float(parts["niche_chance"])
    assert float(parts["anchor"]) == pytest.approx(0, abs=1e-10)


def test_the_anchor_keeps_vectors_near_their_start(started: Make) -> None:
    moved = {}
    for weight in (0.0, 100.0):
        stage, objective = started(f"run{weight:g}", anchor_weight=weight)
        optimizer = torch.optim.AdamW(objective.net.parameters(), lr=3e-3)
        pack = next(iter(stage.loader("train")))
        for _ in range(5):
            optimizer.zero_grad()
            objective.losses(pack)["loss"].backward()
            optimizer.step()
        with torch.no_grad():
            vectors = objective.vectors(pack.spots)
            difference = objective.moved(vectors, pack.spots)
        moved[weight] = float(difference)
    assert 0 < moved[100.0] < 0.5 * moved[0.0]


def test_shared_vectors_are_those_of_the_contrast(started: Make, histology: Make) -> None:
    stage, objective = started()
    model = stage.model
    tissue = stage.corpus.slice("s4")
    features = model.reader(tissue, model.vocabulary.match(tissue)).read()
    batch = features.take(np.arange(len(features)))
    pair = objective.vectors(batch)["niche"]
    image, genes = objective.net.shared("niche", pair["image"], pair["genes"])
    for modality, wanted in (("image", image), ("genes", genes)):
        shared = model.vectors(features, modality, shared=True)["niche"]
        np.testing.assert_allclose(shared, wanted.detach().numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match="of one modality"):
        model.embed(histology(60, 50), shared=True, progress=False)


def test_a_started_checkpoint_comes_back(started: Make, tmp_path: Path) -> None:
    stage, _ = started()
    model = stage.model
    again = tz.load(model.save_pretrained(tmp_path / "model"))
    assert again.config == model.config
    assert again.config.net.residual
    assert again.config.components == "kept"
    for (name, one), other in zip(
        model.module.state_dict().items(), again.module.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_the_paper_flavor_keeps_nothing() -> None:
    config = preset("tiny", 100, flavor="paper")
    assert not config.net.residual
    assert config.components == "whitened"
    assert config.net.fused_dim == config.net.dim
    net = AlignNet(config.net)
    assert not [name for name in net.state_dict() if name.startswith(("kept", "heads"))]
    assert float(net.ae_genes.out.weight.detach().abs().max()) > 0


def test_the_ablations_are_settings() -> None:
    whole = preset("tiny", 100)
    assert whole.net.residual
    assert whole.components == "kept"
    assert not preset("tiny", 100, residual=False).net.residual
    assert preset("tiny", 100, components="whitened").components == "whitened"
    fixed = preset("tiny", 100, adaptive=False)
    assert not fixed.net.residual
    with pytest.raises(ConfigError, match="no residual"):
        replace(fixed.net, residual=True)
    with pytest.raises(ConfigError, match="niche_um"):
        replace(whole, net=replace(whole.net, own_first=True))


def test_a_residual_beside_squares_around_each_spot() -> None:
    """The first half of the frozen feature is kept beside AE-Img, the second for the niche."""
    values = ValueEncoderConfig(8, 2, width=8, num_layers=1, num_heads=2, ffn_size=8, output_dim=6)
    image = SpotEncoderConfig("tiny", 6)
    config = AlignConfig(6, 8, 4, values, image, spot_side=0, residual=True, own_first=True)
    net = AlignNet(config).eval()
    frozen = torch.randn(3, 8)
    crops = torch.zeros(3, 16, 16, 3, dtype=torch.uint8)
    net.kept["spot_image"].fit(torch.eye(4), 1.0)
    net.kept["niche_image"].fit(torch.eye(4), 0.5)
    with torch.no_grad():
        own = net.spot_image(crops, None, frozen)
        around = net.niche_image(frozen)
    torch.testing.assert_close(own[:, :4], frozen[:, :4])
    torch.testing.assert_close(around[:, :4], frozen[:, 4:] / 2)
    assert not own[:, 4:].any()
    with pytest.raises(ConfigError, match="were not read"):
        net.spot_image(crops)


def test_wide_features_become_components() -> None:
    kept = Components(200, 64)
    assert kept.loadings.shape == (200, 50)
    assert kept(torch.randn(3, 200)).shape == (3, 64)
    assert not kept(torch.randn(3, 200))[:, 50:].any()


def test_maps_of_correlated_sides_find_what_they_share() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2000, 2))
    first = np.c_[hidden, rng.normal(size=(2000, 2))]
    second = np.c_[rng.normal(size=(2000, 2)), hidden @ np.array([[0.6, 0.8], [-0.8, 0.6]])]
    moments = Moments(8, products=True)
    moments.add(np.c_[first, second])
    one, other = correlated_maps(moments, 4)
    found = np.corrcoef((first @ one)[:, :2].T, (second @ other)[:, :2].T)
    assert np.diag(found[:2, 2:]).min() > 0.95
    assert np.abs(first @ one)[:, 2:].mean() < 0.3 * np.abs(first @ one)[:, :2].mean()
