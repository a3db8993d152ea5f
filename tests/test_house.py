"""The house rules that can be measured: import direction, room sizes, docstrings, lazy imports, no code from data."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "terrazzo"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]
TREES = {
    name: ast.parse(path.read_text(encoding="utf-8"), name)
    for name, path in zip(NAMES, FILES, strict=True)
}

# From the ground up: a room may import those before it, never those after it. A private file (`_counts.py`) has no
# place of its own: what it imports counts as imported by the rooms that use it.
# fmt: off
ORDER = [
    "keys", "errors", "writing", "config", "progress", "safe_pickle", "sparse", "representation", "genes", "sdata",
    "images", "slices", "simulate", "downloads", "datasets", "units", "corpus", "nn", "plot", "tasks", "models",
    "training", "bench", "report", "demo", "cli_common", "cli_help", "cli_info", "cli_stop", "cli_convert",
    "cli_corpus",
    "cli_genes", "cli_report", "cli_tasks", "cli",
]
# fmt: on
PUBLIC = "terrazzo"  # the package itself, `import terrazzo as tz`
USES_PUBLIC = {"report", "demo", "__main__", *(room for room in ORDER if room.startswith("cli"))}
HEAVY = ["torch", "transformers", "lightning", "scanpy", "matplotlib"]
UNPICKLERS = {"_pickle", "cloudpickle", "dill", "marshal", "shelve"}
MAX_FILE, MAX_FUNCTION = 400, 60

every_file = pytest.mark.parametrize("name", NAMES)


def room_of(name: str) -> str:
    """Return the top-level room of a file, ``nn/vit.py`` -> ``nn``."""
    return name.split("/")[0].removesuffix(".py")


def imported_modules(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of everything a file imports, at any depth."""
    package = ["terrazzo", *name.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from terrazzo import genes` imports a room, `from terrazzo.genes import x` a name in one
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def imported_rooms(
    name: str, tree: ast.Module, seen: frozenset[str] = frozenset()
) -> Iterator[tuple[int, str]]:
    """Yield line and room of each import from terrazzo, through private files; the package itself is PUBLIC."""
    for line, module in imported_modules(name, tree):
        root, *rest = module.split(".")
        first = rest[0] if rest else PUBLIC
        if root != "terrazzo" or first in ("_version", "__version__"):
            continue
        private = f"{first}.py"
        if first.startswith("_") and private in TREES:
            if private not in seen:
                yield from (
                    (line, room)
                    for _, room in imported_rooms(private, TREES[private], seen | {private})
                )
        else:
            yield line, first if first in ORDER else PUBLIC


def refused_imports(name: str, tree: ast.Module) -> list[str]:
    """Return the imports of a file that point back."""
    here = room_of(name)
    if here not in [
        *ORDER,
        "__main__",
    ]:  # private, or without a place, which is another test's to say
        return []
    refused = set()
    for line, target in imported_rooms(name, tree):
        if target == PUBLIC:
            allowed = here in USES_PUBLIC
        elif here == "nn":
            allowed = target in ("nn", "errors")
        else:
            allowed = here == "__main__" or ORDER.index(target) <= ORDER.index(here)
        if not allowed:
            refused.add(f"{name}:{line} {here} imports {target}")
    return sorted(refused)


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for a name or an attribute of names; what is not a name reads ``?``."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def is_constant(call: ast.Call, keyword: str, value: object) -> bool:
    """Say whether a call passes this literal for a keyword."""
    return any(
        k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is value
        for k in call.keywords
    )


def defines_safe_unpickler(tree: ast.Module) -> bool:
    """Say whether a file subclasses Unpickler with a ``find_class`` of its own, which is where names are refused."""
    return any(
        any(dotted(base).endswith("Unpickler") for base in node.bases)
        and any(
            isinstance(item, ast.FunctionDef) and item.name == "find_class" for item in node.body
        )
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )


def unsafe_calls(tree: ast.Module) -> Iterator[str]:
    """Yield what runs code that comes from data: eval, exec, and every way to unpickle without looking."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        if (
            called in ("eval", "exec", "compile", "__import__")
            or called.endswith((".read_pickle", "joblib.load"))
            or (called == "torch.load" and not is_constant(node, "weights_only", True))
            or is_constant(node, "allow_pickle", True)
            or is_constant(node, "weights_only", False)
        ):
            yield f"line {node.lineno}: {called}"


def unsafe_pickle(tree: ast.Module) -> Iterator[str]:
    """Yield uses of pickle and its kin; its errors are free to all, Unpickler to the file that narrows it."""
    refused = {"pickle.load", "pickle.loads"} | (
        set() if defines_safe_unpickler(tree) else {"pickle.Unpickler"}
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node) in refused:
            yield f"line {node.lineno}: {dotted(node)}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in UNPICKLERS or (alias.name == "pickle" and alias.asname):
                    yield f"line {node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and node.module in {*UNPICKLERS, "pickle"}:
            for alias in node.names:
                if not alias.name.endswith("Error"):
                    yield f"line {node.lineno}: from {node.module} import {alias.name}"


@every_file
def test_every_room_has_its_place_in_the_order(name: str) -> None:
    assert room_of(name) in ORDER or name.startswith("_"), (
        "a new room: give it its place in ORDER, the README and CONTRIBUTING"
    )


@every_file
def test_imports_flow_one_way(name: str) -> None:
    assert refused_imports(name, TREES[name]) == []


@pytest.mark.parametrize("name", [name for name in NAMES if room_of(name) == "units"])
def test_units_know_arrays_only(name: str) -> None:
    assert [
        row for row in imported_modules(name, TREES[name]) if row[1].split(".")[0] == "torch"
    ] == []


@every_file
def test_files_and_functions_stay_small(name: str) -> None:
    lines = (PACKAGE / name).read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE, f"{name} has {lines} lines"
    sizes = {
        node.name: node.end_lineno - node.body[0].lineno + 1 - docstring_lines(node)
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {function: size for function, size in sizes.items() if size > MAX_FUNCTION} == {}


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's docstring: a public one explains every argument, and should."""
    if ast.get_docstring(node) is None:
        return 0
    first = node.body[0]
    return first.end_lineno - first.lineno + 1


@every_file
def test_every_file_opens_with_a_docstring(name: str) -> None:
    assert ast.get_docstring(TREES[name])


@every_file
def test_data_is_never_code(name: str) -> None:
    assert [*unsafe_calls(TREES[name]), *unsafe_pickle(TREES[name])] == []


def test_at_most_one_file_defines_an_unpickler() -> None:
    assert len([name for name in NAMES if defines_safe_unpickler(TREES[name])]) <= 1


def test_import_terrazzo_is_light() -> None:
    code = f"import sys, terrazzo; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_readme_names_every_room() -> None:
    blocks = "\n".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split("```")[1::2])
    files = {path.name for path in PACKAGE.glob("*.py")} - {
        "__init__.py",
        "__main__.py",
        "_version.py",
    }
    rooms = files | {f"{path.parent.name}/" for path in PACKAGE.glob("*/*.py")}
    assert (
        sorted(room for room in rooms if not re.search(rf"(?<![\w.]){re.escape(room)}", blocks))
        == []
    )


# The rules themselves, on files that break them.


@pytest.mark.parametrize(
    ("name", "text", "refused"),
    [
        ("units/spots.py", "from terrazzo.nn import vit", True),
        ("units/spots.py", "from ..models.base import X", True),
        ("units/spots.py", "from .. import models", True),
        ("units/spots.py", "def f():\n    import terrazzo.models.base", True),
        ("units/spots.py", "from .niches import x\nfrom ..slices import Slice", False),
        ("nn/vit.py", "from terrazzo.genes import Vocabulary", True),
        ("nn/vit.py", "from terrazzo.errors import ConfigError\nfrom .losses import x", False),
        ("models/base.py", "import terrazzo as tz", True),
        ("models/base.py", "from terrazzo import genes, keys, __version__", False),
        ("cli.py", "import terrazzo as tz", False),
        ("__main__.py", "from terrazzo.cli.main import main", False),
    ],
)
def test_import_rule(name: str, text: str, refused: bool) -> None:
    assert bool(refused_imports(name, ast.parse(text))) is refused


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("import pickle\npickle.load(f)", True),
        ("from pickle import loads", True),
        ("import torch\ntorch.load(f)", True),
        ("import torch\ntorch.load(f, weights_only=True)", False),
        ("np.load(f, allow_pickle=True)", True),
        ("eval('1')", True),
        ("model.eval()", False),
        ("self.build().eval()", False),
        ("import pickle as p", True),
        ("import pickle\nread = pickle.loads", True),
        ("import pickle\npickle.Unpickler(f).load()", True),
        ("import pickle\ntry: ...\nexcept pickle.UnpicklingError: ...", False),
        ("re.compile('a')", False),
        (
            "import pickle\nclass U(pickle.Unpickler):\n    def find_class(self, m, n): ...\nU(f).load()",
            False,
        ),
        (
            "import pickle\nclass U(pickle.Unpickler):\n    def find_class(self, m, n): ...\npickle.load(f)",
            True,
        ),
    ],
)
def test_pickle_rule(text: str, refused: bool) -> None:
    tree = ast.parse(text)
    assert bool([*unsafe_calls(tree), *unsafe_pickle(tree)]) is refused
