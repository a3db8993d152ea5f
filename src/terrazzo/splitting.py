"""Mask, move and thin: pure functions of a random generator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.arrays import Floats, Ints
from terrazzo.errors import ConfigError, InputError

IGNORED = -100  # label of a token that is not predicted (torch's cross-entropy skips it)


MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens, as in BERT; the rest stays as it is


def mask_cells(
    n: int,
    share: float,
    rng: np.random.Generator,
    *,
    kept_share: float = 0.0,
    exclude: Ints | None = None,
) -> tuple[Ints, Ints]:
    """Choose cells for masked cell modeling.

    Parameters
    ----------
    n
        Number of real cells. Virtual cells are not counted, so they are never chosen.
    share
        Share of the ``n`` cells whose embedding is replaced by the mask value (paper 0.10; published collator 0.12).
    rng
        Source of chance.
    kept_share
        Share of cells that are predicted but not replaced (published collator 0.03).
    exclude
        Cells that may not be chosen.

    Returns
    -------
    (masked, kept), sorted and disjoint, numbers of cells. A share above 0 gives at least one cell where one is free.

    Raises
    ------
    ConfigError
        Shares below 0, or above 1 together.
    """
    if min(share, kept_share) < 0 or share + kept_share > 1:
        raise ConfigError(
            f"share {share} and kept_share {kept_share} must be at least 0, together at most 1."
        )
    free = _free(n, exclude)
    n_masked = _amount(share, n, len(free))
    n_kept = _amount(kept_share, n, len(free) - n_masked)
    chosen = rng.permutation(free)[: n_masked + n_kept]
    return np.sort(chosen[:n_masked]), np.sort(chosen[n_masked:])


def perturb_cells(
    n: int, share: float, rng: np.random.Generator, *, exclude: Ints | None = None
) -> Ints:
    """Choose cells whose coordinates get noise (pairwise distance recovery); sorted, at least one where one is free.

    Parameters
    ----------
    n, share, rng
        As in :func:`mask_cells` (paper 0.10).
    exclude
        The masked and kept cells: a cell is never in both sets.

    Raises
    ------
    ConfigError
        A share that is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share is {share}; it must be between 0 and 1.")
    free = _free(n, exclude)
    return np.sort(rng.permutation(free)[: _amount(share, n, len(free))])


def _free(n: int, exclude: Ints | None) -> Ints:
    cells = np.arange(n, dtype=np.int64)
    return cells if exclude is None else np.setdiff1d(cells, exclude)


def _amount(share: float, n: int, free: int) -> int:
    return min(free, max(1, round(share * n))) if share > 0 else 0


def noisy_positions(
    positions: Floats,
    which: Ints,
    spacing: float,
    rng: np.random.Generator,
    *,
    sigma_spacing: float = 5.0,
) -> Floats:
    """Return a copy of ``positions`` with Gaussian noise on some rows.

    Parameters
    ----------
    positions
        float64 ``(n, 2)``.
    which
        Rows that move.
    spacing
        Mean distance between neighbors, in units of ``positions``.
    rng
        Source of chance.
    sigma_spacing
        Standard deviation of the noise along each axis, in multiples of ``spacing``.
    """
    out = positions.copy()
    out[which] += rng.normal(0.0, sigma_spacing * spacing, (len(which), positions.shape[1]))
    return out


def thin_counts(
    counts: sparse.csr_matrix, rate: float | Floats, rng: np.random.Generator
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Split every count by chance: each molecule goes to ``part`` with probability ``rate``, else to ``rest``.

    Parameters
    ----------
    counts
        CSR ``(n_cells, n_genes)`` of whole numbers.
    rate
        One number, or one a cell ``(n_cells,)``.
    rng
        Source of chance.

    Returns
    -------
    (part, rest), CSR of the same shape and dtype without explicit zeros; ``part + rest`` equals ``counts``.

    Raises
    ------
    InputError
        Values that are not counts.
    ConfigError
        A rate that is not between 0 and 1.
    """
    rates = np.asarray(rate, dtype=np.float64)
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ConfigError(f"rate is {rate}; it must be between 0 and 1.")
    values = counts.data
    if not (np.isfinite(values) & (values >= 0) & (values == np.floor(values))).all():
        raise InputError(
            "only counts can be thinned: the matrix holds values that are negative or not whole numbers."
        )
    whole = values.astype(np.int64)
    chance = np.repeat(rates, np.diff(counts.indptr)) if rates.ndim else rates
    part = rng.binomial(whole, chance)
    return _like(counts, part), _like(counts, whole - part)


def _like(counts: sparse.csr_matrix, values: Ints) -> sparse.csr_matrix:
    """Return these values at the places of ``counts``, without zeros."""
    filled = values > 0
    before = np.concatenate([[0], np.cumsum(filled)])
    parts = (values[filled].astype(counts.dtype), counts.indices[filled], before[counts.indptr])
    return sparse.csr_matrix(parts, shape=counts.shape)


def mask_tokens(
    tokens: NDArray[np.int32],
    rng: np.random.Generator,
    *,
    mask_token: int,
    gene_tokens: NDArray[np.int32],
    share: float = 0.15,
) -> tuple[NDArray[np.int32], Ints]:
    """Hide tokens as BERT does: of the chosen ones 80 % are masked, 10 % replaced by a random gene, 10 % left.

    Parameters
    ----------
    tokens
        int32, gene tokens of many cells, one after the other, without ``<cls>``.
    rng
        Source of chance.
    mask_token
        The vocabulary's ``special["<mask>"]``.
    gene_tokens
        The vocabulary's ``token``: random replacements come from it.
    share
        Probability that a token is chosen.

    Returns
    -------
    (ids, labels): int32 input tokens; int64 the true token where chosen, -100 elsewhere.

    Raises
    ------
    ConfigError
        A share that is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share is {share}; it must be between 0 and 1.")
    chosen = np.flatnonzero(rng.random(len(tokens)) < share)
    fate = rng.random(len(chosen))
    ids, labels = tokens.copy(), np.full(len(tokens), IGNORED, dtype=np.int64)
    labels[chosen] = tokens[chosen]
    ids[chosen[fate < MASKED]] = mask_token
    replaced = chosen[(fate >= MASKED) & (fate < MASKED + RANDOM)]
    ids[replaced] = rng.choice(gene_tokens, size=len(replaced))
    return ids, labels
