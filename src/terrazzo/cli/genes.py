"""The command line's verbs that predict expression: impute, reconstruct, predict-genes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from terrazzo.cli.options import (
    SCORES,
    TASKS,
    Chosen,
    Head,
    Out,
    Runs,
    Seed,
    Test,
    only_one,
    read_slice,
    report,
    say,
    targets_of,
    working,
    write_slice,
)

if TYPE_CHECKING:
    from anndata import AnnData


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
    part: Chosen | None = None,
    seed: Seed = 0,
) -> None:
    """Hide genes of a panel, embed what is left, and predict the hidden ones.

    Example: terrazzo impute a.h5ad --test b.h5ad --model checkpoint --out imputed
    """
    import terrazzo as tz

    if test is None:
        only_one(slices)
    loaded = [read_slice(p, part) for p in [*slices, *([test] if test is not None else [])]]
    hidden = tz.tasks.hide_genes(loaded, n_genes, genes=gene, seed=seed)
    learned = hidden[:-1] if test is not None else hidden
    held = "/" in model or Path(model).is_dir()
    with working(f"load {model}" if held else f"fit {model}"):
        embedder: Any = (
            tz.load(model) if held else tz.Baseline(model).fit([h.visible for h in learned])
        )
    with working("embed what is left", len(hidden)) as advance:
        for one in hidden:
            embedder.embed(one.visible, key_added="X_visible")
            advance(1)
    given: dict[str, Any] = {"use_rep": "X_visible", "head": head, "runs": runs, "seed": seed}
    if test is not None:
        result = tz.tasks.impute(learned, test=hidden[-1], **given)
    else:
        result = tz.tasks.impute(only_one(learned), **given)
    report(result, out / "scores")


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
    part: Chosen | None = None,
    seed: Seed = 0,
) -> None:
    """Hide squares of a slice and predict them, beside what trivial answers say.

    Example: terrazzo reconstruct a.h5ad --model checkpoint --size 4 8 16 --out reconstructed
    """
    import terrazzo as tz
    from terrazzo.models.embed_files import check_writable

    check_writable(out)
    held, adata = tz.load(model), read_slice(path, part)
    if not hasattr(held, "reconstruct"):
        raise tz.errors.ConfigError(
            f"{model} holds a {held.title}, which cannot fill in hidden tissue: give one of ST as images."
        )
    grid: dict[str, Any] = {"layout": layout, "bin_um": bin_um}
    given = {
        key: value for key, value in grid.items() if value not in ("auto", 0.0)
    }  # else as the model was trained

    def predict(shown: AnnData, hidden: Any, genes: list[str]) -> Any:
        return held.reconstruct(shown, hidden, genes, **given)

    title = held.title if held.trained else f"{held.title} (untrained)"
    options: dict[str, Any] = {
        "n_genes": n_genes,
        "choose": choose,
        "repeats": repeats,
        "seed": seed,
        **grid,
    }
    result = tz.tasks.reconstruct(adata, {title: predict}, size=size or 8, **options)
    report(result, out / "scores")
    tz.plot.save(tz.plot.reconstruction(result), out / "hidden.png")
    say(f"Figure of one square: {out / 'hidden.png'}")


def predict_genes(
    slices: Annotated[
        list[Path], Parameter(help="Slices with counts and histology, to learn from.")
    ],
    /,
    *,
    predict: Annotated[
        list[Path],
        Parameter(
            help="Slices with histology; scored where they have the genes.", consume_multiple=True
        ),
    ],
    model: Annotated[
        str,
        Parameter(help="Checkpoint of ST-Align, folder of a transformers vision model, or colors."),
    ],
    out: Out,
    genes: Annotated[
        Path | None, Parameter(help="Genes to predict, a file with one a line.")
    ] = None,
    gene: Annotated[list[str] | None, Parameter(help="A gene to predict (repeatable).")] = None,
    n_genes: Annotated[
        int, Parameter(help="Where none is named: so many, the most variable of SLICES.")
    ] = 50,
    scale: Annotated[
        Literal["10000", "median"],
        Parameter(help="Counts are scaled to 10,000, or to each slice's median total."),
    ] = "10000",
    head: Head = "linear",
    cache: Annotated[
        Path | None, Parameter(help="Keep what frozen encoders say of a slice in this folder.")
    ] = None,
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1, ...")] = "cpu",
    runs: Runs = 3,
    seed: Seed = 0,
) -> None:
    """Predict expression from histology, as obsm["expression_predicted"], with scores.

    A picture lies in a slice's uns["spatial"], or beside its file: NAME.json with image and scale.

    Example: terrazzo predict-genes a.h5ad --model stalign --gene MOBP --predict b.h5ad --out predicted
    """
    import terrazzo as tz
    from terrazzo.models.embed_files import check_writable
    from terrazzo.systems.stalign.image_baselines import image_model

    places = targets_of(predict, out)
    named = [*(tz.tasks.read_gene_list(genes) if genes is not None else []), *(gene or [])]
    check_writable(out)
    reader = image_model(model, device=device, cache=cache)
    learned = []
    with working("read histology", len(slices)) as advance:
        for path in slices:
            learned.append(reader.read(path)[0])
            advance(1)
    chosen: dict[str, Any] = {
        "use_rep": reader.key,
        "genes": named or n_genes,
        "head": head,
        "seed": seed,
    }
    chosen["scale"] = scale if scale == "median" else float(scale)
    probe = tz.tasks.fit_image_to_gene(learned, **chosen)
    say(f"Probe of {len(probe.names)} genes: {probe.save(out / 'probe', overwrite=True)}")
    for note in probe.info["notes"]:
        say(f"  note: {note}")
    known: dict[str, AnnData] = {}
    for path, place in zip(predict, places, strict=True):
        adata, picture = reader.read(path)
        write_slice(probe.annotate(adata), place, path)
        tz.plot.save(
            tz.plot.predicted_genes(adata, image=picture or "auto"), place.with_suffix(".png")
        )
        there = tz.tasks.measured(adata, probe.names)
        say(
            f"{path.name}: {len(probe.names)} genes, {place} and .png{'' if there else '; none was measured: no score'}"
        )
        known |= {path.stem: adata} if there else {}
    if known:
        found = tz.tasks.image_to_gene(
            learned, test=list(known.values()), names=list(known), runs=runs, **chosen
        )
        report(found, out / "scores")
