"""The page "Your own slice", typed as it stands, on the slice it shows and on a simulated one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import fenced
import pytest

PAGE = fenced.DOCS / "howto" / "own-slice.md"
NAMED = "../shared/data/dlpfc/151673.h5ad"
MADE = (
    "regions/151673.h5ad",
    "regions/regions.csv",
    "regions/markers.csv",
    "regions/regions.png",
    "regions/report.html",
    "seven/151673.h5ad",
    "seven/names.csv",
    "seven/report.html",
)


def written(folder: Path) -> list[str]:
    """Return what the page promises and a folder lacks."""
    return [name for name in MADE if not (folder / "build" / "own" / name).exists()]


def test_the_page_on_a_simulated_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_figures: None
) -> None:
    from terrazzo import simulate

    adata = simulate.tissue(100, layout="visium", n_genes=160, n_regions=7, seed=4)
    adata.write_h5ad(tmp_path / "151673.h5ad")
    monkeypatch.chdir(tmp_path)
    assert NAMED in PAGE.read_text(encoding="utf-8")
    quicker = {
        NAMED: "151673.h5ad",
        "regions $SLICE --out": "regions $SLICE -k 3 --seeds 1 --bootstraps 2 --out",
        "-k 7": "-k 7 --seeds 1",
    }
    reader = fenced.Reader(tmp_path, replaced=quicker)
    reader.follow(PAGE, numbers=False)
    assert written(tmp_path) == []
    assert reader.namespace["adata"].n_obs == 100


@pytest.mark.slow
def test_the_page_as_it_stands(shared_dir: Path, tmp_path: Path) -> None:
    slice_file = shared_dir / "data" / "dlpfc" / "151673.h5ad"
    if not slice_file.is_file():
        pytest.skip("the slice of the page is not in the shared data: dlpfc/151673.h5ad")
    clone = tmp_path / "clone"
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "activate").touch()  # the environment of this run is used
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "data").symlink_to(slice_file.parents[1])
    variables, printed = "", ""
    for block in fenced.blocks(PAGE):
        if block.language == "text":
            assert fenced.missing(block.text, printed) == [], (
                f"{PAGE.name}:{block.line}, printed was:\n{printed}"
            )
            continue
        variables += "".join(
            f"{line}\n" for line in fenced.lines(block) if line.startswith("SLICE=")
        )
        words = ["python", "-"] if block.language == "python" else ["bash", "-e"]
        text = block.text if block.language == "python" else variables + block.text
        done = subprocess.run(
            words,
            input=text,
            cwd=clone,
            env=fenced.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{PAGE.name}:{block.line}\n{done.stderr}"
        printed = done.stdout
    assert written(clone) == []
