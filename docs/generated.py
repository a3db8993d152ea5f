"""Pages made from other files at build time: README and changes, measured tables, the command line, recipes' settings.

They are written to ``_generated/``, which git ignores. Pages of the repository link each other as files of the
repository; `mended` turns such links into links between pages.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
OUT = DOCS / "_generated"
RESULTS = ROOT / "benchmarks" / "results"
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
RECIPES = ("stofm-tiny-adapt", "stofm-tiny-pretrain", "stimage-tiny-patch", "stalign-tiny")


def pages() -> dict[Path, Path]:
    """Return file of the repository -> page made of it."""
    plain = {
        ROOT / f"{name}.md": OUT / f"{name.lower()}.md"
        for name in ("README", "CONTRIBUTING", "CHANGELOG")
    }
    return plain | {
        path: OUT / "results" / path.relative_to(RESULTS) for path in sorted(RESULTS.rglob("*.md"))
    }


def mended(text: str, written: Path, page: Path) -> str:
    """Return a page's text with its links to files of the repository as links to pages.

    Parameters
    ----------
    text
        Markdown.
    written
        The file that it is from, to which its links are relative.
    page
        The page that it becomes.
    """
    known = pages()

    def link(found: re.Match[str]) -> str:
        target = (written.parent / found[1]).resolve()
        place = os.path.relpath(known.get(target, target), page.parent)
        return place + (found[2] or "")

    return LINK.sub(link, text)


def write(path: Path, text: str) -> None:
    """Write a page where it differs, so that a second build has less to do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_pages() -> None:
    """Write all generated pages."""
    for source, page in pages().items():
        write(page, mended(source.read_text(encoding="utf-8"), source, page))
    write(OUT / "settings.md", settings())
    write(OUT / "cli.md", command_line())
    write(OUT / "house.md", house())


def command_line() -> str:
    """Return the page of every verb and option, as the program itself has them."""
    from terrazzo.cli.main import app

    text = app.generate_docs(output_format="markdown")
    # from its first list of commands on: title and table of contents stand on every page of ours
    text = text[text.index("\n**", text.index("## Table of Contents")) + 1 :]
    text = re.sub(
        r" -m sphinx\b", "", text
    )  # how this process was started, which the usage lines take up
    text = re.sub(r"^Example: (.*)$", r"Example: `\1`", text, flags=re.MULTILINE)
    return COMMAND_LINE + text


# the file tree


def house() -> str:
    """Return the page of the file tree: every file of the package with the first line of its docstring."""
    lines = []
    package = ROOT / "src" / "terrazzo"
    for path in sorted(package.rglob("*.py"), key=tree_order):
        place = path.relative_to(package)
        indent = "  " * (len(place.parts) - 1)
        about = first_line(path)
        if place.name == "__init__.py":
            folder = f"{place.parent.name}/" if place.parent.parts else "terrazzo/"
            folder_indent = "  " * max(len(place.parts) - 2, 0)
            lines.append(f"{folder_indent}{folder:<22} {about}")
        else:
            lines.append(f"{indent}{place.name:<22} {about}")
    return HOUSE.format(tree="\n".join(lines))


def tree_order(path: Path) -> tuple[tuple[int, str], ...]:
    """Sort a folder's own files before its folders, each by name, and the ``__init__.py`` first."""
    parts = path.relative_to(ROOT / "src" / "terrazzo").parts
    key = [(1, part) for part in parts[:-1]]
    name = parts[-1]
    return (*key, (-1 if name == "__init__.py" else 0, name))


def first_line(path: Path) -> str:
    """Return the first line of a file's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (docstring or "").split("\n")[0]


# settings of a recipe


def comments() -> dict[str, str]:
    """Return what the recipes say of each key, ``optim.lr`` -> its comment; the first recipe that has it."""
    told = {"stage": "adapt and pretrain: the two of SToFM; patches: ST as images; align: ST-Align"}
    for name in RECIPES:
        path: list[str] = []
        above = ""
        for line in (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
            if line.lstrip().startswith("#"):
                above = line.strip(" #") if path else ""
                continue
            if found := re.match(r"( *)([\w+]+):([^#]*)(?:#\s*(.*))?$", line):
                path = [*path[: len(found[1]) // 2], found[2]]
                if comment := found[4] or above:
                    told.setdefault(".".join(path), comment)
            above = ""
    return told


def named(kind: Any) -> str:
    """Return a type as a person would write it."""
    if get_origin(kind) is Literal:
        return ", ".join(str(value) or '""' for value in get_args(kind))
    parts = [part for part in get_args(kind) if part is not type(None)]
    return " or ".join(part.__name__ for part in parts) if parts else kind.__name__


def rows(kind: Any, told: dict[str, str], prefix: str = "") -> list[str]:
    """Return the table rows of a dataclass; sections within it are read likewise."""
    hints, found = get_type_hints(kind), []
    for field in dataclasses.fields(kind):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        inner = next(
            (part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)), None
        )
        if inner is not None:
            found += rows(inner, told, f"{key}.")
            continue
        default = "required" if field.default is dataclasses.MISSING else repr(field.default)
        about = told.get(key, "").replace("|", "\\|")
        found.append(f"| `{key}` | {named(hint)} | `{default}` | {about} |")
    return found


def settings() -> str:
    """Return the page of every key of a recipe."""
    from terrazzo.training.recipe import PretrainConfig

    told, sections = comments(), []
    hints = get_type_hints(PretrainConfig)
    top = [
        f for f in dataclasses.fields(PretrainConfig) if not dataclasses.is_dataclass(hints[f.name])
    ]
    head = "| key | values | default | meaning |\n|---|---|---|---|\n"
    first = dataclasses.make_dataclass(
        "Top",
        [
            (f.name, hints[f.name], dataclasses.field(default=f.default))
            for f in sorted(top, key=_has_default)
        ],
    )
    sections.append(f"## Recipe\n\n{head}" + "\n".join(rows(first, told)))
    for field in dataclasses.fields(PretrainConfig):
        if field not in top:
            lines = rows(hints[field.name], told, f"{field.name}.")
            sections.append(f"## `{field.name}`\n\n{head}" + "\n".join(lines))
    return SETTINGS + "\n\n".join(sections) + "\n"


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING


COMMAND_LINE = """# Command line

Made from the program itself, which says the same with `--help`. Exit code 0: done; 2: wrong usage or bad input, with
one line that says how to mend it; 1: anything else. `--debug`, with any command, shows the traceback.

"""
HOUSE = """# The house

What every file of `src/terrazzo` is for, from its own first line. Imports go one way, from the ground up; the
[rules](contributing.md#the-house) are tested.

```text
{tree}
```
"""
SETTINGS = """# Settings of a recipe

Every key of the YAML files in `configs/`, which `terrazzo pretrain` reads, with the default that holds where a recipe
leaves it out. A key that does not exist is an error that names the nearest one. In Python they are the frozen
dataclasses of `terrazzo.training.recipe`, with the same names. [Training](../training.md) says which matter when.

"""
