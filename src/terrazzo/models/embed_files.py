"""Embedding from files to files, atomic and resumable."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h5py
from anndata import AnnData

from terrazzo import keys
from terrazzo.errors import ConfigError, InputError, OutputError
from terrazzo.files import hash_json, hash_path, whole_file, why_not
from terrazzo.images import TissueImage
from terrazzo.models.base import FoundationModel
from terrazzo.models.baselines import Baseline
from terrazzo.models.inputs import check_image, open_data
from terrazzo.models.options import EmbedOptions, split_options
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
from terrazzo.slices.histology import files_beside
from terrazzo.slices.reading import recognize

__all__ = [
    "Done",
    "check_writable",
    "embed_files",
    "hash_input",
    "option_text",
    "plan_targets",
    "read_record",
    "write_atomically",
    "write_back",
    "write_opened",
]

logger = logging.getLogger(__name__)

# names in uns["terrazzo"][key], by which a finished file is recognized
INPUT_HASH = "input_sha256"

OPTIONS = "options"


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
        Replace files in ``out`` that terrazzo did not write.
    dry_run
        Only plan; nothing is written.
    keep_going
        Report a slice that cannot be used as ``"failed"`` and go on with the next, instead of raising.
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
    if not dry_run:
        check_writable(folder)
    if isinstance(model, Baseline):
        _fit_on_files(model, sources, options)
    job = _Job(
        model,
        key_added or model.default_key,
        options,
        overwrite=overwrite,
        dry_run=dry_run,
        announce=announce,
        progress=progress,
    )
    for source, target in targets:
        try:
            yield job.run(source, target)
        except InputError as error:
            if not keep_going:
                raise type(error)(f"{source}: {error}") from error
            yield Done(source, target, 0, "failed", str(error))


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
        deciding = {**self.options.deciding(), **slice_options}
        self.recorded = json.dumps(deciding, sort_keys=True, default=option_text)

    def run(self, source: Path, target: Path) -> Done:
        """Embed one slice, unless that was done before."""
        identity = {"checkpoint_sha256": self.model.fingerprint(), OPTIONS: self.recorded}
        before = _record_before(target, self.key, self.overwrite)
        with self.bars.stage(f"check {source.name}", None):
            identity[INPUT_HASH] = hash_input(source, self.choices)
        if before is not None and all(before.get(k) == v for k, v in identity.items()):
            return Done(source, target, int(before.get("n_cells", 0)), "unchanged")
        with self.bars.stage(f"read {source.name}", None):
            opened = open_slice(source, self.choices)
        check_image(opened, self.slice_options)
        notes = opened.each(lambda one: self._embed(one, source))
        adata = opened.adata
        if self.dry_run:
            return Done(source, target, adata.n_obs, "planned")
        record = adata.uns[keys.UNS][self.key]
        record.update(identity)
        record["n_cells"] = adata.n_obs
        with self.bars.stage(f"write {target.name}", None):
            write_opened(opened, target)
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
        prepared = self.model.prepare(tissue, self.options, obs=adata.obs)
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


def write_opened(opened: Opened, target: Path) -> None:
    """Write a slice with all additions to it: a SpatialData as a whole copy of its store, all else as ``.h5ad``.

    Raises
    ------
    OutputError
        It cannot be written; no incomplete file remains.
    """
    adata = opened.copy_results_to_table()
    if opened.store is not None and opened.table_name is not None:
        copy_with_table(opened.store, target, opened.table_name, adata)
    else:
        write_atomically(adata, target)


def write_back(adata: AnnData, target: Path, source: Path, **choices: str) -> None:
    """Write a slice that :func:`terrazzo.slices.read_anndata` read from a source, with all additions to it.

    Raises
    ------
    OutputError
        It cannot be written; no incomplete file remains.
    """
    if store_of(source) is None:
        write_atomically(adata, target)
        return
    opened = open_slice(source, Choices(**choices))
    write_opened(replace(opened, adata=adata), target)


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
    cosine = json.loads(record["details"]).get("bfloat16_min_cosine")
    if cosine is None:
        return ""
    return f"bfloat16: least cosine to float32 on sampled cells {cosine:.4f}"


def _record_before(target: Path, key: str, overwrite: bool) -> dict[str, Any] | None:
    """Return the record of an earlier run in the target; refuse to replace a file that terrazzo did not write."""
    record = read_record(target, key)
    if target.exists() and record is None and not overwrite:
        raise OutputError(
            f"{target} exists and was not written by terrazzo: choose another --out, or --overwrite."
        )
    return record


def plan_targets(sources: Sequence[str | Path], folder: Path) -> list[tuple[Path, Path]]:
    """Return (source, target) pairs; refuse two inputs for one output, and an output onto its input."""
    pairs: list[tuple[Path, Path]] = []
    seen: dict[Path, Path] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise InputError(f"{source} does not exist.{_nearest_hint(source)}")
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


def _nearest_hint(path: Path) -> str:
    """Return a hint on the file of the most similar name; "" where none is similar."""
    names = [one.name for one in path.parent.glob("*")]
    similar = difflib.get_close_matches(path.name, names, n=1)
    if not similar:
        return ""
    return f" Did you mean {path.with_name(similar[0])}?"


def check_writable(folder: Path) -> None:
    """Create the output folder and check that it can be written, before any work is done."""
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
    """Write ``.h5ad`` beside the target, then rename: the target is complete or does not exist.

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
