"""Image to gene: expression predicted from image vectors, on slices and patients that nothing was learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo.arrays import AnyFloats
from terrazzo.errors import ConfigError, InputError
from terrazzo.expression import PAPER_TOTAL, Scale, expression, most_variable
from terrazzo.slices.panel import Panel
from terrazzo.slices.parts import takes_all
from terrazzo.tasks import targets
from terrazzo.tasks.by_section import check_keys, names_of, slices_of
from terrazzo.tasks.experiments import KINDS, Plan, across, fit_head, penalty_note
from terrazzo.tasks.gene_lists import check_distinct, listed_genes, nearest_name
from terrazzo.tasks.heads import HeadConfig, head_record
from terrazzo.tasks.probes import Probe
from terrazzo.tasks.results import TaskResult
from terrazzo.tasks.splits import all_rows, donor_of, donors_of, held_out_units, patients
from terrazzo.tasks.targets import Data, Target

__all__ = [
    "choose_genes",
    "fit_image_to_gene",
    "image_to_gene",
    "measured",
    "read_panels",
    "verdicts",
]

N_GENES = 50
TARGET = "expression"  # of the probe: it annotates obsm["expression_predicted"]
_MOST_NAMES = 10  # genes that a line names
_ARRAY_KEY = "array"  # obsm key of vectors that were passed as arrays
_FOLD_SETTINGS = ("scored", "n_cells", "n_labeled", "n_training_slices", "n_training_cells")

Genes = int | str | Sequence[str]


def image_to_gene(
    data: Data,
    *,
    use_rep: str | Sequence[AnyFloats],
    genes: Genes = N_GENES,
    test: Data | None = None,
    donors: str | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    scale: Scale = PAPER_TOTAL,
    head: str | HeadConfig = "linear",
    runs: int = 3,
    seed: int = 0,
    layer: str | None = None,
    progress: bool | None = None,
    slice_key: str | None = None,
) -> TaskResult:
    """Score how well image vectors predict expression on slices that nothing was learned from (ST-Align, table 2).

    Learned and scored is ``log1p(counts / total * scale)`` of each cell, with its own total over all genes of its own
    slice; cells without counts are neither learned from nor scored. Genes are chosen, and every number of the head
    comes, from the training slices alone.

    Parameters
    ----------
    data
        Slices with counts and, under ``use_rep``, vectors that no count has entered: those of their histology. With
        ``test`` they are learned from; without, each patient is held out once and learned from in all other folds.
    use_rep
        ``obsm`` key of all slices, or ``"key:block"``; or arrays ``(n_cells, d)``, one for each slice of ``data`` and
        then of ``test``.
    genes
        So many, those that vary most within the training slices; or names, of which those are learned that every
        training slice has. Without a name a test slice is scored on the learned genes that it has.
    test
        Slices that are scored, one or several.
    donors
        The patient of each slice of ``data``: a key of ``obs`` or ``uns``, or one name a slice. None: ``donor``,
        ``donor_id`` or ``patient``. Among the slices that are learned from, patients (else slices, else spatial
        blocks) are held out in turn to choose the penalty; see :func:`terrazzo.tasks.penalty.choose_ridge`.
    names
        Of the scored slices; by default their numbers.
    scale
        Total that counts are brought to: a number, by default 10,000, or ``"median"``, the median of each slice, on
        which slices that were sequenced to different depths have different levels.
    head
        As in :func:`terrazzo.tasks.fit_probe`; by default a ridge regression, or the gene mean where no penalty
        beats it on held-out units.
    runs
        Fits to each fold, with other validation cells, each one ``number``; those of a ridge are the same.
    seed
        Seed.
    layer
        Layer of the counts.
    progress
        Show a bar; None: on a terminal.
    slice_key
        Column of ``obs`` that tells the sections of an AnnData apart, each of which is a slice; "none": all its cells
        are one, whatever tells them apart.

    Returns
    -------
    Metrics of :func:`terrazzo.tasks.metrics.regression` over all genes and for each (``part``), and ``mse_mean``,
    ``rmse_mean``, ``mae_mean`` of the trivial answer, each gene's mean over the training cells; over all genes the
    parts of ``mse``, ``mse_level`` (of the slice's mean) and ``mse_pattern`` (within the slice), and of ``mse_mean``,
    ``mse_level_mean`` and ``mse_pattern_mean``; columns ``slice`` and ``patient`` name what was scored; ``split`` is
    ``"cross"`` with ``test``, else ``"patients"``. Predictions: a row
    for each cell of each scored slice, columns ``slice``, ``"true:GENE"`` and ``"cross:GENE"``.

    Raises
    ------
    InputError
        No counts; vectors that cannot be used; a gene that no training slice has (the nearest is named); a patient
        that is not known, or only one of them; no test slice has any of the genes.
    ConfigError
        No gene, or one named twice; no such head.
    """
    plan = Plan("image_to_gene", head, KINDS, runs, seed, progress, by_level=True)
    if not takes_all(slice_key):
        check_keys(str(slice_key), use_rep=use_rep)
        names = names_of(data if test is None else test, slice_key) if names is None else names
    training = slices_of(data, slice_key)
    tests = [] if test is None else slices_of(test, slice_key)
    every = [*training, *tests]
    embedded, use_key = _with_vectors(every, use_rep)
    panels = read_panels(every, layer)
    turns = _turns(training, tests, donors)
    training_donors = donors_of(training, donors)
    scored_names = _scored_names(names, len(tests) or len(training))
    first_scored = len(training) if tests else 0
    settings = {"use_rep": use_key, "scale": scale}
    results: list[TaskResult] = []
    notes: list[str] = []
    for turn in turns:
        train_panels = [panels[i] for i in turn.train]
        train_slices = [embedded[i] for i in turn.train]
        prefix = f"{turn.patient}: " if turn.patient else ""
        chosen, notes_on_genes = choose_genes(train_panels, genes, scale)
        target = _target(train_slices, train_panels, chosen, scale)
        units = held_out_units(
            [training[i] for i in turn.train], [training_donors[i] for i in turn.train]
        )
        for note in (*notes_on_genes, *turn.notes):
            notes.append(f"{prefix}{note}")
        for i in turn.test:
            name = scored_names[i - first_scored]
            panel = panels[i]
            measured_genes = [gene for gene in chosen if gene in panel.place]
            if not measured_genes:
                notes.append(f"{name}: not scored, it has none of the genes")
                continue
            if not panel.totals.any():
                notes.append(f"{name}: not scored, it has no counts")
                continue
            truth = _target([embedded[i]], [panel], measured_genes, scale)
            result = across(
                plan, train_slices, embedded[i], use_key, target, truth, settings, units
            )
            split = "cross" if tests else "patients"
            results.append(_with_name(result, name, turn.patient, split))
            notes += [f"{name}: {note}" for note in result.notes]
    if not results:
        raise InputError(f"no slice could be scored: {'; '.join(notes)}.")
    return _joined(results, notes, genes)


def fit_image_to_gene(
    data: Data,
    *,
    use_rep: str | Sequence[AnyFloats],
    genes: Genes = N_GENES,
    scale: Scale = PAPER_TOTAL,
    head: str | HeadConfig = "linear",
    seed: int = 0,
    layer: str | None = None,
    slice_key: str | None = None,
    donors: str | Sequence[str] | None = None,
) -> Probe:
    """Fit a probe of image vectors that predicts expression; all cells with counts are used.

    ``probe.annotate(adata)`` writes ``obsm["expression_predicted"]``, float32 ``(n_cells, genes)``, and the names of
    the genes into ``uns["expression_predicted_names"]``; the slice needs the vectors and nothing else.
    ``probe.save`` and :meth:`terrazzo.tasks.Probe.load` keep it.

    Parameters
    ----------
    data, use_rep, genes, scale, head, seed, layer, slice_key, donors
        As in :func:`image_to_gene`.

    Raises
    ------
    InputError, ConfigError
        As :func:`image_to_gene`.
    """
    if not takes_all(slice_key):
        check_keys(str(slice_key), use_rep=use_rep)
    slices = slices_of(data, slice_key)
    embedded, use_key = _with_vectors(slices, use_rep)
    panels = read_panels(slices, layer)
    chosen, notes = choose_genes(panels, genes, scale)
    target = _target(embedded, panels, chosen, scale)
    vectors = targets.stack(embedded, use_key)
    units = held_out_units(slices, donors_of(slices, donors))
    fitted = fit_head(vectors, target, all_rows(target.known, seed=seed), head, seed, units)
    all_notes = [*notes, *target.notes, penalty_note(fitted, units)]
    info = {
        "task": "image_to_gene",
        "head": head_record(head),
        "seed": seed,
        "scale": scale,
        "n_slices": len(slices),
        "n_cells": int(target.known.sum()),
        "notes": [note for note in all_notes if note],
    }
    return Probe(
        head=fitted,
        names=target.names,
        use_rep=None if use_key == _ARRAY_KEY else use_key,
        target=TARGET,
        origins=tuple(sorted(targets.origins(embedded, use_key))),
        info=info,
    )


def measured(adata: AnnData, genes: Sequence[str], layer: str | None = None) -> list[str]:
    """Return those of some genes that a slice has; none where all its counts are zero."""
    panel = Panel.read(adata, layer)
    if not panel.totals.any():
        return []
    return [gene for gene in genes if gene in panel.place]


def verdicts(result: TaskResult) -> list[str]:
    """Say of each scored slice in a line whether the prediction beats the gene mean, and for which genes it does not.

    Parameters
    ----------
    result
        Of :func:`image_to_gene`.
    """
    table = result.metrics
    errors = table[table["metric"].isin(["mse", "mse_mean"])]
    means = errors.pivot_table(values="value", index=["slice", "part"], columns="metric")
    lines = []
    for name, of_slice in means.groupby(level="slice", sort=False):
        by_part = of_slice.droplevel("slice")
        whole = by_part.loc[""]
        numbers = f"mse {whole['mse']:.3f}, gene mean {whole['mse_mean']:.3f}"
        by_gene = by_part.drop(index="")
        beats = by_gene["mse"] < by_gene["mse_mean"]
        if not whole["mse"] < whole["mse_mean"]:
            lines.append(
                f"{name}: does NOT beat the gene mean ({numbers}): do not use the prediction"
            )
            continue
        line = f"{name}: beats the gene mean ({numbers}), for {beats.sum()} of {len(beats)} genes"
        worse = list(by_gene.index[~beats])
        if worse:
            names = ", ".join(worse[:_MOST_NAMES])
            more = f" and {len(worse) - _MOST_NAMES} more" if len(worse) > _MOST_NAMES else ""
            line = f"{line}; not for {names}{more}"
        lines.append(line)
    return lines


def read_panels(slices: Sequence[AnnData], layer: str | None = None) -> list[Panel]:
    """Read the genes of slices; an error names the slice."""
    panels = []
    for i, adata in enumerate(slices):
        with targets.at(i, len(slices)):
            panels.append(Panel.read(adata, layer))
    return panels


def choose_genes(
    panels: Sequence[Panel], genes: Genes, scale: Scale
) -> tuple[list[str], list[str]]:
    """Return the genes that are learned from these training slices, and notes about the others.

    Raises
    ------
    InputError
        A gene that no slice has; no gene that all of them have.
    ConfigError
        No gene; one of them twice.
    """
    if isinstance(genes, int | np.integer):
        return _most_variable(panels, int(genes), scale)
    names = listed_genes(genes, "; or say how many")
    n_panels = len(panels)
    n_having = {}
    for gene in names:
        n_having[gene] = sum(gene in panel.place for panel in panels)
    missing = [gene for gene in names if not n_having[gene]]
    if missing:
        known = {name for panel in panels for name in panel.place}
        nearest = nearest_name(missing[0], known)
        others = ""
        if len(missing) > 1:
            others = f" Nor are {', '.join(missing[1:6])}."
        raise InputError(
            f"gene {missing[0]!r} is in none of the {n_panels} training slices; "
            f"the nearest name is {nearest!r}.{others}"
        )
    chosen = []
    partial = []
    for gene in names:
        n = n_having[gene]
        if n == n_panels:
            chosen.append(gene)
        else:
            partial.append(f"{gene} (in {n} of {n_panels})")
    shown = ", ".join(partial)
    if not chosen:
        raise InputError(f"no gene is in every training slice: {shown}.")
    for panel in panels:
        check_distinct(chosen, panel.place)
    if not partial:
        return chosen, []
    return chosen, [f"not learned, for not every training slice has them: {shown}"]


def _most_variable(
    panels: Sequence[Panel], n_genes: int, scale: Scale
) -> tuple[list[str], list[str]]:
    """Return so many genes, and a note where fewer vary."""
    if n_genes < 1:
        raise ConfigError(f"genes is {n_genes}; at least one must be predicted.")
    chosen = most_variable(panels, n_genes, scale)
    if len(chosen) == n_genes:
        return chosen, []
    note = f"{len(chosen)} genes are predicted, not {n_genes}: no more vary in all training slices"
    return chosen, [note]


@dataclass(frozen=True)
class _Turn:
    """One fold: slices that are learned from and scored.

    Attributes
    ----------
    train, test
        Numbers of the slices.
    patient
        Whose slices are scored; "" where test slices were passed.
    notes
        What a reader must know.
    """

    train: list[int]
    test: list[int]
    patient: str = ""
    notes: tuple[str, ...] = ()


def _turns(
    training: Sequence[AnnData],
    tests: Sequence[AnnData],
    donors: str | Sequence[str] | None,
) -> list[_Turn]:
    """Return one fold for test slices, else one for each patient."""
    if tests:
        n_training = len(training)
        train = list(range(n_training))
        test = list(range(n_training, n_training + len(tests)))
        return [_Turn(train, test, notes=_notes_on_donors(training, tests))]
    patient_of, groups = patients(training, donors)
    turns = []
    for group in dict.fromkeys(groups):
        train = [i for i, other in enumerate(groups) if other != group]
        test = [i for i, other in enumerate(groups) if other == group]
        held_out = set()
        for i in test:
            held_out.update(patient_of[i].split("|"))
        patient = "|".join(sorted(held_out))
        turns.append(_Turn(train, test, patient))
    return turns


def _notes_on_donors(training: Sequence[AnnData], tests: Sequence[AnnData]) -> tuple[str, ...]:
    """Return a note for every patient on both sides."""
    training_donors = {donor_of(adata) for adata in training}
    test_donors = {donor_of(adata) for adata in tests}
    both = (training_donors & test_donors) - {""}
    notes = []
    for donor in sorted(both):
        notes.append(f"{donor!r} is in training and is scored: this is no score across patients")
    return tuple(notes)


def _target(
    slices: Sequence[AnnData],
    panels: Sequence[Panel],
    genes: Sequence[str],
    scale: Scale,
) -> Target:
    """Return the expression of genes as what is to be learned or scored."""
    tables = [expression(panel, genes, scale) for panel in panels]
    return targets.read_values(slices, tables, TARGET)


def _with_vectors(
    slices: Sequence[AnnData], use_rep: str | Sequence[AnyFloats]
) -> tuple[list[AnnData], str]:
    """Return slices with their vectors under a key; those passed as arrays get one."""
    if isinstance(use_rep, str):
        return list(slices), use_rep
    arrays = list(use_rep)
    if len(arrays) != len(slices):
        raise InputError(
            f"use_rep has {len(arrays)} arrays for {len(slices)} slices; give one for each."
        )
    embedded = []
    for i, (adata, rows) in enumerate(zip(slices, arrays, strict=True)):
        vectors = np.asarray(rows)
        with targets.at(i, len(slices)):
            if vectors.ndim != 2 or len(vectors) != adata.n_obs:
                raise InputError(f"vectors have shape {vectors.shape} for {adata.n_obs} cells.")
        obs = pd.DataFrame(index=adata.obs_names)
        embedded.append(AnnData(obs=obs, obsm={_ARRAY_KEY: vectors}))
    return embedded, _ARRAY_KEY


def _scored_names(names: Sequence[str] | None, n: int) -> list[str]:
    """Return the names of the scored slices; by default their numbers."""
    if names is None:
        return [str(i + 1) for i in range(n)]
    texts = [str(name) for name in names]
    n_different = len(set(texts))
    if len(texts) != n or n_different < n:
        raise ConfigError(
            f"names must be {n} different names, one for each scored slice; got {texts}."
        )
    return texts


def _plain(genes: Genes) -> Any:
    """Return genes as a number or a list, for the record."""
    if isinstance(genes, int | np.integer):
        return int(genes)
    if isinstance(genes, str):
        return [genes]
    return list(genes)


def _with_name(result: TaskResult, name: str, patient: str, split: str) -> TaskResult:
    """Add to every row which slice it is about."""
    metrics = result.metrics.assign(split=split, slice=name, patient=patient)
    predictions = result.predictions.copy()
    predictions.insert(0, "slice", name)
    return replace(result, metrics=metrics, predictions=predictions)


def _joined(results: Sequence[TaskResult], notes: Sequence[str], genes: Genes) -> TaskResult:
    """Join the results of all scored slices into one."""
    folds = []
    for result in results:
        first_row = result.metrics.iloc[0]
        fold: dict[str, Any] = {}
        for name in ("slice", "patient"):
            fold[name] = str(first_row[name])
        for name in _FOLD_SETTINGS:
            fold[name] = result.config[name]
        folds.append(fold)
    first = results[0]
    config = {}
    for name, value in first.config.items():
        if name not in folds[0]:
            config[name] = value
    config["genes"] = _plain(genes)
    config["folds"] = folds
    return replace(
        first,
        metrics=pd.concat([result.metrics for result in results], ignore_index=True),
        predictions=pd.concat([result.predictions for result in results]),
        config=config,
        notes=tuple(dict.fromkeys(notes)),
    )
