"""Running a table: every system on every part, through the same task; what cannot be run says why."""

from __future__ import annotations

import contextlib
import datetime
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from terrazzo import tasks
from terrazzo._version import __version__
from terrazzo.bench import histology as pictures
from terrazzo.bench import squares
from terrazzo.bench.protocols import NO_HEAD, Protocol
from terrazzo.bench.rows import Kept
from terrazzo.bench.samples import KEY, Sample, Scene, record_of, set_record
from terrazzo.bench.systems import Fitted, System, representations, resolve
from terrazzo.errors import ConfigError, DataMissing, InputError, TerrazzoError, TerrazzoWarning
from terrazzo.progress import Progress
from terrazzo.systems.stofm.model import SToFM
from terrazzo.tasks.results import TaskResult

COLUMNS = ["system", "part", "split", "head", "metric", "seed", "number", "value"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Table:
    """What a run of a protocol found.

    Attributes
    ----------
    protocol
        What was run.
    scores
        Tidy: a row a score of a seed, fold or draw; ``system``, ``part``, ``split``, ``head``, ``metric``, ``seed`` (of
        the weights), ``number`` (of the draw), ``value``.
    absent
        ``system``, ``part``, ``reason``.
    seconds
        Of each system, embedding and heads together.
    notes
        What the tasks said: classes left out, cells without a label.
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
    by_gene: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*COLUMNS, "gene"]))

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
    kept: str | Path | None = None,
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
        As in :func:`terrazzo.bench.systems.resolve`.
    work
        Folder for what an ablation trains; None: a temporary one.
    kept
        Folder for finished rows, so that a run that was stopped goes on where it stopped; None: none are kept.
    say
        Called with a line whenever something is done.
    progress
        Show bars; None: on a terminal.

    Raises
    ------
    InputError
        None of the table's slices is there, or no system could be run on them.
    ConfigError, CheckpointError
        A model that does not exist or cannot be read.
    """
    systems = resolve(protocol.models, models)
    if protocol.task in _WHO:
        systems = _WHO[protocol.task](systems)
    absent = uncovered(protocol, systems)
    bars = Progress(progress)
    image = any(system.reads != "genes" for system in systems) or _trains_on_images(protocol)
    scenes, gone = _scenes(protocol, data, bars, image=image)
    absent += gone
    with contextlib.ExitStack() as stack:
        if protocol.variants and scenes:
            from terrazzo.bench.ablation import train

            slices = list({id(a): a for scene in scenes for a in scene.unlabeled}.values())
            systems += stack.enter_context(train(protocol, slices, work, say, progress))
        runner = Runner(protocol, say, Kept(Path(kept), protocol) if kept is not None else None)
        advance = stack.enter_context(bars.stage(protocol.name, len(scenes) * len(systems), "rows"))
        for scene in scenes:
            for system in systems:
                runner.one(scene, system)
                advance(1)
    gone = runner.gone()
    if scenes and not runner.rows:
        raise InputError(
            f"{protocol.name}: no system could be run. {next(why for _, part, why in gone if part)}"
        )
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    return Table(
        protocol,
        pd.DataFrame(runner.rows, columns=COLUMNS),
        pd.DataFrame([*absent, *gone], columns=["system", "part", "reason"]),
        runner.seconds,
        tuple(dict.fromkeys(runner.notes)),
        date,
        by_gene=pd.DataFrame(runner.by_gene, columns=[*COLUMNS, "gene"]),
    )


def uncovered(protocol: Protocol, systems: Sequence[System]) -> list[tuple[str, str, str]]:
    """Return systems that have weights for some parts alone, with each part that they have none for, and why.

    Raises
    ------
    ConfigError
        Weights for a part that the table does not have.
    """
    known = list(
        dict.fromkeys(word for p in protocol.parts for word in (p.name, p.patient) if word)
    )
    for system in systems:
        if system.part and system.part not in known:
            there = ", ".join(known)
            raise ConfigError(
                f"{protocol.name} has no part or patient {system.part!r} ({system.title}); it has: {there}."
            )
    reason = "no weights were given for it (--models NAME@PART=FOLDER)"
    return [
        (title, part.name, reason)
        for title in dict.fromkeys(system.title for system in systems if system.part)
        for part in protocol.parts
        if not any(system.title == title and system.serves(part) for system in systems)
    ]


def _trains_on_images(protocol: Protocol) -> bool:
    """Say whether a variant is trained on histology."""
    from terrazzo.bench.ablation import reads_images, recipes_of

    return any(
        reads_images(recipes_of(protocol, variant)) != "genes" for variant in protocol.variants
    )


def _scenes(
    protocol: Protocol, data: str | Path | None, bars: Progress, *, image: bool
) -> tuple[list[Scene], list[tuple[str, str, str]]]:
    scenes, absent = [], []
    loaded: dict[tuple[str, str], Sample] = {}
    for part in protocol.parts:
        try:
            for name in (part.test, *part.train):
                if (part.dataset, name) not in loaded:
                    with bars.stage(f"read {name}", None):
                        sample = Sample.read(part.dataset, name, protocol.label, data, image=image)
                    loaded[part.dataset, name] = sample
        except DataMissing as error:
            absent.append(("all systems", part.name, str(error)))
            continue
        train, test = (
            [loaded[part.dataset, name] for name in part.train],
            loaded[part.dataset, part.test],
        )
        scenes.append(Scene(part, test, train))
    if protocol.parts and not scenes:
        raise InputError(f"{protocol.name}: none of its slices is here. {absent[0][2]}")
    return scenes, absent


class Runner:
    """Embeds and scores; remembers what a system without a fit wrote for a slice."""

    def __init__(self, protocol: Protocol, say: Say, kept: Kept | None = None) -> None:
        self.protocol, self.say, self._squares = protocol, say, squares.Squares(protocol)
        self.kept = kept
        self.rows: list[dict[str, Any]] = []
        self.by_gene: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self._kept: dict[tuple[int, int], tuple[Any, dict[str, Any]]] = {}
        self._seed: dict[tuple[str, str], int] = {}
        self._failed: list[tuple[str, str, str]] = []

    def one(self, scene: Scene, system: System) -> None:
        """Run one system on one part; an error of ours becomes a row that says why."""
        if not system.serves(scene.part):
            return
        if system.fit is None:
            self._failed.append((system.title, "", system.missing))
            return
        before = self.kept.get(scene, system) if self.kept else None
        try:
            row = before or self._made(scene, system)
        except TerrazzoError as error:
            self._failed.append((system.title, scene.part.name, str(error)))
            self.say(f"{scene.part.name}: {system.title}: not available ({error})")
            return
        if self.kept and not before:
            self.kept.put(scene, system, row)
        seed = self._seed.get((scene.part.name, system.title), 0)
        self._seed[scene.part.name, system.title] = seed + 1
        self.rows += [one | {"seed": seed} for one in row["rows"]]
        self.by_gene += [one | {"seed": seed} for one in row["by_gene"]]
        self.notes += row["notes"]
        self.seconds[system.title] = self.seconds.get(system.title, 0.0) + row["seconds"]
        how = "kept from an earlier run" if before else f"{row['seconds']:.0f} s"
        self.say(f"{scene.part.name}: {system.title}: {row['headline']} ({how})")

    def _made(self, scene: Scene, system: System) -> dict[str, Any]:
        """Embed and score; return the rows, JSON-able."""
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", TerrazzoWarning
            )  # what matters of them is in the tasks' notes
            found = self._score(scene, system)
        made: dict[str, Any] = {
            "rows": [],
            "by_gene": [],
            "notes": [],
            "headline": _headline(found, self.protocol),
        }
        for suffix, head, result in found:
            self._add(made, scene.part.name, system.title + suffix, head, result)
        return made | {"seconds": time.perf_counter() - start}

    def gone(self) -> list[tuple[str, str, str]]:
        """Return system, part and reason of what could not be run; of what ran with another seed, a note is made."""
        ran = {(title, part) for part, title in self._seed}
        some = [row for row in self._failed if row[:2] in ran]
        self.notes += [
            f"{part}: one seed of {title} is not available ({reason})"
            for title, part, reason in some
        ]
        return [row for row in dict.fromkeys(self._failed) if row[:2] not in ran]

    def _add(
        self, made: dict[str, Any], part: str, title: str, head: str, result: TaskResult
    ) -> None:
        wanted = result.metrics[result.metrics["metric"].isin(self.protocol.metrics)]
        for r in wanted.itertuples():
            row = {
                "system": title,
                "part": part,
                "split": r.split,
                "head": head,
                "metric": r.metric,
                "number": int(r.number),
                "value": float(r.value),
            }
            if not r.part:
                made["rows"].append(row)
            elif r.split == pictures.NAMED:
                made["by_gene"].append(row | {"gene": r.part})
        made["notes"] += [f"{part}: {note}" for note in result.notes]

    def _score(self, scene: Scene, system: System) -> list[tuple[str, str, TaskResult]]:
        task = self.protocol.task
        if task == "reconstruction":
            return [("", NO_HEAD, self._squares.score(scene, system))]
        if task == "imputation":
            return list(_imputation(self.protocol, scene, system))
        if system.fit is None:
            return []
        write = system.fit(scene.unlabeled)
        if task == "image_to_gene":
            return list(
                pictures.score(
                    self.protocol, scene, system, lambda one: self._embed(system, write, one)
                )
            )
        for sample in [scene.test, *(scene.train if scene.cross else [])]:
            self._embed(system, write, sample)
        out = []
        for suffix, use_rep in representations(scene.test.labeled).items():
            for head in self.protocol.heads:
                out += [
                    (suffix, head, result)
                    for result in _SCORERS[task](self.protocol, scene, use_rep, head)
                ]
        if task == "finetune" and isinstance(system.model, SToFM):
            found = _finetune(self.protocol, scene, system.model)
            out += [(", all parameters tuned", "fine-tuning", result) for result in found]
        return out

    def _embed(self, system: System, write: Fitted, sample: Sample) -> None:
        """Write ``obsm[KEY]``, from a slice without labels; vectors that depend on nothing but the slice are kept."""
        found = self._kept.get((id(system), id(sample)))
        if found is None:
            shown = sample.blind if self.protocol.task == "image_to_gene" else sample.bare
            set_record(shown, {})
            write(shown)
            found = (np.array(shown.obsm[KEY]), record_of(shown))
            if system.fixed:
                self._kept[id(system), id(sample)] = found
        sample.take(*found)


def _probe(protocol: Protocol, scene: Scene, use_rep: str, head: str) -> Iterator[TaskResult]:
    yield from _heads(
        tasks.probe, protocol, scene, use_rep=use_rep, label=protocol.label, head=head
    )


def _deconvolution(
    protocol: Protocol, scene: Scene, use_rep: str, head: str
) -> Iterator[TaskResult]:
    yield from _heads(
        tasks.deconvolve, protocol, scene, use_rep=use_rep, proportions=protocol.label, head=head
    )


def _heads(
    task: Callable[..., TaskResult], protocol: Protocol, scene: Scene, **given: Any
) -> Iterator[TaskResult]:
    if scene.within:
        yield task(scene.test.labeled, splits=protocol.all_splits, runs=protocol.runs, **given)
    if scene.cross:
        yield task(
            [s.labeled for s in scene.train], test=scene.test.labeled, runs=protocol.runs, **given
        )


def _domains(protocol: Protocol, scene: Scene, use_rep: str, head: Any) -> Iterator[TaskResult]:
    yield tasks.evaluate_domains(
        scene.test.labeled,
        use_rep=use_rep,
        label=protocol.label,
        method=head,
        seeds=protocol.runs,
        refine=protocol.refine,
    )


def _imputation(
    protocol: Protocol, scene: Scene, system: System
) -> Iterator[tuple[str, str, TaskResult]]:
    """Hide genes before anything is fitted, tokenized or normalized; then embed what is left."""
    if system.stored:
        raise InputError("its vectors were made before genes were hidden, and have seen them")
    if system.fit is None:
        return
    test, *train = scene.hidden(protocol.genes)
    write = system.fit(scene.unlabeled)
    for one in [test, *(train if scene.cross else [])]:
        write(one.visible)
    for suffix, use_rep in representations(test.visible).items():
        for head in protocol.heads:
            given: dict[str, Any] = {"use_rep": use_rep, "head": head, "runs": protocol.runs}
            if scene.within:
                yield suffix, head, tasks.impute(test, splits=protocol.all_splits, **given)
            if scene.cross:
                yield suffix, head, tasks.impute(train, test=test, **given)


def _finetune(protocol: Protocol, scene: Scene, model: SToFM) -> Iterator[TaskResult]:
    from terrazzo.systems.stofm.finetune_scores import KINDS, evaluate_finetuning

    given: dict[str, Any] = {"label": protocol.label, "runs": protocol.runs}
    if scene.within:
        kinds = [kind for kind in protocol.all_splits if kind in KINDS]
        yield evaluate_finetuning(model, scene.test.labeled, kinds=kinds, **given)
    if scene.cross:
        yield evaluate_finetuning(
            model, [s.labeled for s in scene.train], test=scene.test.labeled, **given
        )


_WHO: dict[str, Callable[[Sequence[System]], list[System]]] = {
    "reconstruction": squares.who,
    "image_to_gene": pictures.who,
}
_SCORERS: dict[str, Callable[[Protocol, Scene, str, str], Iterator[TaskResult]]] = {
    "probe": _probe,
    "finetune": _probe,
    "domains": _domains,
    "deconvolution": _deconvolution,
}


def _headline(found: list[tuple[str, str, TaskResult]], protocol: Protocol) -> str:
    """Say the first metric of every split, of the whole embedding."""
    first = protocol.metrics[0]
    parts = []
    for _, _, result in found[:2]:
        table = result.summary()
        parts += [f"{r.split} {r.mean:.3f}" for r in table[table["metric"] == first].itertuples()]
    return f"{first} {', '.join(parts)}"
