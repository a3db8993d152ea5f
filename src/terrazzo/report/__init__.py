"""The report: slices, results and losses as one HTML file that opens anywhere, offline."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from terrazzo.errors import ConfigError, InputError, OutputError
from terrazzo.files import hash_json, sweep, write_text
from terrazzo.marks import Mark, guard, mark_of
from terrazzo.models.inputs import check_image
from terrazzo.progress import Progress
from terrazzo.report.layouts import METHODS, Method
from terrazzo.report.packing import Blocks
from terrazzo.slices import Choices, Opened, open_slice, open_spatialdata, split_choices

if TYPE_CHECKING:
    from terrazzo.report.regions import Answer
    from terrazzo.report.slices import Settings, Sheet

__all__ = ["write"]


def write(
    sources: Sequence[Any] | Any,
    out: str | Path,
    *,
    title: str = "terrazzo report",
    about: str = "",
    genes: Sequence[str] = (),
    n_genes: int | None = None,
    embeddings: Sequence[str] | None = None,
    projection: Method = "auto",
    seed: int = 0,
    answer: Answer | None = None,
    progress: bool | None = None,
    overwrite: bool = False,
    **slice_options: Any,
) -> Path:
    """Write one self-contained HTML file about slices, results and runs.

    It opens on what was found (regions, types or domains that terrazzo wrote into ``obs``), beside histology or known
    labels, with a table. Below, slices are drawn to be panned, zoomed and pointed at, over their histology where there
    is some, colored by any label, domain, number or gene that the file holds, beside an embedding in two dimensions;
    what is selected on one is marked on the other. Folded below: gene coverage, provenance, tables of results with the
    published numbers apart, losses.

    Parameters
    ----------
    sources
        One or more of: slices (``.h5ad``, ``.zarr``, AnnData, SpatialData), results of tasks (a folder, or a
        ``TaskResult``), tables of ``terrazzo bench`` (``.json``), runs of ``terrazzo pretrain`` (a folder), logs and
        tables (``.csv``), and folders that hold such.
    out
        The ``.html`` file. Written whole or not at all.
    title, about
        Headline, and a paragraph below it.
    genes
        Symbols or Ensembl ids of genes that the file holds in any case.
    n_genes
        Genes in the file, for each slice: those with the strongest spatial pattern fill it up. None: all, up to 3
        million values; else 100. Fewer where cells are many (10 million values).
    embeddings
        ``obsm`` keys or ``"key:block"`` to draw; None: the first three that terrazzo wrote, or else named ``X_...``.
    projection
        ``"umap"``, ``"pca"`` (first two principal components), or ``"auto"``: UMAP up to 10,000 cells.
    seed
        Of UMAP and of samples.
    answer
        What :func:`terrazzo.regions` or :func:`terrazzo.types` found in these slices: adds marker genes to the table.
    progress
        Show progress bars; None: only on a terminal.
    overwrite
        Replace a file that is not a report of the same sources.
    **slice_options
        Passed to :meth:`terrazzo.Slice.from_anndata`; ``table``, ``region``, ``coordinate_system`` and ``image`` by
        name, as :class:`terrazzo.slices.Choices` has them. ``slice_key``, the column of ``obs`` that tells the sections
        of a slice apart: each has a part of the page.

    Returns
    -------
    The file.

    Raises
    ------
    InputError
        Nothing to show, or something that is neither a slice nor a result; a slice without coordinates; a gene or an
        embedding that was named is missing.
    ConfigError
        ``out`` is not an ``.html`` file; an impossible setting.
    OutputError
        The file cannot be written, or there is another one already.
    """
    from terrazzo.report import page, regions, slices
    from terrazzo.report.sources import check_number, collect

    target = Path(out)
    _check(target, n_genes, projection)
    is_one = isinstance(sources, str | Path | AnnData) or hasattr(sources, "tables")
    listed = [sources] if is_one else list(sources)
    found = collect(listed)
    named = _named(found.slices, answer)
    n_slices = len(found.slices)
    if slice_options.get("image") is not None and n_slices != 1:
        raise ConfigError(f"an image belongs to one slice; there are {n_slices}.")
    mark = _mark([source for _, source in found.slices] or listed)
    guard(target, mark, overwrite=overwrite)
    _check_place(target.parent)
    choices, rest = split_choices(slice_options)
    markers = regions.gene_names(answer)
    settings = slices.Settings(tuple(genes), n_genes, embeddings, projection, seed, rest, markers)
    blocks = Blocks()
    sheets = []
    with Progress(progress).stage("report", n_slices + 1, "parts") as advance:
        for name, source in named:
            with _naming(source, name):
                opened = _opened(source, name, choices)
                check_image(opened, slice_options)
                sheets += _sheets(opened, name, settings, blocks)
                check_number(len(sheets))
            advance(1)
        _check_genes(genes, sheets)
        notes = [f"not shown: {', '.join(found.skipped)}"] if found.skipped else []
        colors = regions.joint_colors([sheet.colors for sheet in sheets])
        for sheet in sheets:
            sheet.recolor(colors)
        names = [sheet.name for sheet in sheets]
        tables = regions.tables([sheet.found for sheet in sheets], names, colors, answer)
        text = page.render(
            sheets, tables, found.runs, found.results, blocks, title=title, about=about, notes=notes
        )
        text = text.replace(
            "</head>", f'<meta name="terrazzo-mark" content="{mark.text()}">\n</head>', 1
        )
        _write(text, target)
        advance(1)
    return target


def _mark(sources: Sequence[Any]) -> Mark:
    """Return the mark of a report: the paths of its slices, and the cells of those in memory."""
    paths = []
    in_memory = []
    for source in sources:
        if isinstance(source, str | Path):
            paths.append(Path(source))
        elif isinstance(source, AnnData):
            names = "\n".join(source.obs_names.astype(str))
            in_memory.append(hash_json([source.n_vars, names]))
        else:
            in_memory.append(type(source).__name__)
    return mark_of("report", paths, {"in memory": in_memory})


def _check_place(folder: Path) -> None:
    """Make the folder of the report, and see that it can be written, before the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder} could not be written ({error.strerror or error}).") from error
    sweep(folder)


def _named(slices: Sequence[tuple[str, Any]], answer: Answer | None) -> list[tuple[str, Any]]:
    """Return the slices with the names that they have in the answer."""
    if answer is None:
        return list(slices)
    names = {id(adata): name for adata, name in zip(answer.slices, answer.slice_names, strict=True)}
    return [(names.get(id(source), name), source) for name, source in slices]


def _sheets(opened: Opened, name: str, settings: Settings, blocks: Blocks) -> list[Sheet]:
    """Return the part of the page of a slice, or those of its sections."""
    from terrazzo.report.slices import sheet

    def sheet_of(one: Opened) -> Sheet:
        title = name if one.section is None else f"{name}, {one.section}"
        return sheet(one, title, settings, blocks)

    return opened.each(sheet_of)


def _opened(source: Any, name: str, choices: Choices) -> Opened:
    if isinstance(source, AnnData):
        return Opened(source, "AnnData", name, slice_key=choices.slice_key)
    if isinstance(source, Path):
        return open_slice(source, choices)
    return open_spatialdata(source, choices)


@contextmanager
def _naming(source: Any, name: str) -> Iterator[None]:
    """Put the file or name of a slice in front of what is wrong with it."""
    try:
        yield
    except InputError as error:
        where = str(source) if isinstance(source, Path) else name
        if str(error).startswith(where):
            raise
        raise type(error)(f"{where}: {error}") from error


def _check(target: Path, n_genes: int | None, projection: str) -> None:
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{target} must end in .html.")
    if n_genes is not None and n_genes < 0:
        raise ConfigError(f"n_genes is {n_genes}; it must be 0 or more.")
    if projection not in METHODS:
        raise ConfigError(f"projection is {projection!r}; it must be one of {', '.join(METHODS)}.")


def _check_genes(genes: Sequence[str], sheets: Sequence[Sheet]) -> None:
    for gene in genes:
        if sheets and all(gene in sheet.missing for sheet in sheets):
            hint = sheets[0].missing[gene]
            raise InputError(f"no slice has the gene {gene!r}.{hint}")


def _write(text: str, target: Path) -> None:
    try:
        write_text(target, text)
    except OSError as error:
        raise OutputError(f"{target} could not be written ({error.strerror or error}).") from error
