"""Pages of the documentation as tests read them: fenced blocks, what they print, and a way to run a page.

``bash`` blocks hold commands, ``python`` blocks share one namespace, a ``text`` block is what the block before it
printed. ``no-run`` behind the language is for what cannot run in a test.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import shlex
import string
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
MADE = ("_build", "_generated", "jupyter_execute")
SHELLS = ("bash", "sh", "console", "")
FENCE = re.compile(
    r"^ *(?P<ticks>`{3,})(?P<info>[^`\n]*)\n(?P<text>.*?)^ *(?P=ticks) *$", re.M | re.S
)
FILE = re.compile(r"[\w./-]+\.(?:h5ad|png|html|json|parquet|csv|yaml|zarr)\b")
KEY = re.compile(r"(?<=')\w+(?=')|\bX_\w+")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.]*\w)(?P<unit> ?(?:s|min|minutes|MB)\b)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words behind it, its text, and the line it begins on."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.language or 'block'}@{self.line}"


@dataclass
class Facts:
    """What an output says apart from its wording: numbers (times and sizes left out), files, quoted keys."""

    numbers: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def pages() -> list[Path]:
    """Return every page that a person wrote."""
    written = [
        path for path in sorted(DOCS.rglob("*.md")) if path.relative_to(DOCS).parts[0] not in MADE
    ]
    return [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *written]


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        language, *words = match["info"].split() or [""]
        found.append(
            Block(language, tuple(words), match["text"], text.count("\n", 0, match.start()) + 1)
        )
    return found


def lines(block: Block) -> Iterator[str]:
    """Yield the commands of a block: continued lines joined, comments and empty lines left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = (
            shlex.split(line, comments=True, posix=False)
            if line.strip() and not line.startswith("#")
            else []
        )
        if words:
            yield " ".join(words)


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line and words of every ``terrazzo ...`` command of a page, wherever in its line it stands."""
    for block in blocks(page):
        if block.language in SHELLS:
            for line in lines(block):
                if found := re.match(r"(?:\S+=\S+ |srun (?:-\S+ )*|\$ )?terrazzo (.*)$", line):
                    typed = found[1].partition(" > ")[0]
                    words = shlex.split(typed)  # $SLICE stands for a file, $again for an option
                    yield (
                        block.line,
                        [w.lstrip("$") for w in words if not re.fullmatch(r"\$[a-z]+", w)],
                    )


def facts(text: str) -> Facts:
    """Return what an output says."""
    names = [*FILE.findall(text), *KEY.findall(text)]
    bare = KEY.sub(" ", FILE.sub(" ", text))
    return Facts([m[0].replace(",", "") for m in NUMBER.finditer(bare) if m["unit"] is None], names)


def missing(shown: str, printed: str, *, numbers: bool = True) -> list[str]:
    """Return the facts of a page's output that a real one lacks; numbers with decimals may differ a little."""
    want, have = facts(shown), facts(printed)
    lost = [name for name in want.names if name not in have.names]
    if numbers:
        left = list(have.numbers)
        for number in want.numbers:
            near = next((other for other in left if close(number, other)), None)
            if near is None:
                lost.append(number)
            else:
                left.remove(near)
    return lost


def close(shown: str, printed: str) -> bool:
    """Say whether two numbers agree: whole ones exactly, others within 5 %, or .05."""
    if "." not in shown:
        return shown == printed
    a, b = float(shown), float(printed)
    return abs(a - b) <= max(0.05 * abs(a), 0.05)


@dataclass
class Reader:
    """Somebody who types what a page says, in one folder."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    namespace: dict[str, Any] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)  # words of commands, for a quicker run

    def follow(self, page: Path, *, numbers: bool = True) -> None:
        """Do what a page says, block by block, and compare what it prints with what the page shows."""
        printed = ""
        for block in blocks(page):
            where = f"{page.relative_to(REPOSITORY)}:{block.line}"
            if "no-run" in block.words:
                continue
            if block.language == "bash":
                printed = "".join(self.run(line, where) for line in lines(block))
            elif block.language == "python":
                printed = self.execute(block.text, where)
            elif block.language == "text":
                assert missing(block.text, printed, numbers=numbers) == [], (
                    f"{where}, printed was:\n{printed}"
                )

    def run(self, line: str, where: str) -> str:
        """Run one command line; ``terrazzo`` in this process."""
        for old, new in self.replaced.items():
            line = line.replace(old, new)
        if line.startswith("source "):
            return ""
        if found := re.fullmatch(r"(?:export )?(\w+)=(\S+)", line):
            self.variables[found[1]] = found[2].strip("\"'")
            return ""
        line = string.Template(line).safe_substitute(self.variables)
        out = io.StringIO()
        if not line.startswith("terrazzo "):
            done = subprocess.run(
                ["bash", "-ec", line], cwd=self.folder, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{where}: {line}\n{done.stderr}"
            return done.stdout
        from terrazzo.cli import main

        typed, _, target = line.partition(" > ")
        words = [found for word in shlex.split(typed)[1:] for found in self.expand(word)]
        with contextlib.redirect_stdout(out):
            code = main(words)
        assert code == 0, f"{where}: {line} ended with {code}\n{out.getvalue()}"
        if target:
            (self.folder / target.strip()).write_text(out.getvalue())
            return ""
        return out.getvalue()

    def expand(self, word: str) -> list[str]:
        """Return the files that a pattern means, as a shell does."""
        return sorted(glob.glob(word)) or [word] if "*" in word else [word]

    def execute(self, text: str, where: str) -> str:
        """Run a block of Python; returns what it printed."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, where, "exec"), self.namespace)
        return out.getvalue()


def environment() -> dict[str, str]:
    """Return an environment whose ``terrazzo`` and ``python`` are those of this run, on the library of this tree."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY / "src"), "MPLBACKEND": "Agg"}
