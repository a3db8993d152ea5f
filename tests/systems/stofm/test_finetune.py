"""Fine-tuning of all parameters: its vectors are those of embed, test labels reach nothing, the best state is kept."""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import terrazzo as tz
from terrazzo.errors import CheckpointError, ConfigError, InputError, OutputError, TrainingError
from terrazzo.systems.stofm import finetune as finetune_module
from terrazzo.systems.stofm.finetune import FineTuneConfig, FineTuned, finetune
from terrazzo.systems.stofm.finetune_scores import evaluate_finetuning
from terrazzo.systems.stofm.labeled import prepare, refresh, slice_vectors
from terrazzo.tasks import targets
from terrazzo.tasks.splits import random_splits

N = 90  # cells, in two sub-slices
SHORT = FineTuneConfig(max_epochs=2, batch_cells=40)


@pytest.fixture
def adata(simulated: Any) -> Any:
    """Simulate a slice of three regions."""
    return simulated(N, 60, n_regions=3, n_types=4)


def model_of(tiny_model: Any, output: str = "niche", **subslices: Any) -> Any:
    """Return a model of its own, which a test may not spoil for others."""
    base = tiny_model(**subslices)
    model = tz.SToFM(replace(base.config, output=output), base.vocabulary)
    model.module.load_state_dict(base.module.state_dict())
    return model


def split_of(adata: Any, label: str = "region") -> Any:
    return random_splits(targets.read_classes(adata, label).known, 1)[0]


def weights(tuned: FineTuned) -> dict[str, torch.Tensor]:
    held = {f"model.{k}": v for k, v in tuned.model.module.state_dict().items()}
    return held | {f"head.{k}": torch.as_tensor(v) for k, v in tuned.probe.head.state().items()}


def same(a: FineTuned, b: FineTuned) -> bool:
    left, right = weights(a), weights(b)
    return (
        left.keys() == right.keys()
        and all(torch.equal(left[k], right[k]) for k in left)
        and a.log == b.log
    )


@pytest.mark.parametrize("output", ["niche", "own+niche"])
@pytest.mark.parametrize(
    "subslices", [{}, {"halo": 2.0}, {"virtual": False}, {"pair": "full"}], ids=str
)
def test_a_cut_slice_has_the_vectors_of_embed(
    tiny_model: Any, adata: Any, output: str, subslices: dict[str, Any]
) -> None:
    model = model_of(tiny_model, output, **subslices)
    marks = np.zeros(adata.n_obs, dtype=bool)
    labeled = prepare(model, adata, np.arange(adata.n_obs), marks, marks)
    assert len(labeled.subslices) == 2
    expected = model.embed(adata, progress=False).obsm["X_stofm"]
    np.testing.assert_allclose(slice_vectors(model, labeled), expected[labeled.codes], atol=2e-5)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(0.01)
    refresh(model, labeled)  # whatever the weights have become
    expected = model.embed(adata, progress=False).obsm["X_stofm"]
    np.testing.assert_allclose(slice_vectors(model, labeled), expected[labeled.codes], atol=2e-5)


@pytest.mark.parametrize("output", ["niche", "own+niche"])
def test_cells_encoded_again_have_the_same_vectors_and_a_gradient(
    tiny_model: Any, adata: Any, output: str
) -> None:
    model = model_of(tiny_model, output)
    marks = np.zeros(adata.n_obs, dtype=bool)
    labeled = prepare(model, adata, np.arange(adata.n_obs), marks, marks)
    sub, none = labeled.subslices[0], np.empty(0, dtype=np.int64)
    again = np.array([0, 3, 7])
    found = finetune_module.subslice_vectors(model, labeled, sub, again)
    torch.testing.assert_close(
        found, finetune_module.subslice_vectors(model, labeled, sub, none), atol=2e-5, rtol=1e-4
    )
    found[again].square().sum().backward()
    embeddings = model.module.cell_encoder.bert.embeddings.word_embeddings.weight
    assert float(embeddings.grad.abs().sum()) > 0


def test_all_parameters_are_tuned_and_the_best_state_is_kept(
    tiny_model: Any, simulated: Any, capfd: Any
) -> None:
    adata = simulated(150, 60, n_regions=3, n_types=4)
    model = model_of(tiny_model, "own+niche")
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    tuned = finetune(
        model, adata, label="region", config=replace(SHORT, max_epochs=4), progress=False
    )
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(before[k], v) for k, v in model.module.state_dict().items())
    assert 2 <= len(tuned.log) <= 5
    assert min(tuned.log) < tuned.log[0]
    after = tuned.model.module.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    parts = (
        "cell_encoder.bert.embeddings.word",
        "cell_encoder.bert.encoder",
        "cell_encoder.proj",
        "se2.layers",
        "se2.gaussian",
        "se2.embedding",
    )
    assert all(any(k.startswith(part) for k in moved) for part in parts)
    start = finetune(
        model, adata, label="region", config=replace(SHORT, encoder_lr=0, se2_lr=0, head_lr=0)
    )
    assert start.log[0] == tuned.log[0]
    heads = [t.probe.head.state() for t in (start, tuned)]
    assert not np.array_equal(
        heads[0]["module.layers.0.weight"], heads[1]["module.layers.0.weight"]
    )
    assert not np.array_equal(heads[0]["scale"], heads[1]["scale"])  # those of the tuned vectors


def test_the_loss_that_was_kept_is_that_of_the_model_that_is_returned(
    tiny_model: Any, adata: Any
) -> None:
    split = split_of(adata)
    for output in ("niche", "own+niche"):
        tuned = finetune(
            model_of(tiny_model, output), adata, label="region", config=SHORT, split=split
        )
        tuned.predict(adata)
        odds = tuned.probe.predict_proba(adata, use_rep="X_stofm:all")[split.validation]
        codes = targets.read_classes(adata, "region").values[split.validation]
        loss = -np.log(odds[np.arange(len(codes)), codes]).mean()
        assert loss == pytest.approx(min(tuned.log), rel=1e-3)


def test_where_nothing_is_better_the_frozen_start_is_kept(tiny_model: Any, adata: Any) -> None:
    config = FineTuneConfig(encoder_lr=0.5, se2_lr=0.5, head_lr=0.5, max_epochs=3, patience=1)
    model = model_of(tiny_model)
    tuned = finetune(model, adata, label="region", config=config)
    assert min(tuned.log) == tuned.log[0]
    assert len(tuned.log) == 2  # stopped
    assert all(
        torch.equal(v, tuned.model.module.state_dict()[k])
        for k, v in model.module.state_dict().items()
    )


def test_a_model_whose_cells_are_almost_alike_learns(tiny_model: Any, adata: Any) -> None:
    base = tiny_model()
    model = tz.SToFM(
        base.config, base.vocabulary, seed=1
    )  # untrained: cells differ by a thousandth of their length
    x = model.embed(adata, progress=False).obsm["X_stofm"]
    assert np.median(x.std(axis=0)) < 0.02 * np.sqrt((x**2).mean())
    tuned = finetune(model, adata, label="cell_type", config=replace(SHORT, max_epochs=4))
    assert max(tuned.log) < 2 * tuned.log[0]  # it was a hundred times as large
    assert min(tuned.log) < tuned.log[0]


def test_test_labels_change_nothing(tiny_model: Any, adata: Any) -> None:
    split = split_of(adata)
    first = finetune(model_of(tiny_model), adata, label="region", config=SHORT, split=split)
    other = adata.copy()
    words = other.obs["region"].astype(str).to_numpy()
    words[split.test] = np.roll(words[split.test], 1)  # as many of each class, elsewhere
    assert (words != adata.obs["region"].astype(str)).any()
    other.obs["region"] = words
    assert same(
        first, finetune(model_of(tiny_model), other, label="region", config=SHORT, split=split)
    )
    words[split.train] = np.roll(words[split.train], 1)
    other.obs["region"] = words
    assert not same(
        first, finetune(model_of(tiny_model), other, label="region", config=SHORT, split=split)
    )


@pytest.mark.slow
def test_same_seed_same_result_and_the_global_streams_are_left_alone(
    tiny_model: Any, adata: Any
) -> None:
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    level = logging.getLogger("lightning.pytorch").level
    runs = [
        finetune(model_of(tiny_model), adata, label="region", config=SHORT, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert logging.getLogger("lightning.pytorch").level == level
    torch.manual_seed(5)  # nor do they matter
    assert same(
        runs[0], finetune(model_of(tiny_model), adata, label="region", config=SHORT, seed=1)
    )


@pytest.mark.slow
def test_several_slices_and_cells_without_a_label(
    tiny_model: Any, adata: Any, simulated: Any
) -> None:
    second = simulated(90, 60, n_regions=3, n_types=4, seed=1)
    second.obs["region"] = second.obs["region"].astype(object)
    second.obs.loc[second.obs_names[:30], "region"] = None
    tuned = finetune(model_of(tiny_model), [adata, second], label="region", config=SHORT)
    found = tuned.predict(second)
    assert found.shape == (90,)
    assert set(found) <= set(tuned.probe.names)
    assert any("30 cells" in note for note in tuned.probe.info["notes"])
    assert tuned.model.provenance["weights"] == "fine-tuned"
    assert tuned.model.trained


@pytest.mark.slow
def test_saved_and_loaded(
    tiny_model: Any, adata: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = finetune(model_of(tiny_model, "own+niche"), adata, label="region", config=SHORT)
    monkeypatch.chdir(tmp_path)
    folder = tuned.save("deep/tuned")
    assert sorted(p.name for p in Path("deep").iterdir()) == ["tuned"]
    assert sorted(p.name for p in folder.iterdir()) == ["model", "probe"]
    loaded = FineTuned.load("deep/tuned")
    assert (loaded.predict(adata.copy()) == tuned.predict(adata)).all()
    assert adata.obsm["X_stofm"].shape == (N, 48)
    with pytest.raises(OutputError, match="is not an empty folder"):
        tuned.save(folder)
    Path("file").write_text("x")
    for target in ("file", "file/deeper"):
        with pytest.raises(OutputError):
            tuned.save(target)
    Path("empty").mkdir()
    assert tuned.save("empty") == Path("empty")
    with pytest.raises(CheckpointError):
        FineTuned.load("gone")  # not looked for on the hub


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_epochs": 0}, "max_epochs"),
        ({"patience": 0}, "patience"),
        ({"head_lr": -1}, "head_lr"),
        ({"batch_cells": 0}, "batch_cells"),
        ({"se2_lr": float("nan")}, "se2_lr"),
    ],
)
def test_impossible_settings(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FineTuneConfig(**values)


def test_labels_that_cannot_be_learned(tiny_model: Any, adata: Any) -> None:
    model = model_of(tiny_model)
    with pytest.raises(InputError, match="obs has no column 'reigon'"):
        finetune(model, adata, label="reigon")
    adata.obs["one"] = "a"
    with pytest.raises(InputError, match="one class, 'a'"):
        finetune(model, adata, label="one")
    split = split_of(adata)
    with pytest.raises(InputError, match="others to stop by"):
        finetune(
            model, adata, label="region", split=replace(split, validation=split.validation[:0])
        )
    adata.obs["part"] = adata.obs["region"].astype(object)
    adata.obs.loc[adata.obs_names[split.train[0]], "part"] = None
    with pytest.raises(InputError, match="cells without a label"):
        finetune(model, adata, label="part", split=split)


def test_a_loss_that_is_no_number(
    tiny_model: Any, adata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        finetune_module.F, "cross_entropy", lambda scores, codes, **how: scores.sum() * float("nan")
    )
    monkeypatch.setattr(finetune_module.FineTuning, "held_out_loss", lambda self: 1.0)
    before = torch.get_rng_state()
    with pytest.raises(TrainingError, match="lower the learning rates"):
        finetune(model_of(tiny_model), adata, label="region", config=SHORT)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_training_cell_is_learned_from_once_in_a_pass(tiny_model: Any, adata: Any) -> None:
    model, split = model_of(tiny_model), split_of(adata)
    train, none = np.zeros(N, dtype=bool), np.zeros(N, dtype=bool)
    train[split.train] = True
    labeled = prepare(model, adata, np.zeros(N, dtype=np.int64), train, none)
    steps = finetune_module.Steps([labeled], 25, np.random.default_rng(0))
    passes = [list(steps), list(steps)]
    for one in passes:
        assert len(one) == len(steps)
        cells = [labeled.subslices[j].cells[places] for _, j, places in one]
        assert max(map(len, cells)) <= 25
        assert sorted(np.concatenate(cells)) == sorted(np.flatnonzero(labeled.train))
    assert any(not np.array_equal(a[2], b[2]) for a, b in zip(*passes, strict=True))


@pytest.mark.slow
def test_scored_within_a_slice(tiny_model: Any, adata: Any) -> None:
    before = adata.copy()
    adata.obs["region"] = adata.obs["region"].astype(object)
    adata.obs.loc[adata.obs_names[:5], "region"] = None
    one_pass = replace(SHORT, max_epochs=1)
    result = evaluate_finetuning(
        model_of(tiny_model), adata, label="region", runs=1, config=one_pass
    )
    assert list(adata.obsm) == list(before.obsm)
    assert set(result.metrics["split"]) == {"random", "blocked"}
    assert set(result.metrics["metric"]) == {"accuracy", "macro_f1", "ari", "nmi"}
    assert result.predictions["blocked"].notna().all()  # cells without a label are predicted, too
    assert result.predictions["true"].isna().sum() == 5
    scored = result.predictions["true"].notna()
    right = result.predictions["true"][scored] == result.predictions["blocked"][scored]
    assert result.score("accuracy", "blocked") == pytest.approx(right.mean())
    assert result.config["fine_tuning"]["max_epochs"] == 1


def test_scored_across_slices(
    tiny_model: Any, adata: Any, simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from terrazzo.systems.stofm import finetune_scores

    test = simulated(90, 60, n_regions=3, n_types=4, seed=1)
    test.obs["region"] = test.obs["region"].astype(str)
    test.obs.loc[test.obs_names[:20], "region"] = "elsewhere"
    given: list[Any] = []

    def spied(model: Any, data: Any, **options: Any) -> Any:
        given.extend(data)
        return finetune(model, data, **options)

    monkeypatch.setattr(finetune_scores, "finetune", spied)
    result = evaluate_finetuning(
        model_of(tiny_model), adata, test=test, label="region", runs=1, config=SHORT
    )
    assert [a is adata for a in given] == [
        True
    ]  # the scored slice is not there when the weights are tuned
    assert set(result.metrics["split"]) == {"cross"}
    assert "not scored: elsewhere only in the test slices" in result.notes
    scored = (test.obs["region"] != "elsewhere").to_numpy()
    right = result.predictions["true"][scored] == result.predictions["cross"][scored]
    assert result.score("accuracy") == pytest.approx(right.mean())


def test_what_cannot_be_scored(tiny_model: Any, adata: Any) -> None:
    model = model_of(tiny_model)
    with pytest.raises(ConfigError, match="as test="):
        evaluate_finetuning(model, [adata, adata], label="region")
    for wrong in ({"kinds": ["few-shot"]}, {"kinds": []}, {"runs": 0}):
        with pytest.raises(ConfigError, match="at least one run"):
            evaluate_finetuning(model, adata, label="region", **wrong)


def test_dropout_is_for_weights_that_were_trained(tiny_model: Any, adata: Any) -> None:
    config = replace(SHORT, max_epochs=1)
    base = model_of(tiny_model)
    trained = tz.SToFM(base.config, base.vocabulary, provenance={"weights": "trained"})
    trained.module.load_state_dict(base.module.state_dict())
    found = [finetune(model, adata, label="region", config=config) for model in (base, trained)]
    assert [one.probe.info["fine_tuned"]["dropout"] for one in found] == [False, True]
    assert found[0].log[0] == found[1].log[0]
    assert found[0].log[1] != found[1].log[1]
    assert not found[1].model.module.training
