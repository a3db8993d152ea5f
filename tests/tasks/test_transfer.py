"""Probes from a slice with many genes and counts to one with a third of the genes and a tenth of the counts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

import terrazzo as tz
from terrazzo import simulate, tasks
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.splitting import thin_counts
from terrazzo.tasks.transfer import Embedded, embedder_of

N_GENES = 300
OPTIONS: dict[str, Any] = {"label": "region", "head": "linear", "runs": 1}


@pytest.fixture(scope="module")
def tissue() -> Callable[[int], AnnData]:
    """Make a Visium slice with four regions."""

    def make(seed: int) -> AnnData:
        return simulate.tissue(
            500, n_genes=N_GENES, layout="visium", n_regions=4, seed=seed, name=f"slice{seed}"
        )

    return make


def shallow(adata: AnnData, seed: int = 0, share: float = 1 / 3, rate: float = 0.1) -> AnnData:
    """Return a slice with a part of its genes and counts."""
    rng = np.random.default_rng(seed)
    columns = np.sort(rng.choice(N_GENES, round(share * N_GENES), replace=False))
    out = adata[:, columns].copy()
    out.X, _ = thin_counts(out.X, rate, rng)
    return out


def accuracy(labeled: Any, target: AnnData, model: Any, **options: Any) -> float:
    """Score a probe; that genes and depth differ is not the question."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TerrazzoWarning)
        result = tasks.probe(labeled, test=target, model=model, **OPTIONS, **options)
    return result.score("accuracy")


@pytest.mark.parametrize("name", ["t1", "t3", "z50"])
def test_copies_and_common_genes_win(tissue: Callable[[int], AnnData], name: str) -> None:
    labeled = tissue(1)
    target = shallow(tissue(2))
    model = tz.Baseline(name)
    neither = accuracy(labeled, target, model, common_genes=False, copies=False)
    copies = accuracy(labeled, target, model, common_genes=False)
    common = accuracy(labeled, target, model, common_genes=True, copies=False)
    chosen = accuracy(labeled, target, model)
    assert copies > neither + 0.03
    assert common > neither
    assert chosen > neither + 0.03
    assert model.fitted_on == ()  # the caller's own is left as it is


@pytest.mark.slow  # compiles what SToFM cuts sub-slices with
def test_an_untrained_model_loses_nothing(tissue: Callable[[int], AnnData], model: Any) -> None:
    labeled = tissue(1)[::3].copy()
    target = shallow(tissue(2)[::3])
    neither = accuracy(labeled, target, model, common_genes=False, copies=False)
    assert accuracy(labeled, target, model) > neither - 0.02


@pytest.fixture(scope="module")
def model(tissue: Callable[[int], AnnData], small_config: Callable[..., Any]) -> Any:
    """A very small SToFM with random weights, which knows all genes."""
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(tissue(1))])
    return tz.SToFM(small_config(vocabulary.n_tokens), vocabulary)


def test_what_was_chosen_is_said_and_recorded(tissue: Callable[[int], AnnData]) -> None:
    labeled = tissue(1)
    target = shallow(tissue(2))
    with pytest.warns(TerrazzoWarning, match=r"panels or depth differ: .* 300 genes .* 100; 100"):
        result = tasks.probe(labeled, test=target, model=tz.Baseline("t1"), **OPTIONS)
    record = result.config["transfer"]
    scores = record["held_out_scores"]
    assert record["common_genes"] == (scores["common_genes"] >= scores["all_genes"])
    assert record["n_genes_shared"] == 100
    assert record["n_embedded"] == 6
    assert len(record["copies"]) == (1 if record["common_genes"] else 3)
    assert any("macro-F1 on held-out labeled cells" in note for note in result.notes)
    assert any("embedded 6 times" in note for note in result.notes)
    assert json.loads(json.dumps(record)) == record


def test_test_labels_are_not_looked_at(tissue: Callable[[int], AnnData]) -> None:
    labeled = tissue(1)
    target = shallow(tissue(2))
    shuffled = target.copy()
    rng = np.random.default_rng(0)
    shuffled.obs["region"] = rng.permutation(shuffled.obs["region"].astype(str))
    results = []
    for one in (target, shuffled):
        with pytest.warns(TerrazzoWarning, match="differ"):
            results.append(tasks.probe(labeled, test=one, model=tz.Baseline("t1"), **OPTIONS))
    first, second = results
    assert first.config["transfer"] == second.config["transfer"]
    assert (first.predictions["cross"] == second.predictions["cross"]).all()


def test_equal_panels_are_as_before(tissue: Callable[[int], AnnData]) -> None:
    labeled, target = tissue(1), tissue(2)
    result = tasks.probe(labeled, test=target, model=tz.Baseline("t1"), **OPTIONS)
    assert result.config["transfer"]["n_embedded"] == 1
    assert result.notes == ()
    baseline = tz.Baseline("t1").fit(labeled)
    baseline.embed([labeled, target])
    before = tasks.probe(labeled, test=target, use_rep="X_t1", **OPTIONS)
    assert (before.predictions == result.predictions).all(axis=None)


def test_each_labeled_slice_is_held_out(tissue: Callable[[int], AnnData]) -> None:
    labeled = [tissue(1), tissue(3)]
    target = shallow(tissue(2))
    with pytest.warns(TerrazzoWarning, match="differ"):
        result = tasks.probe(labeled, test=target, model=tz.Baseline("t1"), **OPTIONS)
    assert result.score("accuracy") > 0.7
    assert set(result.config["transfer"]["held_out_scores"]) == {"common_genes", "all_genes"}


def test_vectors_that_are_there(tissue: Callable[[int], AnnData]) -> None:
    labeled = tissue(1)
    target = shallow(tissue(2))
    baseline = tz.Baseline("t1").fit(labeled)
    baseline.embed([labeled, target])
    with pytest.warns(TerrazzoWarning, match=r"differ: .*pass the model"):
        tasks.probe(labeled, test=target, use_rep="X_t1", **OPTIONS)
    for option in ({"common_genes": True}, {"copies": True}):
        with pytest.raises(ConfigError, match="these vectors are there already"):
            tasks.probe(labeled, test=target, use_rep="X_t1", **OPTIONS, **option)


def test_a_fitted_probe(tissue: Callable[[int], AnnData], tmp_path: Any) -> None:
    labeled = tissue(1)
    target = shallow(tissue(2))
    model = tz.Baseline("t3")
    options = {"label": "region", "head": "linear", "model": model}
    with pytest.warns(TerrazzoWarning, match="differ"):
        probe = tasks.fit_probe(labeled, predict=target, common_genes=True, **options)
    assert target.uns["terrazzo"]["X_t3"]["restricted_to"] == "100 genes in common"
    assert "X_t3" not in labeled.obsm
    probe.annotate(target)
    right = target.obs["region_predicted"].astype(str) == target.obs["region"].astype(str)
    assert right.mean() > 0.7
    record = json.loads(target.uns["terrazzo"]["region_predicted"]["probe"])
    assert record["transfer"]["common_genes"] is True
    other = tissue(3)
    tz.Baseline("t3").fit(labeled).embed(other)
    with pytest.warns(TerrazzoWarning, match="different models or fits"):
        probe.annotate(other)
    again = tasks.Probe.load(probe.save(tmp_path / "probe"))
    assert again.info["transfer"] == record["transfer"]


def test_sections_get_their_vectors(tissue: Callable[[int], AnnData]) -> None:
    import anndata

    labeled = tissue(1)
    target = anndata.concat({"x": tissue(2), "y": tissue(3)}, label="part", merge="same")
    labeled.obs["part"] = "z"
    probe = tasks.fit_probe(
        labeled,
        model=tz.Baseline("t3"),
        predict=target,
        label="region",
        head="linear",
        slice_key="part",
    )
    probe.annotate(target)
    right = target.obs["region_predicted"].astype(str) == target.obs["region"].astype(str)
    assert right.mean() > 0.7


def test_proportions(tissue: Callable[[int], AnnData]) -> None:
    labeled = tissue(1)
    target = shallow(tissue(2))
    scores = []
    for copies in (False, None):
        with pytest.warns(TerrazzoWarning, match="differ"):
            result = tasks.deconvolve(
                labeled, test=target, model=tz.Baseline("t3"), head="linear", runs=1, copies=copies
            )
        scores.append(result.score("pearson"))
    assert scores[1] > scores[0] - 0.02


def test_bad_input(tissue: Callable[[int], AnnData]) -> None:
    labeled, target = tissue(1), tissue(2)
    model = tz.Baseline("t1")
    few = shallow(target, share=0.1)
    with pytest.raises(InputError, match="30 genes in common"):
        tasks.probe(labeled, test=few, model=model, **OPTIONS)
    with pytest.raises(ConfigError, match="either the vectors"):
        tasks.probe(labeled, test=target, **OPTIONS)
    with pytest.raises(ConfigError, match="either the vectors"):
        tasks.probe(labeled, test=target, use_rep="X_t1", model=model, **OPTIONS)
    with pytest.raises(ConfigError, match="common_genes is 'maybe'"):
        tasks.probe(labeled, test=target, model=model, common_genes="maybe", **OPTIONS)
    with pytest.raises(ConfigError, match="must be a model"):
        tasks.probe(labeled, test=target, model="t1", **OPTIONS)
    with pytest.raises(ConfigError, match="predict= belongs to model="):
        tasks.fit_probe(labeled, use_rep="X_t1", predict=target, label="region")
    labeled.X = labeled.X * 0.5
    with pytest.raises(InputError, match="does not hold counts"):
        tasks.probe(labeled, test=target, model=model, **OPTIONS)


def test_an_embedder_of_ones_own() -> None:
    def embedder(slices: Any) -> Any:
        return lambda tissue: Embedded(np.zeros((tissue.n_cells, 2), dtype=np.float32))

    assert embedder_of(embedder) is embedder
