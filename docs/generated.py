"""Pages made from other files at build time: README and changes, measured tables, the command line, recipes' settings.

They are written to ``_generated/``, which git ignores. Pages of the repository link each other as files of the
repository; `with_page_links` turns such links into links between pages.
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
SECTIONS = ("model", "data", "objective")  # of a recipe that every stage has of its own


def pages() -> dict[Path, Path]:
    """Return file of the repository -> page made of it."""
    plain = {
        ROOT / f"{name}.md": OUT / f"{name.lower()}.md"
        for name in ("README", "CONTRIBUTING", "CHANGELOG")
    }
    return plain | {
        path: OUT / "results" / path.relative_to(RESULTS) for path in sorted(RESULTS.rglob("*.md"))
    }


def with_page_links(text: str, written: Path, page: Path) -> str:
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
        write(page, with_page_links(source.read_text(encoding="utf-8"), source, page))
    write(OUT / "settings.md", settings())
    write(OUT / "cli.md", command_line())
    write(OUT / "house.md", house())


def command_line() -> str:
    """Return the page of every verb and option, as the program itself has them."""
    from terrazzo.cli.app import app
    from terrazzo.cli.embed import system_help
    from terrazzo.systems import registry

    text = app.generate_docs(output_format="markdown")
    # from its first list of commands on: every page has its own title and table of contents
    text = text[text.index("\n**", text.index("## Table of Contents")) + 1 :]
    text = re.sub(r" -m sphinx\b", "", text)  # how this process was started, in the usage lines
    text = re.sub(r"^Example: (.*)$", r"Example: `\1`", text, flags=re.MULTILINE)
    of_systems = []
    for name, system in registry.systems().items():
        if system.options:
            lines = "\n".join(system_help(["embed", "--help", name]) or [])
            of_systems.append(f"```text\n$ terrazzo embed --help {name}\n{lines}\n```")
    return COMMAND_LINE + text + "\n\n" + EMBED + "\n\n".join(of_systems) + "\n"


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


# kinds of input


def input_kinds() -> str:
    """Return the table of kinds of input, by part of the page, from the markers ``case`` of the tests."""
    by_kind: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for kind, given, gets in cases(path):
            by_kind.setdefault(kind, []).append(f"| {given} | {gets} |")
    parts = []
    for kind, title in KINDS.items():
        if kind in by_kind:
            lines = "\n".join(dict.fromkeys(by_kind[kind]))
            parts.append(f"**{title}**\n\n| input | what it gets |\n|---|---|\n{lines}")
    return "\n\n".join(parts) + "\n"


def cases(path: Path) -> list[tuple[str, str, str]]:
    """Return kind, input and what it gets, of every marker ``case`` in a file of tests."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) != "pytest.mark.case":
            continue
        texts = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
        kind = ast.literal_eval(node.args[0])
        given = texts["given"].replace("|", "\\|")
        gets = texts["gets"].replace("|", "\\|")
        found.append((kind, given, gets))
    return found


def with_input_kinds(text: str) -> str:
    """Return the page of input with the table as the tests have it now."""
    start = text.index(FIRST_MARK) + len(FIRST_MARK)
    end = text.index(LAST_MARK)
    return f"{text[:start]}\n\n{input_kinds()}\n{text[end:]}"


# settings of a recipe


def stages() -> dict[str, Any]:
    """Return the name of every stage and its recipe class."""
    from terrazzo.systems import registry

    out = {}
    for system in registry.systems().values():
        for name in system.stages:
            out[name] = registry.stage_class(name).recipe_class
    return out


def comments(stage: str) -> dict[str, str]:
    """Return the comment of each key in the recipes of a stage, ``optim.lr`` -> its comment; the first recipe's."""
    from terrazzo.systems import registry

    out: dict[str, str] = {}
    for file in registry.recipe_files().values():
        text = file.read_text(encoding="utf-8")
        if f"\nstage: {stage} " in text:
            out = {**comments_of(text), **out}
    return out


def comments_of(text: str) -> dict[str, str]:
    """Return the comment of each key of a recipe: behind it, or in the line above."""
    out: dict[str, str] = {}
    path: list[str] = []
    above = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            above = line.strip(" #") if path else ""
            continue
        if match := re.match(r"( *)([\w+]+):([^#]*)(?:#\s*(.*))?$", line):
            indent, key, _, comment = match.groups()
            path = [*path[: len(indent) // 2], key]
            out[".".join(path)] = comment or above
        above = ""
    return out


def named(kind: Any) -> str:
    """Return a type as a person would write it."""
    if get_origin(kind) is Literal:
        return ", ".join(str(value) or '""' for value in get_args(kind))
    parts = [part for part in get_args(kind) if part is not type(None)]
    return " or ".join(part.__name__ for part in parts) if parts else kind.__name__


def rows(kind: Any, about: dict[str, str], prefix: str = "") -> list[str]:
    """Return the table rows of a dataclass; sections within it are read likewise."""
    hints = get_type_hints(kind)
    out = []
    for field in dataclasses.fields(kind):
        key = f"{prefix}{field.name}"
        inner = section_class(hints[field.name])
        if inner is None:
            out.append(row(key, hints[field.name], field.default, about))
        else:
            out += rows(inner, about, f"{key}.")
    return out


def section_class(hint: Any) -> Any:
    """Return the dataclass that a field holds; None where it holds none."""
    for part in (hint, *get_args(hint)):
        if dataclasses.is_dataclass(part):
            return part
    return None


def row(key: str, hint: Any, default: Any, about: dict[str, str]) -> str:
    """Return one row: key, values, default, meaning."""
    shown = "required" if default is dataclasses.MISSING else repr(default)
    meaning = about.get(key, "").replace("|", "\\|")
    return f"| `{key}` | {named(hint)} | `{shown}` | {meaning} |"


def settings() -> str:
    """Return the page of every key of a recipe: those of all stages, then each stage's own."""
    from terrazzo.training.recipe import OptimConfig, Recipe, RunConfig

    about = comments(next(iter(stages())))
    hints = get_type_hints(Recipe)
    lines = []
    for field in dataclasses.fields(Recipe):
        if field.name not in (*SECTIONS, "optim", "run"):
            lines.append(row(field.name, hints[field.name], field.default, about))
    lines += rows(OptimConfig, about, "optim.") + rows(RunConfig, about, "run.")
    sections = ["## All stages\n\n" + HEAD + "\n".join(lines)]
    for name, recipe_class in stages().items():
        about = comments(name)
        hints = get_type_hints(recipe_class)
        lines = []
        for section in SECTIONS:
            lines += rows(hints[section], about, f"{section}.")
        sections.append(f"## `{name}`\n\n" + HEAD + "\n".join(lines))
    return SETTINGS + "\n\n".join(sections) + "\n"


FIRST_MARK = "<!-- made from the tests by `python docs/generated.py`: first -->"
LAST_MARK = "<!-- made from the tests: last -->"
KINDS = {
    "A": "Several sections in one file",
    "B": "Units",
    "C": "Features that are not genes",
    "D": "Matrices that are not counts of these cells",
    "E": "Panels and species",
    "F": "Histology",
    "G": "Targets: what is there already",
    "H": "What can be read and not written",
    "I": "Runs that were stopped, and runs beside others",
    "J": "Damaged matrices",
    "K": "Links and names that lead elsewhere",
    "L": "Sizes that are claimed",
    "M": "Damaged or hostile settings and records",
    "N": "Regions, types and labels that cannot be found",
    "files": "Files that look damaged and are not",
}
HEAD = "| key | values | default | meaning |\n|---|---|---|---|\n"
COMMAND_LINE = """# Command line

Made from the program itself, which prints the same with `--help`. Exit code 0: done; 2: wrong usage or bad input, with
one line that says how to fix it; 1: anything else. `--debug`, with any command, shows the traceback.

"""
EMBED = """## Options of one system

`terrazzo embed` also takes the options of the system whose checkpoint it loads.

"""
HOUSE = """# The house

What every file of `src/terrazzo` is for, from its own first line. Imports go one way, from the ground up; the
[rules](contributing.md#the-house) are tested.

```text
{tree}
```
"""
SETTINGS = """# Settings of a recipe

Every key of the recipes that `terrazzo pretrain` reads (`terrazzo recipes` lists them), with the default that holds
where a recipe leaves it out. A stage has no other keys than those of all stages and its own; a key that does not exist
is an error that names the nearest one. In Python they are the frozen dataclasses of `terrazzo.training.recipe` and of
`terrazzo.systems.*.recipe`, with the same names. [Training](../training.md) says which matter when.

"""


if __name__ == "__main__":
    page = DOCS / "input.md"
    page.write_text(with_input_kinds(page.read_text(encoding="utf-8")), encoding="utf-8")
