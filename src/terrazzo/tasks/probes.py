"""Probes: a head fitted to one embedding, that annotates other slices and is saved without pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import records
from terrazzo.arrays import AnyFloats, Vectors
from terrazzo.errors import ConfigError, InputError
from terrazzo.marks import Mark
from terrazzo.models.shift import AUTO, CommonGenes
from terrazzo.progress import Progress
from terrazzo.slices.parts import takes_all
from terrazzo.tasks import display, probe_files, splits, targets
from terrazzo.tasks.by_section import check_keys, check_slices, scored_by_section, slices_of
from terrazzo.tasks.experiments import (
    Plan,
    across,
    fit_head,
    repeated,
    repeated_target,
    within,
)
from terrazzo.tasks.heads import Head, HeadConfig, Kind, head_record
from terrazzo.tasks.labels import LEAST_SHARE
from terrazzo.tasks.results import TaskResult
from terrazzo.tasks.targets import Data
from terrazzo.tasks.transfer import (
    at_hand,
    check_source,
    embedded_alone,
    moved_to,
    transferred,
    write_targets,
)

__all__ = ["Probe", "fit_probe", "probe"]


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted head, and what its predictions mean.

    Attributes
    ----------
    head
        What predicts.
    names
        Of the classes, or of the columns.
    use_rep
        Embedding it was fitted to; None where that was an array.
    target
        What it learned: the label, or the key of the values.
    origins
        What is known of the models behind the embeddings it was fitted to.
    info
        How it was fitted, JSON-able.
    """

    head: Head
    names: tuple[str, ...]
    use_rep: str | None
    target: str
    origins: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return what it predicts from what, in two lines."""
        size = self._size()
        source = self._source()
        first = f"Probe({self.target!r}, {size}, from {source})"
        return f"{first}\n  {display.line(self.names)}"

    def _repr_html_(self) -> str:
        """Return what it predicts from what, the notes, and the settings folded, for notebooks."""
        rows = [
            ("predicts", f"{self.target}: {self._size()}"),
            ("names", display.line(self.names)),
            ("from", self._source()),
        ]
        settings = dict(self.info)
        notes = settings.pop("notes", [])
        return display.card(
            "Probe",
            display.table((), rows),
            display.bullets(notes),
            display.fold("settings", display.settings_table(settings)),
            display.fold("embeddings", display.bullets(self.origins)),
        )

    def _size(self) -> str:
        """Return how many classes or columns it predicts."""
        nouns = "classes" if self.kind == "classes" else "columns"
        return f"{len(self.names)} {nouns}"

    def _source(self) -> str:
        """Return the embedding that it reads, in words."""
        width = self.head.input_dim
        if self.use_rep is None:
            return f"an array of width {width}"
        return f"obsm[{self.use_rep!r}] of width {width}"

    @property
    def kind(self) -> Kind:
        """``"classes"``, ``"values"`` or ``"proportions"``."""
        return self.head.kind

    def predict(
        self, data: AnnData | AnyFloats, *, use_rep: str | AnyFloats | None = None
    ) -> NDArray[Any]:
        """Predict every row.

        Parameters
        ----------
        data
            A slice with the embedding, or vectors ``(n, d)``.
        use_rep
            Another ``obsm`` key, or an array; by default the key that the probe was fitted to.

        Returns
        -------
        Names of classes, object ``(n,)``; or values or proportions, float32 ``(n, m)``, columns as ``names``.

        Raises
        ------
        InputError
            No such embedding, another width, or values that are not finite.
        """
        predicted = self.head.predict(self._vectors(data, use_rep))
        if self.kind != "classes":
            return predicted
        names = np.array(self.names, dtype=object)
        return names[predicted]

    def predict_proba(
        self, data: AnnData | AnyFloats, *, use_rep: str | AnyFloats | None = None
    ) -> Vectors:
        """Return the probability of each class, ``(n, classes)``; arguments and errors as :meth:`predict`.

        Raises
        ------
        ConfigError
            The probe predicts values or proportions.
        """
        return self.head.predict_proba(self._vectors(data, use_rep))

    def annotate(
        self,
        adata: AnnData,
        *,
        key_added: str | None = None,
        use_rep: str | AnyFloats | None = None,
    ) -> AnnData:
        """Write the predictions into a slice, with their provenance in ``uns["terrazzo"]``.

        Parameters
        ----------
        adata
            Holds the embedding; changed, and returned.
        key_added
            By default ``"<target>_predicted"``. Classes go into ``obs``, categorical; values and proportions into
            ``obsm``, float32, and the names of their columns into ``uns["<key>_names"]``.
        use_rep
            As in :meth:`predict`.
        """
        key = key_added or f"{self.target}_predicted"
        predicted = self.predict(adata, use_rep=use_rep)
        if self.kind == "classes":
            adata.obs[key] = pd.Categorical(predicted, categories=list(self.names))
        else:
            adata.obsm[key] = predicted
            adata.uns[f"{key}_names"] = np.array(self.names, dtype=object)
        source = self.use_rep if use_rep is None else use_rep
        record = {
            "task": "probe",
            "kind": self.kind,
            "target": self.target,
            "use_rep": records.source_name(source),
            "probe": json.dumps(self.info),
        }
        records.add_record(adata, key, record)
        return adata

    def save(
        self, folder: str | Path, *, overwrite: bool = False, mark: Mark | None = None
    ) -> Path:
        """Write ``probe.json`` and ``probe.safetensors`` into a folder, both or none.

        Parameters
        ----------
        folder
            A new or empty one, or that of a probe.
        overwrite
            Replace a probe.
        mark
            Of the command line: replace a probe that was learned from the same source.

        Raises
        ------
        OutputError
            The folder holds something already (and ``overwrite`` is not set, or it is not just a probe), or cannot be
            written.
        """
        record = {
            "kind": self.kind,
            "names": list(self.names),
            "use_rep": self.use_rep,
            "target": self.target,
            "origins": list(self.origins),
            "head": head_record(self.head.config),
            "info": self.info,
        }
        return probe_files.write(folder, record, self.head.state(), overwrite=overwrite, mark=mark)

    @classmethod
    def load(cls, folder: str | Path) -> Probe:
        """Read what :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            Not a probe's folder, or a damaged one.
        """
        record, head = probe_files.read(folder)
        return cls(
            head=head,
            names=tuple(record["names"]),
            use_rep=record["use_rep"],
            target=record["target"],
            origins=tuple(record["origins"]),
            info=record["info"],
        )

    def _vectors(self, data: AnnData | AnyFloats, use_rep: str | AnyFloats | None) -> AnyFloats:
        """Return the vectors of a slice, or an array of them, checked; warns where another model made them."""
        if isinstance(data, AnnData):
            source = self.use_rep if use_rep is None else use_rep
            if source is None:
                raise InputError(
                    "the probe was fitted to an array; pass the embedding to read as use_rep=."
                )
            vectors = records.vectors(data, source)
            origin = targets.origin(data, source)
            if origin and self.origins and origin not in self.origins:
                targets.warn_origins({origin, *self.origins})
        else:
            rows = np.asarray(data)
            names = [str(i) for i in range(len(rows))]
            cells = AnnData(obs=pd.DataFrame(index=names))
            vectors = records.vectors(cells, rows)
        width = vectors.shape[1]
        if width != self.head.input_dim:
            raise InputError(
                f"the probe was fitted to vectors of width {self.head.input_dim}, "
                f"these have {width}; embed with the same model."
            )
        return vectors


def fit_probe(
    data: Data,
    *,
    use_rep: str | AnyFloats | Sequence[AnyFloats] | None = None,
    label: Any = None,
    values: Any = None,
    proportions: Any = None,
    head: str | HeadConfig = "mlp3",
    seed: int = 0,
    least_share: float = LEAST_SHARE,
    progress: bool | None = None,
    slice_key: str | None = None,
    model: Any = None,
    predict: Data | None = None,
    common_genes: CommonGenes = AUTO,
    copies: bool | None = None,
) -> Probe:
    """Fit a head to the embedding of one slice or of several; every labeled cell is used.

    Parameters
    ----------
    data
        One slice or several, all embedded by one model; with ``model``, with raw counts.
    use_rep
        ``obsm`` key, ``"key:block"``, or array ``(n, d)``; with several slices, a list of arrays.
    label
        Column of ``obs`` (or array, or list of arrays): classification.
    values
        Key of ``obsm``, DataFrame or array ``(n, m)`` (or list of these): regression of each column.
    proportions
        The same, rows that sum to one, as do those that are predicted.
    head
        ``"mlp3"``, three layers with LeakyReLU, 10 % of the labeled cells drawn to stop it early (SToFM, C.2);
        ``"mlp512"``, the MLP [512, 256, 128] of ST as images; ``"knn"``, the 10 nearest cells; ``"linear"``; or
        settings from :mod:`terrazzo.tasks.heads`.
    seed
        Of the validation cells, and of the head's start.
    least_share
        Classes with a smaller share of the labeled cells are not learned.
    progress
        Show a bar; None: on a terminal.
    slice_key
        Column of ``obs`` that tells the sections of an AnnData apart, each of which is a slice; "none": all its cells
        are one, whatever tells them apart.
    model
        In place of ``use_rep``: a foundation model or a baseline that embeds the slices here, from raw counts. A
        baseline that is not fitted is fitted on ``data``.
    predict
        With ``model``: the slices that the probe is for. They get their vectors, in ``obsm`` under the model's key.
        The probe is fitted for the genes that all of them have and the depth of the shallowest.
    common_genes, copies
        As in :func:`probe`.

    Raises
    ------
    InputError
        The embedding or the labels cannot be used; the message says where and why.
    ConfigError
        No such head; not exactly one of ``label``, ``values``, ``proportions``; not exactly one of ``use_rep`` and
        ``model``; ``common_genes`` or ``copies`` without a model.
    """
    check_source(use_rep, model, common_genes, copies)
    if predict is not None and model is None:
        raise ConfigError("predict= belongs to model=; vectors that are there need no embedding.")
    ends = [] if predict is None else slices_of(predict, slice_key)
    if takes_all(slice_key):
        check_slices(data, None, slice_key)
    else:
        check_keys(
            str(slice_key), use_rep=use_rep, label=label, values=values, proportions=proportions
        )
        data = slices_of(data, slice_key)
    target = targets.read_target(data, label, values, proportions, least_share)
    if model is None:
        moved = at_hand(data, use_rep)
    else:
        moved = transferred(
            model, data, ends, target, common_genes=common_genes, copies=copies, seed=seed
        )
        use_rep = model.default_key
        if predict is not None:
            write_targets(moved, predict, model.default_key, slice_key)
    split = splits.all_rows(target.known, seed=seed)
    many = repeated_target(target, moved.n_copies)
    rows = repeated(split, len(target.values), moved.n_copies)
    with Progress(progress).stage("fit probe", None):
        fitted = fit_head(moved.labeled, many, rows, head, seed)
    named = [source for source in (label, values, proportions) if isinstance(source, str)]
    info = {
        "head": head_record(head),
        "seed": seed,
        "least_share": least_share,
        "n_slices": len(targets.as_list(data)),
        "n_cells": int(target.known.sum()),
        "notes": [*target.notes, *moved.notes],
    }
    if moved.record:
        info["transfer"] = moved.record
    return Probe(
        head=fitted,
        names=target.names,
        use_rep=use_rep if isinstance(use_rep, str) else None,
        target=named[0] if named else target.kind,
        origins=moved.origins,
        info=info,
    )


def probe(
    data: Data,
    *,
    use_rep: str | AnyFloats | None = None,
    label: Any = None,
    values: Any = None,
    head: str | HeadConfig = "mlp3",
    splits: Sequence[str] = ("random", "blocked"),
    runs: int = 3,
    test: AnnData | None = None,
    seed: int = 0,
    least_share: float = LEAST_SHARE,
    progress: bool | None = None,
    slice_key: str | None = None,
    model: Any = None,
    common_genes: CommonGenes = AUTO,
    copies: bool | None = None,
) -> TaskResult:
    """Score how well an embedding predicts labels or values: within one slice, or from slices to another.

    Parameters
    ----------
    data
        One slice; with ``test``, one or several that are learned from.
    use_rep, label, values, head, least_share
        As in :func:`fit_probe`.
    splits
        Within one slice: ``"random"``, 8:2 (SToFM, C.2), whose test cells have neighbors in training; ``"blocked"``,
        16 spatial blocks in four folds, their predictions scored together; ``"few-shot"``, 20:80, always ten draws (ST
        as images, section 4).
    runs
        Random draws; passes through all four folds; fits for ``test``. Each is one ``number`` in the metrics.
    test
        Another slice that is scored, with the label or values under the same key. Classes and columns that only one
        side has are not scored, and named in ``notes``; those of the training slices are learned all the same.
    seed
        Seed.
    progress
        Show a bar; None: on a terminal.
    slice_key
        Column of ``obs`` that tells the sections of an AnnData apart, each of which is a slice; "none": all its cells
        are one, whatever tells them apart. Without ``test`` each is scored by itself; scores and predictions have
        a column ``slice``.
    model
        In place of ``use_rep``: a foundation model or a baseline that embeds the slices here, from raw counts; a
        baseline that is not fitted is fitted on ``data``. With ``test`` genes and depth are compared first, and where
        they differ (less than 80 % of the counts on shared genes, or less than half or more than twice the depth) a
        warning has the numbers, and the next two options apply. With ``use_rep`` only the warning does.
    common_genes
        Cut all slices to the genes that all have before they are embedded. "auto": where genes differ, and where it
        wins on held-out parts of ``data`` at the genes and the depth of ``test``; the labels of ``test`` are not read.
    copies
        Learn also from copies of ``data``, cut to the genes of ``test``, thinned to its depth, and both, as far as they
        differ. None: yes, with a model. Both options embed each labeled slice up to six times; the notes say how often,
        and ``config["transfer"]`` what was chosen.

    Returns
    -------
    Metrics: ``accuracy``, ``macro_f1``, ``ari``, ``nmi`` of classes; of values those of
    :func:`terrazzo.tasks.metrics.regression`, also column by column, and ``rmse_mean`` and ``mae_mean`` of the
    trivial answer, the mean of the training cells. Predictions: a row for each cell of the scored slice, column
    ``true`` and one for each kind of split (for values ``"true:NAME"``, ``"random:NAME"``), empty where a cell was in
    training in the last run. Cells without label are predicted, and not scored.

    Raises
    ------
    InputError
        The embedding, labels, values or coordinates cannot be used; the message says where and why.
    ConfigError
        No such head or split; not exactly one of ``label`` and ``values``; several slices without ``test``; not exactly
        one of ``use_rep`` and ``model``; ``common_genes`` or ``copies`` without a model.
    """
    plan = Plan("probe", head, tuple(splits), runs, seed, progress)
    check_source(use_rep, model, common_genes, copies)
    if not takes_all(slice_key):
        check_keys(str(slice_key), use_rep=use_rep, label=label, values=values)
        options: dict[str, Any] = {
            "use_rep": use_rep,
            "label": label,
            "values": values,
            "head": head,
            "splits": splits,
            "runs": runs,
            "seed": seed,
            "least_share": least_share,
            "progress": progress,
            "model": model,
            "common_genes": common_genes,
            "copies": copies,
        }
        return scored_by_section(
            lambda some, other: probe(some, test=other, **options), data, test, str(slice_key)
        )
    check_slices(data, test, slice_key)
    target = targets.read_target(data, label, values, None, least_share)
    settings = {"use_rep": use_rep, "label": label, "values": values, "least_share": least_share}
    if test is None:
        vectors = embedded_alone(model, data) if use_rep is None else use_rep
        return within(plan, data, vectors, target, settings)
    truth = targets.read_target(test, label, values, None, least_share)
    moved = moved_to(
        test,
        use_rep,
        model,
        data,
        target,
        common_genes=common_genes,
        copies=copies,
        seed=seed,
    )
    return across(plan, data, test, use_rep, target, truth, settings, moved=moved)
