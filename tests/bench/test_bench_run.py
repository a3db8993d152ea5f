"""Running a table on simulated slices: which entries get a row, what they see, and that the numbers mean something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

from terrazzo.bench import run as running
from terrazzo.bench.entries import ALWAYS, Entry, resolve
from terrazzo.bench.run import run
from terrazzo.bench.samples import KEY
from terrazzo.errors import ConfigError, InputError, TrainingError
from terrazzo.models.baselines import KINDS
from terrazzo.splitting import thin_counts
from terrazzo.tasks import reconstruction as hidden_regions

PART = {"name": "one", "dataset": "made", "test": "s0", "train": ["s1"], "settings": ["within"]}
GONE = {"name": "two", "dataset": "made", "test": "s9", "settings": ["within"]}
BASELINES = {KINDS[name].title for name in ALWAYS}
OF_VALUES = {"metrics": ["pearson", "rmse"], "heads": ["linear"]}


@pytest.fixture
def checkpoint(tiny_model: Any, tmp_path: Path) -> Path:
    return tiny_model().save_pretrained(tmp_path / "checkpoint")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let these entries take part, and few baselines: what is tested does not depend on all of them."""

    def choose(*entries: Entry, keep: tuple[str, ...] = ("PCA",)) -> None:
        def resolved(*given: Any) -> list[Entry]:
            return [*(s for s in resolve(*given) if s.title in keep or s.missing), *entries]

        monkeypatch.setattr(running, "resolve", resolved)

    return choose


def random_vectors(adata: Any) -> None:
    adata.obsm[KEY] = np.random.default_rng(0).normal(size=(adata.n_obs, 4))


def mean(found: Any, system: str, split: str, metric: str = "accuracy") -> float:
    table = found.summary()
    here = table[
        (table["system"] == system) & (table["split"] == split) & (table["metric"] == metric)
    ]
    assert len(here) == 1
    return float(here["mean"].iloc[0])


def test_other_genes_and_depth_across_slices(table: Any, tmp_path: Path, data_folder: Path) -> None:
    """Heads learn from copies of the training slice, if the table does not say otherwise."""
    folder = tmp_path / "made"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, share, rate in (("s0", 0.85, 0.1), ("s1", 1.0, 1.0)):
        adata = anndata.read_h5ad(data_folder / "made" / f"{name}.h5ad")
        adata = adata[:, : round(share * adata.n_vars)].copy()
        adata.X, _ = thin_counts(adata.X, rate, rng)
        adata.write_h5ad(folder / f"{name}.h5ad")
    parts = [{**PART, "settings": ["cross"]}]
    scores = {}
    for copies in (False, True):
        found = run(
            table(parts=parts, copies=copies, common_genes="auto" if copies else "no"),
            data=tmp_path,
        )
        assert any("panels or depth differ" in note for note in found.notes)
        assert any("copies of" in note for note in found.notes) is copies
        scores[copies] = [mean(found, KINDS[name].title, "cross") for name in ("t1", "t3", "z50")]
    assert np.mean(scores[True]) > np.mean(scores[False]) - 0.01


def test_probes_within_and_across(table: Any, data_folder: Path) -> None:
    parts = [{**PART, "settings": ["within", "cross"]}]
    found = run(table(parts=parts, models=["stofm", "expression"]), data=data_folder)
    scores = found.scores
    assert set(scores["system"]) == BASELINES | {KINDS["expression"].title}
    assert set(scores["split"]) == {"random", "blocked", "cross"}
    assert set(scores["metric"]) == {"accuracy", "macro_f1"}
    counted = found.summary()
    assert (counted["n"] == 2).all()  # runs
    assert len(counted) == (len(ALWAYS) + 1) * 3 * 2
    assert found.absent.to_numpy().tolist() == [
        ["SToFM", "", "no weights were given (--models stofm=FOLDER)"]
    ]
    assert set(found.seconds) == set(scores["system"])
    for split, least in (
        ("random", 0.8),
        ("blocked", 0.7),
        ("cross", 0.6),
    ):  # three bands, about a third each
        assert mean(found, KINDS["t1"].title, split) > least
        assert mean(found, KINDS["t3"].title, split) > least
    assert mean(found, KINDS["t1"].title, "blocked") > mean(found, KINDS["z50"].title, "blocked")


def test_what_may_see_the_scored_slice_is_fitted_on_it_without_labels(
    table: Any, data_folder: Path, only: Any
) -> None:
    seen = {}

    def entry(name: str, joint: bool) -> Entry:
        def fit(slices: Any) -> Any:
            seen[name] = slices
            return random_vectors

        return Entry(name, fit, joint=joint)

    only(entry("joint", True), entry("plain", False))
    run(table(parts=[{**PART, "settings": ["cross"]}]), data=data_folder)
    assert [len(seen[name]) for name in ("joint", "plain")] == [2, 1]
    assert all("region" not in adata.obs for adata in seen["joint"])
    scored = anndata.read_h5ad(data_folder / "made" / "s0.h5ad")
    np.testing.assert_array_equal(seen["joint"][-1].obsm["spatial"], scored.obsm["spatial"])
    assert seen["joint"][0] is seen["plain"][0]


def test_shuffled_labels_give_chance(table: Any, data_folder: Path) -> None:
    found = run(table(label="noise"), data=data_folder)
    adata = anndata.read_h5ad(data_folder / "made" / "s0.h5ad")
    commonest = adata.obs["region"].value_counts(normalize=True).max()
    assert mean(found, KINDS["t1"].title, "blocked") < commonest + 0.08
    assert mean(found, KINDS["t3"].title, "blocked") < commonest + 0.08


def test_domains_over_five_seeds(table: Any, data_folder: Path) -> None:
    keys = {
        "task": "domains",
        "metrics": ["ari", "chaos"],
        "heads": ["kmeans"],
        "runs": 5,
        "refine": 6,
    }
    found = run(table(**keys), data=data_folder)
    assert set(found.scores["split"]) == {"whole", "refined"}
    assert (found.summary()["n"] == 5).all()
    assert set(found.scores["system"]) == BASELINES
    assert mean(found, KINDS["t1"].title, "whole", "ari") > 0.4


def test_deconvolution(table: Any, data_folder: Path) -> None:
    parts = [{**PART, "settings": ["within", "cross"]}]
    found = run(
        table(task="deconvolution", label="proportions", parts=parts, **OF_VALUES), data=data_folder
    )
    assert set(found.scores["split"]) == {"random", "blocked", "cross"}
    assert mean(found, KINDS["t1"].title, "cross", "pearson") > 0.5


def test_imputation_hides_before_anything_sees_the_slices(
    table: Any, data_folder: Path, only: Any
) -> None:
    seen: list[Any] = []

    def fit(slices: Any) -> Any:
        seen.extend(slices)
        return lambda adata: (seen.append(adata), random_vectors(adata))[1]

    only(Entry("Spy", fit))
    parts = [{**PART, "settings": ["within", "cross"]}]
    protocol = table(task="imputation", label="", genes=7, parts=parts, **OF_VALUES)
    found = run(protocol, data=data_folder, models=["given=obsm:X_given"])
    assert {a.n_vars for a in seen} == {53}
    assert len(seen) == 3  # fitted on the training slice, embedded both
    assert seen[0] is seen[2]
    assert seen[0] is not seen[1]
    assert set(found.scores["system"]) == {"PCA", "Spy"}
    assert set(found.scores["split"]) == {"random", "blocked", "cross"}
    only(keep=("PCA", "given"))
    found = run(protocol, data=data_folder, models=["given=obsm:X_given"])
    assert found.absent["system"].tolist() == ["given"]
    assert "before genes were hidden" in found.absent["reason"][0]


SQUARES = {
    "task": "reconstruction",
    "label": "",
    "metrics": ["mse", "mae"],
    "heads": ["none"],
    "sizes": [2, 3],
    "bin_um": 40.0,
    "genes": 20,
    "runs": 3,
}


class Filler:
    """A stand-in for ST as images: it says a constant, and remembers what it saw."""

    title = "Filler"

    def __init__(self, value: float = 0.0) -> None:
        self.value, self.seen = value, []

    def reconstruct(self, adata: Any, hidden: Any, genes: list[str], bin_um: float) -> Any:
        self.seen.append((adata, hidden, bin_um))
        return np.full((hidden.sum(), len(genes)), self.value)


def test_hidden_squares_beside_trivial_answers(table: Any, data_folder: Path, only: Any) -> None:
    filler, told = Filler(), []
    only(Entry("Filler", lambda slices: random_vectors, model=filler), keep=tuple(BASELINES))
    found = run(
        table(**SQUARES, models=["stimage", "scgpt-spatial", "pearson"]),
        data=data_folder,
        say=told.append,
    )
    assert list(dict.fromkeys(found.scores["system"])) == [*hidden_regions.BASELINES, "Filler"]
    assert (found.summary()["n"] == 3).all()
    assert set(found.scores["split"]) == {"2 x 2", "3 x 3"}
    assert set(found.scores["part"]) == {"one"}
    assert set(found.scores["head"]) == {"none"}
    assert mean(found, "Filler", "2 x 2", "mse") > mean(found, "gene mean", "2 x 2", "mse")
    reasons = dict(zip(found.absent["system"], found.absent["reason"], strict=True))
    assert reasons["ST as images"] == "no weights were given (--models stimage=FOLDER)"
    assert reasons["scGPT-spatial"].startswith("not part of terrazzo, and vectors of cells")
    assert len(filler.seen) == 6
    for adata, hidden, bin_um in filler.seen:  # no label, no square
        assert list(adata.obs) == []
        assert list(adata.obsm) == ["spatial"]
        assert adata.X[hidden].nnz == 0
        assert bin_um == 40.0
    again = run(table(**SQUARES), data=data_folder)
    assert mean(again, "gene mean", "3 x 3", "mse") == mean(found, "gene mean", "3 x 3", "mse")
    assert "gene mean: mse 2 x 2" in told[0]


def test_seeds_of_one_model_on_hidden_squares_are_one_row(
    table: Any, data_folder: Path, only: Any
) -> None:
    only(*(Entry("Filler", lambda slices: random_vectors, model=Filler(v)) for v in (0.0, 1.0)))
    found = run(table(**SQUARES), data=data_folder)
    here = found.scores[found.scores["system"] == "Filler"]
    assert set(here["seed"]) == {0, 1}
    assert len(here) == 2 * 3 * 2 * 2


def test_who_cannot_fill_in_hidden_squares_says_so(
    table: Any, data_folder: Path, checkpoint: Path
) -> None:
    given = [f"stofm={checkpoint}", "mine=obsm:X_given", "pearson"]
    found = run(table(**SQUARES), data=data_folder, models=given)
    assert set(found.scores["system"]) == set(hidden_regions.BASELINES)
    reasons = dict(zip(found.absent["system"], found.absent["reason"], strict=True))
    assert set(reasons) == {"SToFM (untrained)", "mine", KINDS["pearson"].title}
    assert reasons["SToFM (untrained)"].startswith("a SToFM cannot fill in hidden tissue")
    assert reasons["mine"].startswith("vectors of cells that are shown say nothing")


def test_labels_reach_no_system(table: Any, data_folder: Path, only: Any) -> None:
    seen: list[Any] = []

    def look(adata: Any) -> None:
        seen.append(adata)
        assert not set(adata.obs) - {"terrazzo_empty"}
        assert set(adata.obsm) <= {
            "spatial",
            "X_given",
            "proportions",
            KEY,
        }  # of obs nothing, of obsm not the label
        random_vectors(adata)

    def fit(slices: Any) -> Any:
        seen.extend(slices)
        for one in slices:
            look(one)
        return look

    only(Entry("Spy", fit))
    parts = [{**PART, "settings": ["within", "cross"]}]
    found = run(table(parts=parts), data=data_folder)
    assert set(found.scores["system"]) == {"PCA", "Spy"}
    run(
        table(parts=parts, task="deconvolution", label="proportions", **OF_VALUES), data=data_folder
    )
    assert [a for a in seen[-3:] if "proportions" in a.obsm or "proportions_names" in a.uns] == []
    assert len(seen) == 8


def test_baselines_are_fitted_on_training_slices_where_there_are_any(
    table: Any, data_folder: Path, only: Any
) -> None:
    fitted: list[Any] = []

    def fit(slices: Any) -> Any:
        fitted.append([a.X.sum() for a in slices])
        return random_vectors

    only(Entry("Spy", fit))
    parts = [PART, {"name": "alone", "dataset": "made", "test": "s0"}]
    run(table(parts=parts), data=data_folder)
    total = [anndata.read_h5ad(data_folder / "made" / f"{s}.h5ad").X.sum() for s in ("s1", "s0")]
    assert fitted == [[total[0]], [total[1]]]


def test_an_error_of_ours_stops_one_system_and_a_bug_stops_all(
    table: Any, data_folder: Path, only: Any
) -> None:
    def refuse(slices: Any) -> Any:
        raise InputError("its genes are not ours")

    def broken(slices: Any) -> Any:
        raise RuntimeError("a bug")

    told: list[str] = []
    only(Entry("Refuses", refuse), Entry("After", lambda slices: random_vectors))
    found = run(table(), data=data_folder, say=told.append)
    assert set(found.scores["system"]) == {"PCA", "After"}
    assert found.absent.to_numpy().tolist() == [["Refuses", "one", "its genes are not ours"]]
    assert len(told) == 3
    assert "not available (its genes are not ours)" in told[1]
    only(Entry("Broken", broken))
    with pytest.raises(RuntimeError, match="a bug"):
        run(table(), data=data_folder)


def test_two_seeds_are_one_row_and_one_that_fails_is_a_note(
    table: Any, data_folder: Path, only: Any
) -> None:
    def refuse(slices: Any) -> Any:
        raise InputError("weights that are not numbers")

    def fit(slices: Any) -> Any:
        return random_vectors

    only(Entry("Twice", fit), Entry("Twice", fit), Entry("Half", fit), Entry("Half", refuse))
    found = run(table(), data=data_folder)
    table_ = found.summary()
    assert (table_[table_["system"] == "Twice"]["n"] == 4).all()
    assert set(found.scores[found.scores["system"] == "Twice"]["seed"]) == {0, 1}
    assert (table_[table_["system"] == "Half"]["n"] == 2).all()
    assert found.absent.empty
    assert "one: one seed of Half is not available (weights that are not numbers)" in found.notes


def test_missing_data_are_a_row_and_no_data_an_error(
    table: Any, data_folder: Path, only: Any
) -> None:
    only()
    found = run(table(parts=[PART, GONE]), data=data_folder)
    assert set(found.scores["part"]) == {"one"}
    assert found.absent["system"].tolist() == ["all systems"]
    assert found.absent["part"].tolist() == ["two"]
    assert "s9" in found.absent["reason"][0]
    with pytest.raises(InputError, match="none of its slices is here"):
        run(table(parts=[GONE]), data=data_folder)


def test_what_no_system_can_do_is_one_error(table: Any, data_folder: Path) -> None:
    with pytest.raises(InputError, match=r"no system could be run\. obs has no column 'reigon'"):
        run(table(label="reigon"), data=data_folder)


def test_what_is_stored_takes_part_and_nothing_is_pooled_with_it(
    table: Any, data_folder: Path
) -> None:
    found = run(table(), data=data_folder, models=["mine=obsm:X_given"])
    assert mean(found, "mine", "blocked") < 0.6
    assert len(set(found.scores["system"])) == len(ALWAYS) + 1


@pytest.mark.slow
def test_fine_tuning_beside_head_tuning(
    table: Any, data_folder: Path, checkpoint: Path, only: Any, brief: Any
) -> None:
    only(keep=("PCA", "SToFM (untrained)"))
    parts = [{**PART, "settings": ["within", "cross"]}]
    found = run(
        table(task="finetune", runs=1, parts=parts),
        data=data_folder,
        models=[f"stofm={checkpoint}"],
    )
    tuned = "SToFM (untrained), all parameters tuned"
    assert set(found.scores["system"]) == {"PCA", "SToFM (untrained)", tuned}
    for split in ("random", "blocked", "cross"):
        assert np.isfinite(mean(found, tuned, split))
    assert set(found.scores[found.scores["system"] == tuned]["head"]) == {"fine-tuning"}


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fine-tuning take one pass."""
    from terrazzo.systems.stofm import finetune_scores

    short = finetune_scores.FineTuneConfig(max_epochs=1)
    monkeypatch.setattr(finetune_scores, "FineTuneConfig", lambda: short)


SHORT = {
    "model": {"preset": "tiny"},
    "run": {"accelerator": "cpu"},
    "optim": {"lr": 1e-3, "max_steps": 1},
}
THINNED = {
    "own_weight": 1.0,
    "masked_weight": 0.0,
    "contrastive_weight": 0.0,
    "view": "thinned",
}
TRAINING = {
    "stofm-adapt": {**SHORT, "data": {"batch_cells": 64}, "objective": THINNED},
    "stofm-pretrain": {**SHORT, "data": {"batch_subslices": 2}},
}
FAST = {"optim": {"lr": 0.5}}
VARIANTS = [
    {"name": "encoder", "skip": ["stofm-adapt"], "vector": "cell_encoder"},
    {"name": "adapted encoder", "vector": "cell_encoder"},
    {"name": "whole"},
    {"name": "diverges", "change": {"stofm-adapt": FAST, "stofm-pretrain": FAST}},
]


@pytest.mark.slow
def test_an_ablation_trains_every_variant_and_can_go_on(
    table: Any, data_folder: Path, tmp_path: Path, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from terrazzo.bench import ablation

    runs: list[str] = []
    train = ablation.pretrain

    def counted(config: Any, **options: Any) -> Path:
        runs.append(Path(config.out).name)
        if config.optim.lr == 0.5:
            raise TrainingError("the loss is nan at step 1")
        return train(config, **options)

    monkeypatch.setattr(ablation, "pretrain", counted)
    only()
    protocol = table(variants=VARIANTS, training=TRAINING, runs=1)
    first = run(protocol, data=data_folder, work=tmp_path / "work")
    blocks = {"whole [own ; niche]", "whole, own block", "whole, niche block"}
    assert set(first.scores["system"]) == {"PCA", "encoder", "adapted encoder", *blocks}
    assert first.absent.to_numpy().tolist() == [["diverges", "", "the loss is nan at step 1"]]
    assert runs == [
        "stofm-adapt-0",
        "stofm-pretrain-1",
        "stofm-adapt-2",
    ]  # the adapted encoder is taken over
    held = anndata.read_h5ad(tmp_path / "work" / "slice_0.h5ad")
    assert (list(held.obs), list(held.obsm)) == ([], ["spatial"])
    assert (
        len(list((tmp_path / "work").glob("slice_*.h5ad"))) == 1
    )  # the scored slice is not learned from
    again = run(protocol, data=data_folder, work=tmp_path / "work")
    columns = ["system", "split", "metric", "value"]
    assert again.scores[columns].equals(first.scores[columns])


@pytest.mark.slow
def test_an_ablation_of_st_as_images(
    table: Any, data_folder: Path, tmp_path: Path, only: Any
) -> None:
    recipe = {
        "model": {
            "preset": "tiny",
            "init": "informed",
            "windows": {"window": 6, "bin_um": 30.0, "channels": 32},
        },
        "data": {"batch_windows": 4},
        "run": {"accelerator": "cpu"},
        "optim": {"lr": 1e-3, "max_steps": 2},
        "objective": {"target": "thinned"},
    }
    variants = [
        {"name": "patch"},
        {
            "name": "spot",
            "change": {"stimage-pretrain": {"objective": {"scheme": "spot", "mask": "entry"}}},
        },
    ]
    only()
    protocol = table(variants=variants, training={"stimage-pretrain": recipe}, runs=1)
    found = run(protocol, data=data_folder, work=tmp_path / "work")
    assert found.absent.empty
    blocks = {"patch [own ; niche]", "patch, own block", "patch, niche block"}
    assert set(found.scores["system"]) == {"PCA", *blocks, "spot"}
    assert {"stimage-pretrain-0", "stimage-pretrain-1"} <= {
        p.name for p in (tmp_path / "work").iterdir()
    }
    again = run(protocol, data=data_folder, work=tmp_path / "work")  # taken over
    columns = ["system", "split", "metric", "value"]
    assert again.scores[columns].equals(found.scores[columns])
    squares = table(
        **{**SQUARES, "runs": 1}, variants=variants[:1], training={"stimage-pretrain": recipe}
    )
    filled = run(squares, data=data_folder)
    assert set(filled.scores["system"]) == {*hidden_regions.BASELINES, "patch"}


def test_an_ablation_whose_recipe_is_wrong(table: Any, data_folder: Path) -> None:
    for stage in ("stofm-adapt", "stimage-pretrain"):
        variant = {"name": "a", "change": {stage: {"modle": {}}}}
        protocol = table(variants=[variant], training={stage: {}})
        with pytest.raises(ConfigError, match=f"variant 'a', {stage} has an unknown key 'modle'"):
            run(protocol, data=data_folder)
