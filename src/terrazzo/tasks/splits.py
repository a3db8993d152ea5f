"""Splits of cells: which are learned from, which stop training early, which are scored; and the patients of slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike

from terrazzo import keys
from terrazzo.arrays import Ints
from terrazzo.errors import ConfigError, InputError
from terrazzo.slices.geometry import read_coords
from terrazzo.slices.slice import stated

__all__ = [
    "Split",
    "Units",
    "all_rows",
    "blocked_splits",
    "cross_split",
    "donor_of",
    "donors_of",
    "held_out_units",
    "patients",
    "random_splits",
    "spatial_folds",
]

BLOCKS = 16
FOLDS = 4
VALIDATION = 0.1  # share of the training cells that stops training early (SToFM, C.2)
LEAST_CELLS = 5


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


@dataclass(frozen=True, eq=False)
class Units:
    """What is held out in turn to choose a setting, among the training rows alone.

    Attributes
    ----------
    kind
        The widest of these that the training slices have at least two of.
    numbers
        int64 ``(n,)``: the unit of each row of all slices, stacked.
    """

    kind: Literal["patient", "slice", "block"]
    numbers: Ints


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
    rows = _labeled_rows(known)
    if not 0 < train_share < 1:
        raise ConfigError(f"train_share is {train_share}; it must be between 0 and 1.")
    n_train = max(2, round(train_share * len(rows)))
    n_train = min(n_train, len(rows) - 1)
    splits = []
    for number in range(n):
        rng = np.random.default_rng([seed, number, 101])
        drawn = rng.permutation(rows)
        train = drawn[:n_train]
        test = drawn[n_train:]
        splits.append(_split(kind, number, train, test, rng))
    return splits


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
    rows = _labeled_rows(known)
    fold = spatial_folds(coords)[rows]
    splits = []
    for number in range(FOLDS):
        is_test = fold == number
        if not is_test.any() or is_test.all():
            continue
        rng = np.random.default_rng([seed, number, 102])
        train = rows[~is_test]
        test = rows[is_test]
        splits.append(_split("blocked", number, train, test, rng))
    if not splits:
        raise InputError(
            "the labeled cells are in one spatial block; they cannot be split in space."
        )
    return splits


def spatial_folds(coords: ArrayLike, blocks: int = BLOCKS, folds: int = FOLDS) -> Ints:
    """Return the fold of each cell: blocks of equal size, four strips along x, each cut in four along y.

    Blocks of a fold touch at corners only: one in each row and each column of blocks.
    """
    places = np.asarray(coords, dtype=np.float64)
    side = int(np.sqrt(blocks))
    fold = np.empty(len(places), dtype=np.int64)
    by_x = np.argsort(places[:, 0], kind="stable")
    for i, strip in enumerate(np.array_split(by_x, side)):
        by_y = np.argsort(places[strip, 1], kind="stable")
        for j, block in enumerate(np.array_split(strip[by_y], side)):
            fold[block] = (i + j) % folds
    return fold


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
    train = _labeled_rows(known_train)
    test = _labeled_rows(known_test) + n_train
    return _split("cross", 0, train, test, rng)


def all_rows(known: ArrayLike, *, seed: int = 0) -> Split:
    """Return the split that scores nothing: every labeled cell trains, but for those that stop training early."""
    rng = np.random.default_rng([seed, 104])
    nothing = np.zeros(0, dtype=np.int64)
    return _split("whole", 0, _labeled_rows(known), nothing, rng)


def donor_of(adata: AnnData, key: str | None = None) -> str:
    """Return the donor of a slice, by this key of ``obs`` or ``uns``, None: of ``keys.DONOR``; "" where unknown."""
    names = keys.DONOR if key is None else (key,)
    return stated(adata, names)


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

    n_slices = len(slices)
    names = donors_of(slices, donors)
    unknown = []
    for i, name in enumerate(names):
        if not name:
            unknown.append(str(i + 1))
    if unknown:
        key = ", ".join(keys.DONOR) if donors is None else donors
        raise InputError(
            f"the patient of slice {', '.join(unknown)} of {n_slices} is not known: "
            f"put it into obs or uns ({key}), or pass donors= with one name a slice."
        )
    groups = donor_groups(names, names)
    if len(set(groups)) < 2:
        raise InputError(
            f"all {n_slices} slices are of one patient, {names[0]!r}: "
            "none can be held out; pass test=."
        )
    return names, groups


def donors_of(slices: Sequence[AnnData], donors: str | Sequence[str] | None = None) -> list[str]:
    """Return the patient of each slice, "" where it is not known; arguments as in :func:`patients`.

    Raises
    ------
    InputError
        Another number of names than of slices.
    """
    if donors is None or isinstance(donors, str):
        return [donor_of(adata, donors) for adata in slices]
    names = [str(name).strip() for name in donors]
    n_slices = len(slices)
    if len(names) != n_slices:
        raise InputError(f"donors has {len(names)} names for {n_slices} slices; give one for each.")
    return names


def held_out_units(slices: Sequence[AnnData], donors: Sequence[str]) -> Units:
    """Return what is held out in turn to choose a setting: each patient, else each slice, else spatial blocks.

    Parameters
    ----------
    slices
        Those that are learned from; of a single one the coordinates are read.
    donors
        The patient of each, "" where it is not known; then no patient is held out.

    Raises
    ------
    InputError
        A single slice without coordinates.
    """
    from terrazzo.corpus.splits import donor_groups

    sizes = [adata.n_obs for adata in slices]
    if all(donors):
        groups = donor_groups(donors, donors)
        if len(set(groups)) > 1:
            return Units("patient", np.repeat(groups, sizes))
    if len(slices) > 1:
        return Units("slice", np.repeat(np.arange(len(slices)), sizes))
    return Units("block", spatial_folds(read_coords(slices[0], keys.SPATIAL)))


def _labeled_rows(known: ArrayLike) -> Ints:
    """Return the rows of the cells with a label."""
    is_known = np.asarray(known, dtype=bool)
    rows = np.flatnonzero(is_known).astype(np.int64)
    if len(rows) < LEAST_CELLS:
        raise InputError(
            f"only {len(rows)} cells have a label that is scored; "
            f"at least {LEAST_CELLS} are needed."
        )
    return rows


def _split(kind: str, number: int, train: Ints, test: Ints, rng: np.random.Generator) -> Split:
    """Draw the validation cells out of the training cells."""
    drawn = rng.permutation(train)
    n_validation = max(1, round(VALIDATION * len(drawn)))
    return Split(
        kind=kind,
        number=number,
        train=np.sort(drawn[n_validation:]),
        validation=np.sort(drawn[:n_validation]),
        test=np.sort(test),
    )
