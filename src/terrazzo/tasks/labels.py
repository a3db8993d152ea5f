"""Labels as tasks read them: which cells are scored, which are left out of scoring, and why."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from terrazzo.arrays import Bools, Ints, Words
from terrazzo.errors import InputError, TerrazzoWarning, did_you_mean

__all__ = [
    "LEAST_SHARE",
    "UNSCORED",
    "Labels",
    "column",
    "differences",
    "parse",
    "read",
    "shared_classes",
]

UNSCORED = frozenset(
    {
        "",
        "nan",
        "none",
        "na",
        "n/a",
        "<na>",
        "other",
        "unknown",
        "ambiguous",
        "unassigned",
        "undetermined",
    }
)
LEAST_SHARE = 0.01  # classes rarer than this are left out of scoring (SToFM, C.2)


@dataclass(frozen=True)
class Labels:
    """The labels of one slice, or of several joined.

    Attributes
    ----------
    codes
        int64 ``(n,)``: index into ``classes``; -1 where the cell is not scored (no label, "Other", a rare class).
    classes
        Names of the scored classes, sorted.
    missing
        Cells without a label, or with one that means none ("Unknown").
    rare
        Classes left out because they are rare, and their cells.
    """

    codes: Ints
    classes: tuple[str, ...]
    missing: int = 0
    rare: dict[str, int] = field(default_factory=dict)

    @property
    def known(self) -> Bools:
        """Which cells are scored."""
        return self.codes >= 0

    @property
    def names(self) -> Words:
        """The class of every cell, ``None`` where it is not scored."""
        names = np.array([*self.classes, None], dtype=object)
        return names[self.codes]

    @property
    def rare_in_words(self) -> str:
        """The rare classes, with the cells of each."""
        parts = []
        for name, n_cells in self.rare.items():
            parts.append(f"{name} ({n_cells})")
        return ", ".join(parts)

    def recoded(self, classes: Sequence[str]) -> Ints:
        """Return codes into other classes; -1 for a cell whose class is not among them."""
        number = {name: i for i, name in enumerate(classes)}
        new_codes = [number.get(name, -1) for name in self.classes]
        new_codes.append(-1)  # of cells that are not scored, whose code is -1
        return np.array(new_codes, dtype=np.int64)[self.codes]


def read(adata: AnnData, label: str | ArrayLike, *, least_share: float = LEAST_SHARE) -> Labels:
    """Read labels from a column of ``obs``, or from an array with one value a cell.

    Parameters
    ----------
    adata
        The cells.
    label
        Column of ``obs``, or array of ``n_obs``.
    least_share
        Classes with a smaller share of the labeled cells, or with a single cell, are not scored.

    Raises
    ------
    InputError
        No such column, another length, no label at all, or a single class.
    """
    name = f"obs[{label!r}]" if isinstance(label, str) else "the labels"
    return parse(column(adata, label), least_share=least_share, name=name)


def column(adata: AnnData, label: str | ArrayLike) -> pd.Series:
    """Return labels as they are, one a cell; see :func:`read`.

    Raises
    ------
    InputError
        No such column, or another length.
    """
    if isinstance(label, str):
        if label not in adata.obs:
            known = ", ".join(map(str, adata.obs)) or "none"
            hint = did_you_mean(label, adata.obs)
            raise InputError(f"obs has no column {label!r}; there are: {known}.{hint}")
        return adata.obs[label]
    values = pd.Series(np.asarray(label).ravel())
    if len(values) != adata.n_obs:
        n_labels = len(values)
        raise InputError(f"there are {n_labels} labels for {adata.n_obs} cells.")
    return values


def parse(
    values: pd.Series, *, least_share: float = LEAST_SHARE, name: str = "the labels"
) -> Labels:
    """Turn a column into :class:`Labels`; see :func:`read`."""
    words = values.astype(object).map(_word)
    is_label = ~words.str.lower().isin(UNSCORED).to_numpy()
    n_labels = int(is_label.sum())
    if not n_labels:
        raise InputError(
            f"{name} holds no label: every cell is empty, NaN, or a word like 'Unknown'."
        )
    counts = words[is_label].value_counts()
    share_of_cells = int(np.ceil(least_share * n_labels))
    least_cells = max(2, share_of_cells)
    classes = []
    rare = {}
    for label, n_cells in counts.items():
        if n_cells < least_cells:
            rare[str(label)] = int(n_cells)
        else:
            classes.append(str(label))
    classes.sort()
    _check_classes(classes, rare, name)
    _warn_of_single_cells(rare, name)
    code_of = {label: code for code, label in enumerate(classes)}
    codes = np.full(len(words), -1, dtype=np.int64)
    known_words = words[is_label]
    codes[is_label] = [code_of.get(word, -1) for word in known_words]
    n_missing = len(words) - n_labels
    return Labels(codes, tuple(classes), n_missing, rare)


def _word(value: object) -> str:
    """Return a label as text; "" where it is missing."""
    if pd.isna(value):
        return ""
    return str(value).strip()


def _check_classes(classes: Sequence[str], rare: dict[str, int], name: str) -> None:
    """Refuse labels with fewer than two classes."""
    if len(classes) >= 2:
        return
    present = f"one class, {classes[0]!r}" if classes else "no class"
    too_rare = f"; too rare to be scored: {', '.join(rare)}" if rare else ""
    raise InputError(f"{name} has {present} with enough cells{too_rare}; two or more are needed.")


def _warn_of_single_cells(rare: dict[str, int], name: str) -> None:
    """Warn of classes with one cell."""
    single = [label for label, n_cells in rare.items() if n_cells == 1]
    if not single:
        return
    shown = ", ".join(single[:5])
    if len(single) == 1:
        message = f"{name}: {shown} has a single cell and is left out of scoring."
    else:
        message = f"{name}: {shown} have a single cell and are left out of scoring."
    warnings.warn(message, TerrazzoWarning, stacklevel=4)


def shared_classes(train: Sequence[Labels], test: Labels) -> tuple[tuple[str, ...], str]:
    """Return the classes that are known on both sides, and what differs in words ("" where nothing does).

    Raises
    ------
    InputError
        Fewer than two classes are shared.
    """
    learned = sorted({name for labels in train for name in labels.classes})
    common = tuple(name for name in learned if name in test.classes)
    if len(common) < 2:
        raise InputError(
            f"training and test slices share {len(common)} scored classes; two or more are needed. "
            f"Training: {', '.join(learned)}. Test: {', '.join(test.classes)}."
        )
    return common, differences(learned, test.classes)


def differences(train: Sequence[str], test: Sequence[str]) -> str:
    """Return in words which names only the training or only the test slices have; "" where they agree."""
    parts = []
    only_train = [name for name in train if name not in test]
    if only_train:
        parts.append(f"{', '.join(only_train)} only in the training slices")
    only_test = [name for name in test if name not in train]
    if only_test:
        parts.append(f"{', '.join(only_test)} only in the test slices")
    return "; ".join(parts)
