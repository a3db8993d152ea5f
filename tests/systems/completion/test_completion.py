"""Completion: estimates from some of the genes, views, training that completes them, and vectors of every cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

import terrazzo as tz
from terrazzo.corpus.build import build
from terrazzo.corpus.splits import Splits
from terrazzo.corpus.store import Corpus
from terrazzo.errors import ConfigError, GeneError
from terrazzo.models.states import nearest_in_rings, ring_means
from terrazzo.systems.completion.config import CompletionConfig
from terrazzo.systems.completion.network import CompletionNetwork
from terrazzo.systems.completion.panels import Panel, numbered
from terrazzo.systems.completion.recipe import CompletionObjective
from terrazzo.systems.completion.reference import _add_genes
from terrazzo.systems.completion.rings import ring_matrix
from terrazzo.systems.completion.stages import Complete, studies_of, tiles_of
from terrazzo.systems.completion.views import (
    degraded,
    draw_view,
    drawn,
    drawn_slice,
    everything,
    whole,
)
from terrazzo.training.recipe import load_recipe
from terrazzo.training.run import pretrain

SIZES = {
    "n_genes": 120,
    "n_bases": 2,
    "basis_genes": 100,
    "n_components": 24,
    "n_smoothed": 20,
    "n_projected": 8,
    "n_states": 8,
    "width": 32,
}


@pytest.fixture(scope="module")
def corpus(simulated: Any, tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("complete")
    paths = []
    for number in range(3):
        path = folder / f"s{number}.h5ad"
        simulated(250, n_genes=150, seed=number, donor=f"donor_{number}").write_h5ad(path)
        paths.append(path)
    out = folder / "corpus"
    build(
        paths,
        out,
        min_genes=0,
        scheduler="synchronous",
        progress=False,
        splits=Splits(validation=0.3),
    )
    return out


@pytest.fixture(scope="module")
def stage(corpus: Path) -> Complete:
    recipe = load_recipe(
        "complete-tiny", corpus=corpus, out=corpus.parent / "run", model={"sizes": SIZES}
    )
    return Complete(recipe, Corpus.open(corpus), progress=False)


def panel_of_poisson(n_cells: int = 80, n_genes: int = 30) -> Panel:
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(2.0, (n_cells, n_genes)).astype(np.float32))
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel() + 10
    return Panel(counts, np.arange(n_genes), totals, rng.uniform(size=(n_cells, 2)))


def test_a_missing_gene_is_missing_and_not_zero():
    """From half of the genes of noiseless data the components come back, where zeros would halve them."""
    sizes = CompletionConfig(n_genes=60, n_bases=2, basis_genes=60, n_components=20, n_smoothed=10)
    network = CompletionNetwork(sizes)
    rng = np.random.default_rng(0)
    directions, _ = np.linalg.qr(rng.normal(size=(60, 20)))
    network.directions[1] = torch.from_numpy(directions.astype(np.float32))
    network.basis_genes[1] = torch.arange(60)
    network.noise[1] = 1e-6
    components = torch.from_numpy(rng.normal(size=(10, 20)).astype(np.float32))
    values = components @ network.directions[1].T
    genes = torch.from_numpy(np.sort(rng.choice(60, 30, replace=False)))
    estimate = network.estimate(values[:, genes], genes)
    assert not estimate[:, :20].any()  # of a basis that is not there
    torch.testing.assert_close(estimate[:, 20:], components, atol=1e-2, rtol=1e-2)
    with_zeros = values[:, genes] @ network.directions[1][genes]
    off = (with_zeros - components).abs().mean()
    assert off > 10 * (estimate[:, 20:] - components).abs().mean()
    known = network.known_share(genes)
    assert known[0] == 0
    assert known[1] > 0.99
    assert network.known_share(genes[:5])[1] < 0.5


def test_a_large_slice_is_cut_into_tiles_of_neighbors():
    rng = np.random.default_rng(0)
    coords = rng.uniform(size=(1000, 2)) * (4, 1)
    tiles = tiles_of("a", coords, 300)
    rows = np.concatenate([tile.rows for tile in tiles])
    assert sorted(rows.tolist()) == list(range(1000))
    assert len(tiles) == 4
    for tile in tiles:
        assert len(tile.rows) <= 300
        assert np.ptp(coords[tile.rows], axis=0).max() < 1.5
    assert tiles_of("a", coords, 1000)[0].rows is None


def test_the_ring_matrix_has_the_ring_means():
    rng = np.random.default_rng(0)
    coords = rng.uniform(size=(300, 2))
    values = rng.normal(size=(300, 3)).astype(np.float32)
    ((_, index),) = nearest_in_rings(coords)
    expected = ring_means(values, index)[:, 3:]
    means = torch.sparse.mm(ring_matrix(coords), torch.from_numpy(values))
    found = torch.cat(means.split(300), dim=1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_view_keeps_some_genes_and_counts(seed: int):
    panel = panel_of_poisson()
    settings = CompletionObjective(all_genes=0.0, all_counts=0.0, crop=1.0)
    draw = draw_view(panel, settings, np.random.default_rng(seed))
    seen = drawn(panel, draw)
    assert 2 <= len(seen.genes) <= 30
    assert (seen.counts.toarray() <= panel.counts[:, draw.kept].toarray()).all()
    assert seen.totals.sum() <= panel.totals.sum()
    view = degraded(seen, 30, settings, np.random.default_rng(seed))
    assert view.values.shape == (80, len(view.genes))
    assert np.isfinite(view.values).all()
    assert 0.3 <= view.inside.mean() <= 1
    np.testing.assert_array_equal(drawn(panel, draw).counts.toarray(), seen.counts.toarray())


def test_a_view_of_another_panel_has_its_genes_alone():
    panel = panel_of_poisson()
    settings = CompletionObjective()
    draw = draw_view(panel, settings, np.random.default_rng(0), np.array([3, 7, 99]))
    assert drawn(panel, draw).genes.tolist() == [3, 7]


def test_everything_is_kept_as_it_is():
    panel = panel_of_poisson()
    seen = drawn(panel, everything(panel))
    np.testing.assert_array_equal(seen.counts.toarray(), panel.counts.toarray())
    np.testing.assert_allclose(seen.totals, panel.totals)


def test_a_base_model_sees_the_same_counts(simulated: Any):
    """What the network reads of a view is in the slice that its base embeds, gene by gene."""
    tissue = tz.Slice.from_anndata(simulated(60, n_genes=40, seed=3))
    columns = np.arange(0, 40, 2)
    others = np.arange(1, 40, 2)
    counts = tissue.counts[:, columns]
    panel = Panel(counts, np.arange(20), tissue.total_counts, tissue.coords)
    settings = CompletionObjective(all_genes=0.0, all_counts=0.0)
    draw = draw_view(panel, settings, np.random.default_rng(1))
    seen = drawn(panel, draw)
    part = drawn_slice(tissue, columns, others, panel, draw)
    n_seen = len(seen.genes)
    np.testing.assert_array_equal(part.counts[:, :n_seen].toarray(), seen.counts.toarray())
    assert part.gene_symbols[:n_seen].tolist() == tissue.gene_symbols[columns[draw.kept]].tolist()
    assert part.n_genes == n_seen + round(draw.share_genes * len(others))
    assert part.total_counts.sum() < tissue.total_counts.sum()


def test_the_whole_view_is_standardized():
    view = whole(panel_of_poisson(), 30)
    np.testing.assert_allclose(view.values.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(view.values.std(axis=0), 1, atol=1e-4)
    assert view.inside.all()


class Rows:
    """A corpus of sources alone."""

    def __init__(self, *sources: str) -> None:
        self.sources = dict(enumerate(sources))

    def row(self, name: Any) -> dict[str, str]:
        facts = {"technology": "Visium", "organism": "human", "tissue": ""}
        return {**facts, "source": self.sources[name]}


@pytest.mark.parametrize(
    ("sources", "most", "groups"),
    [
        (["d/a/1.h5ad", "d/a/2.h5ad", "d/b/3.h5ad"], 9, [[0, 1], [2]]),
        (["d/run/s1/outs", "d/run/s2/outs"], 9, [[0, 1]]),  # a vendor's folder each
        (["d/a/1.h5ad", "d/a/2.h5ad", "d/b/3.h5ad"], 1, [[0, 1, 2]]),
        (["d/a/1.h5ad"], 9, [[0]]),
        (["1.h5ad", "2.h5ad"], 9, [[0, 1]]),
    ],
)
def test_slices_of_a_folder_are_a_study(sources: list[str], most: int, groups: list[list[int]]):
    found: dict[str, list[int]] = {}
    for name, study in studies_of(Rows(*sources), list(range(len(sources))), most).items():  # type: ignore[arg-type]
        found.setdefault(study, []).append(name)  # type: ignore[arg-type]
    assert list(found.values()) == groups


def test_columns_of_one_token_are_summed():
    counts = sparse.csr_matrix(np.array([[1, 2, 4, 8]], dtype=np.float32))
    summed, tokens = numbered(counts, np.array([5, -1, 3, 5], dtype=np.int32))
    assert tokens.tolist() == [3, 5]
    assert summed.toarray().tolist() == [[4, 9]]


def test_views_depend_on_seed_epoch_and_slice_alone(stage: Complete):
    first = [(batch.ids, batch.values) for batch in stage.loader("validation")]
    second = [(batch.ids, batch.values) for batch in stage.loader("validation")]
    assert [ids for ids, _ in first] == [ids for ids, _ in second]
    for (_, one), (_, other) in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_training_completes_degraded_views_better_than_the_estimate(corpus: Path, tmp_path: Path):
    recipe = load_recipe(
        "complete-tiny",
        corpus=corpus,
        out=tmp_path / "run",
        model={"sizes": SIZES},
        optim={"epochs": 15, "warmup_steps": 5},
        data={"views": 10},
    )
    pretrain(recipe, progress=False)
    model = tz.load(tmp_path / "run" / "model")
    stage = Complete(
        recipe.changed(model={"checkpoint": str(tmp_path / "run" / "model")}), Corpus.open(corpus)
    )
    objective = stage.objective().eval()
    with torch.no_grad():
        parts = [objective.losses(batch) for batch in stage.loader("validation")]
    own = np.mean([float(part["own"]) for part in parts])
    estimate = np.mean([float(part["own_estimate"]) for part in parts])
    assert own < 0.95 * estimate
    assert model.trained


def test_every_cell_gets_a_vector_whatever_its_genes(
    stage: Complete, simulated: Any, tmp_path: Path
):
    model = stage.model
    adata = simulated(120, n_genes=150, seed=9)
    model.embed(adata, progress=False)
    vectors = adata.obsm["X_completed"]
    assert vectors.shape == (120, 24 + 18 * 8)
    assert np.isfinite(vectors).all()
    assert tz.get(adata, "X_completed:own").shape == (120, 24)
    half = adata[:, ::2].copy()
    model.embed(half, progress=False)
    own = tz.get(adata, "X_completed:own")
    other = tz.get(half, "X_completed:own")
    assert np.isfinite(other).all()
    assert own.shape == other.shape
    reloaded = tz.load(model.save_pretrained(tmp_path / "model"))
    reloaded.embed(half, key_added="again", progress=False)
    np.testing.assert_array_equal(half.obsm["again"], half.obsm["X_completed"])


@pytest.mark.parametrize(("system", "options"), [(tz.SToFM, {}), (tz.STImage, {"bin_um": 20.0})])
def test_a_system_is_completed_beside_its_own_vectors(
    system: Any, options: dict[str, Any], corpus: Path, simulated: Any, tmp_path: Path
):
    """The base stays as it is; views are embedded once; the checkpoint brings the base."""
    base = system("tiny", Corpus.open(corpus).vocabulary(), seed=1)
    base.save_pretrained(tmp_path / "base")
    recipe = load_recipe(
        "complete-tiny",
        corpus=corpus,
        out=tmp_path / "run",
        model={"base": str(tmp_path / "base"), "base_options": options, "sizes": SIZES},
        data={"distinct": 2, "views": 2},
        optim={"max_steps": 2},
    )
    folder = pretrain(recipe, progress=False)
    model = tz.load(folder)
    assert model.title == f"{base.title}, completed"
    assert model.default_key == base.default_key
    for name, tensor in base.module.state_dict().items():
        torch.testing.assert_close(model.base.module.state_dict()[name], tensor)
    adata = simulated(100, n_genes=150, seed=4)
    model.embed(adata, progress=False)
    assert adata.obsm[base.default_key].shape == (100, 24 + 18 * 8)
    with pytest.raises(ConfigError, match="completed already"):
        Complete(
            recipe.changed(model={"base": str(folder)}), Corpus.open(corpus), progress=False
        ).initial_model()
    with pytest.raises(ConfigError, match=r"continues a completed model"):
        Complete(
            recipe.changed(model={"base": "", "checkpoint": str(tmp_path / "base")}),
            Corpus.open(corpus),
            progress=False,
        ).initial_model()


def test_a_study_more_gets_a_basis_beside_the_others(
    stage: Complete, corpus: Path, simulated: Any, tmp_path: Path
):
    """Other genes move in; what was there reads as before; no basis is left for a third."""
    adata = simulated(150, n_genes=150, seed=21)
    before = stage.model.embed(adata.copy(), progress=False).obsm["X_completed"]
    saved = stage.model.save_pretrained(tmp_path / "model")
    recipe = stage.recipe.changed(model={"checkpoint": str(saved), "add_bases": True})
    more = Complete(recipe, Corpus.open(corpus), progress=False)
    network = more.model.network
    assert list(more.bases.values()) == [1]
    assert (network.basis_genes[1] >= 0).sum() == (network.basis_genes[0] >= 0).sum()
    kept = [name for name in network.state_dict() if name.startswith(("cell", "around", "own"))]
    for name in kept:
        torch.testing.assert_close(
            network.state_dict()[name], stage.model.network.state_dict()[name]
        )
    after = more.model.embed(adata.copy(), progress=False).obsm["X_completed"]
    assert after.shape == before.shape
    again = Complete(
        recipe.changed(model={"checkpoint": str(more.model.save_pretrained(tmp_path / "two"))}),
        Corpus.open(corpus),
        progress=False,
    )
    with pytest.raises(ConfigError, match="all 2 bases of the model are taken"):
        again.initial_model()


def test_genes_that_are_added_keep_tokens_ascending():
    network = CompletionNetwork(
        CompletionConfig(n_genes=6, n_bases=2, basis_genes=4, n_components=2, n_smoothed=2)
    )
    _add_genes(network, [30, 10])
    network.basis_genes[0, :2] = torch.tensor([0, 1])
    rows = network.projection[:2].clone()
    _add_genes(network, [20, 10, 5, 50, 60, 70])
    assert network.tokens.tolist() == [5, 10, 20, 30, 50, 60]
    assert network.basis_genes[0].tolist() == [1, 3, -1, -1]
    torch.testing.assert_close(network.projection[[1, 3]], rows)


def test_foreign_genes_are_refused_in_one_line(stage: Complete, simulated: Any):
    adata = simulated(60, n_genes=40, seed=1)
    adata.var_names = [f"nosuch{i}" for i in range(40)]
    adata.var = adata.var[[]]
    with pytest.raises(GeneError):
        stage.model.embed(adata, progress=False)
