"""Embedding from files to files, atomic and resumable."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h5py
from anndata import AnnData

from terrazzo import keys, records
from terrazzo.errors import ConfigError, InputError, OutputError, TerrazzoError
from terrazzo.files import hash_json, hash_path, sweep, whole_file, why_not
from terrazzo.images import TissueImage
from terrazzo.marks import Mark, find_mark, guard, mark_file, mark_of
from terrazzo.models.base import FoundationModel
from terrazzo.models.baselines import Baseline
from terrazzo.models.inputs import check_image, open_data
from terrazzo.models.options import EmbedOptions, split_options
from terrazzo.progress import Progress
from terrazzo.safe_hdf5 import open_file
from terrazzo.safe_zarr import refuse_code
from terrazzo.sdata import TABLES
from terrazzo.slices import (
    Choices,
    Opened,
    Slice,
    content_files,
    copy_with_table,
    open_slice,
    sample_name,
    split_choices,
    store_of,
)
from terrazzo.slices.apart import died_at, in_work, read_apart
from terrazzo.slices.histology import files_beside
from terrazzo.slices.reading import recognize
from terrazzo.slices.writable import check_space, make_writable

__all__ = [
    "Done",
    "check_writable",
    "embed_files",
    "hash_input",
    "option_text",
    "plan_targets",
    "read_record",
    "result_names",
    "writable",
    "write_atomically",
    "write_back",
    "write_opened",
]

logger = logging.getLogger(__name__)

# names in uns["terrazzo"][key], by which a finished file is recognized
INPUT_HASH = "input_sha256"

OPTIONS = "options"

_PROOF = 2**16  # bytes by which a full disk is noticed


@dataclass(frozen=True)
class Done:
    """The result of one slice.

    Attributes
    ----------
    source, target
        Input and output file.
    cells
        Number of cells.
    status
        ``"embedded"`` now; ``"unchanged"``: finished before from the same input, model and options; ``"planned"``: a
        dry run; ``"failed"``: the slice cannot be used.
    note
        Why it failed, or the measured error of bfloat16.
    """

    source: Path
    target: Path
    cells: int
    status: Literal["embedded", "unchanged", "planned", "failed"]
    note: str = ""

    def __str__(self) -> str:
        """One line for the terminal."""
        if self.status == "planned":
            return f"{self.source}: not done (dry run); would go to {self.target}"
        if self.status == "unchanged":
            return (
                f"{self.target}: finished before from the same input, model and options; left alone"
            )
        if self.status == "failed":
            return f"{self.source}: failed: {self.note}"
        note = f" ({self.note})" if self.note else ""
        return f"{self.target}: {self.cells:,} cells embedded{note}"


def embed_files(
    model: FoundationModel | Baseline,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    key_added: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    keep_going: bool = False,
    read_apart: bool = False,
    announce: Callable[[str], None] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Iterator[Done]:
    """Embed slices from files and write each, with its vectors, into a folder.

    A file that was finished before from the same input, model and options is recognized and left alone, so that an
    interrupted run continues where it stopped.

    Parameters
    ----------
    model
        Any foundation model; or a baseline, which is fitted on all sources together, unless it is fitted already.
    sources
        ``.h5ad`` files, AnnData ``.zarr`` folders, vendors' folders, SpatialData stores (or a table of one).
    out
        Folder for ``<name>.h5ad``; of a SpatialData, for ``<name>.zarr``, a whole copy of it with its table changed.
    key_added
        ``obsm`` key; None: the model's own.
    overwrite
        Replace files in ``out`` that terrazzo did not write, or that it made from other slices.
    dry_run
        Only plan; nothing is written.
    keep_going
        Report a slice that cannot be used as ``"failed"`` and go on with the next, instead of raising.
    read_apart
        Read each slice once before in a process of its own, so that one on which a library crashes fails like any
        other. A slice in whose work an earlier run of the same ``out`` died is always read so.
    announce
        Called with each slice's plan (cells, sub-slices, coverage, time) before it is embedded.
    progress
        Show progress bars; None: in a terminal and in a notebook.
    **options
        Of ``model.embed``.

    Yields
    ------
    One :class:`Done` a slice, in the order of ``sources``.

    Raises
    ------
    InputError
        Two inputs share a name, or an input cannot be read.
    ConfigError
        One ``image=`` for several slices; an option that the model does not have.
    OutputError
        The folder or a file cannot be written; no incomplete file remains.
    """
    folder = Path(out)
    if options.get("image") is not None and len(sources) > 1:
        raise ConfigError(
            f"one image cannot belong to {len(sources)} slices; embed them one by one."
        )
    targets = plan_targets(sources, folder)
    job = _Job(
        model,
        key_added or model.default_key,
        options,
        overwrite=overwrite,
        dry_run=dry_run,
        announce=announce,
        progress=progress,
        read_apart=read_apart,
    )
    for source, target in targets:
        job.check(source, target)
    if not dry_run:
        check_writable(folder)
    if isinstance(model, Baseline):
        _fit_on_files(model, sources, options)
    for source, target in targets:
        try:
            yield job.run(source, target)
        except (TerrazzoError, MemoryError) as error:
            if not keep_going:
                if isinstance(error, InputError):
                    raise type(error)(f"{source}: {error}") from error
                raise
            yield Done(source, target, 0, "failed", str(error) or "not enough memory")
        except Exception as error:
            if not keep_going:
                raise
            logger.debug("%s", source, exc_info=True)
            note = f"unexpected error: {type(error).__name__}: {error}"
            yield Done(source, target, 0, "failed", note)


class _Job:
    """One call of :func:`embed_files`; arguments as there."""

    def __init__(
        self,
        model: FoundationModel | Baseline,
        key: str,
        options: dict[str, Any],
        *,
        overwrite: bool,
        dry_run: bool,
        announce: Callable[[str], None] | None,
        progress: bool | None,
        read_apart: bool,
    ) -> None:
        model_options, slice_options = split_options(options)
        self.model = model
        self.key = key
        options_class = EmbedOptions if isinstance(model, Baseline) else model.options_class
        self.options = options_class.checked(model_options, model.title)
        self.choices, self.slice_options = split_choices(slice_options)
        self.overwrite = overwrite
        self.dry_run = dry_run
        self.announce = announce
        self.bars = Progress(progress)
        self.read_apart = read_apart
        deciding = {**self.options.deciding(), **slice_options}
        self.recorded = json.dumps(deciding, sort_keys=True, default=option_text)

    def check(self, source: Path, target: Path) -> None:
        """Refuse to replace what is not an earlier result of the same slice, before any work.

        Raises
        ------
        OutputError
            As :func:`terrazzo.marks.guard`; an embedding under another key, which would be lost.
        """
        record = read_record(target, self.key)
        if record is not None and find_mark(target) is None:
            return  # saved again by others; recognized by its record, if at all
        guard(target, self._mark(source), overwrite=self.overwrite)
        if record is None and target.exists() and not self.overwrite:
            raise OutputError(
                f"{target} has no {self.key}, but other results of terrazzo, which would be lost: choose another "
                "--out, or replace it with --overwrite (overwrite=True)."
            )

    def _mark(self, source: Path) -> Mark:
        return mark_of("embed", [source], vars(self.choices))

    def run(self, source: Path, target: Path) -> Done:
        """Embed one slice, unless that was done before."""
        identity = {"checkpoint_sha256": self.model.fingerprint(), OPTIONS: self.recorded}
        before = read_record(target, self.key)
        with self.bars.stage(f"check {source.name}", None):
            identity[INPUT_HASH] = hash_input(source, self.choices)
        if before is not None and all(before.get(k) == v for k, v in identity.items()):
            if not self.dry_run:
                died_at(target)  # after it was done: its note goes
            return Done(source, target, int(before.get("n_cells", 0)), "unchanged")
        if before is None or before.get(INPUT_HASH) != identity[INPUT_HASH]:
            guard(target, self._mark(source), overwrite=self.overwrite)
        if self.dry_run:
            return self._do(source, target, identity)
        with in_work(target, source) as has_died:
            if has_died or self.read_apart:
                with self.bars.stage(f"read {source.name} apart", None):
                    read_apart(source, self.choices, self.slice_options)
            return self._do(source, target, identity)

    def _do(self, source: Path, target: Path, identity: dict[str, Any]) -> Done:
        """Read, embed and write one slice."""
        with self.bars.stage(f"read {source.name}", None):
            opened = open_slice(source, self.choices)
            changes = writable(opened)
        check_image(opened, self.slice_options)
        if self.announce is not None:
            for line in changes:
                self.announce(f"{source}: {line}")
        if not self.dry_run:
            check_space(opened.adata, target.parent)
        notes = opened.each(lambda one: self._embed(one, source))
        adata = opened.adata
        if self.dry_run:
            return Done(source, target, adata.n_obs, "planned")
        record = adata.uns[keys.UNS][self.key]
        record.update(identity)
        record["n_cells"] = adata.n_obs
        with self.bars.stage(f"write {target.name}", None):
            write_opened(opened, target, self._mark(source))
        return Done(source, target, adata.n_obs, "embedded", max(notes, key=len))

    def _embed(self, opened: Opened, source: Path) -> str:
        """Embed a slice, or one section of several, in its AnnData; return the note on its precision."""
        with self.bars.stage(f"check {opened.name}", None):
            tissue = Slice.from_opened(opened, **self.slice_options)
        adata = opened.adata
        where = source if opened.section is None else f"{source}: {opened.section}"
        if isinstance(self.model, Baseline):
            plan = f"{tissue.n_cells:,} cells, {self.model.title}"
            self._announce(where, [*opened.notes, tissue.sections, plan])
            if not self.dry_run:
                self.model.write(adata, tissue, self.model.transform(tissue), self.key)
            return ""
        prepared = self.model.ready(tissue, self.options, obs=adata.obs)
        self._announce(where, [*opened.notes, tissue.sections, prepared.plan])
        if self.dry_run:
            return ""
        embedding = prepared.embed(self.bars)
        self.model.write(adata, tissue, prepared, embedding, self.key)
        return _precision_note(adata.uns[keys.UNS][self.key])

    def _announce(self, where: Any, lines: Sequence[Any]) -> None:
        if self.announce is not None:
            for line in filter(None, lines):
                self.announce(f"{where}: {line}")


def _fit_on_files(
    baseline: Baseline, sources: Sequence[str | Path], options: dict[str, Any]
) -> None:
    """Fit a baseline on all slices that can be read; the others are reported where they are embedded."""
    if baseline.fitted_on:
        return
    _, slice_options = split_options(options)
    tissues: list[Slice] = []
    for source in sources:
        with contextlib.suppress(InputError):
            opened, remaining = open_data(source, slice_options)
            tissues += opened.each(partial(Slice.from_opened, **remaining))
    if tissues:
        baseline.fit(tissues)


def writable(opened: Opened) -> list[str]:
    """Prove that a slice can be written, with the table that it belongs to; return what was changed for that.

    Raises
    ------
    InputError
        As :func:`terrazzo.slices.writable.make_writable`.
    """
    notes = make_writable(opened.adata)
    table = opened.source_table
    if table is not None and table is not opened.adata:
        notes += make_writable(table)
    return list(dict.fromkeys(notes))


def write_opened(opened: Opened, target: Path, mark: Mark | None = None) -> None:
    """Write a slice with all additions to it: a SpatialData as a whole copy of its store, all else as ``.h5ad``.

    Raises
    ------
    OutputError
        It cannot be written; no incomplete file remains.
    """
    adata = opened.copy_results_to_table()
    if opened.store is not None and opened.table_name is not None:
        copy_with_table(opened.store, target, opened.table_name, adata, mark)
    else:
        write_atomically(adata, target, mark)


def write_back(
    adata: AnnData, target: Path, source: Path, mark: Mark | None = None, **choices: str
) -> None:
    """Write a slice that :func:`terrazzo.slices.read_anndata` read from a source, with all additions to it.

    Raises
    ------
    OutputError
        It cannot be written; no incomplete file remains.
    """
    if store_of(source) is None:
        write_atomically(adata, target, mark)
        return
    opened = open_slice(source, Choices(**choices))
    writable(opened)
    write_opened(replace(opened, adata=adata), target, mark)


def hash_input(source: Path, choices: Choices) -> str:
    """Return the sha256 of a slice's input: one file or folder, or the parts of a store that belong to it."""
    if store_of(source) is None:
        beside = files_beside(source) if recognize(source) is None else []
        if not beside:
            return hash_path(source)
        return hash_json([hash_path(part) for part in (source, *beside)])
    return hash_json([hash_path(part) for part in content_files(source, choices)])


def option_text(value: Any) -> Any:
    """Return an option as it is recorded: of an image its content and place, not the path of its file."""
    if isinstance(value, TissueImage):
        place = [*value.scales.tolist(), *value.offset]
        return [value.content_hash, value.microns_per_pixel, *place]
    return str(value)


def _precision_note(record: dict[str, Any]) -> str:
    cosine = records.parsed(record, "details").get("bfloat16_min_cosine")
    if not isinstance(cosine, int | float):
        return ""
    return f"bfloat16: least cosine to float32 on sampled cells {cosine:.4f}"


def plan_targets(sources: Sequence[str | Path], folder: Path) -> list[tuple[Path, Path]]:
    """Return (source, target) pairs; refuse two inputs for one output, and an output onto its input.

    A result has the name of its slice's file; of a folder with a generic name, such as ``outs``, that of the folder
    above; of several files with one generic name, such as ``slice.h5ad``, those of their folders.
    """
    paths = [Path(source) for source in sources]
    for source in paths:
        if not source.exists():
            raise InputError(f"{source} does not exist.{_nearest_hint(source)}")
    pairs: list[tuple[Path, Path]] = []
    seen: dict[str, Path] = {}
    for source, name in zip(paths, result_names(paths), strict=True):
        target = folder / name
        key = unicodedata.normalize("NFC", name).casefold()  # one file to some file systems
        if key in seen:
            raise InputError(
                f"{seen[key]} and {source} would both be written to {target}: rename one, or use two output folders."
            )
        if target.exists() and target.resolve() == (store_of(source) or source).resolve():
            raise InputError(
                f"{target} would overwrite its own input: choose another output folder."
            )
        seen[key] = source
        pairs.append((source, target))
    return pairs


def result_names(sources: Sequence[Path]) -> list[str]:
    """Return the name of each source's result, with its ending."""
    names = []
    endings = []
    for source in sources:
        store = store_of(source)
        names.append(sample_name(source) if store is None else store.stem)
        endings.append(".h5ad" if store is None else ".zarr")
    times = Counter(name.casefold() for name in names)
    out = []
    for source, name, ending in zip(sources, names, endings, strict=True):
        if times[name.casefold()] > 1:
            name = sample_name(source, of_files=True)
        out.append(f"{name}{ending}")
    return out


def _nearest_hint(path: Path) -> str:
    """Return a hint on the file of the most similar name; "" where none is similar."""
    names = [one.name for one in path.parent.glob("*")]
    similar = difflib.get_close_matches(path.name, names, n=1)
    if not similar:
        return ""
    return f" Did you mean {path.with_name(similar[0])}?"


def check_writable(folder: Path) -> None:
    """Create the output folder and check that it can be written, before any work is done; sweep old drafts."""
    if folder.is_file():
        raise OutputError(f"{folder} is a file, and results need a folder: choose another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROOF))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({_reason(error)}): choose another --out."
        ) from error
    sweep(folder)


def _reason(error: OSError) -> str:
    reason = why_not(error)
    return reason if reason != str(error) else error.strerror or reason


def write_atomically(adata: AnnData, target: Path, mark: Mark | None = None) -> None:
    """Write ``.h5ad`` beside the target, then rename: the target is complete or does not exist.

    Raises
    ------
    OutputError
        The disk is full, or the file cannot be written.
    """
    try:
        with whole_file(target) as draft:
            adata.write_h5ad(draft)
            if mark is not None:
                mark_file(draft, mark)
    except OSError as error:
        raise OutputError(
            f"{target} could not be written: {why_not(error)}. Nothing of it was kept; finished slices are safe."
        ) from error


def read_record(target: Path, key: str) -> dict[str, Any] | None:
    """Read the provenance of ``obsm[key]`` from a file or store without loading it; None where there is none."""
    if target.is_dir():
        return _read_store(target, key)
    if not target.is_file():
        return None
    with contextlib.suppress(OSError, KeyError, InputError), open_file(target) as file:
        group = file["uns"][keys.UNS][key]
        if key in file["obsm"]:
            record = {}
            for name, value in group.items():
                if isinstance(value, h5py.Dataset):
                    record[name] = _scalar(value)
            return record
    return None


def _read_store(target: Path, key: str) -> dict[str, Any] | None:
    """Read the newest provenance of the tables of a store."""
    import zarr
    from anndata.io import read_elem

    records: list[dict[str, Any]] = []
    for table in sorted((target / TABLES).glob("*")):
        with contextlib.suppress(OSError, KeyError, ValueError, InputError):
            folder = table / "uns" / keys.UNS / key
            refuse_code(folder)
            if (table / "obsm" / key).is_dir():
                stored = read_elem(zarr.open_group(folder, mode="r", use_consolidated=False))
                scalars = {k: v for k, v in stored.items() if not isinstance(v, dict)}
                records.append(scalars)
    return max(records, key=lambda record: str(record.get("date", "")), default=None)


def _scalar(dataset: h5py.Dataset) -> Any:
    value = dataset[()]
    return value.decode() if isinstance(value, bytes) else value
