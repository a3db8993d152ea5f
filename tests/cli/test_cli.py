"""The command line, called in process: exit codes, where words go, and what each verb writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import anndata
import numpy as np
import pytest

import terrazzo as tz
from terrazzo import demo


@pytest.fixture
def checkpoint(tiny_model: Any, tmp_path: Path) -> Path:
    return tiny_model().save_pretrained(tmp_path / "checkpoint")


@pytest.fixture
def sample(simulated: Any, tmp_path: Path) -> Path:
    path = tmp_path / "sample.h5ad"
    simulated(60).write_h5ad(path)
    return path


def test_version(call: Any) -> None:
    assert call("--version") == (0, f"{tz.__version__}\n", "")


def test_python_m_terrazzo() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "terrazzo", "--version"],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert (done.returncode, done.stdout.strip()) == (0, tz.__version__)


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["embed"],
        ["embed", "x.h5ad"],
        ["embed", "x.h5ad", "--model", "m", "--out", "o", "--color", "red"],
        ["embed", "x.h5ad", "--model", "m", "--out", "o", "--split", "hexagons"],
        ["embed", "x.h5ad", "--model", "m", "--out", "o", "--seed", "one"],
        ["info"],
        ["convert", "stofm"],
        ["embed", "x.h5ad", "--model", "m", "--out", "o", "--seed", "-1"],
        ["reconstruct", "x.h5ad", "--model", "m", "--out", "o", "--seed", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(call: Any, words: list[str]) -> None:
    code, out, err = call(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("error:")
    assert "Traceback" not in err


def test_info(call: Any, sample: Path, checkpoint: Path) -> None:
    code, out, err = call("info", sample, "--model", checkpoint)
    assert (code, err) == (0, "")
    assert str(sample) in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert lines["unit"].split()[-1] == "um"
    assert "60 of 60 genes matched" in lines["coverage"]


def test_embed(call: Any, sample: Path, checkpoint: Path, tmp_path: Path, tiny_model: Any) -> None:
    out_folder = tmp_path / "out"
    code, out, _ = call(
        "embed",
        sample,
        "--model",
        checkpoint,
        "--out",
        out_folder,
        "--subslice-size",
        30,
        "--seed",
        2,
    )
    assert code == 0
    assert "60 cells" in out
    assert "never trained" in out
    found = anndata.read_h5ad(out_folder / "sample.h5ad")
    expected = tiny_model().embed(
        anndata.read_h5ad(sample), subslice_size=30, seed=2, progress=False
    )
    np.testing.assert_array_equal(found.obsm["X_stofm"], expected.obsm["X_stofm"])
    code, out, _ = call(
        "embed",
        sample,
        "--model",
        checkpoint,
        "--out",
        out_folder,
        "--subslice-size",
        30,
        "--seed",
        2,
    )
    assert code == 0
    assert "left alone" in out


def test_dry_run_writes_nothing(call: Any, sample: Path, checkpoint: Path, tmp_path: Path) -> None:
    code, out, _ = call(
        "embed", sample, "--model", checkpoint, "--out", tmp_path / "out", "--dry-run"
    )
    assert code == 0
    assert "not done (dry run)" in out
    assert not (tmp_path / "out").exists()


def test_names_with_brackets_are_shown_as_they_are(
    call: Any, sample: Path, checkpoint: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "a[bold]b[/red].d" / "slice[x].h5ad"
    odd.parent.mkdir(parents=True)
    odd.write_bytes(sample.read_bytes())
    code, out, _ = call("info", odd)
    assert code == 0
    assert str(odd) in out
    code, out, _ = call("embed", odd, "--model", checkpoint, "--out", tmp_path / "out[y]")
    assert code == 0
    assert str(odd) in out
    assert "out[y]" in out
    odd.write_bytes(b"broken")
    code, _, err = call("info", odd)
    assert code == 2
    assert str(odd) in err


def test_bad_input_is_one_line_on_standard_error(
    call: Any, checkpoint: Path, tmp_path: Path
) -> None:
    code, out, err = call("info", tmp_path / "gone.h5ad")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "gone.h5ad does not exist" in err
    assert len(err.strip().splitlines()) == 1
    code, _, err = call(
        "embed", tmp_path / "gone.h5ad", "--model", tmp_path / "gone", "--out", tmp_path / "out"
    )
    assert code == 2
    assert "it must be a checkpoint" in err


def test_debug_shows_the_traceback(call: Any, tmp_path: Path) -> None:
    code, _, err = call("info", tmp_path / "gone.h5ad", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert "error: " in err


@pytest.mark.parametrize("debug", [False, True])
def test_what_nobody_expected_is_exit_code_1(
    call: Any, sample: Path, monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a [bug] in terrazzo")

    monkeypatch.setattr("terrazzo.slices.open_slice", fail)
    code, _, err = call("info", sample, *(["--debug"] if debug else []))
    assert code == 1
    assert "unexpected error: RuntimeError: a [bug] in terrazzo" in err
    assert "--debug" in err
    assert ("Traceback" in err) == debug


def test_warnings_go_to_standard_error(
    call: Any, simulated: Any, checkpoint: Path, tmp_path: Path
) -> None:
    adata = simulated(60)
    del adata.uns["technology"]
    adata.write_h5ad(tmp_path / "plain.h5ad")
    code, out, err = call(
        "embed", tmp_path / "plain.h5ad", "--model", checkpoint, "--out", tmp_path / "out"
    )
    assert code == 0
    assert "warning: " in err
    assert "micrometers could not be derived" in err
    assert "micrometers could not be derived" not in out
    code, _, err = call(
        "embed",
        tmp_path / "plain.h5ad",
        "--model",
        checkpoint,
        "--out",
        tmp_path / "out2",
        "--microns-per-unit",
        1,
    )
    assert code == 0
    assert "micrometers" not in err


def test_an_option_of_the_whole_model_and_its_cell_encoder(
    call: Any, sample: Path, tiny_model: Any, tmp_path: Path
) -> None:
    from terrazzo.systems.stofm.cell_model import CellModel, CellModelConfig

    base = tiny_model()
    cells = CellModel(CellModelConfig(base.config.cell_encoder), base.vocabulary).save_pretrained(
        tmp_path / "cells"
    )
    code, _, err = call("embed", sample, "--model", cells, "--out", tmp_path / "out", "--halo", 2)
    assert code == 2
    assert "--halo belongs to SToFM; this checkpoint is SToFM cell encoder." in err
    assert call("embed", sample, "--model", cells, "--out", tmp_path / "out")[0] == 0
    assert anndata.read_h5ad(tmp_path / "out" / "sample.h5ad").obsm["X_cell"].shape == (60, 16)


def test_convert_of_an_incomplete_download(call: Any, tmp_path: Path) -> None:
    for kind in ("stofm", "geneformer"):
        code, _, err = call(
            "convert",
            kind,
            tmp_path,
            "--gene-dictionaries",
            tmp_path,
            "--out",
            tmp_path / "checkpoint",
        )
        assert code == 2
        assert "config.json" in err
    assert list(tmp_path.iterdir()) == []


def test_convert_and_embed_published_weights(
    call: Any, shared_dir: Path, sample: Path, tmp_path: Path
) -> None:
    reference = shared_dir / "reference"
    words = (
        "convert",
        "stofm",
        reference / "tiny" / "ckpt",
        "--gene-dictionaries",
        reference / "geneformer",
    )
    code, out, _ = call(*words, "--out", tmp_path / "converted")
    assert code == 0
    assert "Written to" in out
    assert tz.load(tmp_path / "converted").config.subslices.geometry == "published"
    code, _, err = call(*words, "--out", tmp_path / "converted")
    assert code == 2
    assert "--overwrite" in err
    assert call(*words, "--out", tmp_path / "converted", "--overwrite")[0] == 0
    raw = reference / "tiny" / "slice" / "raw.h5ad"
    code, _, _ = call("embed", raw, "--model", tmp_path / "converted", "--out", tmp_path / "out")
    assert code == 0
    assert anndata.read_h5ad(tmp_path / "out" / "raw.h5ad").obsm["X_stofm"].shape == (300, 32)


def test_demo(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    (out / "demo.md").write_text("| PCA | 0.5 |\n")
    run = create_autospec(demo.run, return_value=out)  # the real one: test_demo.py
    monkeypatch.setattr(demo, "run", run)
    code, told, _ = call("demo", "--out", out, "--cells", 200, "--seed", 3)
    assert code == 0
    run.assert_called_once_with(out, n_cells=200, seed=3, overwrite=False)
    told = "".join(told.split())  # whatever the width of the terminal
    assert "|PCA|0.5|" in told
    assert "obsm['X_stofm']" in told
    for name in ("demo.png", "losses.png", "demo.h5ad", "stofm", "stimage", "stalign"):
        assert str(out / name) in told


@pytest.mark.usefixtures("quiet_figures")
def test_info_draws_a_grid(call: Any, sample: Path, tmp_path: Path) -> None:
    picture = tmp_path / "grid.png"
    code, out, err = call("info", sample, "--grid", picture, "--bin-um", 25, "--window", 5)
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("  grid ")]
    assert "bin, " in line
    assert "of 5 x 5" in line
    assert str(picture) in out
    assert picture.stat().st_size > 10_000


def test_info_says_which_option_a_grid_lacks(call: Any, sample: Path, tmp_path: Path) -> None:
    code, _, err = call("info", sample, "--grid", tmp_path / "grid.png")
    assert code == 2
    assert "--bin-um" in err
    code, _, err = call("info", sample, "--bin-um", 25)
    assert code == 2
    assert "add --grid" in err
    code, _, err = call("info", sample, sample, "--grid", tmp_path / "grid.png")
    assert code == 2
    assert "there are 2" in err
    assert not (tmp_path / "grid.png").exists()
