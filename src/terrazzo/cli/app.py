"""The command line. Exit codes: 0 done; 2 wrong usage or bad input; 130 Ctrl-C, 143 SIGTERM; 1 another error."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.markup import escape

from terrazzo._version import __version__
from terrazzo.cli import (
    answers,
    convert,
    data,
    embed,
    genes,
    info,
    models,
    report,
    tasks,
    training,
)
from terrazzo.cli.corpus import corpus_app
from terrazzo.cli.help import OneScreen
from terrazzo.cli.options import FIRST, OPTIONS, OTHERS, Overwrite, out_console, say
from terrazzo.cli.stop import Stop, how_to_go_on, stoppable
from terrazzo.errors import ConfigError, TerrazzoError, TerrazzoWarning, printable, shortened

__all__ = ["app", "main"]

OUT_OF_MEMORY = (
    "this needs more memory than there is. Take fewer or smaller slices, or a larger machine."
)
HINT = "Add --debug to any command for a full traceback."

app = App(
    name="terrazzo",
    help="Foundation models for spatial transcriptomics: one vector for each cell.\n\n"
    f"Example: terrazzo embed slice.h5ad --model checkpoint --out embedded\n\nMore: terrazzo VERB --help. {HINT}",
    group_arguments=OPTIONS,
    group_parameters=OPTIONS,
    group_commands=OTHERS,
    default_parameter=Parameter(negative_iterable=()),  # no --empty-... beside every list
    help_format="plaintext",
    help_formatter=OneScreen(),
    version=__version__,
    suppress_keyboard_interrupt=False,  # main prints how to go on after an interrupt
)
answers.register(app)
info.register(app)
embed.register(app)
models.register(app)
training.register(app)
convert.register(app)
app.command(corpus_app)
tasks.register(app)
genes.register(app)
report.register(app)
app.command(data.data_app)


@app.command(group=FIRST)
def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder for the results.")] = Path("terrazzo-demo"),
    cells: Annotated[int, Parameter(help="Cells of each simulated slice.")] = 700,
    seed: Annotated[
        int, Parameter(help="Seed of tissue and weights.", validator=Number(gte=0))
    ] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a small corpus, train on it, find the domains of another slice: minutes.

    Example: terrazzo demo --out my-demo
    """
    from terrazzo import demo as run_demo

    folder = run_demo.run(out, n_cells=cells, seed=seed, overwrite=overwrite)
    say((folder / "demo.md").read_text(encoding="utf-8"))
    say(f"Figures: {folder / 'demo.png'}, {folder / 'losses.png'}")
    say(f"Slice with obsm['X_stofm'], ['X_stimage'] and ['X_stalign']: {folder / 'demo.h5ad'}")
    say(f"Models: {folder / 'stofm'}, {folder / 'stimage'}, {folder / 'stalign'}")
    say(f"Report, open it in a browser: {folder / run_demo.REPORT}")


@app.command(group=OTHERS)
def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"] | None, Parameter(help="Default: the current shell.")
    ] = None,
    /,
    *,
    install: Annotated[
        bool, Parameter(negative=(), help="Write it to the shell's folder of completions.")
    ] = False,
) -> None:
    """Print the script that lets a shell complete verbs and options with the Tab key.

    Example: terrazzo completion bash --install
    """
    from cyclopts.completion import ShellDetectionError

    from terrazzo.errors import OutputError

    try:
        if not install:
            sys.stdout.write(app.generate_completion(shell=shell) + "\n")
            return
        script = app.install_completion(shell=shell)
    except ShellDetectionError as error:
        raise ConfigError(
            "the shell could not be detected: name it, e.g. terrazzo completion bash."
        ) from error
    except OSError as error:
        raise OutputError(
            f"{error.filename} cannot be written ({error.strerror}): leave out --install, and save the printed script "
            "in your shell's folder of completions."
        ) from error
    out_console().print(
        f"Written to {script}; it works in the next shell that you open.", markup=False
    )


def _show_warning(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    """Print the library's own warnings as one line; others are not shown."""
    if issubclass(category, TerrazzoWarning):
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[yellow]warning:[/yellow] {escape(printable(str(message)))}"
        )


def _check_words(words: Sequence[str]) -> None:
    """Refuse words that are not Unicode, or that no file's name can hold."""
    for word in words:
        shown = shortened(word, 200)
        if "\0" in word:
            raise ConfigError(f"{shown} holds a NUL, which no name can")
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{shown} is not text in UTF-8: results could not name it; rename the file or folder"
            ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Parameters
    ----------
    arguments
        Without the program's name; None takes them from ``sys.argv``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stop = Stop()
    try:
        with stoppable() as stop, warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("always", TerrazzoWarning)
            _check_words(words)
            lines = embed.system_help(words)
            if lines is not None:
                say("\n".join(lines))
                return 0
            embed.check_options(app, words)
            app(words, exit_on_error=False, print_error=False, result_action="return_none")
    except TerrazzoError as error:
        if debug:
            traceback.print_exc()
        errors.print(f"[red]error:[/red] {escape(printable(str(error)))}")
        return 2
    except MemoryError:
        if debug:
            traceback.print_exc()
        errors.print(f"[red]error:[/red] {OUT_OF_MEMORY}")
        return 2
    except CycloptsError as error:
        errors.print("[red]error:[/red]", escape(printable(str(error))))
        known, *_ = app.parse_commands(words)  # a misspelled verb has no help
        command = " ".join(["terrazzo", *known])
        errors.print(f"Try: {command} --help")
        return 2
    except KeyboardInterrupt as interrupt:
        for line in interrupt.args:  # how far a training run came
            errors.print(escape(printable(str(line))))
        errors.print(f"stopped: {how_to_go_on(words)}")
        return stop.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        errors.print(
            f"[red]unexpected error:[/red] {type(error).__name__}: {escape(printable(str(error)))}. {HINT}"
        )
        return 1
    return 0
