"""Histology on the command line: ST-Align's options of embed, and the picture of spots on tissue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from PIL import Image

from terrazzo import keys


@pytest.fixture
def checkpoint(align_model: Any, tmp_path: Path) -> Path:
    return align_model().save_pretrained(tmp_path / "checkpoint")


@pytest.fixture
def files(histology: Any, tmp_path: Path) -> tuple[Path, Path, float]:
    """Write a slice without its image, the image beside it; return both and the image's scale."""
    adata = histology()
    entry = next(iter(adata.uns.pop("spatial").values()))
    adata.write_h5ad(tmp_path / "slice.h5ad")
    Image.fromarray(entry["images"]["hires"]).save(tmp_path / "he.jpg", quality=95)
    return (
        tmp_path / "slice.h5ad",
        tmp_path / "he.jpg",
        entry["scalefactors"]["tissue_hires_scalef"],
    )


def test_embed_takes_an_image_beside_the_slice(
    call: Any, files: Any, checkpoint: Path, tmp_path: Path
) -> None:
    sample, image, scale = files
    words = ["embed", sample, "--model", checkpoint, "--out", tmp_path / "out", "--image", image]
    words += [
        "--image-scale",
        scale,
        "--scale",
        "spot",
        "--modality",
        "image",
        "--cache",
        tmp_path / "cache",
    ]
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    assert "90 cells embedded" in out
    found = anndata.read_h5ad(tmp_path / "out" / "slice.h5ad")
    assert found.obsm["X_stalign"].shape == (90, 64)
    details = json.loads(found.uns[keys.UNS]["X_stalign"]["details"])
    assert (details["modality"], details["scale"]) == ("image", "spot")
    assert list((tmp_path / "cache").glob("*.npy"))
    assert "left alone" in call(*words)[1]


def test_genes_alone_need_no_image(call: Any, files: Any, checkpoint: Path, tmp_path: Path) -> None:
    words = ["embed", files[0], "--model", checkpoint, "--out", tmp_path / "out"]
    code, _, err = call(*words)
    assert code == 2
    assert err.count("\n") == 1
    assert "--modality genes" in err
    assert call(*words, "--modality", "genes")[0] == 0


def test_a_truncated_image_is_one_line(
    call: Any, files: Any, checkpoint: Path, tmp_path: Path
) -> None:
    sample, image, scale = files
    image.write_bytes(image.read_bytes()[:3000])
    code, _, err = call(
        "embed",
        sample,
        "--model",
        checkpoint,
        "--out",
        tmp_path / "out",
        "--image",
        image,
        "--image-scale",
        scale,
    )
    assert code == 2
    assert err.count("\n") == 1
    assert "truncated" in err
    assert not list((tmp_path / "out").glob("*.h5ad"))


def test_options_that_do_not_go_together(
    call: Any, files: Any, checkpoint: Path, tmp_path: Path, tiny_model: Any
) -> None:
    sample, image, _ = files
    out = ["--out", tmp_path / "out"]
    code, _, err = call("embed", sample, "--model", checkpoint, *out, "--image-scale", 2)
    assert code == 2
    assert "--image" in err
    other = tiny_model().save_pretrained(tmp_path / "stofm")
    code, _, err = call(
        "embed", sample, "--model", other, *out, "--image", image, "--scale", "niche"
    )
    assert code == 2
    assert "--scale belongs to ST-Align; this checkpoint is SToFM." in err
    code, _, err = call("embed", sample, sample, "--model", checkpoint, *out, "--image", image)
    assert code == 2
    assert "one image cannot belong to 2 slices" in err
    code, _, err = call("info", sample, sample, "--image", image)
    assert code == 2
    assert "--image is the histology of one slice; there are 2" in err
    code, _, err = call("info", sample, sample, "--overlay", tmp_path / "overlay.png")
    assert code == 2
    assert "there are 2" in err


@pytest.mark.usefixtures("quiet_figures")
def test_info_draws_spots_over_histology(call: Any, files: Any, tmp_path: Path) -> None:
    sample, image, scale = files
    target = tmp_path / "overlay.png"
    code, out, err = call(
        "info", sample, "--overlay", target, "--image", image, "--image-scale", scale
    )
    assert (code, err) == (0, "")
    assert "90 spots, " in out
    assert "ST-Align              yes: spots and niches, from histology and genes" in out
    assert "on tissue" in out
    assert np.asarray(Image.open(target)).std() > 10
    code, _, err = call("info", sample, "--overlay", target)
    assert code == 2
    assert "no histology image" in err


def test_info_reads_the_picture_that_a_json_file_names(
    call: Any, files: Any, tmp_path: Path
) -> None:
    sample, _, scale = files
    sheet = sample.with_suffix(".json")
    sheet.write_text(json.dumps({"image": "he.jpg", "scale": scale}))
    code, out, err = call("info", sample, "--overlay", tmp_path / "overlay.png")
    assert (code, err) == (0, "")
    assert (tmp_path / "overlay.png").stat().st_size > 0
    assert "image to gene         yes" in out
    sheet.write_text(json.dumps({"image": "lost.jpg", "scale": scale}))
    code, out, _ = call("info", sample)
    assert code == 0
    assert "the image beside the slice is not used" in out
    assert "--image FILE" in out
