"""The objectives: what is minimized, what gets a gradient, what cannot be seen; and that something is learned."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from terrazzo.errors import ConfigError
from terrazzo.systems.stofm.objectives import residual_loss, vector_loss
from terrazzo.training.stage import decay, rate


@pytest.fixture
def made(stage_of: Any) -> Any:
    """Return a function that makes an objective and its batches, of training and of validation."""

    def make(stage: str = "stofm-pretrain", **objective: Any) -> Any:
        model = objective.pop("model", {})
        run = stage_of(stage, objective=objective, model=model)
        run.prepare()
        made = run.objective_class(run.model, run.recipe)
        return made, list(run.loader("train")), list(run.loader("validation"))

    return make


def gradients(objective: Any, part: Any) -> Tensor:
    """Return the sum of the sizes of a part's gradients after a backward pass."""
    return torch.stack(
        [p.grad.abs().sum() for p in part.parameters() if p.grad is not None] or [torch.zeros(())]
    ).sum()


@pytest.mark.parametrize(
    ("gamma", "masked", "distances"), [(0.0, 0, 2), (0.25, 0.5, 1.5), (0.5, 1, 1), (0.75, 1.5, 0.5)]
)
def test_gamma_one_half_is_one_to_one(
    made: Any, gamma: float, masked: float, distances: float
) -> None:
    objective, batches, _ = made(gamma=gamma)
    parts = objective.eval().losses(batches[0])
    torch.testing.assert_close(
        parts["loss"], masked * parts["masked_cells"] + distances * parts["distances"]
    )


def test_gamma_one_needs_no_distances(made: Any) -> None:
    objective, batches, _ = made(gamma=1.0)
    parts = objective.losses(batches[0])
    assert set(parts) == {"loss", "masked_cells"}
    torch.testing.assert_close(
        parts["loss"], 2 * parts["masked_cells"]
    )  # the same formula as for any gamma
    assert all(len(rows) == 0 for batch in batches for rows in batch.moved)
    assert objective.distance_head is None


def test_the_distance_of_vectors() -> None:
    predicted, target = (
        torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        torch.tensor([[0.0, 1.0], [0.0, 1.0]]),
    )
    assert (
        vector_loss(predicted, target, "mse") == (2 + 1) / 2
    )  # mean over cells of the squared distance
    assert vector_loss(predicted, target, "cosine") == (1 + 0) / 2
    nothing = vector_loss(predicted[:0].requires_grad_(), target[:0], "mse")
    assert nothing == 0
    nothing.backward()


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_masked_cells_against_trivial_answers(made: Any, loss: str) -> None:
    objective, _, held_out = made(loss=loss)
    batch = held_out[0]
    parts = objective.eval().losses(batch)
    target = batch.features[batch.predicted]
    mean = batch.features[batch.shown_cells].mean(0).expand_as(target)
    torch.testing.assert_close(parts["masked_cells_mean"], vector_loss(mean, target, loss))
    torch.testing.assert_close(
        parts["masked_cells_neighbors"], vector_loss(batch.neighbor_mean, target, loss)
    )
    if loss == "mse":
        torch.testing.assert_close(
            parts["masked_cells_zero"], torch.ones(())
        )  # vectors of length 1
    variance = torch.cat([t.flatten() for t in batch.true_distance]).var()
    torch.testing.assert_close(parts["distances_variance"], variance)
    assert parts["distances_noisy"] > 0


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_a_batch_of_which_nothing_is_shown(made: Any, loss: str) -> None:
    alone = {"preset": "tiny", "subslices": {"subslice_size": 1, "halo": 0.0}}
    objective, _, held_out = made(model=alone, loss=loss, mask_share=1.0, kept_share=0.0)
    batch = held_out[0]
    assert len(batch.shown_cells) == 0
    assert len(batch.predicted) > 0
    parts = objective.eval().losses(batch)
    assert all(torch.isfinite(value) for value in parts.values())
    torch.testing.assert_close(
        parts["masked_cells_mean"], torch.ones(())
    )  # zeros: the length of the vectors


def test_a_hidden_cell_cannot_be_seen(made: Any) -> None:
    objective, batches, _ = made()
    objective.eval()
    answers: list[Tensor] = []
    objective.cell_head.register_forward_hook(lambda module, inputs, output: answers.append(output))
    for scale in (1.0, -50.0):
        batch = batches[0]
        batch.features[batch.hidden] *= scale
        objective.losses(batch)
    assert torch.equal(*answers)
    batch.features[batch.shown_cells[:1]] *= 2  # the others can be
    objective.losses(batch)
    assert not torch.equal(answers[1], answers[2])


def test_phase_one_leaves_the_encoder_alone(made: Any) -> None:
    objective, batches, _ = made(frozen_epochs=2)
    calls: list[int] = []
    objective.encoder.register_forward_hook(
        lambda module, inputs, output: calls.append(len(output))
    )
    objective.losses(batches[0])["loss"].backward()
    assert calls == []
    assert gradients(objective, objective.encoder) == 0
    assert gradients(objective, objective.se2) > 0
    assert gradients(objective, objective.cell_head) > 0


@pytest.mark.parametrize("reencode", [4, 12])
def test_phase_two_encodes_a_few_cells_with_gradient(made: Any, reencode: int) -> None:
    objective, batches, _ = made(frozen_epochs=0, reencode=reencode)
    batch, again = batches[0], []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        again.append(output)

    objective.encoder.register_forward_hook(keep)
    objective.losses(batch)["loss"].backward()
    assert [len(vectors) for vectors in again] == [reencode * len(batch)]
    assert gradients(objective, objective.encoder) > 0
    reached = again[0].grad.abs().sum(1) > 0
    hidden = batch.hidden[batch.again_tokens]  # what is hidden is not seen, not even anew
    assert torch.equal(reached, ~hidden)


def test_encoded_again_is_what_was_stored(made: Any) -> None:
    objective, batches, _ = made(frozen_epochs=0)
    batch = batches[0]
    fresh = objective.eval().encoder(batch.again_ids, batch.again_mask)
    torch.testing.assert_close(fresh, batch.features[batch.again_tokens], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "settings", [{"reencode": 0, "frozen_epochs": 0}, {"reencode": 12, "frozen_epochs": 3}]
)
def test_an_encoder_that_stays_frozen_is_not_trained(made: Any, settings: dict[str, int]) -> None:
    objective, batches, _ = made(**settings)
    assert not any(p.requires_grad for p in objective.encoder.parameters())
    assert all(batch.again_ids is None for batch in batches)


def test_own_and_niche_recovers_no_distances(made: Any) -> None:
    objective, batches, _ = made(kind="own+niche", mask_share=0.5)
    parts = objective.losses(batches[0])
    assert "distances" not in parts
    assert torch.equal(parts["loss"], parts["masked_cells"])
    assert int(batches[0].hidden.sum()) == len(batches[0]) * 8  # half of 16


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ({}, {"masked_genes", "contrastive"}),
        ({"masked_weight": 0.0}, {"contrastive"}),
        ({"contrastive_weight": 0.0, "own_weight": 0.5}, {"masked_genes", "own"}),
        ({"own_weight": 2.0, "view": "thinned"}, {"masked_genes", "contrastive", "own"}),
    ],
)
def test_domain_adaptation_adds_its_parts(
    made: Any, weights: dict[str, Any], parts: set[str]
) -> None:
    objective, batches, _ = made("stofm-adapt", **weights)
    found = objective.losses(batches[0])
    assert set(found) == {"loss", *parts}
    names = {
        "masked_genes": "masked_weight",
        "contrastive": "contrastive_weight",
        "own": "own_weight",
    }
    settings = objective.recipe.objective
    torch.testing.assert_close(
        found["loss"], sum(getattr(settings, names[p]) * found[p] for p in parts)
    )
    found["loss"].backward()
    assert gradients(objective, objective.encoder) > 0
    assert not any(p.requires_grad for p in objective.model.module.se2.parameters())


def test_two_passes_differ_by_dropout_alone(made: Any) -> None:
    objective, batches, _ = made("stofm-adapt")
    batch = batches[0]
    objective.train()
    assert not torch.equal(
        objective.encoder(batch.ids_plain, batch.mask),
        objective.encoder(batch.ids_second, batch.mask_second),
    )


def test_own_head_is_measured_against_the_mean_of_the_slice(made: Any) -> None:
    objective, _, held_out = made("stofm-adapt", own_weight=1.0)
    batch = held_out[0]
    parts = objective.eval().losses(batch)
    torch.testing.assert_close(
        parts["own_slice_mean"], residual_loss(torch.zeros_like(batch.rest), batch.rest, batch.base)
    )
    assert 0 < parts["own_slice_mean"] < parts["own"]  # nothing is learned yet


def learn(objective: Any, batches: list[Any], passes: int, lr: float = 3e-3) -> None:
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=lr)
    objective.train()
    for _ in range(passes):
        for batch in batches:
            optimizer.zero_grad()
            objective.losses(batch)["loss"].backward()
            optimizer.step()


def held_out_losses(objective: Any, batches: list[Any]) -> dict[str, float]:
    objective.eval()
    with torch.no_grad():
        all_parts = [objective.losses(batch) for batch in batches]
    return {
        name: float(torch.stack([parts[name] for parts in all_parts]).mean())
        for name in all_parts[0]
    }


@pytest.mark.slow
@pytest.mark.parametrize("frozen_epochs", [0, 3])
def test_multi_scale_pretraining_learns(made: Any, frozen_epochs: int) -> None:
    torch.manual_seed(0)
    objective, batches, held_out = made(frozen_epochs=frozen_epochs)
    before = held_out_losses(objective, held_out)
    learn(objective, batches, 12)
    after = held_out_losses(objective, held_out)
    assert after["masked_cells"] < 0.5 * before["masked_cells"]
    assert after["masked_cells"] < 0.5 * after["masked_cells_zero"]
    assert after["distances"] < 0.7 * before["distances"]
    assert after["distances"] < after["distances_noisy"]


def test_domain_adaptation_learns(made: Any) -> None:
    torch.manual_seed(0)
    objective, batches, held_out = made("stofm-adapt", own_weight=1.0, view="thinned")
    before = held_out_losses(objective, held_out)
    learn(objective, batches, 10)
    after = held_out_losses(objective, held_out)
    assert all(after[name] < before[name] - 0.1 for name in ("masked_genes", "contrastive"))
    shown = held_out_losses(
        objective, batches
    )  # 192 cells are too few to say more of others than their slice's mean
    assert shown["own"] < shown["own_slice_mean"] - 0.01


def test_the_rate_warms_up_and_decays(recipe: Any) -> None:
    optim = recipe(optim={"warmup_steps": 4}).optim
    curve = [rate(step, optim, 100) for step in range(101)]
    assert curve[:4] == [0.25, 0.5, 0.75, 1.0]
    assert max(curve) == 1
    assert curve[-1] == 0
    assert all(a >= b for a, b in pairwise(curve[4:]))
    assert rate(0, optim, 10) == 1  # a run of ten steps warms up in one


def test_weight_decay_stays_or_goes_along_half_a_cosine(recipe: Any) -> None:
    assert {decay(step, recipe().optim, 100) for step in range(100)} == {0.01}
    optim = recipe(optim={"weight_decay": 0.04, "weight_decay_end": 0.4}).optim
    curve = [decay(step, optim, 101) for step in range(101)]
    assert curve[0] == 0.04
    assert curve[50] == pytest.approx(0.22)
    assert curve[-1] == pytest.approx(0.4)
    assert curve[25] == pytest.approx(0.04 + 0.36 * (1 - 0.5**0.5) / 2)
    assert all(a <= b for a, b in pairwise(curve))
    assert decay(0, optim, 1) == 0.04  # a run of one step
    for bad in (-0.1, float("nan")):
        with pytest.raises(ConfigError, match="weight_decay_end"):
            recipe(optim={"weight_decay_end": bad})


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stofm-adapt", "stofm-pretrain"])
def test_a_run_follows_the_weight_decay(recipe: Any, stage: str) -> None:
    """In multi-scale pretraining the frozen cell encoder has none until it is trained."""
    from lightning import Callback

    from terrazzo.training.run import pretrain

    seen: list[list[float]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            seen.append([group["weight_decay"] for group in trainer.optimizers[0].param_groups])

    optim = {"accumulate": 1, "epochs": 2, "weight_decay": 0.04, "weight_decay_end": 0.4}
    config = recipe(stage, optim=optim)
    pretrain(config, progress=False, callbacks=[Watch()])
    wanted = [decay(step, config.optim, len(seen)) for step in range(len(seen))]
    assert [groups[0] for groups in seen] == pytest.approx(wanted)
    if stage == "stofm-pretrain":
        first = len(seen) // 2
        assert [groups[1] for groups in seen] == pytest.approx([0.0] * first + wanted[first:])
