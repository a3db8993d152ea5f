"""Verb ``embed``, with the options of all systems and those of the checkpoint's system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from terrazzo.cli.options import FIRST, Overwrite, Reading, load_model, out_console, say

if TYPE_CHECKING:
    from terrazzo.models.base import FoundationModel
    from terrazzo.models.baselines import Baseline

__all__ = ["check_options", "register", "system_help"]

VERB = "embed"

HELP_FLAGS = ("--help", "-h")


def register(app: App) -> None:
    """Add the verb to the command line."""
    app.command(embed, group=FIRST)


def embed(
    slices: Annotated[
        list[str],
        Parameter(help="Slices: .h5ad, .zarr (AnnData, SpatialData), folders of vendors."),
    ],
    /,
    *,
    model: Annotated[
        str,
        Parameter(help="Checkpoint folder, name (terrazzo models, or the hub's), or baseline: t2."),
    ],
    out: Annotated[Path, Parameter(help="Folder for the embedded slices.")],
    key: Annotated[
        str | None, Parameter(help="obsm key; default: the model's own, e.g. X_stofm.")
    ] = None,
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1, ...")] = "cpu",
    orthologs: Annotated[
        Path | None,
        Parameter(
            help="Two-column table from the slice's genes to the model's; default, for human and mouse: terrazzo's own."
        ),
    ] = None,
    reading: Reading | None = None,
    overwrite: Overwrite = False,
    skip_failed: Annotated[
        bool,
        Parameter(negative=(), help="Skip slices on which a library crashes: read each twice."),
    ] = False,
    dry_run: Annotated[bool, Parameter(negative=(), help="Print the plan and stop.")] = False,
    **system_options: Annotated[str, Parameter(show=False)],
) -> None:
    """Compute one vector for every cell, in obsm; finished slices are left alone.

    Options of one system, such as --halo: terrazzo embed --help SYSTEM.
    Example: terrazzo embed a.h5ad b.h5ad --model checkpoint --out embedded
    """
    import terrazzo as tz
    from terrazzo.errors import ConfigError, InputError

    typed = {name.replace("-", "_"): text for name, text in system_options.items()}
    loaded, options = _loaded(model, device, typed)
    if orthologs is not None:
        options["orthologs"] = str(orthologs)
    options.update((reading or Reading()).options())
    if isinstance(loaded, tz.Baseline):
        if orthologs is not None:
            raise ConfigError(f"--orthologs belongs to models; {model} is a baseline.")
    elif not loaded.trained:
        out_console().print(
            "[yellow]The weights of this checkpoint are random: they were never trained.[/yellow]"
        )
    n_failed = 0
    embedded = tz.embed_files(
        loaded,
        slices,
        out,
        key_added=key,
        overwrite=overwrite,
        dry_run=dry_run,
        keep_going=len(slices) > 1 or skip_failed,
        read_apart=skip_failed,
        announce=say,
        **options,
    )
    for done in embedded:
        say(str(done))
        if done.status == "failed":
            n_failed += 1
    if n_failed:
        raise InputError(
            f"{n_failed} of {len(slices)} slices could not be used; the others are done."
        )


def _loaded(
    model: str, device: str, typed: dict[str, str]
) -> tuple[FoundationModel | Baseline, dict[str, Any]]:
    """Return the model or baseline of a name, and the options of its own."""
    from terrazzo.models.baselines import Baseline
    from terrazzo.models.options import EmbedOptions

    loaded = load_model(model, device)
    if isinstance(loaded, Baseline):
        return loaded, EmbedOptions.parsed(typed, loaded.title)
    return loaded, loaded.options_class.parsed(typed, loaded.title)


def system_help(words: Sequence[str]) -> list[str] | None:
    """Return the lines that ``terrazzo embed --help SYSTEM`` prints; None for other commands.

    Raises
    ------
    ConfigError
        No such system.
    """
    if not words or words[0] != VERB or not any(word in HELP_FLAGS for word in words):
        return None
    names = [word for word in words[1:] if word not in HELP_FLAGS]
    if len(names) != 1 or not names[0].isidentifier():  # a slice, or options
        return None
    from terrazzo.errors import ConfigError, did_you_mean
    from terrazzo.systems import registry

    systems = registry.systems()
    name = names[0]
    if name not in systems:
        hint = did_you_mean(name, systems, f"The systems are {', '.join(systems)}.")
        raise ConfigError(f"there is no system {name!r}.{hint}")
    system = systems[name]
    lines = []
    for model_type, reference in system.options.items():
        lines.append(f"Options of {system.title} ({model_type})")
        options = registry.resolve(reference).help()
        flags = [f"{one.flag} {one.kind}" for one in options]
        width = max((len(flag) for flag in flags), default=0)
        for flag, one in zip(flags, options, strict=True):
            lines.append(f"  {flag:<{width}}  {one.text}")
        if not options:
            lines.append("  none of its own")
    lines.append("Options that all systems share: terrazzo embed --help")
    return lines


def check_options(app: App, words: Sequence[str]) -> None:
    """Refuse an option that neither the verb nor any system has, before anything is loaded.

    Raises
    ------
    ConfigError
        The nearest option is named.
    """
    if not words or words[0] != VERB:
        return
    from terrazzo.errors import ConfigError, did_you_mean
    from terrazzo.models.options import flag_of
    from terrazzo.systems import registry

    known = [*HELP_FLAGS]
    for argument in app[VERB].assemble_argument_collection():
        known += [name for name in argument.names if name.startswith("--")]
    for system in registry.systems().values():
        for reference in system.options.values():
            known += [flag_of(name) for name in registry.resolve(reference).names()]
    for word in words[1:]:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            hint = did_you_mean(flag, known, f"All options: terrazzo {VERB} --help.")
            raise ConfigError(f"{VERB} has no option {flag}.{hint}")
