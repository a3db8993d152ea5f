"""Zero-shot domains: an embedding is clustered without labels, and only then compared with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from terrazzo import keys
from terrazzo.arrays import AnyFloats
from terrazzo.records import vectors
from terrazzo.slices.geometry import read_coords
from terrazzo.tasks import labels as reading
from terrazzo.tasks import metrics
from terrazzo.tasks.domains import (
    Method,
    check_settings,
    cluster_runs,
    named,
    refine_labels,
    shortfall,
)
from terrazzo.tasks.results import TaskResult, tidy


def evaluate_domains(
    adata: AnnData,
    *,
    use_rep: str | AnyFloats,
    label: str | ArrayLike,
    n_domains: int | None = None,
    method: Method = "gmm",
    seeds: int = 5,
    refine: int = 0,
    spatial_key: str = keys.SPATIAL,
    progress: bool | None = None,
) -> TaskResult:
    """Cluster an embedding once a seed and say how well the clusters agree with labels, and hang together in space.

    All cells are clustered, labels unseen (but for how many classes there are, where ``n_domains`` is left out). ARI
    and NMI are of the cells with a label that is scored; CHAOS and PAS of all. The AnnData is not changed.

    Parameters
    ----------
    adata
        Holds the embedding, or the cells that an array belongs to, and coordinates.
    use_rep
        As in :func:`terrazzo.tasks.domains.domains`: a bare key stands for the niche block where there are two.
    label
        Column of ``obs``, or an array with one value a cell.
    n_domains
        Number of domains; by default the number of scored classes.
    method
        ``"gmm"``, ``"kmeans"`` or ``"leiden"``.
    seeds
        How many: 0, 1, ... A single one may move ARI by .17; five or more are needed to claim anything.
    refine
        Neighbors of :func:`terrazzo.tasks.domains.refine_labels`; 0: off.
    spatial_key
        ``obsm`` key of the coordinates.
    progress
        Show a bar; None: on a terminal.

    Returns
    -------
    Scores ``ari``, ``nmi``, ``chaos``, ``pas`` of each seed (``number``), of the clusters as they are (split
    ``"whole"``) and, apart, of the refined ones (``"refined"``). Predictions: every cell's ``domain`` by the first
    seed, ``refined`` where asked, and its ``label``, None where it is not scored.

    Raises
    ------
    InputError
        No such embedding, labels or coordinates; values that are not finite; fewer than two scored classes.
    ConfigError
        ``n_domains``, ``seeds`` or ``refine`` do not fit the number of cells; an unknown method.
    """
    truth = reading.read(adata, label)
    values = vectors(adata, use_rep, purpose="niche")
    coords = read_coords(adata, spatial_key)
    k = len(truth.classes) if n_domains is None else n_domains
    check_settings(adata.n_obs, k, method, seeds, refine)
    runs = cluster_runs(np.asarray(values, dtype=np.float64), k, method, range(seeds), progress)
    found = {"whole": runs}
    if refine:
        found["refined"] = np.stack([refine_labels(run, coords, refine) for run in runs])
    rows = [
        row
        for split, labeled in found.items()
        for number, run in enumerate(labeled)
        for row in tidy(_scores(truth, run, coords), split, number)
    ]
    first = {"domain": found["whole"][0].astype(str)}
    if refine:
        first["refined"] = found["refined"][0].astype(str)
    predictions = pd.DataFrame({**first, "label": truth.names}, index=adata.obs_names.astype(str))
    config: dict[str, Any] = {
        "use_rep": named(use_rep),
        "label": named(label),
        "n_domains": int(k),
        "method": method,
        "seeds": list(range(seeds)),
        "refine": int(refine),
        "spatial_key": spatial_key,
        "n_cells": int(adata.n_obs),
        "n_scored": int(truth.known.sum()),
        "classes": list(truth.classes),
    }
    return TaskResult(
        "domains", pd.DataFrame(rows), predictions, config, _notes(truth, found, k, values, method)
    )


def _scores(
    truth: reading.Labels, found: NDArray[np.int64], coords: NDArray[np.float64]
) -> dict[str, float]:
    agreement = metrics.clustering(truth.codes[truth.known], found[truth.known])
    return {**agreement, "chaos": metrics.chaos(coords, found), "pas": metrics.pas(coords, found)}


def _notes(
    truth: reading.Labels,
    found: dict[str, NDArray[np.int64]],
    k: int,
    values: AnyFloats,
    method: str,
) -> tuple[str, ...]:
    out = []
    if truth.missing:
        out.append(f"{truth.missing} cells without a label are clustered and not scored")
    if truth.rare:
        rare = ", ".join(f"{name} ({cells})" for name, cells in truth.rare.items())
        out.append(f"classes too rare to be scored (cells): {rare}")
    short = {
        number: text
        for number, run in enumerate(found["whole"])
        if (text := shortfall(run, k, values, method))
    }
    out += [f"seed {number}: {text}" for number, text in short.items()]
    for number, (run, refined) in enumerate(
        zip(found["whole"], found.get("refined", []), strict=False)
    ):
        if (lost := len(np.unique(run)) - len(np.unique(refined))) > 0:
            out.append(f"seed {number}: refining dissolved {lost} of {len(np.unique(run))} domains")
    return tuple(out)
