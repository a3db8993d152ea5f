"""Who trains and who is held out: slices or donors dealt to train, validation and test."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from terrazzo.errors import ConfigError, CorpusError, TerrazzoWarning


@dataclass(frozen=True)
class Splits:
    """How slices without a stated split are dealt.

    Attributes
    ----------
    by
        "donor": all slices of a donor go together; "slice": each by itself.
    validation, test
        Share of the donors or slices, at least one where above 0.
    seed
        Of the draw.
    """

    by: Literal["donor", "slice"] = "slice"
    validation: float = 0.0
    test: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in ("donor", "slice"):
            raise ConfigError(f"splits are by donor or slice, not {self.by!r}")
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ConfigError("splits: validation and test are shares from 0, below 1 together")


def assign(
    ids: Sequence[str], donors: Sequence[str], stated: Sequence[str | None], splits: Splits
) -> list[str]:
    """Return the split of every slice.

    Parameters
    ----------
    ids, donors, stated
        One a slice; several donors of a slice are joined by "|"; stated splits are kept.
    splits
        How to deal the others. A donor with a stated split takes all its slices there where ``by="donor"``.

    Raises
    ------
    CorpusError
        A donor stated in two splits, or not known, where ``by="donor"``; nothing left to train on.
    """
    deals = splits.validation > 0 or splits.test > 0
    by_donor = splits.by == "donor" and (deals or any(stated))
    groups = donor_groups(ids, donors) if by_donor else list(range(len(ids)))
    fixed: dict[int, str] = {}
    for id, group, split in zip(ids, groups, stated, strict=True):
        if split is not None and fixed.setdefault(group, split) != split:
            raise CorpusError(
                f"slice {id!r}: its donor is in {split} and in {fixed[group]}; give it one split, or split by slice"
            )
    names: dict[int, str] = {}
    for id, donor, group in zip(ids, donors, groups, strict=True):
        names[group] = min(names.get(group, "\uffff"), donor if by_donor else id)
    free = sorted((g for g in names if g not in fixed), key=lambda g: _draw(splits.seed, names[g]))
    n_test, n_validation = (
        max(0, (round(share * len(names)) or int(share > 0)) - list(fixed.values()).count(name))
        for name, share in (("test", splits.test), ("validation", splits.validation))
    )
    for place, group in enumerate(free):
        fixed[group] = (
            "test" if place < n_test else "validation" if place < n_test + n_validation else "train"
        )
    dealt = [fixed[group] for group in groups]
    if "train" not in dealt:
        what = "groups of donors" if by_donor else "slices"
        raise CorpusError(
            f"no slice is left to train on: {len(names)} {what}, all held out. Hold out fewer."
        )
    if not by_donor:
        _warn_straddling(donors, dealt)
    return dealt


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def donor_groups(ids: Sequence[str], donors: Sequence[str]) -> list[int]:
    """Return for each slice the number of its set of donors; no slice joins two sets."""
    unknown = [id for id, donor in zip(ids, donors, strict=True) if donor in ("", "unknown")]
    if unknown:
        raise CorpusError(
            f"cannot split by donor: the donor of {len(unknown)} slices is not known, e.g. {unknown[0]!r}. Give it in "
            "a column donor of the table of sources, or in obs['donor']; or split by slice."
        )
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    for joined in donors:
        first, *others = joined.split("|")
        for other in others:
            leader[find(other)] = find(first)
    roots = [find(joined.split("|")[0]) for joined in donors]
    order = {root: number for number, root in enumerate(dict.fromkeys(roots))}
    return [order[root] for root in roots]


def _warn_straddling(donors: Sequence[str], dealt: Sequence[str]) -> None:
    seen: dict[str, set[str]] = {}
    for joined, split in zip(donors, dealt, strict=True):
        for donor in joined.split("|"):
            seen.setdefault(donor, set()).add(split)
    both = [
        donor for donor, found in seen.items() if len(found) > 1 and donor not in ("", "unknown")
    ]
    if both:
        warnings.warn(
            f"{len(both)} donors have slices in more than one split, e.g. {both[0]!r}: what is held out is a "
            "slice, not a donor",
            TerrazzoWarning,
            stacklevel=4,
        )
