"""House rules that can be measured: order of imports, sizes and density of files, lazy imports, no code from data."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "terrazzo"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in zip(NAMES, FILES, strict=True)}
TREES = {name: ast.parse(text, name) for name, text in TEXTS.items()}

# From the ground up: a room may import those of the levels before its own, never those after it or beside it. The
# registry of the systems is at the ground: it has nothing but names.
BASE = (
    "_version",
    "arrays",
    "config",
    "downloads",
    "errors",
    "files",
    "keys",
    "locks",
    "marks",
    "notices",
    "processes",
    "parsing",
    "progress",
    "records",
    "safe_files",
    "safe_hdf5",
    "safe_pickle",
    "safe_tables",
    "safe_zarr",
    "sdata",
    "sparse",
    "splitting",
    "systems.registry",
)
LEVELS: tuple[tuple[str, ...], ...] = (
    BASE,
    ("genes",),
    ("images",),
    ("slices",),
    ("datasets", "expression", "simulate"),
    ("corpus",),
    ("models",),
    ("plot", "tasks", "training"),
    ("systems.completion", "systems.scgpt", "systems.stalign", "systems.stimage", "systems.stofm"),
    ("bench",),
    ("report",),
    ("answers",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
PUBLIC = ""  # the package itself, `import terrazzo as tz`
USES_PUBLIC = {"report", "demo", "cli", "__main__"}
WITH_LIGHTNING = ("training/", "systems/stofm/finetune")
HEAVY = ["torch", "transformers", "lightning", "scanpy", "matplotlib", "spatialdata"]
UNPICKLERS = {"_pickle", "cloudpickle", "dill", "marshal", "shelve"}
MAX_LINES, MAX_FUNCTION = 600, 60
MAX_DENSITY, MAX_MEAN_DENSITY = 5.0, 4.2  # expressions a line of code: of a file, and over all

every_file = pytest.mark.parametrize("name", NAMES)
Definition = ast.FunctionDef | ast.AsyncFunctionDef


def module_of(name: str) -> str:
    """Return the dotted name of a file below the package, ``systems/stofm/model.py`` -> ``systems.stofm.model``."""
    dotted_name = name.removesuffix(".py").replace("/", ".")
    return dotted_name.removesuffix(".__init__").removesuffix("__init__")


MODULES = {module_of(name): name for name in NAMES}


def room_of(module: str) -> str:
    """Return the room of a module: its first part; of a system, and the registry, the first two."""
    parts = module.split(".")
    if parts[0] == "systems" and len(parts) > 1:
        return ".".join(parts[:2])
    return parts[0]


def is_typing_only(node: ast.AST) -> bool:
    """Say whether a statement is an ``if TYPE_CHECKING`` block."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imported(name: str, tree: ast.Module, *, typing: bool = True) -> Iterator[tuple[int, str]]:
    """Yield line and module below the package of everything that a file imports from it, at any depth."""
    package = ["terrazzo", *name.split("/")[:-1]]
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if is_typing_only(node) and not typing:
            continue
        pending.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            # `from terrazzo import genes` imports a room, `from terrazzo.genes import x` a name in one
            targets = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] != "terrazzo":
                continue
            inner = target.removeprefix("terrazzo").removeprefix(".")
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            yield node.lineno, inner


def refused_imports(name: str, tree: ast.Module) -> list[str]:
    """Return the imports of a file that point up or sideways."""
    here = room_of(module_of(name))
    if here not in LEVEL:  # the package, or without a place, which is another test's to say
        return []
    refused = set()
    for line, module in imported(name, tree):
        there = room_of(module)
        if module == PUBLIC:
            allowed = here in USES_PUBLIC
        elif there not in LEVEL:
            continue
        elif here == there or (here in BASE and there in BASE):
            allowed = True
        else:
            allowed = LEVEL[there] < LEVEL[here]
        if not allowed:
            refused.add(f"{name}:{line} {here} imports {there or 'terrazzo'}")
    return sorted(refused)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return groups of modules that import each other, however far around."""
    found: list[list[str]] = []
    reach = {start: reachable(graph, start) for start in graph}
    seen: set[str] = set()
    for start in sorted(graph):
        if start in seen or start not in reach[start]:
            continue
        group = sorted(other for other in reach[start] if start in reach.get(other, ()))
        seen.update(group)
        found.append(group)
    return found


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return the modules that can be come to from one along imports; itself only around a circle."""
    out: set[str] = set()
    pending = list(graph[start])
    while pending:
        module = pending.pop()
        if module not in out:
            out.add(module)
            pending.extend(graph.get(module, ()))
    return out


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the numbers of all lines that belong to docstrings."""
    out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Definition) and ast.get_docstring(node):
            first = node.body[0]
            out.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return out


def weight(tree: ast.Module, text: str) -> tuple[int, int]:
    """Return the number of expressions, annotations left out, and of lines of code."""
    annotations: set[int] = set()
    for node in ast.walk(tree):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(part, ast.AST):
                annotations.update(id(inner) for inner in ast.walk(part))
    documented = docstring_lines(tree)
    n_lines = 0
    for number, line in enumerate(text.splitlines(), 1):
        is_code = line.strip() and not line.lstrip().startswith("#")
        n_lines += bool(is_code) and number not in documented
    expressions = [
        n for n in ast.walk(tree) if isinstance(n, ast.expr) and id(n) not in annotations
    ]
    return len(expressions), n_lines


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
    module = module_of(name)
    assert module in ("", "systems") or room_of(module) in LEVEL, (
        "a new room: give it its place in LEVELS"
    )


@every_file
def test_imports_flow_one_way_and_no_system_imports_another(name: str) -> None:
    assert refused_imports(name, TREES[name]) == []


def test_there_is_no_circle_of_files() -> None:
    graph: dict[str, set[str]] = {}
    for name, tree in TREES.items():
        module = module_of(name)
        graph[module] = {target for _, target in imported(name, tree, typing=False)} - {module}
    graph.pop(PUBLIC)  # imports lazily what the rooms then import
    assert circles(graph) == []


@every_file
def test_lightning_stays_where_training_is(name: str) -> None:
    roots = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            roots.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            roots.add(node.module.split(".")[0])
    if name.startswith(WITH_LIGHTNING):
        return
    assert not roots & {"lightning", "pytorch_lightning"}


@every_file
def test_files_and_functions_stay_small(name: str) -> None:
    n_lines = TEXTS[name].count("\n")
    assert n_lines <= MAX_LINES, f"{name} has {n_lines} lines"
    documented = docstring_lines(TREES[name])
    too_long = {}
    for node in ast.walk(TREES[name]):
        if isinstance(node, Definition):
            lines = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
            size = sum(line not in documented for line in lines)
            if size > MAX_FUNCTION:
                too_long[node.name] = size
    assert too_long == {}


@every_file
def test_lines_are_loose(name: str) -> None:
    expressions, lines = weight(TREES[name], TEXTS[name])
    assert lines <= 40 or expressions / lines <= MAX_DENSITY


def test_lines_are_loose_over_all() -> None:
    weights = [weight(TREES[name], TEXTS[name]) for name in NAMES]
    expressions = sum(e for e, _ in weights)
    lines = sum(n for _, n in weights)
    assert expressions / lines <= MAX_MEAN_DENSITY


@every_file
def test_every_file_names_what_is_public(name: str) -> None:
    named = [
        target.id
        for node in TREES[name].body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    only_docstring = len(TREES[name].body) <= 1
    assert "__all__" in named or only_docstring or name in ("__main__.py", "_version.py")


@every_file
def test_every_file_opens_with_a_docstring(name: str) -> None:
    assert ast.get_docstring(TREES[name])


@every_file
def test_data_is_never_code(name: str) -> None:
    assert [*unsafe_calls(TREES[name]), *unsafe_pickle(TREES[name])] == []


@every_file
def test_json_and_yaml_have_one_reader(name: str) -> None:
    read = {"json.load", "json.loads", "yaml.load", "yaml.safe_load", "yaml.full_load"}
    calls = [n for n in ast.walk(TREES[name]) if isinstance(n, ast.Attribute) and dotted(n) in read]
    assert name == "parsing.py" or [call.lineno for call in calls] == []


def test_at_most_one_file_defines_an_unpickler() -> None:
    assert len([name for name in NAMES if defines_safe_unpickler(TREES[name])]) <= 1


def test_import_terrazzo_is_light() -> None:
    code = f"import sys, terrazzo; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# The rules themselves, on files that break them.


@pytest.mark.parametrize(
    ("name", "text", "refused"),
    [
        ("slices/grids.py", "from terrazzo.models import base", True),
        ("slices/grids.py", "from ..models.base import X", True),
        ("slices/grids.py", "from .. import models", True),
        ("slices/grids.py", "def f():\n    import terrazzo.models.base", True),
        ("slices/grids.py", "from .niches import x\nfrom ..genes import Vocabulary", False),
        ("systems/stofm/model.py", "from terrazzo.systems.stimage.config import X", True),
        ("systems/stofm/model.py", "from terrazzo.systems import registry", False),
        ("systems/stofm/model.py", "from terrazzo.systems.stofm.se2 import X", False),
        ("systems/registry.py", "from terrazzo.systems.stofm import SYSTEM", True),
        ("tasks/probes.py", "from terrazzo.training.recipe import Recipe", True),
        ("models/base.py", "import terrazzo as tz", True),
        ("models/base.py", "from terrazzo import genes, keys", False),
        ("cli/app.py", "import terrazzo as tz", False),
        ("__main__.py", "from terrazzo.cli import main", False),
    ],
)
def test_import_rule(name: str, text: str, refused: bool) -> None:
    assert bool(refused_imports(name, ast.parse(text))) is refused


def test_circle_rule() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


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
