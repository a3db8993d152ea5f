"""The penalty of a ridge: chosen by held-out patients, slices or places, with the mean among the candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge as Reference

from terrazzo.errors import ConfigError, InputError
from terrazzo.tasks.experiments import make_head
from terrazzo.tasks.image_to_gene import fit_image_to_gene, image_to_gene, verdicts
from terrazzo.tasks.penalty import CONSTANT, PENALTIES, choose_ridge
from terrazzo.tasks.splits import held_out_units


def rows(n: int = 120, d: int = 5, noise: float = 0.3, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = x @ rng.normal(size=(d, 3)) + noise * rng.normal(size=(n, 3)) + 4.0
    return x, y, np.repeat(np.arange(3), n // 3)


@pytest.mark.parametrize("d", [5, 300])
def test_the_weights_are_those_of_a_ridge(d: int) -> None:
    x, y, units = rows(d=d)
    ridge = choose_ridge(x, y, units, penalties=[0.5])
    reference = Reference(alpha=0.5 * d).fit(x, y)
    np.testing.assert_allclose(ridge.weight.T, reference.coef_, atol=1e-8)
    np.testing.assert_allclose(ridge.bias, reference.intercept_, atol=1e-8)
    assert ridge.penalty == 0.5
    assert ridge.ratio < 1


def test_the_worst_unit_decides_and_the_ratio_is_by_hand() -> None:
    x, y, units = rows(noise=2.0)
    y[units == 2] *= 3
    worst = []
    for penalty in PENALTIES:
        ratios = []
        for unit in range(3):
            out = units == unit
            fit = Reference(alpha=penalty * 5).fit(x[~out], y[~out])
            error = np.square(fit.predict(x[out]) - y[out]).sum()
            ratios.append(error / np.square(y[~out].mean(0) - y[out]).sum())
        worst.append(max(ratios))
    ridge = choose_ridge(x, y, units)
    assert ridge.penalty == PENALTIES[int(np.argmin(worst))]
    assert ridge.ratio == pytest.approx(min(worst))


def test_what_one_unit_contradicts_is_not_learned() -> None:
    x, y, units = rows(noise=0.1)
    opposite = units == 2
    y[opposite] = 8.0 - y[opposite]  # in one of three patients the picture says the opposite
    ridge = choose_ridge(x, y, units)
    assert ridge.penalty == CONSTANT
    assert not ridge.weight.any()
    np.testing.assert_allclose(ridge.bias, y.mean(axis=0))


def test_vectors_without_information_give_the_constant() -> None:
    rng = np.random.default_rng(3)
    taken = 0
    for _ in range(20):
        y = rng.normal(size=(90, 4))
        ridge = choose_ridge(rng.normal(size=(90, 30)), y, np.repeat([0, 1, 2], 30))
        taken += ridge.penalty == CONSTANT or ridge.penalty >= 10
    assert taken == 20


def test_targets_that_do_not_vary_and_a_single_unit_give_the_constant() -> None:
    x, y, units = rows()
    assert choose_ridge(x, np.ones_like(y), units).penalty == CONSTANT
    assert choose_ridge(x, y, np.zeros(len(x), dtype=np.int64)).penalty == CONSTANT


def test_a_head_for_classes_has_no_such_fit() -> None:
    x, y, units = rows()
    with pytest.raises(ConfigError, match="predicts classes"):
        make_head("linear", "classes", 3).fit_by_units(x, y, units)  # type: ignore[attr-defined]


def test_patients_else_slices_else_blocks(simulated: Any) -> None:
    slices = [simulated(60, 20, layout="visium", seed=seed) for seed in range(3)]
    units = held_out_units(slices, ["p", "q", "p"])
    assert units.kind == "patient"
    np.testing.assert_array_equal(units.numbers, np.repeat([0, 1, 0], 60))
    for donors in (["p", "", "q"], ["p", "p", "p|r"]):
        units = held_out_units(slices, donors)
        assert units.kind == "slice"
        np.testing.assert_array_equal(units.numbers, np.repeat([0, 1, 2], 60))
    units = held_out_units(slices[:1], ["p"])
    assert units.kind == "block"
    assert (np.bincount(units.numbers) == 15).all()
    del slices[0].obsm["spatial"]
    with pytest.raises(InputError, match="spatial"):
        held_out_units(slices[:1], ["p"])


# ---- in the task


@pytest.fixture
def slices(simulated: Any) -> list[Any]:
    """Make three slices of two patients; the vectors show the mixture of types, or (``X_noise``) nothing."""
    out = []
    for seed, donor in enumerate(["p", "p", "q"]):
        adata = simulated(
            150, 30, layout="visium", n_regions=3, n_types=4, seed=seed, depth=4000.0, donor=donor
        )
        rng = np.random.default_rng(seed)
        noise = rng.normal(0, 0.05, (150, 6))
        noise[:, :4] += adata.obsm["proportions"]
        adata.obsm["X_img"] = noise
        adata.obsm["X_noise"] = rng.normal(size=(150, 40))
        out.append(adata)
    return out


def test_the_constant_wins_where_pictures_say_nothing(slices: list[Any]) -> None:
    result = image_to_gene(
        slices[:2], test=slices[2], use_rep="X_noise", genes=8, names=["c"], progress=False
    )
    scores = result.summary().set_index("metric")["mean"]
    assert scores["mse"] == pytest.approx(scores["mse_mean"], rel=2e-3)
    probe = fit_image_to_gene([slices[0], slices[2]], use_rep="X_noise", genes=8)
    notes = " | ".join(probe.info["notes"])
    assert "held-out patient" in notes
    predicted = probe.predict(slices[1])
    assert predicted.std(axis=0).max() < 0.05


def test_level_and_pattern_are_the_parts_of_the_error(slices: list[Any]) -> None:
    result = image_to_gene(
        slices[:2], test=slices[2], use_rep="X_img", genes=8, names=["c"], runs=1, progress=False
    )
    whole = result.metrics[result.metrics["part"] == ""].set_index("metric")["value"]
    for end in ("", "_mean"):
        parts = whole[f"mse_level{end}"] + whole[f"mse_pattern{end}"]
        assert parts == pytest.approx(whole[f"mse{end}"])
    genes = result.config["folds"][0]["scored"]
    true = result.predictions[[f"true:{gene}" for gene in genes]].to_numpy()
    predicted = result.predictions[[f"cross:{gene}" for gene in genes]].to_numpy()
    level = np.square(true.mean(0) - predicted.mean(0)).mean()
    assert whole["mse_level"] == pytest.approx(level, rel=1e-4)
    assert whole["mse_pattern_mean"] == pytest.approx(true.var(axis=0).mean(), rel=1e-4)
    assert whole["mse_pattern"] < whole["mse_pattern_mean"]
    assert any("by held-out slice" in note for note in result.notes)


def test_the_choice_does_not_look_at_the_scored_slice(
    slices: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from terrazzo.tasks import heads

    seen: list[Any] = []

    def choose(x: Any, y: Any, units: Any) -> Any:
        seen.append((len(x), sorted(set(units.tolist())), x.sum(), y.sum()))
        return choose_ridge(x, y, units)

    monkeypatch.setattr(heads, "choose_ridge", choose)
    options: dict[str, Any] = {"use_rep": "X_img", "genes": 5, "runs": 2, "progress": False}
    image_to_gene([slices[0], slices[2]], test=slices[1], **options)
    slices[1].X = slices[1].X[::-1].copy()
    slices[1].obsm["X_img"] = slices[1].obsm["X_img"] + 9
    image_to_gene([slices[0], slices[2]], test=slices[1], **options)
    assert len(seen) == 2  # runs are the same, and fitted once
    assert seen[0] == seen[1]
    assert seen[0][:2] == (300, [0, 1])


def test_it_is_said_where_the_gene_mean_is_not_beaten(slices: list[Any]) -> None:
    genes = list(slices[0].var_names[:6])
    options: dict[str, Any] = {"genes": genes, "names": ["c"], "runs": 1, "progress": False}
    good = image_to_gene(slices[:2], test=slices[2], use_rep="X_img", **options)
    (line,) = verdicts(good)
    assert line.startswith("c: beats the gene mean (mse ")
    assert " of 6 genes" in line
    nothing = [np.zeros((150, 2))] * 3
    (line,) = verdicts(image_to_gene(slices[:2], test=slices[2], use_rep=nothing, **options))
    assert line.startswith("c: does NOT beat the gene mean (mse ")
