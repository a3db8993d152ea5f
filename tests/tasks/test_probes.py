"""Probes: fitted, used on other slices, saved; and scored within a slice and from slices to another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from terrazzo.errors import CheckpointError, ConfigError, InputError, OutputError, TerrazzoWarning
from terrazzo.tasks import TaskResult, experiments
from terrazzo.tasks.heads import MLPConfig
from terrazzo.tasks.probes import Probe, fit_probe, probe

Corpus = Callable[..., list[AnnData]]
QUICK = MLPConfig(hidden=(16, 16), max_epochs=3)
NO_BAR: dict[str, Any] = {"progress": False}


def groups(n: int = 120, k: int = 3, seed: int = 0) -> AnnData:
    """Well separated classes a, b, c, in the embedding X_a, scattered over a square."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(k, size=n)
    adata = AnnData(np.zeros((n, 1), dtype=np.float32))
    centers = np.random.default_rng(7).normal(size=(k, 5)) * 5
    adata.obsm["X_a"] = (centers[truth] + rng.normal(size=(n, 5))).astype(np.float32)
    adata.obsm["spatial"] = rng.uniform(size=(n, 2))
    adata.obs["label"] = pd.Categorical(np.array(list("abcdef"))[truth])
    adata.obsm["V"] = pd.DataFrame(
        {"one": centers[truth, 0], "two": rng.normal(size=n) * 0.01 - 3}, index=adata.obs_names
    )
    return adata


# Known answers


@pytest.mark.parametrize(("head", "least"), [("mlp3", 0.8), ("linear", 0.8), ("knn", 0.55)])
def test_regions_of_simulated_tissue_are_recovered(
    head: str, least: float, embedded_corpus: Corpus
) -> None:
    first, second = embedded_corpus()
    within = probe(first, use_rep="X_a", label="region", head=head, runs=1, **NO_BAR)
    assert within.score("accuracy", "random") > least
    assert within.score("macro_f1", "blocked") > least
    cross = probe([first], test=second, use_rep="X_a", label="region", head=head, runs=1, **NO_BAR)
    assert cross.score("accuracy") > least


def test_types_of_simulated_tissue_are_recovered(embedded_corpus: Corpus) -> None:
    first, second = embedded_corpus()
    for head in ("knn", "linear"):
        done = probe(first, use_rep="X_a", label="cell_type", head=head, runs=1, **NO_BAR)
        assert done.score("accuracy", "blocked") > 0.85
        assert done.score("macro_f1", "random") > 0.85
        cross = probe(
            first, test=second, use_rep="X_a", label="cell_type", head=head, runs=1, **NO_BAR
        )
        assert cross.score("accuracy") > 0.8


@pytest.mark.parametrize("name", ["mlp", "knn", "linear"])
def test_shuffled_labels_give_chance(
    name: str, embedded_corpus: Corpus, quick_mlp: MLPConfig
) -> None:
    (first, _) = embedded_corpus()
    head = quick_mlp if name == "mlp" else name
    shuffled = np.random.default_rng(0).permutation(first.obs["region"].to_numpy())
    done = probe(first, use_rep="X_a", label=shuffled, head=head, runs=2, **NO_BAR)
    common = pd.Series(shuffled).value_counts(normalize=True).iloc[0]
    assert done.score("accuracy", "blocked") < common + 0.06
    assert abs(done.score("ari", "blocked")) < 0.03


def test_values_are_recovered_and_beat_their_mean(embedded_corpus: Corpus) -> None:
    first, second = embedded_corpus()
    for one in (first, second):
        one.obsm["V"] = pd.DataFrame(
            one.obsm["X_a"][:, :2] * [1, 9] + 5, columns=["x", "y"], index=one.obs_names
        )
    done = probe(first, use_rep="X_a", values="V", head="linear", runs=2, **NO_BAR)
    for split in ("random", "blocked"):
        assert done.score("pearson", split) > 0.95
        assert done.score("rmse", split) < 0.3 * done.score("rmse_mean", split)
    parts = done.metrics[done.metrics["part"] != ""]
    assert set(parts["part"]) == {"x", "y"}
    assert {"pearson", "rmse", "mae", "rmse_mean"} <= set(parts["metric"])
    cross = probe(first, test=second, use_rep="X_a", values="V", head="linear", runs=1, **NO_BAR)
    assert cross.score("pearson") > 0.95


# What a result holds


def test_a_result_holds_everything_and_survives_a_round_trip(tmp_path: Path) -> None:
    adata = groups()
    done = probe(
        adata,
        use_rep="X_a",
        label="label",
        head="knn",
        splits=["random", "blocked", "few-shot"],
        **NO_BAR,
    )
    counts = done.metrics.groupby(["split", "metric"]).size().unstack()
    assert set(counts.columns) == {"accuracy", "macro_f1", "ari", "nmi"}
    assert counts["accuracy"].to_dict() == {"random": 3, "blocked": 3, "few-shot": 10}
    assert list(done.predictions) == ["true", "random", "blocked", "few-shot"]
    assert list(done.predictions.index) == list(adata.obs_names)
    shares = done.predictions.notna().mean()
    assert shares["blocked"] == 1
    assert shares["random"] == pytest.approx(0.2)
    assert shares["few-shot"] == pytest.approx(0.8)
    assert done.config["head"]["neighbors"] == 10
    assert done.config["use_rep"] == "X_a"
    assert done.config["embedding"] == ""  # not terrazzo's
    again = TaskResult.load(done.save(tmp_path / "out"))
    pd.testing.assert_frame_equal(again.metrics, done.metrics)
    pd.testing.assert_frame_equal(again.predictions, done.predictions, check_dtype=False)
    assert again.config == done.config


def test_scores_are_those_of_the_predictions() -> None:
    adata = groups()
    noisy = adata.obsm["X_a"] + np.random.default_rng(0).normal(size=adata.obsm["X_a"].shape) * 6
    for options in ({"splits": ["blocked"]}, {"splits": ["random"]}):
        done = probe(adata, use_rep=noisy, label="label", head="knn", runs=1, **options, **NO_BAR)
        column = done.predictions[options["splits"][0]]
        tested = column.notna()
        assert done.score("accuracy") == pytest.approx(
            (column == done.predictions["true"])[tested].mean()
        )
        assert 0.4 < done.score("accuracy") < 1


def test_same_seed_same_result() -> None:
    first, second, third = (
        probe(
            groups(),
            use_rep="X_a",
            label="label",
            head=QUICK,
            runs=2,
            seed=s,
            splits=["random"],
            **NO_BAR,
        )
        for s in (4, 4, 5)
    )
    pd.testing.assert_frame_equal(first.predictions, second.predictions)
    assert not first.predictions["random"].equals(third.predictions["random"])


def test_the_runs_of_two_seeds_share_nothing() -> None:
    plans = [experiments.Plan("probe", "knn", ("random",), 3, seed, None) for seed in range(5)]
    seeds = [plan.seed_of(run, fold) for plan in plans for run in range(5) for fold in range(4)]
    assert len(set(seeds)) == len(seeds)


# Leakage


FITTED = pytest.mark.parametrize("head", [QUICK, "knn", "linear"], ids=["mlp", "knn", "linear"])
ANSWERS = pytest.mark.parametrize(
    "options", [{"label": "label"}, {"values": "V"}], ids=["label", "values"]
)


@FITTED
@ANSWERS
def test_no_test_cell_changes_what_is_fitted(
    head: Any, options: dict[str, str], monkeypatch: Any
) -> None:
    """Vectors and answers of the test cells are replaced, fold by fold; what is fitted stays, bit by bit."""
    adata, seen = groups(80), []
    original = experiments.fit_head

    def twice(x: Any, target: Any, split: Any, head: Any, seed: int) -> Any:
        fitted = original(x, target, split, head, seed)
        values, vectors = target.values.copy(), x.copy()
        values[split.test] = (values[split.test] + 1) % 3 if "label" in options else -77.0
        vectors[split.test] += 1000
        other = original(
            vectors, type(target)(target.kind, target.names, values), split, head, seed
        ).state()
        for name, array in fitted.state().items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)
        seen.append(split)
        return fitted

    monkeypatch.setattr(experiments, "fit_head", twice)
    probe(
        adata,
        use_rep="X_a",
        head=head,
        runs=1,
        splits=("random", "blocked", "few-shot"),
        **options,
        **NO_BAR,
    )
    assert len(seen) == 1 + 4 + 10


@FITTED
@ANSWERS
def test_no_answer_of_the_test_slice_changes_what_is_predicted(
    head: Any, options: dict[str, str]
) -> None:
    first, second = groups(80), groups(60, seed=2)
    plain = probe(
        first, test=second, use_rep="X_a", head=head, runs=1, **options, **NO_BAR
    ).predictions
    second.obs["label"] = second.obs["label"].to_numpy()[::-1]
    second.obsm["V"] *= -3
    other = probe(
        first, test=second, use_rep="X_a", head=head, runs=1, **options, **NO_BAR
    ).predictions
    for name in plain:
        assert plain[name].equals(other[name]) != name.startswith("true")


def test_statistics_know_training_cells_only(monkeypatch: Any) -> None:
    adata = groups(80)
    x = adata.obsm["X_a"]
    original = experiments.fit_head

    def spy(vectors: Any, target: Any, split: Any, head: Any, seed: int) -> Any:
        fitted = original(vectors, target, split, head, seed)
        np.testing.assert_allclose(fitted.shift, x[split.train].mean(0, dtype=float))
        return fitted

    monkeypatch.setattr(experiments, "fit_head", spy)
    probe(adata, use_rep="X_a", label="label", runs=1, head=MLPConfig(max_epochs=1), **NO_BAR)


# Labels that are missing, rare, or on one side only


def test_cells_without_label_are_predicted_and_not_scored() -> None:
    adata = groups()
    truth = adata.obs["label"].astype(object).to_numpy().copy()
    labels = truth.copy()
    labels[:10], labels[10:12] = np.nan, "Unknown"
    adata.obs["label"] = labels
    done = probe(adata, use_rep="X_a", label="label", head="knn", runs=2, **NO_BAR)
    assert done.predictions["true"].isna().sum() == 12
    assert (done.predictions["blocked"].iloc[:12] == truth[:12]).mean() > 0.8
    assert done.predictions["random"].iloc[:12].notna().all()
    assert any("12 cells have no label" in note for note in done.notes)
    assert done.config["n_labeled"] == 108
    fitted = fit_probe(adata, use_rep="X_a", label="label", head="knn")
    assert (fitted.predict(adata)[:12] == truth[:12]).mean() > 0.8


def test_different_label_sets_are_scored_on_what_they_share() -> None:
    first, second = groups(200, k=4), groups(200, k=4, seed=1)
    first.obs["label"] = first.obs["label"].astype(object).replace("d", np.nan)
    second.obs["label"] = second.obs["label"].astype(object).replace("a", np.nan)
    done = probe(
        [first], test=second, use_rep="X_a", label="label", head="linear", runs=1, **NO_BAR
    )
    assert done.config["scored"] == ["b", "c"]
    assert any(
        "a only in the training slices; d only in the test slices" in note for note in done.notes
    )
    assert done.score("accuracy") > 0.9
    assert done.predictions["cross"].notna().all()
    assert (
        done.predictions["true"].value_counts().to_dict()
        == second.obs["label"].value_counts().to_dict()
    )
    first.obs["label"] = first.obs["label"].replace("b", "e")
    with pytest.raises(InputError, match="share 1 scored classes"):
        probe([first], test=second, use_rep="X_a", label="label", **NO_BAR)


def test_a_class_with_one_member_is_left_out_with_a_warning() -> None:
    adata = groups()
    adata.obs["label"] = adata.obs["label"].astype(object)
    adata.obs.iloc[0, adata.obs.columns.get_loc("label")] = "alone"
    with pytest.warns(TerrazzoWarning, match="alone has a single cell"):
        done = probe(adata, use_rep="X_a", label="label", head="knn", runs=1, **NO_BAR)
    assert "alone" not in set(done.predictions["true"])
    assert any("alone (1)" in note for note in done.notes)


def test_rows_with_nan_values_are_predicted_and_not_scored() -> None:
    adata = groups()
    adata.obsm["V"].iloc[:7, 1] = np.nan
    done = probe(
        adata, use_rep="X_a", values="V", head="linear", runs=1, splits=["random"], **NO_BAR
    )
    assert done.config["n_labeled"] == 113
    assert done.predictions["random:one"].iloc[:7].notna().all()
    assert any("7 cells have no values" in note for note in done.notes)


# A probe of its own


def test_a_probe_annotates_other_slices(tmp_path: Path) -> None:
    fitted = fit_probe(
        [groups(100), groups(90, seed=1)], use_rep="X_a", label="label", head="linear"
    )
    other = groups(70, seed=2)
    truth = other.obs.pop("label")
    assert fitted.annotate(other) is other
    predicted = other.obs["label_predicted"]
    assert list(predicted.cat.categories) == ["a", "b", "c"]
    assert (predicted.astype(str) == truth.astype(str)).mean() > 0.95
    assert other.uns["terrazzo"]["label_predicted"]["use_rep"] == "X_a"
    chances = fitted.predict_proba(other)
    assert chances.shape == (70, 3)
    values = fit_probe(groups(100), use_rep="X_a", values="V", head="knn")
    values.annotate(other, key_added="mine")
    assert other.obsm["mine"].shape == (70, 2)
    assert list(other.uns["mine_names"]) == ["one", "two"]
    other.write_h5ad(tmp_path / "a.h5ad")
    again = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert (again.obs["label_predicted"] == predicted).all()


@pytest.mark.parametrize("head", ["mlp3", "mlp512", "knn", "linear"])
@pytest.mark.parametrize("kind", ["label", "values", "proportions"])
def test_a_saved_probe_answers_alike(head: str, kind: str, tmp_path: Path) -> None:
    adata = groups(40)
    adata.obsm["P"] = np.abs(adata.obsm["X_a"][:, :3]) / np.abs(adata.obsm["X_a"][:, :3]).sum(
        1, keepdims=True
    )
    config: Any = (
        MLPConfig((8, 4), "relu", max_epochs=3, early_stopping=False) if head == "mlp512" else head
    )
    options = {"label": "label", "values": "V", "proportions": "P"}[kind]
    fitted = fit_probe(adata, use_rep="X_a", head=config, **{kind: options})
    folder = fitted.save(tmp_path / "probe")
    assert sorted(p.name for p in folder.iterdir()) == ["probe.json", "probe.safetensors"]
    again = Probe.load(folder)
    assert (again.names, again.use_rep, again.target, again.kind) == (
        fitted.names,
        fitted.use_rep,
        fitted.target,
        fitted.kind,
    )
    np.testing.assert_array_equal(again.predict(adata), fitted.predict(adata))
    np.testing.assert_array_equal(
        again.head.outputs(adata.obsm["X_a"]), fitted.head.outputs(adata.obsm["X_a"])
    )
    if kind == "proportions":
        np.testing.assert_allclose(again.predict(adata).sum(1), 1, atol=1e-5)


def test_a_save_replaces_nothing_that_is_not_a_probe(tmp_path: Path) -> None:
    fitted = fit_probe(groups(), use_rep="X_a", label="label", head="linear")
    fitted.save(tmp_path / "p")
    with pytest.raises(OutputError, match="overwrite=True"):
        fitted.save(tmp_path / "p")
    fitted.save(tmp_path / "p", overwrite=True)
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="choose another folder"):
        fitted.save(tmp_path / "q", overwrite=True)
    assert (tmp_path / "q" / "mine.txt").read_text() == "x"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "q"]


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    fitted = fit_probe(groups(), use_rep="X_a", label="label", head="linear")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left"):
        fitted.save(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def damage(folder: Path, how: str) -> None:
    record, arrays = folder / "probe.json", folder / "probe.safetensors"
    content = json.loads(record.read_text())
    if how == "no arrays":
        arrays.unlink()
    elif how == "cut":
        arrays.write_bytes(arrays.read_bytes()[:-9])
    elif how == "flipped":
        predicted = bytearray(arrays.read_bytes())
        predicted[-1] ^= 1
        arrays.write_bytes(bytes(predicted))
    elif how == "no json":
        record.write_text("{")
    elif how == "not an object":
        record.write_text("[1]")
    elif how == "of another model":
        record.write_text(json.dumps({"format": 1, "model_type": "stofm", "model": {}}))
    elif how == "newer":
        record.write_text(json.dumps({**content, "format": 99}))
    elif how == "another head":
        record.write_text(
            json.dumps({**content, "head": {"type": "knn", "neighbors": 3, "standardize": False}})
        )
    elif how == "more classes":
        record.write_text(json.dumps({**content, "names": [*content["names"], "d"]}))
    else:
        record.write_text(json.dumps({**content, "head": {**content["head"], "hidden": [7]}}))


@pytest.mark.parametrize("head", ["linear", MLPConfig((4,), max_epochs=1)], ids=["linear", "mlp"])
@pytest.mark.parametrize(
    "how",
    [
        "no arrays",
        "cut",
        "flipped",
        "no json",
        "not an object",
        "of another model",
        "newer",
        "another head",
        "more classes",
        "another shape",
    ],
)
def test_damaged_and_foreign_folders_are_refused(how: str, head: Any, tmp_path: Path) -> None:
    folder = fit_probe(groups(30), use_rep="X_a", label="label", head=head).save(tmp_path / "p")
    damage(folder, how)
    with pytest.raises(CheckpointError):
        Probe.load(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks probe\.json, probe\.safetensors"):
        Probe.load(tmp_path / "nothing")


def test_embeddings_of_different_models_are_warned_about() -> None:
    first, second = groups(), groups(seed=1)
    for one, name in ((first, "aaa"), (second, "bbb")):
        one.uns["terrazzo"] = {"X_a": {"model": "SToFM", "checkpoint_sha256": name}}
    fitted = fit_probe(first, use_rep="X_a", label="label", head="knn")
    fitted.predict(groups())  # nothing is known of this one
    with pytest.warns(TerrazzoWarning, match="axes may not agree"):
        fitted.predict(second)
    with pytest.warns(TerrazzoWarning, match="axes may not agree"):
        probe(first, test=second, use_rep="X_a", label="label", head="knn", runs=1, **NO_BAR)


# Bad input


def spoilt(**changes: Any) -> AnnData:
    adata = groups()
    for key, value in changes.items():
        if key == "label":
            adata.obs["label"] = value
        else:
            adata.obsm[key] = value
    return adata


NAN = np.where(np.arange(600).reshape(120, 5) == 7, np.nan, 1.0)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (groups, {"label": "lable"}, InputError, "no column 'lable'.*Did you mean 'label'"),
        (groups, {}, ConfigError, "one thing only: label="),
        (groups, {"label": "label", "values": "V"}, ConfigError, "one thing only: label="),
        (lambda: spoilt(label="a"), {"label": "label"}, InputError, "one class, 'a'"),
        (lambda: spoilt(label=np.nan), {"label": "label"}, InputError, "holds no label"),
        (lambda: spoilt(X_a=NAN), {"label": "label"}, InputError, "not finite, in 1 of 120 cells"),
        (groups, {"label": "label", "use_rep": "X_b"}, InputError, "no 'X_b'.*Did you mean 'X_a'"),
        (groups, {"label": "label", "use_rep": np.ones((3, 2))}, InputError, r"must be \(120, d\)"),
        (groups, {"label": ["a", "b"]}, InputError, "2 labels for 120 cells"),
        (groups, {"label": "label", "head": "mlp9"}, ConfigError, "head is 'mlp9'"),
        (
            groups,
            {"label": "label", "splits": ["halves"]},
            ConfigError,
            "random, blocked, few-shot",
        ),
        (groups, {"label": "label", "runs": 0}, ConfigError, "runs is 0"),
        (
            lambda: [groups(), groups()],
            {"label": "label"},
            ConfigError,
            "2 slices; pass the slice to be scored as test=",
        ),
        (list, {"label": "label"}, InputError, "an empty list"),
        (lambda: [3], {"label": "label"}, InputError, "not int"),
        (groups, {"values": "W"}, InputError, "obsm has no 'W'"),
        (groups, {"values": np.ones((4, 2))}, InputError, r"must be \(120, m\)"),
        (
            groups,
            {"values": np.full((120, 2), np.inf)},
            InputError,
            "infinite values, in 120 cells",
        ),
        (groups, {"values": np.full((120, 2), np.nan)}, InputError, "NaN in every cell"),
        (groups, {"values": np.full((120, 2), "x")}, InputError, "does not hold numbers"),
        (
            lambda: spoilt(spatial=NAN[:, :2] * np.nan),
            {"label": "label"},
            InputError,
            "obsm.'spatial'. is NaN",
        ),
        (lambda: groups(4), {"label": "label"}, InputError, "enough cells|at least 5"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*single cell")
def test_bad_input_is_refused(
    make: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        probe(make(), **{"use_rep": "X_a", "head": "knn", **NO_BAR, **options})


def test_bad_input_of_several_slices_names_the_slice() -> None:
    first, second = groups(), groups(seed=1)
    del second.obs["label"]
    with pytest.raises(InputError, match="slice 2 of 2: obs has no column 'label'"):
        fit_probe([first, second], use_rep="X_a", label="label")
    second = spoilt(X_a=np.ones((120, 3)))
    with pytest.raises(InputError, match=r"different widths \(3, 5\)"):
        fit_probe([first, second], use_rep="X_a", label="label")
    second = spoilt(
        V=pd.DataFrame({"one": np.ones(120), "three": np.ones(120)}, index=first.obs_names)
    )
    with pytest.raises(InputError, match="other columns than the first"):
        fit_probe([first, second], use_rep="X_a", values="V")
    with pytest.raises(InputError, match="one for each of the 2 slices"):
        fit_probe([first, second], use_rep="X_a", label=[first.obs["label"]])
    with pytest.raises(ConfigError, match="label must be a key that all slices have"):
        probe(first, test=groups(), use_rep="X_a", label=first.obs["label"].to_numpy(), **NO_BAR)


def test_a_probe_refuses_other_vectors() -> None:
    fitted = fit_probe(groups(), use_rep="X_a", label="label", head="knn")
    with pytest.raises(InputError, match="width 5, these have 4"):
        fitted.predict(np.ones((3, 4)))
    with pytest.raises(InputError, match="not finite"):
        fitted.predict(NAN)
    bare = fit_probe(groups(), use_rep=groups().obsm["X_a"], label="label", head="knn")
    with pytest.raises(InputError, match="as use_rep="):
        bare.predict(groups())
    assert bare.predict(groups(), use_rep="X_a").shape == (120,)
    assert bare.predict(groups().obsm["X_a"]).shape == (120,)
    with pytest.raises(ConfigError, match="no probabilities"):
        fit_probe(groups(), use_rep="X_a", values="V", head="knn").predict_proba(groups())


def test_arrays_for_several_slices() -> None:
    first, second = groups(), groups(seed=1)
    by_array = fit_probe(
        [first, second],
        use_rep=[first.obsm["X_a"], second.obsm["X_a"]],
        label=[first.obs["label"], second.obs["label"]],
        head="knn",
    )
    by_key = fit_probe([first, second], use_rep="X_a", label="label", head="knn")
    np.testing.assert_array_equal(by_array.predict(first, use_rep="X_a"), by_key.predict(first))
