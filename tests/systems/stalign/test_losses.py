"""Contrast: hand-computed cases, what is left out, and two ranks that are one."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from terrazzo.errors import ConfigError
from terrazzo.systems.stalign.objective import (
    contrast,
    gathered_rows,
    same_niche,
    sizes_of_ranks,
    symmetric_contrast,
)


def test_a_case_computed_by_hand():
    """Two pairs in the plane: cosines 1 and 0 forth, 0.6 and 0.8 for the second."""
    anchors = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    partners = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    e = math.exp
    first = -math.log(e(1 / 0.5) / (e(1 / 0.5) + e(0.6 / 0.5)))
    second = -math.log(e(0.8 / 0.5) / (e(0 / 0.5) + e(0.8 / 0.5)))
    assert contrast(anchors, partners, 0.5).item() == pytest.approx((first + second) / 2, rel=1e-6)
    back_first = -math.log(e(1 / 0.5) / (e(1 / 0.5) + e(0 / 0.5)))
    back_second = -math.log(e(0.8 / 0.5) / (e(0.6 / 0.5) + e(0.8 / 0.5)))
    both = (first + second + back_first + back_second) / 4
    assert symmetric_contrast(anchors, partners, 0.5).item() == pytest.approx(both, rel=1e-6)
    assert symmetric_contrast(partners, anchors, 0.5).item() == pytest.approx(both, rel=1e-6)


def test_without_normalizing_products_are_taken_as_they_are():
    a, b = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    rows = [(2.0, 1.2), (0.0, 2.4)]
    expected = (
        -(2 - math.log(sum(map(math.exp, rows[0]))) + 2.4 - math.log(sum(map(math.exp, rows[1]))))
        / 2
    )
    assert contrast(a, b, 1.0, normalize=False).item() == pytest.approx(expected, rel=1e-6)


def test_equal_pairs_cost_the_logarithm_of_their_number_and_one_pair_nothing():
    same = torch.ones(7, 4)
    assert symmetric_contrast(same, same).item() == pytest.approx(math.log(7), rel=1e-6)
    assert symmetric_contrast(same[:1], same[:1]).item() == 0


def test_the_sum_is_that_of_the_equations():
    g = torch.Generator().manual_seed(0)
    r, u = torch.randn(9, 5, generator=g), torch.randn(9, 5, generator=g)
    a, b = r / r.norm(dim=1, keepdim=True), u / u.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(9):
        down = sum(math.exp(float(a[i] @ b[j]) / 0.2) for j in range(9))
        up = sum(math.exp(float(b[i] @ a[j]) / 0.2) for j in range(9))
        total += math.log(math.exp(float(a[i] @ b[i]) / 0.2) / down) + math.log(
            math.exp(float(b[i] @ a[i]) / 0.2) / up
        )
    assert symmetric_contrast(r, u, 0.2).item() == pytest.approx(-total / 18, rel=1e-5)


def test_neighbors_and_repeats_are_no_negatives():
    spots = torch.tensor([3, 8, 5, 3])
    niches = torch.tensor([[3, 8, -1], [8, 9, 1], [5, 6, 7], [3, 8, -1]])
    near = same_niche(spots, niches)
    expected = [[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 0, 1]]
    assert near.int().tolist() == expected
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 6, generator=g), torch.randn(4, 6, generator=g)
    found = contrast(a, b, 0.5, spots=spots, niches=niches).item()
    cosine = (torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T / 0.5).double()
    total = 0.0
    for i in range(4):
        others = [j for j in range(4) if j == i or not expected[i][j]]
        total += float(cosine[i, others].logsumexp(0) - cosine[i, i])
    assert found == pytest.approx(total / 4, rel=1e-5)
    assert found < contrast(a, b, 0.5).item()


def test_it_falls_as_pairs_come_together_and_keeps_its_precision():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(32, 16, generator=g, requires_grad=True)
    b = torch.randn(32, 16, generator=g)
    losses = []
    for _ in range(30):
        loss = symmetric_contrast(a, b)
        (gradient,) = torch.autograd.grad(loss, a)
        a = (a - 5 * gradient).detach().requires_grad_()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert symmetric_contrast(a, b).item() == pytest.approx(
            symmetric_contrast(a.float(), b).item(), rel=1e-6
        )


def test_a_temperature_can_be_learned():
    scale = torch.tensor(0.1, requires_grad=True)
    symmetric_contrast(torch.eye(3), torch.eye(3), scale).backward()
    assert scale.grad is not None
    assert scale.grad > 0


def test_alone_there_is_nothing_to_gather():
    rows = torch.arange(6.0).view(3, 2)
    assert gathered_rows(rows) is rows
    assert sizes_of_ranks(rows) == [3]


def test_bad_input_is_refused():
    rows = torch.zeros(3, 2)
    for other in (torch.zeros(3, 4), torch.zeros(2, 2)):
        with pytest.raises(ConfigError, match="one shape"):
            contrast(rows, other)
    with pytest.raises(ConfigError, match="both spots and niches"):
        symmetric_contrast(rows, rows, spots=torch.arange(3))
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="temperature"):
            contrast(rows, rows, temperature)


RANK = """
import sys
import numpy as np, torch, torch.distributed as dist
from terrazzo.systems.stalign.objective import contrast, symmetric_contrast

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
held = np.load(f"{folder}/joined.npz")
out = {}
for cut, name in [(6, "plain"), (4, "plain"), (4, "neighbors"), (4, "alone")]:
    rows = slice(0, cut) if rank == 0 else slice(cut, None)
    a, b = (torch.tensor(held[k][rows], requires_grad=True) for k in "ab")
    extra = {"gather": name != "alone"}
    if name == "neighbors":
        extra |= {"spots": torch.tensor(held["spots"][rows]), "niches": torch.tensor(held["niches"][rows])}
    loss = 0.4 * symmetric_contrast(a, b, 0.3, **extra) + 0.6 * contrast(a, b, 0.2, **extra)
    loss.backward()
    case = f"{name}{cut}"
    out |= {f"{case}_loss": loss.item(), f"{case}_a": a.grad.numpy(), f"{case}_b": b.grad.numpy()}
np.savez(f"{folder}/rank{rank}.npz", **out)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_are_one_with_the_joined_batch(tmp_path):
    """Also where they have different numbers of rows (4 and 8)."""
    rng = np.random.default_rng(0)
    held = {
        "a": rng.normal(size=(12, 5)).astype(np.float32),
        "b": rng.normal(size=(12, 5)).astype(np.float32),
    }
    held |= {"spots": np.arange(12), "niches": (np.arange(12)[:, None] + np.array([0, 1, 5])) % 12}
    np.savez(tmp_path / "joined.npz", **held)
    (tmp_path / "rank.py").write_text(RANK)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(tmp_path / "rank.py"), str(tmp_path)]
    running = [
        subprocess.Popen([*words, str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=1800)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
            process.communicate()
    found = [np.load(tmp_path / f"rank{rank}.npz") for rank in range(2)]
    for name in ("plain6", "plain4", "neighbors4"):
        a, b = (torch.tensor(held[k], requires_grad=True) for k in "ab")
        extra = (
            {k: torch.tensor(held[k]) for k in ("spots", "niches")} if name == "neighbors4" else {}
        )
        loss = 0.4 * symmetric_contrast(a, b, 0.3, **extra) + 0.6 * contrast(a, b, 0.2, **extra)
        loss.backward()
        assert np.mean([one[f"{name}_loss"] for one in found]) == pytest.approx(
            loss.item(), rel=1e-5
        )
        for key, tensor in (
            ("a", a),
            ("b", b),
        ):  # distributed training takes the mean of the ranks' gradients
            joined = np.concatenate([one[f"{name}_{key}"] for one in found]) / 2
            np.testing.assert_allclose(joined, tensor.grad.numpy(), rtol=1e-4, atol=1e-6)
    own = torch.tensor(held["a"][:4]), torch.tensor(held["b"][:4])
    alone = 0.4 * symmetric_contrast(*own, 0.3) + 0.6 * contrast(*own, 0.2)
    assert float(found[0]["alone4_loss"]) == pytest.approx(alone.item(), rel=1e-5)
