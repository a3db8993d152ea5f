"""Tasks on AnnDatas that hold several sections: each section is a slice, and its scores are joined with the others'."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.errors import ConfigError, InputError
from terrazzo.slices.parts import about_part, split, takes_all
from terrazzo.slices.sections import refuse_overlap
from terrazzo.tasks import targets
from terrazzo.tasks.results import TaskResult
from terrazzo.tasks.targets import Data

__all__ = [
    "SLICE",
    "check_keys",
    "check_slices",
    "joined",
    "names_of",
    "scored_by_section",
    "slices_of",
]

SLICE = "slice"  # column of scores and predictions

Score = Callable[
    [list[AnnData], AnnData | None], TaskResult
]  # of training slices, and the one to score on


def slices_of(data: Data, slice_key: str | None, spatial_key: str = keys.SPATIAL) -> list[AnnData]:
    """Return slices as a list: by ``slice_key`` the sections of each AnnData, else the AnnDatas themselves.

    Raises
    ------
    InputError
        No slice; without a key, an AnnData with several sections that overlap.
    """
    slices = targets.as_list(data)
    if takes_all(slice_key):
        if slice_key is None:
            for number, adata in enumerate(slices):
                with targets.at(number, len(slices)):
                    refuse_overlap(adata, spatial_key)
        return slices
    sections: list[AnnData] = []
    for number, adata in enumerate(slices):
        with targets.at(number, len(slices)):
            sections += [part.adata for part in split(adata, str(slice_key))]
    return sections


def check_slices(data: Data, test: AnnData | None, slice_key: str | None) -> None:
    """Refuse slices with several sections that overlap; errors as :func:`slices_of`."""
    slices_of(data, slice_key)
    if test is not None:
        slices_of(test, slice_key)


def names_of(data: Data, slice_key: str | None) -> list[str]:
    """Return the names of the slices that :func:`slices_of` returns: of sections their labels, else numbers."""
    slices = targets.as_list(data)
    if takes_all(slice_key):
        return [str(number) for number in range(1, len(slices) + 1)]
    names = []
    for number, adata in enumerate(slices, 1):
        for part in split(adata, str(slice_key)):
            names.append(part.value if len(slices) == 1 else f"{number}:{part.value}")
    return names


def check_keys(slice_key: str, **values: Any) -> None:
    """Refuse arrays beside ``slice_key``: they would have to be split, too.

    Raises
    ------
    ConfigError
        Says which must be a key.
    """
    for name, value in values.items():
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"with slice_key={slice_key!r}, {name} must be a key, not an array.")


def scored_by_section(score: Score, data: Data, test: AnnData | None, slice_key: str) -> TaskResult:
    """Score each section of a slice, by splits of its own or by ``test``; learned from are all sections of ``data``.

    Parameters
    ----------
    score
        Called with the training slices, and the one that is scored (None: splits of the only training slice).
    data, test
        As the task takes them.
    slice_key
        Column of ``obs`` that tells the sections of each apart.
    """
    results: dict[str | None, TaskResult] = {}
    if test is None:
        slices = targets.as_list(data)
        if len(slices) != 1:
            raise ConfigError(
                f"there are {len(slices)} slices; pass the slice to be scored as test=."
            )
        scored = slices[0]
        for part in split(scored, slice_key):
            with about_part(slice_key, part.value):
                results[part.value] = score([part.adata], None)
    else:
        scored = test
        training = slices_of(data, slice_key)
        for part in split(scored, slice_key):
            with about_part(slice_key, part.value):
                results[part.value] = score(training, part.adata)
    return joined(results, slice_key)


def joined(results: Mapping[str | None, TaskResult], slice_key: str | None) -> TaskResult:
    """Join the results of sections into one, with a column that names the section.

    Parameters
    ----------
    results
        By the label of the section; one alone under None is returned as it is.
    slice_key
        The column that tells them apart.

    Returns
    -------
    The result; its ``config`` has under "slices" what differs between them.
    """
    if None in results:
        return results[None]
    if not results:
        raise InputError("there is no section to score.")
    every = list(results.values())
    first = every[0]
    metrics = []
    predictions = []
    notes = []
    for name, result in results.items():
        metrics.append(result.metrics.assign(**{SLICE: name}))
        table = result.predictions.copy()
        table.insert(0, SLICE, name)
        predictions.append(table)
        notes += [f"{name}: {note}" for note in result.notes]
    same: dict[str, Any] = {}
    differing = []
    for name, value in first.config.items():
        if all(result.config.get(name) == value for result in every):
            same[name] = value
        else:
            differing.append(name)
    own = {}
    for name, result in results.items():
        own[name] = {key: result.config.get(key) for key in differing}
    config = {**same, "slice_key": slice_key, "slices": own}
    return replace(
        first,
        metrics=pd.concat(metrics, ignore_index=True),
        predictions=pd.concat(predictions),
        config=config,
        notes=tuple(notes),
    )
