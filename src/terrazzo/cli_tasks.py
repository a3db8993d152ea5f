"""The command line's verbs for tasks and tables: domains, probe, impute, deconvolve, finetune, bench."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter
from rich.console import Console

if TYPE_CHECKING:
    from anndata import AnnData

    from terrazzo.tasks import Probe, TaskResult

SCORES = Group("How it is scored")

Embedded = Annotated[list[Path], Parameter(help="Embedded slices (.h5ad, .zarr), as `terrazzo embed` writes them.")]
Rep = Annotated[str, Parameter(name="--use-rep", help="obsm key, or key:block, e.g. X_stofm:own.")]
Out = Annotated[Path, Parameter(help="Folder for the results.")]
Head = Annotated[Literal["mlp3", "mlp512", "knn", "linear"], Parameter(help="The read-out.")]
Runs = Annotated[int, Parameter(group=SCORES, help="Seeds or draws.")]
Test = Annotated[Path | None, Parameter(group=SCORES, help="Score on this slice; else SLICES are split (one slice).")]
Predict = Annotated[list[Path] | None, Parameter(help="Slices to annotate (repeatable).")]
Seed = Annotated[int, Parameter(help="Seed.")]


def register(app: App) -> None:
    """Add the verbs to the command line."""
    for verb in (domains, probe, deconvolve, impute, finetune, bench):
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

    for path in slices:
        adata, column = _read(path), tz.keys.domain_key(use_rep.replace(":", "_"))
        tz.tasks.domains(
            adata, use_rep=use_rep, n_domains=n_domains, method=method, refine=refine, n_seeds=n_seeds, seed=seed,
            key_added=column,
        )  # fmt: skip
        _write(adata, out / f"{path.stem}.h5ad")
        figure: Any = tz.plot.spatial(adata, color=column).figure
        tz.plot.save(figure, out / f"{path.stem}.png")
        _say(f"{path.name}: {n_domains} domains in obs[{column!r}], {out / path.stem}.h5ad and .png")
        if label is not None:
            result = tz.tasks.evaluate_domains(
                adata, use_rep=use_rep, label=label, n_domains=n_domains, method=method, refine=refine
            )
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
    loaded = [_read(p) for p in slices]
    result = _scored(tz.tasks.probe, loaded, test, given | {"runs": runs})
    _report(result, out / "scores")
    fitted = tz.tasks.fit_probe(loaded, **given)
    _annotate(fitted, out, predict)


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
    loaded = [_read(p) for p in slices]
    result = _scored(tz.tasks.deconvolve, loaded, test, given | {"runs": runs})
    _report(result, out / "scores")
    _annotate(tz.tasks.fit_probe(loaded, **given), out, predict)


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

    loaded = [_read(p) for p in [*slices, *([test] if test is not None else [])]]
    hidden = tz.tasks.hide_genes(loaded, n_genes, genes=gene, seed=seed)
    learnt = hidden[:-1] if test is not None else hidden
    visible = [h.visible for h in learnt]
    for one in hidden:
        if Path(model).is_dir():
            _checkpoint(model).embed(one.visible, key_added="X_visible")
        else:
            tz.Baseline(model).fit(visible).embed(one.visible, key_added="X_visible")
    given: dict[str, Any] = {"use_rep": "X_visible", "head": head, "runs": runs, "seed": seed}
    if test is not None:
        result = tz.tasks.impute(learnt, test=hidden[-1], **given)
    else:
        result = tz.tasks.impute(_only(learnt), **given)
    _report(result, out / "scores")


def finetune(
    slices: Annotated[list[Path], Parameter(help="Labelled slices with raw counts.")],
    /,
    *,
    model: Annotated[str, Parameter(help="SToFM checkpoint folder, or organisation/name on the hub.")],
    label: Annotated[str, Parameter(help="obs column to learn.")],
    out: Out,
    test: Test = None,
    predict: Predict = None,
    epochs: Annotated[int, Parameter(help="Passes at most; it stops early.")] = 30,
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

    config = tz.FineTuneConfig(max_epochs=epochs)
    loaded, held = [_read(p) for p in slices], _checkpoint(model)
    if not isinstance(held, tz.SToFM):
        raise tz.errors.ConfigError(f"{model} holds a {held.title}; only SToFM can be fine-tuned.")
    if score:
        given: dict[str, Any] = {"label": label, "runs": runs, "seed": seed, "config": config}
        data = loaded if test is not None else _only(loaded)
        result = tz.evaluate_finetuning(held, data, test=_read(test) if test is not None else None, **given)
        _report(result, out / "scores")
    tuned = tz.finetune(held, loaded, label=label, config=config, seed=seed)
    folder = tuned.save(out / "tuned")
    _say(f"Tuned model and head: {folder}")
    for path in predict or []:
        adata = _read(path)
        tuned.predict(adata)
        tuned.probe.annotate(adata, use_rep="X_stofm:all")
        _write(adata, out / f"{path.stem}.h5ad")
        _say(f"{path.name}: annotated, {out / path.stem}.h5ad")


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

    if table is None:
        for name in protocols.names():
            _say(f"{name:<24}{protocols.load(name).title}")
        return
    protocol = protocols.changed(protocols.load(table), runs=seeds)
    found = run(protocol, data=data, models=models or (), work=work, say=_progress)
    command = "terrazzo " + shlex.join(w for w in sys.argv[1:] if w != "--debug")
    target = render.write(found, out, command=command)
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


def _checkpoint(source: str) -> Any:
    import terrazzo as tz

    return tz.load(source)


def _only(slices: list[Any]) -> Any:
    from terrazzo.errors import ConfigError

    if len(slices) != 1:
        raise ConfigError(f"{len(slices)} slices were given; pass --test, or one slice, which is split.")
    return slices[0]


def _scored(task: Any, loaded: list[AnnData], test: Path | None, given: dict[str, Any]) -> TaskResult:
    if test is not None:
        return task(loaded, test=_read(test), **given)
    return task(_only(loaded), **given)


def _report(result: TaskResult, folder: Path) -> None:
    """Write a result and print its scores."""
    target = result.save(folder)
    for row in result.summary().itertuples():
        _say(f"  {row.split:<10}{row.metric:<18}{row.mean:.4f} ± {row.sd:.4f} (n = {row.n})")
    for note in result.notes:
        _say(f"  note: {note}")
    _say(f"Scores and predictions: {target}")


def _annotate(fitted: Probe, out: Path, predict: list[Path] | None) -> None:
    _say(f"Probe: {fitted.save(out / 'probe', overwrite=True)}")
    for path in predict or []:
        adata = _read(path)
        fitted.annotate(adata)
        _write(adata, out / f"{path.stem}.h5ad")
        _say(f"{path.name}: annotated, {out / path.stem}.h5ad")
