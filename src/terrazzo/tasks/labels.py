"""Labels as tasks read them: what is scored, what is left out of scoring, and why."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from terrazzo.errors import InputError, TerrazzoWarning, did_you_mean

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
        Cells without a label, or with one that says so ("Unknown").
    rare
        Classes left out because they are rare, and their cells.
    """

    codes: NDArray[np.int64]
    classes: tuple[str, ...]
    missing: int = 0
    rare: dict[str, int] = field(default_factory=dict)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which cells are scored."""
        return self.codes >= 0

    @property
    def names(self) -> NDArray[np.object_]:
        """The class of every cell, ``None`` where it is not scored."""
        return np.array([*self.classes, None], dtype=object)[self.codes]

    def recoded(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Return codes into other classes; -1 where theirs is not among them."""
        place = {name: i for i, name in enumerate(classes)}
        table = np.array([*(place.get(name, -1) for name in self.classes), -1], dtype=np.int64)
        return table[self.codes]


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
            hint = did_you_mean(label, adata.obs)
            raise InputError(
                f"obs has no column {label!r}; there are: {', '.join(map(str, adata.obs)) or 'none'}.{hint}"
            )
        return adata.obs[label]
    values = pd.Series(np.asarray(label).ravel())
    if len(values) != adata.n_obs:
        raise InputError(f"there are {len(values)} labels for {adata.n_obs} cells.")
    return values


def parse(
    values: pd.Series, *, least_share: float = LEAST_SHARE, name: str = "the labels"
) -> Labels:
    """Turn a column into :class:`Labels`; see :func:`read`."""
    words = values.astype(object).map(lambda v: "" if pd.isna(v) else str(v).strip())
    said = ~words.str.lower().isin(UNSCORED).to_numpy()
    if not said.any():
        raise InputError(
            f"{name} holds no label: every cell is empty, NaN, or a word like 'Unknown'."
        )
    counts = words[said].value_counts()
    floor = max(2, int(np.ceil(least_share * said.sum())))
    rare = {str(k): int(v) for k, v in counts.items() if v < floor}
    classes = tuple(sorted(str(k) for k in counts.index if str(k) not in rare))
    if len(classes) < 2:
        have = f"one class, {classes[0]!r}" if classes else "no class"
        left = f"; too rare to be scored: {', '.join(rare)}" if rare else ""
        raise InputError(f"{name} has {have} with enough cells{left}; two or more are needed.")
    if alone := [k for k, v in rare.items() if v == 1]:
        warnings.warn(
            f"{name}: {', '.join(alone[:5])} {'has' if len(alone) == 1 else 'have'} a single cell and "
            f"{'is' if len(alone) == 1 else 'are'} left out of scoring.",
            TerrazzoWarning,
            stacklevel=3,
        )
    place = {c: i for i, c in enumerate(classes)}
    codes = np.array(
        [place.get(w, -1) if s else -1 for w, s in zip(words, said, strict=True)], dtype=np.int64
    )
    return Labels(codes, classes, int((~said).sum()), rare)


def shared_classes(train: Sequence[Labels], test: Labels) -> tuple[tuple[str, ...], str]:
    """Return the classes that are known on both sides, and what differs in words ("" where nothing does).

    Raises
    ------
    InputError
        Fewer than two classes are shared.
    """
    learned = sorted({c for one in train for c in one.classes})
    common = tuple(c for c in learned if c in test.classes)
    if len(common) < 2:
        raise InputError(
            f"training and test slices share {len(common)} scored classes; two or more are needed. "
            f"Training: {', '.join(learned)}. Test: {', '.join(test.classes)}."
        )
    only_train, only_test = (
        [c for c in learned if c not in common],
        [c for c in test.classes if c not in common],
    )
    parts = [
        f"{', '.join(names)} only in the {side} slices"
        for names, side in ((only_train, "training"), (only_test, "test"))
        if names
    ]
    return common, "; ".join(parts)
