"""Scores of full fine-tuning, by the probes' own splits and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.errors import InputError
from terrazzo.models.stofm import SToFM
from terrazzo.tasks import metrics, targets
from terrazzo.tasks.results import TaskResult, tidy
from terrazzo.tasks.splits import Split, blocked_splits, cross_split, random_splits
from terrazzo.training.finetune import FineTuneConfig, finetune


def evaluate_finetuning(
    model: SToFM,
    data: targets.Data,
    *,
    label: str,
    test: AnnData | None = None,
    kinds: Sequence[str] = ("random", "blocked"),
    runs: int = 3,
    seed: int = 0,
    config: FineTuneConfig | None = None,
    orthologs: Any = None,
) -> TaskResult:
    """Score full fine-tuning with the probes' own splits and metrics (SToFM, table A.1).

    Parameters
    ----------
    model, label, config, orthologs
        As in :func:`finetune`.
    data
        One slice; with ``test``, one or several that are learnt from.
    test
        Another slice, which is scored.
    kinds
        ``"random"`` (8:2, ``runs`` draws) and ``"blocked"`` (four folds scored together, ``runs`` passes).
    runs, seed
        How many, and the first.

    Returns
    -------
    Scores ``accuracy``, ``macro_f1``, ``ari``, ``nmi``; predictions of the last run of each kind.
    """
    slices = targets.as_list(data)
    whole = [s.copy() for s in ([*slices, test] if test is not None else slices)]
    target = targets.read_classes(whole, label)
    rows, frame = [], pd.DataFrame({"true": np.array([*target.names, None], dtype=object)[target.values]})
    frame.index = np.concatenate([np.asarray(s.obs_names) for s in whole])
    for kind, number, splits in _experiments(slices, whole, target, test, kinds, runs, seed):
        predicted = np.full(len(target.values), None, dtype=object)
        for split in splits:
            tuned = finetune(
                model, whole, label=label, config=config, split=split, seed=seed + number, progress=False,
                orthologs=orthologs,
            )  # fmt: skip
            start = 0
            for adata in whole:
                here = split.test[(split.test >= start) & (split.test < start + adata.n_obs)]
                if len(here):
                    predicted[here] = tuned.predict(adata, orthologs=orthologs)[here - start]
                start += adata.n_obs
        scored = np.concatenate([s.test for s in splits])
        true = frame["true"].to_numpy()[scored]
        rows += tidy({**metrics.classification(true, predicted[scored]),
                      **metrics.clustering(true, predicted[scored])}, kind, number)  # fmt: skip
        frame[kind] = predicted
    settings = {
        "label": label, "runs": runs, "seed": seed, "kinds": list(kinds), "model": model.fingerprint(),
        "fine_tuning": asdict(config or FineTuneConfig()),
    }  # fmt: skip
    return TaskResult("finetune", pd.DataFrame(rows), frame, settings, target.notes)


def _experiments(
    slices: list[AnnData],
    whole: list[AnnData],
    target: Any,
    test: AnnData | None,
    kinds: Sequence[str],
    runs: int,
    seed: int,
) -> list[tuple[str, int, list[Split]]]:
    """Return (kind, number, splits scored together)."""
    if test is not None:
        n_train = sum(len(s) for s in slices)
        return [
            ("cross", n, [cross_split(n_train, target.known[:n_train], target.known[n_train:], seed=seed + n)])
            for n in range(runs)
        ]
    if len(whole) != 1:
        raise InputError(f"{len(whole)} slices were given and none to score on; pass test=, or one slice.")
    coords = np.asarray(whole[0].obsm[keys.SPATIAL])[:, :2]
    out: list[tuple[str, int, list[Split]]] = []
    if "random" in kinds:
        drawn = random_splits(target.known, runs, seed=seed)
        out += [("random", n, [split]) for n, split in enumerate(drawn)]
    if "blocked" in kinds:
        out += [("blocked", n, blocked_splits(coords, target.known, seed=seed + n)) for n in range(runs)]
    return out
