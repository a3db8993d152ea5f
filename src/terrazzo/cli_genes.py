"""The command line's verbs that predict expression: impute, reconstruct, predict-genes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from terrazzo.cli_common import SCORES, Head, Out, Runs, Seed, Test, only_one, read_slice, report, say

if TYPE_CHECKING:
    from anndata import AnnData


def register(app: App) -> None:
    """Add the verbs to the command line."""
    for verb in (impute, reconstruct):
        app.command(verb)


def impute(
    slices: Annotated[list[Path], Parameter(help="Slices with raw counts; --test adds the one to score on.")],
    /,
    *,
    model: Annotated[str, Parameter(help="Checkpoint folder, organisation/name on the hub, or a baseline (z50, ...).")],
    out: Out,
    n_genes: Annotated[int, Parameter(help="Genes hidden, drawn among those with counts.")] = 50,
    gene: Annotated[list[str] | None, Parameter(help="Hide this gene (repeatable), in place of a draw.")] = None,
    head: Head = "mlp3",
    test: Test = None,
    runs: Runs = 3,
    seed: Seed = 0,
) -> None:
    """Hide genes of a panel before anything is read, embed the rest, and predict the hidden ones.

    Example: terrazzo impute a.h5ad --test b.h5ad --model checkpoint --out imputed
    """
    import terrazzo as tz

    if test is None:
        only_one(slices)
    loaded = [read_slice(p) for p in [*slices, *([test] if test is not None else [])]]
    hidden = tz.tasks.hide_genes(loaded, n_genes, genes=gene, seed=seed)
    learnt = hidden[:-1] if test is not None else hidden
    held = "/" in model or Path(model).is_dir()
    embedder: Any = tz.load(model) if held else tz.Baseline(model).fit([h.visible for h in learnt])
    for one in hidden:
        embedder.embed(one.visible, key_added="X_visible")
    given: dict[str, Any] = {"use_rep": "X_visible", "head": head, "runs": runs, "seed": seed}
    if test is not None:
        result = tz.tasks.impute(learnt, test=hidden[-1], **given)
    else:
        result = tz.tasks.impute(only_one(learnt), **given)
    report(result, out / "scores")


def reconstruct(
    path: Annotated[Path, Parameter(name="slice", help="Slice with raw counts.")],
    /,
    *,
    model: Annotated[str, Parameter(help="Checkpoint folder of ST as images, or organisation/name on the hub.")],
    out: Out,
    size: Annotated[
        list[int] | None, Parameter(help="Sides of the hidden square, in sites; default 8.", consume_multiple=True)
    ] = None,
    n_genes: Annotated[int, Parameter(help="Genes predicted: the most variable of the visible tissue.")] = 512,
    choose: Annotated[
        Literal["variance", "dispersion"], Parameter(help="How variable: on its own, or for a gene of its mean.")
    ] = "variance",
    repeats: Annotated[int, Parameter(group=SCORES, help="Squares of each size.")] = 20,
    layout: Annotated[Literal["auto", "hex", "square", "rank", "bin"], Parameter(help="Grid of the slice.")] = "auto",
    bin_um: Annotated[float, Parameter(help="Side of a bin, for slices without a lattice.")] = 0.0,
    seed: Seed = 0,
) -> None:
    """Hide squares of a slice and predict them, beside the mean of the nearest cells and linear interpolation.

    Example: terrazzo reconstruct a.h5ad --model checkpoint --size 4 8 16 --out reconstructed
    """
    import terrazzo as tz
    from terrazzo.models.files import check_writable

    check_writable(out)
    held, adata = tz.load(model), read_slice(path)
    if not hasattr(held, "reconstruct"):
        raise tz.errors.ConfigError(
            f"{model} holds a {held.title}, which cannot fill in hidden tissue; pass an STImage."
        )
    grid: dict[str, Any] = {"layout": layout, "bin_um": bin_um}
    given = {key: value for key, value in grid.items() if value not in ("auto", 0.0)}  # else as the model was trained

    def predict(shown: AnnData, hidden: Any, genes: list[str]) -> Any:
        return held.reconstruct(shown, hidden, genes, **given)

    title = held.title if held.trained else f"{held.title} (untrained)"
    options: dict[str, Any] = {"n_genes": n_genes, "choose": choose, "repeats": repeats, "seed": seed, **grid}
    result = tz.tasks.reconstruct(adata, {title: predict}, size=size or 8, **options)
    report(result, out / "scores")
    tz.plot.save(tz.plot.reconstruction(result), out / "hidden.png")
    say(f"Figure of one square: {out / 'hidden.png'}")
