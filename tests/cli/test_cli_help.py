"""Help of every command that the app has: on one screen, with examples that can be typed as they stand."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App
from rich.console import Console

from terrazzo.cli.app import app

LINES, COLUMNS = 40, 100  # a screen
REPOSITORY = Path(__file__).resolve().parents[2]


def commands(within: App, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of the app and of every command in it."""
    yield before
    for name in within:
        if not name.startswith("-"):
            yield from commands(within[name], (*before, name))


COMMANDS = list(commands(app))
every_command = pytest.mark.parametrize(
    "words", COMMANDS, ids=lambda words: " ".join(words) or "terrazzo"
)


def shown(words: tuple[str, ...], columns: int = COLUMNS) -> str:
    """Return the help of a command on a screen of so many columns."""
    stream = io.StringIO()
    app.help_print(list(words), console=Console(file=stream, width=columns))
    return stream.getvalue()


def examples(text: str) -> list[list[str]]:
    """Return the words of the command lines in a text, of those over several lines too, without `> FILE` at the end."""
    lines = re.findall(r"^(?:Example: )?terrazzo (.+)$", text.replace("\\\n", " "), flags=re.M)
    return [shlex.split(line.partition(" > ")[0], comments=True) for line in lines]


def bind(words: list[str]) -> None:
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_all_commands_are_found() -> None:
    assert len(COMMANDS) > 20
    assert {("embed",), ("corpus", "build"), ("recipes", "show")} <= set(COMMANDS)


@every_command
def test_help_fits_a_screen(words: tuple[str, ...]) -> None:
    lines = shown(words).rstrip().splitlines()
    assert len(lines) <= LINES
    assert max(len(line.rstrip()) for line in lines) <= COLUMNS
    assert max(len(line.rstrip()) for line in shown(words, 80).splitlines()) <= 80


@every_command
def test_help_shows_examples_that_can_be_typed(words: tuple[str, ...]) -> None:
    found = examples(shown(words))
    assert found
    for example in found:
        assert tuple(example[: len(words)]) == words
        bind(example)


@every_command
def test_every_option_says_what_it_is(words: tuple[str, ...]) -> None:
    options = re.findall(
        r"^ +\*? *(--[\w-]+)[^ ]*(?: [A-Z][A-Z.]+)?(.*)$", shown(words, 200), flags=re.M
    )
    assert [name for name, text in options if not text.strip()] == []


def test_help_names_every_verb(call: Any) -> None:
    text = shown(())
    assert [words for words in COMMANDS if words and f"  {words[0]} " not in text] == []
    assert "--debug" in text
    assert call() == call("--help")
    assert call("embed", "--help")[0] == 0


def test_an_example_that_rots_is_noticed() -> None:
    with pytest.raises(Exception, match="color"):
        bind(examples("Example: terrazzo info a.h5ad --color red")[0])


def test_the_command_lines_of_the_readme_can_be_typed() -> None:
    blocks = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("```")[1::2]
    found = [line for block in blocks for line in examples(block)]
    assert len(found) >= 5
    for line in found:
        bind(line)
