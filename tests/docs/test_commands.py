"""Every command line and every name of the library that a page writes down exists as it is written."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import fenced
import pytest
from cyclopts import CycloptsError

import terrazzo as tz
from terrazzo.cli.app import app
from terrazzo.cli.embed import embed
from terrazzo.models.options import SLICE_OPTIONS, owners
from terrazzo.systems import registry

PAGES = fenced.pages()
every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda p: str(p.relative_to(fenced.REPOSITORY))
)


@every_page
def test_commands_can_be_typed(page: Path) -> None:
    refused = []
    for line, words in fenced.commands(page):
        try:
            app.parse_args(
                [w for w in words if w != "--debug"], exit_on_error=False, print_error=False
            )
        except CycloptsError as error:
            refused.append(f"line {line}: terrazzo {' '.join(words)}: {error}")
    assert refused == []


@every_page
def test_recipes_that_commands_name_are_there(page: Path) -> None:
    files, recipes = [], []
    for _, words in fenced.commands(page):
        files += [word for word in words if word.startswith("configs/")]
        if words[0] == "pretrain":
            recipes.append(words[1])
        elif words[:2] == ["recipes", "show"]:
            recipes.append(words[2])
    assert [file for file in files if not (fenced.REPOSITORY / file).is_file()] == []
    shipped = registry.recipe_files()
    named = [name for name in recipes if not name.endswith(".yaml")]  # else one's own file
    assert [name for name in named if name not in shipped] == []


@every_page
def test_options_of_embed_belong_to_a_system(page: Path) -> None:
    shared = set(inspect.signature(embed).parameters) | set(SLICE_OPTIONS) | {"image_scale"}
    unknown = []
    for line, words in fenced.commands(page):
        for word in words if words[0] == "embed" else ():
            name = word.removeprefix("--").replace("-", "_")
            if word.startswith("--") and name not in shared and not owners(name):
                unknown.append(f"line {line}: {word}")
    assert unknown == []


def chain(node: ast.AST) -> list[str]:
    """Return ``["tz", "tasks", "domains"]`` for ``tz.tasks.domains``; nothing where it is no such chain."""
    if isinstance(node, ast.Attribute):
        before = chain(node.value)
        return [*before, node.attr] if before else []
    return [node.id] if isinstance(node, ast.Name) else []


def public(names: list[str]) -> Any:
    """Return what a chain of names from ``tz`` on means."""
    found: Any = tz
    for name in names[1:]:
        found = getattr(found, name)
    return found


@every_page
def test_names_of_the_library_exist(page: Path) -> None:
    wrong = []
    for block in fenced.blocks(page):
        if block.language not in ("python", "{code-cell}"):
            continue
        text = "\n".join(line for line in block.text.splitlines() if not line.startswith(":"))
        for node in ast.walk(ast.parse(text)):
            names = chain(node) if isinstance(node, ast.Attribute) else []
            if names[:1] == ["tz"]:
                try:
                    public(names)
                except AttributeError:
                    wrong.append(f"line {block.line}: {'.'.join(names)}")
    assert wrong == []


@every_page
def test_keywords_of_calls_exist(page: Path) -> None:
    wrong = []
    for block in fenced.blocks(page):
        if block.language not in ("python", "{code-cell}"):
            continue
        text = "\n".join(line for line in block.text.splitlines() if not line.startswith(":"))
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            names = chain(call.func)
            if names[:1] != ["tz"] or len(names) < 2:
                continue
            known = inspect.signature(public(names)).parameters
            if any(p.kind is p.VAR_KEYWORD for p in known.values()):
                continue
            given = [keyword.arg for keyword in call.keywords if keyword.arg]
            wrong += [
                f"line {block.line}: {'.'.join(names)}({name}=)"
                for name in given
                if name not in known
            ]
    assert wrong == []


def test_the_reader_of_pages() -> None:
    shown = "a.h5ad: 3,639 cells in obs['X'], about 3 s, score 0.56"
    assert fenced.facts(shown) == fenced.Facts(["3639", "0.56"], ["a.h5ad", "X"])
    assert fenced.missing(shown, "written a.h5ad, 'X': 3639; .. 0.58 in 99 s") == []
    assert fenced.missing(shown, "written b.h5ad, 'X': 3640; 0.76") == ["a.h5ad", "3639", "0.56"]
    assert sum(1 for page in PAGES for _ in fenced.commands(page)) > 50
