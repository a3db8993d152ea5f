"""Macro-domains: sites that lie together and express the same, whatever their order."""

from __future__ import annotations

import numpy as np
import pytest

from terrazzo.systems.stimage.macro_domains import macro_domains


def halves(n: int, m: int, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values and places of a tissue whose left half expresses other genes than its right half."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 10, (n, 2))
    right = places[:, 0] > 5
    values = noise * rng.normal(size=(n, m))
    values[right, : m // 2] += 2
    return values.astype(np.float32), places, right


@pytest.mark.parametrize("m", [4, 300])  # components from either of the two products
def test_domains_follow_expression_and_place(m: int) -> None:
    values, places, right = halves(120, m)
    domain = macro_domains(values, places, 2, np.random.default_rng(1))
    assert domain.dtype == np.int64
    assert set(domain.tolist()) == {0, 1}
    assert abs(np.mean(domain == right) - 0.5) > 0.45


def test_order_and_scale_do_not_matter() -> None:
    values, places, _ = halves(90, 12)
    domain = macro_domains(values, places, 4, np.random.default_rng(0))
    assert np.array_equal(domain, macro_domains(values, places, 4, np.random.default_rng(0)))
    assert np.array_equal(
        domain, macro_domains(values, 1000 * places + 7, 4, np.random.default_rng(0))
    )


@pytest.mark.parametrize(("n", "k"), [(0, 3), (1, 3), (2, 3), (5, 1)])
def test_few_sites(n: int, k: int) -> None:
    values, places, _ = halves(max(n, 1), 6)
    domain = macro_domains(values[:n], places[:n], k, np.random.default_rng(0))
    assert domain.shape == (n,)
    assert set(domain.tolist()) == set(range(min(n, k)))


def test_sites_that_are_all_alike_are_one_domain() -> None:
    domain = macro_domains(
        np.ones((6, 4), np.float32), np.zeros((6, 2)), 3, np.random.default_rng(0)
    )
    assert domain.tolist() == [0] * 6
