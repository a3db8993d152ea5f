"""``terrazzo predict-genes``: from files to files, and one clear line where something cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from PIL import Image

import terrazzo as tz
from terrazzo.tasks import Probe, TaskResult

pytestmark = pytest.mark.usefixtures("quiet_figures")


@pytest.fixture
def files(histology: Any, tmp_path: Path) -> list[Path]:
    """Write three slices of one atlas with their sections, the third with its picture beside it."""
    folder = tmp_path / "slices"
    folder.mkdir()
    for i, name in enumerate("abc"):
        adata = histology(
            50,
            40,
            n_regions=3,
            n_types=4,
            seed=i,
            depth=4000.0,
            donor=f"donor_{name}",
            image_px=280,
        ).copy()
        if name == "c":
            entry = next(iter(adata.uns.pop("spatial").values()))
            Image.fromarray(np.asarray(entry["images"]["hires"])).save(folder / "c.png")
            sheet = {"image": "c.png", "scale": float(entry["scalefactors"]["tissue_hires_scalef"])}
            (folder / "c.json").write_text(json.dumps(sheet))
        adata.write_h5ad(folder / f"{name}.h5ad")
    return [folder / f"{name}.h5ad" for name in "abc"]


@pytest.fixture
def spoilt(files: list[Path]) -> Callable[..., Path]:
    """Write a slice again, changed."""

    def write(which: int, change: Callable[[AnnData], Any], name: str = "spoilt") -> Path:
        adata = anndata.read_h5ad(files[which])
        path = files[which].with_name(f"{name}.h5ad")
        (change(adata) or adata).write_h5ad(path)
        return path

    return write


@pytest.fixture
def listed(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "genes.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_gene_list_from_slices_to_slices(
    call: Any, files: list[Path], listed: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    genes = listed('# markers\nSIM3\nSIM5, 12.5\n\n"SIM8"\t1 # a remark\nSIM3\n')
    words = (
        "--model",
        "colors-own",
        "--genes",
        genes,
        "--gene",
        "SIM9",
        "--runs",
        2,
        "--out",
        out,
    )
    code, told, err = call("predict-genes", *files[:2], "--predict", files[2], *words)
    assert (code, err) == (0, "")
    assert sorted(p.name for p in out.iterdir()) == ["c.h5ad", "c.png", "probe", "scores"]
    found, probe = anndata.read_h5ad(out / "c.h5ad"), Probe.load(out / "probe")
    assert list(probe.names) == ["SIM3", "SIM5", "SIM8", "SIM9"]
    assert list(found.uns["expression_predicted_names"]) == list(probe.names)
    np.testing.assert_array_equal(found.obsm["expression_predicted"], probe.predict(found))
    assert "spatial" not in found.uns
    result = TaskResult.load(out / "scores")
    assert set(result.metrics["slice"]) == {"c"}
    assert set(result.metrics["part"]) == {"", *probe.names}
    assert (result.summary()["n"] == 2).all()
    assert f"{result.score('mse'):.4f} ±" in told
    assert "mse_mean" in told
    assert (
        call("predict-genes", *files[:2], "--predict", files[2], *words)[0] == 0
    )  # again, over its own results


def test_a_checkpoint_and_variable_genes(
    call: Any, files: list[Path], align_model: Any, tmp_path: Path
) -> None:
    folder = align_model().save_pretrained(tmp_path / "align")
    words = ("--model", folder, "--n-genes", 5, "--scale", "median", "--cache", tmp_path / "cache")
    out = tmp_path / "out"
    code, _, err = call(
        "predict-genes", files[0], "--predict", *files[1:], *words, "--runs", 1, "--out", out
    )
    assert (code, err) == (0, "")
    probe = Probe.load(out / "probe")
    assert (len(probe.names), probe.info["scale"], probe.use_rep) == (5, "median", "X_image")
    learned = tz.load(folder).embed(
        anndata.read_h5ad(files[0]), modality="image", key_added="X_image", progress=False
    )
    again = tz.tasks.fit_image_to_gene(learned, use_rep="X_image", genes=5, scale="median")
    found = anndata.read_h5ad(out / "b.h5ad")
    np.testing.assert_allclose(
        again.predict(found), found.obsm["expression_predicted"], rtol=1e-3, atol=1e-3
    )
    assert set(TaskResult.load(out / "scores").metrics["slice"]) == {"b", "c"}
    assert list((tmp_path / "cache").iterdir())


def test_a_slice_without_the_genes_is_predicted_and_not_scored(
    call: Any, files: list[Path], spoilt: Any, tmp_path: Path
) -> None:
    def other_genes(adata: AnnData) -> None:
        adata.var_names = [f"ELSE{i}" for i in range(adata.n_vars)]
        adata.var["ensembl_id"] = ""

    def unsequenced(adata: AnnData) -> None:
        adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)

    strange, blank = spoilt(1, other_genes, "strange"), spoilt(1, unsequenced, "blank")
    out = tmp_path / "out"
    words = ("--model", "colors", "--gene", "SIM3", "--out", out)
    code, told, err = call("predict-genes", files[0], "--predict", strange, blank, *words)
    assert (code, err) == (0, "")
    assert sorted(p.name for p in out.iterdir()) == [
        "blank.h5ad",
        "blank.png",
        "probe",
        "strange.h5ad",
        "strange.png",
    ]
    assert told.count("none was measured: no score") == 2
    a, b = (
        anndata.read_h5ad(out / f"{name}.h5ad").obsm["expression_predicted"]
        for name in ("blank", "strange")
    )
    np.testing.assert_array_equal(a, b)  # the same picture


def no_image(adata: AnnData) -> None:
    del adata.uns["spatial"]


def swapped(adata: AnnData) -> None:
    adata.obsm["spatial"] = adata.obsm["spatial"] + 1e5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--gene", "SIM3", "--gene", "SIM999"),
            "gene 'SIM999' is in none of the 1 training slices; the nearest",
        ),
        (("--n-genes", 0), "genes is 0"),
        (("--genes", "gone.txt"), "gone.txt cannot be read"),
        (
            ("--gene", "SIM3", "--model", "nowhere"),
            "nowhere is not a folder, and not efficientnet-lite0-own, colors or colors-own",
        ),
    ],
)
def test_wishes_that_cannot_be_met(
    refused: Any, files: list[Path], words: tuple[Any, ...], said: str
) -> None:
    model = () if "--model" in words else ("--model", "colors")
    assert said in refused("predict-genes", files[0], "--predict", files[1], *model, *words)


@pytest.mark.parametrize("text", ["", "\n \n", "# only a remark\n"])
def test_an_empty_list_of_genes(refused: Any, files: list[Path], listed: Any, text: str) -> None:
    words = ("--predict", files[1], "--model", "colors", "--genes", listed(text))
    assert "genes.txt names no gene; write one a line" in refused("predict-genes", files[0], *words)


def test_pictures_that_are_not_there(refused: Any, files: list[Path], spoilt: Any) -> None:
    bare = spoilt(0, no_image)
    words = ("--model", "colors", "--gene", "SIM3")
    said = refused("predict-genes", bare, "--predict", files[1], *words)
    assert "spoilt.h5ad: spoilt has no histology image" in said
    off = spoilt(0, swapped)
    assert "50 of 50 spots are outside the image" in refused(
        "predict-genes", off, "--predict", files[1], *words
    )
    files[2].with_name("c.png").unlink()
    assert "No image file" in refused("predict-genes", files[2], "--predict", files[1], *words)


def test_a_picture_that_is_missing_where_it_is_predicted(
    call: Any, files: list[Path], spoilt: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--model", "colors", "--gene", "SIM3", "--out", out)
    code, _, err = call("predict-genes", files[0], "--predict", spoilt(1, no_image), *words)
    assert code == 2
    assert "spoilt has no histology image" in err
    assert [p.name for p in out.iterdir()] == ["probe"]


def test_nothing_to_learn_from(call: Any, files: list[Path], tmp_path: Path) -> None:
    code, told, err = call(
        "predict-genes", "--predict", files[1], "--model", "colors", "--out", tmp_path / "out"
    )
    assert (code, told) == (2, "")
    assert "SLICES" in err
    code, _, err = call("predict-genes", files[0], "--model", "colors", "--out", tmp_path / "out")
    assert code == 2
    assert "--predict" in err


def test_an_input_is_never_overwritten(call: Any, files: list[Path]) -> None:
    before = files[1].read_bytes()
    words = ("--model", "colors", "--gene", "SIM3", "--out", files[1].parent)
    code, _, err = call("predict-genes", files[0], "--predict", files[1], *words)
    assert code == 2
    assert "would overwrite its own input" in err
    assert files[1].read_bytes() == before


def test_a_model_that_sees_no_image(
    refused: Any, files: list[Path], tiny_model: Any, tmp_path: Path
) -> None:
    folder = tiny_model().save_pretrained(tmp_path / "stofm")
    words = ("--predict", files[1], "--gene", "SIM3", "--model", folder)
    assert "holds a SToFM, which sees no image" in refused("predict-genes", files[0], *words)
