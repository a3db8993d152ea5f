"""Starting weights and reference answers that come from the training slices."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from terrazzo.corpus.genes import member_match
from terrazzo.corpus.store import Corpus
from terrazzo.systems.stofm import warm_start
from terrazzo.systems.stofm.cell_encoder import CellEncoder
from terrazzo.systems.stofm.config import preset
from terrazzo.systems.stofm.model import SToFM, pair_tensors
from terrazzo.systems.stofm.pair_bias import GaussianBias
from terrazzo.systems.stofm.se2 import SE2Config, SE2Transformer
from terrazzo.systems.stofm.statistics import (
    composition,
    fit_references,
    gene_loadings,
    head_radii,
    sample_tokens,
    with_constant,
)
from terrazzo.systems.stofm.subslices import SubSliceConfig, iterate
from terrazzo.systems.stofm.tokens import rank_tokens
from terrazzo.systems.stofm.warm_start import (
    center,
    set_attention_radii,
    start_as_components,
    start_as_neighbor_means,
)


@pytest.fixture(scope="module")
def corpus(corpus_folder: Path) -> Corpus:
    return Corpus.open(corpus_folder)


@pytest.fixture(scope="module")
def started() -> dict[str, Any]:
    """Models of the short recipe by their start, made once."""
    return {}


@pytest.fixture
def stage_from(stage_of: Any, started: dict[str, Any]) -> Callable[[str], Any]:
    """Return a function that makes the stage of a short recipe with a model of its own, by how it starts."""

    def make(init: str) -> Any:
        stage = stage_of(model={"init": init})
        if init not in started:
            started[init] = stage.initial_model()
        stage.model = copy.deepcopy(started[init])
        return stage

    return make


def test_composition_is_the_mean_of_the_slice(corpus: Corpus) -> None:
    vocabulary, name = corpus.vocabulary(), corpus.ids("train")[0]
    token = member_match(corpus, vocabulary)(name)[0].copy()
    token[:3] = -1  # three genes that the vocabulary lacks
    base = composition(corpus, name, token, vocabulary.n_tokens)
    counts = np.asarray(corpus.rows(name, 0, 64).sum(axis=0)).ravel()
    assert set(np.flatnonzero(np.isfinite(base))) == set(token[3:])
    assert np.exp(base).sum() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(np.exp(base[token[3:]]), counts[3:] / counts[3:].sum(), atol=1e-3)


def test_loadings_are_those_of_a_plain_svd(corpus: Corpus) -> None:
    vocabulary = corpus.vocabulary()
    match, n = member_match(corpus, vocabulary), vocabulary.n_tokens
    found = gene_loadings(
        corpus, corpus.ids("train"), match, n_tokens=n, max_length=129, components=5, seed=0
    )
    bags, inside = [], []
    for name in corpus.ids("train"):
        tokens = rank_tokens(corpus.rows(name, 0, 64), *match(name), 129)
        bag = np.zeros((64, n))
        for cell in range(64):
            some = tokens.flat[tokens.offsets[cell] : tokens.offsets[cell + 1]]
            bag[cell, some] = 1 / np.sqrt(1.0 + np.arange(len(some)))
        bags.append(bag)
        inside.append(bag - bag.mean(axis=0))
    sd = np.concatenate(inside).std(axis=0)
    scale = np.where(sd > 0, 1 / np.maximum(sd, 0.01), 0)
    _, _, right = np.linalg.svd(np.concatenate(inside) * scale, full_matrices=False)
    for component in range(5):
        plain = right[component] * scale
        cosine = (
            plain
            @ found[:, component]
            / np.linalg.norm(plain)
            / np.linalg.norm(found[:, component])
        )
        assert abs(cosine) == pytest.approx(1, abs=1e-4)
    again = gene_loadings(
        corpus, corpus.ids("train"), match, n_tokens=n, max_length=129, components=5, seed=0
    )
    np.testing.assert_array_equal(again, found)


def test_an_informed_start_is_a_model_like_any_other(stage_from: Any) -> None:
    informed, plain = stage_from("informed").model, stage_from("random").model
    assert informed.config == plain.config
    assert all(torch.isfinite(p).all() for p in informed.module.parameters())
    assert informed.fingerprint() != plain.fingerprint()
    # wherever in memory its arrays come to lie: every process must find the same vectors
    in_the_way = []
    for size in (1, 4, 7):
        in_the_way.append(np.ones(37 * size, np.int8))
        again = stage_from("informed").initial_model()
        assert informed.fingerprint() == again.fingerprint()


def test_heads_look_near() -> None:
    torch.manual_seed(0)
    bias, radii = GaussianBias(32, 4), np.array([0.5, 2.0, 6.0])
    set_attention_radii(bias, radii)
    with torch.no_grad():
        found = bias(torch.tensor([0.5, 1.0, 3.0, 10.0, 50.0]))
    wanted = -np.minimum(np.array([0.5, 1.0, 3.0, 10.0, 50.0])[:, None] / radii, 10)
    np.testing.assert_allclose(found[:, :3], wanted, atol=1.5)
    np.testing.assert_allclose(found[:, 3], 0, atol=0.5)  # the last head looks anywhere


def test_radii_span_the_spacings(corpus: Corpus, recipe: Any) -> None:
    radii = head_radii(corpus, corpus.ids("train"), recipe().model.subslices, 5)
    spacing = corpus.manifest.set_index("id").loc[corpus.ids("train")]["spacing"].to_numpy() / 20
    assert len(radii) == 4
    assert radii[0] < spacing.min()
    assert radii[-1] == pytest.approx(6 * spacing.max())


def test_ridge_beats_the_neighbor_mean_where_it_is_fitted(stage_of: Any) -> None:
    stage = stage_of(data={"batch_subslices": 12}, objective={"mask_share": 0.3})
    stage.prepare()
    batches = list(stage.loader("train"))
    found = fit_references(batches)
    weights = found.ridge
    assert torch.equal(stage.references().ridge, weights)
    torch.testing.assert_close(
        found.mean_cell, torch.cat([b.features[b.predicted] for b in batches]).mean(0)
    )
    true = torch.cat([d.flatten() for b in batches for d in b.true_distance])
    assert found.mean_distance == pytest.approx(float(true.mean()) if len(true) else 0.0, rel=1e-5)
    target = torch.cat([b.features[b.predicted] for b in batches])
    guessed = torch.cat([with_constant(b.rings) @ weights for b in batches])
    mean = torch.cat([b.neighbor_mean for b in batches])
    assert (guessed - target).square().sum() < (mean - target).square().sum()


def test_the_encoder_starts_as_component_scores(corpus: Corpus) -> None:
    """Before any training a cell's vector is the mean of its genes' loadings, weighted by rank, of unit length."""
    vocabulary, ids = corpus.vocabulary(), corpus.ids("train")
    match, n = member_match(corpus, vocabulary), vocabulary.n_tokens
    torch.manual_seed(0)
    encoder = CellEncoder(preset("tiny", n).cell_encoder).eval()
    loadings = gene_loadings(corpus, ids, match, n_tokens=n, max_length=129, components=10, seed=0)
    tokens = sample_tokens(corpus, ids, match, 129)
    cls = vocabulary.special["<cls>"]
    start_as_components(encoder, loadings, tokens, cls, seed=0)
    found = encoder.encode(tokens.flat, tokens.offsets, cls_token=cls)
    plain = np.zeros((len(tokens), 10))
    for cell in range(len(tokens)):
        some = tokens.flat[tokens.offsets[cell] : tokens.offsets[cell + 1]]
        weight = 1 / np.sqrt(1.0 + np.arange(len(some)))
        plain[cell] = weight @ loadings[some] / weight.sum()
    plain -= plain.mean(axis=0)
    for column in range(5):
        assert np.corrcoef(found[:, column] / found[:, -1], plain[:, column])[0, 1] > 0.9, column
    assert not found[:, 10:-1].any()
    assert (found[:, -1] > 0).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def vectors(n: int) -> torch.Tensor:
    """Return vectors of unit length with components of falling size and, last, about a constant."""
    drawn = torch.randn(n, 16) * torch.linspace(1, 0.1, 16)
    drawn[:, -1] = 2.0
    return torch.nn.functional.normalize(drawn, dim=1)


def test_center_takes_the_common_part_off_and_leaves_differences_alone(
    stage_from: Any, corpus: Corpus
) -> None:
    model = stage_from("informed").model
    encoder, match = model.module.cell_encoder, member_match(corpus, model.vocabulary)
    sample = sample_tokens(corpus, corpus.ids("train"), match, encoder.config.max_length, cells=60)

    def embedded() -> torch.Tensor:
        seen: list[torch.Tensor] = []  # before they are brought to unit length
        hook = encoder.proj.register_forward_hook(lambda module, given, out: seen.append(out))
        encoder.encode(sample.flat, sample.offsets, cls_token=model.cls_token)
        hook.remove()
        return torch.cat(seen)

    with torch.no_grad():
        encoder.proj.bias += 3.0
    before = embedded()
    center(encoder, sample, model.cls_token)
    after = embedded()
    assert before.mean(0).norm() > 5 * (before - before.mean(0)).norm(dim=1).mean()
    torch.testing.assert_close(after - after[0], before - before[0], atol=1e-5, rtol=1e-4)
    mean = after.mean(0)
    torch.testing.assert_close(mean[:-1], torch.zeros_like(mean[:-1]), atol=1e-4, rtol=0)
    spread = (after - mean).square().sum(1).mean().sqrt()
    assert mean[-1] == pytest.approx(
        0.5 * float(spread), rel=0.02
    )  # by which a cell is not a hidden one


def shown_se2(seed: int = 0) -> tuple[SE2Transformer, torch.Tensor, torch.Tensor]:
    """Return an SE(2) Transformer that sees its neighbors, and the mean and covariance it was given."""
    torch.manual_seed(seed)
    se2 = SE2Transformer(
        SE2Config(
            input_dim=16, hidden_size=16, num_layers=3, num_heads=4, ffn_size=32, num_kernels=32
        )
    )
    features = vectors(500)
    set_attention_radii(se2.gaussian, np.array([0.7, 2.0, 6.0]))
    start_as_neighbor_means(se2, features.mean(0), torch.cov(features.T))
    return se2.eval(), features.mean(0), torch.cov(features.T)


def test_a_hidden_cell_starts_with_means_over_its_surroundings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hidden cell's state holds, for each head, the components of the shown cells that the head looks at."""
    monkeypatch.setattr(warm_start, "HIDDEN_LOGIT", 20.0)  # no weight at all for hidden cells
    se2, mean, covariance = shown_se2()
    rng = np.random.default_rng(0)
    sub = next(
        iterate(
            rng.uniform(0, 12, (120, 2)),
            np.zeros((0, 2)),
            [np.arange(120)],
            SubSliceConfig(n_neighbors=119),
        )
    )
    features = vectors(121)
    features[0] = 0  # the graph token
    hidden = torch.zeros(121, dtype=torch.bool)
    hidden[1:60] = True
    x = features.masked_fill(hidden[:, None], 0.0)
    types = torch.from_numpy(sub.token_types)
    with torch.no_grad():
        out = se2(x, types, [pair_tensors(sub, torch.device("cpu"))]).hidden
    values, axes = torch.linalg.eigh(covariance.double())
    top = (axes.flip(1)[:, :4] / (values.flip(0)[:4] * values[-1]).pow(0.25)).T.float()
    place = torch.from_numpy(sub.positions.astype(np.float32))
    expected = []
    for radius in (0.7, 2.0):  # over 6 spacings there is one mean for all of so small a tissue
        weight = (
            torch.exp(-torch.cdist(place, place) / radius) * (~hidden)[None] * (types == 0)[None]
        )
        expected.append(weight / weight.sum(1, keepdim=True) @ (features - mean) @ top.T)
    target = torch.cat(expected, dim=1)[hidden]
    for column in range(
        target.shape[1]
    ):  # LayerNorm scales each row, so that directions are compared
        found = np.corrcoef(out[hidden][:, column], target[:, column])[0, 1]
        assert found > 0.5, column


def test_all_other_branches_start_at_zero() -> None:
    se2, _, _ = shown_se2()
    for number, layer in enumerate(se2.blocks()):
        assert not layer.fc2.weight.any()
        assert layer.out.weight.any() == (number == 0)


@pytest.mark.parametrize(
    ("init", "se2", "changed"),
    [
        ("informed", "untrained", True),
        ("informed", "trained", False),
        ("random", "untrained", False),
    ],
)
def test_only_an_untrained_transformer_is_changed(
    stage_from: Any, init: str, se2: str, changed: bool
) -> None:
    stage = stage_from(init)
    model = stage.model
    model.provenance["se2"] = se2
    stage.prepare()
    objective = stage.objective()
    before = {k: v.clone() for k, v in model.module.se2.state_dict().items()}
    stage.start(objective)
    same = all(torch.equal(v, before[k]) for k, v in model.module.se2.state_dict().items())
    assert same is not changed


def test_whose_transformer_is_trained_is_remembered(stage_of: Any, tmp_path: Path) -> None:
    model = stage_of().initial_model()
    assert model.provenance["se2"] == "untrained"
    foreign = SToFM(model.config, model.vocabulary, provenance={"weights": "converted"})
    folder = foreign.save_pretrained(tmp_path / "foreign")
    continued = stage_of(model={"checkpoint": str(folder)}).initial_model()
    assert continued.provenance["se2"] == "trained"
