"""Building a corpus: one task a slice, through Dask; then duplicates, splits, vocabulary, and the manifest last."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from terrazzo._version import __version__
from terrazzo.corpus.members import Job, make_member, remove_member
from terrazzo.corpus.recipes import Recipe, load_recipe, planned_sources
from terrazzo.corpus.scheduler import LOCK, alone, run_tasks
from terrazzo.corpus.sources import Orthologs, QualityControl, Source, fingerprint, gather
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
from terrazzo.errors import CorpusError, OutputError, TerrazzoWarning
from terrazzo.files import hash_file, hash_json, write_bytes, write_record
from terrazzo.genes import Vocabulary
from terrazzo.progress import Progress
from terrazzo.slices import Slice, read

PART_ROWS = 50_000
"""Cells that the vocabulary's pass holds at a time."""

_HELD_OUT_FIRST = {"test": 0, "validation": 1}
Record = dict[str, Any]


def build(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    min_genes: int | None = None,
    min_cells: int | None = None,
    orthologs: Mapping[str, str] | pd.DataFrame | str | os.PathLike[str] | None = None,
    vocabulary: bool = True,
    splits: Splits | None = None,
    exclude: Iterable[str | os.PathLike[str]] = (),
    skip_failed: bool = False,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: bool | None = None,
) -> Corpus:
    """Build a corpus from slices, or finish one whose build was stopped.

    Members that are there from the same source bytes and options, and are as they were written, are not made again.
    Building twice gives the same bytes.

    Parameters
    ----------
    sources
        Slices, folders and tables, see :func:`~terrazzo.corpus.sources.gather`; with a recipe, folders of downloads.
    out
        Folder of the corpus.
    recipe
        Which of the files belong to the corpus, and its quality control; a file or a :class:`Recipe`.
    min_genes, min_cells
        Expressed genes that a cell needs, cells that a slice needs. None: the recipe's, else 100 (SToFM) and 1.
    orthologs
        Two-column table from the genes of other organisms to those of the corpus.
    vocabulary
        Write ``vocab.parquet``: genes and medians of the training slices.
    splits
        How slices without a stated split are dealt; None: all train.
    exclude
        Slices whose content must not be in the corpus, under whatever name, e.g. those used for evaluation.
    skip_failed
        Leave out slices that cannot be read or used, with a warning, instead of stopping at the end.
    scheduler
        None: local processes; "synchronous": this process; else the address of a ``dask.distributed`` scheduler whose
        workers see the same folders.
    workers
        Local processes; None: one a core, at most one a slice. Each holds one slice.
    progress
        Show a bar; None: on a terminal.

    Raises
    ------
    CorpusError
        No slice left; several organisms and no ``orthologs``; slices that cannot be used; a folder that is no corpus,
        holds members that are not among the sources, or is being built by another process.
    OutputError
        The folder cannot be written, or the disk is full; what is finished is kept.
    """
    folder = Path(out)
    plan = load_recipe(recipe) if isinstance(recipe, str | os.PathLike) else recipe
    quality = _quality(plan, min_genes, min_cells)
    table = None if orthologs is None else Orthologs.from_table(orthologs)
    found = gather(sources) if plan is None else planned_sources(plan, sources)
    jobs = [Job(source, folder.absolute(), quality, table) for source in found]
    unwanted = _contents(exclude)
    _claim(folder)
    try:
        with alone(folder):
            _clear(folder, found)
            records = _run(jobs, table, scheduler, workers, Progress(progress))
            dropped = _settle(jobs, records, unwanted, skip_failed)
            _warn_poor(records, quality)
            _check_organisms(records)
            rows = _manifest(jobs, records, splits or Splits())
            about = _about(plan, quality, table, splits, dropped, records)
            return _finish(folder, rows, about, vocabulary, Progress(progress))
    except KeyboardInterrupt:
        _sweep(folder)
        raise
    except OSError as error:
        raise OutputError(
            f"{folder} could not be written ({error.strerror or error}). Finished slices are kept: run it again."
        ) from error


def _quality(plan: Recipe | None, min_genes: int | None, min_cells: int | None) -> QualityControl:
    base = QualityControl() if plan is None else plan.quality
    return QualityControl(
        base.min_genes if min_genes is None else min_genes,
        base.min_cells if min_cells is None else min_cells,
    )


def _contents(paths: Iterable[str | os.PathLike[str]]) -> dict[str, str]:
    """Return content -> name of the slices that must stay out."""
    given = list(paths)
    return {
        fingerprint(read(source.path)): str(source.path)
        for source in (gather(given) if given else [])
    }


def _claim(folder: Path) -> None:
    """Make the folder, and prove that it can be written; a foreign one stays as it is."""
    members = folder / MEMBERS
    if (
        folder.is_dir()
        and {path.name for path in folder.iterdir()} - {LOCK}
        and not members.is_dir()
    ):
        raise CorpusError(f"{folder} is not empty and is no corpus: choose another --out")
    try:
        members.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror or error}): choose another --out."
        ) from error


def _sweep(folder: Path) -> None:
    """Remove what is half-written."""
    for path in [*folder.glob(".*.part"), *(folder / MEMBERS).glob(".*.part")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _clear(folder: Path, sources: list[Source]) -> None:
    """Remove what a killed build left, and see that nothing in the folder is foreign."""
    _sweep(folder)
    members = folder / MEMBERS
    ids = {source.id for source in sources}
    strangers = sorted(path.stem for path in members.glob("*.zarr") if path.stem not in ids)
    if strangers:
        raise CorpusError(
            f"{folder} holds {len(strangers)} members that are not among the sources, e.g. {strangers[0]!r}: add them, "
            f"or choose another --out, or delete {MEMBERS}/{strangers[0]}.zarr"
        )
    for path in members.glob("*.json"):
        if (
            path.stem not in ids
        ):  # the record of a slice that was left out, and is no source any more
            path.unlink()


def _run(
    jobs: list[Job],
    table: Orthologs | None,
    scheduler: str | None,
    workers: int | None,
    progress: Progress,
) -> list[Record]:
    """Do the tasks; stop as soon as organisms contradict each other."""
    records: dict[str, Record] = {}
    with progress.stage("slices", len(jobs), "slices") as advance:
        for record in run_tasks(make_member, jobs, scheduler, workers):
            records[record["id"]] = record
            advance(1)
            if table is None:
                _check_organisms(list(records.values()))
    return [records[job.source.id] for job in jobs]


def _check_organisms(records: list[Record]) -> None:
    seen: dict[str, str] = {}
    for record in records:
        if record["status"] == "kept" and record["gene_organism"] != "unknown":
            seen.setdefault(record["gene_organism"], record["id"])
    if len(seen) > 1:
        shown = ", ".join(f"{organism} ({id})" for organism, id in sorted(seen.items()))
        raise CorpusError(
            f"the slices are of several organisms: {shown}. Pass a table of orthologs (--orthologs, two columns: mouse "
            "gene, human gene), state organism in the table of sources if one is wrong, or build one corpus each."
        )


def _settle(
    jobs: list[Job], records: list[Record], unwanted: Mapping[str, str], skip_failed: bool
) -> list[Record]:
    """Refuse duplicates, the held-out one of them last; return what is left out, and say it."""
    failed = [record for record in records if record["status"] == "failed"]
    if failed and not skip_failed:
        lines = "".join(f"\n  {record['id']}: {record['reason']}" for record in failed[:20])
        raise CorpusError(
            f"{len(failed)} of {len(records)} slices cannot be used; the others are done and kept. Mend these or leave "
            f"them out (--skip-failed), and run it again:{lines}"
        )
    first: dict[str, str] = {}
    order = sorted(
        range(len(jobs)), key=lambda i: _HELD_OUT_FIRST.get(jobs[i].source.split or "", 2)
    )
    for at in order:
        record, job = records[at], jobs[at]
        if record["status"] not in ("kept", "duplicate"):
            continue
        content = record["content"]
        if content in unwanted:
            reason = f"its content is that of {unwanted[content]}, which is excluded"
        elif content in first:
            reason = f"duplicate of {first[content]}: the same counts and coordinates"
        else:
            first[content] = record["id"]
            if record["status"] == "duplicate":  # of a slice that is no source any more
                job.sidecar.unlink()
                records[at] = make_member(job)
            continue
        if record["status"] == "duplicate" and record["reason"] == reason:
            continue
        remove_member(job.out, record["id"])
        kept = {name: record[name] for name in ("id", "options", "source_sha256", "content")}
        records[at] = {**kept, "status": "duplicate", "reason": reason, "made": True}
        write_record(job.sidecar, {k: v for k, v in records[at].items() if k != "made"})
    dropped = [
        {
            "id": record["id"],
            "source": str(job.source.path),
            "status": record["status"],
            "reason": record["reason"],
        }
        for record, job in zip(records, jobs, strict=True)
        if record["status"] != "kept"
    ]
    lines = "; ".join(f"{row['id']}: {row['reason']}" for row in dropped[:20])
    if len(dropped) == len(records):
        poor = any(record["status"] == "dropped" for record in records)
        mend = ". Small panels need a smaller --min-genes (and --min-cells)" if poor else ""
        raise CorpusError(f"no slice is left: {lines}{mend}")
    if dropped:
        more = f" and {len(dropped) - 20} more (corpus.json lists all)" if len(dropped) > 20 else ""
        warnings.warn(
            f"{len(dropped)} slices are left out: {lines}{more}", TerrazzoWarning, stacklevel=3
        )
    return dropped


def _warn_poor(records: list[Record], quality: QualityControl) -> None:
    """Say where most cells are lost: a limit for whole transcriptomes on a small panel, more often than bad tissue."""
    poor = [r for r in records if r["status"] == "kept" and 2 * r["n_cells"] < r["n_cells_read"]]
    if poor:
        first = poor[0]
        warnings.warn(
            f"{len(poor)} slices lose more than half of their cells, e.g. {first['id']}: {first['n_cells']:,} of "
            f"{first['n_cells_read']:,} have at least {quality.min_genes} expressed genes. Small panels need a smaller "
            "--min-genes",
            TerrazzoWarning,
            stacklevel=3,
        )


def _manifest(jobs: list[Job], records: list[Record], splits: Splits) -> list[Record]:
    rows, stated = [], []
    for job, record in zip(jobs, records, strict=True):
        if record["status"] != "kept":
            continue
        facts = {name: record[name] for name in COLUMNS if name in record}
        told = {name: getattr(job.source, name) or record[name] for name in ("tissue", "donor")}
        where = {"file": f"{MEMBERS}/{job.source.id}.zarr", "source": str(job.source.path)}
        rows.append({**facts, **told, **where, "origin": job.source.origin or ""})
        stated.append(job.source.split)
    dealt = assign([row["id"] for row in rows], [row["donor"] for row in rows], stated, splits)
    return [{**row, "split": split} for row, split in zip(rows, dealt, strict=True)]


def _about(
    plan: Recipe | None,
    quality: QualityControl,
    table: Orthologs | None,
    splits: Splits | None,
    dropped: list[Record],
    records: list[Record],
) -> Record:
    notes = {
        record["id"]: record["notes"]
        for record in records
        if record["status"] == "kept" and record["notes"]
    }
    return {
        "format_version": FORMAT_VERSION,
        "terrazzo_version": __version__,
        "recipe": None if plan is None else plan.to_dict(),
        "options": {
            "min_genes": quality.min_genes,
            "min_cells": quality.min_cells,
            "orthologs_sha256": None if table is None else table.content_hash(),
            "splits": None if splits is None else vars(splits),
        },
        "dropped": dropped,
        "notes": notes,
    }


def _finish(
    folder: Path, rows: list[Record], about: Record, vocabulary: bool, progress: Progress
) -> Corpus:
    """Write vocabulary, ``corpus.json`` and, last, the manifest; until then an older manifest stays valid."""
    try:
        old = read_about(folder)
    except CorpusError:
        old = {}
    manifest = manifest_bytes(rows)
    files = {MANIFEST: [hashlib.sha256(manifest).hexdigest()]}
    draft = None
    if vocabulary:
        train = [row for row in rows if row["split"] == "train"]
        about["vocabulary_of"] = hash_json([[row["id"], row["sha256"]] for row in train])
        held, known = (
            folder / VOCABULARY,
            old.get("files", {}).get(VOCABULARY, [])[:1],
        )  # the first is that of these
        if (
            old.get("vocabulary_of") != about["vocabulary_of"]
            or not held.is_file()
            or hash_file(held) not in known
        ):
            draft = folder / f".{VOCABULARY}.part"
            Vocabulary.from_slices(
                _stream(Corpus(folder, pd.DataFrame(rows)), train, progress)
            ).to_parquet(draft)
        files[VOCABULARY] = [hash_file(draft or held)]
    both = dict(files)
    if (folder / MANIFEST).is_file():
        both = {
            name: list(dict.fromkeys([*new, *old.get("files", {}).get(name, [])]))
            for name, new in files.items()
        }
    write_record(folder / ABOUT, {**about, "files": both})
    if draft is not None:
        draft.replace(folder / VOCABULARY)
    elif not vocabulary:
        (folder / VOCABULARY).unlink(missing_ok=True)
    write_bytes(folder / MANIFEST, manifest)
    if both != files:
        write_record(folder / ABOUT, {**about, "files": files})
    return Corpus.open(folder)


def _stream(corpus: Corpus, train: list[Record], progress: Progress) -> Iterator[Slice]:
    with progress.stage("vocabulary", sum(row["n_cells"] for row in train)) as advance:
        for row in train:
            for part in corpus.parts(row["id"], PART_ROWS):
                yield part
                advance(part.n_cells)
