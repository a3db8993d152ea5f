"""Verbs for tasks and tables: domains, probe, deconvolve, finetune, bench."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from terrazzo.cli.options import (
    SCORES,
    SHOWING,
    TASKS,
    TRAINING,
    Across,
    Batch,
    CommonGenes,
    Copies,
    Embedded,
    Head,
    Out,
    Overwrite,
    Planned,
    Predict,
    Rep,
    RepOrModel,
    Runs,
    Seed,
    SlicePart,
    Test,
    check_results,
    key_of,
    only_one,
    plan,
    read_slice,
    report,
    say,
    say_aside,
    write_slice,
)

if TYPE_CHECKING:
    from anndata import AnnData

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
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Find tissue domains in embedded slices; write the slices and a figure of each.

    Example: terrazzo domains embedded/a.h5ad --use-rep X_stofm -k 7 --out domains
    """
    import terrazzo as tz

    planned = plan("domains", slices, out, part, overwrite=overwrite, with_figures=True)
    if label is not None:
        for one in planned:
            check_results(_scores_of(one), "domains", [one.source], part, overwrite=overwrite)
    column = tz.keys.domain_key(use_rep.replace(":", "_"))
    options: dict[str, Any] = {
        "use_rep": use_rep,
        "n_domains": n_domains,
        "method": method,
        "refine": refine,
        "slice_key": key_of(part),
    }
    batch = Batch(len(planned))
    for one in planned:
        with batch.one(one, part):
            adata = read_slice(one.source, part, to_write=True)
            tz.tasks.domains(adata, n_seeds=n_seeds, seed=seed, **options)
            result = None
            if label is not None:
                result = tz.tasks.evaluate_domains(adata, label=label, **options)
            write_slice(adata, one, part)
            figure: Any = tz.plot.spatial(adata, color=column, slice_key=key_of(part)).figure
            tz.plot.save(figure, one.figure, mark=one.mark, overwrite=overwrite)
            name = one.source.name
            say(f"{name}: {n_domains} domains in obs[{column!r}], {one.target} and .png")
            if result is not None:
                report(result, _scores_of(one), one.mark, overwrite=overwrite)
    batch.end()


def _scores_of(planned: Planned) -> Path:
    return planned.target.with_name(f"{planned.target.stem}-scores")


def probe(
    slices: Embedded,
    /,
    *,
    out: Out,
    use_rep: RepOrModel = None,
    label: Annotated[str | None, Parameter(help="obs column to learn.")] = None,
    values: Annotated[
        str | None, Parameter(help="obsm key of numbers to learn, in place of --label.")
    ] = None,
    head: Head = "mlp3",
    test: Test = None,
    predict: Predict = None,
    across: Across | None = None,
    runs: Runs = 3,
    part: SlicePart | None = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Learn labels from embedded slices, score the head, and annotate other slices.

    Example: terrazzo probe a.h5ad --use-rep X_stofm --label region --test b.h5ad --out probe
    Example: terrazzo probe a.h5ad --model t3 --label region --test b.h5ad --out probe
    """
    import terrazzo as tz

    options: dict[str, Any] = {
        "use_rep": use_rep,
        "label": label,
        "values": values,
        "head": head,
        "seed": seed,
        "slice_key": key_of(part),
        **(across or Across()).options(),
    }
    files = _Files("probe", slices, test, predict or [], out, part, overwrite)
    _learn(tz.tasks.probe, files, options, runs)


def deconvolve(
    slices: Embedded,
    /,
    *,
    out: Out,
    use_rep: RepOrModel = None,
    proportions: Annotated[
        str, Parameter(help="obsm key of the proportions; rows sum to one.")
    ] = "proportions",
    head: Head = "mlp3",
    test: Test = None,
    predict: Predict = None,
    across: Across | None = None,
    runs: Runs = 3,
    part: SlicePart | None = None,
    overwrite: Overwrite = False,
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
        "slice_key": key_of(part),
        **(across or Across()).options(),
    }
    files = _Files("deconvolve", slices, test, predict or [], out, part, overwrite)
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
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Tune all parameters of SToFM on labeled slices; annotate other slices.

    Example: terrazzo finetune a.h5ad --model checkpoint --label region --test b.h5ad --out tuned
    """
    import terrazzo as tz
    from terrazzo.locks import alone
    from terrazzo.models.embed_files import check_writable
    from terrazzo.systems.stofm.finetune import FineTuneConfig, free_folder

    config = FineTuneConfig(max_epochs=epochs)
    options: dict[str, Any] = {"label": label, "seed": seed, "config": config}
    options["slice_key"] = key_of(part)
    files = _Files("finetune", slices, test, predict or [], out, part, overwrite)
    check_writable(out)
    with alone(out, "written"):
        planned = files.planned()
        free_folder(out / "tuned", overwrite=overwrite)
        if score:
            mark = files.check_scores()
        loaded = [read_slice(path, part) for path in slices]
        model_to_tune = tz.load(model)
        if not isinstance(model_to_tune, tz.SToFM):
            raise tz.errors.ConfigError(
                f"{model} holds a {model_to_tune.title}; only SToFM can be fine-tuned."
            )
        tuned = None
        if score:
            result, tuned = _score_tuning(model_to_tune, loaded, files, runs, options)
            report(result, out / "scores", mark, overwrite=overwrite)
        if tuned is None:
            tuned = tz.finetune(model_to_tune, loaded, **options)
        say(tuned.ended)
        folder = tuned.save(out / "tuned", overwrite=overwrite)
        say(f"Tuned model and head: {folder}")
        batch = Batch(len(planned))
        for one in planned:
            with batch.one(one, part):
                adata = read_slice(one.source, part, to_write=True)
                tuned.predict(adata, slice_key=key_of(part))
                tuned.probe.annotate(adata, use_rep="X_stofm:all")
                write_slice(adata, one, part)
                say(f"{one.source.name}: annotated, {one.target}")
        batch.end()


def _score_tuning(
    model: Any, loaded: list[Any], files: _Files, runs: int, options: dict[str, Any]
) -> tuple[Any, Any]:
    """Return scores, and the tuned model where the scores are its own: those on another slice."""
    from terrazzo.systems.stofm.finetune_scores import evaluate_finetuning, tune_and_score

    if files.test is None:
        return evaluate_finetuning(model, only_one(loaded), runs=runs, **options), None
    test_slice = read_slice(files.test, files.part)
    return tune_and_score(model, loaded, test=test_slice, runs=runs, **options)


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
    common_genes: CommonGenes = None,
    copies: Copies = None,
    out: Annotated[Path, Parameter(help="Folder for the table.")] = Path("tables"),
    work: Annotated[
        Path | None, Parameter(help="Folder for finished rows and models of ablations.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a paper's table, or one of your own data, beside the published numbers.

    Example: terrazzo bench stofm-1-dlpfc --data data --models stofm=run/model --out tables
    """
    from terrazzo.bench import protocols, render
    from terrazzo.bench.rows import FinishedRows, lock_of
    from terrazzo.bench.run import run
    from terrazzo.locks import alone
    from terrazzo.marks import mark_of
    from terrazzo.models.embed_files import check_writable

    if table is None:
        for name in protocols.names():
            say(f"{name:<24}{protocols.load(name).title}")
        return
    changes: dict[str, Any] = {"runs": seeds, "copies": copies}
    if common_genes is not None:
        changes["common_genes"] = "yes" if common_genes else "no"
    protocol = protocols.changed(protocols.load(table), **changes)
    is_file = Path(table).is_file()
    origin = {"table": "" if is_file else table, "data": None if data is None else data.resolve()}
    mark = mark_of("bench", [Path(table)] if is_file else [], origin)
    render.check_free(protocol.name, out, mark, overwrite=overwrite)
    check_writable(out)
    rows = (work or out) / f"{protocol.name}.rows"  # finished ones, for the next run
    check_writable(rows.parent)
    command = ["terrazzo", "bench", table]
    if data is not None:
        command += ["--data", str(data)]
    if models:
        command += ["--models", *models]
    if seeds is not None:
        command += ["--seeds", str(seeds)]
    if common_genes is not None:
        command.append("--common-genes" if common_genes else "--no-common-genes")
    if copies is not None:
        command.append("--copies" if copies else "--no-copies")
    command += ["--out", str(out)]
    if work is not None:
        command += ["--work", str(work)]
    with contextlib.ExitStack() as locks:
        for folder in {out.resolve(), rows.parent.resolve()}:
            locks.enter_context(alone(folder, "written", name=lock_of(protocol)))
        scores = run(protocol, data=data, models=models or (), work=work, rows=rows, say=say_aside)
        target = render.write(
            scores, out, command=shlex.join(command), mark=mark, overwrite=overwrite
        )
        if work is None:
            FinishedRows(rows, protocol).remove()  # the table has them
    say(target.read_text(encoding="utf-8"))
    say(f"Table: {target}, .html, .json, .png")


@dataclass(frozen=True)
class _Files:
    """Files of a verb that learns.

    Attributes
    ----------
    verb
        Its name.
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
    overwrite
        Replace what is there, whatever it is.
    """

    verb: str
    slices: list[Path]
    test: Path | None
    predict: list[Path]
    out: Path
    part: SlicePart | None
    overwrite: bool

    def planned(self) -> list[Planned]:
        """Return where the annotated slices go; see :func:`terrazzo.cli.options.plan`."""
        return plan(self.verb, self.predict, self.out, self.part, overwrite=self.overwrite)

    def check_scores(self) -> Any:
        """Check that scores can be written; return their mark. See :func:`terrazzo.cli.options.check_results`."""
        sources = list(self.slices)
        if self.test is None:
            only_one(self.slices)
        else:
            sources.append(self.test)
        return check_results(
            self.out / "scores", self.verb, sources, self.part, overwrite=self.overwrite
        )


def _learn(task: Any, files: _Files, options: dict[str, Any], runs: int) -> None:
    """Score a head by a task, then fit it on all cells of the slices, and annotate others."""
    import terrazzo as tz
    from terrazzo.tasks import probe_files
    from terrazzo.tasks.transfer import warn_of_shift

    planned = files.planned()
    mark = files.check_scores()
    probe_files.check_free(files.out / "probe", overwrite=files.overwrite, mark=mark)
    loaded = [read_slice(path, files.part) for path in files.slices]
    ends: list[AnnData] = []
    if files.test is None:
        result = task(only_one(loaded), runs=runs, **options)
    else:
        test_slice = read_slice(files.test, files.part)
        result = task(loaded, test=test_slice, runs=runs, **options)
        ends = [test_slice]
    embedded: dict[Path, AnnData] = {}  # by the model: all of them, before the probe is fitted
    if options["model"] is not None:
        for one in planned:
            embedded[one.source] = read_slice(one.source, files.part, to_write=True)
        options["predict"] = list(embedded.values()) or ends or None
    fitted = tz.tasks.fit_probe(loaded, **options)
    report(result, files.out / "scores", mark, overwrite=files.overwrite)
    folder = fitted.save(files.out / "probe", overwrite=files.overwrite, mark=mark)
    say(f"Probe: {folder}")
    batch = Batch(len(planned))
    for one in planned:
        with batch.one(one, files.part):
            if one.source in embedded:
                adata = embedded[one.source]
            else:
                adata = read_slice(one.source, files.part, to_write=True)
                warn_of_shift(loaded, adata, options["use_rep"])
            fitted.annotate(adata)
            write_slice(adata, one, files.part)
            say(f"{one.source.name}: annotated, {one.target}")
    batch.end()
