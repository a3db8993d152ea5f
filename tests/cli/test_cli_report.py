"""terrazzo report on the command line: what it writes and says, and one line for what it cannot use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from terrazzo.cli import main

pytestmark = pytest.mark.usefixtures("quiet_figures")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; return exit code, standard output and standard error."""

    def run(*words: Any) -> tuple[int, str, str]:
        code = main(["report", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def sample(simulated: Any, tmp_path: Path) -> Path:
    path = tmp_path / "sample.h5ad"
    simulated(60, 40).write_h5ad(path)
    return path


def test_a_slice_and_its_picture(call: Any, sample: Path, tmp_path: Path) -> None:
    picture, target = tmp_path / "he.png", tmp_path / "deep" / "report.html"
    Image.fromarray(np.full((300, 300, 3), 180, np.uint8)).save(picture)
    given = (
        "--out",
        target,
        "--title",
        "Mine",
        "--gene",
        "SIM7",
        "--n-genes",
        3,
        "--image",
        picture,
    )
    code, out, err = call(sample, *given)
    assert (code, err) == (0, "")
    assert out.startswith(f"Report: {target} (")
    text = target.read_text(encoding="utf-8")
    assert "<title>Mine</title>" in text
    assert 'class="histology"' in text
    assert "those asked for (1)" in text
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]  # no draft stays
    code, _, err = call(sample, tmp_path, "--out", target, "--image", picture, "--overwrite")
    assert (code, err) == (0, "")  # the same slice twice is one
    (tmp_path / "other.h5ad").write_bytes(sample.read_bytes())
    code, _, err = call(tmp_path, "--out", target, "--image", picture)
    assert (code, err.count("\n")) == (2, 1)
    assert "an image belongs to one slice" in err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("notes.txt",), "is neither a slice nor a result"),
        (("empty",), "holds nothing that a report shows"),
        (("gone.h5ad",), "does not exist"),
        (("sample.h5ad", "--use-rep", "X_none"), "sample.h5ad: obsm has no 'X_none'"),
        (("sample.h5ad", "--gene", "SIM"), "no slice has the gene 'SIM'. Did you mean"),
        (("sample.h5ad", "--spatial-key", "where"), "where"),
        (("sample.h5ad", "--layer", "none"), "none"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    call: Any, sample: Path, tmp_path: Path, given: tuple[str, ...], words: str
) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    code, out, err = call(tmp_path / given[0], *given[1:], "--out", tmp_path / "report.html")
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_wrong_usage(call: Any, sample: Path, tmp_path: Path) -> None:
    assert call()[0] == 2
    assert call(sample)[0] == 2
    code, _, err = call(sample, "--out", tmp_path / "report.pdf")
    assert (code, err.count("\n")) == (2, 1)
    assert "must end in .html" in err
