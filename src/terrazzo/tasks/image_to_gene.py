"""Expression from histology: read out of image vectors, for slices and patients that nothing was learned from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo.arrays import AnyFloats
from terrazzo.errors import ConfigError, InputError
from terrazzo.expression import PAPER_TOTAL, Scale, expression, most_variable
from terrazzo.slices.panel import Panel
from terrazzo.tasks import targets
from terrazzo.tasks.experiments import KINDS, Plan, across
from terrazzo.tasks.probes import Probe, fit_probe
from terrazzo.tasks.readouts import HeadConfig
from terrazzo.tasks.results import TaskResult
from terrazzo.tasks.splits import donor_of, patients
from terrazzo.tasks.targets import Data, Target

N_GENES = 50


TARGET = "expression"  # of the read-out: it annotates obsm["expression_predicted"]


_GIVEN = "array"  # obsm key of vectors that were given as arrays


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
) -> TaskResult:
    """Score how well image vectors predict expression on slices that nothing was learned from (ST-Align, table 2).

    Learned and scored is ``log1p(counts / total * scale)`` of each cell, with its own total over all genes of its own
    slice; cells without counts are neither learned from nor scored. Genes are chosen, and every number of the read-out
    comes, from the training slices alone.

    Parameters
    ----------
    data
        Slices with counts and, under ``use_rep``, vectors that no count has entered: those of their histology. With
        ``test`` they are learned from; without, each patient is held out once and learned from in all other turns.
    use_rep
        ``obsm`` key of all slices, or ``"key:block"``; or arrays ``(n_cells, d)``, one for each slice of ``data`` and
        then of ``test``.
    genes
        So many, those that vary most within the training slices; or names, of which those are learned that every
        training slice has. Without a name a test slice is scored on the learned genes that it has.
    test
        Slices that are scored, one or several.
    donors
        Whom each slice of ``data`` is of: a key of ``obs`` or ``uns``, or one name a slice. None: ``donor``,
        ``donor_id`` or ``patient``.
    names
        Of the scored slices; by default their numbers.
    scale
        Total that counts are brought to: a number, by default 10,000, or ``"median"``, the median of each slice, on
        which slices that were sequenced to different depths have different levels.
    head
        As in :func:`terrazzo.tasks.fit_probe`; by default a ridge regression.
    runs
        Fits to each fold, with other validation cells, each one ``number``.
    seed
        Seed.
    layer
        Layer of the counts.
    progress
        Show a bar; None where there is a terminal.

    Returns
    -------
    Metrics of :func:`terrazzo.tasks.metrics.regression` over all genes and for each (``part``), and ``mse_mean``,
    ``rmse_mean``, ``mae_mean`` of the trivial answer, each gene's mean over the training cells; columns ``slice`` and
    ``patient`` say what was scored; ``split`` is ``"cross"`` with ``test``, else ``"patients"``. Predictions: a row for
    each cell of each scored slice, columns ``slice``, ``"true:GENE"`` and ``"cross:GENE"``.

    Raises
    ------
    InputError
        No counts; vectors that cannot be used; a gene that no training slice has (the nearest is named); a patient
        that is not known, or only one of them; no test slice has any of the genes.
    ConfigError
        No gene, or one named twice; no such head.
    """
    plan = Plan("image_to_gene", head, KINDS, runs, seed, progress)
    learned, tests = targets.as_list(data), [] if test is None else targets.as_list(test)
    every = [*learned, *tests]
    seen, rep = _with_vectors(every, use_rep)
    panels = read_panels(every, layer)
    turns = _turns(learned, tests, donors)
    called = _called(names, len(tests) or len(learned))
    settings = {"use_rep": rep, "scale": scale}
    found: list[TaskResult] = []
    notes: list[str] = []
    for turn in turns:
        chosen, left_out = choose_genes([panels[i] for i in turn.train], genes, scale)
        target = _target(
            [seen[i] for i in turn.train], [panels[i] for i in turn.train], chosen, scale
        )
        notes += [
            f"{turn.patient}: {note}" if turn.patient else note for note in (*left_out, *turn.notes)
        ]
        for row in turn.test:
            name = called[row - (len(learned) if tests else 0)]
            there = [gene for gene in chosen if gene in panels[row].place]
            if not there or not panels[row].totals.any():
                notes.append(
                    f"{name}: not scored, {'it has no counts' if there else 'it has none of the genes'}"
                )
                continue
            truth = _target([seen[row]], [panels[row]], there, scale)
            one = across(
                plan, [seen[i] for i in turn.train], seen[row], rep, target, truth, settings
            )
            found.append(_named(one, name, turn.patient, "cross" if tests else "patients"))
            notes += [f"{name}: {note}" for note in one.notes]
    if not found:
        raise InputError(f"no slice could be scored: {'; '.join(notes)}.")
    return _joined(found, notes, genes)


def fit_image_to_gene(
    data: Data,
    *,
    use_rep: str | Sequence[AnyFloats],
    genes: Genes = N_GENES,
    scale: Scale = PAPER_TOTAL,
    head: str | HeadConfig = "linear",
    seed: int = 0,
    layer: str | None = None,
) -> Probe:
    """Fit a read-out of image vectors that predicts expression; all cells with counts are used.

    ``probe.annotate(adata)`` writes ``obsm["expression_predicted"]``, float32 ``(n_cells, genes)``, and the names of
    the genes into ``uns["expression_predicted_names"]``; the slice needs the vectors and nothing else.
    ``probe.save`` and :meth:`terrazzo.tasks.Probe.load` keep it.

    Parameters
    ----------
    data, use_rep, genes, scale, head, seed, layer
        As in :func:`image_to_gene`.

    Raises
    ------
    InputError, ConfigError
        As :func:`image_to_gene`.
    """
    slices = targets.as_list(data)
    seen, rep = _with_vectors(slices, use_rep)
    panels = read_panels(slices, layer)
    chosen, notes = choose_genes(panels, genes, scale)
    tables = [expression(panel, chosen, scale) for panel in panels]
    probe = fit_probe(seen, use_rep=rep, values=tables, head=head, seed=seed)
    info = {
        **probe.info,
        "task": "image_to_gene",
        "scale": scale,
        "notes": [*notes, *probe.info["notes"]],
    }
    return replace(probe, target=TARGET, use_rep=None if rep == _GIVEN else rep, info=info)


def read_gene_list(path: str | Path) -> list[str]:
    """Return the genes of a text file: one a line, the first word of it; what follows a ``#`` is a remark.

    Words end at white space, a comma or a semicolon, so that a table whose first column names genes will do, without
    its head.

    Raises
    ------
    InputError
        No such file, no text, or no gene in it.
    """
    source = Path(path)
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source} cannot be read as a list of genes ({error}).") from error
    words = [
        re.split(r"[\s,;]", line.partition("#")[0].strip().strip('"'))[0].strip('"')
        for line in lines
    ]
    if not (found := list(dict.fromkeys(word for word in words if word))):
        raise InputError(f"{source} names no gene; write one a line.")
    return found


def measured(adata: AnnData, genes: Sequence[str], layer: str | None = None) -> list[str]:
    """Return those of some genes that a slice has; none where all its counts are zero."""
    panel = Panel.read(adata, layer)
    return [gene for gene in genes if gene in panel.place] if panel.totals.any() else []


def read_panels(slices: Sequence[AnnData], layer: str | None = None) -> list[Panel]:
    """Read the genes of slices; an error says which of them it is about."""
    out = []
    for i, one in enumerate(slices):
        with targets.at(i, len(slices)):
            out.append(Panel.read(one, layer))
    return out


def choose_genes(
    panels: Sequence[Panel], genes: Genes, scale: Scale
) -> tuple[list[str], list[str]]:
    """Return the genes that are learned from these training slices, and what is to be said of the others.

    Raises
    ------
    InputError
        A gene that no slice has; no gene that all of them have.
    ConfigError
        No gene; one of them twice.
    """
    if isinstance(genes, int | np.integer):
        if genes < 1:
            raise ConfigError(f"genes is {genes}; at least one must be predicted.")
        chosen = most_variable(panels, int(genes), scale)
        fewer = (
            f"{len(chosen)} genes are predicted, not {genes}: no more vary in all training slices"
        )
        return chosen, [fewer] if len(chosen) < genes else []
    wanted = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    if not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError("genes must name at least one gene, each of them once; or say how many.")
    held = {gene: sum(gene in panel.place for panel in panels) for gene in wanted}
    if gone := [gene for gene, n in held.items() if not n]:
        known = {name for panel in panels for name in panel.place}
        near = difflib.get_close_matches(gone[0], known, n=1, cutoff=0.0)[0]
        more = f" Nor are {', '.join(gone[1:6])}." if len(gone) > 1 else ""
        raise InputError(
            f"gene {gone[0]!r} is in none of the {len(panels)} training slices; the nearest name is {near!r}.{more}"
        )
    chosen = [gene for gene in wanted if held[gene] == len(panels)]
    partly = [
        f"{gene} (in {held[gene]} of {len(panels)})" for gene in wanted if held[gene] < len(panels)
    ]
    notes = (
        [f"not learned, for not every training slice has them: {', '.join(partly)}"]
        if partly
        else []
    )
    if not chosen:
        raise InputError(f"no gene is in every training slice: {', '.join(partly)}.")
    for panel in panels:
        if len({panel.place[gene] for gene in chosen}) < len(chosen):
            raise ConfigError("genes names one gene twice, under two names of it.")
    return chosen, notes


@dataclass(frozen=True)
class _Turn:
    """Rows of the slices that are learned from and scored; whose they are; what is to be said."""

    train: list[int]
    test: list[int]
    patient: str = ""
    notes: tuple[str, ...] = ()


def _turns(
    learned: Sequence[AnnData], tests: Sequence[AnnData], donors: str | Sequence[str] | None
) -> list[_Turn]:
    if tests:
        both = {donor_of(one) for one in learned} & {donor_of(one) for one in tests} - {""}
        notes = tuple(
            f"{who!r} is in training and is scored: this is no score across patients"
            for who in sorted(both)
        )
        first = len(learned)
        return [_Turn(list(range(first)), list(range(first, first + len(tests))), "", notes)]
    whose, groups = patients(learned, donors)
    out = []
    for group in dict.fromkeys(groups):
        held = [i for i, other in enumerate(groups) if other == group]
        train = [i for i, other in enumerate(groups) if other != group]
        out.append(
            _Turn(train, held, "|".join(sorted({who for i in held for who in whose[i].split("|")})))
        )
    return out


def _target(
    slices: Sequence[AnnData], panels: Sequence[Panel], genes: Sequence[str], scale: Scale
) -> Target:
    return targets.read_values(
        slices, [expression(panel, genes, scale) for panel in panels], TARGET
    )


def _with_vectors(
    slices: Sequence[AnnData], use_rep: str | Sequence[AnyFloats]
) -> tuple[list[AnnData], str]:
    """Return the slices under a key; vectors that were given as arrays get one."""
    if isinstance(use_rep, str):
        return list(slices), use_rep
    given = list(use_rep)
    if len(given) != len(slices):
        raise InputError(
            f"use_rep has {len(given)} arrays for {len(slices)} slices; give one for each."
        )
    out = []
    for i, (one, rows) in enumerate(zip(slices, given, strict=True)):
        vectors = np.asarray(rows)
        if vectors.ndim != 2 or len(vectors) != one.n_obs:
            raise InputError(
                f"slice {i + 1} of {len(slices)}: vectors have shape {vectors.shape} for {one.n_obs} cells."
            )
        out.append(AnnData(obs=pd.DataFrame(index=one.obs_names), obsm={_GIVEN: vectors}))
    return out, _GIVEN


def _called(names: Sequence[str] | None, n: int) -> list[str]:
    out = [str(i + 1) for i in range(n)] if names is None else [str(name) for name in names]
    if len(out) != n or len(set(out)) < n:
        raise ConfigError(
            f"names must be {n} different names, one for each scored slice; got {out}."
        )
    return out


def _plain(genes: Genes) -> Any:
    return (
        int(genes)
        if isinstance(genes, int | np.integer)
        else [genes]
        if isinstance(genes, str)
        else list(genes)
    )


def _named(result: TaskResult, name: str, patient: str, split: str) -> TaskResult:
    """Say in every row which slice it is about."""
    metrics = result.metrics.assign(split=split, slice=name, patient=patient)
    predictions = result.predictions.copy()
    predictions.insert(0, "slice", name)
    return replace(result, metrics=metrics, predictions=predictions)


def _joined(found: Sequence[TaskResult], notes: Sequence[str], genes: Genes) -> TaskResult:
    folds = [
        {
            "slice": str(one.metrics["slice"].iloc[0]),
            "patient": str(one.metrics["patient"].iloc[0]),
            **{
                k: one.config[k]
                for k in (
                    "scored",
                    "n_cells",
                    "n_labeled",
                    "n_training_slices",
                    "n_training_cells",
                )
            },
        }
        for one in found
    ]
    config = {k: v for k, v in found[0].config.items() if k not in folds[0]}
    return replace(
        found[0],
        metrics=pd.concat([one.metrics for one in found], ignore_index=True),
        predictions=pd.concat([one.predictions for one in found]),
        config={**config, "genes": _plain(genes), "folds": folds},
        notes=tuple(dict.fromkeys(notes)),
    )
