"""Verbs that predict expression: impute, reconstruct, predict-genes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from terrazzo.cli.options import (
    SCORES,
    TASKS,
    Batch,
    Head,
    Out,
    Overwrite,
    Planned,
    Runs,
    Seed,
    SliceKey,
    SlicePart,
    Test,
    check_results,
    file_of_section,
    key_of,
    only_one,
    plan,
    read_slice,
    report,
    say,
    say_aside,
    sections_of,
    working,
    write_slice,
)

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["register"]


def register(app: App) -> None:
    """Add the verbs to the command line."""
    for verb in (impute, reconstruct, predict_genes):
        app.command(verb, group=TASKS)


def impute(
    slices: Annotated[
        list[Path], Parameter(help="Slices with raw counts; --test adds the one to score on.")
    ],
    /,
    *,
    model: Annotated[
        str,
        Parameter(
            help="Checkpoint folder, organization/name on the hub, or a baseline (z50, ...)."
        ),
    ],
    out: Out,
    n_genes: Annotated[int, Parameter(help="Genes hidden, drawn among those with counts.")] = 50,
    gene: Annotated[
        list[str] | None, Parameter(help="Hide this gene (repeatable), in place of a draw.")
    ] = None,
    head: Head = "mlp3",
    test: Test = None,
    runs: Runs = 3,
    part: SlicePart | None = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Hide genes of a panel, embed slices without them, and predict them.

    Example: terrazzo impute a.h5ad --test b.h5ad --model checkpoint --out imputed
    """
    import terrazzo as tz
    from terrazzo.slices.sections import NO_KEY
    from terrazzo.tasks.by_section import joined

    if test is None:
        only_one(slices)
    paths = slices if test is None else [*slices, test]
    mark = check_results(out / "scores", "impute", paths, part, overwrite=overwrite)
    loaded = [read_slice(path, part) for path in paths]
    names = list(sections_of(loaded[-1], part))
    hidden = tz.tasks.hide_genes(loaded, n_genes, genes=gene, seed=seed, slice_key=key_of(part))
    n_scored = len(names)
    training = hidden if test is None else hidden[:-n_scored]
    embedder: Any
    if "/" in model or Path(model).is_dir():
        with working(f"load {model}"):
            embedder = tz.load(model)
    else:
        visible = [one.visible for one in training]
        with working(f"fit {model}"):
            embedder = tz.Baseline(model).fit(visible, slice_key=NO_KEY)
    with working("embed the visible genes", len(hidden)) as advance:
        for one in hidden:
            embedder.embed(one.visible, key_added="X_visible", slice_key=NO_KEY)
            advance(1)
    options: dict[str, Any] = {"use_rep": "X_visible", "head": head, "runs": runs, "seed": seed}
    results = {}
    for name, one in zip(names, hidden[-n_scored:], strict=True):
        if test is not None:
            results[name] = tz.tasks.impute(training, test=one, **options)
        else:
            results[name] = tz.tasks.impute(one, **options)
    result = joined(results, key_of(part))
    report(result, out / "scores", mark, overwrite=overwrite)


def reconstruct(
    path: Annotated[Path, Parameter(name="slice", help="Slice with raw counts.")],
    /,
    *,
    model: Annotated[
        str, Parameter(help="Checkpoint folder of ST as images, or organization/name on the hub.")
    ],
    out: Out,
    size: Annotated[
        list[int] | None,
        Parameter(help="Sides of the hidden square, in sites; default 8.", consume_multiple=True),
    ] = None,
    n_genes: Annotated[
        int, Parameter(help="Genes predicted: the most variable of the visible tissue.")
    ] = 512,
    choose: Annotated[
        Literal["variance", "dispersion"],
        Parameter(help="How variable: on its own, or for a gene of its mean."),
    ] = "variance",
    repeats: Annotated[int, Parameter(group=SCORES, help="Squares of each size.")] = 20,
    layout: Annotated[
        Literal["auto", "hex", "square", "rank", "bin"], Parameter(help="Grid of the slice.")
    ] = "auto",
    bin_um: Annotated[float, Parameter(help="Side of a bin, for slices without a lattice.")] = 0.0,
    part: SlicePart | None = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Hide squares of a slice and predict them; scores beside trivial predictions.

    Example: terrazzo reconstruct a.h5ad --model checkpoint --size 4 8 16 --out reconstructed
    """
    import terrazzo as tz
    from terrazzo.marks import guard
    from terrazzo.slices.sections import NO_KEY
    from terrazzo.tasks.by_section import joined

    mark = check_results(out / "scores", "reconstruct", [path], part, overwrite=overwrite)
    guard(out / "hidden.png", mark, overwrite=overwrite)
    loaded: Any = tz.load(model)
    adata = read_slice(path, part)
    if not hasattr(loaded, "reconstruct"):
        raise tz.errors.ConfigError(
            f"{model} holds a {loaded.title}, which cannot fill in hidden tissue: pass one of ST as images."
        )
    # of the model; what is not set is as in training; what it is shown is of one section
    grid: dict[str, Any] = {"slice_key": NO_KEY}
    if layout != "auto":
        grid["layout"] = layout
    if bin_um:
        grid["bin_um"] = bin_um

    def predict(shown: AnnData, hidden: Any, genes: list[str]) -> Any:
        return loaded.reconstruct(shown, hidden, genes, **grid)

    title = loaded.title if loaded.trained else f"{loaded.title} (untrained)"
    options: dict[str, Any] = {
        "n_genes": n_genes,
        "choose": choose,
        "repeats": repeats,
        "seed": seed,
        "layout": layout,
        "bin_um": bin_um,
    }
    results = {}
    for name, section in sections_of(adata, part).items():
        options["slice_key"] = key_of(part) if name is None else None
        results[name] = tz.tasks.reconstruct(section, {title: predict}, size=size or 8, **options)
    report(joined(results, key_of(part)), out / "scores", mark, overwrite=overwrite)
    for name, result in results.items():
        target = file_of_section(out / "hidden.png", name)
        figure = tz.plot.reconstruction(result)
        tz.plot.save(figure, target, mark=mark, overwrite=overwrite)
        say(f"Figure of one square: {target}")


def predict_genes(
    slices: Annotated[list[Path], Parameter(help="Training slices with counts and histology.")],
    /,
    *,
    predict: Annotated[
        list[Path],
        Parameter(
            help="Slices with histology; scored where they have the genes.", consume_multiple=True
        ),
    ],
    out: Out,
    model: Annotated[
        str,
        Parameter(
            help="efficientnet-lite0-own (by slice), checkpoint of ST-Align, folder of a vision model, or colors."
        ),
    ] = "efficientnet-lite0-own",
    genes: Annotated[
        Path | None, Parameter(help="Genes to predict, a file with one a line.")
    ] = None,
    gene: Annotated[list[str] | None, Parameter(help="A gene to predict (repeatable).")] = None,
    n_genes: Annotated[
        int, Parameter(help="Number of genes where none is named: the most variable of SLICES.")
    ] = 50,
    scale: Annotated[
        Literal["10000", "median"],
        Parameter(help="Counts are scaled to 10,000, or to each slice's median total."),
    ] = "10000",
    head: Head = "linear",
    slice_key: SliceKey = None,
    cache: Annotated[
        Path | None, Parameter(help="Folder to store the features of frozen encoders in.")
    ] = None,
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1, ...")] = "cpu",
    runs: Runs = 3,
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Predict expression from histology, as obsm["expression_predicted"], with scores.

    An image is in a slice's uns["spatial"], or beside its file: NAME.json with image and scale.

    Example: terrazzo predict-genes a.h5ad --gene MOBP --predict b.h5ad --out predicted
    """
    import terrazzo as tz
    from terrazzo.systems.stalign.image_baselines import image_model
    from terrazzo.tasks import probe_files
    from terrazzo.tasks.image_to_gene import verdicts

    planned = plan("predict-genes", predict, out, overwrite=overwrite, with_figures=True)
    sources = [*slices, *predict]
    mark = check_results(out / "scores", "predict-genes", sources, None, overwrite=overwrite)
    probe_files.check_free(out / "probe", overwrite=overwrite, mark=mark)
    names: list[str] = []
    if genes is not None:
        names.extend(tz.tasks.read_gene_list(genes))
    names.extend(gene or [])
    reader = image_model(model, device=device, cache=cache)
    training = []
    with working("read histology", len(slices)) as advance:
        for path in slices:
            adata, _ = reader.read(path, slice_key)
            training.append(adata)
            advance(1)
    options: dict[str, Any] = {
        "use_rep": reader.key,
        "genes": names or n_genes,
        "head": head,
        "seed": seed,
        "scale": scale if scale == "median" else float(scale),
        "slice_key": slice_key,
    }
    probe = tz.tasks.fit_image_to_gene(training, **options)
    folder = probe.save(out / "probe", overwrite=overwrite, mark=mark)
    say(f"Probe of {len(probe.names)} genes: {folder}")
    for note in probe.info["notes"]:
        say(f"  note: {note}")
    scored: dict[str, AnnData] = {}
    batch = Batch(len(planned))
    for one in planned:
        with batch.one(one):
            adata = _predict(reader, probe, one, slice_key, overwrite)
            if tz.tasks.measured(adata, probe.names):
                scored[one.target.stem] = adata
    names_of_scored = []
    for stem, adata in scored.items():
        for section in sections_of(adata, SlicePart(slice_key=slice_key)):
            names_of_scored.append(stem if section is None else f"{stem}_{section}")
    if scored:
        result = tz.tasks.image_to_gene(
            training, test=list(scored.values()), names=names_of_scored, runs=runs, **options
        )
        report(result, out / "scores", mark, overwrite=overwrite)
        for line in verdicts(result):
            say(line)
    batch.end()


def _predict(
    reader: Any, probe: Any, planned: Planned, slice_key: str | None, overwrite: bool
) -> AnnData:
    """Predict genes of one slice; write it and a figure."""
    import terrazzo as tz
    from terrazzo.slices.writable import make_writable

    adata: AnnData
    adata, image = reader.read(planned.source, slice_key)
    for note in make_writable(adata):
        say_aside(f"{planned.source}: {note}")
    write_slice(probe.annotate(adata), planned)
    for name, section in sections_of(adata, SlicePart(slice_key=slice_key)).items():
        figure = tz.plot.predicted_genes(
            section, image=image or "auto", slice_key=slice_key if name is None else None
        )
        target = file_of_section(planned.figure, name)
        tz.plot.save(figure, target, mark=planned.mark, overwrite=overwrite)
    line = f"{planned.source.name}: {len(probe.names)} genes, {planned.target} and .png"
    if not tz.tasks.measured(adata, probe.names):
        line = f"{line}; none was measured: no score"
    say(line)
    return adata
