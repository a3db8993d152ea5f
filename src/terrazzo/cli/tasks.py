"""Verbs for tasks and tables: domains, probe, deconvolve, finetune, bench."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from terrazzo.cli.options import (
    SCORES,
    SHOWING,
    TASKS,
    TRAINING,
    Embedded,
    Head,
    Out,
    Predict,
    Rep,
    Runs,
    Seed,
    SlicePart,
    Test,
    about,
    key_of,
    only_one,
    read_slice,
    report,
    say,
    say_aside,
    targets_of,
    write_slice,
)

__all__ = ["register"]


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
    part: SlicePart | None = None,
    seed: Seed = 0,
) -> None:
    """Find tissue domains in embedded slices; write the slices and a figure of each.

    Example: terrazzo domains embedded/a.h5ad --use-rep X_stofm -k 7 --out domains
    """
    import terrazzo as tz

    for path, target in zip(slices, targets_of(slices, out), strict=True):
        adata = read_slice(path, part)
        column = tz.keys.domain_key(use_rep.replace(":", "_"))
        options: dict[str, Any] = {
            "use_rep": use_rep,
            "n_domains": n_domains,
            "method": method,
            "refine": refine,
            "slice_key": key_of(part),
        }
        result = None
        with about(path):
            tz.tasks.domains(adata, n_seeds=n_seeds, seed=seed, **options)
            if label is not None:
                result = tz.tasks.evaluate_domains(adata, label=label, **options)
        write_slice(adata, target, path, part)
        figure: Any = tz.plot.spatial(adata, color=column, slice_key=key_of(part)).figure
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
    part: SlicePart | None = None,
    seed: Seed = 0,
) -> None:
    """Learn labels from embedded slices, score the head, and annotate other slices.

    Example: terrazzo probe a.h5ad --use-rep X_stofm --label region --test b.h5ad --out probe
    """
    import terrazzo as tz

    options: dict[str, Any] = {
        "use_rep": use_rep,
        "label": label,
        "values": values,
        "head": head,
        "seed": seed,
    }
    options["slice_key"] = key_of(part)
    files = _Files(slices, test, predict or [], out, part)
    _learn(tz.tasks.probe, files, options, runs)


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
    part: SlicePart | None = None,
    seed: Seed = 0,
) -> None:
    """Learn cell-type proportions from embedded slices, score the head, and transfer them.

    Example: terrazzo deconvolve a.h5ad --use-rep X_stofm --predict b.h5ad --out deconvolved
    """
    import terrazzo as tz

    options: dict[str, Any] = {
        "use_rep": use_rep,
        "proportions": proportions,
        "head": head,
        "seed": seed,
    }
    options["slice_key"] = key_of(part)
    files = _Files(slices, test, predict or [], out, part)
    _learn(tz.tasks.deconvolve, files, options, runs)


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
        bool, Parameter(group=SCORES, help="Score, too; without --test by splits of one slice.")
    ] = True,
    runs: Runs = 1,
    part: SlicePart | None = None,
    seed: Seed = 0,
) -> None:
    """Tune all parameters of SToFM on labeled slices; annotate other slices.

    Example: terrazzo finetune a.h5ad --model checkpoint --label region --test b.h5ad --out tuned
    """
    import terrazzo as tz
    from terrazzo.systems.stofm.finetune import FineTuneConfig, free_folder
    from terrazzo.systems.stofm.finetune_scores import evaluate_finetuning

    config = FineTuneConfig(max_epochs=epochs)
    targets = targets_of(predict or [], out)
    free_folder(out / "tuned")
    if score and test is None:
        only_one(slices)
    loaded = [read_slice(path, part) for path in slices]
    model_to_tune = tz.load(model)
    if not isinstance(model_to_tune, tz.SToFM):
        raise tz.errors.ConfigError(
            f"{model} holds a {model_to_tune.title}; only SToFM can be fine-tuned."
        )
    if score:
        options: dict[str, Any] = {"label": label, "runs": runs, "seed": seed, "config": config}
        options["slice_key"] = key_of(part)
        if test is None:
            result = evaluate_finetuning(model_to_tune, only_one(loaded), **options)
        else:
            test_slice = read_slice(test, part)
            result = evaluate_finetuning(model_to_tune, loaded, test=test_slice, **options)
        report(result, out / "scores")
    tuned = tz.finetune(
        model_to_tune, loaded, label=label, config=config, seed=seed, slice_key=key_of(part)
    )
    say(f"Tuned model and head: {tuned.save(out / 'tuned')}")
    for path, target in zip(predict or [], targets, strict=True):
        adata = read_slice(path, part)
        tuned.predict(adata, slice_key=key_of(part))
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
        Path | None, Parameter(help="Folder for finished rows and models of ablations.")
    ] = None,
) -> None:
    """Make a paper's table, or one of your own data, beside the published numbers.

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
    rows = (work or out) / f"{protocol.name}.rows"  # finished ones, for the next run
    scores = run(protocol, data=data, models=models or (), work=work, rows=rows, say=say_aside)
    command = ["terrazzo", "bench", table]
    if data is not None:
        command += ["--data", str(data)]
    if models:
        command += ["--models", *models]
    if seeds is not None:
        command += ["--seeds", str(seeds)]
    command += ["--out", str(out)]
    if work is not None:
        command += ["--work", str(work)]
    target = render.write(scores, out, command=shlex.join(command))
    if work is None:
        shutil.rmtree(rows, ignore_errors=True)  # the table has them
    say(target.read_text(encoding="utf-8"))
    say(f"Table: {target}, .html, .json, .png")


@dataclass(frozen=True)
class _Files:
    """Files of a probe.

    Attributes
    ----------
    slices
        To learn from.
    test
        To score on; None: splits of the one slice.
    predict
        To annotate.
    out
        Folder for scores, probe and annotated slices.
    part
        Part of each path that is the slice.
    """

    slices: list[Path]
    test: Path | None
    predict: list[Path]
    out: Path
    part: SlicePart | None


def _learn(task: Any, files: _Files, options: dict[str, Any], runs: int) -> None:
    """Score a head by a task, then fit it on all cells of the slices, and annotate others."""
    import terrazzo as tz

    targets = targets_of(files.predict, files.out)
    if files.test is None:
        only_one(files.slices)
    loaded = [read_slice(path, files.part) for path in files.slices]
    if files.test is None:
        result = task(only_one(loaded), runs=runs, **options)
    else:
        test_slice = read_slice(files.test, files.part)
        result = task(loaded, test=test_slice, runs=runs, **options)
    fitted = tz.tasks.fit_probe(loaded, **options)
    report(result, files.out / "scores")
    folder = fitted.save(files.out / "probe", overwrite=True)
    say(f"Probe: {folder}")
    for path, target in zip(files.predict, targets, strict=True):
        adata = read_slice(path, files.part)
        fitted.annotate(adata)
        write_slice(adata, target, path, files.part)
        say(f"{path.name}: annotated, {target}")
