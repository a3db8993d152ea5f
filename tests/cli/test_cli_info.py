"""``terrazzo info``: what was recognized, units, spacing, what was left out, and what it is good for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData

from terrazzo.slices import Opened
from terrazzo.slices.platforms import Platform


@pytest.fixture
def facts(call: Any) -> Any:
    """Run ``info`` and return its facts by name."""

    def run(*words: Any) -> dict[str, str]:
        code, out, err = call("info", *words)
        assert (code, err) == (0, "")
        return {
            line[2:24].strip(): line[24:].strip()
            for line in out.splitlines()
            if line.startswith("  ")
        }

    return run


def test_facts_have_units(facts: Any, simulated: Any, tmp_path: Path) -> None:
    adata = simulated(120).copy()
    adata.obsm["X_mine"] = np.zeros((120, 2))
    adata.write_h5ad(tmp_path / "s.h5ad")
    found = facts(tmp_path / "s.h5ad")
    assert found["recognized as"] == "AnnData"
    assert (found["n cells"], found["is counts"], found["unit"]) == ("120", "yes", "um")
    assert found["spacing"].endswith(" um")
    assert found["extent"].endswith(" um")
    assert found["image"] == "none"
    assert found["embeddings"] == "X_mine"
    assert "region" in found["labels"]
    assert found["SToFM"].startswith("yes: ")
    assert found["image to gene"].startswith("no: ")


@pytest.fixture
def vendor(simulated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder of a vendor whose reader leaves something out, and takes bins."""
    folder = tmp_path / "outs"
    folder.mkdir()
    (folder / "made.vendor").write_text("")

    def read(files: Any, name: str, choices: Any) -> Opened:
        adata: AnnData = simulated(60).copy()
        adata.uns["bins"] = choices.bins or "none"
        return Opened(
            adata, f"Vendor, bins {choices.bins}", "sample", notes=("7 controls were left out",)
        )

    platform = Platform(
        "Vendor",
        ("*.vendor",),
        lambda path, choices: {"all": path / "made.vendor"},
        read,
        ("bins",),
    )
    monkeypatch.setattr("terrazzo.slices.reading.PLATFORMS", (platform,))
    return folder


def test_what_was_recognized_and_left_out(facts: Any, vendor: Path) -> None:
    found = facts(vendor, "--bins", "8")
    assert found["recognized as"] == "Vendor, bins 8; 7 controls were left out"


def test_embed_says_what_was_left_out(
    call: Any, vendor: Path, tiny_model: Any, tmp_path: Path
) -> None:
    model = tiny_model().save_pretrained(tmp_path / "model")
    code, out, _ = call("embed", vendor, "--model", model, "--bins", 16, "--out", tmp_path / "out")
    assert code == 0
    assert f"{vendor}: 7 controls were left out" in out
    result = tmp_path / "out" / f"{vendor.parent.name}.h5ad"  # not outs.h5ad, as of every sample
    assert anndata.read_h5ad(result).uns["bins"] == "16"


def test_a_task_says_what_was_left_out(call: Any, vendor: Path, tmp_path: Path) -> None:
    words = ("--model", "pca", "--n-genes", 4, "--head", "linear", "--runs", 1, "--bins", "8")
    code, _, err = call("impute", vendor, *words, "--out", tmp_path / "out")
    assert code == 0
    assert f"{vendor}: 7 controls were left out" in err


def test_bins_of_a_plain_file(call: Any, simulated: Any, tmp_path: Path) -> None:
    simulated(60).write_h5ad(tmp_path / "s.h5ad")
    code, out, err = call("info", tmp_path / "s.h5ad", "--bins", "8")
    assert (code, out) == (2, "")
    assert "does not belong to" in err


def test_the_unit_has_its_evidence(facts: Any, call: Any, simulated: Any, tmp_path: Path) -> None:
    adata = simulated(120).copy()
    adata.write_h5ad(tmp_path / "um.h5ad")
    assert facts(tmp_path / "um.h5ad")["unit evidence"].startswith(
        "sure: MERFISH counts in micrometers"
    )
    adata.obsm["spatial"] = adata.obsm["spatial"] / 1000
    adata.write_h5ad(tmp_path / "mm.h5ad")
    code, _, err = call("info", tmp_path / "mm.h5ad")
    assert code == 2
    assert "--microns-per-unit): 1000 if they are millimeters" in err
    for words in (("--unit", "mm"), ("--microns-per-unit", 1000)):
        found = facts(tmp_path / "mm.h5ad", *words)
        assert (found["unit"], found["coord scale"]) == ("um", "1,000")
        assert found["unit evidence"].startswith("stated: ")
    assert facts(tmp_path / "mm.h5ad", "--unit", "unknown")["unit"] == "unknown"
