"""The first thing that a newcomer does: a fresh clone, `make demo`, and its report in a browser."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fenced
import pytest

PROMISED = (
    "demo.h5ad",
    "demo.md",
    "demo.png",
    "losses.png",
    "report.html",
    "stofm",
    "stimage",
    "stalign",
)


@pytest.mark.slow
def test_clone_make_demo_open(tmp_path: Path, browser: Any, show: Callable[[Path], None]) -> None:
    if shutil.which("git") is None or not (fenced.REPOSITORY / ".git").exists():
        pytest.skip("no clone without git and a repository")
    clone = tmp_path / "clone"
    subprocess.run(
        ["git", "clone", "-q", str(fenced.REPOSITORY), str(clone)], check=True, capture_output=True
    )
    # the environment of this run in place of a new one, which would be installed through the network
    venv = Path(sys.prefix)
    words = ["make", "demo", f"VENV={venv}", "-o", f"{venv}/.stamp-run"]
    environment = fenced.environment() | {"PYTHONPATH": str(clone / "src")}
    done = subprocess.run(
        words, cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "open it in a browser: build/demo/report.html" in done.stdout
    assert [name for name in PROMISED if not (clone / "build" / "demo" / name).exists()] == []
    show(clone / "build" / "demo" / "report.html")
    said = browser.find_element("tag name", "body").text
    assert "terrazzo demo" in said
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
