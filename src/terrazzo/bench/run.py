"""Running a table: every entry on every part, through the same task; what cannot be run says why."""

from __future__ import annotations

import contextlib
import datetime
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from terrazzo._version import __version__
from terrazzo.bench import histology, squares
from terrazzo.bench.entries import Entry, resolve
from terrazzo.bench.protocols import Part, Protocol
from terrazzo.bench.rows import FinishedRows, Row, Scored
from terrazzo.bench.samples import LoadedPart, Sample
from terrazzo.bench.scoring import Scorer
from terrazzo.errors import ConfigError, DataMissing, InputError, TerrazzoError, TerrazzoWarning
from terrazzo.progress import Progress

__all__ = ["COLUMNS", "Absence", "Runner", "Table", "run", "uncovered"]

COLUMNS = ["system", "part", "split", "head", "metric", "seed", "number", "value"]
GENE_COLUMNS = [*COLUMNS, "gene"]
ABSENCES = ["system", "part", "reason"]
ALL_ENTRIES = "all systems"
NO_WEIGHTS_FOR_PART = "no weights were given for it (--models NAME@PART=FOLDER)"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Absence:
    """A row, or one part of it, without a score; part "": of all parts."""

    title: str
    part: str
    reason: str


def _no_genes() -> pd.DataFrame:
    return pd.DataFrame(columns=GENE_COLUMNS)


@dataclass(frozen=True)
class Table:
    """The results of a run.

    Attributes
    ----------
    protocol
        What was run.
    scores
        Tidy: a row a score of a seed, fold or draw; ``system`` (the entry's title), ``part``, ``split``, ``head``,
        ``metric``, ``seed`` (of the weights), ``number`` (of the draw), ``value``.
    absent
        ``system``, ``part``, ``reason``.
    seconds
        Of each entry, embedding and heads together.
    notes
        Of the tasks: classes left out, cells without a label.
    date, version
        UTC; of the library.
    by_gene
        Image to gene: scores of each named gene, as ``scores`` with a column ``gene``.
    """

    protocol: Protocol
    scores: pd.DataFrame
    absent: pd.DataFrame
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    date: str = ""
    version: str = __version__
    by_gene: pd.DataFrame = field(default_factory=_no_genes)

    def summary(self) -> pd.DataFrame:
        """Return mean, sd and number of draws of each score."""
        by = ["system", "part", "split", "head", "metric"]
        grouped = self.scores.groupby(by, sort=False, observed=True)["value"]
        return grouped.agg(mean="mean", sd=lambda v: v.std(ddof=0), n="size").reset_index()


def run(
    protocol: Protocol,
    *,
    data: str | Path | None = None,
    models: Sequence[str] = (),
    work: str | Path | None = None,
    rows: str | Path | None = None,
    say: Say = lambda line: None,
    progress: bool | None = None,
) -> Table:
    """Run a table.

    Parameters
    ----------
    protocol
        From :func:`terrazzo.bench.protocols.load`.
    data
        Folder of the datasets; see :func:`terrazzo.datasets.find`.
    models
        As ``supplied`` of :func:`terrazzo.bench.entries.resolve`.
    work
        Folder for what an ablation trains; None: a temporary one.
    rows
        Folder for finished rows, so that a run that was stopped goes on where it stopped; None: none are stored.
    say
        Called with a line whenever something is done.
    progress
        Show bars; None: on a terminal.

    Raises
    ------
    InputError
        None of the table's slices is there, or no entry could be run on them.
    ConfigError, CheckpointError
        A model that does not exist or cannot be read.
    """
    entries = _select(protocol, resolve(protocol.models, models))
    absent = uncovered(protocol, entries)
    bars = Progress(progress)
    reader = _Reader(protocol, data, bars, image=_needs_images(protocol, entries))
    parts = reader.parts()
    absent += reader.absent
    finished = None
    if rows is not None:
        finished = FinishedRows(Path(rows), protocol)
    runner = Runner(protocol, say, finished)
    with contextlib.ExitStack() as stack:
        if protocol.variants and parts:
            from terrazzo.bench.ablation import train

            trained = train(protocol, _training_slices(parts), work, say, progress)
            entries += stack.enter_context(trained)
        total = len(parts) * len(entries)
        advance = stack.enter_context(bars.stage(protocol.name, total, "rows"))
        for loaded in parts:
            for entry in entries:
                runner.run(loaded, entry)
                advance(1)
    failed = runner.absent()
    if parts and not runner.scores:
        reason = next(one.reason for one in failed if one.part)
        raise InputError(f"{protocol.name}: no system could be run. {reason}")
    now = datetime.datetime.now(datetime.UTC)
    return Table(
        protocol,
        pd.DataFrame(runner.scores, columns=COLUMNS),
        _absence_table(absent + failed),
        runner.seconds,
        tuple(dict.fromkeys(runner.notes)),
        now.isoformat(timespec="minutes"),
        by_gene=pd.DataFrame(runner.by_gene, columns=GENE_COLUMNS),
    )


def _select(protocol: Protocol, entries: list[Entry]) -> list[Entry]:
    if protocol.task == "reconstruction":
        return squares.select(entries)
    if protocol.task == "image_to_gene":
        return histology.select(entries)
    return entries


def _absence_table(absences: Iterable[Absence]) -> pd.DataFrame:
    rows = []
    for one in absences:
        rows.append((one.title, one.part, one.reason))
    return pd.DataFrame(rows, columns=ABSENCES)


def uncovered(protocol: Protocol, entries: Sequence[Entry]) -> list[Absence]:
    """Return entries that have weights for some parts alone, with each part that they have none for.

    Raises
    ------
    ConfigError
        Weights for a part that the table does not have.
    """
    names: dict[str, None] = {}  # in order, once each
    for part in protocol.parts:
        names[part.name] = None
        if part.patient:
            names[part.patient] = None
    seeds: dict[str, list[Entry]] = {}
    for entry in entries:
        if not entry.part:
            continue
        if entry.part not in names:
            known = ", ".join(names)
            raise ConfigError(
                f"{protocol.name} has no part or patient {entry.part!r} ({entry.title}); it has: {known}."
            )
        seeds[entry.title] = [one for one in entries if one.title == entry.title]
    out = []
    for title, of_title in seeds.items():
        for part in protocol.parts:
            if not any(entry.serves(part) for entry in of_title):
                out.append(Absence(title, part.name, NO_WEIGHTS_FOR_PART))
    return out


def _needs_images(protocol: Protocol, entries: Sequence[Entry]) -> bool:
    """Return whether an entry, or a variant that is trained, reads histology."""
    if any(entry.reads != "genes" for entry in entries):
        return True
    from terrazzo.bench.ablation import modality_of, recipes_of

    for variant in protocol.variants:
        recipes = recipes_of(protocol, variant)
        if modality_of(recipes) != "genes":
            return True
    return False


def _training_slices(parts: Sequence[LoadedPart]) -> list[AnnData]:
    """Return the slices that variants are trained on, each once."""
    slices = {}
    for loaded in parts:
        for adata in loaded.unlabeled:
            slices[id(adata)] = adata
    return list(slices.values())


class _Reader:
    """Reads the slices of a table, each once."""

    def __init__(
        self, protocol: Protocol, data: str | Path | None, bars: Progress, *, image: bool
    ) -> None:
        self.protocol = protocol
        self.data = data
        self.bars = bars
        self.image = image
        self.absent: list[Absence] = []
        self._samples: dict[tuple[str, str], Sample] = {}

    def parts(self) -> list[LoadedPart]:
        """Return the parts whose slices are there; the others are noted as absent."""
        out = []
        for part in self.protocol.parts:
            try:
                test, *train = [self._sample(part, name) for name in (part.test, *part.train)]
            except DataMissing as error:
                self.absent.append(Absence(ALL_ENTRIES, part.name, str(error)))
                continue
            out.append(LoadedPart(part, test, train))
        if self.protocol.parts and not out:
            reason = self.absent[0].reason
            raise InputError(f"{self.protocol.name}: none of its slices is here. {reason}")
        return out

    def _sample(self, part: Part, name: str) -> Sample:
        key = (part.dataset, name)
        if key not in self._samples:
            label = self.protocol.label
            with self.bars.stage(f"read {name}", None):
                self._samples[key] = Sample.read(
                    part.dataset, name, label, self.data, image=self.image
                )
        return self._samples[key]


class Runner:
    """Runs entries one after the other and collects their scores.

    Attributes
    ----------
    scores, by_gene, notes, seconds
        As of :class:`Table`.
    """

    def __init__(self, protocol: Protocol, say: Say, finished: FinishedRows | None = None) -> None:
        self.protocol = protocol
        self.say = say
        self.finished = finished
        self.scores: list[dict[str, Any]] = []
        self.by_gene: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self._scorer = Scorer(protocol)
        self._seeds: dict[tuple[str, str], int] = {}  # of title and part: how many ran
        self._failed: list[Absence] = []

    def run(self, loaded: LoadedPart, entry: Entry) -> None:
        """Run one entry on one part; an error of the library becomes a row that says why."""
        part = loaded.part.name
        if not entry.serves(loaded.part):
            return
        if entry.fit is None:
            self._failed.append(Absence(entry.title, "", entry.missing))
            return
        stored = None
        if self.finished:
            stored = self.finished.get(loaded, entry)
        try:
            row = stored or self._compute(loaded, entry)
        except TerrazzoError as error:
            self._failed.append(Absence(entry.title, part, str(error)))
            self.say(f"{part}: {entry.title}: not available ({error})")
            return
        if self.finished and stored is None:
            self.finished.put(loaded, entry, row)
        self._add(row, part, entry.title)
        how = "from an earlier run" if stored else f"{row.seconds:.0f} s"
        self.say(f"{part}: {entry.title}: {row.headline} ({how})")

    def absent(self) -> list[Absence]:
        """Return what could not be run; of what ran with another seed, a note is made."""
        out: dict[Absence, None] = {}  # in order, once each
        for one in self._failed:
            if (one.title, one.part) in self._seeds:
                self.notes.append(
                    f"{one.part}: one seed of {one.title} is not available ({one.reason})"
                )
            else:
                out[one] = None
        return list(out)

    def _compute(self, loaded: LoadedPart, entry: Entry) -> Row:
        """Embed and score."""
        start = time.perf_counter()
        part = loaded.part.name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TerrazzoWarning)  # the tasks' notes have what matters
            scored = self._scorer.score(loaded, entry)
        scores: list[dict[str, Any]] = []
        by_gene: list[dict[str, Any]] = []
        notes: list[str] = []
        for one in scored:
            metrics = one.result.metrics
            is_wanted = metrics["metric"].isin(self.protocol.metrics)
            wanted = metrics[is_wanted]
            for found in wanted.itertuples():
                score = {
                    "system": entry.title + one.suffix,
                    "part": part,
                    "split": found.split,
                    "head": one.head,
                    "metric": found.metric,
                    "number": int(found.number),
                    "value": float(found.value),
                }
                if not found.part:
                    scores.append(score)
                elif found.split == histology.NAMED:
                    by_gene.append({**score, "gene": found.part})
            notes += [f"{part}: {note}" for note in one.result.notes]
        headline = _headline(scored, self.protocol)
        seconds = time.perf_counter() - start
        return Row(scores, by_gene, notes, headline, seconds)

    def _add(self, row: Row, part: str, title: str) -> None:
        """Take over the scores of a row, with the number of its seed."""
        seed = self._seeds.get((title, part), 0)
        self._seeds[title, part] = seed + 1
        self.scores += [{**score, "seed": seed} for score in row.scores]
        self.by_gene += [{**score, "seed": seed} for score in row.by_gene]
        self.notes += row.notes
        self.seconds[title] = self.seconds.get(title, 0.0) + row.seconds


def _headline(scored: Sequence[Scored], protocol: Protocol) -> str:
    """Return the first metric of every split, of the whole embedding."""
    metric = protocol.metrics[0]
    parts = []
    for one in scored[:2]:
        summary = one.result.summary()
        of_metric = summary[summary["metric"] == metric]
        for row in of_metric.itertuples():
            parts.append(f"{row.split} {row.mean:.3f}")
    return f"{metric} {', '.join(parts)}"
