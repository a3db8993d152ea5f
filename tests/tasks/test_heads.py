"""Heads: right answers, statistics of training rows only, and no trace on the global generators."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from terrazzo.errors import ConfigError
from terrazzo.tasks import heads
from terrazzo.tasks.experiments import make_head
from terrazzo.tasks.heads import (
    HEADS,
    KNNConfig,
    LinearConfig,
    MLPConfig,
    nearest_proportions,
)

# of the same kinds, and quick
SMALL = replace(HEADS["mlp512"], hidden=(32, 16), max_epochs=25)
STOPPED = replace(HEADS["mlp3"], hidden=(64, 64), learning_rate=3e-3)
EVERY = pytest.mark.parametrize(
    "head", [STOPPED, SMALL, "knn", "linear"], ids=["mlp3", "mlp512", "knn", "linear"]
)
KINDS = pytest.mark.parametrize("kind", ["classes", "values", "proportions"])


def data(
    kind: str, n: int = 300, d: int = 6, k: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors with a class, a linear map with noise, or a softmax behind them; far from mean 0 and sd 1."""
    rng = np.random.default_rng(seed)
    weight = np.random.default_rng(9).normal(size=(d, k))
    x = rng.normal(size=(n, d))
    scores = x @ weight
    if kind == "classes":
        y = (scores + 0.3 * rng.normal(size=scores.shape)).argmax(1)
    elif kind == "values":
        y = (scores * [1, 10, 100][:k] + 5 + 0.1 * rng.normal(size=(n, k))).astype(np.float32)
    else:
        y = (np.exp(scores) / np.exp(scores).sum(1, keepdims=True)).astype(np.float32)
    return (x * 7 + 40).astype(np.float32), y


@functools.cache
def fitted(head: Any, kind: Any, seed: int = 1) -> heads.Head:
    """Fit a head; once for equal arguments."""
    return fit(head, kind, seed)


def fit(head: Any, kind: Any, seed: int = 1) -> heads.Head:
    x, y = data(kind)
    return make_head(head, kind, 3).fit(x[:200], y[:200], x[200:230], y[200:230], seed)


@EVERY
@KINDS
def test_the_truth_is_found(head: Any, kind: Any) -> None:
    x, y = data(kind, seed=1)
    output = fitted(head, kind).predict(x)
    if kind == "classes":
        assert output.dtype == np.int64
        assert (output == y).mean() > 0.8
        return
    assert output.shape == y.shape
    assert output.dtype == np.float32
    for column in range(3):
        assert np.corrcoef(output[:, column], y[:, column])[0, 1] > 0.85
    if kind == "proportions":
        np.testing.assert_allclose(output.sum(1), 1, atol=1e-5)
        assert output.min() >= 0


@EVERY
def test_probabilities_sum_to_one_and_decide(head: Any) -> None:
    x, _ = data("classes", seed=1)
    trained = fitted(head, "classes")
    chances = trained.predict_proba(x)
    np.testing.assert_allclose(chances.sum(1), 1, atol=1e-5)
    assert (chances.argmax(1) == trained.predict(x)).all()
    with pytest.raises(ConfigError, match="values, which have no probabilities"):
        fitted(head, "values").predict_proba(x)


@EVERY
@KINDS
def test_same_seed_same_answer_and_global_generators_untouched(head: Any, kind: Any) -> None:
    x, _ = data(kind, seed=1)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before, state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = fit(head, kind).outputs(x), fit(head, kind).outputs(x)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    np.testing.assert_array_equal(first, second)


def test_another_seed_is_another_start() -> None:
    x, _ = data("classes", seed=1)
    assert not np.array_equal(
        fitted(STOPPED, "classes", 1).outputs(x), fitted(STOPPED, "classes", 2).outputs(x)
    )


@EVERY
@KINDS
def test_state_and_settings_carry_everything(head: Any, kind: Any) -> None:
    x, _ = data(kind, seed=1)
    first = fitted(head, kind)
    settings = heads.head_from_record(heads.head_record(head))
    assert settings == heads.head_config(head)
    again = make_head(settings, kind, 3).load_state({k: v.copy() for k, v in first.state().items()})
    np.testing.assert_array_equal(again.outputs(x), first.outputs(x))


@pytest.mark.parametrize("head", ["mlp3", "linear"])
def test_statistics_are_those_of_the_training_rows(head: str) -> None:
    x, y = data("values")
    alone = make_head(head, "values", 3).fit(x[:200], y[:200], x[200:230], y[200:230])
    np.testing.assert_allclose(alone.shift, x[:200].mean(0, dtype=float))
    np.testing.assert_allclose(alone.scale, x[:200].std(0, dtype=float))
    if head == "mlp3":
        np.testing.assert_allclose(alone.state()["target_shift"], y[:200].mean(0, dtype=float))


def test_without_use_for_validation_rows_they_are_learned_from() -> None:
    x, y = data("classes")
    for head in (SMALL, "knn", "linear"):
        split = make_head(head, "classes", 3).fit(x[:200], y[:200], x[200:230], y[200:230], 5)
        joined = make_head(head, "classes", 3).fit(x[:230], y[:230], x[:0], y[:0], 5)
        np.testing.assert_array_equal(split.outputs(x), joined.outputs(x))


def test_k_nearest_is_scikit_learns() -> None:
    x, y = data("classes")
    new, _ = data("classes", seed=1)
    expected = KNeighborsClassifier(10).fit(x, y)
    np.testing.assert_allclose(
        make_head("knn", "classes", 3).fit(x, y, x[:0], y[:0]).outputs(new),
        expected.predict_proba(new),
        atol=1e-6,
    )
    _, values = data("values")
    trained = make_head("knn", "values", 3).fit(x, values, x[:0], values[:0])
    np.testing.assert_allclose(
        trained.outputs(new),
        KNeighborsRegressor(10).fit(x, values).predict(new),
        rtol=1e-4,
        atol=1e-4,
    )
    few = make_head("knn", "classes", 3).fit(
        x[:4], y[:4], x[:0], y[:0]
    )  # fewer rows than neighbors
    assert few.predict(new).shape == (300,)


def test_linear_is_scikit_learns() -> None:
    x, y = data("classes")
    ready = ((x - x.mean(0, dtype=float)) / x.std(0, dtype=float)).astype(np.float32).astype(float)
    trained = make_head("linear", "classes", 3).fit(x, y, x[:0], y[:0])
    expected = LogisticRegression(C=0.1, max_iter=300).fit(ready, y)
    np.testing.assert_allclose(trained.outputs(x), expected.predict_proba(ready), atol=1e-6)
    two = (y > 0).astype(int)
    trained = make_head("linear", "classes", 2).fit(x, two, x[:0], two[:0])
    expected = LogisticRegression(C=0.1, max_iter=300).fit(ready, two)
    np.testing.assert_allclose(trained.outputs(x), expected.predict_proba(ready), atol=1e-6)


def test_the_ridges_penalty_is_the_validation_rows_choice() -> None:
    x, y = data("values", n=60, d=40, k=3)
    trained = make_head("linear", "values", 3).fit(x[:45], y[:45], x[45:], y[45:])
    ready = ((x - trained.shift) / trained.scale).astype(np.float32).astype(float)
    fits = [Ridge(alpha=a).fit(ready[:45], y[:45]) for a in heads.ALPHAS]
    best = min(fits, key=lambda fit: np.square(fit.predict(ready[45:]) - y[45:]).sum())
    np.testing.assert_allclose(trained.outputs(x), best.predict(ready), rtol=1e-4, atol=1e-4)


def test_classes_that_are_not_in_training_are_never_the_answer() -> None:
    x, y = data("classes")
    for present in ([0, 2], [1]):
        rows = np.isin(y, present)
        head = make_head("linear", "classes", 3).fit(x[rows], y[rows], x[:0], y[:0])
        assert set(head.predict(x)) <= set(present)
        assert np.isfinite(head.state()["bias"]).all()


def test_dead_columns_do_not_matter() -> None:
    x, y = data("classes")
    noise = 1e-7 * np.random.default_rng(0).normal(size=(300, 2))
    wide = np.hstack([x, np.full((300, 1), 3.0), 1000 * (1 + noise)]).astype(np.float32)
    for head in ("mlp3", "linear"):
        output = make_head(head, "classes", 3).fit(wide[:200], y[:200], wide[200:230], y[200:230])
        assert (output.scale[-3:] == 1).all()
        assert (output.predict(wide[230:]) == y[230:]).mean() > 0.85


def test_a_constant_column_is_answered_with_its_value() -> None:
    x, y = data("values")
    y = y.copy()
    y[:, 1] = 4.25
    for head in ("mlp3", "knn", "linear"):
        output = (
            make_head(head, "values", 3).fit(x[:200], y[:200], x[200:230], y[200:230]).predict(x)
        )
        np.testing.assert_allclose(output[:, 1], 4.25, atol=1e-4)


def test_early_stopping_restores_the_best_weights() -> None:
    rng = np.random.default_rng(0)
    x, y = (
        rng.normal(size=(60, 20)).astype(np.float32),
        rng.integers(3, size=60),
    )  # nothing to learn: overfits soon
    losses: list[float] = []
    head = make_head(MLPConfig(learning_rate=1e-2, patience=5, max_epochs=60), "classes", 3)
    module = type(head)
    original = module._loss

    def spy(self: Any, scores: Any, target: Any) -> Any:
        loss = original(self, scores, target)
        if not self._module.training:
            losses.append(float(loss))
        return loss

    module._loss = spy
    try:
        head.fit(x[:40], y[:40], x[40:], y[40:])
    finally:
        module._loss = original
    chances = head.predict_proba(x[40:])
    rows = -np.log(chances[np.arange(20), y[40:]]).mean()
    assert len(losses) < 60
    assert rows == pytest.approx(min(losses), rel=1e-5)
    assert losses[-1] > min(losses)


@KINDS
def test_an_mlp_starts_from_the_trivial_answer(kind: Any) -> None:
    """Where validation rows say that nothing can be learned, the answer is the training rows' mean."""
    rng = np.random.default_rng(0)
    _, y = data(kind)
    x = rng.normal(size=(300, 6))
    config = MLPConfig(learning_rate=1e-12, max_epochs=1)
    output = make_head(config, kind, 3).fit(x[:200], y[:200], x[200:], y[200:]).outputs(x)
    mean = np.eye(3)[y[:200]].mean(0) if kind == "classes" else y[:200].mean(0)
    np.testing.assert_allclose(output, np.broadcast_to(mean, output.shape), rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        (({"floor": 10.0}, {"floor": 0.1}), 1),
        # 7 steps an epoch of 200 rows: 15 steps end in the third
        (({"max_steps": 15, "floor": 0.0}, {"max_steps": 0, "floor": 0.0}), 3),
    ],
)
def test_training_without_validation_ends_at_the_floor_or_after_so_many_steps(
    settings: Any, first: int
) -> None:
    x, y = (values[:200] for values in data("classes"))
    counted = []
    for changes in settings:
        head = make_head(replace(SMALL, **changes), "classes", 3)
        epochs = 0
        original = head._epoch  # type: ignore[attr-defined]

        def count(*arguments: Any, run: Any = original) -> float:
            nonlocal epochs
            epochs += 1
            return run(*arguments)

        head._epoch = count  # type: ignore[attr-defined]
        head.fit(x, y, x[:0], y[:0])
        counted.append(epochs)
    assert counted[0] == first < counted[1]


def test_the_nearest_proportions() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 4))
    output = nearest_proportions(values)
    np.testing.assert_allclose(output.sum(1), 1)
    assert output.min() >= 0
    others = rng.dirichlet(np.ones(4), size=2000)
    nearest = ((values[:, None] - others[None]) ** 2).sum(-1).min(1)
    assert (((values - output) ** 2).sum(1) <= nearest + 1e-12).all()
    np.testing.assert_allclose(nearest_proportions(others), others, atol=1e-12)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: make_head("mlp4", "classes", 3), "mlp3, mlp512, knn, linear"),
        (lambda: MLPConfig(learning_rate=0), "learning_rate"),
        (lambda: MLPConfig(patience=0), "patience"),
        (lambda: MLPConfig(max_steps=-1), "max_steps"),
        (lambda: KNNConfig(neighbors=0), "neighbors"),
        (lambda: LinearConfig(C=-1), "C of a head"),
        (lambda: heads.head_from_record({"type": "mlp", "depth": 3}), "unknown key .depth"),
        (lambda: heads.head_from_record({}), "not those of terrazzo"),
    ],
)
def test_impossible_settings_are_refused(make_it: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_it()
