"""Splits: slices or donors dealt to train, validation and test."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from terrazzo.errors import ConfigError, CorpusError, TerrazzoWarning

__all__ = ["SPLITS", "Splits", "assign", "donor_groups"]

SPLITS = ("train", "validation", "test")
_UNKNOWN = ("", "unknown")  # no donor


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
    ids: Sequence[str],
    donors: Sequence[str],
    stated: Sequence[str | None],
    splits: Splits,
    left_out: str = "",
) -> list[str]:
    """Return the split of every slice.

    Parameters
    ----------
    ids, donors, stated
        One a slice; several donors of a slice are joined by "|"; stated splits are kept.
    splits
        How to deal the others. With ``by="donor"`` a donor with a stated split takes all its slices to that split.
    left_out
        Which slices were left out before, and why, for the message where none trains.

    Raises
    ------
    CorpusError
        A donor stated in two splits, or not known, where ``by="donor"``; nothing left to train on.
    """
    is_needed = splits.validation > 0 or splits.test > 0 or any(stated)
    by_donor = splits.by == "donor" and is_needed
    if by_donor:
        groups = donor_groups(ids, donors)
        names = _group_names(groups, donors)
    else:
        groups = list(range(len(ids)))
        names = _group_names(groups, ids)
    split_of = _stated_groups(ids, groups, stated)
    free = [group for group in names if group not in split_of]
    free.sort(key=lambda group: _draw(splits.seed, names[group]))
    dealt = list(split_of.values())
    n_groups = len(names)
    n_test = _n_to_draw(splits.test, n_groups, dealt.count("test"))
    n_validation = _n_to_draw(splits.validation, n_groups, dealt.count("validation"))
    for place, group in enumerate(free):
        if place < n_test:
            split_of[group] = "test"
        elif place < n_test + n_validation:
            split_of[group] = "validation"
        else:
            split_of[group] = "train"
    result = [split_of[group] for group in groups]
    if "train" not in result:
        unit = "groups of donors" if by_donor else "slices"
        advice = left_out or "Hold out fewer."
        raise CorpusError(
            f"no slice is left to train on: {n_groups} {unit}, all held out. {advice}"
        )
    if not by_donor:
        _warn_straddling(donors, result)
    return result


def _stated_groups(
    ids: Sequence[str], groups: Sequence[int], stated: Sequence[str | None]
) -> dict[int, str]:
    """Return the split of each group of which a slice has a stated one."""
    split_of: dict[int, str] = {}
    for id, group, split in zip(ids, groups, stated, strict=True):
        if split is None:
            continue
        first = split_of.setdefault(group, split)
        if first != split:
            raise CorpusError(
                f"slice {id!r}: its donor is in {split} and in {first}; give it one split, or split by slice"
            )
    return split_of


def _group_names(groups: Sequence[int], names: Sequence[str]) -> dict[int, str]:
    """Return for each group the name that its draw depends on: the first in the alphabet."""
    first: dict[int, str] = {}
    for group, name in zip(groups, names, strict=True):
        if group not in first or name < first[group]:
            first[group] = name
    return first


def _n_to_draw(share: float, n_groups: int, n_stated: int) -> int:
    """Return how many groups a split still needs."""
    wanted = round(share * n_groups)
    if share > 0:
        wanted = max(1, wanted)
    return max(0, wanted - n_stated)


def _draw(seed: int, name: str) -> str:
    text = f"{seed} {name}"
    return hashlib.sha256(text.encode()).hexdigest()


def donor_groups(ids: Sequence[str], donors: Sequence[str]) -> list[int]:
    """Return for each slice the number of its set of donors; no slice joins two sets."""
    unknown = []
    for id, donor in zip(ids, donors, strict=True):
        if donor in _UNKNOWN:
            unknown.append(id)
    if unknown:
        first = unknown[0]
        raise CorpusError(
            f"cannot split by donor: the donor of {len(unknown)} slices is not known, e.g. {first!r}. Give it in "
            "a column donor of the table of sources, or in obs['donor']; or split by slice."
        )
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    firsts = []
    for joined in donors:
        first, *others = joined.split("|")
        firsts.append(first)
        for other in others:
            leader[find(other)] = find(first)
    numbers: dict[str, int] = {}
    groups = []
    for first in firsts:
        number = numbers.setdefault(find(first), len(numbers))
        groups.append(number)
    return groups


def _warn_straddling(donors: Sequence[str], dealt: Sequence[str]) -> None:
    """Warn of donors that have slices in more than one split."""
    splits_of: dict[str, set[str]] = {}
    for joined, split in zip(donors, dealt, strict=True):
        for donor in joined.split("|"):
            splits_of.setdefault(donor, set()).add(split)
    several = []
    for donor, splits in splits_of.items():
        if len(splits) > 1 and donor not in _UNKNOWN:
            several.append(donor)
    if several:
        first = several[0]
        warnings.warn(
            f"{len(several)} donors have slices in more than one split, e.g. {first!r}: what is held out is a "
            "slice, not a donor",
            TerrazzoWarning,
            stacklevel=4,
        )
