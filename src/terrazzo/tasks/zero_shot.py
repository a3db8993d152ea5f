"""Zero-shot domains: an embedding is clustered without labels, and only then compared with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from terrazzo import keys, records
from terrazzo.arrays import AnyFloats, Floats, Ints
from terrazzo.slices.geometry import read_coords
from terrazzo.slices.parts import takes_all
from terrazzo.tasks import labels, metrics
from terrazzo.tasks.by_section import check_keys, scored_by_section, slices_of
from terrazzo.tasks.clustering import Method, cluster_runs, refine_labels
from terrazzo.tasks.domains import check_settings, shortfall
from terrazzo.tasks.labels import Labels
from terrazzo.tasks.results import TaskResult, tidy

__all__ = ["evaluate_domains"]


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
    slice_key: str | None = None,
) -> TaskResult:
    """Cluster an embedding with several seeds and score its agreement with labels and its continuity in space.

    All cells are clustered, labels unseen (but for how many classes there are, where ``n_domains`` is left out). ARI
    and NMI are of the cells with a label that is scored; CHAOS and PAS of all. The AnnData is not changed.

    Parameters
    ----------
    adata
        Holds the embedding, or the cells that an array belongs to, and coordinates.
    use_rep
        As in :func:`terrazzo.tasks.domains`: a bare key stands for the niche block where there are two.
    label
        Column of ``obs``, or an array with one value a cell.
    n_domains
        Number of domains; by default the number of scored classes.
    method
        ``"gmm"``, ``"kmeans"`` or ``"leiden"``.
    seeds
        How many: 0, 1, ... A single one may move ARI by .17; five or more are needed to claim anything.
    refine
        Neighbors of :func:`terrazzo.tasks.clustering.refine_labels`; 0: off.
    spatial_key
        ``obsm`` key of the coordinates.
    progress
        Show a bar; None: on a terminal.
    slice_key
        Column of ``obs`` that tells sections apart; each is clustered and scored by itself, and scores and predictions
        have a column ``slice``. "none": all cells are one slice, whatever tells them apart.

    Returns
    -------
    Scores ``ari``, ``nmi``, ``chaos``, ``pas`` of each seed (``number``), of the clusters as they are (split
    ``"whole"``) and, separately, of the refined ones (``"refined"``). Predictions: every cell's ``domain`` by the first
    seed, ``refined`` with ``refine``, and its ``label``, None where it is not scored.

    Raises
    ------
    InputError
        No such embedding, labels or coordinates; values that are not finite; fewer than two scored classes.
    ConfigError
        ``n_domains``, ``seeds`` or ``refine`` do not fit the number of cells; an unknown method.
    """
    if not takes_all(slice_key):
        check_keys(str(slice_key), use_rep=use_rep, label=label)
        options: dict[str, Any] = {
            "use_rep": use_rep,
            "label": label,
            "n_domains": n_domains,
            "method": method,
            "seeds": seeds,
            "refine": refine,
            "spatial_key": spatial_key,
            "progress": progress,
        }
        return scored_by_section(
            lambda one, _: evaluate_domains(one[0], **options), adata, None, str(slice_key)
        )
    slices_of(adata, slice_key, spatial_key)
    truth = labels.read(adata, label)
    values = records.vectors(adata, use_rep, purpose="niche")
    coords = read_coords(adata, spatial_key)
    k = len(truth.classes) if n_domains is None else n_domains
    check_settings(adata.n_obs, k, method, seeds, refine)
    vectors = values.astype(np.float64)
    runs = cluster_runs(vectors, k, method, range(seeds), progress)
    runs_of = {"whole": runs}
    first = {"domain": runs[0].astype(str)}
    if refine:
        refined_runs = [refine_labels(run, coords, refine) for run in runs]
        refined = np.stack(refined_runs)
        runs_of["refined"] = refined
        first["refined"] = refined[0].astype(str)
    first["label"] = truth.names
    rows = []
    for split, split_runs in runs_of.items():
        for number, run in enumerate(split_runs):
            rows += tidy(_scores(truth, run, coords), split, number)
    notes = _notes_on_labels(truth)
    for number, run in enumerate(runs):
        message = shortfall(run, k, values, method)
        if message:
            notes.append(f"seed {number}: {message}")
    if refine:
        notes += _notes_on_refining(runs, refined)
    config: dict[str, Any] = {
        "use_rep": records.source_name(use_rep),
        "label": records.source_name(label),
        "n_domains": int(k),
        "method": method,
        "seeds": list(range(seeds)),
        "refine": int(refine),
        "spatial_key": spatial_key,
        "n_cells": int(adata.n_obs),
        "n_scored": int(truth.known.sum()),
        "classes": list(truth.classes),
    }
    predictions = pd.DataFrame(first, index=adata.obs_names.astype(str))
    return TaskResult("domains", pd.DataFrame(rows), predictions, config, tuple(notes))


def _scores(truth: Labels, run: Ints, coords: Floats) -> dict[str, float]:
    """Score one run: its agreement with the labels, and how contiguous it is in space."""
    scored = truth.known
    scores = metrics.clustering(truth.codes[scored], run[scored])
    scores["chaos"] = metrics.chaos(coords, run)
    scores["pas"] = metrics.pas(coords, run)
    return scores


def _notes_on_labels(truth: Labels) -> list[str]:
    """Return notes about cells that are not scored."""
    notes = []
    if truth.missing:
        notes.append(f"{truth.missing} cells without a label are clustered and not scored")
    if truth.rare:
        notes.append(f"classes too rare to be scored (cells): {truth.rare_in_words}")
    return notes


def _notes_on_refining(runs: Ints, refined: Ints) -> Iterator[str]:
    """Yield a note for every run that lost a domain."""
    for number, (before, after) in enumerate(zip(runs, refined, strict=True)):
        n_before = len(np.unique(before))
        lost = n_before - len(np.unique(after))
        if lost > 0:
            yield f"seed {number}: refining dissolved {lost} of {n_before} domains"
