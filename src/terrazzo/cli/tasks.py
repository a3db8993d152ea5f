"""The command line's verbs for tasks and tables: domains, probe, deconvolve, finetune, bench."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from terrazzo.cli.options import (
    SCORES,
    SHOWING,
    TASKS,
    TRAINING,
    Chosen,
    Embedded,
    Head,
    Out,
    Predict,
    Rep,
    Runs,
    Seed,
    Test,
    about,
    only_one,
    read_slice,
    report,
    say,
    say_aside,
    targets_of,
    write_slice,
)


def register(app: App) -> None:
    """Add the verbs to the command line."""
    for verb in (domains, probe, deconvolve):
        app.command(verb, group=TASKS)
    app.command(finetune, group=TRAINING)
    app.command(bench, group=SHOWING)


def domains(
    slices: Embedded,
    /,
    *,
    use_rep: Rep,
    n_domains: Annotated[int, Parameter(name=["--n-domains", "-k"], help="Number of domains.")],
    out: Out,
    method: Literal["gmm", "kmeans", "leiden"] = "gmm",
    refine: Annotated[int, Parameter(help="Majority of so many neighbors; 0: off.")] = 0,
    n_seeds: Annotated[int, Parameter(help="Consensus of several seeds.")] = 1,
    label: Annotated[
        str | None, Parameter(group=SCORES, help="obs column to compare with, over five seeds.")
    ] = None,
    part: Chosen | None = None,
    seed: Seed = 0,
) -> None:
    """Find tissue domains in embedded slices; write the slices and a figure of each.

    Example: terrazzo domains embedded/a.h5ad --use-rep X_stofm -k 7 --out domains
    """
    import terrazzo as tz

    for path, target in zip(slices, targets_of(slices, out), strict=True):
        adata, column = read_slice(path, part), tz.keys.domain_key(use_rep.replace(":", "_"))
        chosen: dict[str, Any] = {
            "use_rep": use_rep,
            "n_domains": n_domains,
            "method": method,
            "refine": refine,
        }
        with about(path):
            tz.tasks.domains(adata, n_seeds=n_seeds, seed=seed, **chosen)
            result = (
                tz.tasks.evaluate_domains(adata, label=label, **chosen)
                if label is not None
                else None
            )
        write_slice(adata, target, path, part)
        figure: Any = tz.plot.spatial(adata, color=column).figure
        tz.plot.save(figure, target.with_suffix(".png"))
        say(f"{path.name}: {n_domains} domains in obs[{column!r}], {target} and .png")
        if result is not None:
            report(result, out / f"{path.stem}-scores")


def probe(
    slices: Embedded,
    /,
    *,
    use_rep: Rep,
    out: Out,
    label: Annotated[str | None, Parameter(help="obs column to learn.")] = None,
    values: Annotated[
        str | None, Parameter(help="obsm key of numbers to learn, in place of --label.")
    ] = None,
    head: Head = "mlp3",
    test: Test = None,
    predict: Predict = None,
    runs: Runs = 3,
    part: Chosen | None = None,
    seed: Seed = 0,
) -> None:
    """Learn labels from embedded slices, score that, and annotate other slices.

    Example: terrazzo probe a.h5ad --use-rep X_stofm --label region --test b.h5ad --out probe
    """
    import terrazzo as tz

    given: dict[str, Any] = {
        "use_rep": use_rep,
        "label": label,
        "values": values,
        "head": head,
        "seed": seed,
    }
    _learn(tz.tasks.probe, slices, given, runs, test, predict or [], out, part)


def deconvolve(
    slices: Embedded,
    /,
    *,
    use_rep: Rep,
    out: Out,
    proportions: Annotated[
        str, Parameter(help="obsm key of the proportions; rows sum to one.")
    ] = "proportions",
    head: Head = "mlp3",
    test: Test = None,
    predict: Predict = None,
    runs: Runs = 3,
    part: Chosen | None = None,
    seed: Seed = 0,
) -> None:
    """Learn cell-type proportions from embedded slices, score that, and transfer them.

    Example: terrazzo deconvolve a.h5ad --use-rep X_stofm --predict b.h5ad --out deconvolved
    """
    import terrazzo as tz

    given: dict[str, Any] = {
        "use_rep": use_rep,
        "proportions": proportions,
        "head": head,
        "seed": seed,
    }
    _learn(tz.tasks.deconvolve, slices, given, runs, test, predict or [], out, part)


def finetune(
    slices: Annotated[list[Path], Parameter(help="Labeled slices with raw counts.")],
    /,
    *,
    model: Annotated[
        str, Parameter(help="SToFM checkpoint folder, or organization/name on the hub.")
    ],
    label: Annotated[str, Parameter(help="obs column to learn.")],
    out: Out,
    test: Test = None,
    predict: Predict = None,
    epochs: Annotated[int, Parameter(help="Passes at most; it stops early.")] = 12,
    score: Annotated[
        bool, Parameter(group=SCORES, help="Score it, too; without --test by splits of one slice.")
    ] = True,
    runs: Runs = 1,
    part: Chosen | None = None,
    seed: Seed = 0,
) -> None:
    """Tune all parameters of SToFM on labeled slices; annotate other slices.

    Example: terrazzo finetune a.h5ad --model checkpoint --label region --test b.h5ad --out tuned
    """
    import terrazzo as tz
    from terrazzo.systems.stofm.finetune import FineTuneConfig, free_folder
    from terrazzo.systems.stofm.finetune_scores import evaluate_finetuning

    config, targets = FineTuneConfig(max_epochs=epochs), targets_of(predict or [], out)
    free_folder(out / "tuned")
    if score and test is None:
        only_one(slices)
    loaded, held = [read_slice(p, part) for p in slices], tz.load(model)
    if not isinstance(held, tz.SToFM):
        raise tz.errors.ConfigError(f"{model} holds a {held.title}; only SToFM can be fine-tuned.")
    if score:
        given: dict[str, Any] = {"label": label, "runs": runs, "seed": seed, "config": config}
        data, scored = (
            (only_one(loaded), None) if test is None else (loaded, read_slice(test, part))
        )
        report(evaluate_finetuning(held, data, test=scored, **given), out / "scores")
    tuned = tz.finetune(held, loaded, label=label, config=config, seed=seed)
    say(f"Tuned model and head: {tuned.save(out / 'tuned')}")
    for path, target in zip(predict or [], targets, strict=True):
        adata = read_slice(path, part)
        tuned.predict(adata)
        tuned.probe.annotate(adata, use_rep="X_stofm:all")
        write_slice(adata, target, path, part)
        say(f"{path.name}: annotated, {target}")


def bench(
    table: Annotated[
        str | None, Parameter(help="Name of a table, or a YAML file; none lists them.")
    ] = None,
    /,
    *,
    data: Annotated[
        Path | None, Parameter(help="Folder of the datasets; default $TERRAZZO_DATA.")
    ] = None,
    models: Annotated[
        list[str] | None,
        Parameter(
            help="NAME=FOLDER, NAME=obsm:KEY, or a baseline; NAME twice: two seeds; NAME@PART=...: for one part.",
            consume_multiple=True,
        ),
    ] = None,
    seeds: Annotated[int | None, Parameter(help="Seeds or draws, in place of the table's.")] = None,
    out: Annotated[Path, Parameter(help="Folder for the table.")] = Path("tables"),
    work: Annotated[
        Path | None, Parameter(help="Keep finished rows and what an ablation trains here.")
    ] = None,
) -> None:
    """Make a paper's table, or one of the data at hand: measured beside published numbers.

    Example: terrazzo bench stofm-1-dlpfc --data data --models stofm=run/model --out tables
    """
    from terrazzo.bench import protocols, render
    from terrazzo.bench.run import run
    from terrazzo.models.embed_files import check_writable

    if table is None:
        for name in protocols.names():
            say(f"{name:<24}{protocols.load(name).title}")
        return
    protocol = protocols.changed(protocols.load(table), runs=seeds)
    check_writable(out)
    # a run that is stopped leaves its finished rows, and the next goes on
    rows = (work or out) / f"{protocol.name}.rows"
    found = run(protocol, data=data, models=models or (), work=work, rows=rows, say=say_aside)
    options: list[tuple[str, list[Any]]] = [
        ("--data", [data]),
        ("--models", models or [None]),
        ("--seeds", [seeds]),
        ("--out", [out]),
        ("--work", [work]),
    ]
    words = [str(w) for name, values in options for w in (name, *values) if None not in values]
    target = render.write(found, out, command=shlex.join(["terrazzo", "bench", table, *words]))
    if work is None:
        shutil.rmtree(rows, ignore_errors=True)  # the table holds them now
    say(target.read_text(encoding="utf-8"))
    say(f"Table: {target}, .html, .json, .png")


def _learn(
    task: Any,
    slices: list[Path],
    given: dict[str, Any],
    runs: int,
    test: Path | None,
    predict: list[Path],
    out: Path,
    part: Chosen | None,
) -> None:
    """Score what can be learned from some slices, then learn it from all of their cells, and annotate others."""
    import terrazzo as tz

    targets = targets_of(predict, out)
    if test is None:
        only_one(slices)
    loaded, more = [read_slice(p, part) for p in slices], given | {"runs": runs}
    result = (
        task(loaded, test=read_slice(test, part), **more)
        if test is not None
        else task(only_one(loaded), **more)
    )
    fitted = tz.tasks.fit_probe(loaded, **given)
    report(result, out / "scores")
    say(f"Probe: {fitted.save(out / 'probe', overwrite=True)}")
    for path, target in zip(predict, targets, strict=True):
        adata = read_slice(path, part)
        fitted.annotate(adata)
        write_slice(adata, target, path, part)
        say(f"{path.name}: annotated, {target}")
