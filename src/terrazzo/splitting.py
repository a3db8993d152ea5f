"""Choose cells and tokens to mask, move cells, and split counts: pure functions of a random generator."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from terrazzo.arrays import AnyFloats, Floats, Int32s, Ints
from terrazzo.errors import ConfigError, InputError

__all__ = [
    "IGNORED",
    "MASKED",
    "RANDOM",
    "mask_cells",
    "mask_tokens",
    "noisy_positions",
    "perturb_cells",
    "thin_counts",
]

VALUES_AT_ONCE = 4_000_000  # counts that are split together

IGNORED = -100  # label of a token that is not predicted (torch's cross-entropy skips it)

# Shares of the chosen tokens that are masked, or replaced by a random gene, as in BERT; the rest stays as it is
MASKED = 0.8
RANDOM = 0.1


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
        Random generator.
    kept_share
        Share of cells that are predicted but not replaced (published collator 0.03).
    exclude
        Cells that may not be chosen.

    Returns
    -------
    (masked, kept): numbers of cells, sorted and disjoint. A share above 0 gives at least one cell where one is free.

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
    n_free = len(free)
    n_masked = _amount(share, n, n_free)
    n_kept = _amount(kept_share, n, n_free - n_masked)
    shuffled = rng.permutation(free)
    masked = shuffled[:n_masked]
    kept = shuffled[n_masked : n_masked + n_kept]
    return np.sort(masked), np.sort(kept)


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
    n_moved = _amount(share, n, len(free))
    shuffled = rng.permutation(free)
    return np.sort(shuffled[:n_moved])


def _free(n: int, exclude: Ints | None) -> Ints:
    """Return the cells that may be chosen."""
    cells = np.arange(n, dtype=np.int64)
    if exclude is None:
        return cells
    return np.setdiff1d(cells, exclude)


def _amount(share: float, n: int, n_free: int) -> int:
    """Return how many cells a share of ``n`` is: at least one, unless the share is 0, and no more than are free."""
    if share <= 0:
        return 0
    wanted = max(1, round(share * n))
    return min(n_free, wanted)


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
        Random generator.
    sigma_spacing
        Standard deviation of the noise along each axis, in multiples of ``spacing``.
    """
    moved = positions.copy()
    n_axes = positions.shape[1]
    sigma = sigma_spacing * spacing
    moved[which] += rng.normal(0.0, sigma, (len(which), n_axes))
    return moved


def thin_counts(
    counts: sparse.csr_matrix, rate: float | Floats, rng: np.random.Generator
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Split every count at random: each molecule goes to ``part`` with probability ``rate``, else to ``rest``.

    Parameters
    ----------
    counts
        CSR ``(n_cells, n_genes)`` of whole numbers.
    rate
        One number, or one a cell ``(n_cells,)``.
    rng
        Random generator.

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
    in_range = (rates >= 0) & (rates <= 1)
    if not in_range.all():
        raise ConfigError(f"rate is {rate}; it must be between 0 and 1.")
    values = counts.data
    is_count = np.isfinite(values) & (values >= 0) & (values == np.floor(values))
    if not is_count.all():
        raise InputError(
            "only counts can be thinned: the matrix holds values that are negative or not whole numbers."
        )
    if rates.ndim:  # one a cell
        n_values = np.diff(counts.indptr)
        rates = np.repeat(rates, n_values)
    part = np.empty_like(values)
    for start in range(0, len(values), VALUES_AT_ONCE):  # as one draw, with less memory
        rows = slice(start, start + VALUES_AT_ONCE)
        own_rates = rates[rows] if rates.ndim else rates
        part[rows] = rng.binomial(values[rows].astype(np.int64), own_rates)
    rest = values - part
    return _with_values(counts, part), _with_values(counts, rest)


def _with_values(counts: sparse.csr_matrix, values: AnyFloats | Ints) -> sparse.csr_matrix:
    """Return ``counts`` with other values, without zeros."""
    filled = values > 0
    n_before = np.zeros(len(values) + 1, dtype=counts.indptr.dtype)
    np.cumsum(filled, out=n_before[1:])
    data = values[filled].astype(counts.dtype)
    indices = counts.indices[filled]
    indptr = n_before[counts.indptr]
    return sparse.csr_matrix((data, indices, indptr), shape=counts.shape)


def mask_tokens(
    tokens: Int32s,
    rng: np.random.Generator,
    *,
    mask_token: int,
    gene_tokens: Int32s,
    share: float = 0.15,
) -> tuple[Int32s, Ints]:
    """Hide tokens as BERT does: of the chosen ones 80 % are masked, 10 % replaced by a random gene, 10 % left.

    Parameters
    ----------
    tokens
        int32, gene tokens of many cells, one after the other, without ``<cls>``.
    rng
        Random generator.
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
    n = len(tokens)
    is_chosen = rng.random(n) < share
    chosen = np.flatnonzero(is_chosen)
    fate = rng.random(len(chosen))
    is_masked = fate < MASKED
    is_replaced = (fate >= MASKED) & (fate < MASKED + RANDOM)
    masked = chosen[is_masked]
    replaced = chosen[is_replaced]
    labels = np.full(n, IGNORED, dtype=np.int64)
    labels[chosen] = tokens[chosen]
    ids = tokens.copy()
    ids[masked] = mask_token
    ids[replaced] = rng.choice(gene_tokens, size=len(replaced))
    return ids, labels
