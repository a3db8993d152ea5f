"""Embedding from files to files: atomic, resumable, never half-written."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import h5py
from anndata import AnnData

from terrazzo import keys
from terrazzo.errors import ConfigError, InputError, OutputError
from terrazzo.files import hash_json, hash_path, whole_file, why_not
from terrazzo.images import TissueImage
from terrazzo.models.base import FoundationModel
from terrazzo.models.options import split_options
from terrazzo.progress import Progress
from terrazzo.safe_zarr import refuse_code
from terrazzo.sdata import TABLES
from terrazzo.slices import (
    Choices,
    Opened,
    Slice,
    content_files,
    copy_with_table,
    open_slice,
    split_choices,
    store_of,
)

logger = logging.getLogger(__name__)


INPUT_HASH, OPTIONS = (
    "input_sha256",
    "options",
)  # in uns["terrazzo"][key]: what a finished file is recognized by


@dataclass(frozen=True)
class Done:
    """One slice that is finished.

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
        What there is to say: why it failed, or the measured error of bfloat16.
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
        return f"{self.target}: {self.cells:,} cells embedded{self.note and f' ({self.note})'}"


def embed_files(
    model: FoundationModel,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    key_added: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    keep_going: bool = False,
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
        Any model with the verb ``embed``.
    sources
        ``.h5ad`` files, AnnData ``.zarr`` folders, vendors' folders, SpatialData stores (or a table of one).
    out
        Folder for ``<name>.h5ad``; of a SpatialData, for ``<name>.zarr``, a whole copy of it with its table changed.
    key_added
        ``obsm`` key; None: the model's own.
    overwrite
        Replace files in ``out`` that terrazzo did not write.
    dry_run
        Only plan; nothing is written.
    keep_going
        A slice that cannot be used is reported as ``"failed"`` and the next is taken, instead of raising.
    announce
        Called with each slice's plan (cells, sub-slices, coverage, time) before the work begins.
    progress
        Show progress bars; None: in a terminal and in a notebook.
    **options
        Of ``model.embed``.

    Yields
    ------
    One :class:`Done` a slice, in the order given.

    Raises
    ------
    InputError
        Two inputs share a name, or an input cannot be read.
    ConfigError
        One ``image=`` for several slices; an option that the model does not have.
    OutputError
        The folder or a file cannot be written; no half-written file stays.
    """
    folder = Path(out)
    if options.get("image") is not None and len(sources) > 1:
        raise ConfigError(
            f"one image cannot belong to {len(sources)} slices; embed them one by one."
        )
    targets = plan_targets(sources, folder)
    if not dry_run:
        check_writable(folder)
    job = _Job(
        model, key_added or model.default_key, options, overwrite, dry_run, announce, progress
    )
    for source, target in targets:
        try:
            yield job.run(source, target)
        except InputError as error:
            if not keep_going:
                raise type(error)(f"{source}: {error}") from error
            yield Done(source, target, 0, "failed", str(error))


class _Job:
    """What all slices of a call have in common."""

    def __init__(
        self,
        model: FoundationModel,
        key: str,
        options: dict[str, Any],
        overwrite: bool,
        dry_run: bool,
        announce: Callable[[str], None] | None,
        progress: bool | None,
    ) -> None:
        of_model, of_slice = split_options(options)
        self.model = model
        self.key = key
        self.options = model.options_class.checked(of_model, model.title)
        self.choices, self.of_slice = split_choices(of_slice)
        self.overwrite = overwrite
        self.dry_run = dry_run
        self.announce = announce
        self.bars = Progress(progress)
        deciding = {**self.options.deciding(), **of_slice}
        self.recorded = json.dumps(deciding, sort_keys=True, default=_option_text)

    def run(self, source: Path, target: Path) -> Done:
        """Embed one slice, unless that was done before."""
        wanted = {"checkpoint_sha256": self.model.fingerprint(), OPTIONS: self.recorded}
        finished = _finished(target, self.key, self.overwrite)
        with self.bars.stage(f"check {source.name}", None):
            wanted[INPUT_HASH] = _hash_input(source, self.choices)
        if finished is not None and all(finished.get(k) == v for k, v in wanted.items()):
            return Done(source, target, int(finished.get("n_cells", 0)), "unchanged")
        with self.bars.stage(f"read {source.name}", None):
            opened = open_slice(source, self.choices)
            tissue = Slice.from_opened(opened, **self.of_slice)
        adata = opened.adata
        prepared = self.model.prepare(tissue, self.options, obs=adata.obs)
        if self.announce is not None:
            for line in (*opened.notes, prepared.plan):
                self.announce(f"{source}: {line}")
        if self.dry_run:
            return Done(source, target, adata.n_obs, "planned")
        embedding = prepared.embed(self.bars)
        self.model.write(adata, tissue, prepared, embedding, self.key)
        record = adata.uns[keys.UNS][self.key]
        record.update(wanted)
        record["n_cells"] = adata.n_obs
        with self.bars.stage(f"write {target.name}", None):
            write_opened(opened, target)
        return Done(source, target, adata.n_obs, "embedded", _precision_note(record))


def write_opened(opened: Opened, target: Path) -> None:
    """Write a slice with what was added to it: a SpatialData as a whole copy of its store, all else as ``.h5ad``.

    Raises
    ------
    OutputError
        It cannot be written; nothing half-written stays.
    """
    adata = opened.copy_results_to_table()
    if opened.store is not None and opened.table_name is not None:
        copy_with_table(opened.store, target, opened.table_name, adata)
    else:
        write_atomically(adata, target)


def write_back(adata: AnnData, target: Path, source: Path, **choices: str) -> None:
    """Write a slice that :func:`terrazzo.slices.read_anndata` read from a source, with what was added to it since.

    Raises
    ------
    OutputError
        It cannot be written; nothing half-written stays.
    """
    if store_of(source) is None:
        write_atomically(adata, target)
    else:
        write_opened(replace(open_slice(source, Choices(**choices)), adata=adata), target)


def _hash_input(source: Path, choices: Choices) -> str:
    """Return the sha256 of what a slice is read from: one file or folder, or the parts of a store that belong to it."""
    if store_of(source) is None:
        return hash_path(source)
    return hash_json([hash_path(part) for part in content_files(source, choices)])


def _option_text(value: Any) -> Any:
    """Return what is recorded of an option: of an image its content and place, not where its file is."""
    if isinstance(value, TissueImage):
        place = [*value.scales.tolist(), *value.offset]
        return [value.content_hash, value.microns_per_pixel, *place]
    return str(value)


def _precision_note(record: dict[str, Any]) -> str:
    cosine = json.loads(record["details"]).get("bfloat16_min_cosine")
    return (
        "" if cosine is None else f"bfloat16: least cosine to float32 on sampled cells {cosine:.4f}"
    )


def _finished(target: Path, key: str, overwrite: bool) -> dict[str, Any] | None:
    """Return what an earlier run recorded in the target; refuse to replace a file that is not ours."""
    held = read_record(target, key)
    if target.exists() and held is None and not overwrite:
        raise OutputError(
            f"{target} exists and was not written by terrazzo: choose another --out, or --overwrite."
        )
    return held


def plan_targets(sources: Sequence[str | Path], folder: Path) -> list[tuple[Path, Path]]:
    """Return (source, target) pairs; refuse two inputs for one output, and an output onto its input."""
    pairs: list[tuple[Path, Path]] = []
    seen: dict[Path, Path] = {}
    for source in map(Path, sources):
        if not source.exists():
            near = difflib.get_close_matches(
                source.name, [path.name for path in source.parent.glob("*")], n=1
            )
            raise InputError(
                f"{source} does not exist.{f' Did you mean {source.with_name(near[0])}?' if near else ''}"
            )
        store = store_of(source)
        target = folder / (f"{source.stem}.h5ad" if store is None else f"{store.stem}.zarr")
        if target in seen:
            raise InputError(
                f"{seen[target]} and {source} would both be written to {target}: rename one, or use two output folders."
            )
        if target.exists() and target.resolve() == (store or source).resolve():
            raise InputError(
                f"{target} would overwrite its own input: choose another output folder."
            )
        seen[target] = source
        pairs.append((source, target))
    return pairs


def check_writable(folder: Path) -> None:
    """Make the output folder and prove that it can be written, before any work is done."""
    if folder.is_file():
        raise OutputError(f"{folder} is a file, and results need a folder: choose another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror or error}): choose another --out."
        ) from error


def write_atomically(adata: AnnData, target: Path) -> None:
    """Write ``.h5ad`` beside the target, then rename: the target is whole or is not there.

    Raises
    ------
    OutputError
        The disk is full, or the file cannot be written.
    """
    try:
        with whole_file(target) as draft:
            adata.write_h5ad(draft)
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
    with contextlib.suppress(OSError, KeyError), h5py.File(target, "r") as file:
        group = file["uns"][keys.UNS][key]
        if key in file["obsm"]:
            return {
                name: _scalar(value)
                for name, value in group.items()
                if isinstance(value, h5py.Dataset)
            }
    return None


def _read_store(target: Path, key: str) -> dict[str, Any] | None:
    """Read the newest provenance of the tables of a store."""
    import zarr
    from anndata.io import read_elem

    found: list[dict[str, Any]] = []
    for table in sorted((target / TABLES).glob("*")):
        with contextlib.suppress(OSError, KeyError, ValueError, InputError):
            folder = table / "uns" / keys.UNS / key
            refuse_code(folder)
            if (table / "obsm" / key).is_dir():
                held = read_elem(zarr.open_group(folder, mode="r", use_consolidated=False))
                found.append(
                    {name: value for name, value in held.items() if not isinstance(value, dict)}
                )
    return max(found, key=lambda one: str(one.get("date", "")), default=None)


def _scalar(value: h5py.Dataset) -> Any:
    held = value[()]
    return held.decode() if isinstance(held, bytes) else held
