"""Which cells are learned from, which stop training early, which are scored: random, blocked, few, across patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from terrazzo import keys
from terrazzo.arrays import Ints
from terrazzo.errors import ConfigError, InputError
from terrazzo.slices.slice import stated

BLOCKS, FOLDS = 16, 4


VALIDATION = 0.1  # share of the training cells that stops training early (SToFM, C.2)


@dataclass(frozen=True)
class Split:
    """Rows of one experiment; the three sets are disjoint.

    Attributes
    ----------
    kind
        ``"random"``, ``"blocked"``, ``"few-shot"`` or ``"cross"``.
    number
        Of the fold or draw.
    train, validation, test
        int64 row numbers, sorted.
    """

    kind: str
    number: int
    train: Ints
    validation: Ints
    test: Ints


def random_splits(
    known: ArrayLike, n: int = 3, *, train_share: float = 0.8, seed: int = 0, kind: str = "random"
) -> list[Split]:
    """Draw ``n`` independent splits of the cells with a label, 8:2 by default (SToFM, C.2).

    Neighbors of test cells are in training: such a score leaks space and stands beside a blocked one.

    Raises
    ------
    ConfigError, InputError
        A share outside (0, 1); fewer than 5 labeled cells.
    """
    rows = _rows(known)
    if not 0 < train_share < 1:
        raise ConfigError(f"train_share is {train_share}; it must lie between 0 and 1.")
    out = []
    for number in range(n):
        rng = np.random.default_rng([seed, number, 101])
        drawn = rng.permutation(rows)
        cut = min(max(2, round(train_share * len(rows))), len(rows) - 1)
        out.append(_split(kind, number, drawn[:cut], drawn[cut:], rng))
    return out


def blocked_splits(coords: ArrayLike, known: ArrayLike, *, seed: int = 0) -> list[Split]:
    """Return four folds over 16 spatial blocks: test cells have no training neighbors but at the blocks' borders.

    Parameters
    ----------
    coords
        ``(n, 2)``.
    known
        bool ``(n,)``: cells with a label.
    seed
        Of the draw of validation cells.
    """
    rows, fold = _rows(known), spatial_folds(coords)
    out = []
    for number in range(FOLDS):
        here = fold[rows] == number
        if here.any() and not here.all():
            rng = np.random.default_rng([seed, number, 102])
            out.append(_split("blocked", number, rows[~here], rows[here], rng))
    if not out:
        raise InputError(
            "the labeled cells lie in one spatial block; they cannot be split in space."
        )
    return out


def spatial_folds(coords: ArrayLike, blocks: int = BLOCKS, folds: int = FOLDS) -> NDArray[np.int64]:
    """Return the fold of each cell: blocks of equal size, four strips along x, each cut in four along y.

    Blocks of a fold touch at corners only: one in each row and each column of blocks.
    """
    places = np.asarray(coords, dtype=np.float64)
    side = int(np.sqrt(blocks))
    out = np.empty(len(places), dtype=np.int64)
    for i, strip in enumerate(np.array_split(np.argsort(places[:, 0], kind="stable"), side)):
        for j, part in enumerate(
            np.array_split(strip[np.argsort(places[strip, 1], kind="stable")], side)
        ):
            out[part] = (i + j) % folds
    return out


def cross_split(
    n_train: int, known_train: ArrayLike, known_test: ArrayLike, *, seed: int = 0
) -> Split:
    """Return the split of training slices' rows, stacked, followed by the test slice's rows.

    Parameters
    ----------
    n_train
        Rows of the training slices together.
    known_train, known_test
        bool: labeled cells among the training rows, and among the test rows.
    seed
        Of the draw of validation cells.
    """
    rng = np.random.default_rng([seed, 103])
    return _split("cross", 0, _rows(known_train), _rows(known_test) + n_train, rng)


def all_rows(known: ArrayLike, *, seed: int = 0) -> Split:
    """Return the split that scores nothing: every labeled cell trains, but for those that stop training early."""
    return _split(
        "whole", 0, _rows(known), np.zeros(0, dtype=np.int64), np.random.default_rng([seed, 104])
    )


def donor_of(adata: AnnData, key: str | None = None) -> str:
    """Return whom a slice is of, by this key of ``obs`` or ``uns``, None: of ``keys.DONOR``; "" where nothing says."""
    return stated(adata, keys.DONOR if key is None else (key,))


def patients(
    slices: Sequence[AnnData], donors: str | Sequence[str] | None = None
) -> tuple[list[str], list[int]]:
    """Return the patient of each slice, and the number of its group; no slice joins two groups.

    Parameters
    ----------
    slices
        At least two, of two patients.
    donors
        Key of ``obs`` or ``uns``, or one name a slice; see :func:`donor_of`.

    Raises
    ------
    InputError
        Another number of names, a patient that is not known, or only one.
    """
    from terrazzo.corpus.splits import donor_groups

    if donors is None or isinstance(donors, str):
        whose = [donor_of(one, donors) for one in slices]
    else:
        whose = [str(name).strip() for name in donors]
        if len(whose) != len(slices):
            raise InputError(
                f"donors has {len(whose)} names for {len(slices)} slices; give one for each."
            )
    if unknown := [str(i + 1) for i, name in enumerate(whose) if not name]:
        where = (
            f"obs or uns {donors!r}"
            if isinstance(donors, str)
            else f"obs or uns ({', '.join(keys.DONOR)})"
        )
        raise InputError(
            f"the patient of slice {', '.join(unknown)} of {len(slices)} is not known: put it into {where}, or pass "
            "donors= with one name a slice."
        )
    groups = donor_groups(whose, whose)
    if len(set(groups)) < 2:
        raise InputError(
            f"all {len(slices)} slices are of one patient, {whose[0]!r}: none can be held out; pass test=."
        )
    return whose, groups


def _rows(known: ArrayLike) -> Ints:
    rows = np.flatnonzero(np.asarray(known, dtype=bool)).astype(np.int64)
    if len(rows) < 5:
        raise InputError(
            f"only {len(rows)} cells have a label that is scored; at least 5 are needed."
        )
    return rows


def _split(kind: str, number: int, train: Ints, test: Ints, rng: np.random.Generator) -> Split:
    drawn = rng.permutation(train)
    cut = max(1, round(VALIDATION * len(drawn)))
    return Split(kind, number, np.sort(drawn[cut:]), np.sort(drawn[:cut]), np.sort(test))
