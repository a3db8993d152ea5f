"""The command line's verbs for tasks and tables: domains, probe, impute, reconstruct, deconvolve, finetune, bench."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter
from cyclopts.validators import Number
from rich.console import Console

if TYPE_CHECKING:
    from anndata import AnnData

    from terrazzo.tasks import TaskResult

SCORES = Group("How it is scored")

Embedded = Annotated[list[Path], Parameter(help="Embedded slices (.h5ad, .zarr), as `terrazzo embed` writes them.")]
Rep = Annotated[str, Parameter(name="--use-rep", help="obsm key, or key:block, e.g. X_stofm:own.")]
Out = Annotated[Path, Parameter(help="Folder for the results.")]
Head = Annotated[Literal["mlp3", "mlp512", "knn", "linear"], Parameter(help="The read-out.")]
Runs = Annotated[int, Parameter(group=SCORES, help="Seeds or draws.")]
Test = Annotated[Path | None, Parameter(group=SCORES, help="Score on this slice; else SLICES are split (one slice).")]
Predict = Annotated[list[Path] | None, Parameter(help="Slices to annotate (repeatable).")]
Seed = Annotated[int, Parameter(help="Seed.", validator=Number(gte=0))]


def register(app: App) -> None:
    """Add the verbs to the command line."""
    for verb in (domains, probe, deconvolve, impute, reconstruct, finetune, bench):
        app.command(verb)


def domains(
    slices: Embedded,
    /,
    *,
    use_rep: Rep,
    n_domains: Annotated[int, Parameter(name=["--n-domains", "-k"], help="Number of domains.")],
    out: Out,
    method: Literal["gmm", "kmeans", "leiden"] = "gmm",
    refine: Annotated[int, Parameter(help="Majority of so many neighbours; 0: off.")] = 0,
    n_seeds: Annotated[int, Parameter(help="Consensus of several seeds.")] = 1,
    label: Annotated[str | None, Parameter(group=SCORES, help="obs column to compare with, over five seeds.")] = None,
    seed: Seed = 0,
) -> None:
    """Find tissue domains in embedded slices; write the slices and a figure of each.

    Example: terrazzo domains embedded/a.h5ad --use-rep X_stofm -k 7 --out domains
    """
    import terrazzo as tz

    for path, target in zip(slices, _targets(slices, out), strict=True):
        adata, column = _read(path), tz.keys.domain_key(use_rep.replace(":", "_"))
        chosen: dict[str, Any] = {"use_rep": use_rep, "n_domains": n_domains, "method": method, "refine": refine}
        tz.tasks.domains(adata, n_seeds=n_seeds, seed=seed, **chosen)
        result = tz.tasks.evaluate_domains(adata, label=label, **chosen) if label is not None else None
        _write(adata, target)
        figure: Any = tz.plot.spatial(adata, color=column).figure
        tz.plot.save(figure, target.with_suffix(".png"))
        _say(f"{path.name}: {n_domains} domains in obs[{column!r}], {target} and .png")
        if result is not None:
            _report(result, out / f"{path.stem}-scores")


def probe(
    slices: Embedded,
    /,
    *,
    use_rep: Rep,
    out: Out,
    label: Annotated[str | None, Parameter(help="obs column to learn.")] = None,
    values: Annotated[str | None, Parameter(help="obsm key of numbers to learn, in place of --label.")] = None,
    head: Head = "mlp3",
    test: Test = None,
    predict: Predict = None,
    runs: Runs = 3,
    seed: Seed = 0,
) -> None:
    """Learn labels from embedded slices, score that, and annotate other slices.

    Example: terrazzo probe a.h5ad b.h5ad --use-rep X_stofm --label region --test c.h5ad --predict d.h5ad --out probe
    """
    import terrazzo as tz

    given: dict[str, Any] = {"use_rep": use_rep, "label": label, "values": values, "head": head, "seed": seed}
    _learn(tz.tasks.probe, slices, given, runs, test, predict or [], out)


def deconvolve(
    slices: Embedded,
    /,
    *,
    use_rep: Rep,
    out: Out,
    proportions: Annotated[str, Parameter(help="obsm key of the proportions; rows sum to one.")] = "proportions",
    head: Head = "mlp3",
    test: Test = None,
    predict: Predict = None,
    runs: Runs = 3,
    seed: Seed = 0,
) -> None:
    """Learn cell-type proportions from embedded slices, score that, and transfer them to other slices.

    Example: terrazzo deconvolve a.h5ad --use-rep X_stofm --test b.h5ad --predict c.h5ad --out deconvolved
    """
    import terrazzo as tz

    given: dict[str, Any] = {"use_rep": use_rep, "proportions": proportions, "head": head, "seed": seed}
    _learn(tz.tasks.deconvolve, slices, given, runs, test, predict or [], out)


def impute(
    slices: Annotated[list[Path], Parameter(help="Slices with raw counts; --test adds the one to score on.")],
    /,
    *,
    model: Annotated[str, Parameter(help="Checkpoint folder, or a baseline (z50, t3, pca-nb1, ...).")],
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
        _only(slices)
    loaded = [_read(p) for p in [*slices, *([test] if test is not None else [])]]
    hidden = tz.tasks.hide_genes(loaded, n_genes, genes=gene, seed=seed)
    learnt = hidden[:-1] if test is not None else hidden
    embedder: Any = tz.load(model) if Path(model).is_dir() else tz.Baseline(model).fit([h.visible for h in learnt])
    for one in hidden:
        embedder.embed(one.visible, key_added="X_visible")
    given: dict[str, Any] = {"use_rep": "X_visible", "head": head, "runs": runs, "seed": seed}
    if test is not None:
        result = tz.tasks.impute(learnt, test=hidden[-1], **given)
    else:
        result = tz.tasks.impute(_only(learnt), **given)
    _report(result, out / "scores")


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
    held, adata = tz.load(model), _read(path)
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
    _report(result, out / "scores")
    tz.plot.save(tz.plot.reconstruction(result), out / "hidden.png")
    _say(f"Figure of one square: {out / 'hidden.png'}")


def finetune(
    slices: Annotated[list[Path], Parameter(help="Labelled slices with raw counts.")],
    /,
    *,
    model: Annotated[str, Parameter(help="SToFM checkpoint folder, or organisation/name on the hub.")],
    label: Annotated[str, Parameter(help="obs column to learn.")],
    out: Out,
    test: Test = None,
    predict: Predict = None,
    epochs: Annotated[int, Parameter(help="Passes at most; it stops early.")] = 12,
    score: Annotated[
        bool, Parameter(group=SCORES, help="Score it, too; without --test by splits of one slice.")
    ] = True,
    runs: Runs = 1,
    seed: Seed = 0,
) -> None:
    """Tune all parameters of SToFM on labelled slices; write model, head, scores and annotated slices.

    Example: terrazzo finetune a.h5ad b.h5ad --model checkpoint --label region --test c.h5ad --out tuned
    """
    import terrazzo as tz
    from terrazzo.training.finetune import free_folder

    config, targets = tz.FineTuneConfig(max_epochs=epochs), _targets(predict or [], out)
    free_folder(out / "tuned")
    if score and test is None:
        _only(slices)
    loaded, held = [_read(p) for p in slices], tz.load(model)
    if not isinstance(held, tz.SToFM):
        raise tz.errors.ConfigError(f"{model} holds a {held.title}; only SToFM can be fine-tuned.")
    if score:
        given: dict[str, Any] = {"label": label, "runs": runs, "seed": seed, "config": config}
        data, scored = (_only(loaded), None) if test is None else (loaded, _read(test))
        _report(tz.evaluate_finetuning(held, data, test=scored, **given), out / "scores")
    tuned = tz.finetune(held, loaded, label=label, config=config, seed=seed)
    _say(f"Tuned model and head: {tuned.save(out / 'tuned')}")
    for path, target in zip(predict or [], targets, strict=True):
        adata = _read(path)
        tuned.predict(adata)
        tuned.probe.annotate(adata, use_rep="X_stofm:all")
        _write(adata, target)
        _say(f"{path.name}: annotated, {target}")


def bench(
    table: Annotated[str | None, Parameter(help="Name of a table, or a YAML file; none lists them.")] = None,
    /,
    *,
    data: Annotated[Path | None, Parameter(help="Folder of the datasets; default $TERRAZZO_DATA.")] = None,
    models: Annotated[
        list[str] | None,
        Parameter(
            help="NAME=CHECKPOINT, NAME=obsm:KEY, or a baseline; one NAME twice: two seeds.", consume_multiple=True
        ),
    ] = None,
    seeds: Annotated[int | None, Parameter(help="Seeds or draws, in place of the table's.")] = None,
    out: Annotated[Path, Parameter(help="Folder for the table.")] = Path("tables"),
    work: Annotated[Path | None, Parameter(help="Keep what an ablation trains in this folder.")] = None,
) -> None:
    """Make a paper's table, or one of the data at hand: ours beside what was published.

    Example: terrazzo bench stofm-1-dlpfc --data data --models stofm=run/model --out tables
    """
    from terrazzo.bench import protocols, render
    from terrazzo.bench.run import run
    from terrazzo.models.files import check_writable

    if table is None:
        for name in protocols.names():
            _say(f"{name:<24}{protocols.load(name).title}")
        return
    protocol = protocols.changed(protocols.load(table), runs=seeds)
    check_writable(out)
    found = run(protocol, data=data, models=models or (), work=work, say=_progress)
    options: list[tuple[str, list[Any]]] = [
        ("--data", [data]), ("--models", models or [None]), ("--seeds", [seeds]), ("--out", [out]), ("--work", [work])
    ]  # fmt: skip
    words = [str(w) for name, values in options for w in (name, *values) if None not in values]
    target = render.write(found, out, command=shlex.join(["terrazzo", "bench", table, *words]))
    _say(target.read_text(encoding="utf-8"))
    _say(f"Table: {target}, .html, .json, .png")


def _say(line: str) -> None:
    Console(soft_wrap=True, highlight=False).print(line, markup=False)


def _progress(line: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(line, markup=False)


def _read(path: Path) -> AnnData:
    from terrazzo.slices import read_anndata

    return read_anndata(path)


def _write(adata: AnnData, target: Path) -> None:
    from terrazzo.models.files import check_writable, write_atomically

    check_writable(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(adata, target)


def _only(slices: list[Any]) -> Any:
    from terrazzo.errors import ConfigError

    if len(slices) != 1:
        raise ConfigError(f"{len(slices)} slices were given; pass --test, or one slice, which is split.")
    return slices[0]


def _targets(sources: list[Path], out: Path) -> list[Path]:
    """Return where each slice goes, before any work is done; none goes onto its own input."""
    from terrazzo.models.files import plan_targets

    return [target for _, target in plan_targets(sources, out)]


def _learn(
    task: Any, slices: list[Path], given: dict[str, Any], runs: int, test: Path | None, predict: list[Path], out: Path
) -> None:
    """Score what can be learnt from some slices, then learn it from all of their cells, and annotate others."""
    import terrazzo as tz

    targets = _targets(predict, out)
    if test is None:
        _only(slices)
    loaded, more = [_read(p) for p in slices], given | {"runs": runs}
    result = task(loaded, test=_read(test), **more) if test is not None else task(_only(loaded), **more)
    fitted = tz.tasks.fit_probe(loaded, **given)
    _report(result, out / "scores")
    _say(f"Probe: {fitted.save(out / 'probe', overwrite=True)}")
    for path, target in zip(predict, targets, strict=True):
        adata = _read(path)
        fitted.annotate(adata)
        _write(adata, target)
        _say(f"{path.name}: annotated, {target}")


def _report(result: TaskResult, folder: Path) -> None:
    """Write a result and print its scores."""
    target = result.save(folder)
    for row in result.summary().itertuples():
        whose = f"{row.system:<24} " if "system" in result.metrics else ""
        _say(f"  {whose}{row.split:<10}{row.metric:<18}{row.mean:.4f} ± {row.sd:.4f} (n = {row.n})")
    for note in result.notes:
        _say(f"  note: {note}")
    _say(f"Scores and predictions: {target}")
