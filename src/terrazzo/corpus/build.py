"""Building a corpus: one task a slice, through Dask; then duplicates, splits, vocabulary, and the manifest last."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import pandas as pd

from terrazzo._version import __version__
from terrazzo.corpus.claim import (
    BUILDING,
    claim,
    clear,
    remove_if_empty,
    sweep_drafts,
    vocabulary_draft,
)
from terrazzo.corpus.members import (
    WAITING,
    Job,
    Record,
    make_member,
    remove_member,
    swap_member,
)
from terrazzo.corpus.published import PublishedCorpus, load_published, planned_sources
from terrazzo.corpus.quality import QualityControl
from terrazzo.corpus.scheduler import WorkerDied, run_tasks
from terrazzo.corpus.sources import Orthologs, Source, by_section, fingerprint, list_sources
from terrazzo.corpus.splits import Splits, assign
from terrazzo.corpus.store import (
    ABOUT,
    COLUMNS,
    FORMAT_VERSION,
    MANIFEST,
    MEMBERS,
    VOCABULARY,
    Corpus,
    manifest_bytes,
    read_about,
)
from terrazzo.errors import CorpusError, InputError, OutputError, TerrazzoWarning
from terrazzo.files import hash_file, hash_json, write_bytes, write_record
from terrazzo.genes import Vocabulary
from terrazzo.locks import alone
from terrazzo.progress import Progress
from terrazzo.slices import Slice, open_slice, takes_all
from terrazzo.slices.apart import died_at, run_apart

__all__ = ["build"]

PART_ROWS = 50_000
"""Cells that the vocabulary's pass has in memory at a time."""

_MAX_SHOWN = 20  # slices in one message
_ADVICE = "Small panels need a smaller --min-genes (and --min-cells); without --min-genes it is derived from the panel"


def build(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    published: PublishedCorpus | str | os.PathLike[str] | None = None,
    min_genes: int | None = None,
    min_cells: int | None = None,
    orthologs: Mapping[str, str] | pd.DataFrame | str | os.PathLike[str] | None = None,
    vocabulary: bool = True,
    splits: Splits | None = None,
    exclude: Iterable[str | os.PathLike[str]] = (),
    slice_key: str | None = None,
    skip_failed: bool = False,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: bool | None = None,
) -> Corpus:
    """Build a corpus from slices, or finish one whose build was stopped.

    Members that exist from the same source bytes and options, and are as they were written, are not made again.
    Building twice gives the same bytes.

    Parameters
    ----------
    sources
        Slices, folders and tables, see :func:`~terrazzo.corpus.sources.list_sources`; of a published corpus, folders of
        downloads.
    out
        Folder of the corpus.
    published
        A published corpus, its name, or a YAML file that describes it: which of the files belong to it, and its quality
        control.
    min_genes, min_cells
        Expressed genes that a cell needs, cells that a slice needs. None: those of the published corpus, else 1 cell,
        and 100 genes (SToFM), or 5 % of the genes that a slice expresses where that is less.
    orthologs
        Two-column table from the genes of other organisms to those of the corpus; or "human" or "mouse", the organism
        of those, for the table that comes with the library alone.
    vocabulary
        Write ``vocab.parquet``: genes and medians of the training slices.
    splits
        How slices without a stated split are dealt; None: all train.
    exclude
        Slices whose content must not be in the corpus, under whatever name, e.g. those used for evaluation.
    slice_key
        Column of ``obs`` that tells the sections of a slice apart: the corpus gets one member for each, called after
        slice and section. "none": all cells are one slice, whatever tells them apart.
    skip_failed
        Leave out slices that cannot be read or used, with a warning, instead of stopping at the end.
    scheduler
        None: local processes; "synchronous": this process; else the address of a ``dask.distributed`` scheduler whose
        workers see the same folders.
    workers
        Local processes; None: one a core, at most one a slice. Each has one slice in memory.
    progress
        Show a bar; None: on a terminal.

    Raises
    ------
    CorpusError
        No slice left; several organisms and no ``orthologs``; slices that cannot be used; a folder that is not a
        corpus, has members that are not among the sources, or is being built by another process.
    OutputError
        The folder cannot be written, or the disk is full; what is finished is kept.
    """
    folder = Path(out)
    if isinstance(published, str | os.PathLike):
        published = load_published(published)
    options = _Options(
        published=published,
        quality=_quality(published, min_genes, min_cells),
        orthologs=None if orthologs is None else Orthologs.from_table(orthologs),
        splits=splits,
    )
    slices = list_sources(sources) if published is None else planned_sources(published, sources)
    slices = by_section(slices, slice_key)
    jobs = options.jobs(slices, folder.absolute())
    excluded = _contents(exclude, slice_key)
    claim(folder)
    try:
        with alone(folder, "built", error=CorpusError):
            died = clear(folder, jobs)
            pool = _Workers(scheduler, workers, apart=skip_failed)
            records = _run(jobs, died, pool, Progress(progress))
            _check_failed(records, skip_failed)
            _refuse_duplicates(jobs, records, excluded)
            dropped = _left_out(jobs, records)
            _warn_poor(records, options.quality)
            _check_organisms(records)
            rows = _manifest(jobs, records, splits or Splits(), dropped)
            about = options.about()
            about["dropped"] = dropped
            about["notes"] = _notes(records)
            about["floors"] = _floors(records)
            pending = _Pending(jobs, records)
            return _finish(folder, rows, about, pending, vocabulary, Progress(progress))
    except KeyboardInterrupt:
        sweep_drafts(folder)
        raise
    except OSError as error:
        raise OutputError(
            f"{folder} could not be written ({error.strerror or error}). Finished slices are kept: run it again."
        ) from error


@dataclass(frozen=True)
class _Options:
    """What decides which cells are in a corpus, and in which split."""

    published: PublishedCorpus | None
    quality: QualityControl
    orthologs: Orthologs | None
    splits: Splits | None

    def jobs(self, slices: list[Source], out: Path) -> list[Job]:
        """Return the task of each slice."""
        return [Job(source, out, self.quality, self.orthologs) for source in slices]

    def about(self) -> Record:
        """Return what ``corpus.json`` says of them."""
        options: Record = {
            "min_genes": self.quality.min_genes,
            "min_cells": self.quality.min_cells,
            "orthologs_sha256": None,
            "splits": None,
        }
        if self.orthologs is not None:
            options["orthologs_sha256"] = self.orthologs.content_hash()
        if self.splits is not None:
            options["splits"] = vars(self.splits)
        about: Record = {
            "format_version": FORMAT_VERSION,
            "terrazzo_version": __version__,
            "published": None,
            "options": options,
        }
        if self.published is not None:
            about["published"] = self.published.to_dict()
        return about


def _quality(
    published: PublishedCorpus | None, min_genes: int | None, min_cells: int | None
) -> QualityControl:
    quality = QualityControl()
    if published is not None:
        quality = published.quality
    if min_genes is not None:
        quality = replace(quality, min_genes=min_genes)
    if min_cells is not None:
        quality = replace(quality, min_cells=min_cells)
    return quality


def _contents(
    paths: Iterable[str | os.PathLike[str]], slice_key: str | None = None
) -> dict[str, str]:
    """Return content -> name of the slices, or of the sections of slices, that must stay out."""
    paths = list(paths)
    if not paths:
        return {}
    names = {}
    for source in list_sources(paths):
        opened = open_slice(source.path)
        key = source.slice_key or slice_key
        has_sections = key in opened.adata.obs.columns or takes_all(key)
        opened = replace(opened, slice_key=key if has_sections else None)
        for content in opened.each(lambda one: fingerprint(Slice.from_opened(one))):
            names[content] = str(source.path)
    return names


def _run(jobs: list[Job], died: list[str], workers: _Workers, progress: Progress) -> list[Record]:
    """Do the tasks; stop as soon as organisms contradict each other.

    A slice on which a process dies is tried again in one of its own; where that dies, too, the slice has failed.
    """
    records: dict[str, Record] = {}
    by_itself = set(died)
    with progress.stage("slices", len(jobs), "slices") as advance:
        while len(records) < len(jobs):
            left = [job for job in jobs if job.source.id not in records]
            suspects = [job for job in left if job.source.id in by_itself]
            others = [job for job in left if job.source.id not in by_itself]
            try:
                for record in chain(map(_make_apart, suspects), workers.run(others)):
                    records[record["id"]] = record
                    advance(1)
                    if jobs[0].orthologs is None:
                        _check_organisms(list(records.values()))
            except WorkerDied:
                found = [job.source.id for job in others if _has_died(job)]
                if not found:
                    raise
                by_itself.update(found)
    return [records[job.source.id] for job in jobs]


def _has_died(job: Job) -> bool:
    is_in_place = died_at(job.target)
    return died_at(job.waiting().target) or is_in_place


def _make_apart(job: Job) -> Record:
    """Make a member in a process of its own; a slice on which that dies has failed."""
    try:
        record: Record = run_apart(make_member, job)
    except InputError as error:
        _has_died(job)  # takes the note away
        reason = f"{job.source.path}: {error}"
        return {
            "id": job.source.id,
            "status": "failed",
            "reason": reason,
            "made": True,
            "waits": False,
        }
    return record


@dataclass(frozen=True)
class _Workers:
    """Where the tasks run; ``apart``: in a process of their own, even where it is one."""

    scheduler: str | None
    n: int | None
    apart: bool

    def run(self, jobs: list[Job]) -> Iterator[Record]:
        """Yield the records of jobs as they are done."""
        if not jobs:
            return iter(())
        return run_tasks(make_member, jobs, self.scheduler, self.n, apart=self.apart)


def _kept(records: list[Record]) -> list[Record]:
    """Return the records of the slices that are in the corpus."""
    return [record for record in records if record["status"] == "kept"]


def _reasons(records: list[Record]) -> list[str]:
    """Return why slices are left out, one text a slice, not more than fit a message."""
    reasons = []
    for record in records[:_MAX_SHOWN]:
        id = record["id"]
        reason = record["reason"]
        reasons.append(f"{id}: {reason}")
    return reasons


def _check_organisms(records: list[Record]) -> None:
    """Check that the genes of all slices are of one organism."""
    example: dict[str, str] = {}  # organism -> first slice
    for record in _kept(records):
        organism = record["gene_organism"]
        if organism != "unknown":
            example.setdefault(organism, record["id"])
    if len(example) > 1:
        pairs = [f"{organism} ({id})" for organism, id in example.items()]
        listed = ", ".join(sorted(pairs))
        raise CorpusError(
            f"the slices are of several organisms: {listed}. Pass --orthologs human (or mouse: the organism of the "
            "corpus' genes; orthologs by the table of terrazzo), or a table of your own (two columns: mouse gene, "
            "human gene); state organism in the table of sources if one is wrong, or build one corpus each."
        )


def _check_failed(records: list[Record], skip_failed: bool) -> None:
    """Check that no slice failed, unless those are to be skipped."""
    failed = [record for record in records if record["status"] == "failed"]
    if failed and not skip_failed:
        lines = "\n  ".join(_reasons(failed))
        raise CorpusError(
            f"{len(failed)} of {len(records)} slices cannot be used; the others are done and kept. Fix these or leave "
            f"them out (--skip-failed), and run it again:\n  {lines}"
        )


def _held_out_first(jobs: list[Job]) -> list[int]:
    """Return the places of the jobs: test slices, validation slices, the others."""
    test = []
    validation = []
    others = []
    for place, job in enumerate(jobs):
        if job.source.split == "test":
            test.append(place)
        elif job.source.split == "validation":
            validation.append(place)
        else:
            others.append(place)
    return test + validation + others


def _refuse_duplicates(jobs: list[Job], records: list[Record], excluded: Mapping[str, str]) -> None:
    """Keep one slice of each content, a held-out one before a training one; ``records`` is changed in place."""
    first: dict[str, str] = {}  # content -> slice
    for at in _held_out_first(jobs):
        job = jobs[at]
        record = records[at]
        if record["status"] not in ("kept", "duplicate"):
            continue
        content = record["content"]
        if content in excluded:
            reason = f"its content is that of {excluded[content]}, which is excluded"
        elif content in first:
            reason = f"duplicate of {first[content]}: the same counts and coordinates"
        else:
            first[content] = record["id"]
            if record["status"] == "duplicate":  # of a slice that is not a source any more
                place = job.waiting() if record["waits"] else job
                place.sidecar.unlink()
                records[at] = make_member(job)
            continue
        if record["status"] != "duplicate" or record["reason"] != reason:
            records[at] = _remove_duplicate(job, record, reason)


def _remove_duplicate(job: Job, record: Record, reason: str) -> Record:
    """Leave a member out; return its new record, which is in the place of the old one, or waits for that."""
    place = job.waiting() if record["waits"] else job.place()
    remove_member(place)
    new = {
        "id": record["id"],
        "options": record["options"],
        "source_sha256": record["source_sha256"],
        "content": record["content"],
        "status": "duplicate",
        "reason": reason,
    }
    write_record(place.sidecar, new)
    return {**new, "made": True, "waits": place.waits}


def _left_out(jobs: list[Job], records: list[Record]) -> list[Record]:
    """Return slices that are left out, and warn of them."""
    dropped = []
    for job, record in zip(jobs, records, strict=True):
        if record["status"] == "kept":
            continue
        row = {
            "id": record["id"],
            "source": str(job.source.path),
            "status": record["status"],
            "reason": record["reason"],
        }
        dropped.append(row)
    if not dropped:
        return []
    lines = "; ".join(_reasons(dropped))
    if len(dropped) == len(records):
        message = f"no slice is left: {lines}"
        if any(row["status"] == "dropped" for row in dropped):
            message += f". {_ADVICE}"
        raise CorpusError(message)
    message = f"{len(dropped)} slices are left out: {lines}"
    n_more = len(dropped) - _MAX_SHOWN
    if n_more > 0:
        message += f" and {n_more} more (corpus.json lists all)"
    warnings.warn(message, TerrazzoWarning, stacklevel=3)
    return dropped


def _why_left_out(dropped: list[Record]) -> str:
    """Say which slices were left out, why, and what to do; "" if none was."""
    if not dropped:
        return ""
    lines = "; ".join(_reasons(dropped))
    text = f"{len(dropped)} others are left out: {lines}"
    if any(row["status"] == "dropped" for row in dropped):
        return f"{text}. {_ADVICE}."
    return f"{text}."


def _warn_poor(records: list[Record], quality: QualityControl) -> None:
    """Warn where most cells are lost: a limit for whole transcriptomes on a small panel, more often than bad tissue."""
    poor = []
    for record in _kept(records):
        if 2 * record["n_cells"] < record["n_cells_read"]:
            poor.append(record)
    if poor:
        id = poor[0]["id"]
        n_cells = poor[0]["n_cells"]
        n_read = poor[0]["n_cells_read"]
        floor = poor[0].get("floor", quality.min_genes)
        warnings.warn(
            f"{len(poor)} slices lose more than half of their cells, e.g. {id}: {n_cells:,} of {n_read:,} have at "
            f"least {floor} expressed genes. Small panels need a smaller --min-genes",
            TerrazzoWarning,
            stacklevel=3,
        )


def _manifest(
    jobs: list[Job], records: list[Record], splits: Splits, dropped: list[Record]
) -> list[Record]:
    """Return the rows of the manifest."""
    sources = {job.source.id: job.source for job in jobs}
    rows = []
    for record in _kept(records):
        source = sources[record["id"]]
        row = {name: record[name] for name in COLUMNS if name in record}
        row["tissue"] = source.tissue or record["tissue"]
        row["donor"] = source.donor or record["donor"]
        row["file"] = f"{MEMBERS}/{source.id}.zarr"
        row["source"] = str(source.path)
        row["origin"] = source.origin or ""
        rows.append(row)
    ids = [row["id"] for row in rows]
    donors = [row["donor"] for row in rows]
    stated = [sources[id].split for id in ids]
    dealt = assign(ids, donors, stated, splits, _why_left_out(dropped))
    for row, split in zip(rows, dealt, strict=True):
        row["split"] = split
    return rows


def _notes(records: list[Record]) -> dict[str, list[str]]:
    """Return what there is to say of each slice of the corpus."""
    return {record["id"]: record["notes"] for record in _kept(records) if record["notes"]}


def _floors(records: list[Record]) -> dict[str, int]:
    """Return the expressed genes that a cell needs in slices of small panels, for which the floor was lowered."""
    floors = {}
    for record in _kept(records):
        if record.get("floor_of_panel"):
            floors[record["id"]] = record["floor"]
    return floors


@dataclass(frozen=True)
class _Pending:
    """Members that wait until everything else is done, so that an older corpus stays whole until then."""

    jobs: list[Job]
    records: list[Record]

    def files(self) -> dict[str, str]:
        """Return where the members that wait are, by slice."""
        places = {}
        for job, record in zip(self.jobs, self.records, strict=True):
            if record["waits"]:
                places[job.source.id] = job.waiting().target.relative_to(job.out).as_posix()
        return places

    def take_place(self, folder: Path) -> None:
        """Put members in the place of older ones, and remove those that are left out; quick, as it only renames."""
        moving = []
        leaving = []
        for job, record in zip(self.jobs, self.records, strict=True):
            if record["waits"]:
                moving.append(job)
            elif record["status"] != "kept" and job.target.exists():
                leaving.append(job)
        if not moving and not leaving:
            return
        (folder / MANIFEST).unlink(missing_ok=True)  # it lists what is no longer there in a moment
        for job in moving:
            swap_member(job)
        for job in leaving:
            remove_member(job)
        remove_if_empty(folder / MEMBERS / WAITING)


def _finish(
    folder: Path,
    rows: list[Record],
    about: Record,
    pending: _Pending,
    vocabulary: bool,
    progress: Progress,
) -> Corpus:
    """Write vocabulary, ``corpus.json`` and, last, the manifest; until then an older corpus stays valid."""
    try:
        old = read_about(folder)
    except CorpusError:
        old = {}
    manifest = manifest_bytes(rows)
    files = {MANIFEST: [hashlib.sha256(manifest).hexdigest()]}
    draft = None
    if vocabulary:
        train = [row for row in rows if row["split"] == "train"]
        content = hash_json([[row["id"], row["sha256"]] for row in train])
        about["vocabulary_of"] = content
        if not _vocabulary_is_current(folder, old, content):
            draft = vocabulary_draft(folder)
            places = pending.files()
            now = [{**row, "file": places.get(row["id"], row["file"])} for row in rows]
            corpus = Corpus(folder, pd.DataFrame(now))
            parts = _stream(corpus, train, progress)
            Vocabulary.from_slices(parts).to_parquet(draft)
        current = folder / VOCABULARY if draft is None else draft
        files[VOCABULARY] = [hash_file(current)]
    accepted = files
    if (folder / MANIFEST).is_file():  # until it is replaced, old and new tables are valid
        accepted = _with_old(files, old.get("files", {}))
    write_record(folder / ABOUT, {**about, "files": accepted})
    pending.take_place(folder)
    if draft is not None:
        draft.replace(folder / VOCABULARY)
    elif not vocabulary:
        (folder / VOCABULARY).unlink(missing_ok=True)
    write_bytes(folder / MANIFEST, manifest)
    if accepted != files:
        write_record(folder / ABOUT, {**about, "files": files})
    (folder / BUILDING).unlink(missing_ok=True)
    return Corpus.open(folder)


def _vocabulary_is_current(folder: Path, old: Record, content: str) -> bool:
    """Return whether the vocabulary that exists is undamaged, and of these training slices."""
    path = folder / VOCABULARY
    if old.get("vocabulary_of") != content or not path.is_file():
        return False
    hashes = old.get("files", {}).get(VOCABULARY, [])
    return hash_file(path) in hashes[:1]  # the first is that of these slices


def _with_old(files: dict[str, list[str]], old: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the hashes of new files, followed by those of the old ones."""
    both = {}
    for name, hashes in files.items():
        older = [digest for digest in old.get(name, []) if digest not in hashes]
        both[name] = hashes + older
    return both


def _stream(corpus: Corpus, train: list[Record], progress: Progress) -> Iterator[Slice]:
    """Yield the training slices in parts."""
    n_cells = sum(row["n_cells"] for row in train)
    with progress.stage("vocabulary", n_cells) as advance:
        for row in train:
            for part in corpus.parts(row["id"], PART_ROWS):
                yield part
                advance(part.n_cells)
